"""Benchmark of the features by dbt: one day more, all days again, and plain SQL for one day."""

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

from winback.operators.bench_measure import Answer, BenchError, Done, Place, Step, close
from winback.operators.big_warehouse import fill_warehouse, last_day

SCHEMAS = ("winback", "winback_work", "winback_staging")
PEER_TABLE = "bench_naive_features"

# What customer_snapshots says of the decision date, straight from the sources: a join per window.
NAIVE = """
create table public.{table} as
with buyers as (
    select customer_id, min(ordered_at)::date as first_on, max(ordered_at)::date as last_on
    from raw.orders where revenue >= 0 and ordered_at < {as_of} group by customer_id
)
select
    buyers.customer_id,
    days.purchase_days - 1 as frequency,
    buyers.last_on - buyers.first_on as recency_days,
    {as_of}::date - buyers.first_on as age_days,
    coalesce(month.orders, 0) as purchases_last_30d,
    coalesce(quarter.revenue, 0) as revenue_last_90d,
    coalesce(offers.coupons, 0) as coupons_last_30d,
    ever.coupons as coupons_received,
    whole.margin,
    sequence.categories
from buyers
left join (
    select a.customer_id, count(distinct b.ordered_at::date) as purchase_days
    from buyers a join raw.orders b on b.customer_id = a.customer_id
    where b.revenue >= 0 and b.ordered_at < {as_of} group by a.customer_id
) days using (customer_id)
left join (
    select a.customer_id, count(*) as orders
    from buyers a join raw.orders b on b.customer_id = a.customer_id
    where b.revenue >= 0 and b.ordered_at >= {as_of} - interval '30 days' and b.ordered_at < {as_of}
    group by a.customer_id
) month using (customer_id)
left join (
    select a.customer_id, sum(b.revenue) as revenue
    from buyers a join raw.orders b on b.customer_id = a.customer_id
    where b.ordered_at >= {as_of} - interval '90 days' and b.ordered_at < {as_of}
    group by a.customer_id
) quarter using (customer_id)
left join (
    select a.customer_id, sum(b.margin) as margin
    from buyers a join raw.orders b on b.customer_id = a.customer_id
    where b.ordered_at < {as_of} group by a.customer_id
) whole using (customer_id)
left join (
    select a.customer_id, count(*) as coupons
    from buyers a join raw.coupon_offers b on b.customer_id = a.customer_id
    where b.coupon_id <> 'none' and b.offered_at >= {as_of} - interval '30 days'
        and b.offered_at < {as_of} group by a.customer_id
) offers using (customer_id)
left join (
    select a.customer_id, count(*) as coupons
    from buyers a join raw.coupon_offers b on b.customer_id = a.customer_id
    where b.coupon_id <> 'none' and b.offered_at < {as_of} group by a.customer_id
) ever using (customer_id)
left join (
    select a.customer_id, array_agg(c.category order by b.ordered_at) as categories
    from buyers a join raw.orders b on b.customer_id = a.customer_id
    join raw.order_items c on c.order_id = b.order_id
    where b.ordered_at >= {as_of} - interval '30 days' and b.ordered_at < {as_of}
    group by a.customer_id
) sequence using (customer_id)
"""
SUMMED = "count(*), sum(frequency), sum(recency_days), sum(age_days), sum(purchases_last_30d), "
SUMMED += "sum(coupons_last_30d), sum(revenue_last_90d)"


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


def build_features(url: str, as_of: date, *options: str) -> None:
    """``dbt build`` of the features, as the daily run's task does it.

    Raises:
        BenchError: dbt failed.
    """
    import json

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


def _increment(size: int, place: Place) -> Callable[[], Done]:
    """The decision date's features when those of the day before are there."""
    url, as_of = str(place["postgres"]), ready_warehouse(size, place)
    build_features(url, as_of - timedelta(days=1))

    def run() -> Done:
        build_features(url, as_of - timedelta(days=1))
        return _built(url, as_of)

    return run


def _rebuild(size: int, place: Place) -> Callable[[], Done]:
    url, as_of = str(place["postgres"]), ready_warehouse(size, place)
    return lambda: _built(url, as_of, "--full-refresh")


def _built(url: str, as_of: date, *options: str) -> Done:
    started = time.perf_counter()
    build_features(url, as_of, *options)
    seconds = time.perf_counter() - started
    sums = _sums(url, "winback.customer_snapshots", f"where snapshot_date = '{as_of}'")
    orders = _sums(url, "raw.orders", columns="count(*)")[0]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    return Done({"sums": sums}, seconds=seconds, peak_mb=peak, notes={"orders": int(orders)})


def _sums(url: str, table: str, where: str = "", columns: str = SUMMED) -> list[float]:
    import psycopg

    with psycopg.connect(url) as connection:
        row = connection.execute(f"select {columns} from {table} {where}".encode()).fetchone()
    return [float(value or 0) for value in row or ()]


def _naive(size: int, place: Place) -> Callable[[], Done]:
    import psycopg

    url, as_of = str(place["postgres"]), ready_warehouse(size, place)
    midnight = f"timestamptz '{as_of} 00:00+00'"

    def run() -> Done:
        with psycopg.connect(url) as connection:
            connection.execute(f"drop table if exists public.{PEER_TABLE}".encode())
            started = time.perf_counter()
            connection.execute(NAIVE.format(table=PEER_TABLE, as_of=midnight).encode())
            seconds = time.perf_counter() - started
        return Done({"sums": _sums(url, f"public.{PEER_TABLE}")}, seconds=seconds)

    return run


def _same_features(ours: Answer, theirs: Answer) -> str:
    for a, b in zip(ours["sums"], theirs["sums"], strict=True):
        close("a sum over the decision date's features", a, b, 1e-9)
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
