"""customer_snapshots is the same however it came about; the oracle is always a full refresh."""

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


def assert_equals_full_refresh(url: str, as_of: date, **variables: Any) -> None:
    """Compare schema ``shop``, as it has come about, with a build from nothing."""
    arguments = ("--full-refresh", "--select", "+customer_snapshots", *ONLY_MODELS)
    assert build(url, "whole", as_of, *arguments, sources="shop_raw", **variables).success
    whole = snapshots(url, "whole")
    assert len(whole) > 100
    pd.testing.assert_frame_equal(snapshots(url, "shop"), whole)


def written_on(url: str, as_of: date) -> list[date]:
    """Snapshot dates whose rows the build of this as_of wrote."""
    query = f"select distinct snapshot_date from shop.customer_snapshots where as_of = '{as_of}'"
    return sorted(rows(url, query)["snapshot_date"])


def change(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement)


def test_day_by_day_equals_all_at_once(warehouse: str) -> None:
    days = [MONDAY + timedelta(n) for n in (0, 1, 2, 7, 8, 17)]
    for as_of in days:
        assert build(warehouse, "shop", as_of).success
    assert_equals_full_refresh(warehouse, days[-1])
    # eight days before, the 13th had closed no window since; the last build wrote what was new
    assert written_on(warehouse, days[-1]) == [MONDAY + timedelta(n) for n in (7, 14, 17)]
    history = rows(warehouse, "select distinct as_of from shop.customer_rfm order by as_of")
    assert list(history["as_of"]) == days


def test_same_day_again_changes_nothing(warehouse: str) -> None:
    as_of = MONDAY + timedelta(3)
    assert build(warehouse, "shop", as_of).success
    assert build(warehouse, "shop", as_of, run_id="again").success
    assert_equals_full_refresh(warehouse, as_of)
    query = "select distinct snapshot_date from shop.customer_snapshots where run_id = 'again'"
    assert sorted(rows(warehouse, query)["snapshot_date"]) == [MONDAY, as_of]


LATE_CHANGES = {
    "late order": (
        "insert into shop_raw.orders values ('late', 'c1', '2024-03-13 12:00+00', 40, 20, 5)",
    ),
    "late order with a new category renumbers later ones": (
        "update shop_raw.order_items set category = 'aaa' where category = 'toys' and order_id in "
        "(select order_id from shop_raw.orders where ordered_at > '2024-03-13')",
    ),
    "refund taken back": (
        "delete from shop_raw.orders where revenue < 0 and ordered_at > '2024-03-13'",
    ),
    "offer reported late": (
        "insert into shop_raw.coupon_offers "
        "values ('late', 'c1', 'save5', '2024-03-13 12:00+00', .5)",
    ),
    "budget raised": (
        "update shop_raw.budgets set amount = 2000 where period_start = '2024-03-01'",
    ),
    "sending becomes dearer": ("update shop_raw.coupons set contact_cost = contact_cost + 1",),
}


@pytest.mark.parametrize("change_name", LATE_CHANGES)
def test_late_rows_equal_a_full_refresh(warehouse: str, change_name: str) -> None:
    as_of = MONDAY + timedelta(1)
    assert build(warehouse, "shop", as_of).success
    before = snapshots(warehouse, "shop")
    change(warehouse, *LATE_CHANGES[change_name])
    assert build(warehouse, "shop", as_of).success
    assert not snapshots(warehouse, "shop").equals(before)
    assert_equals_full_refresh(warehouse, as_of)


def test_a_late_row_rewrites_only_what_it_can_change(warehouse: str) -> None:
    """An order of 13 March belongs to the window of Monday the 11th and to all later features."""
    as_of = MONDAY + timedelta(1)
    assert build(warehouse, "shop", as_of).success
    change(
        warehouse, "insert into shop_raw.orders values ('13 March', 'c2', '2024-03-13 12:00+00', 9)"
    )
    assert build(warehouse, "shop", as_of, run_id="late").success
    query = "select min(snapshot_date) as first from shop.customer_snapshots where run_id = 'late'"
    assert rows(warehouse, query)["first"].item() == date(2024, 3, 11)


def test_earlier_day_after_a_later_one_and_back(warehouse: str) -> None:
    earlier, later = MONDAY + timedelta(2), MONDAY + timedelta(12)
    for as_of in (later, earlier, later):
        assert build(warehouse, "shop", as_of).success
        assert_equals_full_refresh(warehouse, as_of)


@pytest.mark.parametrize(
    "variables",
    [{"decision_days": 14}, {"default_margin_rate": 0.1}, {"timezone": "Asia/Tokyo"}],
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
