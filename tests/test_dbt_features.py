"""Features against a second computation: pandas, one customer and one date at a time."""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import pandas as pd
import pytest
from shop import FIRST_DAY, LAST_DAY, TIMEZONE, build, load, random_shop, rows, snapshots

AS_OF = LAST_DAY - timedelta(10)  # between two grid dates, with events after it
MARGIN_RATE = 0.3
MONDAY = date(1970, 1, 5)
WINDOW = timedelta(7)


@dataclass(frozen=True)
class Oracle:
    """The sources, with local days, as lists that plain Python walks through."""

    orders: pd.DataFrame
    offers: pd.DataFrame
    budgets: pd.DataFrame
    categories: dict[tuple[str, date], str]  # the winner of each customer's purchase day
    category_ids: dict[str, int]

    def snapshot(self, customer: str, day: date) -> dict[str, Any] | None:
        """One row of customer_snapshots; None before the customer's first purchase."""
        orders = self.orders[self.orders["customer_id"] == customer]
        offers = self.offers[self.offers["customer_id"] == customer]
        past = orders[orders["day"] < day]
        purchases = past[past["revenue"] >= 0]
        if purchases.empty:
            return None
        days = sorted(set(purchases["day"]))
        coupons = offers[(offers["day"] < day) & (offers["coupon_id"] != "none")]
        month, quarter = day - timedelta(30), day - timedelta(90)
        category = self.categories[customer, days[-1]]
        return {
            "frequency": len(days) - 1,
            "recency_days": (days[-1] - days[0]).days,
            "age_days": (day - days[0]).days,
            "days_since_last_purchase": (day - days[-1]).days,
            "purchases_last_30d": len(purchases[purchases["day"] >= month]),
            "avg_order_value": purchases["revenue"].mean(),
            "remaining_budget_pct": self.remaining_budget(day),
            "category": category,
            "category_id": self.category_ids[category],
            "coupons_last_30d": len(coupons[coupons["day"] >= month]),
            "revenue_last_90d": past.loc[past["day"] >= quarter, "revenue"].sum(),
            "monetary_value": past["margin"].sum() / len(days),
            "coupons_received": len(coupons),
            "coupons_redeemed": int((past["coupon_cost"] > 0).sum()),
            "category_sequence": [
                self.category_ids.get(self.categories.get((customer, month + timedelta(i)), ""), 0)
                for i in range(30)
            ],
            **self.outcome(orders, offers, day),
        }

    def outcome(self, orders: pd.DataFrame, offers: pd.DataFrame, day: date) -> dict[str, Any]:
        """What happened in the window from ``day`` on."""
        names = ("coupon_id", "propensity", "is_own", "order_placed", "order_profit")
        if day + WINDOW > AS_OF:
            return dict.fromkeys((*names, "coupon_cost", "contact_cost", "reward"))
        orders = orders[(orders["day"] >= day) & (orders["day"] < day + WINDOW)]
        offers = offers[(offers["day"] >= day) & (offers["day"] < day + WINDOW)]
        first = offers.sort_values(["offered_at", "offer_id"]).head(1)
        profit, cost = orders["margin"].sum(), orders["coupon_cost"].sum()
        contact = offers["contact_cost"].sum()
        return {
            "coupon_id": "none" if first.empty else first["coupon_id"].item(),
            "propensity": None if first.empty else first["propensity"].item(),
            "is_own": False,
            "order_placed": bool((orders["revenue"] >= 0).any()),
            "order_profit": profit,
            "coupon_cost": cost,
            "contact_cost": contact,
            "reward": profit - cost - contact,
        }

    def remaining_budget(self, day: date) -> float | None:
        for start, end, amount in self.budgets.itertuples(index=False):
            if start <= day < end:
                orders = self.orders[(self.orders["day"] >= start) & (self.orders["day"] < day)]
                return min(1.0, max(0.0, (amount - orders["coupon_cost"].sum()) / amount))
        return None


