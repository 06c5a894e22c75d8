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
from winback.models.profit_data import Forecast
from winback.models.reasons import describe_run, explain
from winback.models.settings import Settings
from winback.models.states import CATEGORY, StateSpace
from winback.operators.artifacts import PROFIT_MODEL, PROFIT_WEIGHTS
from winback.operators.base import WinbackOperator
from winback.operators.budget import run_budget
from winback.operators.run import Run
from winback.operators.snapshots import (
    PROFIT_FEATURES,
    Catalogue,
    features,
    read_catalogue,
    sequences,
)
from winback.operators.warehouse import clear_work, read_table, write_table

if TYPE_CHECKING:
    import pyarrow as pa

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
select state, coupon_id, visits, future_value, is_supported
from {work}.q_table
where as_of = {as_of} and coupon_id = any({coupons})
order by state, array_position({coupons}, coupon_id)
"""


class AllocateCouponsOperator(WinbackOperator):
    """Write one decision per known customer to the work schema."""

    def execute(self, context: Context) -> dict[str, Any]:
        return allocate(self.current_run())


@dataclass(frozen=True)
class Plan:
    """What decisions need of the Q-table: (S, A) arrays, and the row of every state key."""

    row_of: dict[str, int]
    visits: Any
    future_value: Any
    is_supported: Any


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
    rows = read_table(run.url, *_customers_query(run))
    plan = _read_plan(run, catalogue)
    labels, state = _states(rows, StateSpace(settings.state_bins), plan)
    outlook = _outlook(_forecast(run, rows), offered, catalogue, plan, state)
    as_of = date.fromisoformat(run.as_of)
    decisions = decide(_customers(rows), outlook, _experiment(settings), budget.amount, as_of)
    reasons = explain(
        decisions,
        catalogue.labels,
        plan.visits[state, decisions.coupon],
        _situations(labels, StateSpace(settings.state_bins)),
        decision_days=settings.decision_days,
        gap_days=settings.gap_days,
    )
    clear_work(run, "recommendations")
    table = _recommendations(run, rows, catalogue, decisions, labels, reasons)
    write_table(run.url, settings.work_schema, "recommendations", table)
    summary = summarise(decisions, catalogue.coupon_ids)
    return {**asdict(summary), "budget_source": budget.source, "in_words": describe_run(summary)}


def _customers_query(run: Run) -> tuple[str, dict[str, Any]]:
    from psycopg import sql

    wanted = dict.fromkeys((*PROFIT_FEATURES, *run.settings.state_bins, CATEGORY))
    columns = sql.SQL(", ").join(sql.Identifier("snapshots", name) for name in wanted)
    return KNOWN_CUSTOMERS, {**run.names, "columns": columns, "gap_days": run.settings.gap_days}


def _customers(rows: "pa.Table") -> Customers:
    flags = ("can_contact", "has_purchased", "recent_contact")
    ids = np.array(rows["customer_id"].to_pylist(), dtype=object)
    return Customers(ids, *(rows[name].to_numpy() for name in flags))


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
    columns = (rows[name].to_numpy() for name in ("visits", "future_value", "is_supported"))
    keys = rows["state"].to_pylist()[:: len(catalogue.coupon_ids)]
    return Plan({key: i for i, key in enumerate(keys)}, *(c.reshape(shape) for c in columns))


def _states(rows: "pa.Table", space: StateSpace, plan: Plan) -> tuple[Any, Any]:
    """Key of every customer's state, None without a purchase, and its row in the plan (else 0)."""
    purchased = rows["has_purchased"].to_numpy()
    known = rows.filter(purchased)
    encoded = space.encode({name: known[name].to_numpy() for name in space.features})
    labels = np.full(rows.num_rows, None, dtype=object)
    labels[purchased] = encoded.labels()
    state = np.zeros(rows.num_rows, dtype=np.int64)
    state[purchased] = np.array([plan.row_of[key] for key in encoded.keys], np.int64)[encoded.codes]
    return labels, state


def _situations(labels: Any, space: StateSpace) -> Any:
    words = {key: space.describe(key) for key in set(labels) if key is not None}
    return np.array([words.get(key, "") for key in labels], dtype=object)


def _forecast(run: Run, rows: "pa.Table") -> Forecast:
    """Forecast customers with a purchase; zeros for the others."""
    from winback.models.profit import ProfitModel

    model = ProfitModel.from_parts(
        run.artifacts.read_tensors(PROFIT_WEIGHTS), run.artifacts.read_json(PROFIT_MODEL)
    )
    purchased = rows["has_purchased"].to_numpy()
    known = rows.filter(purchased)
    seen = model.forecast(sequences(known), features(known), known["p_purchase"].to_numpy())
    return Forecast(*(_spread(values, purchased) for values in astuple(seen)))


def _spread(values: Any, rows: Any) -> Any:
    full = np.zeros((len(rows), values.shape[1]))
    full[rows] = values
    return full


def _outlook(
    forecast: Forecast, offered: list[int], catalogue: Catalogue, plan: Plan, state: Any
) -> Outlook:
    return Outlook(
        margin=forecast.margin[:, offered],
        cost=forecast.cost[:, offered],
        contact_cost=np.array(catalogue.contact_costs),
        future_value=plan.future_value[state],
        is_supported=plan.is_supported[state],
    )


def _recommendations(
    run: Run, rows: "pa.Table", catalogue: Catalogue, decisions: Decisions, labels: Any, reasons: Any
) -> "pa.Table":
    import pyarrow as pa

    valid_from, count = date.fromisoformat(run.as_of), rows.num_rows
    chosen = ("treatment_group", "is_exploration", "propensity", "expected_profit")
    money = ("baseline_profit", "expected_uplift", "expected_cost", "q_value", "long_run_uplift")
    constant = {
        "as_of": pa.scalar(valid_from),
        "run_id": pa.scalar(run.run_id),
        "valid_from": pa.scalar(valid_from),
        "valid_to": pa.scalar(valid_from + timedelta(days=run.settings.decision_days)),
        "model_version": pa.scalar(_model_version(run)),
        "config_hash": pa.scalar(run.settings.config_hash),
        "code_version": pa.scalar(__version__),
        "created_at": pa.scalar(datetime.now(timezone.utc)),
    }
    return pa.table(
        {
            **{name: pa.repeat(value, count) for name, value in constant.items()},
            "customer_id": rows["customer_id"],
            "decision_id": pa.array(decisions.decision_id, pa.string()),
            "coupon_id": pa.array([catalogue.coupon_ids[i] for i in decisions.coupon], pa.string()),
            "channel": pa.array([catalogue.channels[i] for i in decisions.coupon], pa.string()),
            **{name: pa.array(getattr(decisions, name)) for name in (*chosen, *money)},
            "p_alive": rows["p_alive"],
            "p_purchase": rows["p_purchase"],
            "state": pa.array(labels, pa.string()),
            "reason": pa.array(reasons, pa.string()),
            "suppression_reason": pa.array(decisions.suppression_reason, pa.string()),
        }
    )


def _model_version(run: Run) -> str:
    """Equal weights have equal versions, whichever run made them."""
    return sha256(run.artifacts.read_bytes(PROFIT_WEIGHTS)).hexdigest()[:12]
