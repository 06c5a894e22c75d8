"""The rows of a large warehouse as Arrow tables, and their way into Postgres."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

FIRST_DAY = date(2024, 1, 1)  # a Monday
COPY_ROWS = 100_000  # rows of CSV text at a time, about 8 MB
COUPONS = ("none", "save4", "save8", "save14")
FACES = np.array([0.0, 4.0, 8.0, 14.0])
CONTACT_COST = 0.05  # an e-mail
OFFERED = 0.2  # of the weeks
WEEKLY_BUDGET = 0.3  # per customer: about what the weeks before spent
CATEGORIES = tuple(f"category {number:02d}" for number in range(20))
DAY = 86_400  # seconds


@dataclass
class Orders:
    """Orders of a block, (k,) each, sorted by time."""

    customer: Any
    second: Any  # since FIRST_DAY
    revenue: Any
    margin: Any
    cost: Any
    offer: Any  # number within the block, −1 without
    category: Any


def order_rows(sold: Orders, first: int, orders: int, offers: int) -> "pa.Table":
    """The orders of a block; ids count on from those before."""
    import pyarrow as pa

    return pa.table(
        {
            "order_id": _ids("o", orders + np.arange(len(sold.customer))),
            "customer_id": _ids("c", first + sold.customer),
            "ordered_at": _times(sold.second),
            "revenue": sold.revenue,
            "margin": sold.margin,
            "coupon_cost": sold.cost,
            "coupon_offer_id": _ids("f", offers + sold.offer, sold.offer < 0),
        }
    )


def item_rows(sold: Orders, orders: int) -> "pa.Table":
    """One line per order."""
    import pyarrow as pa

    return pa.table(
        {
            "order_id": _ids("o", orders + np.arange(len(sold.customer))),
            "category": pa.array(CATEGORIES).take(pa.array(sold.category)),
            "quantity": np.sign(sold.revenue).astype(np.int64),
            "revenue": sold.revenue,
        }
    )


def offer_rows(offers: dict[str, Any], first: int, before: int) -> "pa.Table":
    """Offers with a coupon, their chance known."""
    import pyarrow as pa

    n = len(offers["customer"])
    return pa.table(
        {
            "offer_id": _ids("f", before + np.arange(n)),
            "customer_id": _ids("c", first + offers["customer"]),
            "coupon_id": pa.array(COUPONS).take(pa.array(offers["coupon"])),
            "offered_at": _times(7 * offers["week"] * DAY + 9 * 3600),
            "propensity": np.full(n, round(OFFERED / (len(COUPONS) - 1), 6)),
        }
    )


def customer_rows(started: Any, can_contact: Any, first: int) -> "pa.Table":
    """Who may be contacted, and since when they are known."""
    import pyarrow as pa

    return pa.table(
        {
            "customer_id": _ids("c", first + np.arange(len(started))),
            "created_at": _times(7 * started * DAY + 8 * 3600),
            "can_contact": can_contact,
        }
    )


def catalogue() -> "pa.Table":
    """The coupons."""
    import pyarrow as pa

    return pa.table(
        {
            "coupon_id": COUPONS,
            "label": ["No coupon", *(f"{face:g} off your next order" for face in FACES[1:])],
            "face_value": FACES,
            "contact_cost": [0.0, *[CONTACT_COST] * (len(COUPONS) - 1)],
            "channel": ["email"] * len(COUPONS),
        }
    )


def budgets(customers: int, weeks: int) -> "pa.Table":
    """One row a week, the week to decide included."""
    import pyarrow as pa

    starts = [FIRST_DAY + timedelta(weeks=week) for week in range(weeks + 1)]
    return pa.table(
        {
            "period_start": starts,
            "period_end": [day + timedelta(weeks=1) for day in starts],
            "amount": np.full(len(starts), max(10.0, WEEKLY_BUDGET * customers)),
        }
    )


def _ids(prefix: str, number: Any, is_null: Any = None) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pc.cast(pa.array(number, mask=is_null), pa.string())
    return pc.binary_join_element_wise(prefix, pc.utf8_lpad(text, 9, "0"), "")


def _times(second: Any) -> Any:
    import pyarrow as pa

    start = (FIRST_DAY - date(1970, 1, 1)).days * DAY
    return pa.array((start + second) * 1_000_000).cast(pa.timestamp("us", tz="UTC"))


def copy_rows(connection: Any, schema: str, table: str, rows: "pa.Table") -> None:
    """Append Arrow rows to a table by COPY."""
    columns = ", ".join(f'"{name}"' for name in rows.column_names)
    statement = f'copy "{schema}"."{table}" ({columns}) from stdin (format csv)'
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        for text in _csv(rows):
            copy.write(text)


def _csv(rows: "pa.Table") -> Iterator[memoryview]:
    import pyarrow as pa
    from pyarrow import csv

    for batch in rows.to_batches(max_chunksize=COPY_ROWS):
        text = BytesIO()
        csv.write_csv(pa.Table.from_batches([batch]), text, csv.WriteOptions(include_header=False))
        yield text.getbuffer()
