"""Step: plan the long run on the learned model of customers, within the budget to come."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from airflow.sdk import Context

from winback.models.settings import Settings
from winback.models.states import StateSpace
from winback.operators.artifacts import OVERLAP, PLAN, PLAN_TABLES, SURVIVAL
from winback.operators.base import WinbackOperator
from winback.operators.budget import run_budget
from winback.operators.fit_response import (
    read_halves,
    read_response,
    readable_coupons,
    with_propensities,
)
from winback.operators.panel import PanelRows, learned_from, read_panel
from winback.operators.run import Run
from winback.operators.snapshots import Catalogue, read_catalogue, state_columns
from winback.operators.warehouse import read_table, write_work

if TYPE_CHECKING:
    import pyarrow as pa

    from winback.models.cross_fitting import Rules
    from winback.models.lift import Lift
    from winback.models.long_run import ChosenCost, Today
    from winback.models.mdp import CustomerModel
    from winback.models.planner import PlanResult
    from winback.models.response import Response, ResponseModel
    from winback.models.situations import Panel
    from winback.models.survival import SurvivalFit

CONTACTABLE = """
select customer_id from {schema}.customers_known
where as_of = {as_of} and can_contact and has_purchased and customer_id in ({learned_from})
"""
BUYERS = "select count(*) from {schema}.customers_known where as_of = {as_of} and has_purchased"


class PlanOperator(WinbackOperator):
    """Plan, and write the Q-table to the work schema and the value of what follows as artifact."""

    def execute(self, context: Context) -> dict[str, Any]:
        return plan(self.current_run())


@dataclass(frozen=True)
class _Valued:
    """All rows of the panel, with every coupon: (m, A)."""

    response: "Response"
    profit: Any
    future: Any


def plan(run: Run) -> dict[str, Any]:
    """Find the price of coupon money, plan at it, and value what follows.

    Where the log does not show that coupons make those buy who would get them, none is planned:
    exploration goes on, and its log will show it. How often coupons were offered stays on record.

    Returns:
        Counts, the price, the lift and the residual of the plan, for the run's metrics.

    Raises:
        DataError: the budget is not settled.
        NotFittedError: the response model has not been fitted in this run.
    """
    from winback.models.mdp import learn_model, transitions_of
    from winback.models.planner import dyna_q
    from winback.models.response_fit import beliefs

    catalogue, settings = read_catalogue(run), run.settings
    space = StateSpace(settings.state_bins)
    read = read_panel(run, catalogue, space.features)
    read = replace(read, panel=with_propensities(run, read.panel))
    panel, response = read.panel, read_response(run)
    contact = np.array(catalogue.contact_costs)
    model = learn_model(response, panel, contact, min_visits=settings.min_visits)
    belief = beliefs(response, panel)
    gamma = settings.gamma if settings.use_planning else 0.0
    today = _today(run, read, response, belief, contact)

    def at_price(offered: Any) -> tuple["CustomerModel", float]:
        allowed = replace(model, allowed=model.allowed & offered)
        return allowed, _price(run, allowed, today, gamma)

    readable = _readable(run, catalogue)
    offered = readable
    model, price = at_price(offered)
    rules = rules_of(settings, catalogue, {"offered": offered, "long_run_price": price})
    lift, is_proven = _lift(run, panel, rules)
    if not is_proven:
        offered = np.arange(len(offered)) == 0
        model, price = at_price(offered)
    transitions = transitions_of(panel, belief[read.at_hand].argmax(axis=1), contact)
    result = dyna_q(
        model,
        transitions,
        price=price,
        gamma=gamma,
        planning_updates=settings.planning_updates,
        alpha=settings.learning_rate_q,
        epsilon=(settings.epsilon_start, settings.epsilon_end),
        seed=settings.seed,
    )
    valued = _value(response, model, result, panel, belief, contact, gamma)
    run.artifacts.write_arrays(PLAN_TABLES, _tables(model, result, panel, readable, gamma))
    checked = _cost_of_the_chosen(run, panel, model, valued, price)
    shown = {
        "value": finite_or_none(lift.value),
        "standard_error": finite_or_none(lift.standard_error),
    }
    made = {
        "long_run_price": price,
        "cost_factors": checked.ratio.tolist(),
        "spendable": checked.spendable(propensities_logged=_all_logged(run)),
        "offered": [bool(one) for one in offered],
        "lift": {**asdict(lift), **shown, "is_proven": is_proven},
    }
    run.artifacts.write_json(PLAN, made)
    keys = space.encode(state_columns(read.rows, _survival(run), space.features))
    write_work(run, "q_table", [_q_table(run, space, keys, catalogue, valued, read, made)])
    figures = _figures(model, result, len(transitions), len(keys.keys))
    return {**figures, **made}


def rules_of(settings: Settings, catalogue: Catalogue, plan: Mapping[str, Any]) -> "Rules":
    """What a run's plan goes by; ``plan`` is its artifact."""
    from winback.models.cross_fitting import Rules

    return Rules(
        face_values=np.array(catalogue.face_values),
        contact_cost=np.array(catalogue.contact_costs),
        offered=np.array(plan["offered"]),
        gamma=settings.gamma if settings.use_planning else 0.0,
        price=float(plan["long_run_price"]),
        pessimism=settings.pessimism,
        min_visits=settings.min_visits,
    )


