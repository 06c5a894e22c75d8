"""Two forecasts made one: against simulations with a known mixture and an independent solver."""

import numpy as np
import pytest
from scipy.optimize import minimize

from winback.models.logistic import log_odds, sigmoid
from winback.models.stacking import FEWEST_PURCHASES, PRECISION, PRIOR, Stack, fit_stack

N = 20_000


def simulated(seed=0, weights=(0.2, 0.5, 0.7)):
    """Windows whose chance is a known mixture of two forecasts' log odds."""
    random = np.random.default_rng(seed)
    classes, model = sigmoid(random.normal(-1, 1, (2, N)))
    chance = sigmoid(weights[0] + weights[1] * log_odds(classes) + weights[2] * log_odds(model))
    purchased = random.random(N) < chance
    worth = random.uniform(5, 40, (2, N))
    margin = np.where(purchased, 0.3 * worth[0] + 0.8 * worth[1] + random.normal(0, 2, N), 0.0)
    return classes, model, purchased, worth, margin


def fitted(data, weight=None):
    classes, model, purchased, worth, margin = data
    return fit_stack(
        classes, model, purchased, np.ones(N) if weight is None else weight, *worth, margin
    )


def test_a_known_mixture_is_found():
    """Simulated truth: log odds .2 + .5 classes + .7 model, margins .3 classes + .8 model."""
    found = fitted(simulated())
    assert found.purchase == pytest.approx((0.2, 0.5, 0.7), abs=0.06)
    assert found.margin == pytest.approx((0.3, 0.8), abs=0.02)


def test_the_fit_is_the_penalised_likelihoods_maximum():
    """Against scipy's minimiser of the same penalised likelihood, with uneven weights."""
    data = simulated(1)
    weight = np.random.default_rng(2).uniform(0.5, 3, N)
    columns = np.column_stack([np.ones(N), log_odds(data[0]), log_odds(data[1])])

    def loss(b):
        odds = columns @ b
        return (weight * (np.logaddexp(0, odds) - data[2] * odds)).sum() + 0.5 * (
            PRECISION * (b - PRIOR) ** 2
        ).sum()

    assert fitted(data, weight).purchase == pytest.approx(minimize(loss, PRIOR).x, abs=1e-3)


def test_what_does_not_help_gets_next_to_no_weight():
    """Simulated truth: the classes are right, the model says nothing of its own."""
    classes, _, purchased, worth, margin = simulated(3, weights=(0.0, 1.0, 0.0))
    noise = sigmoid(np.random.default_rng(4).normal(-1, 1, N))
    found = fitted((classes, noise, purchased, worth, margin))
    assert found.purchase == pytest.approx((0.0, 1.0, 0.0), abs=0.06)


def test_few_purchases_leave_the_classes_alone():
    classes, model, purchased, worth, margin = simulated(5)
    rare = purchased & (np.cumsum(purchased) < FEWEST_PURCHASES)
    found = fitted((classes, model, rare, worth, margin))
    assert found == Stack((0.0, 1.0, 0.0), (1.0, 0.0))
    assert found.chance(classes, model) == pytest.approx(classes)


def test_margins_are_never_mixed_with_a_negative_weight():
    """A model that says the opposite of what comes is left out."""
    classes, model, purchased, worth, _ = simulated(6)
    worth[1] = 50 - worth[0]
    found = fitted((classes, model, purchased, worth, np.where(purchased, worth[0], 0.0)))
    assert found.margin == pytest.approx((1.0, 0.0), abs=1e-6)
    assert found.margins(np.array([20.0]), np.array([5.0])) == pytest.approx([20.0])


def test_a_mixture_is_one_of_log_odds():
    found = Stack((0.1, 0.5, 0.5), (0.25, 0.75))
    odds = 0.1 + 0.5 * np.log(0.2 / 0.8) + 0.5 * np.log(0.4 / 0.6)
    assert found.chance(np.array([0.2]), np.array([0.4])) == pytest.approx(1 / (1 + np.exp(-odds)))
