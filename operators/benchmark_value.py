"""What winback says that its plan is worth, against what it is worth in a known world.

The estimator is that of the daily run: doubly robust, with models of the other half of the
customers, on the log's latest decisions. What follows a week is left out (γ = 0), since the worth
of where a customer stands is a model's word; a week's profit less the price of its coupon money is
known exactly. So is the estimate's error.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from winback.models.world_truth import worth_of_weeks
from winback.operators.artifacts import PLAN
from winback.operators.benchmark_worlds import KnownWorld
from winback.operators.panel import read_panel
from winback.operators.run import Run
from winback.operators.snapshots import read_catalogue
from winback.operators.world_source import FIRST_MONDAY, customer_numbers

WEEK = 7  # days of a world's decision


def value_figures(known: KnownWorld, run: Run) -> dict[str, float | None]:
    """Estimate, 95 % interval and truth of the run's plan against none, currency per decision.

    ``value_oracle`` is what the best coupon for every hidden state brings on the same decisions, at
    the same price. No figures where no decision can be valued, or decisions last no week.

    Raises:
        NotFittedError: nothing has been planned in this run.
    """
    from winback.models.policy_value import gain_over_none
    from winback.operators.fit_response import read_halves, with_propensities
    from winback.operators.plan import finite_or_none, rules_of

    catalogue, settings = read_catalogue(run), run.settings
    read = read_panel(run, catalogue)
    panel = with_propensities(run, read.panel)
    learned = read_halves(run, panel)
    if learned is None or settings.decision_days != WEEK:
        return {}
    rules = replace(rules_of(settings, catalogue, run.artifacts.read_json(PLAN)), gamma=0.0)
    gain = gain_over_none(panel, learned, rules, periods=settings.evaluation_periods)
    if gain is None:
        return {}
    customer = customer_numbers(read.customer_id)[panel.customer[gain.rows]]
    week = weeks_of(panel.period[gain.rows])
    worth = worth_of_weeks(known.world, known.history, customer, week, rules.price)
    uplift = worth - worth[:, :1]
    return {
        "value_estimate": finite_or_none(gain.estimate.value),
        "value_lower": finite_or_none(gain.estimate.lower),
        "value_upper": finite_or_none(gain.estimate.upper),
        "value_true": float((gain.policy * uplift).sum(axis=1).mean()),
        "value_oracle": float(uplift.max(axis=1).mean()),
    }


def weeks_of(period: Any) -> Any:
    """(m,) weeks of a world's history, from periods of the weekly decision grid."""
    from winback.operators.snapshots import GRID_START

    return np.asarray(period) - (FIRST_MONDAY - GRID_START).days // WEEK
