"""Source tables of any size: customers × weeks of orders and offers, streamed by COPY.

Customers come in blocks, each block's whole history at a time, so memory does not grow with the
table. Block k draws from (seed, k): more customers leave the earlier ones as they are, but for
the numbers in order and offer ids.

How customers behave: a weekly purchase rate from a gamma distribution, first purchases over the
first half of the weeks, leaving for good with a small chance after every week with a purchase; a
coupon in one week of five, which lifts the rate by its face value among those whom coupons move,
less after a coupon the week before; one order in fifty comes back.

``python -m winback.operators.big_warehouse URL --customers 1000000 --weeks 52`` fills a database.
"""

import argparse
import sys
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from winback.operators.big_warehouse_rows import (
    CATEGORIES,
    COUPONS,
    DAY,
    FACES,
    FIRST_DAY,
    OFFERED,
    Orders,
    budgets,
    catalogue,
    copy_rows,
    customer_rows,
    item_rows,
    offer_rows,
    order_rows,
)

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 20_000  # customers at a time: some 400,000 orders, 100 MB
ORDERS_PER_CUSTOMER = 20.0  # on average, over all weeks
RATE_SHAPE = 1.2  # of the gamma distribution: a few buy a lot
LATE = 1.45  # times the rate, since some start late, some leave, and coupons lift
LEAVES = 0.02  # after a week with a purchase
LIFTS = 0.35 * (FACES / FACES[1]) ** 0.6  # of the rate, among those whom coupons move
MOVED, TIRED = 0.5, 0.5  # share of those; what a coupon the week before leaves of the lift
REDEEMED, RETURNED = 0.6, 0.02  # of purchases with a coupon in hand, of orders
MARGIN_RATE = 0.35  # of revenue
FAITHFUL = 0.7  # of the orders are of the favourite category


