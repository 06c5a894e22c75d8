"""Reading customer_snapshots and the catalogue as the arrays that the models take."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from winback.models.errors import SettingsError, first_rows
from winback.models.profit_data import (
    SEQUENCE_DAYS,
    Floats,
    Integers,
    ProfitData,
    ProfitSchema,
)
from winback.models.settings import Settings
from winback.operators.run import Run
from winback.operators.warehouse import read_table

if TYPE_CHECKING:
    import pyarrow as pa

    from winback.models.survival import SurvivalFit

GRID_START = date(1970, 1, 5)  # a Monday; period 0 of the decisions on the grid
P_ALIVE = "p_alive"
HISTORY = ("frequency", "recency_days", "age_days")
PROFIT_FEATURES = (  # what the profit model knows of a customer beside the sequence of categories
    "days_since_last_purchase",
    "purchases_last_30d",
    "avg_order_value",
    "remaining_budget_pct",
    "coupons_last_30d",
    "revenue_last_90d",
    "monetary_value",
    "coupons_received",
    "coupons_redeemed",
    *HISTORY,
)

COUNT_CLOSED = """
select count(*)::bigint as closed
from {schema}.closed_windows
where snapshot_date <= {as_of}::date - {decision_days}
"""
# A fixed share of the rows by hash: the same rows in every try, whatever their order on disk.
TRAINING = f"""
select
    snapshot_date - date '1970-01-01' as day, coupon_id, order_placed, order_profit, coupon_cost,
    category_sequence, {", ".join(PROFIT_FEATURES)}
from {{schema}}.customer_snapshots
where
    is_on_grid and reward is not null and snapshot_date + {{decision_days}} <= {{as_of}}
    and hashtextextended(customer_id || snapshot_date, {{seed}}) & 1048575 < {{sample}} * 1048576
order by snapshot_date, customer_id
"""
CATALOGUE = """
select
    coupon_id,
    coalesce(label, coupon_id) as label,
    channel,
    face_value::double precision as face_value,
    contact_cost::double precision as contact_cost
from {staging}.stg_coupons
order by coupon_id <> 'none', face_value, coupon_id
"""
CATEGORIES = "select category from {schema}.categories order by category_id"


@dataclass(frozen=True)
class Catalogue:
    """The coupons, `none` first; one entry per coupon each, money in currency.

    The fields stand in the order of the columns of the query.
    """

    coupon_ids: tuple[str, ...]
    labels: tuple[str, ...]
    channels: tuple[str | None, ...]
    face_values: tuple[float, ...]
    contact_costs: tuple[float, ...]

    def index_of(self, coupon_ids: "pa.ChunkedArray") -> Integers:
        """(n,) position of every coupon id; ids that left the catalogue raise a KeyError."""
        position = {coupon_id: index for index, coupon_id in enumerate(self.coupon_ids)}
        encoded = coupon_ids.combine_chunks().dictionary_encode()
        known = np.array([position[name] for name in encoded.dictionary.to_pylist()], np.int64)
        positions: Integers = known[encoded.indices.to_numpy()]
        return positions

    def positions(self, allowed: Sequence[str]) -> list[int]:
        """`none` and the coupons that are allowed, in catalogue order; all if none is named."""
        unknown = sorted(set(allowed) - set(self.coupon_ids))
        if unknown:
            raise SettingsError(
                f"allowed_coupons: expected coupons of the catalogue ({', '.join(self.coupon_ids)})"
                f", came {first_rows(unknown)}"
            )
        kept = {self.coupon_ids[0], *(allowed or self.coupon_ids)}
        return [i for i, coupon_id in enumerate(self.coupon_ids) if coupon_id in kept]

    def take(self, positions: Sequence[int]) -> "Catalogue":
        """The catalogue of some of the coupons."""
        return Catalogue(*(tuple(column[i] for i in positions) for column in astuple(self)))


def read_catalogue(run: Run) -> Catalogue:
    """Read the action space."""
    rows = read_table(run.url, CATALOGUE, run.names)
    return Catalogue(*(tuple(column.to_pylist()) for column in rows.columns))


def read_schema(run: Run, catalogue: Catalogue) -> ProfitSchema:
    """Read the names behind the profit model's columns and ids."""
    categories = read_table(run.url, CATEGORIES, run.names)["category"].to_pylist()
    return ProfitSchema(
        PROFIT_FEATURES, tuple(categories), catalogue.coupon_ids, catalogue.face_values
    )


def read_training_data(run: Run, catalogue: Catalogue, fit: "SurvivalFit") -> ProfitData:
    """Read past decisions whose window is over, a random sample of at most max_training_rows."""
    settings = run.settings
    names = {**run.names, "decision_days": settings.decision_days, "seed": settings.seed}
    closed = read_table(run.url, COUNT_CLOSED, names)["closed"][0].as_py()
    names["sample"] = min(1.0, settings.max_training_rows / max(closed, 1))
    rows = read_table(run.url, TRAINING, names)
    return ProfitData(
        sequence=sequences(rows),
        features=features(rows),
        coupon=catalogue.index_of(rows["coupon_id"]),
        p_purchase=p_purchase(rows, fit, settings),
        day=rows["day"].to_numpy().astype(np.int64),
        purchased=rows["order_placed"].to_numpy(),
        margin=rows["order_profit"].to_numpy(),
        cost=rows["coupon_cost"].to_numpy(),
    )


def sequences(rows: "pa.Table") -> Integers:
    """(n, 30) category id per day, oldest first."""
    days = rows["category_sequence"].combine_chunks().flatten()
    by_customer: Integers = days.to_numpy(zero_copy_only=False).astype(np.int64)
    return by_customer.reshape(-1, SEQUENCE_DAYS)


def features(rows: "pa.Table") -> Floats:
    """(n, F) the profit model's features, NaN where unknown."""
    columns = [rows[name].to_numpy().astype(np.float64) for name in PROFIT_FEATURES]
    return np.column_stack(columns)


def p_purchase(rows: "pa.Table", fit: "SurvivalFit", settings: Settings) -> Floats:
    """(n,) P(at least one purchase in the window) from the history up to each snapshot.

    1 for everybody where BG/NBD is left out: then the profit model learns purchases alone.
    """
    from winback.models.survival import probability_of_purchase

    if not settings.use_survival:
        return np.ones(rows.num_rows)
    frequency, recency, age = _history(rows)
    return probability_of_purchase(fit, frequency, recency, age, settings.decision_days)


def state_columns(rows: "pa.Table", fit: "SurvivalFit", names: Sequence[str]) -> dict[str, Any]:
    """(n,) each: the state's features; P(alive) comes from the history up to each snapshot."""
    from winback.models.survival import probability_alive

    columns = {name: rows[name].to_numpy() for name in names if name != P_ALIVE}
    if P_ALIVE in names:
        columns[P_ALIVE] = probability_alive(fit, *_history(rows))
    return columns


def _history(rows: "pa.Table") -> tuple[Floats, Floats, Floats]:
    frequency, recency, age = (rows[name].to_numpy().astype(np.float64) for name in HISTORY)
    return frequency, recency, age
