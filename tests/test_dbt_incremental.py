"""Features are the same however they came about; the oracle is always a full refresh."""

from datetime import date, timedelta
from typing import Any

import pandas as pd
import psycopg
import pytest
from shop import ONLY_MODELS, build, load, random_shop, rows, snapshots

MONDAY = date(2024, 5, 6)  # on the grid


@pytest.fixture(scope="module")
def warehouse(warehouse_url: str) -> str:
    """The random shop in schema ``shop_raw``, nothing built."""
    load(warehouse_url, random_shop(customers=30), "shop_raw")
    return warehouse_url


# all that features are made of: rows of this as_of in a stable order, without who wrote them
MODELS = {
    "shop.customer_snapshots": "snapshot_date, customer_id",
    "shop.closed_windows": "snapshot_date, customer_id",
    "shop.customer_rfm": "customer_id",
    "shop.customers_known": "customer_id",
    "shop.rfm_triples": "frequency, recency_days, age_days",
    "shop.categories": "category_id",
    "shop_staging.int_event_days": "event_day",
    "shop_staging.int_source_days": "event_day",
    "shop_staging.int_category_days": "customer_id, event_day, category",
    "shop_staging.int_category_firsts": "event_day, category",
    "shop_staging.int_customer_days": "customer_id, event_day",
    "shop_staging.int_customer_totals": "customer_id, event_day",
    "shop_staging.int_coupon_costs": "event_day",
}
HISTORIES = ("customer_rfm", "customers_known", "rfm_triples")


def features(url: str, schema: str, as_of: date) -> dict[str, pd.DataFrame]:
    """Every model of the features in ``schema``."""
    found = {}
    for model, order in MODELS.items():
        name = model.partition(".")[2]
        chosen = f"where as_of = '{as_of}'" if name in HISTORIES else ""
        table = model.replace("shop", schema, 1)
        frame = rows(url, f"select * from {table} {chosen} order by {order}")
        found[name] = frame.drop(columns=["as_of", "run_id"], errors="ignore")
    return found


def assert_equals_full_refresh(url: str, as_of: date, **variables: Any) -> None:
    """Compare schema ``shop``, as it has come about, with a build from nothing."""
    change(
        url,
        "create schema if not exists whole",
        "create table if not exists whole.decisions (like shop.decisions including all)",
        "truncate whole.decisions",
        "insert into whole.decisions table shop.decisions",
    )
    arguments = ("--full-refresh", "--select", "tag:features", *ONLY_MODELS)
    assert build(url, "whole", as_of, *arguments, sources="shop_raw", **variables).success
    whole, found = features(url, "whole", as_of), features(url, "shop", as_of)
    assert len(whole["customer_snapshots"]) > 100
    for name, frame in whole.items():
        pd.testing.assert_frame_equal(found[name], frame, obj=name)


def written_on(url: str, as_of: date) -> list[date]:
    """Snapshot dates whose rows the build of this as_of wrote."""
    query = f"select distinct snapshot_date from shop.customer_snapshots where as_of = '{as_of}'"
    return sorted(rows(url, query)["snapshot_date"])


def change(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement)


def test_day_by_day_equals_all_at_once(warehouse: str) -> None:
    # the day itself, windows that closed since the build before, grid dates that it did not have
    written = {1: (1,), 2: (2,), 7: (0, 7), 8: (8,), 17: (7, 14, 17)}
    days = [MONDAY + timedelta(n) for n in (0, *written)]
    assert build(warehouse, "shop", days[0]).success
    for as_of, numbers in zip(days[1:], written.values(), strict=True):
        assert build(warehouse, "shop", as_of).success
        assert written_on(warehouse, as_of) == [MONDAY + timedelta(n) for n in numbers]
    assert_equals_full_refresh(warehouse, days[-1])
    history = rows(warehouse, "select distinct as_of from shop.customer_rfm order by as_of")
    assert list(history["as_of"]) == days


