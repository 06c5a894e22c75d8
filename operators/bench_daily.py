"""Benchmark of the whole daily run at any size: seconds and memory by task."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from winback.operators.bench_features import SIZES, forget_results, ready_warehouse
from winback.operators.bench_measure import Answer, BenchError, Done, Place, Step

POLL_SECONDS = 0.2  # how often the memory of a run's processes is looked at


def _daily(size: int, place: Place) -> Callable[[], Done]:
    """The decision date's run when the day before has been published."""
    as_of = ready_warehouse(size, place)
    return lambda: daily_run(place, as_of)


def _first_run(size: int, place: Place) -> Callable[[], Done]:
    """The day before's run, from nothing but the sources."""
    import redis

    as_of = ready_warehouse(size, place) - timedelta(days=1)

    def run() -> Done:
        forget_results(str(place["postgres"]))
        redis.Redis.from_url(str(place["redis"])).flushdb()
        return daily_run(place, as_of)

    return run


def _reference(size: int, place: Place) -> Callable[[], Done]:
    from winback.operators.bench_reference_day import reference_day

    ready_warehouse(size, place)
    return reference_day(size, place)


def daily_run(place: Place, as_of: date) -> Done:
    """One ``winback_daily`` as ``winback run`` starts it; seconds and memory by task.

    All tasks share one process here, so a task's memory includes what those before it left.

    Raises:
        BenchError: a task failed.
    """
    from winback.operators.local_airflow import airflow_environment, start_daily_run

    folder = Path(place["data_dir"]) / "bench"
    urls = {"winback_warehouse": place["postgres"], "winback_redis": place["redis"]}
    environment = airflow_environment(folder, urls)
    params = {"as_of": as_of.isoformat(), "override_gate": True}  # publishing is measured too
    log = folder / "logs" / f"bench-{as_of}.log"
    seconds: dict[str, float] = {}
    began: dict[tuple[Any, Any], float] = {}  # a mapped task's parts add up
    failure = None
    started = time.perf_counter()
    with (
        start_daily_run(params, environment, log) as local_run,
        _memory_watched(local_run.process.pid) as memory,
    ):
        for event in local_run.events():
            if event["event"] == "started":
                memory.task = event["task"]
                began[event["task"], event.get("part")] = event["at"]
            elif event["event"] == "succeeded":
                took = event["at"] - began[event["task"], event.get("part")]
                seconds[event["task"]] = round(seconds.get(event["task"], 0.0) + took, 2)
            elif event["event"] == "failed":
                failure = failure or event
        code = local_run.exit_code
    if code:
        raise BenchError(f"the daily run for {as_of} failed: {failure}; see {log}")
    total = time.perf_counter() - started
    notes = {"seconds": seconds, "peak MB": {name: round(mb) for name, mb in memory.peaks.items()}}
    return Done({"said": f"published {as_of}"}, seconds=total, peak_mb=memory.largest, notes=notes)


class _Memory:
    """Largest resident memory of any one process of a family, by the task at work."""

    def __init__(self) -> None:
        self.task = "start"
        self.peaks: dict[str, float] = {}
        self.over = threading.Event()

    @property
    def largest(self) -> float:
        return max(self.peaks.values(), default=0.0)

    def watch(self, pid: int) -> None:
        import psutil

        while not self.over.wait(POLL_SECONDS):
            try:
                process = psutil.Process(pid)
                family = [process, *process.children(recursive=True)]
                largest = max(member.memory_info().rss for member in family) / 1e6
            except psutil.Error:  # one of them has just ended
                continue
            self.peaks[self.task] = max(self.peaks.get(self.task, 0.0), largest)


@contextmanager
def _memory_watched(pid: int) -> Iterator[_Memory]:
    memory = _Memory()
    watcher = threading.Thread(target=memory.watch, args=(pid,), daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        memory.over.set()
        watcher.join()


def _both_done(ours: Answer, theirs: Answer) -> str:
    return f"{theirs['said']}, {ours['said']}"


DAILY_STEPS = (
    Step(
        name="daily",
        title="the whole winback_daily, one day more",
        unit="customers",
        **SIZES,
        sides={
            "winback": _daily,
            "reference's stages, scaled": _reference,
            "first build": _first_run,
        },
        agree=_both_done,
        needs_servers=True,
    ),
)
