"""Step: what is expected of every customer with every coupon, part by part of the customers."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from airflow.sdk import Context

from winback.models.errors import NotFittedError
from winback.models.settings import LimitSetting
from winback.models.states import CATEGORY, StateSpace
from winback.operators.artifacts import PLAN, PLAN_TABLES, RESPONSE_STACK, SCORES
from winback.operators.base import WinbackOperator
from winback.operators.fit_response import (
    forecast_without_coupon,
    read_profit_model,
    read_response,
)
from winback.operators.panel import read_panel
from winback.operators.progress import report
from winback.operators.run import Run
from winback.operators.snapshots import P_ALIVE, PROFIT_FEATURES, Catalogue, read_catalogue
from winback.operators.warehouse import read_table

if TYPE_CHECKING:
    import pyarrow as pa

    from winback.models.profit import ProfitModel
    from winback.models.response import Response, ResponseModel
    from winback.models.stacking import Stack

logger = logging.getLogger(__name__)

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
where known.as_of = {as_of} and {shard}
order by known.customer_id
"""
# Drawn by hash: about as many customers in each shard, and each always in the same one.
SHARD = "(hashtext({customer}) & 2147483647) % {shards} = {shard}"
COUNT = "select count(*) from {schema}.customers_known where as_of = {as_of}"


BY_COUPON = ("margin", "cost", "future", "support", "doubt")


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

    catalogue: Catalogue
    response: "ResponseModel"
    stack: "Stack | None"
    profit: "ProfitModel | None"
    tables: Mapping[str, Any]  # of the plan, by class and situation
    cost_factors: Any  # (A,)
    space: StateSpace


class ListShardsOperator(WinbackOperator):
    """The parts that customers are scored in, one mapping each."""

    def execute(self, context: Context) -> list[dict[str, int]]:
        return list_shards(self.current_run())