def _readable(run: Run, catalogue: Catalogue) -> Any:
    """(A,) coupons that may be given and that the log can tell about; `none` is first."""
    readable = readable_coupons(run)
    readable &= np.isin(np.arange(len(readable)), catalogue.positions(run.settings.allowed_coupons))
    readable[0] = True
    return readable


def _lift(run: Run, panel: "Panel", rules: "Rules") -> tuple["Lift", bool]:
    """What the halves of the customers show of each other's plans, and whether it is proof."""
    from winback.models.lift import Lift, lift_of_the_chosen

    learned = read_halves(run, panel)
    if learned is None:
        return Lift(float("nan"), float("nan"), 0, 0), False
    lift = lift_of_the_chosen(learned.views(panel, replace(rules, pessimism=0.0)), learned)
    return lift, lift.is_proven(propensities_logged=_all_logged(run))


def _all_logged(run: Run) -> bool:
    """Whether the log itself says every propensity."""
    return float(run.artifacts.read_json(OVERLAP)["logged_share"]) == 1


def _price(run: Run, model: "CustomerModel", today: "Today", gamma: float) -> float:
    """λ for the budget of a decision period; 0 where plans shall not pay for coupons to come."""
    from winback.models.long_run import price_of_budget

    settings = run.settings
    amount = run_budget(run).amount  # an unsettled budget is an error whatever the settings
    if not settings.use_long_run_price:
        return 0.0
    buyers = read_table(run.url, BUYERS, run.names).column(0)[0].as_py()
    share = len(today.situation) / max(buyers, 1)  # of all, those whom the models learn from
    of_period = amount * share * settings.decision_days / settings.cadence_days
    return price_of_budget(model, today, of_period, gamma)


def _today(
    run: Run, read: PanelRows, response: "ResponseModel", belief: Any, contact: Any
) -> "Today":
    from winback.models.experiment import assign_holdout
    from winback.models.long_run import Today
    from winback.models.response import respond

    settings, rows = run.settings, read.at_hand
    names = {**run.names, "learned_from": learned_from(run)}
    contactable = set(read_table(run.url, CONTACTABLE, names)["customer_id"].to_pylist())
    may_contact = [customer_id in contactable for customer_id in read.customer_id]
    holdout = assign_holdout(read.customer_id, settings.holdout_salt, settings.holdout_share)
    seen = respond(response, belief[rows], read.panel.situation[rows])
    return Today(
        belief=belief[rows],
        situation=read.panel.situation[rows],
        profit=seen.margin - seen.cost - contact,
        cost=seen.charged,
        free=np.array(may_contact, np.bool_) & ~holdout,
    )


def _value(
    response: "ResponseModel",
    model: "CustomerModel",
    result: "PlanResult",
    panel: Any,
    belief: Any,
    contact: Any,
    gamma: float,
) -> _Valued:
    from winback.models.long_run import personal_future
    from winback.models.response import respond

    seen = respond(response, belief, panel.situation)
    future = personal_future(model, result.value, belief, panel.situation, gamma)
    return _Valued(seen, seen.margin - seen.cost - contact, future)


