"""Step: is the new plan better than what is published, and than no coupons? Estimates and gate."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
from airflow.sdk import Context

from winback.models.errors import NotFittedError
from winback.models.gate import Verdict, judge
from winback.models.off_policy import DOUBLY_ROBUST, Estimate
from winback.models.settings import Settings
from winback.operators.artifacts import GATE, OVERLAP, PLAN, RESPONSE_MODEL, Artifacts
from winback.operators.base import WinbackOperator
from winback.operators.fit_response import read_halves, read_response, with_propensities
from winback.operators.panel import read_panel
from winback.operators.plan import finite_or_none, rules_of
from winback.operators.run import Run
from winback.operators.snapshots import GRID_START, Catalogue, read_catalogue
from winback.operators.warehouse import read_table, transaction

if TYPE_CHECKING:
    from winback.models.cross_fitting import Plan
    from winback.models.policy_value import Evaluation

logger = logging.getLogger(__name__)

LAST_PUBLISHED = """
select as_of::text as as_of, run_id, metrics ->> 'settings' as settings
from {schema}.runs
where status = 'published' and as_of <= {as_of} and run_id <> {run_id}
order by as_of desc, finished_at desc
limit 1
"""
GREEDY = """
select count(*) as customers from {work}.recommendations
where as_of = {as_of} and run_id = {run_id} and coupon_id <> 'none' and not is_exploration
"""
FORGET = "delete from {schema}.policy_evaluations where run_id = {run_id}"
RECORD = """
insert into {schema}.policy_evaluations (
    as_of, run_id, policy, estimator, value, lower, upper, effective_sample_size, max_weight, alarm,
    propensities
)
values (
    {as_of}, {run_id}, {policy}, {estimator}, {value}, {lower}, {upper}, {effective_sample_size},
    {max_weight}, {alarm}, {propensities}
)
"""
RECORDED = ("value", "lower", "upper", "effective_sample_size", "max_weight")
WINDOW = "{} - none, window"  # a policy's or a coupon's gain in the window alone
EMPTY = "the log holds no decision with a choice whose outcome and follow-up are known"
NOTHING = Estimate(nan, nan, nan, 0.0, 0.0, EMPTY)
CHOOSING = ("gamma", "use_planning", "pessimism", "min_visits")
GONE = (
    "The current policy ({name}) cannot be compared: its model is gone. To compare, bring back "
    "{folder}."
)
OTHER_WINDOW = (
    "The current policy ({name}) cannot be compared: it decided for {then} days, this run decides "
    "for {now}."
)
CHANGED = (
    "The current policy ({name}) cannot be compared: it knew coupons worth {then}, the catalogue "
    "has {now}."
)


class EvaluatePolicyOperator(WinbackOperator):
    """Write ``policy_evaluations`` and the gate's verdict, which the publishing goes by."""

    def execute(self, context: Context) -> dict[str, Any]:
        return evaluate(self.current_run())


@dataclass(frozen=True)
class _Champion:
    """The last published run's plan; without one a sentence on why a published one is not it."""

    plan: "Plan | None"
    name: str | None = None
    why_not: str | None = None


def evaluate(run: Run) -> dict[str, Any]:
    """Value this run's plan on the log against the last published one's and against none.

    Returns:
        The verdict, its reason and the figures, for the run's metrics.

    Raises:
        NotFittedError: the response model has not been fitted in this run, or nothing planned.
    """
    from winback.models.cross_fitting import Plan

    catalogue = read_catalogue(run)
    rules = rules_of(run.settings, catalogue, run.artifacts.read_json(PLAN))
    champion = _read_champion(run, catalogue)
    found = _evaluate(run, catalogue, Plan(read_response(run), rules), champion.plan)
    effects = _effects(found, catalogue) if found else {}
    verdict = _judge(run, found, champion)
    if not (verdict.is_sure and verdict.rule_passed):
        logger.warning("%s", verdict.reason)
    _record(run, found, effects)
    figures = _figures(found, verdict, champion, effects)
    run.artifacts.write_json(GATE, figures)
    return figures


def _evaluate(
    run: Run, catalogue: Catalogue, challenger: "Plan", champion: "Plan | None"
) -> "Evaluation | None":
    from winback.models.policy_value import evaluate as evaluate_policies

    panel = with_propensities(run, read_panel(run, catalogue).panel)
    learned = read_halves(run, panel)
    if learned is None:
        return None
    periods = run.settings.evaluation_periods
    return evaluate_policies(panel, learned, challenger, champion, periods=periods)


