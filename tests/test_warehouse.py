"""Rows on their way to the warehouse, on a real server."""

import psycopg
import pyarrow as pa
import pytest

from winback.models.errors import DataError
from winback.operators.bench_rows import a_run, create_table, make_rows
from winback.operators.warehouse import COPY_ROWS, read_table, write_work

TABLE = "written"
ROWS = "select * from winback_work.written order by customer_id"


@pytest.fixture
def url(warehouse_url: str) -> str:
    create_table(warehouse_url, TABLE)
    return warehouse_url


def parts_of(rows: pa.Table, size: int) -> list[pa.Table]:
    return [rows.slice(start, size) for start in range(0, rows.num_rows, size)]


@pytest.mark.parametrize("size", [10, COPY_ROWS, 3 * COPY_ROWS])
def test_what_is_read_is_what_was_written_in_whatever_parts(url, size):
    rows = make_rows(2 * COPY_ROWS + 7) if size > 10 else make_rows(35)
    for _ in range(2):  # the second time replaces the first
        write_work(a_run(url), TABLE, iter(parts_of(rows, size)))
    assert read_table(url, ROWS).to_pylist() == rows.to_pylist()


def test_no_parts_and_empty_parts_leave_no_rows(url):
    write_work(a_run(url), TABLE, parts_of(make_rows(5), 5))
    write_work(a_run(url), TABLE, [make_rows(5).slice(0, 0)])
    assert read_table(url, ROWS).num_rows == 0
    write_work(a_run(url), TABLE, [])


def test_a_part_that_fails_leaves_the_rows_before_it_and_keeps_its_error(url):
    before = make_rows(5)
    write_work(a_run(url), TABLE, [before])

    def parts():
        yield make_rows(3 * COPY_ROWS)
        raise DataError("in words")

    with pytest.raises(DataError, match="in words"):
        write_work(a_run(url), TABLE, parts())
    assert read_table(url, ROWS).to_pylist() == before.to_pylist()


def test_the_table_is_analysed_with_its_rows(url):
    write_work(a_run(url), TABLE, [make_rows(321)])
    with psycopg.connect(url) as connection:
        query = "select reltuples from pg_class where oid = 'winback_work.written'::regclass"
        assert connection.execute(query).fetchone() == (321,)