def test_same_day_again_changes_nothing(warehouse: str) -> None:
    as_of = MONDAY + timedelta(3)
    assert build(warehouse, "shop", as_of).success
    assert build(warehouse, "shop", as_of, run_id="again").success
    assert_equals_full_refresh(warehouse, as_of)
    query = "select distinct snapshot_date from shop.customer_snapshots where run_id = 'again'"
    assert sorted(rows(warehouse, query)["snapshot_date"]) == [as_of]


LATE_CHANGES = {
    "late order": (
        "insert into shop_raw.orders values ('late', 'c1', '2024-03-13 12:00+00', 40, 20, 5)",
    ),
    "first order of somebody new": (
        "insert into shop_raw.orders values ('new', 'c99', '2024-02-13 12:00+00', 40)",
    ),
    "order deleted": ("delete from shop_raw.orders where order_id = 'late'",),
    "only order of somebody deleted": ("delete from shop_raw.orders where customer_id = 'c99'",),
    "order moved to another day": (
        "update shop_raw.orders set ordered_at = ordered_at - interval '9 days' "
        "where order_id in ('o7', 'o8', 'o9')",
    ),
    "order moved to somebody else": (
        "update shop_raw.orders set customer_id = 'c3' where order_id in ('o4', 'o5', 'o6')",
    ),
    "lines dearer": (
        "update shop_raw.order_items set revenue = revenue + 50 where order_id in "
        "(select order_id from shop_raw.orders where revenue > 30) and category = 'garden'",
    ),
    "lines moved to another order": (
        "update shop_raw.order_items set order_id = 'o12' where order_id < 'o11'",
    ),
    "late order with a new category renumbers later ones": (
        "update shop_raw.order_items set category = 'aaa' where category = 'toys' and order_id in "
        "(select order_id from shop_raw.orders where ordered_at > '2024-03-13')",
    ),
    "category renamed": (
        "update shop_raw.order_items set category = 'zzz' where category = 'garden'",
    ),
    "refund taken back": (
        "delete from shop_raw.orders where revenue < 0 and ordered_at > '2024-03-13'",
    ),
    "offer reported late": (
        "insert into shop_raw.coupon_offers "
        "values ('late', 'c1', 'save5', '2024-03-13 12:00+00', .5)",
    ),
    "decisions published for offers of the past": (
        "insert into shop.decisions select 'd' || offer_id, offered_at::date, 'run', customer_id, "
        "coupon_id, propensity, 'treatment', false, offered_at::date - 1, offered_at::date + 6, "
        "now() from shop_raw.coupon_offers where offered_at > '2024-03-13' order by 1 limit 20",
    ),
    "budget raised": (
        "update shop_raw.budgets set amount = 2000 where period_start = '2024-03-01'",
    ),
    "sending becomes dearer": (
        "update shop_raw.coupons set contact_cost = contact_cost + 1 where coupon_id = 'save5'",
    ),
}


@pytest.fixture(scope="module")
def settled(warehouse: str) -> str:
    """Everything built as of the day at which the sources change."""
    assert build(warehouse, "shop", MONDAY + timedelta(1)).success
    return warehouse


@pytest.mark.parametrize("change_name", LATE_CHANGES)
def test_late_rows_equal_a_full_refresh(settled: str, change_name: str) -> None:
    as_of = MONDAY + timedelta(1)
    before = snapshots(settled, "shop")
    change(settled, *LATE_CHANGES[change_name])
    assert build(settled, "shop", as_of).success
    assert not snapshots(settled, "shop").equals(before)
    assert_equals_full_refresh(settled, as_of)


