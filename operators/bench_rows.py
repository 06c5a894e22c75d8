"""Benchmarks of moving rows between Postgres and arrays: twelve columns, both ways."""

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import numpy as np

from winback.operators.bench_measure import Answer, BenchError, Done, Place, Step, close
from winback.operators.run import Run

AS_OF = "2024-07-29"
TABLE = "bench_rows"
COLUMNS = """
    as_of date, run_id text, customer_id text, coupon_id text, frequency integer,
    recency_days integer, visits bigint, p_alive double precision, p_purchase double precision,
    margin double precision, is_exploration boolean, created_at timestamptz
"""
READ = "select * from winback_work.{table} where as_of = {as_of}"
PART_ROWS = 50_000  # as the daily run writes


def make_rows(n: int, seed: int = 0) -> Any:
    """An Arrow table of n rows: a date, three texts, integers, floats, a flag and a time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    random = np.random.default_rng(seed)
    number = pc.utf8_lpad(pc.cast(pa.array(np.arange(n)), pa.string()), 8, "0")
    coupon = pa.array(["none", "save4", "save8"]).take(pa.array(random.integers(0, 3, n)))
    day = datetime.fromisoformat(AS_OF)
    return pa.table(
        {
            "as_of": pa.repeat(pa.scalar(day.date()), n),
            "run_id": pa.repeat("bench", n),
            "customer_id": pc.binary_join_element_wise("c", number, ""),
            "coupon_id": coupon,
            "frequency": random.integers(0, 50, n).astype(np.int32),
            "recency_days": random.integers(0, 365, n).astype(np.int32),
            "visits": random.integers(0, 10**6, n),
            "p_alive": random.random(n),
            "p_purchase": random.random(n),
            "margin": random.normal(20, 5, n).round(2),
            "is_exploration": random.random(n) < 0.1,
            "created_at": pa.repeat(
                pa.scalar(day.replace(tzinfo=timezone.utc), pa.timestamp("us", "UTC")), n
            ),
        }
    )


def create_table(url: str, name: str) -> None:
    """An empty table for :func:`make_rows` in the work schema."""
    from psycopg import sql

    from winback.operators.warehouse import transaction

    table = sql.Identifier("winback_work", name)
    with transaction(url) as connection:
        connection.execute("create schema if not exists winback_work")
        connection.execute(sql.SQL("drop table if exists {}").format(table))
        connection.execute(sql.SQL("create table {} ({})").format(table, sql.SQL(COLUMNS)))


def a_run(url: str) -> Run:
    """What ``write_work`` is given by a step of the daily run."""
    from winback.models.settings import load_settings

    return Run(url, AS_OF, "bench", load_settings())


def _parts(rows: Any) -> Any:
    return (rows.slice(at, PART_ROWS) for at in range(0, rows.num_rows, PART_ROWS))


def _write(size: int, place: Place) -> Callable[[], Done]:
    from winback.operators.warehouse import write_work

    url, name = place["postgres"], f"{TABLE}_written"
    create_table(url, name)
    rows = make_rows(size)

    def run() -> Done:
        write_work(a_run(url), name, _parts(rows))
        return Done({}, moved=float(rows.nbytes))

    return _with_sums(run, url, f"winback_work.{name}", name)


def _with_sums(
    run: Callable[[], Done], url: str, table: str, emptied: str | None = None
) -> Callable[[], Done]:
    """The run, timed alone; then what the table holds, and for a writer an empty table again."""
    import time

    import psycopg

    query = f"select count(*), sum(margin), sum(visits), count(distinct customer_id) from {table}"

    def timed() -> Done:
        started = time.perf_counter()
        done = run()
        seconds = time.perf_counter() - started
        with psycopg.connect(url) as connection:
            found = connection.execute(query.encode()).fetchone()
        if emptied:
            create_table(url, emptied)
        answer = {"sums": [float(value) for value in found or ()]}
        return Done(answer, seconds=seconds, moved=done.moved)

    return timed


def _write_pandas(size: int, place: Place) -> Callable[[], Done]:
    from sqlalchemy import create_engine

    url, frame = place["postgres"], make_rows(size).to_pandas()
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))

    def run() -> Done:
        frame.to_sql("bench_rows_pandas", engine, if_exists="replace", index=False)
        return Done({})

    return _with_sums(run, url, "bench_rows_pandas")


def _write_raw(size: int, place: Place) -> Callable[[], Done]:
    """COPY of bytes that are ready: what the server takes, whoever sends."""
    import psycopg

    url, name = place["postgres"], f"{TABLE}_raw"
    create_table(url, name)
    block = raw_bytes(url, name, make_rows(size))

    def run() -> Done:
        with psycopg.connect(url) as connection:
            send_raw(connection, name, block)
        return Done({})

    return _with_sums(run, url, f"winback_work.{name}", name)


def raw_bytes(url: str, name: str, rows: Any) -> bytes:
    """The rows as Postgres' binary COPY gives them; the table is empty again afterwards."""
    import psycopg

    from winback.operators.warehouse import write_work

    write_work(a_run(url), name, _parts(rows))
    statement = f"copy winback_work.{name} to stdout (format binary)"
    with (
        psycopg.connect(url) as connection,
        connection.cursor() as cursor,
        cursor.copy(statement.encode()) as copy,
    ):
        block = b"".join(bytes(part) for part in copy)
    create_table(url, name)
    return block


