"""Step: learn how customers respond and move on from the log, and plan with Dyna-Q."""

from typing import TYPE_CHECKING, Any

import numpy as np
from airflow.sdk import Context

from winback.models.mdp import CustomerModel, Transitions, learn_model, link_next_states
from winback.models.states import StateGrid, StateSpace
from winback.models.survival import SurvivalFit
from winback.operators.artifacts import SURVIVAL
from winback.operators.base import WinbackOperator
from winback.operators.run import Run
from winback.operators.snapshots import (
    HISTORY,
    P_ALIVE,
    Catalogue,
    read_catalogue,
    state_columns,
)
from winback.operators.warehouse import read_table, write_work

if TYPE_CHECKING:
    from winback.models.planner import PlanResult

# The decision date's own snapshots are there so that its states have a row, and as next states.
DECISIONS = """
select
    customer_id,
    -- an as_of off the grid follows no snapshot
    case
        when is_on_grid then (snapshot_date - date '1970-01-05') / {decision_days} else -2
    end::bigint as period,
    snapshot_date + {decision_days} <= {as_of} as is_closed,
    coupon_id,
    reward,
    {columns}
from {schema}.customer_snapshots
where snapshot_date <= {as_of} and (is_on_grid or snapshot_date = {as_of})
order by snapshot_date, customer_id
"""


class PlanOperator(WinbackOperator):
    """Plan on every logged decision and write the Q-table to the work schema."""

    def execute(self, context: Context) -> dict[str, Any]:
        return plan(self.current_run())


def plan(run: Run) -> dict[str, Any]:
    """Learn the customer model, plan, and write one row per state and coupon.

    Returns:
        Counts and the residual of the plan, for the run's metrics.
    """
    from winback.models.planner import dyna_q  # numba takes a second that DAG parsing saves

    catalogue = read_catalogue(run)
    space = StateSpace(run.settings.state_bins)
    rows = _read_decisions(run, space)
    fit = SurvivalFit.from_dict(run.artifacts.read_json(SURVIVAL))
    grid = space.grid(space.encode(state_columns(rows, fit, space.features)))
    transitions = _transitions(rows, grid, catalogue)
    settings = run.settings
    model = learn_model(
        transitions,
        len(catalogue.coupon_ids),
        space.parents(grid.keys[:: grid.exposures])[0],
        exposures=grid.exposures,
        gamma=settings.gamma,
        prior_strength=settings.prior_strength,
        min_visits=settings.min_visits,
        pessimism=settings.pessimism,
    )
    result = dyna_q(
        model,
        transitions,
        gamma=settings.gamma,
        planning_updates=settings.planning_updates,
        alpha=settings.learning_rate_q,
        epsilon=(settings.epsilon_start, settings.epsilon_end),
        seed=settings.seed,
    )
    table = _q_table(run, grid.keys, catalogue, model, result)
    write_work(run, "q_table", [table])
    return _figures(model, result, len(transitions))


def _read_decisions(run: Run, space: StateSpace) -> Any:
    from psycopg import sql

    stored = [*HISTORY, *(name for name in space.features if name != P_ALIVE)]
    columns = sql.SQL(", ").join(map(sql.Identifier, stored))
    names = {**run.names, "columns": columns, "decision_days": run.settings.decision_days}
    return read_table(run.url, DECISIONS, names)


def _transitions(rows: Any, grid: StateGrid, catalogue: Catalogue) -> Transitions:
    customer = rows["customer_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    customer, period = customer.astype(np.int64), rows["period"].to_numpy()
    following = link_next_states(customer, period, grid.state)
    closed = rows["is_closed"].to_numpy()
    return Transitions(
        customer=customer[closed],
        period=period[closed] - period[closed].min(initial=period.max(initial=0)),
        state=grid.state[closed],
        coupon=catalogue.index_of(rows["coupon_id"].filter(closed)),
        reward=rows["reward"].to_numpy()[closed],
        next_state=following[closed],
    )


def _q_table(
    run: Run, keys: list[str], catalogue: Catalogue, model: CustomerModel, result: "PlanResult"
) -> Any:
    import pyarrow as pa

    states, coupons = result.q.shape
    return pa.table(
        {
            "as_of": pa.repeat(run.as_of, states * coupons).cast(pa.date32()),
            "run_id": pa.repeat(run.run_id, states * coupons),
            "state": np.repeat(np.array(keys, dtype=object), coupons),
            "coupon_id": np.tile(np.array(catalogue.coupon_ids, dtype=object), states),
            "q_value": result.q.ravel(),
            "visits": result.visits.ravel(),
            "support": model.support.ravel(),
            "expected_reward": model.reward.ravel(),
            "future_value": result.future_value.ravel(),
            "is_supported": result.allowed.ravel(),
        }
    )


def _figures(model: CustomerModel, result: "PlanResult", decisions: int) -> dict[str, Any]:
    supported = result.allowed[:, 1:].any(axis=1)
    return {
        "decisions": decisions,
        "states": model.n_states,
        "states_with_a_supported_coupon": int(supported.sum()),
        "states_where_a_coupon_wins": int((result.greedy > 0).sum()),
        "td_updates": int(result.td_updates),
        "planning_updates": int(result.planning_updates),
        "sweeps": int(result.sweeps),
        "residual": float(result.residual),
        "residual_before_sweeps": float(result.residual_before_sweeps),
    }