def _cost_of_the_chosen(
    run: Run, panel: "Panel", model: "CustomerModel", valued: _Valued, price: float
) -> "ChosenCost":
    """How much more the coupons that the plan would have given cost than said."""
    from winback.models.long_run import cost_of_the_chosen

    cost = valued.response.charged
    value = valued.profit + valued.future - price * cost
    cautious = value - value[:, :1] - run.settings.pessimism * valued.response.doubt
    allowed = model.allowed[panel.situation]
    chosen = np.where(allowed, cautious, -np.inf).argmax(axis=1)
    return cost_of_the_chosen(panel, cost, chosen)


def _tables(
    model: "CustomerModel", result: "PlanResult", panel: "Panel", readable: Any, gamma: float
) -> dict[str, Any]:
    """What the plan says of every class and situation: γ E[V(s')], and decisions like it.

    Decisions with coupons that the log cannot tell about are not counted.
    """
    from winback.models.mdp import support
    from winback.models.situations import SITUATIONS

    coupons = len(readable)
    following = model.future(result.value, gamma).reshape(-1, SITUATIONS, coupons)
    counts = support(panel, coupons) * readable
    return {"future": following, "support": counts.astype(np.float64)}


def _survival(run: Run) -> "SurvivalFit":
    from winback.models.survival import SurvivalFit

    return SurvivalFit.from_dict(run.artifacts.read_json(SURVIVAL))


def _q_table(
    run: Run,
    space: StateSpace,
    encoded: Any,
    catalogue: Catalogue,
    valued: _Valued,
    read: PanelRows,
    made: Mapping[str, Any],
) -> "pa.Table":
    """One row per state and coupon: the mean over the customers that were ever in the state.

    ``is_supported`` says what may be chosen, as readers of Redis do: without proof `none` alone.
    """
    import pyarrow as pa

    states, coupons = len(encoded.keys), len(catalogue.coupon_ids)
    number, closed = encoded.codes, read.panel.closed
    value = valued.profit - made["long_run_price"] * valued.response.charged + valued.future
    size = np.bincount(number, minlength=states)[:, None]
    means = {
        name: _sums(number, table, states) / size
        for name, table in (
            ("q_value", value),
            ("expected_reward", valued.profit),
            ("future_value", valued.future),
        )
    }
    chosen = number[closed] * coupons + read.panel.coupon[closed]
    visits = np.bincount(chosen, minlength=states * coupons).reshape(states, coupons)
    parent, names = space.parents(encoded.keys)
    support = np.zeros((len(names), coupons), np.int64)
    np.add.at(support, parent, visits)
    supported = support[parent] >= max(run.settings.min_visits, 1)
    supported &= np.array(made["offered"])
    supported[:, 0] = True
    return pa.table(
        {
            "as_of": pa.repeat(date.fromisoformat(run.as_of), states * coupons).cast(pa.date32()),
            "run_id": pa.repeat(run.run_id, states * coupons),
            "state": np.repeat(np.array(encoded.keys, dtype=object), coupons),
            "coupon_id": np.tile(np.array(catalogue.coupon_ids, dtype=object), states),
            "visits": visits.ravel(),
            "support": support[parent].ravel(),
            **{name: table.ravel() for name, table in means.items()},
            "is_supported": supported.ravel(),
        }
    )


def _sums(number: Any, table: Any, size: int) -> Any:
    """(size, A) column sums by number."""
    columns = [np.bincount(number, weights=column, minlength=size) for column in table.T]
    return np.stack(columns, axis=1)


def _figures(
    model: "CustomerModel", result: "PlanResult", decisions: int, states: int
) -> dict[str, Any]:
    return {
        "decisions": decisions,
        "states": states,
        "planning_states": model.shape[0],
        "planning_states_where_a_coupon_wins": int((result.greedy > 0).sum()),
        "td_updates": int(result.td_updates),
        "planning_updates": int(result.planning_updates),
        "sweeps": int(result.sweeps),
        "residual": float(result.residual),
        "residual_before_sweeps": float(result.residual_before_sweeps),
    }


def finite_or_none(value: float) -> float | None:
    """A figure for JSON and SQL, which know no NaN."""
    return value if isfinite(value) else None
