"""Reading the log as a panel: customers' decisions in order, and the one at hand."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from winback.models.situations import Panel, situations
from winback.operators.run import Run
from winback.operators.snapshots import GRID_START, HISTORY, P_ALIVE, Catalogue
from winback.operators.warehouse import read_table

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

# Whom the models of the run learn from: all, or as many as the setting says, drawn by hash.
LEARNED_FROM = """
select customer_id
from {schema}.customers_known
where as_of = {as_of} and has_purchased
order by hashtextextended(customer_id, {seed}), customer_id
limit {customers}
"""
# Off the grid, the decision at hand follows no window: its period is one too many.
DECISIONS = """
select
    customer_id,
    ((snapshot_date - {grid_start}) / {decision_days})::bigint as period,
    true as is_closed,
    days_since_last_purchase,
    coupon_id,
    propensity,
    is_own,
    order_placed,
    order_profit,
    coupon_cost,
    {columns}
from {schema}.closed_windows
where snapshot_date <= {as_of}::date - {decision_days} and {among}
union all
select
    customer_id,
    ((snapshot_date - {grid_start} + case when is_on_grid then 0 else {decision_days} end)
        / {decision_days})::bigint,
    false,
    days_since_last_purchase,
    'none',
    null,
    false,
    false,
    0,
    0,
    {columns}
from {schema}.customer_snapshots
where snapshot_date = {as_of} and {among}
"""


@dataclass(frozen=True)
class PanelRows:
    """A panel with the names of its customers, and the table that it was read from.

    ``rows`` is in the panel's order; ``customer_id`` is (n,); ``at_hand`` (n',) are the rows of
    the decision date.
    """

    panel: Panel
    customer_id: Any
    rows: "pa.Table"
    at_hand: Any


def read_panel(
    run: Run, catalogue: Catalogue, columns: Sequence[str] = (), *, among: Any = None
) -> PanelRows:
    """Read some customers' closed decisions and the one at hand.

    Args:
        run: the run.
        catalogue: the coupons.
        columns: further columns of the snapshots, for ``rows``.
        among: condition on ``customer_id``; that models learn from the customer if not given.
    """
    from psycopg import sql

    days = run.settings.decision_days
    wanted = dict.fromkeys((*HISTORY, "coupons_received", *(c for c in columns if c != P_ALIVE)))
    wanted.pop("days_since_last_purchase", None)
    names = {
        **run.names,
        "decision_days": days,
        "grid_start": GRID_START,
        "columns": sql.SQL(", ").join(map(sql.Identifier, wanted)),
        "among": sql.SQL("customer_id in ({})").format(learned_from(run))
        if among is None
        else among,
    }
    started = time.perf_counter()
    rows = read_table(run.url, DECISIONS, names).combine_chunks()
    rate = rows.num_rows / (time.perf_counter() - started)
    logger.info("log: %d decisions read, %.0f per second", rows.num_rows, rate)
    encoded = rows["customer_id"].combine_chunks().dictionary_encode()
    ids = np.array(encoded.dictionary.to_pylist(), dtype=object)
    rank = np.empty(len(ids), np.int64)
    rank[np.argsort(ids)] = np.arange(len(ids))
    customer = rank[encoded.indices.to_numpy()]
    order = np.lexsort((rows["period"].to_numpy(), customer))
    rows = rows.take(order)
    first = np.append(0, np.cumsum(np.bincount(customer, minlength=len(ids)))).astype(np.int64)
    closed = rows["is_closed"].to_numpy()
    return PanelRows(
        panel=_panel(rows, first, closed, catalogue, days),
        customer_id=np.sort(ids),
        rows=rows,
        at_hand=np.flatnonzero(~closed),
    )


def learned_from(run: Run) -> Any:
    """The query of the customers that models learn from."""
    from psycopg import sql

    settings = run.settings
    return sql.SQL(LEARNED_FROM).format(
        schema=run.names["schema"],
        as_of=sql.Literal(run.as_of),
        seed=sql.Literal(settings.seed),
        customers=sql.Literal(settings.max_response_customers),
    )


def _panel(rows: "pa.Table", first: Any, closed: Any, catalogue: Catalogue, days: int) -> Panel:
    recency = np.maximum(rows["days_since_last_purchase"].to_numpy() - 1, 0) // days
    purchase_days = rows["frequency"].to_numpy().astype(np.int64) + 1
    coupons = rows["coupons_received"].to_numpy().astype(np.int64)
    return Panel(
        first=first,
        period=rows["period"].to_numpy(),
        situation=situations(first, recency, purchase_days, coupons),
        coupon=catalogue.index_of(rows["coupon_id"]),
        purchased=rows["order_placed"].to_numpy(),
        margin=rows["order_profit"].to_numpy(),
        cost=rows["coupon_cost"].to_numpy(),
        propensity=rows["propensity"].to_numpy(zero_copy_only=False).astype(np.float64),
        own=rows["is_own"].to_numpy(),
        closed=closed,
    )
