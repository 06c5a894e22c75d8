"""How good a choice of coupons is in a known world, and whether it knew what it was doing."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from winback.models.allocation import Floats, Ints, pick, solve_budget
from winback.models.calibration import decile_table
from winback.models.world import Bools, World
from winback.models.world_log import Population
from winback.models.world_truth import Truth, score

ORACLE = "oracle"


@dataclass(frozen=True)
class Stated:
    """What a policy said of its coupons beforehand; (n,) each, or None where it says nothing.

    Attributes:
        cost: expected redeemed money of each customer's coupon.
        week_uplift: extra profit of the week.
        long_run_uplift: extra profit, later weeks included.
        purchase: chance of a purchase in the week, blind to the coupon.
        wanted_spend: money before the policy was cut to the budget.
    """

    cost: Floats | None = None
    week_uplift: Floats | None = None
    long_run_uplift: Floats | None = None
    purchase: Floats | None = None
    wanted_spend: float | None = None


def judge(
    world: World, people: Population, truth: Truth, coupon: Ints, stated: Stated
) -> dict[str, float | None]:
    """The figures of one policy in one world: its true score, and what it said against that.

    Slopes are of the true on the stated means of tenths of the customers with a coupon (of all
    customers for the purchase, which is compared with what the log's own offers lead to).
    """
    given = coupon > 0
    week = pick(truth.profit, coupon) - truth.profit[:, 0]
    at = (people.type, people.state)
    usual = (world.logging * world.purchase).sum(axis=2)[at]
    figures = {
        "stated_spend": _total(stated.cost),
        "wanted_spend": stated.wanted_spend,
        "week_uplift": float(week.sum()),
        "stated_week_uplift": _total(stated.week_uplift),
        "stated_uplift": _total(stated.long_run_uplift),
        "cost_slope": decile_slope(stated.cost, pick(truth.cost, coupon), given),
        "week_slope": decile_slope(stated.week_uplift, week, given),
        "uplift_slope": decile_slope(stated.long_run_uplift, pick(truth.uplift, coupon), given),
        "purchase_slope": decile_slope(stated.purchase, usual, np.ones_like(given)),
    }
    return {**_finite(asdict(score(truth, coupon))), **figures}


def decile_slope(stated: Floats | None, true: Floats, rows: Bools) -> float | None:
    """Least-squares slope of true on stated means over tenths by ``stated``; 1 is calibrated."""
    if stated is None or rows.sum() < 2:
        return None
    bins = decile_table(stated[rows], true[rows])
    said = np.array([tenth.predicted for tenth in bins])
    came = np.array([tenth.actual for tenth in bins])
    spread = float(((said - said.mean()) ** 2).sum())
    if spread == 0:
        return None
    return float(((said - said.mean()) * (came - came.mean())).sum() / spread)


def bounds(truth: Truth, people: Population) -> dict[str, Callable[[], Ints]]:
    """What perfect knowledge of a part brings: of everything, of this week alone, of the state."""
    return {
        ORACLE: lambda: truth.oracle,
        "oracle, this week only": lambda: _best(
            truth.profit - truth.profit[:, :1], truth.cost, truth.budget
        ),
        "oracle, state only": lambda: _best(
            _by_state(truth.uplift, people.state), _by_state(truth.cost, people.state), truth.budget
        ),
    }


def _best(value: Floats, cost: Floats, budget: float) -> Ints:
    return solve_budget(value, cost, budget, np.ones(value.shape, np.bool_)).coupon


def _by_state(table: Floats, state: Ints) -> Floats:
    """(n, A) the mean row of everybody in the same state."""
    count = np.maximum(np.bincount(state), 1)
    means = [np.bincount(state, column) / count for column in table.T]
    averaged: Floats = np.column_stack(means)[state]
    return averaged


def _total(values: Floats | None) -> float | None:
    return None if values is None else float(values.sum())


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in figures.items()}