def send_raw(connection: Any, name: str, block: bytes) -> None:
    """COPY the bytes of :func:`raw_bytes` into a table, a megabyte at a time."""
    view, megabyte = memoryview(block), 1 << 20
    statement = f"copy winback_work.{name} from stdin (format binary)"
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        for start in range(0, len(view), megabyte):
            copy.write(view[start : start + megabyte])


def _table_to_read(size: int, place: Place) -> str:
    from winback.operators.warehouse import write_work

    url, name = str(place["postgres"]), f"{TABLE}_read"
    create_table(url, name)
    write_work(a_run(url), name, _parts(make_rows(size)))
    return url


def _read(size: int, place: Place) -> Callable[[], Done]:
    import pyarrow.compute as pc

    from winback.operators.warehouse import _identifier, read_batches

    url = _table_to_read(size, place)
    names = {"table": _identifier(f"{TABLE}_read"), "as_of": AS_OF}

    def run() -> Done:
        count, margin = 0, 0.0
        with read_batches(url, READ, names) as batches:
            for batch in batches:
                count += batch.num_rows
                margin += pc.sum(batch["margin"]).as_py()
        return Done({"count": count, "margin": margin})

    return run


def _read_pandas(size: int, place: Place) -> Callable[[], Done]:
    import pandas as pd
    from sqlalchemy import create_engine

    url = place["postgres"]
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    query = f"select * from winback_work.{TABLE}_read where as_of = '{AS_OF}'"

    def run() -> Done:
        frame = pd.read_sql(query, engine)
        return Done({"count": len(frame), "margin": float(frame["margin"].sum())})

    return run


def _same_rows(ours: Answer, theirs: Answer) -> str:
    if ours["count"] != theirs["count"]:
        raise BenchError(f"expected {theirs['count']} rows, came {ours['count']}")
    return close("sum of a column", ours["margin"], theirs["margin"], 1e-9)


def _same_tables(ours: Answer, theirs: Answer) -> str:
    for a, b in zip(ours["sums"], theirs["sums"], strict=True):
        close("a sum of the written rows", a, b, 1e-9)
    return "equal tables"


SIZES: dict[str, Any] = {"sizes": (10_000, 100_000, 1_000_000), "quick": (1_000, 5_000)}
ROWS_STEPS = (
    Step(
        name="read-rows",
        title="rows × 12 columns, warehouse to arrays",
        unit="rows",
        **SIZES,
        sides={"winback": _read, "pandas.read_sql": _read_pandas},
        agree=_same_rows,
        needs_servers=True,
    ),
    Step(
        name="write-rows",
        title="rows × 12 columns, arrays to warehouse",
        unit="rows",
        **SIZES,
        sides={
            "winback": _write,
            "pandas.to_sql": _write_pandas,
            "COPY of ready bytes": _write_raw,
        },
        agree=_same_tables,
        limit="copy",
        needs_servers=True,
    ),
)
