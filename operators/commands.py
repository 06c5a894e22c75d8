"""The commands. Exit codes: 0 done, 1 failed or held, 2 wrong call."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from winback.models.errors import NotFittedError, SettingsError
from winback.models.settings import load_settings
from winback.operators.artifacts import REPORT
from winback.operators.console import RunView, show_failure, show_places, show_summary
from winback.operators.local_airflow import (
    airflow_environment,
    start_daily_run,
    start_standalone,
)
from winback.operators.run import Run

DONE, FAILED, WRONG_CALL = 0, 1, 2
CURRENT = "current_recommendations"
CONFIGURED = {"AIRFLOW_CONN_WINBACK_WAREHOUSE", "AIRFLOW_HOME"}  # variables: where connections are

COUPON_LIST = """
copy (
    select
        decision_id, customer_id, coupon_id, channel, valid_from, valid_to,
        expected_cost, expected_uplift, treatment_group, reason
    from {schema}.recommendations
    where as_of = {as_of} and coupon_id <> 'none'
    order by customer_id
) to stdout with (format csv, header)
"""


def demo(data_dir: Path) -> int:
    """Embedded servers, a real retailer's year, one daily run, the result shown."""
    from winback.operators.sample import load_sample
    from winback.operators.servers import running_servers

    console = Console()
    console.print("[bold]winback demo[/]: who gets which coupon, on a real retailer's year\n")
    with running_servers(data_dir) as servers:
        with console.status("Load the sample into Postgres"):
            sample = load_sample(servers.postgres_url)
        count = sample.rows
        console.print(f"  {count['orders']:,} orders of {count['customers']:,} households in 2017")
        params = {"as_of": sample.as_of.isoformat(), "timezone": sample.timezone}
        connections = _named(servers.postgres_url, servers.redis_url)
        code = _daily_run(console, params, data_dir, connections)
    if code == DONE:
        _say_how_to_go_on(console, sample.as_of, sample.timezone, data_dir)
    return code


def run(params: Mapping[str, Any], data_dir: Path) -> int:
    """One daily run against the connections winback_warehouse and winback_redis."""
    checked = load_settings(params).model_dump(mode="json")  # refused before Airflow starts
    given = {name: checked[name] for name in params}
    with _connections(data_dir) as connections:
        return _daily_run(Console(), given, data_dir, connections)


def up(data_dir: Path) -> int:
    """Both servers and Airflow's scheduler, processor and UI, until Ctrl-C."""
    console = Console()
    with _embedded(data_dir) as connections:
        environment = airflow_environment(data_dir, connections)
        with start_standalone(environment, data_dir) as address:
            console.print(f"Airflow with winback_daily: [bold]{address}[/]  (Ctrl-C ends it)")
            for name, url in connections.items():
                console.print(f"{name}: {url}", highlight=False, soft_wrap=True)
            _wait_for_interrupt()
    console.print("Everything has been stopped.")
    return DONE


def export(as_of: str, output: Path, data_dir: Path) -> int:
    """Write the coupon list of a published date as CSV for a campaign tool.

    Raises:
        NotFittedError: nothing has been published for that date.
        SettingsError: the file cannot be written.
    """
    from psycopg import sql

    from winback.operators.warehouse import transaction

    names = {
        "schema": sql.Identifier(load_settings().schema_name),
        "as_of": sql.Literal(as_of),
    }
    with _connections(data_dir) as connections, transaction(_warehouse(connections)) as connection:
        _check_published(connection, names, as_of)
        query = sql.SQL(COUPON_LIST).format(**names)
        try:
            count = _copy_to_file(connection, query, output)
        except OSError as error:
            raise SettingsError(f"{output} cannot be written: {error.strerror}.") from error
    Console().print(f"{count:,} coupons for {as_of} written to {output}")
    return DONE


def _copy_to_file(connection: Any, query: Any, output: Path) -> int:
    """Write a COPY's rows, whole or not at all; return how many there are."""
    partial = output.with_name(output.name + ".partial")
    with open(partial, "wb") as file, connection.cursor() as cursor:
        with cursor.copy(query) as rows:
            for block in rows:
                file.write(block)
        count = int(cursor.rowcount)
    partial.replace(output)
    return count


