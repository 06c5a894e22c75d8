"""A second customer simulator, of another kind than `winback.models.world`, with which it shares
no code: continuous time and no states, no types, no memory of coupons.

A customer buys as a Poisson process until an exponential lifetime ends (Schmittlein, Morrison &
Colombo 1987, "Counting your customers"). Rate, lifetime, margin and what a coupon does differ from
customer to customer, continuously, and no table shows them. A coupon holds for one week and
multiplies the rate until the next Monday; the first purchase of its week redeems it with a fixed
chance. The chances and expectations of a week are therefore closed forms.
"""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pandas as pd

FIRST_MONDAY = date(2025, 1, 6)
COUPONS = ("none", "five", "ten")
FACE = np.array([0.0, 5.0, 10.0])
CONTACT = np.array([0.0, 0.05, 0.05])
STRENGTH = np.array([0.0, 0.7, 1.0])  # of a coupon's effect: half the money moves more than half
OFFERED = 0.3  # of the customer weeks of the log, by lot, each coupon alike
PROPENSITY = np.array([1 - OFFERED, OFFERED / 2, OFFERED / 2])
REDEEMED = 0.6  # of the coupons whose customer buys
RATE_SHAPE, RATE = 1.2, 0.2  # of the Gamma of purchases a week, and its mean
LEAVING_SHAPE, LEAVING = 2.0, 0.015  # of the Gamma of the lifetimes' rates a week, and its mean
MARGIN, MARGIN_SPREAD = 18.0, 0.4  # of a customer's median order; lognormal
ORDER_SPREAD = 0.5  # of an order's log margin around the customer's
LIFT = 1.5  # mean of the Gamma, of shape 1, of what "ten" adds to who hardly ever buys
JOINING = 8.0  # weeks within which the first purchases come
MARGIN_RATE = 0.4  # of revenue


@dataclass(frozen=True)
class Shop:
    """n customers; all hidden. Times in weeks since the first Monday.

    Attributes:
        joined, left: (n,) the first purchase, and the end.
        rate: (n,) purchases a week without a coupon.
        leaving: (n,) rate of the lifetime.
        margin: (n,) median margin of an order.
        lift: (n, 3) by what each coupon multiplies the rate.
    """

    joined: np.ndarray
    left: np.ndarray
    rate: np.ndarray
    leaving: np.ndarray
    margin: np.ndarray
    lift: np.ndarray


def open_shop(customers: int, seed: int, lift: float = LIFT) -> Shop:
    """Draw the customers; with ``lift`` 0 a coupon does nothing but cost."""
    random = np.random.default_rng([seed, 1])
    rate = random.gamma(RATE_SHAPE, RATE / RATE_SHAPE, customers)
    leaving = random.gamma(LEAVING_SHAPE, LEAVING / LEAVING_SHAPE, customers)
    joined = random.random(customers) * JOINING
    # who buys often anyway has less to add
    added = lift * random.exponential(size=customers) / (1 + rate / RATE)
    return Shop(
        joined=joined,
        left=joined + random.exponential(1 / leaving),
        rate=rate,
        leaving=leaving,
        margin=MARGIN * np.exp(MARGIN_SPREAD * random.standard_normal(customers)),
        lift=1 + added[:, None] * STRENGTH,
    )


def source_tables(shop: Shop, weeks: int, budget: float, seed: int) -> dict[str, pd.DataFrame]:
    """What the shop has on record after some weeks, and a budget for the next one.

    There are no order lines, margins are known, and every decision is logged with its propensity.
    """
    random = np.random.default_rng([seed, 2])
    n = len(shop.joined)
    orders, offers = [_orders(shop, np.arange(n), shop.joined, np.zeros(n), random)], []
    for week in range(weeks):
        known = shop.joined < week  # offers go to who has bought before; nobody sees who has left
        coupon = np.where(known, random.choice(len(COUPONS), size=n, p=PROPENSITY), 0)
        offers.append(_offers(np.flatnonzero(known), week, coupon[known]))
        orders.append(live(shop, week, coupon, random))
    sold = pd.concat(orders, ignore_index=True)
    sold.insert(0, "order_id", [f"order-{number}" for number in range(len(sold))])
    return {
        "orders": sold,
        "coupons": pd.DataFrame(
            {"coupon_id": COUPONS, "label": COUPONS, "face_value": FACE, "contact_cost": CONTACT}
        ),
        "coupon_offers": pd.concat(offers, ignore_index=True),
        "customers": pd.DataFrame(
            {"customer_id": _names(np.arange(n)), "created_at": _times(shop.joined)}
        ),
        "budgets": pd.DataFrame(
            {
                "period_start": [monday(week) for week in range(weeks + 1)],
                "period_end": [monday(week + 1) for week in range(weeks + 1)],
                "amount": budget,
            }
        ),
    }


