"""What is expected of every known customer with every coupon, from all models of the run."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from winback.models.errors import NotFittedError
from winback.models.settings import LimitSetting
from winback.models.states import CATEGORY, StateSpace
from winback.operators.artifacts import OUTLOOK, PLAN, RESPONSE_STACK
from winback.operators.fit_response import (
    forecast_without_coupon,
    read_profit_model,
    read_response,
)
from winback.operators.run import Run
from winback.operators.snapshots import P_ALIVE, PROFIT_FEATURES
from winback.operators.warehouse import read_batches

if TYPE_CHECKING:
    import pyarrow as pa

    from winback.models.profit import ProfitModel
    from winback.models.response import Response, ResponseModel
    from winback.models.stacking import Stack

KNOWN_CUSTOMERS = """
select
    known.customer_id,
    known.can_contact,
    known.has_purchased,
    coalesce(known.last_coupon_on > {as_of}::date - {gap_days}, false)
    or coalesce(known.contacts_in_window >= {max_contacts}, false) as recent_contact,
    scores.p_alive,
    scores.p_purchase,
    snapshots.category_sequence,
    {columns}
from {schema}.customers_known as known
left join {schema}.customer_snapshots as snapshots
    on known.customer_id = snapshots.customer_id and snapshots.snapshot_date = {as_of}
left join {work}.customer_scores as scores
    on known.customer_id = scores.customer_id and scores.as_of = {as_of}
where known.as_of = {as_of}
order by known.customer_id
"""


@dataclass(frozen=True)
class Scored:
    """What decisions need of each known customer, (n,) or (n, A); no history any more."""

    customer_id: Any
    can_contact: Any
    has_purchased: Any
    recent_contact: Any
    in_limit: Any  # (n, L) counts in a limit of the settings
    p_alive: Any  # NaN without a purchase
    p_purchase: Any
    label: Any  # key of the state, None without a purchase
    situation: Any  # number of the planner's situation, −1 without a purchase
    margin: Any
    cost: Any
    future: Any
    support: Any  # logged decisions in a similar situation
    doubt: Any  # one standard error of the profit that a coupon adds


@dataclass(frozen=True)
class _Models:
    """The run's models; ``stack`` and ``profit`` are None where the profit model is left out."""

    response: "ResponseModel"
    stack: "Stack | None"
    profit: "ProfitModel | None"
    outlook: "pa.Table"
    cost_factor: float
    space: StateSpace