def rollback(data_dir: Path) -> int:
    """Serve the Q-table before the current one from Redis again."""
    from winback.operators.q_store import QStore, connect, redis_url

    keep_seconds = load_settings().keep_versions_days * 86_400
    with _connections(data_dir) as connections:
        url = connections.get("winback_redis") or redis_url()
        version = QStore(connect(url), keep_seconds).roll_back()
    Console().print(f"Redis serves {version} now.")
    return DONE


def benchmark(
    worlds: int,
    customers: int,
    weeks: int,
    output: Path,
    data_dir: Path,
    *,
    families: Sequence[str] = (),
    dials: Mapping[str, Any] | None = None,
    policies: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    fresh: bool = False,
    loop: int = 0,
) -> int:
    """Policies in worlds whose best policy is known; a table, a page, and rows in the warehouse."""
    from winback.operators.benchmark import BenchmarkOptions, run_world, run_worlds
    from winback.operators.benchmark_loop import run_loop
    from winback.operators.benchmark_report import write_report
    from winback.operators.benchmark_table import read_rows
    from winback.operators.benchmark_worlds import choose_worlds

    console = Console()
    chosen = choose_worlds(worlds, customers, weeks, families, dials)
    numbers: dict[str, float] = {"worlds": worlds, "customers": customers, "weeks": weeks}
    numbers |= {"loop": loop} if loop else {}
    lists = {"families": families, "dial": _assigned(dials), "policies": policies}
    call = _benchmark_call(numbers, {**lists, "set": _assigned(settings)})
    schema = load_settings(settings).schema_name
    with _configured_or_embedded(data_dir) as connections:
        url = _warehouse(connections)
        options = BenchmarkOptions(url, schema, tuple(policies), dict(settings or {}), fresh=fresh)

        def say(words: str) -> None:
            console.print(f"{datetime.now():%H:%M:%S} {words}", highlight=False, soft_wrap=True)

        run_one = partial(run_loop, weeks=loop) if loop else run_world
        with _errors_only():  # a hundred runs, and their remarks
            failed = run_worlds(chosen, options, say, run_one)
        places = write_report(read_rows(url, schema, chosen), output, call)
    show_places(console, places)
    return FAILED if failed else DONE


def bench(
    steps: Sequence[str],
    output: Path | None,
    data_dir: Path,
    *,
    sizes: Sequence[int] = (),
    quick: bool = False,
    repeats: int = 3,
    weeks: int = 26,
) -> int:
    """Each step beside what people use today; a table, and a page with -o."""
    from winback.operators.bench import BenchOptions, run_bench

    options = BenchOptions(steps, sizes, quick, repeats, weeks, output)
    return run_bench(options, data_dir, Console())


@contextmanager
def _errors_only() -> Iterator[None]:
    """Leave out what winback's steps remark and warn of."""
    log = logging.getLogger("winback")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _assigned(values: Mapping[str, Any] | None) -> list[str]:
    return [f"{name}={value}" for name, value in (values or {}).items()]


def _benchmark_call(numbers: Mapping[str, float], lists: Mapping[str, Sequence[str]]) -> str:
    """How to get the same report again."""
    import shlex

    words = [f"--{name} {value}" for name, value in numbers.items()]
    words += [f"--{name} {shlex.join(values)}" for name, values in lists.items() if values]
    return f"winback benchmark {' '.join(words)} -o DIR"


def _daily_run(
    console: Console, params: Mapping[str, Any], data_dir: Path, connections: Mapping[str, str]
) -> int:
    log_file = data_dir / "logs" / f"run-{datetime.now():%Y%m%d-%H%M%S}.log"
    environment = airflow_environment(data_dir, connections)
    view = RunView(console)
    with start_daily_run(params, environment, log_file) as local_run:
        view.follow(local_run.events())
        code = local_run.exit_code
    if code == 0 and view.run is not None:
        _show_result(console, view.run, connections, log_file)
        return DONE
    show_failure(console, view.failure, str(log_file))
    kind = view.failure["kind"] if view.failure else None
    return WRONG_CALL if kind == SettingsError.__name__ else FAILED