def live(shop: Shop, week: int, coupon: np.ndarray, random: np.random.Generator) -> pd.DataFrame:
    """Orders of one week with the coupons (n,), but first ones: uniform while a customer is there.

    Columns as in the table ``orders``, without ids.
    """
    begin, end = np.maximum(shop.joined, week), np.minimum(shop.left, week + 1)
    lived = np.maximum(end - begin, 0)
    rate = shop.rate * shop.lift[np.arange(len(coupon)), coupon]
    who = np.repeat(np.arange(len(coupon)), random.poisson(rate * lived))
    when = np.sort(random.random(len(who)) + who) - who  # by customer, then by time
    is_first = np.diff(who, prepend=-1) > 0
    redeems = is_first & (random.random(len(who)) < REDEEMED)
    cost = np.where(redeems, FACE[coupon[who]], 0.0)
    return _orders(shop, who, begin[who] + when * lived[who], cost, random)


def true_cost(shop: Shop, week: int) -> np.ndarray:
    """(n, 3) expected redeemed money of each coupon in a week, at its beginning.

    A purchase comes before both the week's end and the customer's: λ / (λ + μ) (1 - e^-(λ + μ)).
    """
    rate = shop.rate[:, None] * shop.lift
    both = rate + shop.leaving[:, None]
    buys = _here(shop, week) * rate / both * -np.expm1(-both)
    return buys * REDEEMED * FACE


def true_uplift(shop: Shop, week: int) -> np.ndarray:
    """(n, 3) expected profit of a week with each coupon less that with none, at its beginning.

    Purchases are λ times the weeks lived, (1 - e^-μ) / μ; nothing follows after the week.
    """
    lived = -np.expm1(-shop.leaving) / shop.leaving
    mean = shop.margin * np.exp(ORDER_SPREAD**2 / 2)
    without = (lived * shop.rate * mean)[:, None]
    more = _here(shop, week) * without * (shop.lift - 1)
    return more - true_cost(shop, week) - CONTACT


def monday(week: int) -> date:
    """The day on which a week begins, and on which its coupons are given."""
    return FIRST_MONDAY + timedelta(weeks=week)


def numbers(customer_ids: list[str]) -> np.ndarray:
    """Customers' numbers from their names in the tables."""
    return np.array([int(name.removeprefix("customer-")) for name in customer_ids])


def _here(shop: Shop, week: int) -> np.ndarray:
    """(n, 1) whether a customer has come and not left at the beginning of a week."""
    return ((shop.joined < week) & (week < shop.left))[:, None]


def _orders(
    shop: Shop, who: np.ndarray, time: np.ndarray, cost: np.ndarray, random: np.random.Generator
) -> pd.DataFrame:
    margin = shop.margin[who] * np.exp(ORDER_SPREAD * random.standard_normal(len(who)))
    offers = np.array([f"offer-{int(t)}-{c}" for t, c in zip(time, who, strict=True)], object)
    return pd.DataFrame(
        {
            "customer_id": _names(who),
            "ordered_at": _times(time),
            "revenue": np.round(margin / MARGIN_RATE, 2),
            "margin": np.round(margin, 2),
            "coupon_cost": cost,
            "coupon_offer_id": np.where(cost > 0, offers, None),
        }
    )


def _offers(who: np.ndarray, week: int, coupon: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "offer_id": [f"offer-{week}-{one}" for one in who],
            "customer_id": _names(who),
            "coupon_id": np.array(COUPONS)[coupon],
            "offered_at": _times(np.full(len(who), float(week))),
            "propensity": PROPENSITY[coupon],
        }
    )


def _names(who: np.ndarray) -> list[str]:
    return [f"customer-{one}" for one in who]


def _times(weeks: np.ndarray) -> pd.Series:
    start = pd.Timestamp(FIRST_MONDAY, tz="UTC")
    return pd.Series(start + pd.to_timedelta((weeks * 7 * 86_400).astype(np.int64), unit="s"))
