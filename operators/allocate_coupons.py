"""Step: decide within the budget, from what is expected of every customer."""

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date, datetime, timedelta, timezone
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
from airflow.sdk import Context

from winback import __version__
from winback.models.errors import SettingsError, first_rows
from winback.models.settings import LimitSetting, Settings
from winback.models.situations import in_words
from winback.operators.artifacts import PLAN, RESPONSE_MODEL
from winback.operators.base import WinbackOperator
from winback.operators.budget import run_budget
from winback.operators.run import Run
from winback.operators.score_customers import Scored, read_scored
from winback.operators.snapshots import Catalogue, read_catalogue
from winback.operators.warehouse import write_work

if TYPE_CHECKING:
    import pyarrow as pa

    from winback.models.decision import Decisions
    from winback.models.decision_inputs import Experiment, Outlook
    from winback.models.limits import Limit

DECIDED_NUMBERS = (
    *("is_exploration", "propensity", "expected_profit", "baseline_profit", "expected_uplift"),
    *("expected_cost", "q_value", "long_run_uplift", "net_value"),
)


class AllocateCouponsOperator(WinbackOperator):
    """Write one decision per known customer to the work schema."""

    def execute(self, context: Context) -> dict[str, Any]:
        return allocate(self.current_run())


def allocate(run: Run) -> dict[str, Any]:
    """Decide for every customer known at ``as_of``.

    Returns:
        The allocation's figures and certificate, for the run's metrics.

    Raises:
        DataError: the budget is not settled, or an input is missing.
        NotFittedError: customers have not been scored in this run.
        SettingsError: ``allowed_coupons`` names a coupon that the catalogue lacks.
    """
    from winback.models.decision import decide, summarise
    from winback.models.decision_inputs import Customers
    from winback.models.reasons import describe_run

    full, settings = read_catalogue(run), run.settings
    offered = full.positions(settings.allowed_coupons)
    catalogue = full.take(offered)
    budget = run_budget(run)
    plan = run.artifacts.read_json(PLAN)
    # What coupons cost is known to a few percent only: the budget has to hold at the worse end.
    spendable = float(plan["spendable"])
    scored = read_scored(run, offered)
    limits = _limits(settings, scored, catalogue)
    # given away, so that decide() may let go of the tables: there is one row per customer
    outlook = [_outlook(scored, catalogue, settings, is_proven=plan["lift"]["is_proven"])]
    scored = replace(scored, margin=None, future=None, doubt=None)
    decisions = decide(
        Customers(
            scored.customer_id, scored.can_contact, scored.has_purchased, scored.recent_contact
        ),
        outlook.pop(),
        _experiment(settings),
        budget.amount * spendable,
        date.fromisoformat(run.as_of),
        limits,
    )
    _write_recommendations(run, scored, catalogue, decisions)
    summary = replace(summarise(decisions, catalogue.coupon_ids), budget=budget.amount)
    in_words = describe_run(summary, settings.currency)
    figures = {"budget_source": budget.source, "spendable": spendable, "in_words": in_words}
    charged = np.where(np.arange(scored.cost.shape[1]) > 0, scored.cost, 0.0)
    used = {one.name: one.used(decisions.coupon, charged) for one in limits}
    return {**asdict(summary), **figures, "limits_used": used}


def _limits(settings: Settings, scored: Scored, catalogue: Catalogue) -> "list[Limit]":
    """The settings' limits on these customers and coupons."""
    from winback.models.limits import Limit

    return [
        Limit(
            limit.name,
            scored.in_limit[:, column],
            _counted(limit, catalogue),
            limit.unit,
            limit.floor,
            np.inf if limit.ceiling is None else limit.ceiling,
        )
        for column, limit in enumerate(settings.limits)
    ]


def _counted(limit: LimitSetting, catalogue: Catalogue) -> Any:
    """(A,) the coupons that count in a limit."""
    offered = catalogue.coupon_ids
    unknown = sorted(set(limit.coupons) - set(offered[1:]))
    if unknown:
        raise SettingsError(
            f"limits: expected coupons that may be given ({', '.join(offered[1:])}) in "
            f"{limit.name}, came {first_rows(unknown)}"
        )
    return np.array([coupon_id in (limit.coupons or offered) for coupon_id in offered])


