"""Measuring two ways to do the same thing: a fresh process each, in turns, medians, peak memory.

A step has sides: winback's way and its peers'. Every side prepares the same inputs in a process of
its own, then all of them run in turns, so that a busy machine slows each of them alike, and a
process's peak memory is that of one side. What they answer is compared before a time is believed.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from math import log
from statistics import linear_regression, median
from typing import Any, TypeAlias

from winback.models.errors import WinbackError
from winback.operators.local_airflow import QUIET
from winback.operators.processes import peak_memory_mb

SLOW_SECONDS = 60.0  # a side that takes longer runs once, and has no first run that does not count

Answer: TypeAlias = Mapping[str, Any]
Place: TypeAlias = Mapping[str, Any]  # addresses of servers, folders: what inputs are made from


class BenchError(WinbackError):
    """A side failed, or two sides disagree: their times say nothing."""


@dataclass(frozen=True)
class Done:
    """What one run hands back.

    Attributes:
        answer: JSON-able; what sides are compared by.
        work: what was done, in the step's unit; 0 stands for the step's size.
        seconds: where the run itself knows which part of it counts.
        moved: what the machine's limit counts: bytes or floating-point operations.
        peak_mb: where the work was done in another process than the side's own.
        notes: figures for the reader, such as seconds per task.
    """

    answer: Answer
    work: float = 0.0
    seconds: float | None = None
    moved: float = 0.0
    peak_mb: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


Side: TypeAlias = Callable[[int, Place], Callable[[], Done]]


@dataclass(frozen=True)
class Step:
    """One benchmark.

    Attributes:
        name: as on the command line.
        title: what is done, in words.
        unit: what sizes and ``Done.work`` count.
        sizes: rising; ``quick`` likewise, for a look in seconds.
        sides: winback's first.
        agree: compares winback's answer with a peer's; words for the table, or BenchError.
        limit: name of the machine's limit (bench_limits) that ``moved`` is set against.
        largest: of peers that are not asked beyond a size.
        needs_servers: whether ``Place`` holds addresses of Postgres and Redis.
        is_rate: compares work per second: the sides do different amounts of it.
    """

    name: str
    title: str
    unit: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    sides: Mapping[str, Side]
    agree: Callable[[Answer, Answer], str]
    limit: str | None = None
    largest: Mapping[str, int] = field(default_factory=dict)
    needs_servers: bool = False
    is_rate: bool = False


@dataclass(frozen=True)
class Measurement:
    """One side of one step at one size."""

    step: str
    side: str
    size: int
    seconds: tuple[float, ...]  # of every run that counts
    work: float
    moved: float
    peak_mb: float  # resident memory of the side's process, inputs and imports included
    answer: Answer
    notes: Mapping[str, Any]
    first_seconds: float = 0.0  # of the run before them, compilation included

    @property
    def median_seconds(self) -> float:
        """Half of the runs took longer."""
        return median(self.seconds)

    @property
    def rate(self) -> float:
        """Work per second."""
        return self.work / max(self.median_seconds, 1e-9)


def measure(step: Step, size: int, place: Place, repeats: int) -> list[Measurement]:
    """All sides of a step at a size, in turns: a first run each, then ``repeats`` that count.

    The first compiles what is compiled at first use and fills the caches, of winback and peers.

    Raises:
        BenchError: a side failed.
    """
    names = [name for name in step.sides if size <= step.largest.get(name, size)]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with ExitStack() as stack:
        sides = {name: stack.enter_context(_side(step, name, size, place)) for name in names}
        for _ in range(1 + repeats):
            for name in reversed(names):  # winback last
                if not runs[name] or runs[name][0]["seconds"] < SLOW_SECONDS:
                    runs[name].append(sides[name]())
    return [_measurement(step, name, size, runs[name]) for name in names]


def close(name: str, ours: float, theirs: float, tolerance: float) -> str:
    """Words for a relative difference within ``tolerance``.

    Raises:
        BenchError: it is larger.
    """
    difference = abs(ours - theirs) / max(abs(theirs), 1e-300)
    if not difference <= tolerance:
        raise BenchError(
            f"expected {name} of winback and of its peer to agree to {tolerance:g} relative, came "
            f"{ours!r} and {theirs!r}: their times cannot be compared. Report this."
        )
    return f"{name} {difference:.1g} apart"


def _measurement(step: Step, side: str, size: int, runs: Sequence[Any]) -> Measurement:
    last, counted = runs[-1], runs[1:] or runs
    return Measurement(
        step=step.name,
        side=side,
        size=size,
        seconds=tuple(run["seconds"] for run in counted),
        first_seconds=runs[0]["seconds"],
        work=last["work"] or float(size),
        moved=last["moved"],
        peak_mb=max(run["peak_mb"] for run in runs),
        answer=last["answer"],
        notes=last["notes"],
    )


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log seconds over log size, by least squares."""
    return linear_regression([log(size) for size in sizes], [log(s) for s in seconds]).slope


@contextmanager
def _side(step: Step, side: str, size: int, place: Place) -> Iterator[Callable[[], dict[str, Any]]]:
    """A process that has prepared its inputs; calling what this gives runs it once."""
    order = {"step": step.name, "side": side, "size": size, "place": dict(place)}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**QUIET, **os.environ},
        )

        def ask(line: str) -> dict[str, Any]:
            with _broken_pipe_ignored():
                print(line, file=process.stdin, flush=True)
            reply = process.stdout.readline() if process.stdout else ""
            if not reply:
                log.seek(0)
                end = "\n".join(log.read().strip().splitlines()[-15:])
                raise BenchError(f"{step.name}, {side}, {size:,} {step.unit} failed:\n{end}")
            answer: dict[str, Any] = json.loads(reply)
            return answer

        try:
            ask(json.dumps(order))
            yield lambda: ask("run")
        finally:
            process.kill()
            process.communicate()


@contextmanager
def _broken_pipe_ignored() -> Iterator[None]:
    """A process that died says why in its log, which is shown instead."""
    try:
        yield
    except BrokenPipeError:
        return


def main() -> None:
    """The process of one side: prepare as the first line says, then run at every further line."""
    from winback.operators.bench_steps import STEPS

    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    order = json.loads(sys.stdin.readline())
    run = STEPS[order["step"]].sides[order["side"]](order["size"], order["place"])
    print(json.dumps({"ready": True}), file=channel, flush=True)
    for _ in sys.stdin:
        gc.collect()
        started = time.perf_counter()
        done = run()
        seconds = time.perf_counter() - started
        said = asdict(done)
        said["seconds"] = seconds if done.seconds is None else done.seconds
        said["peak_mb"] = peak_memory_mb() if done.peak_mb is None else done.peak_mb
        print(json.dumps(said), file=channel, flush=True)


if __name__ == "__main__":
    main()
