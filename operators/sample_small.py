"""A small generated shop with a known truth, for tests and for trying things out.

How it works, so that a test can compare what was learned with what is true:

- customers buy as in BG/NBD on a daily grid: a purchase rate from Gamma(r, α), and after each
  repeat purchase day the customer leaves for good with a probability from Beta(a, b)
- every Monday each customer known so far draws a coupon at random with a logged propensity; those
  who have been away longer get coupons more often. Without consent nothing is drawn or logged
- a coupon multiplies the rate of the next seven days by ``1 + LIFT[coupon] * response`` where
  ``response`` is 1 in categories that coupons move and 0 elsewhere; each coupon received in the
  three weeks before takes a fifth off that lift (fatigue)
- the first purchase within those days redeems the coupon with probability ``REDEMPTION``
"""

from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FIRST_DAY = date(2024, 1, 1)  # a Monday
BG_NBD = {"r": 1.2, "alpha": 12.0, "a": 0.8, "b": 4.0}  # a purchase every ten days, one in six goes
COUPONS = ("none", "save5", "save10")
FACE_VALUE = np.array([0.0, 5.0, 10.0])
LIFT = np.array([0.0, 0.6, 1.0])  # of the purchase rate, before fatigue
FATIGUE = 0.8  # per coupon received in the three weeks before
REDEMPTION = 0.7  # of a coupon in hand at a purchase
CONTACT_COST = 0.05  # an e-mail
CATEGORIES = ("books", "electronics", "fashion", "garden", "toys")
RESPONSIVE = np.array([False, False, True, True, True])  # categories that coupons move
MARGIN_RATE = 0.35


@dataclass
class _Shop:
    """State of the simulation: arrays of shape (customers,) and the events so far."""

    rng: np.random.Generator
    rate: NDArray[np.float64]
    leave: NDArray[np.float64]
    first_day: NDArray[np.int64]
    favourite: NDArray[np.int64]
    basket: NDArray[np.float64]
    can_contact: NDArray[np.bool_]
    is_alive: NDArray[np.bool_]
    last_purchase: NDArray[np.int64]
    coupon: NDArray[np.int64]  # in hand this week
    offer: NDArray[np.int64]  # its running number, -1 without
    recent: NDArray[np.int64]  # (customers, 4) whether a coupon came this week, last week, …
    orders: list[pd.DataFrame] = field(default_factory=list)
    offers: list[pd.DataFrame] = field(default_factory=list)
    count_offers: int = 0


def generate_frames(
    customers: int = 300, weeks: int = 30, seed: int = 0, *, duplicates: bool = False
) -> dict[str, pd.DataFrame]:
    """Generate the source tables as frames with the columns of the contract.

    Args:
        customers: people who buy; one in twenty more never does.
        weeks: length of the history from ``FIRST_DAY``.
        seed: the same seed gives the same rows.
        duplicates: repeat a few rows of each table identically, as real exports do.
    """
    shop = _open_shop(customers, weeks, np.random.default_rng(seed))
    for day in range(7 * weeks):
        if day % 7 == 0:
            _draw_coupons(shop, day)
        _sell(shop, day)
    orders = _orders(shop)
    frames = {
        "orders": orders.drop(columns="category"),
        "order_items": _items(orders),
        "coupons": _catalogue(),
        "coupon_offers": pd.concat(shop.offers, ignore_index=True),
        "customers": _customers(shop),
        "budgets": _budgets(orders, weeks),
    }
    return {name: _repeat_some(frame) if duplicates else frame for name, frame in frames.items()}


def last_day(weeks: int = 30) -> date:
    """The Monday after the last generated day: the date to decide at."""
    return FIRST_DAY + timedelta(weeks=weeks)


