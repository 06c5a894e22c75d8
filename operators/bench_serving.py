"""Benchmarks of serving and of starting: the Q-table to Redis, a look-up, the commands."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from winback.operators.bench_measure import Answer, BenchError, Done, Place, Step
from winback.operators.q_packing import COUPON_ID, Q_VALUE, STATE
from winback.operators.q_store import CURRENT, CouponReader, QStore, connect, table_key

COUPONS = ("none", "save4", "save8", "save14")
KEEP_SECONDS = 3600  # longer than a benchmark
LOOKUPS = 2_000
AS_OF = "2024-07-29"


def q_table(states: int, seed: int = 0) -> list[tuple[str, dict[str, float]]]:
    """States named and sorted as the daily run has them, and a value per coupon."""
    values = np.random.default_rng(seed).normal(20, 5, (states, len(COUPONS))).round(4)
    keys = (
        f"days_since_last_purchase=[{n % 7},{n % 7 + 1})|purchases_last_30d=[{n % 11},inf)"
        f"|avg_order_value=[{n % 13},inf)|category=c{n:06d}"
        for n in range(states)
    )
    rows = (dict(zip(COUPONS, row, strict=True)) for row in values.tolist())
    return sorted(zip(keys, rows, strict=True), key=lambda state: state[0])


def as_rows(states: Iterable[tuple[str, dict[str, float]]]) -> Any:
    """As the warehouse hands them over: a row per state and coupon."""
    import pyarrow as pa

    rows = [(state, *pair) for state, values in states for pair in values.items()]
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    names = (STATE, COUPON_ID, Q_VALUE)
    types = (pa.string(), pa.string(), pa.float64())
    return pa.table(
        [pa.array(part, kind) for part, kind in zip(columns, types, strict=True)], names=names
    )


def _state_space() -> Any:
    from winback.models.settings import load_settings
    from winback.models.states import StateSpace

    return StateSpace(load_settings().state_bins)


def _publish(size: int, place: Place) -> Callable[[], Done]:
    """Staged beside the version served, read back, and swapped in one step."""
    client, states = connect(place["redis"]), q_table(size)
    rows, meta = as_rows(states), {"state_space": _state_space().to_dict()}
    store = QStore(client, KEEP_SECONDS)

    def run() -> Done:
        client.flushdb()
        started = time.perf_counter()
        store.activate(store.stage(AS_OF, rows, meta))
        seconds = time.perf_counter() - started
        return Done(_served(client, table_key(client.get(CURRENT)), states), seconds=seconds)

    return run


def _one_by_one(size: int, place: Place) -> Callable[[], Done]:
    """One HSET per state; nothing checks them, and readers see the table grow."""
    import json

    client, states = connect(place["redis"]), q_table(size)

    def run() -> Done:
        client.flushdb()
        started = time.perf_counter()
        for state, values in states:
            client.hset("table", state, json.dumps(values))
        seconds = time.perf_counter() - started
        return Done(_served(client, "table", states), seconds=seconds)

    return run


def _served(client: Any, key: str, states: Any) -> dict[str, Any]:
    import json

    sample = [state for state, _ in states[:: max(1, len(states) // 100)]]
    values = [json.loads(text) for text in client.hmget(key, sample)]
    return {"states": client.hlen(key), "sample": values}


def _same_table(ours: Answer, theirs: Answer) -> str:
    if ours != theirs:
        raise BenchError("Redis holds other values than one HSET per state gives. Report this.")
    return "equal tables"


def _look_up(size: int, place: Place) -> Callable[[], Done]:
    """Customer features in, coupon out; the median of single look-ups is the time."""
    client, space = connect(place["redis"]), _state_space()
    features = dict.fromkeys(space.bins, 1.0) | {"category": "toys"}
    states = [*q_table(size), (space.key(features), {"none": 1.0, "save4": 2.0})]
    store = QStore(client, KEEP_SECONDS)
    client.flushdb()
    store.activate(store.stage(AS_OF, as_rows(states), {"state_space": space.to_dict()}))
    reader = CouponReader(client)
    return _median_of(lambda: reader.coupon(features))


def _hget(size: int, place: Place) -> Callable[[], Done]:
    """The round trip alone: one HGET of a known field."""
    client = connect(place["redis"])
    client.hset("single", "state", "save4")
    return _median_of(lambda: client.hget("single", "state"))


def _median_of(one: Callable[[], Any]) -> Callable[[], Done]:
    def run() -> Done:
        seconds = []
        for _ in range(LOOKUPS):
            started = time.perf_counter()
            answer = one()
            seconds.append(time.perf_counter() - started)
        slow = float(np.quantile(seconds, 0.99))
        median = float(np.median(seconds))
        return Done({"coupon": answer}, 1.0, median, notes={"99 % within ms": 1e3 * slow})

    return run


def _same_coupon(ours: Answer, theirs: Answer) -> str:
    if ours["coupon"] != theirs["coupon"]:
        raise BenchError(f"expected coupon {theirs['coupon']}, came {ours['coupon']}")
    return "equal coupon"


def _process(*arguments: str) -> Callable[[int, Place], Callable[[], Done]]:
    """Seconds of a fresh interpreter from start to end."""

    def side(size: int, place: Place) -> Callable[[], Done]:
        def run() -> Done:
            done = subprocess.run([sys.executable, *arguments], capture_output=True)
            return Done({"exit_code": done.returncode}, work=1.0)

        return run

    return side


PARSE_AFTER = """
import time, {before}
started = time.perf_counter()
import {module}
print(time.perf_counter() - started)
"""


def _parse(before: str, module: str) -> Callable[[int, Place], Callable[[], Done]]:
    """Seconds to import a module in an interpreter that has imported others already."""

    def side(size: int, place: Place) -> Callable[[], Done]:
        code = PARSE_AFTER.format(before=before, module=module)
        home = tempfile.mkdtemp(prefix="winback-bench-airflow-")

        def run() -> Done:
            from winback.operators.local_airflow import airflow_environment

            environment = {**airflow_environment(Path(place["data_dir"]), {}), "AIRFLOW_HOME": home}
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            seconds = float(done.stdout.split()[-1]) if done.returncode == 0 else None
            return Done({"exit_code": done.returncode}, work=1.0, seconds=seconds)

        return run

    return side


def _both_ran(ours: Answer, theirs: Answer) -> str:
    if ours["exit_code"] or theirs["exit_code"]:
        raise BenchError("a command failed; run winback --help to see how")
    return ""


AIRFLOW = "airflow.sdk, airflow.dag_processing.dagbag"
SERVING_STEPS = (
    Step(
        name="q-table",
        title="Q-table to Redis",
        unit="states",
        sizes=(10_000, 50_000, 200_000),
        quick=(500, 2_000),
        sides={"winback": _publish, "one HSET per state": _one_by_one},
        agree=_same_table,
        needs_servers=True,
    ),
    Step(
        name="look-up",
        title="one coupon looked up by features",
        unit="states",
        sizes=(10_000, 200_000),
        quick=(1_000,),
        sides={"winback": _look_up, "one bare HGET": _hget},
        agree=_same_coupon,
        needs_servers=True,
    ),
    Step(
        name="help",
        title="winback --help",
        unit="starts",
        sizes=(1,),
        quick=(1,),
        sides={
            "winback": _process("-m", "winback", "--help"),
            "an empty interpreter": _process("-c", "pass"),
        },
        agree=_both_ran,
    ),
    Step(
        name="dag-parse",
        title="DAG file, beyond importing Airflow",
        unit="starts",
        sizes=(1,),
        quick=(1,),
        sides={
            "winback": _parse(AIRFLOW, "winback.dags.winback_daily"),
            "Airflow itself": _parse("sys", AIRFLOW),
            "Cosmos alone": _parse(AIRFLOW, "cosmos.operators.local"),
        },
        agree=_both_ran,
    ),
)
