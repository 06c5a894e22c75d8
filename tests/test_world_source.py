"""A known world in the source tables: dbt's features say what the world's own history says."""

from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
from shop import build, rows

from winback.models.world import CONTACT_COST, World, WorldConfig, make_world
from winback.models.world_log import History, continue_history, record_history
from winback.operators.sample import SOURCE_TABLES
from winback.operators.world_source import (
    COUPONS,
    FIRST_MONDAY,
    customer_numbers,
    monday,
    world_frames,
    write_world,
)

CONFIG = WorldConfig(seed=5, confounding=2.0)
BUDGET = 123.45
OUTCOMES = "coupon_id, order_placed, order_profit, coupon_cost, contact_cost, reward, propensity"


def recorded(config: WorldConfig = CONFIG) -> tuple[World, History]:
    world = make_world(config)
    return world, record_history(world, 500, 12)


@pytest.fixture(scope="module")
def snapshots(warehouse_url) -> pd.DataFrame:
    """dbt's closed snapshots of the small world, in the order of the history."""
    world, history = recorded()
    as_of = write_world(warehouse_url, world, history, budget=BUDGET, schema="world")
    assert as_of == date(2024, 1, 1) + timedelta(weeks=12)
    result = build(warehouse_url, "features", as_of, sources="world", timezone="UTC")
    assert result.exception is None
    return rows(
        warehouse_url,
        f"select snapshot_date, customer_id, days_since_last_purchase, {OUTCOMES} "
        "from features.customer_snapshots where snapshot_date < as_of "
        "order by snapshot_date, customer_id",
    )


def test_snapshots_are_the_customer_weeks_of_the_history(snapshots):
    _, history = recorded()
    assert customer_numbers(snapshots["customer_id"]).tolist() == history.customer.tolist()
    assert snapshots["snapshot_date"].tolist() == [monday(week) for week in history.week.tolist()]


def test_outcomes_are_those_of_the_history_row_by_row(snapshots):
    _, history = recorded()
    contact = np.where(history.coupon > 0, CONTACT_COST, 0.0)
    assert snapshots["coupon_id"].tolist() == np.array(COUPONS)[history.coupon].tolist()
    assert snapshots["order_placed"].tolist() == history.purchased.tolist()
    assert snapshots["propensity"].tolist() == history.propensity.tolist()
    for column, truth in (
        ("order_profit", history.margin),
        ("coupon_cost", history.cost),
        ("contact_cost", contact),
        ("reward", history.margin - history.cost - contact),
    ):
        np.testing.assert_allclose(snapshots[column], truth, atol=1e-9)


def test_the_first_week_after_the_first_purchase_is_the_first_snapshot(snapshots):
    first = snapshots.groupby("customer_id").first()
    assert first["days_since_last_purchase"].between(1, 7).all()


def test_frames_hold_the_contracts_columns():
    frames = world_frames(*recorded(), BUDGET)
    assert {name: tuple(frame) for name, frame in frames.items()} == {
        name: tuple(columns) for name, columns in SOURCE_TABLES.items()
    }


def test_the_week_to_decide_has_the_budget_and_past_weeks_what_they_spent():
    world, history = recorded()
    budgets = world_frames(world, history, BUDGET)["budgets"]
    assert budgets["period_start"].tolist() == [monday(week) for week in range(13)]
    assert budgets["amount"].iloc[-1] == BUDGET
    past = [max(1.0, history.cost[history.week == week].sum()) for week in range(12)]
    assert budgets["amount"].tolist()[:-1] == past


def test_redemptions_name_their_offer():
    frames = world_frames(*recorded(), BUDGET)
    orders = frames["orders"].merge(
        frames["coupon_offers"], left_on="coupon_offer_id", right_on="offer_id"
    )
    assert len(orders) == (frames["orders"]["coupon_cost"] > 0).sum() > 0
    assert (orders["customer_id_x"] == orders["customer_id_y"]).all()
    face = frames["coupons"].set_index("coupon_id")["face_value"]
    assert (orders["coupon_id"].map(face).astype(float) == orders["coupon_cost"]).all()
    wait = orders["ordered_at"] - orders["offered_at"]
    assert (wait >= timedelta(hours=1)).all()
    assert (wait < timedelta(days=7)).all()


def test_ids_are_unique_and_lines_add_up_to_orders():
    frames = world_frames(*recorded(), BUDGET)
    for table, key in (("orders", "order_id"), ("coupon_offers", "offer_id")):
        assert frames[table][key].is_unique
    lines = frames["order_items"].set_index("order_id")["revenue"]
    assert lines.equals(frames["orders"].set_index("order_id")["revenue"])


def test_the_favourite_category_hints_at_the_type_and_no_more():
    world, history = recorded()
    frames = world_frames(world, history, BUDGET)
    bought = frames["orders"].merge(frames["order_items"], on="order_id")
    numbers = customer_numbers(bought["customer_id"])
    shares = pd.crosstab(history.people.type[numbers], bought["category"], normalize="index")
    assert shares.max().max() < 0.7
    assert (shares.max(axis=1) > 0.25).sum() >= 4  # a fifth each without a hint


def test_orders_of_the_last_days_may_come_late():
    world, history = recorded()
    late = make_world(WorldConfig(seed=5, confounding=2.0, delay_days=10))
    all_orders = world_frames(world, history, BUDGET)["orders"]
    orders = world_frames(late, history, BUDGET)["orders"]
    end = pd.Timestamp(FIRST_MONDAY, tz="UTC") + timedelta(weeks=12, days=-10)
    here = all_orders[all_orders["ordered_at"] < end]
    assert len(orders) < len(all_orders)
    assert orders["order_id"].tolist() == here["order_id"].tolist()


def test_propensities_may_be_missing():
    _, history = recorded()
    silent = make_world(WorldConfig(seed=5, confounding=2.0, propensities_logged=False))
    offers = world_frames(silent, history, BUDGET)["coupon_offers"]
    assert offers["propensity"].isna().all()
    assert len(offers) == len(history.week)


def test_a_longer_history_only_adds_rows():
    world, history = recorded()
    coupon = np.arange(500) % 4
    random = np.random.default_rng(0)
    longer = continue_history(world, history, coupon, np.full(500, 0.25), random)
    before, after = (world_frames(world, log, BUDGET) for log in (history, longer))
    for table, key in (("orders", "order_id"), ("order_items", "order_id")):
        kept = after[table][after[table][key].isin(before[table][key])]
        pd.testing.assert_frame_equal(kept.reset_index(drop=True), before[table])
    offers = after["coupon_offers"].iloc[:-500]
    pd.testing.assert_frame_equal(offers, before["coupon_offers"])
