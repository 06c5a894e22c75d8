"""Step: forecast every customer with every coupon, and decide within the budget."""

from dataclasses import asdict, astuple, dataclass
from datetime import date, datetime, timedelta, timezone
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
from airflow.sdk import Context

from winback import __version__
from winback.models.decision import Customers, Decisions, Experiment, Outlook, decide, summarise
from winback.models.errors import NotFittedError
from winback.models.reasons import describe_run, explain
from winback.models.settings import Settings
from winback.models.states import CATEGORY, StateSpace
from winback.operators.artifacts import PROFIT_MODEL, PROFIT_WEIGHTS
from winback.operators.base import WinbackOperator
from winback.operators.budget import run_budget
from winback.operators.run import Run
from winback.operators.snapshots import (
    P_ALIVE,
    PROFIT_FEATURES,
    Catalogue,
    features,
    read_catalogue,
    sequences,
)
from winback.operators.warehouse import read_batches, read_table, write_work

if TYPE_CHECKING:
    import pyarrow as pa

    from winback.models.profit import ProfitModel

KNOWN_CUSTOMERS = """
select
    known.customer_id,
    known.can_contact,
    known.has_purchased,
    coalesce(known.last_coupon_on > {as_of}::date - {gap_days}, false) as recent_contact,
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
PLAN = """
select state, coupon_id, support, future_value, is_supported
from {work}.q_table
where as_of = {as_of} and coupon_id = any({coupons})
order by state, array_position({coupons}, coupon_id)
"""

DECIDED_NUMBERS = (
    *("is_exploration", "propensity", "expected_profit", "baseline_profit", "expected_uplift"),
    *("expected_cost", "q_value", "long_run_uplift"),
)


class AllocateCouponsOperator(WinbackOperator):
    """Write one decision per known customer to the work schema."""

    def execute(self, context: Context) -> dict[str, Any]:
        return allocate(self.current_run())


@dataclass(frozen=True)
class Plan:
    """What decisions need of the Q-table: (S, A) arrays, and the row of every state key."""

    row_of: dict[str, int]
    support: Any
    future_value: Any
    is_supported: Any


@dataclass(frozen=True)
class Scored:
    """What decisions need of each known customer, (n,) or (n, A); no history any more."""

    customer_id: Any
    can_contact: Any
    has_purchased: Any
    recent_contact: Any
    p_alive: Any  # NaN without a purchase
    p_purchase: Any
    label: Any  # key of the state, None without a purchase
    state: Any  # its row in the plan, 0 without a purchase
    margin: Any
    cost: Any


def allocate(run: Run) -> dict[str, Any]:
    """Decide for every customer known at ``as_of``.

    Returns:
        The allocation's figures and certificate, for the run's metrics.

    Raises:
        DataError: the budget is not settled, or an input is missing.
        NotFittedError: the profit model has not been trained in this run.
        SettingsError: ``allowed_coupons`` names a coupon that the catalogue lacks.
    """
    full, settings = read_catalogue(run), run.settings
    offered = full.positions(settings.allowed_coupons)
    catalogue = full.take(offered)
    budget = run_budget(run)
    plan = _read_plan(run, catalogue)
    scored = _score_customers(run, offered, plan)
    decisions = decide(
        Customers(
            scored.customer_id, scored.can_contact, scored.has_purchased, scored.recent_contact
        ),
        _outlook(scored, catalogue, plan),
        _experiment(settings),
        budget.amount,
        date.fromisoformat(run.as_of),
    )
    reasons = _reasons(run, scored, decisions, plan, catalogue)
    _write_recommendations(run, scored, catalogue, decisions, reasons)
    summary = summarise(decisions, catalogue.coupon_ids)
    in_words = describe_run(summary, settings.currency)
    return {**asdict(summary), "budget_source": budget.source, "in_words": in_words}


def _score_customers(run: Run, offered: list[int], plan: Plan) -> Scored:
    """Forecast in batches: histories are large, what is kept of them is small."""
    model, space = _read_model(run), StateSpace(run.settings.state_bins)
    query, names = _customers_query(run)
    with read_batches(run.url, query, names, run.settings.batch_rows) as batches:
        parts = [astuple(_score(batch, model, space, offered, plan)) for batch in batches]
    return Scored(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _score(
    rows: "pa.Table", model: "ProfitModel", space: StateSpace, offered: list[int], plan: Plan
) -> Scored:
    purchased = rows["has_purchased"].to_numpy()
    known = rows.filter(purchased)
    seen = model.forecast(sequences(known), features(known), known["p_purchase"].to_numpy())
    encoded = space.encode({name: known[name].to_numpy() for name in space.features})
    state = np.array([plan.row_of[key] for key in encoded.keys], np.int64)[encoded.codes]
    return Scored(
        np.array(rows["customer_id"].to_pylist(), dtype=object),
        rows["can_contact"].to_numpy(),
        purchased,
        rows["recent_contact"].to_numpy(),
        rows["p_alive"].to_numpy(),
        rows["p_purchase"].to_numpy(),
        _spread(encoded.labels(), purchased, None),
        _spread(state, purchased, 0),
        _spread(seen.margin[:, offered], purchased, 0.0),
        _spread(seen.cost[:, offered], purchased, 0.0),
    )


def _spread(values: Any, rows: Any, otherwise: Any) -> Any:
    """Values of some rows (mask, (n,)) among those of all, (n, …)."""
    full = np.full((len(rows), *values.shape[1:]), otherwise, dtype=values.dtype)
    full[rows] = values
    return full


def _read_model(run: Run) -> "ProfitModel":
    from winback.models.profit import ProfitModel

    return ProfitModel.from_parts(
        run.artifacts.read_tensors(PROFIT_WEIGHTS), run.artifacts.read_json(PROFIT_MODEL)
    )


def _customers_query(run: Run) -> tuple[str, dict[str, Any]]:
    from psycopg import sql

    stored = (name for name in run.settings.state_bins if name != P_ALIVE)  # p_alive is a score
    wanted = dict.fromkeys((*PROFIT_FEATURES, *stored, CATEGORY))
    columns = sql.SQL(", ").join(sql.Identifier("snapshots", name) for name in wanted)
    return KNOWN_CUSTOMERS, {**run.names, "columns": columns, "gap_days": run.settings.gap_days}


def _experiment(settings: Settings) -> Experiment:
    return Experiment(
        salt=settings.holdout_salt,
        holdout_share=settings.holdout_share,
        exploration_rate=settings.exploration_rate,
        propensity_floor=settings.propensity_floor,
        exploration_budget_share=settings.exploration_budget_share,
    )


def _read_plan(run: Run, catalogue: Catalogue) -> Plan:
    rows = read_table(run.url, PLAN, {**run.names, "coupons": list(catalogue.coupon_ids)})
    if rows.num_rows == 0:
        raise NotFittedError(f"expected a plan for {run.as_of}, found none. Run plan first.")
    shape = (-1, len(catalogue.coupon_ids))
    columns = (rows[name].to_numpy() for name in ("support", "future_value", "is_supported"))
    keys = rows["state"].to_pylist()[:: len(catalogue.coupon_ids)]
    return Plan({key: i for i, key in enumerate(keys)}, *(c.reshape(shape) for c in columns))


def _outlook(scored: Scored, catalogue: Catalogue, plan: Plan) -> Outlook:
    return Outlook(
        margin=scored.margin,
        cost=scored.cost,
        contact_cost=np.array(catalogue.contact_costs),
        future_value=plan.future_value[scored.state],
        is_supported=plan.is_supported[scored.state],
    )


def _reasons(
    run: Run, scored: Scored, decisions: Decisions, plan: Plan, catalogue: Catalogue
) -> Any:
    space = StateSpace(run.settings.state_bins)
    words = {key: space.describe(key) for key in set(scored.label) if key is not None}
    return explain(
        decisions,
        catalogue.labels,
        plan.support[scored.state, decisions.coupon],
        [words.get(key, "") for key in scored.label],
        decision_days=run.settings.decision_days,
        gap_days=run.settings.gap_days,
        currency=run.settings.currency,
    )


def _write_recommendations(
    run: Run, scored: Scored, catalogue: Catalogue, decisions: Decisions, reasons: Any
) -> None:
    constant = _constant_columns(run)
    size = run.settings.batch_rows
    batches = (slice(start, start + size) for start in range(0, len(scored.customer_id), size))
    parts = (
        _recommendations(scored, catalogue, decisions, reasons, rows, constant) for rows in batches
    )
    write_work(run, "recommendations", parts)


def _constant_columns(run: Run) -> dict[str, Any]:
    import pyarrow as pa

    valid_from = date.fromisoformat(run.as_of)
    weights = run.artifacts.read_bytes(PROFIT_WEIGHTS)
    return {
        "as_of": pa.scalar(valid_from),
        "run_id": pa.scalar(run.run_id),
        "valid_from": pa.scalar(valid_from),
        "valid_to": pa.scalar(valid_from + timedelta(days=run.settings.decision_days)),
        "model_version": pa.scalar(sha256(weights).hexdigest()[:12]),  # equal weights, equal name
        "config_hash": pa.scalar(run.settings.config_hash),
        "code_version": pa.scalar(__version__),
        "created_at": pa.scalar(datetime.now(timezone.utc)),
    }


def _recommendations(
    scored: Scored,
    catalogue: Catalogue,
    decisions: Decisions,
    reasons: Any,
    rows: slice,
    constant: dict[str, Any],
) -> "pa.Table":
    import pyarrow as pa

    coupon = decisions.coupon[rows]
    texts = {
        "customer_id": scored.customer_id[rows],
        "decision_id": decisions.decision_id[rows],
        "coupon_id": [catalogue.coupon_ids[index] for index in coupon],
        "channel": [catalogue.channels[index] for index in coupon],
        "treatment_group": decisions.treatment_group[rows],
        "state": scored.label[rows],
        "reason": reasons[rows],
        "suppression_reason": decisions.suppression_reason[rows],
    }
    return pa.table(
        {
            **{name: pa.repeat(value, len(coupon)) for name, value in constant.items()},
            **{name: pa.array(values, pa.string()) for name, values in texts.items()},
            **{name: pa.array(getattr(decisions, name)[rows]) for name in DECIDED_NUMBERS},
            "p_alive": pa.array(scored.p_alive[rows], from_pandas=True),  # NaN becomes null
            "p_purchase": pa.array(scored.p_purchase[rows], from_pandas=True),
        }
    )
