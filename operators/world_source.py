"""A known world's log in the source tables, as a shop would have written it.

Weeks begin on Mondays, which are decision dates of the weekly grid. Offers go out on Monday
morning, purchases come between then and the next Monday. Customers are numbered as in the
history: customer 12 is ``c0000012``.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from winback.models.world import (
    CONTACT_COST,
    FACE_VALUES,
    NEW,
    Bools,
    Floats,
    Ints,
    World,
    drifted,
)
from winback.models.world_log import History, draw_margins
from winback.operators.sample import load_frames

FIRST_MONDAY = date(2024, 1, 1)
COUPONS = ("none", *(f"save{face:g}" for face in FACE_VALUES[1:]))
CATEGORIES = ("books", "electronics", "fashion", "garden", "toys")
DAY, WEEK = 86_400, 7 * 86_400  # seconds
CREATED_AT, OFFERED_AT, OPENS_AT = 8 * 3600, 9 * 3600, 10 * 3600  # seconds into a Monday
MARGIN_RATE = 0.35  # of revenue
TYPICAL = 0.3  # of the customers like what their type likes, the others anything
FAITHFUL = 0.7  # of the purchases are of the favourite category, the others of any


def write_world(
    url: str,
    world: World,
    history: History,
    *,
    budget: float,
    schema: str = "raw",
    decided_from: int | None = None,
) -> date:
    """Replace the source tables' rows by the history, and return the date to decide at.

    The same history gives the same rows; a longer one adds rows and changes no order or offer.

    Args:
        url: of the warehouse.
        world: whose dials say what the tables show: ``propensities_logged``, ``delay_days``.
        history: what happened.
        budget: coupon money for the week to decide; past weeks had what they spent.
        schema: of the source tables.
        decided_from: the week from which winback decided; its propensities are always logged.

    Raises:
        DataError: a table holds rows that no sample loader wrote.
    """
    customers, weeks, seed = len(history.first_week), history.weeks, world.config.seed
    label = f"known world {seed}: {customers} customers, {weeks} weeks"
    frames = world_frames(world, history, budget, decided_from)
    load_frames(url, frames, schema, label=label)
    return monday(weeks)


def monday(week: int) -> date:
    """The day on which a week of a history begins."""
    return FIRST_MONDAY + timedelta(weeks=week)


def customer_numbers(customer_ids: Sequence[str]) -> Ints:
    """Positions of customers in the history, from their ids in the tables."""
    return np.array([int(name[1:]) for name in customer_ids], dtype=np.int64)


def world_frames(
    world: World, history: History, budget: float, decided_from: int | None = None
) -> dict[str, pd.DataFrame]:
    """The source tables as Arrow-backed frames; see :func:`write_world`."""
    theirs = history.week < (history.weeks if decided_from is None else decided_from)
    sold = _sold(world, history)
    return {
        "orders": _orders(sold, len(history.first_week)),
        "order_items": _items(sold, len(history.first_week)),
        "coupons": _catalogue(),
        "coupon_offers": _offers(history, theirs & (not world.config.propensities_logged)),
        "customers": _customers(history.first_week),
        "budgets": _budgets(history, budget),
    }


def _sold(world: World, history: History) -> dict[str, Any]:
    """All purchases that the tables know of, first purchases first; (k,) each."""
    n, bought = len(history.first_week), history.purchased
    first_margin = draw_margins(_mean_of_first(world, history), _random(world, 0))
    nothing = np.zeros(n)
    sold = {
        "customer": np.append(np.arange(n), history.customer[bought]),
        "week": np.append(history.first_week, history.week[bought]),
        "margin": np.append(first_margin, history.margin[bought]),
        "cost": np.append(nothing, history.cost[bought]),
        "second": np.append(_moments(world, 1, n), _moments(world, 2, len(bought))[bought]),
        "category": _categories(world, history),
    }
    until = history.weeks * WEEK - world.config.delay_days * DAY
    arrived = sold["week"] * WEEK + sold["second"] < until
    return {name: column[arrived] for name, column in sold.items()}


def _mean_of_first(world: World, history: History) -> Floats:
    """(n,) mean margin of the first purchases, in the world of their week."""
    mean: Floats = world.margin[history.people.type, NEW, 0]
    drift_week = world.config.drift_week
    if drift_week is None:
        return mean
    later = drifted(world).margin[history.people.type, NEW, 0]
    return np.where(history.first_week < drift_week, mean, later)


def _moments(world: World, purpose: int, size: int) -> Ints:
    """Seconds from the beginning of the week to a purchase."""
    share = _random(world, purpose).random(size)
    return OPENS_AT + (share * (WEEK - OPENS_AT)).astype(np.int64)


def _categories(world: World, history: History) -> Ints:
    """Category of each purchase: mostly the customer's favourite, which hints at their type."""
    n, rows = len(history.first_week), len(history.week)
    typical = history.people.type % len(CATEGORIES)
    favourite = _mixed(typical, TYPICAL, _random(world, 3), n)
    usual = favourite[history.customer]
    later = _mixed(usual, FAITHFUL, _random(world, 4), rows)[history.purchased]
    return np.append(_mixed(favourite, FAITHFUL, _random(world, 5), n), later)


