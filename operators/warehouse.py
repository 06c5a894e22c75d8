"""Moving data between the Postgres warehouse and arrays, by COPY and in batches."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import TYPE_CHECKING, Any

from winback.models.errors import DataError, SettingsError, StoreUnavailableError

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa

    from winback.operators.run import Run

logger = logging.getLogger(__name__)

DEFAULT_CONNECTION = "winback_warehouse"
COPY_ROWS = 4_000  # rows per batch on their way to the server, about a megabyte
OUTPUT_TABLES_MACRO = "dbt_project/macros/output_tables.sql"


def airflow_connection(conn_id: str) -> Any:
    """Look an Airflow connection up.

    Raises:
        SettingsError: Airflow has no connection of this name.
    """
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as error:
        raise SettingsError(
            f"expected the Airflow connection {conn_id}, found none. Add it in Airflow, or set "
            f"AIRFLOW_CONN_{conn_id.upper()} to its URL."
        ) from error


def warehouse_url(conn_id: str = DEFAULT_CONNECTION) -> str:
    """Return the libpq URL of an Airflow connection; never log it, it holds the password."""
    from urllib.parse import quote

    connection = airflow_connection(conn_id)
    login = quote(connection.login or "", safe="")
    password = f":{quote(connection.password, safe='')}" if connection.password else ""
    place = f"{connection.host or '127.0.0.1'}:{connection.port or 5432}"
    return f"postgresql://{login}{password}@{place}/{connection.schema or ''}"


@contextmanager
def transaction(url: str) -> Iterator["psycopg.Connection[Any]"]:
    """Open one connection and one transaction: committed at the end, rolled back on any error.

    Raises:
        StoreUnavailableError: the server cannot be reached or went away.
        DataError: a table or column that the step needs does not exist.
    """
    import psycopg

    try:
        with psycopg.connect(url, connect_timeout=10) as connection:
            yield connection
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise _missing(error) from error
    except psycopg.OperationalError as error:
        raise unavailable(url, error) from error


def read_table(url: str, query: str, parameters: Mapping[str, Any] | None = None) -> "pa.Table":
    """Read a query's rows into one Arrow table; for results known to be small or sampled."""
    import pyarrow as pa

    with _reader(url, query, parameters) as reader:
        return pa.Table.from_batches(list(reader), schema=reader.schema)


@contextmanager
def read_batches(
    url: str, query: str, parameters: Mapping[str, Any] | None = None, batch_rows: int = 50_000
) -> Iterator[Iterator["pa.Table"]]:
    """Stream a query's rows as Arrow tables of about ``batch_rows`` rows."""
    with _reader(url, query, parameters) as reader:
        yield _regroup(reader, batch_rows)


def write_work(run: "Run", table: str, parts: Iterable["pa.Table"]) -> None:
    """Replace this ``as_of``'s rows of a work table by COPY, all parts in one transaction.

    The table is analysed afterwards: the checks join it at once, and a planner that thinks it
    empty takes minutes for what takes a second.
    """
    names = {**run.names, "table": _identifier(table)}
    started = time.perf_counter()
    with _adbc(run.url) as connection, connection.cursor() as cursor:
        cursor.execute(_render("delete from {work}.{table} where as_of = {as_of}", names))
        written = _ingest(cursor, table, parts, run.settings.work_schema)
        cursor.execute(_render("analyze {work}.{table}", names))
        connection.commit()
    rate = written / (time.perf_counter() - started)
    logger.info("%s: %d rows written, %.0f per second", table, written, rate)


def _ingest(cursor: Any, table: str, parts: Iterable["pa.Table"], schema: str) -> int:
    """COPY all parts as one stream; return the number of rows.

    In small batches, so that the server takes one while the next is made: half the time of a COPY
    per part, and little more than COPY of bytes that are ready.
    """
    import pyarrow as pa

    parts = iter(parts)
    first = next(parts, None)
    if first is None:
        return 0
    failures: list[Exception] = []

    def batches() -> Iterator["pa.RecordBatch"]:
        try:
            for part in chain([first], parts):
                yield from part.to_batches(max_chunksize=COPY_ROWS)
        except Exception as error:
            failures.append(error)
            raise

    reader = pa.RecordBatchReader.from_batches(first.schema, batches())
    try:
        rows: int = cursor.adbc_ingest(table, reader, mode="append", db_schema_name=schema)
    except Exception:
        if failures:  # the driver tells of its stream only
            raise failures[0] from None
        raise
    return rows


def join_rows(
    url: str,
    temporary: str,
    rows: "pa.Table",
    statements: Sequence[str],
    values: Mapping[str, Any],
) -> None:
    """COPY Arrow rows into a temporary table and run statements over it, in one transaction."""
    with _adbc(url) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest(temporary, rows, mode="create", temporary=True)
        for statement in statements:
            cursor.execute(_render(statement, values))
        connection.commit()


def ensure_output_tables(url: str, schema: str, work_schema: str) -> None:
    """Create the output tables that are missing (same definition as dbt's on-run-start)."""
    with transaction(url) as connection:
        connection.execute(_output_tables_sql(schema, work_schema))


@cache
def _output_tables_sql(schema: str, work_schema: str) -> Any:
    from jinja2 import Environment
    from psycopg import sql

    macro = files("winback").joinpath(OUTPUT_TABLES_MACRO).read_text(encoding="utf-8")
    module: Any = Environment(autoescape=False).from_string(macro).module
    return sql.SQL(str(module.create_output_tables(schema, work_schema)))


@contextmanager
def _adbc(url: str) -> Iterator[Any]:
    from adbc_driver_manager import OperationalError, ProgrammingError
    from adbc_driver_postgresql import dbapi

    try:
        with dbapi.connect(url) as connection:
            yield connection
    except ProgrammingError as error:
        raise _missing(error) from error
    except OperationalError as error:
        raise unavailable(url, error) from error


@contextmanager
def _reader(url: str, query: str, parameters: Mapping[str, Any] | None) -> Iterator[Any]:
    with _adbc(url) as connection, connection.cursor() as cursor:
        cursor.execute(_render(query, parameters or {}))
        yield cursor.fetch_record_batch()


def _render(query: str, parameters: Mapping[str, Any]) -> str:
    # Bound parameters take ADBC off its COPY path, so values become quoted literals here.
    from psycopg import sql

    quoted = {name: _literal(value) for name, value in parameters.items()}
    return sql.SQL(query).format(**quoted).as_string(None)


def _identifier(name: str) -> Any:
    from psycopg import sql

    return sql.Identifier(name)


def _literal(value: Any) -> Any:
    from psycopg import sql

    return value if isinstance(value, sql.Composable) else sql.Literal(value)


def _regroup(reader: Any, batch_rows: int) -> Iterator["pa.Table"]:
    import pyarrow as pa

    held: list[Any] = []
    for batch in reader:
        held.append(batch)
        if sum(part.num_rows for part in held) >= batch_rows:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def _missing(error: BaseException) -> DataError:
    return DataError(
        f"the warehouse lacks a table or column: {_first_line(error)}. "
        "Run the steps before this one (dbt build makes the feature tables)."
    )


def unavailable(url: str, error: BaseException) -> StoreUnavailableError:
    """Say which server did not answer, without its password."""
    place = url.rsplit("@", 1)[-1]
    return StoreUnavailableError(
        f"the warehouse at {place} does not answer: {_first_line(error)}. "
        "Check that the server runs and that the connection winback_warehouse names it."
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
