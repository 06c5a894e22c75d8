"""Benchmark of the features by dbt: one day more, all days again, and plain SQL for one day."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from winback.models.settings import Settings
from winback.operators.bench_features_naive import naive_features
from winback.operators.bench_measure import Answer, BenchError, Done, Place, Step, close
from winback.operators.big_warehouse import fill_warehouse, last_day

SCHEMAS = ("winback", "winback_work", "winback_staging")
PEER_TABLE = "public.bench_naive_features"
NODES_SHOWN = 8  # of dbt's, the slowest

# Sums over a date's snapshots by which two ways to make them are compared, every column.
NUMBERS = (
    *("frequency", "recency_days", "age_days", "days_since_last_purchase", "purchases_last_30d"),
    *("avg_order_value", "remaining_budget_pct", "category_id", "coupons_last_30d"),
    *("revenue_last_90d", "monetary_value", "coupons_received", "coupons_redeemed", "propensity"),
    *("order_placed::int", "order_profit", "coupon_cost", "contact_cost", "reward"),
)
TEXTS = ("customer_id", "category", "category_sequence::text", "coupon_id")
SUMMED = ", ".join(
    ["count(*)"]
    + [f"sum({name})" for name in NUMBERS]
    + [f"sum(hashtext({name})::bigint)" for name in TEXTS]
)


def ready_warehouse(size: int, place: Place) -> date:
    """Fill the sources for this size unless they are; the date to decide at."""
    import psycopg

    url, weeks = str(place["postgres"]), int(place["weeks"])
    with psycopg.connect(url) as connection:
        found = connection.execute("select obj_description(to_regclass('raw.orders'))").fetchone()
    if not found or f"large: {size} customers, {weeks} weeks," not in str(found[0]):
        forget_results(url)
        fill_warehouse(url, size, weeks)
    return last_day(weeks)


def forget_results(url: str) -> None:
    """Drop everything that a run of winback made."""
    import psycopg

    with psycopg.connect(url) as connection:
        for schema in SCHEMAS:
            connection.execute(f"drop schema if exists {schema} cascade".encode())


def build_features(url: str, as_of: date, *options: str) -> dict[str, float]:
    """``dbt build`` of the features, as the daily run's task does it; seconds by node.

    Raises:
        BenchError: dbt failed.
    """
    from sqlalchemy.engine import make_url

    from winback.operators.local_airflow import QUIET

    address = make_url(url)
    project = Path(__file__).resolve().parent.parent / "dbt_project"
    places = {
        "HOST": address.host,
        "PORT": address.port,
        "USER": address.username,
        "PASSWORD": address.password,
        "DBNAME": address.database,
    }
    environment = {f"WINBACK_PG_{name}": str(value) for name, value in places.items()}
    with tempfile.TemporaryDirectory(prefix="winback-bench-dbt-") as folder:
        paths = ["--project-dir", str(project), "--profiles-dir", str(project)]
        paths += ["--target-path", folder, "--log-path", folder]
        what = ["--select", "tag:features", "--exclude-resource-type", "unit_test"]
        given = ["--vars", json.dumps({"as_of": as_of.isoformat(), "run_id": "bench"})]
        done = subprocess.run(
            [sys.executable, "-m", "dbt.cli.main", "build", *paths, *what, *given, *options],
            capture_output=True,
            text=True,
            cwd=folder,  # dbt takes any dbt_*.py in the working folder for a plugin, and runs it
            env={**os.environ, **QUIET, **environment},
        )
        if done.returncode:
            raise BenchError(f"dbt build failed:\n{done.stdout[-2000:]}")
        nodes = json.loads(Path(folder, "run_results.json").read_text(encoding="utf-8"))["results"]
    return {node["unique_id"].split(".")[2]: node["execution_time"] for node in nodes}


def _increment(size: int, place: Place) -> Callable[[], Done]:
    """The decision date's features when those of the day before are there."""
    url, as_of = str(place["postgres"]), ready_warehouse(size, place)

    def run() -> Done:
        # from nothing, as no shop has a table of one single build: its tests would read every row
        build_features(url, as_of - timedelta(days=1), "--full-refresh")
        return _built(url, as_of)

    return run


def _rebuild(size: int, place: Place) -> Callable[[], Done]:
    url, as_of = str(place["postgres"]), ready_warehouse(size, place)
    return lambda: _built(url, as_of, "--full-refresh")


def _built(url: str, as_of: date, *options: str) -> Done:
    import psycopg

    started = time.perf_counter()
    nodes = build_features(url, as_of, *options)
    seconds = time.perf_counter() - started
    sums = _sums(url, "winback.customer_snapshots", as_of)
    with psycopg.connect(url) as connection:
        counted = connection.execute("select count(*) from raw.orders").fetchone()
    orders = int(counted[0]) if counted else 0
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    slowest = sorted(nodes, key=lambda node: -nodes[node])[:NODES_SHOWN]
    notes = {"orders": orders, "seconds": {node: round(nodes[node], 1) for node in slowest}}
    return Done({"sums": sums}, seconds=seconds, peak_mb=peak, notes=notes)


def _sums(url: str, table: str, as_of: date) -> list[float]:
    """Of the decision date, and of the window that closes at it."""
    import psycopg

    dates = [as_of, as_of - timedelta(days=Settings().decision_days)]
    query = f"select {SUMMED} from {table} where snapshot_date = any(%s) group by snapshot_date "
    query += "order by snapshot_date"
    with psycopg.connect(url) as connection:
        rows = connection.execute(query.encode(), [dates]).fetchall()
    return [float(value or 0) for row in rows for value in row]


def _naive(size: int, place: Place) -> Callable[[], Done]:
    import psycopg

    url, as_of = str(place["postgres"]), ready_warehouse(size, place)

    def run() -> Done:
        with psycopg.connect(url) as connection:
            connection.execute(f"drop table if exists {PEER_TABLE}".encode())
            started = time.perf_counter()
            connection.execute(naive_features(PEER_TABLE, as_of).encode())
            seconds = time.perf_counter() - started
        return Done({"sums": _sums(url, PEER_TABLE, as_of)}, seconds=seconds)

    return run


def _same_features(ours: Answer, theirs: Answer) -> str:
    for a, b in zip(ours["sums"], theirs["sums"], strict=True):
        close("a sum over a column of the snapshots", a, b, 1e-9)
    return "equal sums"


SIZES: dict[str, Any] = {"sizes": (20_000, 100_000, 1_000_000), "quick": (500,)}
FEATURES_STEPS = (
    Step(
        name="features",
        title="features by dbt, one day more",
        unit="customers",
        **SIZES,
        sides={"winback": _increment, "full rebuild": _rebuild, "a join per window": _naive},
        agree=_same_features,
        needs_servers=True,
    ),
)