def _experiment(settings: Settings) -> "Experiment":
    from winback.models.decision_inputs import Experiment

    return Experiment(
        salt=settings.holdout_salt,
        holdout_share=settings.holdout_share,
        exploration_rate=settings.exploration_rate,
        propensity_floor=settings.propensity_floor,
        exploration_budget_share=settings.exploration_budget_share,
    )


def _outlook(
    scored: Scored, catalogue: Catalogue, settings: Settings, *, is_proven: bool
) -> "Outlook":
    from winback.models.decision_inputs import Outlook

    supported = scored.support >= max(settings.min_visits, 1)
    supported[:, 0] = True
    return Outlook(
        margin=scored.margin,
        cost=scored.cost,
        contact_cost=np.array(catalogue.contact_costs),
        future_value=scored.future,
        is_supported=supported,
        doubt=settings.pessimism * scored.doubt,
        is_proven=is_proven,
    )


def _write_recommendations(
    run: Run, scored: Scored, catalogue: Catalogue, decisions: "Decisions"
) -> None:
    constant, situation = _constant_columns(run), _situations(run, scored)
    reasons = _explainer(run, scored, catalogue, decisions, situation)
    size = run.settings.batch_rows
    batches = (slice(start, start + size) for start in range(0, len(scored.customer_id), size))
    parts = (
        _recommendations(
            scored, catalogue, decisions, situation, reasons(rows=rows), rows, constant
        )
        for rows in batches
    )
    write_work(run, "recommendations", parts)


def _situations(run: Run, scored: Scored) -> Any:
    """(n,) every customer's situation in words, None without a purchase."""
    words = np.full(len(scored.situation), None, dtype=object)
    for number in np.unique(scored.situation[scored.has_purchased]).tolist():
        words[scored.has_purchased & (scored.situation == number)] = in_words(
            number, run.settings.decision_days
        )
    return words


def _explainer(
    run: Run, scored: Scored, catalogue: Catalogue, decisions: "Decisions", situation: Any
) -> Callable[..., Any]:
    """What words the decisions of some rows."""
    from winback.models.allocation import pick
    from winback.models.reasons import explain

    settings = run.settings
    return partial(
        explain,
        decisions,
        catalogue.labels,
        pick(scored.support, decisions.coupon).astype(np.int64),
        situation,
        scored.p_purchase,
        decision_days=settings.decision_days,
        gap_days=settings.gap_days,
        max_contacts=settings.max_contacts,
        max_contacts_days=settings.max_contacts_days,
        currency=settings.currency,
    )


def _constant_columns(run: Run) -> dict[str, Any]:
    import pyarrow as pa

    valid_from = date.fromisoformat(run.as_of)
    weights = run.artifacts.read_bytes(RESPONSE_MODEL)
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
    decisions: "Decisions",
    situation: Any,
    reasons: Any,
    rows: slice,
    constant: dict[str, Any],
) -> "pa.Table":
    import pyarrow as pa

    from winback.models.decision import decision_ids

    coupon, other = decisions.coupon[rows], decisions.next_best
    texts = {
        "customer_id": scored.customer_id[rows],
        "decision_id": decision_ids(constant["as_of"].as_py(), scored.customer_id[rows]),
        "coupon_id": [catalogue.coupon_ids[index] for index in coupon],
        "channel": [catalogue.channels[index] for index in coupon],
        "treatment_group": decisions.treatment_group[rows],
        "state": scored.label[rows],
        "situation": situation[rows],
        "reason": reasons,
        "suppression_reason": decisions.suppression_reason[rows],
        "next_best_coupon_id": [
            None if index < 0 else catalogue.coupon_ids[index] for index in other.coupon[rows]
        ],
        "next_best_behind": other.behind[rows],
        "next_best_limits": [names or None for names in other.limits[rows]],
    }
    or_null = {  # NaN becomes null
        "p_alive": scored.p_alive,
        "p_purchase": scored.p_purchase,
        "next_best_long_run_uplift": other.long_run_uplift,
        "next_best_expected_cost": other.expected_cost,
    }
    return pa.table(
        {
            **{name: pa.repeat(value, len(coupon)) for name, value in constant.items()},
            **{name: pa.array(values, pa.string()) for name, values in texts.items()},
            **{name: pa.array(getattr(decisions, name)[rows]) for name in DECIDED_NUMBERS},
            **{name: pa.array(values[rows], from_pandas=True) for name, values in or_null.items()},
        }
    )