def fill_warehouse(
    url: str,
    customers: int,
    weeks: int,
    *,
    seed: int = 0,
    schema: str = "raw",
    orders_per_customer: float = ORDERS_PER_CUSTOMER,
) -> date:
    """Replace the source tables' rows, and return the date to decide at: the Monday after.

    Raises:
        DataError: a table holds rows that no sample loader wrote.
    """
    from winback.operators.sample import SOURCE_TABLES, load_frames
    from winback.operators.warehouse import transaction

    label = f"large: {customers} customers, {weeks} weeks, seed {seed}"
    small = {"coupons": catalogue().to_pandas(), "budgets": budgets(customers, weeks).to_pandas()}
    load_frames(url, small, schema, label=label)
    rate = orders_per_customer / max(weeks, 1)
    orders = offers = 0
    for first in range(0, customers, BLOCK):
        size = min(BLOCK, customers - first)
        random = np.random.default_rng([seed, first // BLOCK])
        tables = _block(random, first, size, weeks, rate, orders, offers)
        orders += tables["orders"].num_rows
        offers += tables["coupon_offers"].num_rows
        with transaction(url) as connection:
            for name, rows in tables.items():
                copy_rows(connection, schema, name, rows)
    with transaction(url) as connection:
        for name in SOURCE_TABLES:
            connection.execute(f'analyze "{schema}"."{name}"'.encode())
    return last_day(weeks)


def last_day(weeks: int) -> date:
    """The Monday after the last week."""
    return FIRST_DAY + timedelta(weeks=weeks)


def _block(
    random: np.random.Generator,
    first: int,
    size: int,
    weeks: int,
    rate: float,
    orders_before: int,
    offers_before: int,
) -> "dict[str, pa.Table]":
    """The rows of some customers in every table that has any."""
    started = random.integers(0, max(1, weeks // 2), size)
    can_contact = random.random(size) > 0.05
    sold, offers = _live(random, started, can_contact, weeks, rate)
    return {
        "orders": order_rows(sold, first, orders_before, offers_before),
        "order_items": item_rows(sold, orders_before),
        "coupon_offers": offer_rows(offers, first, offers_before),
        "customers": customer_rows(started, can_contact, first),
    }


def _live(
    random: np.random.Generator, started: Any, can_contact: Any, weeks: int, rate: float
) -> tuple[Orders, dict[str, Any]]:
    """All weeks of some customers: their orders, and the offers (with a coupon) that they got."""
    size = len(started)
    own_rate = random.gamma(RATE_SHAPE, LATE * rate / RATE_SHAPE, size)
    moved, favourite = random.random(size) < MOVED, random.integers(0, len(CATEGORIES), size)
    basket = random.gamma(6.0, 8.0, size)
    alive, tired = np.ones(size, bool), np.zeros(size, bool)
    sales, offers, offer_count = [], [], 0
    for week in range(weeks):
        offered = (started < week) & can_contact & (random.random(size) < OFFERED)
        coupon = np.where(offered, random.integers(1, len(COUPONS), size), 0)
        number = np.where(offered, offer_count + np.cumsum(offered) - 1, -1)
        offer_count += int(offered.sum())
        offers.append({"customer": np.flatnonzero(offered), "coupon": coupon[offered]})
        offers[-1]["week"] = np.full(len(offers[-1]["customer"]), week)
        lift = LIFTS[coupon] * moved * np.where(tired, TIRED, 1.0)
        expected = np.where(alive & (started < week), own_rate * (1 + lift), 0.0)
        count = random.poisson(expected) + (started == week)
        redeems = (count > 0) & offered & (random.random(size) < REDEEMED)
        sales.append(_sell(random, week, count, np.where(redeems, coupon, 0), number, basket))
        alive &= ~((count > 0) & (started < week) & (random.random(size) < LEAVES))
        tired = coupon > 0
    merged = {name: np.concatenate([part[name] for part in offers]) for name in offers[0]}
    return _sorted(random, sales, favourite, weeks), merged


def _sell(
    random: np.random.Generator, week: int, count: Any, coupon: Any, number: Any, basket: Any
) -> dict[str, Any]:
    """One week's orders; a coupon is redeemed with the first of a customer."""
    customer = np.repeat(np.arange(len(count)), count)
    is_first = np.append(True, customer[1:] != customer[:-1])[: len(customer)]
    redeemed = np.where(is_first, coupon[customer], 0)
    revenue = np.round(basket[customer] * random.lognormal(-0.08, 0.4, len(customer)) + 5, 2)
    opening = 7 * week * DAY + 10 * 3600  # offers go out at nine on Monday
    return {
        "customer": customer,
        "second": opening + random.integers(0, 7 * DAY - 10 * 3600, len(customer)),
        "revenue": revenue,
        "cost": FACES[redeemed],
        "offer": np.where(redeemed > 0, number[customer], -1),
    }


def _sorted(
    random: np.random.Generator, sales: list[dict[str, Any]], favourite: Any, weeks: int
) -> Orders:
    """All weeks' orders and the refunds of some, by time."""
    sold = {name: np.concatenate([part[name] for part in sales]) for name in sales[0]}
    usual = random.random(len(sold["customer"])) < FAITHFUL
    anything = random.integers(0, len(CATEGORIES), len(usual))
    sold["category"] = np.where(usual, favourite[sold["customer"]], anything)
    back = np.flatnonzero(random.random(len(usual)) < RETURNED)
    refunds = {name: values[back].copy() for name, values in sold.items()}
    refunds["second"] += random.integers(DAY, 14 * DAY, len(back))
    refunds["revenue"] *= -1
    refunds["cost"][:], refunds["offer"][:] = 0.0, -1
    rows = {name: np.concatenate([values, refunds[name]]) for name, values in sold.items()}
    known = np.flatnonzero(rows["second"] < 7 * weeks * DAY)
    order = known[np.argsort(rows["second"][known], kind="stable")]
    margin = np.round(MARGIN_RATE * rows["revenue"], 2)
    return Orders(margin=margin[order], **{name: values[order] for name, values in rows.items()})


def main() -> int:
    """Fill the database at a URL."""
    parser = argparse.ArgumentParser(description="Fill the source tables of a database.")
    parser.add_argument("url", help="postgresql://…")
    for name, default in (("customers", 1_000_000), ("weeks", 52), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--schema", default="raw")
    given = parser.parse_args()
    as_of = fill_warehouse(
        given.url, given.customers, given.weeks, seed=given.seed, schema=given.schema
    )
    print(f"decide at {as_of}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