def _open_shop(n: int, weeks: int, rng: np.random.Generator) -> _Shop:
    return _Shop(
        rng=rng,
        rate=rng.gamma(BG_NBD["r"], 1 / BG_NBD["alpha"], n),
        leave=rng.beta(BG_NBD["a"], BG_NBD["b"], n),
        first_day=rng.integers(0, 7 * weeks * 2 // 3, n),
        favourite=rng.integers(0, len(CATEGORIES), n),
        basket=rng.gamma(6.0, 8.0, n),  # mean 48
        can_contact=rng.random(n) > 0.08,
        is_alive=np.zeros(n, bool),
        last_purchase=np.full(n, -1),
        coupon=np.zeros(n, int),
        offer=np.full(n, -1),
        recent=np.zeros((n, 4), int),
    )


def _draw_coupons(shop: _Shop, day: int) -> None:
    """Offer every known, contactable customer a coupon or none, with its exact propensity."""
    n, rng = len(shop.rate), shop.rng
    away = shop.last_purchase < day - 28
    shares = np.where(away[:, None], [0.4, 0.35, 0.25], [0.7, 0.2, 0.1])  # (n, coupons)
    drawn = (rng.random((n, 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(max=2)
    drawn = np.where((shop.first_day < day) & shop.can_contact, drawn, -1)
    offered = np.flatnonzero(drawn >= 0)
    shop.coupon = drawn.clip(min=0)
    shop.offer[:] = -1
    shop.offer[offered] = shop.count_offers + np.arange(len(offered))
    shop.recent = np.column_stack([shop.coupon > 0, shop.recent[:, :-1]]).astype(int)
    shop.count_offers += len(offered)
    shop.offers.append(
        pd.DataFrame(
            {
                "offer_id": _ids("f", shop.offer[offered], 7),
                "customer_id": _ids("c", offered, 5),
                "coupon_id": np.array(COUPONS, dtype=object)[drawn[offered]],
                "offered_at": _times(np.full(len(offered), day), 9 * 3600),
                "propensity": shares[offered, drawn[offered]],
            }
        )
    )


def _sell(shop: _Shop, day: int) -> None:
    """One day: who buys, for how much, with which coupon; then who leaves."""
    n, rng = len(shop.rate), shop.rng
    earlier = shop.recent[:, 1:].sum(axis=1)
    lift = LIFT[shop.coupon] * FATIGUE**earlier * RESPONSIVE[shop.favourite]
    buys = (shop.is_alive & (rng.random(n) < -np.expm1(-shop.rate * (1 + lift)))) | (
        shop.first_day == day
    )
    who = np.flatnonzero(buys)
    leaves = (rng.random(len(who)) < shop.leave[who]) & (shop.first_day[who] < day)
    shop.is_alive[who] = ~leaves  # nobody leaves at the first purchase, as in BG/NBD
    shop.last_purchase[who] = day
    redeems = (shop.coupon[who] > 0) & (rng.random(len(who)) < REDEMPTION)
    revenue = (shop.basket[who] * rng.lognormal(-0.08, 0.4, len(who))).round(2) + 5
    usual = rng.random(len(who)) < 0.7
    other = rng.integers(0, len(CATEGORIES), len(who))
    shop.orders.append(
        pd.DataFrame(
            {
                "customer": who,
                "day": day,
                "second": rng.integers(8 * 3600, 22 * 3600, len(who)),
                "category": np.where(usual, shop.favourite[who], other),
                "revenue": revenue,
                "margin": (revenue * MARGIN_RATE).round(2),
                "coupon_cost": np.where(redeems, FACE_VALUE[shop.coupon[who]], 0.0),
                "offer": np.where(redeems, shop.offer[who], -1),
            }
        )
    )
    shop.coupon[who[redeems]] = 0  # used up
    shop.offer[who[redeems]] = -1


def _orders(shop: _Shop) -> pd.DataFrame:
    """Orders and refunds, with the category that `_items` needs."""
    sold = pd.concat(shop.orders, ignore_index=True)
    last = int(sold["day"].max())
    back = sold[shop.rng.random(len(sold)) < 0.02].copy()  # one order in fifty comes back
    back["day"] += shop.rng.integers(1, 15, len(back))
    back[["revenue", "margin"]] *= -1
    back[["coupon_cost", "offer"]] = [0.0, -1]
    rows = pd.concat([sold, back[back["day"] <= last]], ignore_index=True)
    rows = rows.sort_values(["day", "second", "customer"], ignore_index=True)
    unknown_margin = shop.rng.random(len(rows)) < 0.05  # the default rate applies to these
    return pd.DataFrame(
        {
            "order_id": _ids("o", rows.index.to_numpy(), 6),
            "customer_id": _ids("c", rows["customer"].to_numpy(), 5),
            "ordered_at": _times(rows["day"].to_numpy(), rows["second"].to_numpy()),
            "revenue": rows["revenue"].round(2),
            "margin": rows["margin"].round(2).mask(unknown_margin),
            "coupon_cost": rows["coupon_cost"],
            "coupon_offer_id": pd.Series(_ids("f", rows["offer"].to_numpy(), 7)).mask(
                rows["offer"] < 0
            ),
            "category": np.array(CATEGORIES, dtype=object)[rows["category"]],
        }
    )


def _items(orders: pd.DataFrame) -> pd.DataFrame:
    items = orders[["order_id", "category"]].copy()
    items["quantity"] = np.sign(orders["revenue"])
    items["revenue"] = orders["revenue"]
    return items


def _catalogue() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "coupon_id": COUPONS,
            "label": ["No coupon", "5 off your next order", "10 off your next order"],
            "face_value": FACE_VALUE,
            "contact_cost": [0.0, CONTACT_COST, CONTACT_COST],
            "channel": "email",
        }
    )


def _customers(shop: _Shop) -> pd.DataFrame:
    """Buyers and one in twenty more who never bought; one buyer in fifty is missing here."""
    n = len(shop.rate)
    total = n + -(-n // 20)
    day = np.append(shop.first_day, np.zeros(total - n, int))
    created = pd.Series(_times(day, 7 * 3600)).mask(np.arange(total) % 10 == 9)  # null: unknown
    rows = pd.DataFrame(
        {
            "customer_id": _ids("c", np.arange(total), 5),
            "created_at": created,
            "can_contact": np.append(shop.can_contact, np.ones(total - n, bool)),
        }
    )
    is_missing = (np.arange(total) % 50 == 25) & rows["can_contact"]  # no row: may be contacted
    return rows[~is_missing].reset_index(drop=True)


def _budgets(orders: pd.DataFrame, weeks: int) -> pd.DataFrame:
    """One row per month up to the month after the last day, a quarter above what was redeemed."""
    starts = pd.date_range(FIRST_DAY, last_day(weeks) + timedelta(days=31), freq="MS")
    month = orders["ordered_at"].dt.tz_localize(None).dt.to_period("M").dt.to_timestamp()
    spent = orders.groupby(month)["coupon_cost"].sum().reindex(starts)
    usual = spent.median()
    amount = np.ceil(spent.fillna(usual).clip(lower=usual) * 1.25 / 50) * 50
    return pd.DataFrame(
        {
            "period_start": starts.date,
            "period_end": (starts + pd.offsets.MonthBegin()).date,
            "amount": amount.to_numpy(),
        }
    )


def _repeat_some(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.iloc[:3]], ignore_index=True)


def _ids(prefix: str, numbers: NDArray[np.int64], width: int) -> NDArray[np.object_]:
    return np.array([f"{prefix}{number:0{width}d}" for number in numbers], dtype=object)


def _times(day: NDArray[np.int64], second: NDArray[np.int64] | int) -> "pd.Series[pd.Timestamp]":
    start = pd.Timestamp(FIRST_DAY, tz="UTC")
    return pd.Series(start + pd.to_timedelta(day * 86400 + second, unit="s"))