def score_customers(run: Run, offered: list[int]) -> Scored:
    """Forecast all customers known at ``as_of``, with the coupons ``offered`` (their positions).

    In batches: histories are large, what is kept of them is small.

    Raises:
        NotFittedError: a step before this one has not run.
    """
    models = _read_models(run)
    query, names = _customers_query(run)
    with read_batches(run.url, query, names, run.settings.batch_rows) as batches:
        parts = [astuple(_score(run, batch, models, offered)) for batch in batches]
    return Scored(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _read_models(run: Run) -> _Models:
    from pyarrow import parquet

    from winback.models.stacking import Stack

    stack = profit = None
    if run.settings.use_transformer:
        weights = run.artifacts.read_json(RESPONSE_STACK)
        stack = Stack(tuple(weights["purchase"]), tuple(weights["margin"]))
        profit = read_profit_model(run)
    return _Models(
        response=read_response(run),
        stack=stack,
        profit=profit,
        outlook=parquet.read_table(BytesIO(run.artifacts.read_bytes(OUTLOOK))),
        cost_factor=float(run.artifacts.read_json(PLAN)["cost_factor"]),
        space=StateSpace(run.settings.state_bins),
    )


def _score(run: Run, rows: "pa.Table", models: _Models, offered: list[int]) -> Scored:
    from winback.models.response import respond

    purchased = rows["has_purchased"].to_numpy()
    known = rows.filter(purchased)
    own = models.outlook.take(_places(models.outlook, known))
    belief, situation = _matrix(own["belief"]), own["situation"].to_numpy()
    alone = respond(models.response, belief, situation)
    seen = respond(models.response, belief, situation, *_better(run, known, models, alone))
    # The budget goes by the cost that was checked on the log: among many customers the cheapest
    # of two forecasts would be picked, and it is the one that errs.
    cost = alone.cost * np.append(1.0, np.full(alone.cost.shape[1] - 1, models.cost_factor))
    encoded = models.space.encode({name: known[name].to_numpy() for name in models.space.features})

    def spread(table: Any) -> Any:
        return _spread(table[:, offered], purchased, 0.0)

    return Scored(
        np.array(rows["customer_id"].to_pylist(), dtype=object),
        rows["can_contact"].to_numpy(),
        purchased,
        rows["recent_contact"].to_numpy(),
        _memberships(rows, run.settings.limits),
        rows["p_alive"].to_numpy(),
        rows["p_purchase"].to_numpy(),
        _spread(encoded.labels(), purchased, None),
        _spread(situation, purchased, -1),
        *map(
            spread,
            (seen.margin, cost, _matrix(own["future"]), _matrix(own["support"]), seen.doubt),
        ),
    )


def _better(run: Run, known: "pa.Table", models: _Models, alone: "Response") -> tuple[Any, Any]:
    """Log odds of a purchase and its margin without a coupon, from both models together."""
    if models.stack is None or models.profit is None:
        return None, None
    own = alone.purchase[:, 0]
    chance, margin = forecast_without_coupon(run, models.profit, known)
    own_margin = alone.margin[:, 0] / np.maximum(own, 1e-9)
    return models.stack.baseline(own, chance), models.stack.margins(own_margin, margin)


def _places(outlook: "pa.Table", known: "pa.Table") -> Any:
    """(n,) row of each customer in the outlook."""
    import pyarrow.compute as pc

    places = pc.index_in(known["customer_id"], value_set=outlook["customer_id"].combine_chunks())
    if places.null_count:
        raise NotFittedError(
            f"expected an outlook for each of {known.num_rows} customers, {places.null_count} have "
            "none. Run plan again, after dbt_features."
        )
    return places


def _matrix(column: "pa.ChunkedArray") -> Any:
    """(n, …) of a column of equally long lists."""
    lists = column.combine_chunks()
    width = lists.type.list_size
    return lists.flatten().to_numpy().reshape(-1, width)


def _memberships(rows: "pa.Table", limits: Sequence[LimitSetting]) -> Any:
    """(rows, limits) whether a customer counts; a feature that is not known is in no segment."""
    member = np.ones((rows.num_rows, len(limits)), dtype=bool)
    for column, limit in enumerate(limits):
        if limit.categories:
            member[:, column] = np.isin(rows[CATEGORY].to_numpy().astype(str), limit.categories)
        for feature, (low, high) in limit.segment.items():
            value = rows[feature].to_numpy().astype(np.float64)
            known = ~np.isnan(value)
            above = value >= (-np.inf if low is None else low)
            member[:, column] &= known & above & (value < (np.inf if high is None else high))
    return member


def _spread(values: Any, rows: Any, otherwise: Any) -> Any:
    """Values of some rows (mask, (n,)) among those of all, (n, …)."""
    full = np.full((len(rows), *values.shape[1:]), otherwise, dtype=values.dtype)
    full[rows] = values
    return full


def _customers_query(run: Run) -> tuple[str, dict[str, Any]]:
    from psycopg import sql

    stored = (name for name in run.settings.state_bins if name != P_ALIVE)  # p_alive is a score
    wanted = dict.fromkeys((*PROFIT_FEATURES, *stored, CATEGORY))
    columns = sql.SQL(", ").join(sql.Identifier("snapshots", name) for name in wanted)
    rules = {"gap_days": run.settings.gap_days, "max_contacts": run.settings.max_contacts}
    return KNOWN_CUSTOMERS, {**run.names, "columns": columns, **rules}
