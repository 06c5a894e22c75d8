"""Bad input through the real steps: a clear error, and nothing published.

The command line's exit codes are in test_commands, failures while publishing in test_publish,
a killed training in test_operators.
"""

import resource
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pipeline import LAST_BEFORE_PUBLISH, Shop, checked_template, copy_of

from winback.models.errors import (
    DataError,
    NotFittedError,
    SettingsError,
    StoreUnavailableError,
    WinbackError,
)
from winback.operators.artifacts import Artifacts

ONE_ORDER = "(select min(order_id) from raw.orders)"
ONE_OFFER = "(select min(offer_id) from raw.coupon_offers)"


@dataclass(frozen=True)
class Case:
    """What is wrong, the task that notices, and what it says."""

    name: str
    words: str
    damage: str = "select"
    error: type[WinbackError] = DataError
    task: str = "check_sources"
    params: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("missing table", r"raw\.budgets .*no such table", "drop table raw.budgets cascade"),
    Case(
        "missing column",
        r"raw\.orders\.revenue .*Expected a column of type numeric.*no such column",
        "alter table raw.orders drop column revenue cascade",
    ),
    Case(
        "wrong type",
        r"raw\.orders\.ordered_at .*Expected type timestamp with time zone.*Came: text",
        "drop view winback_staging.stg_orders cascade; "
        "alter table raw.orders alter ordered_at type text",
    ),
    Case("empty orders", r"The table orders has rows", "truncate raw.orders"),
    Case(
        "two orders with one id",
        r"order_ids_mean_one_order.*order_id=o000000 different_rows=2 \(1 row\)",
        "insert into raw.orders select order_id, customer_id, ordered_at, revenue + 1 "
        f"from raw.orders where order_id = {ONE_ORDER}",
    ),
    Case(
        "order without a customer",
        r"raw\.orders\.customer_id .*order_id=o000000",
        f"update raw.orders set customer_id = null where order_id = {ONE_ORDER}",
    ),
    Case(
        "revenue that is no number",
        r"order_money_is_a_number.*order_id=o000000",
        f"update raw.orders set revenue = 'NaN' where order_id = {ONE_ORDER}",
    ),
    Case(
        "offer of an unknown coupon",
        r"Every offered coupon is in the catalogue.*coupon_id=gone",
        f"update raw.coupon_offers set coupon_id = 'gone' where offer_id = {ONE_OFFER}",
    ),
    Case(
        "impossible propensity",
        r"propensity_is_a_probability",
        f"update raw.coupon_offers set propensity = 7 where offer_id = {ONE_OFFER}",
    ),
    Case(
        "no budget covers the date",
        r"A budget covers as_of 2024-07-29.*or give the run the parameter budget",
        "delete from raw.budgets where period_end > '2024-07-29'",
    ),
    Case("negative budget", r"A budget is zero or more", "update raw.budgets set amount = -5"),
    Case(
        "two budgets for one day",
        r"periods_do_not_overlap",
        "insert into raw.budgets values ('2024-07-01', '2024-09-01', 10)",
    ),
    Case(
        "as_of before all data",
        r"There are orders before as_of 2020-01-01.*first_order_at=2024-01-01",
        params={"as_of": "2020-01-01", "budget": 10},
    ),
    Case(
        "schema that does not exist",
        r"nowhere\.orders .*no such table",
        params={"source_schema": "nowhere"},
    ),
    Case(
        "negative budget as a parameter",
        r"budget: Input should be greater than or equal to 0",
        error=SettingsError,
        task="start_run",
        params={"budget": -1},
    ),
    Case(
        "artifact folder is a file",
        r"cannot use the artifact store at .*correct artifacts_uri",
        error=StoreUnavailableError,
        params={"artifacts_uri": "file:///dev/null/artifacts"},
    ),
    Case(
        "artifact folder cannot be made",
        r"cannot use the artifact store at file:///proc/",
        error=StoreUnavailableError,
        params={"artifacts_uri": "file:///proc/artifacts"},
    ),
]


@pytest.fixture
def shop(servers) -> Iterator[Shop]:
    """The run ``first`` is published; what comes after must not touch it."""
    with copy_of(checked_template(servers), servers) as shop:
        shop.daily_run().execute("publish")
        yield shop


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_stops_early_in_words_and_publishes_nothing(shop, case):
    before = shop.published()
    shop.query(case.damage)
    run = shop.daily_run("second", **case.params)
    with pytest.raises(case.error, match=f"(?s){case.words}"):
        run.go(until=LAST_BEFORE_PUBLISH)
    assert run.failures[0]["task"] == case.task
    assert shop.published() == before