def _mixed(usual: Ints, share: float, random: np.random.Generator, size: int) -> Ints:
    """The usual category in ``share`` of the cases, any of them in the others."""
    chance, other = random.random((size, 2)).T  # row by row: a longer history changes no row
    return np.where(chance < share, usual, (other * len(CATEGORIES)).astype(np.int64))


def _orders(sold: dict[str, Any], n: int) -> pd.DataFrame:
    number = _number(sold["week"], sold["customer"], n)
    return _frame(
        order_id=_ids("o", number),
        customer_id=_ids("c", sold["customer"]),
        ordered_at=_times(sold["week"], sold["second"]),
        revenue=_revenue(sold["margin"]),
        margin=sold["margin"],
        coupon_cost=sold["cost"],
        coupon_offer_id=_ids("f", number, is_null=sold["cost"] == 0),
    )


def _items(sold: dict[str, Any], n: int) -> pd.DataFrame:
    """One line per order."""
    return _frame(
        order_id=_ids("o", _number(sold["week"], sold["customer"], n)),
        category=_names(CATEGORIES, sold["category"]),
        quantity=np.ones(len(sold["week"]), np.int64),
        revenue=_revenue(sold["margin"]),
    )


def _offers(history: History, unknown: Bools) -> pd.DataFrame:
    """Every decision of the log, `none` too; (m,) without a propensity where it is unknown."""
    number = _number(history.week, history.customer, len(history.first_week))
    return _frame(
        offer_id=_ids("f", number),
        customer_id=_ids("c", history.customer),
        coupon_id=_names(COUPONS, history.coupon),
        offered_at=_times(history.week, OFFERED_AT),
        propensity=pa.array(history.propensity, mask=unknown),
    )


def _catalogue() -> pd.DataFrame:
    return _frame(
        coupon_id=COUPONS,
        label=["No coupon", *(f"{face:g} off your next order" for face in FACE_VALUES[1:])],
        face_value=FACE_VALUES,
        contact_cost=[0.0, *[CONTACT_COST] * (len(COUPONS) - 1)],
        channel=["email"] * len(COUPONS),
    )


def _customers(first_week: Ints) -> pd.DataFrame:
    n = len(first_week)
    return _frame(
        customer_id=_ids("c", np.arange(n)),
        created_at=_times(first_week, CREATED_AT),
        can_contact=np.ones(n, np.bool_),
    )


def _budgets(history: History, budget: float) -> pd.DataFrame:
    """One row a week; a past week's amount is what it spent, or 1 where that was less."""
    spent = np.bincount(history.week, history.cost, minlength=history.weeks)
    starts = [monday(week) for week in range(history.weeks + 1)]
    return _frame(
        period_start=starts,
        period_end=[day + timedelta(weeks=1) for day in starts],
        amount=np.append(np.maximum(spent, 1.0), budget),
    )


def _random(world: World, purpose: int) -> np.random.Generator:
    """One stream of random numbers per purpose: more rows do not change the earlier ones."""
    return np.random.default_rng([world.config.seed, purpose, 17])


def _number(week: Ints, customer: Ints, n: int) -> Ints:
    """One number for each customer week; at most one purchase and one offer has it."""
    return week * n + customer


def _revenue(margin: Floats) -> Floats:
    revenue: Floats = np.round(margin / MARGIN_RATE, 2)
    return revenue


def _ids(prefix: str, number: Ints, *, is_null: Any = None) -> "pa.Array":
    digits = pc.utf8_lpad(pc.cast(pa.array(number, mask=is_null), pa.string()), 7, "0")
    return pc.binary_join_element_wise(prefix, digits, "")


def _names(names: Sequence[str], index: Ints) -> "pa.Array":
    return pa.array(names).take(pa.array(index))


def _times(week: Ints, second: Ints | int) -> "pa.Array":
    start = pd.Timestamp(FIRST_MONDAY, tz="UTC").timestamp()
    seconds = int(start) + week * WEEK + second
    return pa.array(seconds * 1_000_000).cast(pa.timestamp("us", tz="UTC"))


def _frame(**columns: Any) -> pd.DataFrame:
    """Arrow-backed columns: millions of ids as Python strings would take gigabytes."""
    return pa.table(columns).to_pandas(types_mapper=pd.ArrowDtype)
