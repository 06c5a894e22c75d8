"""Step: plan the long run on the learned model of customers, within the budget to come."""

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
from airflow.sdk import Context

from winback.models.states import StateSpace
from winback.models.survival import SurvivalFit
from winback.operators.artifacts import OUTLOOK, PLAN, SURVIVAL
from winback.operators.base import WinbackOperator
from winback.operators.budget import run_budget
from winback.operators.fit_response import read_response, readable_coupons
from winback.operators.panel import PanelRows, read_panel
from winback.operators.run import Run
from winback.operators.snapshots import Catalogue, read_catalogue, state_columns
from winback.operators.warehouse import read_table, write_work

if TYPE_CHECKING:
    import pyarrow as pa

    from winback.models.long_run import Today
    from winback.models.mdp import CustomerModel
    from winback.models.planner import PlanResult
    from winback.models.response import Response, ResponseModel

CONTACTABLE = """
select customer_id from {schema}.customers_known
where as_of = {as_of} and can_contact and has_purchased
"""


class PlanOperator(WinbackOperator):
    """Plan, and write the Q-table to the work schema and every customer's outlook as artifact."""

    def execute(self, context: Context) -> dict[str, Any]:
        return plan(self.current_run())


@dataclass(frozen=True)
class _Valued:
    """All rows of the panel, with every coupon: (m, A), and beliefs (m, K)."""

    belief: Any
    response: "Response"
    profit: Any
    future: Any


def plan(run: Run) -> dict[str, Any]:
    """Find the price of coupon money, plan at it, and value every customer and state.

    Returns:
        Counts, the price and the residual of the plan, for the run's metrics.

    Raises:
        DataError: the budget is not settled.
        NotFittedError: the response model has not been fitted in this run.
    """
    from winback.models.mdp import learn_model, support, transitions_of
    from winback.models.planner import dyna_q
    from winback.models.response_fit import beliefs

    catalogue, settings = read_catalogue(run), run.settings
    space = StateSpace(settings.state_bins)
    read = read_panel(run, catalogue, space.features)
    panel, response = read.panel, read_response(run)
    contact = np.array(catalogue.contact_costs)
    readable = readable_coupons(run)
    model = learn_model(response, panel, contact, min_visits=settings.min_visits)
    model.allowed[:, ~readable] = False
    model.allowed[:, 0] = True
    belief = beliefs(response, panel)
    gamma = settings.gamma if settings.use_planning else 0.0
    price = _price(run, read, model, response, belief, contact, gamma)
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
    counts = support(panel, len(catalogue.coupon_ids))[panel.situation] * readable
    outlook = _outlook(read, valued, counts)
    run.artifacts.write_bytes(OUTLOOK, _parquet(outlook))
    factor = _cost_factor(run, read, model, valued, price)
    run.artifacts.write_json(PLAN, {"long_run_price": price, "cost_factor": factor})
    keys = space.encode(state_columns(read.rows, _survival(run), space.features))
    write_work(run, "q_table", [_q_table(run, space, keys, catalogue, valued, read, price)])
    figures = _figures(model, result, price, len(transitions), len(keys.keys))
    return {**figures, "cost_factor": factor}


def _price(
    run: Run,
    read: PanelRows,
    model: "CustomerModel",
    response: "ResponseModel",
    belief: Any,
    contact: Any,
    gamma: float,
) -> float:
    """λ for the budget of a decision period; 0 where plans shall not pay for coupons to come."""
    from winback.models.long_run import price_of_budget

    settings = run.settings
    amount = run_budget(
        run
    ).amount  # also where no price is wanted: an unsettled budget is an error
    if not settings.use_long_run_price:
        return 0.0
    of_period = amount * settings.decision_days / settings.cadence_days
    return price_of_budget(model, _today(run, read, response, belief, contact), of_period, gamma)


def _today(
    run: Run, read: PanelRows, response: "ResponseModel", belief: Any, contact: Any
) -> "Today":
    from winback.models.experiment import assign_holdout
    from winback.models.long_run import Today
    from winback.models.response import respond

    settings, rows = run.settings, read.at_hand
    known = read_table(run.url, CONTACTABLE, run.names)["customer_id"].to_pylist()
    holdout = assign_holdout(read.customer_id, settings.holdout_salt, settings.holdout_share)
    seen = respond(response, belief[rows], read.panel.situation[rows])
    return Today(
        belief=belief[rows],
        situation=read.panel.situation[rows],
        profit=seen.margin - seen.cost - contact,
        cost=seen.charged,
        free=np.isin(read.customer_id, np.array(known, dtype=object)) & ~holdout,
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
    return _Valued(belief, seen, seen.margin - seen.cost - contact, future)


def _cost_factor(
    run: Run, read: PanelRows, model: "CustomerModel", valued: _Valued, price: float
) -> float:
    """How much more the plan's coupons cost than said, see cost_of_the_chosen."""
    from winback.models.long_run import cost_of_the_chosen

    cost = valued.response.charged
    value = valued.profit + valued.future - price * cost
    cautious = value - value[:, :1] - run.settings.pessimism * valued.response.doubt
    allowed = model.allowed[read.panel.situation]
    chosen = np.where(allowed, cautious, -np.inf).argmax(axis=1)
    return cost_of_the_chosen(read.panel, valued.response.purchase, cost, chosen)


def _outlook(read: PanelRows, valued: _Valued, support: Any) -> "pa.Table":
    """One row per customer of the decision date."""
    import pyarrow as pa

    rows = read.at_hand
    lists = {
        "belief": valued.belief[rows],
        "future": valued.future[rows],
        "support": support[rows].astype(np.float64),
    }
    return pa.table(
        {
            "customer_id": pa.array(read.customer_id, pa.string()),
            "situation": read.panel.situation[rows],
            **{name: _lists(values) for name, values in lists.items()},
        }
    )


def _lists(values: Any) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _parquet(table: "pa.Table") -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    return bytes(sink.getvalue())


def _survival(run: Run) -> SurvivalFit:
    return SurvivalFit.from_dict(run.artifacts.read_json(SURVIVAL))


def _q_table(
    run: Run,
    space: StateSpace,
    encoded: Any,
    catalogue: Catalogue,
    valued: _Valued,
    read: PanelRows,
    price: float,
) -> "pa.Table":
    """One row per state and coupon: the mean over the customers that were ever in the state."""
    import pyarrow as pa

    states, coupons = len(encoded.keys), len(catalogue.coupon_ids)
    number, closed = encoded.codes, read.panel.closed
    value = valued.profit - price * valued.response.charged + valued.future
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
    supported &= readable_coupons(run)
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
    model: "CustomerModel", result: "PlanResult", price: float, decisions: int, states: int
) -> dict[str, Any]:
    return {
        "decisions": decisions,
        "states": states,
        "planning_states": model.shape[0],
        "planning_states_where_a_coupon_wins": int((result.greedy > 0).sum()),
        "long_run_price": price,
        "td_updates": int(result.td_updates),
        "planning_updates": int(result.planning_updates),
        "sweeps": int(result.sweeps),
        "residual": float(result.residual),
        "residual_before_sweeps": float(result.residual_before_sweeps),
    }