def test_a_failed_run_is_recorded_with_its_error(shop):
    shop.query("truncate raw.orders")
    run = shop.daily_run("second")
    with pytest.raises(DataError):
        run.go(until="check_sources")
    assert run.execute("finish_run") == {"status": "failed"}
    [(status, failures)] = shop.query(
        "select status, metrics -> 'failures' from winback.runs where run_id = 'second'"
    )
    assert status == "failed"
    assert (failures[0]["task"], failures[0]["kind"]) == ("check_sources", "DataError")
    assert "The table orders has rows" in failures[0]["error"]
    checks = "select count(*) from winback.data_checks where run_id = 'second' and not success"
    assert shop.query(checks)[0][0] > 0


def test_a_failed_run_does_not_overwrite_the_record_of_a_published_one(shop):
    run = shop.daily_run()
    assert run.execute("finish_run") == {"status": "published"}
    assert shop.query("select status from winback.runs") == [("published",)]


@pytest.mark.parametrize(
    ("task", "artifact"),
    [("train_profit", "survival.json"), ("plan", "propensities.safetensors")],
)
def test_a_missing_artifact_names_itself(servers, task, artifact):
    with copy_of(checked_template(servers), servers) as shop:
        with pytest.raises(NotFittedError, match=rf"{artifact}, found nothing.*Run the task"):
            shop.daily_run("second").execute(task)
        assert shop.published()["recommendations"] == []


def test_a_coupon_that_is_not_in_the_catalogue_may_not_be_allowed(shop):
    run = shop.daily_run("second", allowed_coupons=["save5", "save99"])
    with pytest.raises(SettingsError, match=r"catalogue \(none, save5, save10\), came save99"):
        run.execute("allocate_coupons")


def test_an_unreachable_warehouse_stops_the_first_task(shop, monkeypatch):
    before = shop.published()
    monkeypatch.setenv("AIRFLOW_CONN_WINBACK_WAREHOUSE", "postgres://u:secret@127.0.0.1:1/shop")
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1/shop does not answer"):
        shop.daily_run("second").go(until="start_run")
    assert shop.published() == before


def test_a_full_disk_leaves_the_artifact_before(tmp_path):
    """The system refuses to let the file grow, as on a full disk."""
    artifacts = Artifacts(tmp_path.as_uri(), "2024-07-29", "r")
    artifacts.write_bytes("weights", b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StoreUnavailableError, match=r"cannot use the artifact store.*space"):
            artifacts.write_bytes("weights", b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert artifacts.read_bytes("weights") == b"before"


LATER = """
insert into raw.orders select 'later' || order_id, customer_id, ordered_at + interval '40 weeks',
    revenue, margin, coupon_cost, coupon_offer_id from raw.orders;
insert into raw.order_items select 'later' || order_id, 'submarines', quantity, revenue
    from raw.order_items;
insert into raw.orders values ('new', 'newcomer', '2024-07-29 00:00+00', 10, 3, 0, null);
insert into raw.coupon_offers select 'later' || offer_id, customer_id, 'save10',
    '2024-07-29 00:00+00', 0.5 from raw.coupon_offers;
insert into raw.customers values ('visitor', '2024-07-29 00:00+00', true);
"""
UNSTAMPED = "to_jsonb(t) - 'run_id' - 'created_at'"


def rows_of(shop: Shop, schema: str, table: str) -> list[Any]:
    """The rows of a date without the marks of the run that made them."""
    order = {"q_table": "state, coupon_id"}.get(table, "customer_id")
    statement = f"select {UNSTAMPED} from {schema}.{table} t where as_of = %s order by {order}"
    return shop.query(statement, shop.as_of)


def test_rows_after_as_of_change_nothing(shop):
    """Another run on sources with a future: every output row is the one that was published."""
    tables = ("customer_scores", "q_table", "recommendations")
    published = {table: rows_of(shop, "winback", table) for table in tables}
    decisions = shop.query("select * from winback.decisions order by decision_id")
    shop.query(LATER)
    shop.daily_run("second").go(until="publish")
    for table in tables:
        assert rows_of(shop, "winback", table) == published[table], table
    assert shop.query("select distinct run_id from winback.recommendations") == [("second",)]
    assert shop.query("select * from winback.decisions order by decision_id") == decisions