class ScoreCustomersOperator(WinbackOperator):
    """Score one part of the customers; what is expected of them becomes an artifact.

    Args:
        shard: number of the part.
        shards: how many there are.
    """

    def __init__(self, *, shard: int = 0, shards: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shard = shard
        self.shards = shards

    def execute(self, context: Context) -> int:
        return score_shard(self.current_run(), self.shard, self.shards)


def list_shards(run: Run) -> list[dict[str, int]]:
    """The parts of the customers known at ``as_of``, at least one."""
    customers = read_table(run.url, COUNT, run.names).column(0)[0].as_py()
    shards = max(1, -(-customers // run.settings.shard_customers))
    return [{"shard": shard, "shards": shards} for shard in range(shards)]


def score_shard(run: Run, shard: int, shards: int) -> int:
    """Forecast a part of the customers with every coupon; return how many they are.

    Raises:
        NotFittedError: a step before this one has not run.
    """
    started = time.perf_counter()
    scored = _score(run, _read_models(run), partial(_is_in_shard, shard, shards))
    table = _to_table(scored)
    run.artifacts.write_table(SCORES.format(shard=shard, shards=shards), table)
    rate = table.num_rows / (time.perf_counter() - started)
    done = (shard + 1, shards, table.num_rows, rate)
    logger.info("part %d of %d: %d customers scored, %.0f per second", *done)
    report("scored", **dict(zip(("part", "parts", "customers", "rate"), done, strict=True)))
    return int(table.num_rows)


def read_scored(run: Run, offered: list[int]) -> Scored:
    """What all parts hold, by customer id, with the coupons ``offered`` (their positions).

    Raises:
        NotFittedError: a part has not been scored.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    files = [run.artifacts.read_bytes(SCORES.format(**part)) for part in list_shards(run)]
    order = pc.sort_indices(_column(files, "customer_id")).to_numpy()
    columns = {"in_limit": np.zeros((len(order), 0), np.bool_)}
    for name in _names(files):  # one by one: all of them at once would be held three times
        columns[name] = _from_column(_column(files, name))[order]
        if name in BY_COUPON:
            columns[name] = columns[name][:, offered]
        pa.default_memory_pool().release_unused()
    return Scored(**columns)


def _names(files: Sequence[bytes]) -> list[str]:
    import pyarrow as pa
    from pyarrow import parquet

    return list(parquet.read_schema(pa.BufferReader(files[0])).names)


def _column(files: Sequence[bytes], name: str) -> "pa.ChunkedArray":
    """A column of all parts, in their order."""
    import pyarrow as pa
    from pyarrow import parquet

    parts = [parquet.read_table(pa.BufferReader(file), columns=[name]) for file in files]
    # a shard without buyers has no text in some columns, and so no type for them
    return pa.concat_tables(parts, promote_options="permissive").column(0)


def _to_table(scored: Scored) -> "pa.Table":
    """One row per customer; what goes by coupon or limit as lists."""
    import pyarrow as pa

    columns = {}
    for name, values in vars(scored).items():
        if values.ndim == 2 and values.shape[1] == 0:
            continue  # no limits: Parquet knows no lists of nothing
        if values.ndim == 2:
            flat = pa.array(np.ascontiguousarray(values).ravel())
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        else:
            columns[name] = pa.array(values)
    return pa.table(columns)


def _from_column(column: "pa.ChunkedArray") -> Any:
    """(n,) or (n, …) values; texts as objects, None where missing, one object for equal ones."""
    import pyarrow as pa

    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # of no rows
        values = pa.concat_arrays(values.chunks)
    if pa.types.is_fixed_size_list(values.type):
        width = values.type.list_size
        return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), width)
    if pa.types.is_string(values.type):
        encoded = values.dictionary_encode()
        words = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
        return words[encoded.indices.fill_null(len(words) - 1).to_numpy()]
    return values.to_numpy(zero_copy_only=False)


def _read_models(run: Run) -> _Models:
    from winback.models.stacking import Stack

    stack = profit = None
    if run.settings.use_transformer:
        weights = run.artifacts.read_json(RESPONSE_STACK)
        stack = Stack(tuple(weights["purchase"]), tuple(weights["margin"]))
        profit = read_profit_model(run)
    return _Models(
        catalogue=read_catalogue(run),
        response=read_response(run),
        stack=stack,
        profit=profit,
        tables=run.artifacts.read_arrays(PLAN_TABLES),
        cost_factors=np.array(run.artifacts.read_json(PLAN)["cost_factors"]),
        space=StateSpace(run.settings.state_bins),
    )


def _score(run: Run, models: _Models, members: Callable[..., Any]) -> Scored:
    from winback.models.mixture import over_classes
    from winback.models.response import agreeing, respond

    rows = read_table(run.url, *_customers_query(run, members("known")))
    purchased = rows["has_purchased"].to_numpy()
    known = rows.filter(purchased)
    belief, situation = _stand(run, models, known, members)
    alone = respond(models.response, belief, situation)
    chance, margin = _better(run, known, models, alone)
    if chance is not None:
        belief = agreeing(models.response, belief, situation, chance)
    seen = respond(models.response, belief, situation, margin)
    # The dearer of two forecasts: the plan picks who is worth much by both together, so whom one
    # of them finds cheap is picked for its error.
    dearer = np.maximum(alone.cost, seen.cost)
    cost = dearer * models.cost_factors
    future = over_classes(models.tables["future"], belief, situation)
    support = models.tables["support"][situation]
    encoded = models.space.encode({name: known[name].to_numpy() for name in models.space.features})

    def spread(table: Any) -> Any:
        return _spread(table, purchased, 0.0)

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
        *map(spread, (seen.margin, cost, future, support, seen.doubt)),
    )


def _stand(
    run: Run, models: _Models, known: "pa.Table", members: Callable[..., Any]
) -> tuple[Any, Any]:
    """(n, K) beliefs and (n,) situations of the customers, from their histories."""
    from winback.models.response_fit import beliefs_now

    read = read_panel(run, models.catalogue, among=members())
    ids = np.array(known["customer_id"].to_pylist(), dtype=object)
    if not (
        np.array_equal(read.customer_id, np.sort(ids))
        and np.array_equal(read.at_hand, read.panel.first[1:] - 1)
    ):
        raise NotFittedError(
            f"expected a snapshot of the day for each of {len(ids)} customers, came "
            f"{len(read.at_hand)}. Run dbt_features again."
        )
    place = np.searchsorted(read.customer_id, ids)
    belief = beliefs_now(models.response, read.panel)
    return belief[place], read.panel.situation[read.at_hand[place]]


def _better(run: Run, known: "pa.Table", models: _Models, alone: "Response") -> tuple[Any, Any]:
    """Chance of a purchase and its margin without a coupon, from both models together."""
    if models.stack is None or models.profit is None:
        return None, None
    own = alone.purchase[:, 0]
    chance, margin = forecast_without_coupon(run, models.profit, known)
    own_margin = alone.margin[:, 0] / np.maximum(own, 1e-9)
    return models.stack.chance(own, chance), models.stack.margins(own_margin, margin)


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


def _is_in_shard(shard: int, shards: int, *table: str) -> Any:
    """The condition that a row of the table is of a customer of the shard."""
    from psycopg import sql

    numbers = {"shard": sql.Literal(shard), "shards": sql.Literal(shards)}
    return sql.SQL(SHARD).format(customer=sql.Identifier(*table, "customer_id"), **numbers)


def _customers_query(run: Run, members: Any) -> tuple[str, dict[str, Any]]:
    from psycopg import sql

    stored = (name for name in run.settings.state_bins if name != P_ALIVE)  # p_alive is a score
    wanted = dict.fromkeys((*PROFIT_FEATURES, *stored, CATEGORY))
    columns = sql.SQL(", ").join(sql.Identifier("snapshots", name) for name in wanted)
    rules = {"gap_days": run.settings.gap_days, "max_contacts": run.settings.max_contacts}
    return KNOWN_CUSTOMERS, {**run.names, "columns": columns, "shard": members, **rules}