def _read_champion(run: Run, catalogue: Catalogue) -> _Champion:
    """The plan that readers have now. Its model lies with its run's artifacts."""
    from winback.models.cross_fitting import Plan
    from winback.models.response import ResponseModel

    rows = read_table(run.url, LAST_PUBLISHED, run.names).to_pylist()
    if not rows:
        return _Champion(None)
    last = rows[0]
    name = f"run {last['run_id']} of {last['as_of']}"
    try:
        folder = Artifacts(run.settings.artifacts_uri, last["as_of"], last["run_id"])
        response = ResponseModel.from_arrays(folder.read_arrays(RESPONSE_MODEL))
        rules = rules_of(_settings_of(run, last["settings"]), catalogue, folder.read_json(PLAN))
    except NotFittedError:
        return _Champion(None, name, GONE.format(name=name, folder=folder.folder))
    days = run.settings.decision_days
    then_days = json.loads(last["settings"] or "{}").get("decision_days", days)
    if then_days != days:
        return _Champion(None, name, OTHER_WINDOW.format(name=name, then=then_days, now=days))
    if not np.array_equal(response.face_values, catalogue.face_values):
        now = ", ".join(f"{value:g}" for value in catalogue.face_values[1:])
        then = ", ".join(f"{value:g}" for value in response.face_values[1:])
        return _Champion(None, name, CHANGED.format(name=name, now=now, then=then))
    until = (date.fromisoformat(last["as_of"]) - GRID_START).days // days
    return _Champion(Plan(response, rules, until), name)


def _settings_of(run: Run, recorded: str | None) -> Settings:
    """This run's settings, with those of an earlier run in what its coupons went by."""
    chosen = json.loads(recorded or "{}")
    return run.settings.model_copy(
        update={name: chosen[name] for name in CHOOSING if name in chosen}
    )


def _judge(run: Run, found: "Evaluation | None", champion: _Champion) -> Verdict:
    settings = run.settings
    greedy = read_table(run.url, GREEDY, run.names)["customers"][0].as_py()
    versus_champion = NOTHING if champion.plan else None
    return judge(
        found.versus_champion if found else versus_champion,
        found.versus_none if found else None,
        settings.gate_tolerance * max(found.profit_without, 0.0) if found else 0.0,
        only_exploration=greedy == 0,
        override=settings.override_gate,
        incomparable=champion.why_not,
    )


def _effects(found: "Evaluation", catalogue: Catalogue) -> dict[str, Estimate]:
    """What each coupon that the log holds would add if everybody got it, by its id."""
    return {catalogue.coupon_ids[coupon]: one for coupon, one in found.effects.items()}


def _record(run: Run, found: "Evaluation | None", effects: Mapping[str, Estimate]) -> None:
    from psycopg import sql

    with transaction(run.url) as connection:
        connection.execute(sql.SQL(FORGET).format(**_quoted(run.names)))
        if found is None:
            return
        propensities = _propensities(run)
        for policy, estimates in (found.estimates | _differences(found, effects)).items():
            for estimator, one in estimates.items():
                named = {"policy": policy, "estimator": estimator, "propensities": propensities}
                values = {**run.names, **named, **_one(one)}
                connection.execute(sql.SQL(RECORD).format(**_quoted(values)))


def _differences(
    found: "Evaluation", effects: Mapping[str, Estimate]
) -> dict[str, dict[str, Estimate]]:
    """What the gate goes by, what the holdout will measure, each coupon: as of one policy."""
    compared = {
        **{WINDOW.format(coupon_id): one for coupon_id, one in effects.items()},
        "challenger - none": found.versus_none,
        WINDOW.format("challenger"): found.window_gain,  # even if a coupon is called challenger
        "challenger_as_is - champion": found.versus_champion,
    }
    return {name: {DOUBLY_ROBUST: one} for name, one in compared.items() if one is not None}


def _propensities(run: Run) -> str:
    """Where the weights of the log's decisions come from."""
    logged_share = float(run.artifacts.read_json(OVERLAP)["logged_share"])
    return {0.0: "estimated", 1.0: "logged"}.get(logged_share, "partly")


def _quoted(names: Mapping[str, Any]) -> dict[str, Any]:
    from psycopg import sql

    return {
        name: value if isinstance(value, sql.Composable) else sql.Literal(value)
        for name, value in names.items()
    }


def _figures(
    found: "Evaluation | None",
    verdict: Verdict,
    champion: _Champion,
    effects: Mapping[str, Estimate],
) -> dict[str, Any]:
    """JSON-able: the verdict, each policy by its best estimator, and each coupon's effect."""
    figures = {**asdict(verdict), "champion": champion.name}
    if found is None:
        return {**figures, "decisions": 0, "policies": {}}
    policies = {
        policy: {
            "given": found.given[policy],
            **_one(estimates.get(DOUBLY_ROBUST) or next(iter(estimates.values()))),
        }
        for policy, estimates in found.estimates.items()
    }
    return {
        **figures,
        "decisions": found.decisions,
        "customers": found.customers,
        "profit_without": found.profit_without,
        "claimed_uplift": found.claimed,
        "policies": policies,
        "effects": [{"coupon_id": coupon_id, **_one(one)} for coupon_id, one in effects.items()],
    }


def _one(estimate: Estimate) -> dict[str, Any]:
    return {
        "alarm": estimate.alarm,
        **{name: finite_or_none(getattr(estimate, name)) for name in RECORDED},
    }