def _say_how_to_go_on(console: Console, as_of: date, timezone: str, data_dir: Path) -> None:
    place, later = f"--data-dir {_short(data_dir)}", as_of + timedelta(days=7)
    winback = _short(Path(sys.argv[0]))
    console.print("\nThe servers have been stopped; the data stay. To go on:")
    for command, purpose in (
        (f"{winback} up {place}", "the servers, with addresses for psql, and Airflow's pages"),
        (f"{winback} run --as-of {later} --timezone {timezone} {place}", "the next week"),
        (f"{winback} export --as-of {as_of} -o coupons.csv {place}", "for a campaign tool"),
    ):
        console.print(f"  {command}   [dim]{purpose}[/]", highlight=False, soft_wrap=True)


def _short(path: Path) -> str:
    """The path as one would type it from here."""
    return min(str(path), os.path.relpath(path), key=len)


def _show_result(
    console: Console, started: Mapping[str, Any], connections: Mapping[str, str], log_file: Path
) -> None:
    from winback.operators.read_report import read_report

    run = Run(
        url=_warehouse(connections),
        as_of=started["as_of"],
        run_id=started["run_id"],
        settings=load_settings(started["settings"]),
    )
    show_summary(console, read_report(run))
    places = {
        "Report": run.artifacts.uri(REPORT),
        "Data checks": run.artifacts.uri("data_docs"),
        "Warehouse": f'psql ADDRESS -c "select * from {run.settings.schema_name}.{CURRENT}"',
        "Redis": "redis-cli -u ADDRESS get winback:current",
        "Full log": str(log_file),
    }
    show_places(console, places)


@contextmanager
def _connections(data_dir: Path) -> Iterator[dict[str, str]]:
    """The configured Airflow connections (nothing to add), else the data folder's own servers."""
    if CONFIGURED & os.environ.keys():
        yield {}
    elif (data_dir / "servers.json").exists():
        with _embedded(data_dir) as connections:
            yield connections
    else:
        raise SettingsError(
            "expected the connection winback_warehouse, found none. Set "
            "AIRFLOW_CONN_WINBACK_WAREHOUSE=postgres://user:password@host:5432/database and "
            "AIRFLOW_CONN_WINBACK_REDIS=redis://host:6379/0, or AIRFLOW_HOME to an Airflow that "
            f"has them; or run `winback demo` to make servers in {data_dir}."
        )


@contextmanager
def _configured_or_embedded(data_dir: Path) -> Iterator[dict[str, str]]:
    """As :func:`_connections`, but servers are made where the data folder has none."""
    if CONFIGURED & os.environ.keys():
        yield {}
    else:
        with _embedded(data_dir) as connections:
            yield connections


@contextmanager
def _embedded(data_dir: Path) -> Iterator[dict[str, str]]:
    from winback.operators.servers import running_servers

    with running_servers(data_dir) as servers:
        yield _named(servers.postgres_url, servers.redis_url)


def _named(postgres: str, redis: str) -> dict[str, str]:
    return {"winback_warehouse": postgres, "winback_redis": redis}


def _warehouse(connections: Mapping[str, str]) -> str:
    from winback.operators.warehouse import warehouse_url

    return connections.get("winback_warehouse") or warehouse_url()


def _check_published(connection: Any, names: Mapping[str, Any], as_of: str) -> None:
    from psycopg import sql

    query = sql.SQL("select exists (select from {schema}.recommendations where as_of = {as_of})")
    if not connection.execute(query.format(**names)).fetchone()[0]:
        raise NotFittedError(
            f"expected recommendations for {as_of}, found none. "
            f"Publish them first: winback run --as-of {as_of}"
        )


def _wait_for_interrupt() -> None:
    import signal

    try:
        signal.pause()
    except KeyboardInterrupt:
        return
