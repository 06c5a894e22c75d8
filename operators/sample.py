"""The source tables of the contract, and sample data loaded into them by COPY.

The rows come as frames from `sample_journey` (a real grocer's year) or `sample_small` (generated).
A table that holds anybody else's rows is never overwritten.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from io import BytesIO
from typing import Any, TypeAlias

import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.csv as pa_csv
from psycopg import sql

from winback.models.errors import DataError
from winback.operators import sample_journey, sample_small
from winback.operators.warehouse import transaction

LABEL = "winback sample, "  # starts the comment of tables that a loader here may overwrite
COPY_ROWS = 50_000  # about 3 MB of CSV at a time

SOURCE_TABLES = {
    "orders": {
        "order_id": "text",
        "customer_id": "text",
        "ordered_at": "timestamptz",
        "revenue": "numeric",
        "margin": "numeric",
        "coupon_cost": "numeric default 0",
        "coupon_offer_id": "text",
    },
    "order_items": {
        "order_id": "text",
        "category": "text",
        "quantity": "numeric",
        "revenue": "numeric",
    },
    "coupons": {
        "coupon_id": "text",
        "label": "text",
        "face_value": "numeric",
        "contact_cost": "numeric default 0",
        "channel": "text default 'email'",
    },
    "coupon_offers": {
        "offer_id": "text",
        "customer_id": "text",
        "coupon_id": "text",
        "offered_at": "timestamptz",
        "propensity": "numeric",
    },
    "customers": {
        "customer_id": "text",
        "created_at": "timestamptz",
        "can_contact": "boolean default true",
    },
    "budgets": {"period_start": "date", "period_end": "date", "amount": "numeric"},
}


Connection: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"


@dataclass(frozen=True)
class LoadedSample:
    """What was loaded: a good date to decide at, the shop's timezone, the rows of each table."""

    as_of: date
    timezone: str
    rows: dict[str, int]


def load_sample(url: str, schema: str = "raw") -> LoadedSample:
    """Fill the source tables with The Complete Journey, unless they hold it already.

    Raises:
        SettingsError: the package with the data is not installed.
        DataError: a table holds rows that no sample loader wrote.
    """
    label = sample_journey.label()
    with transaction(url) as connection:
        create_source_tables(connection, schema)
        _refuse_others_rows(connection, schema)
        rows = _rows_with_label(connection, schema, label)
    if rows is None:
        rows = load_frames(url, sample_journey.journey_frames(), schema, label=label)
    return LoadedSample(sample_journey.AS_OF, sample_journey.TIMEZONE, rows)


def generate_sample(
    url: str,
    customers: int = 300,
    weeks: int = 30,
    seed: int = 0,
    schema: str = "raw",
    *,
    duplicates: bool = False,
) -> LoadedSample:
    """Fill the source tables with the generated shop of `sample_small`; takes about a second."""
    frames = sample_small.generate_frames(customers, weeks, seed, duplicates=duplicates)
    label = f"generated: {customers} customers, {weeks} weeks, seed {seed}"
    rows = load_frames(url, frames, schema, label=label)
    return LoadedSample(sample_small.last_day(weeks), "UTC", rows)


def load_frames(
    url: str, frames: Mapping[str, pd.DataFrame], schema: str, *, label: str
) -> dict[str, int]:
    """Replace the source tables' rows by COPY, all in one transaction; return rows per table.

    Raises:
        DataError: a table holds rows that no sample loader wrote.
    """
    with transaction(url) as connection:
        create_source_tables(connection, schema)
        _refuse_others_rows(connection, schema)
        tables = sql.SQL(", ").join(sql.Identifier(schema, table) for table in SOURCE_TABLES)
        connection.execute(sql.SQL("truncate {}").format(tables))
        rows = {name: _copy(connection, schema, name, frame) for name, frame in frames.items()}
        comment = sql.Literal(LABEL + label)
        for table in SOURCE_TABLES:
            name = sql.Identifier(schema, table)
            connection.execute(sql.SQL("comment on table {} is {}").format(name, comment))
            connection.execute(sql.SQL("analyze {}").format(name))
    return rows


def create_source_tables(connection: Connection, schema: str) -> None:
    """Create the source tables of the contract where they are missing, without keys.

    Users' own tables and views seldom enforce keys, so the checks must not rely on them.
    """
    create_schema = sql.SQL("create schema if not exists {}")
    connection.execute(create_schema.format(sql.Identifier(schema)))
    for table, columns in SOURCE_TABLES.items():
        body = sql.SQL(", ").join(
            sql.SQL("{} " + kind).format(sql.Identifier(name)) for name, kind in columns.items()
        )
        statement = sql.SQL("create table if not exists {} ({})")
        connection.execute(statement.format(sql.Identifier(schema, table), body))


def _label(connection: Connection, schema: str, table: str) -> str | None:
    """The comment that a sample loader left on the table."""
    name = sql.Identifier(schema, table).as_string(connection)
    row = connection.execute("select obj_description(%s::regclass, 'pg_class')", [name]).fetchone()
    return row[0] if row else None


def _rows_with_label(connection: Connection, schema: str, label: str) -> dict[str, int] | None:
    """Rows per table if all of them were loaded under this label, else None."""
    if any(_label(connection, schema, table) != LABEL + label for table in SOURCE_TABLES):
        return None
    count = sql.SQL("select count(*) from {}")
    names = {table: sql.Identifier(schema, table) for table in SOURCE_TABLES}
    counts = {table: connection.execute(count.format(name)) for table, name in names.items()}
    return {table: int(cursor.fetchall()[0][0]) for table, cursor in counts.items()}


def _refuse_others_rows(connection: Connection, schema: str) -> None:
    """Raise DataError if a table holds rows that no sample loader wrote."""
    for table in SOURCE_TABLES:
        name = sql.Identifier(schema, table)
        row = connection.execute(sql.SQL("select from {} limit 1").format(name)).fetchone()
        is_ours = (_label(connection, schema, table) or "").startswith(LABEL)
        if row is not None and not is_ours:
            raise DataError(
                f"{schema}.{table} holds rows that are not winback's sample; they were not "
                "touched. Load the sample into another database or schema."
            )


def _copy(connection: Connection, schema: str, table: str, frame: pd.DataFrame) -> int:
    columns = sql.SQL(", ").join(map(sql.Identifier, frame.columns))
    statement = sql.SQL("copy {} ({}) from stdin (format csv)")
    query = statement.format(sql.Identifier(schema, table), columns)
    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    options = pa_csv.WriteOptions(include_header=False)
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        for batch in arrow.to_batches(max_chunksize=COPY_ROWS):
            text = BytesIO()
            pa_csv.write_csv(pa.Table.from_batches([batch]), text, options)
            copy.write(text.getbuffer())
    return len(frame)