def test_a_late_row_rewrites_only_what_it_can_change(warehouse: str) -> None:
    """An order of 13 March belongs to its day, to the totals of those with an event that day from
    their last event before it on, to the window of Monday the 11th and to all later features.
    """
    as_of, day = MONDAY + timedelta(1), date(2024, 3, 13)
    assert build(warehouse, "shop", as_of).success
    change(
        warehouse, "insert into shop_raw.orders values ('13 March', 'c2', '2024-03-13 12:00+00', 9)"
    )
    with psycopg.connect(warehouse) as connection:
        last = connection.execute("select pg_current_xact_id()::text::bigint").fetchone()
    assert last is not None
    assert build(warehouse, "shop", as_of, run_id="late").success
    query = "select min(snapshot_date) as first from shop.customer_snapshots where run_id = 'late'"
    assert rows(warehouse, query)["first"].item() == date(2024, 3, 11)
    written = "select * from shop_staging.{} where xmin::text::bigint > " + str(last[0])
    for name in ("int_category_days", "int_customer_days", "int_coupon_costs"):
        assert set(rows(warehouse, written.format(name))["event_day"]) == {day}
    totals = rows(warehouse, written.format("int_customer_totals"))
    days = rows(warehouse, "select * from shop_staging.int_customer_days")
    changed = set(days.loc[days["event_day"] == day, "customer_id"])
    assert set(totals["customer_id"]) == changed < set(days["customer_id"])
    assert (totals["next_event_day"].map(str) >= str(day)).all()


def test_earlier_day_after_a_later_one_and_back(warehouse: str) -> None:
    earlier, later = MONDAY + timedelta(2), MONDAY + timedelta(12)
    for as_of in (later, earlier, later):
        assert build(warehouse, "shop", as_of).success
        assert_equals_full_refresh(warehouse, as_of)


@pytest.mark.parametrize(
    "variables",
    [
        {"decision_days": 14},
        {"default_margin_rate": 0.1},
        {"timezone": "Asia/Tokyo"},
        {"decisions_are_offers": True},
        {"max_contacts_days": 5},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_changed_vars_equal_a_full_refresh(warehouse: str, variables: dict[str, Any]) -> None:
    as_of = MONDAY + timedelta(2)
    assert build(warehouse, "shop", as_of).success
    assert build(warehouse, "shop", as_of, **variables).success
    assert_equals_full_refresh(warehouse, as_of, **variables)


def test_a_failed_build_leaves_the_rows_of_the_last_one(warehouse: str) -> None:
    """The table and the note of what it stands for change together or not at all."""
    later = MONDAY + timedelta(9)
    assert build(warehouse, "shop", later).success
    before = snapshots(warehouse, "shop")
    change(warehouse, "alter table shop.customer_snapshots add check (as_of <> '2024-05-06')")
    assert not build(warehouse, "shop", MONDAY).success
    pd.testing.assert_frame_equal(snapshots(warehouse, "shop"), before)
    assert build(warehouse, "shop", later).success
    assert_equals_full_refresh(warehouse, later)


def test_failed_builds_are_made_good_by_the_next(warehouse: str) -> None:
    """One model after the other fails, each on another change; what lies before it is built."""
    as_of = MONDAY + timedelta(3)
    models = ("shop.closed_windows", "shop.customer_snapshots")
    models += ("shop_staging.int_customer_totals",)
    models += ("shop_staging.int_coupon_costs", "shop_staging.int_customer_days")
    models += ("shop_staging.int_category_firsts", "shop_staging.int_category_days")
    assert build(warehouse, "shop", as_of).success
    for number, model in enumerate(models):
        change(
            warehouse,
            f"alter table {model} add constraint never check (false) not valid",
            f"insert into shop_raw.orders values ('x{number}', 'c{number}', "
            f"'2024-04-{20 - number} 12:00+00', 40, 20, 5)",
            f"delete from shop_raw.orders where order_id = 'o{20 + number}'",
            f"delete from shop_raw.coupon_offers where customer_id = 'c{10 + number}'",
        )
        result = build(warehouse, "shop", as_of)
        change(warehouse, f"alter table {model} drop constraint never")
        failed = [one.node.name for one in result.result if one.status == "error"]
        assert failed == [model.partition(".")[2]]
    assert build(warehouse, "shop", as_of).success
    assert_equals_full_refresh(warehouse, as_of)