def oracle(frames: dict[str, pd.DataFrame]) -> Oracle:
    """Prepare the frames; nothing on or after AS_OF is left."""
    orders = with_day(frames["orders"], "ordered_at")
    orders["margin"] = orders["margin"].fillna(orders["revenue"] * MARGIN_RATE)
    offers = with_day(frames["coupon_offers"], "offered_at")
    costs = frames["coupons"].set_index("coupon_id")["contact_cost"]
    offers["contact_cost"] = offers["coupon_id"].map(costs).fillna(0.0)
    lines = purchase_lines(orders, frames["order_items"])
    first_seen = zip(lines["ordered_at"], lines["category"], strict=True)
    seen = dict.fromkeys(name for _, name in sorted(first_seen))
    return Oracle(
        orders,
        offers,
        frames["budgets"],
        {key: top_category(group) for key, group in lines.groupby(["customer_id", "day"])},
        {name: number for number, name in enumerate(seen, 1)},
    )


def purchase_lines(orders: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """Lines of purchases; an order without lines is one line of the category unknown."""
    purchases = orders[orders["revenue"] >= 0].rename(columns={"revenue": "paid"})
    lines = purchases.merge(items, "left", on="order_id", indicator=True)
    lines["revenue"] = lines["revenue"].where(lines["_merge"] == "both", lines["paid"])
    return lines.fillna({"category": "unknown"})


def top_category(lines: pd.DataFrame) -> str:
    """Category with most revenue; of equal ones the first by name."""
    revenue = lines.groupby("category")["revenue"].sum()
    return str(min(revenue.index, key=lambda name: (-revenue[name], name)))


def with_day(events: pd.DataFrame, at: str) -> pd.DataFrame:
    events = events.assign(day=events[at].dt.tz_convert(TIMEZONE).dt.date)
    return events[events["day"] < AS_OF].copy()


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    return random_shop(customers=30)


@pytest.fixture(scope="module")
def warehouse(warehouse_url: str, frames: dict[str, pd.DataFrame]) -> str:
    """Marts of the random shop, some of whose rows come twice; all of dbt's tests run too."""
    twice = {n: f if n == "order_items" else pd.concat([f, f.head(4)]) for n, f in frames.items()}
    load(warehouse_url, twice, "features_raw")
    assert build(warehouse_url, "features", AS_OF, "--select", "tag:features").success
    return warehouse_url


def test_snapshots_equal_a_walk_through_the_events_in_pandas(
    warehouse: str, frames: dict[str, pd.DataFrame]
) -> None:
    second = oracle(frames)
    dates = [FIRST_DAY + timedelta(i) for i in range((AS_OF - FIRST_DAY).days + 1)]
    dates = [day for day in dates if day == AS_OF or (day - MONDAY).days % 7 == 0]
    expected = pd.DataFrame(
        {"snapshot_date": day, "customer_id": customer, **row}
        for day in dates
        for customer in sorted(set(second.orders["customer_id"]))
        if (row := second.snapshot(customer, day))
    )
    found = snapshots(warehouse, "features")
    assert list(found[found["snapshot_date"] == AS_OF]["is_on_grid"].unique()) == [False]
    found = found.drop(columns="is_on_grid")[list(expected)]
    pd.testing.assert_frame_equal(found, expected.set_index(found.index), check_dtype=False)


def test_closed_windows_are_the_grid_less_what_is_open(warehouse: str) -> None:
    """Every snapshot of a Monday at least a week before `as_of`, and no other."""
    found = rows(
        warehouse, "select * from features.closed_windows order by snapshot_date, customer_id"
    )
    everyone = snapshots(warehouse, "features")
    monday = everyone["snapshot_date"].map(lambda day: day.weekday() == 0)
    is_over = everyone["snapshot_date"] + timedelta(7) <= AS_OF
    expected = everyone[monday & is_over].reset_index(drop=True)
    assert 0 < len(expected) < len(everyone)
    pd.testing.assert_frame_equal(
        found.drop(columns="as_of"), expected[found.columns[1:]], check_dtype=False
    )


def test_rfm_equals_pandas(warehouse: str, frames: dict[str, pd.DataFrame]) -> None:
    orders = oracle(frames).orders
    purchases = orders[orders["revenue"] >= 0]
    days = purchases.groupby("customer_id")["day"]
    first = days.min()
    later = orders[orders["day"] > orders["customer_id"].map(first)]
    margin = later.groupby("customer_id")["margin"].sum()
    frequency = days.nunique() - 1
    expected = pd.DataFrame(
        {
            "frequency": frequency,
            "recency_days": [span.days for span in days.max() - first],
            "age_days": [(AS_OF - day).days for day in first],
            "monetary_value": (margin / frequency).where(frequency > 0, 0.0),
            "first_purchase_on": first,
            "last_purchase_on": days.max(),
        }
    )
    found = rows(warehouse, "select * from features.customer_rfm").set_index("customer_id")
    pd.testing.assert_frame_equal(
        found.sort_index()[list(expected)], expected, check_dtype=False, check_names=False
    )


def test_customers_known_equal_a_set_of_names(
    warehouse: str, frames: dict[str, pd.DataFrame]
) -> None:
    second = oracle(frames)
    consent = frames["customers"].set_index("customer_id")
    midnight = pd.Timestamp(AS_OF, tz=TIMEZONE)
    created = consent[consent["created_at"].isna() | (consent["created_at"] < midnight)]
    known = sorted(set(second.orders["customer_id"]) | set(created.index))
    coupons = second.offers[second.offers["coupon_id"] != "none"].groupby("customer_id")["day"]
    recent = second.offers[second.offers["coupon_id"] != "none"]
    days_ago = (pd.Timestamp(AS_OF) - pd.to_datetime(recent["day"])).dt.days
    contacts = recent[days_ago < 28].groupby("customer_id").size()
    buyers = set(second.orders.loc[second.orders["revenue"] >= 0, "customer_id"])
    expected = pd.DataFrame(
        {
            "can_contact": [bool(consent["can_contact"].get(name, True)) for name in known],
            "has_purchased": [name in buyers for name in known],
            "last_coupon_on": [coupons.max().get(name) for name in known],
            "contacts_in_window": [contacts.get(name, 0) for name in known],
        },
        index=known,
    )
    found = rows(warehouse, "select * from features.customers_known").set_index("customer_id")
    pd.testing.assert_frame_equal(
        found.sort_index()[list(expected)], expected, check_dtype=False, check_names=False
    )
    assert not expected["can_contact"].all()
    assert not expected["has_purchased"].all()


def test_later_rows_change_nothing(warehouse: str, frames: dict[str, pd.DataFrame]) -> None:
    """As-of correctness: the same marts from sources that end at as_of and from all of them."""
    midnight = pd.Timestamp(AS_OF, tz=TIMEZONE)
    before = dict(frames)
    before["orders"] = frames["orders"][frames["orders"]["ordered_at"] < midnight]
    before["coupon_offers"] = frames["coupon_offers"][
        frames["coupon_offers"]["offered_at"] < midnight
    ]
    is_there = before["order_items"]["order_id"].isin(before["orders"]["order_id"])
    before["order_items"] = before["order_items"][is_there]
    assert len(before["orders"]) < len(frames["orders"])
    load(warehouse, before, "before_raw")
    assert build(warehouse, "before", AS_OF).success
    pd.testing.assert_frame_equal(snapshots(warehouse, "before"), snapshots(warehouse, "features"))
    for table in ("customer_rfm", "rfm_triples", "customers_known", "categories"):
        query = f"select * from {{}}.{table} order by {table}"
        pd.testing.assert_frame_equal(
            rows(warehouse, query.format("before")), rows(warehouse, query.format("features"))
        )
