"""Does the log prove that coupons move those who would get them? Worlds with known truth."""

import numpy as np
import pytest
from worlds import panel_of

from winback.models.cross_fitting import Rules, fit_halves
from winback.models.lift import Lift, lift_of_the_chosen
from winback.models.world import CONTACT_COST, FACE_VALUES, WorldConfig, make_world
from winback.models.world_log import record_history

CONTACT = np.array([0.0, *[CONTACT_COST] * (len(FACE_VALUES) - 1)])
RULES = Rules(np.array(FACE_VALUES), CONTACT, np.ones(4, bool), 0.95, 0.0, 0.0, 30)


def found(config, customers=3000):
    history = record_history(make_world(config), customers, 20)
    panel = panel_of(history)
    learned = fit_halves(panel, RULES.face_values)
    return panel, learned, lift_of_the_chosen(learned.views(panel, RULES), learned)


@pytest.fixture(scope="module")
def real():
    return found(WorldConfig(seed=1))


@pytest.mark.parametrize("confounding", [0.0, 2.0])
def test_where_coupons_do_nothing_no_lift_is_proven(confounding):
    """Oracle: worlds without effects; without pessimism, so that many are chosen. Four logs."""
    for seed in range(4):
        _, _, lift = found(WorldConfig(seed=seed, effect=0.0, confounding=confounding), 1500)
        assert not lift.is_proven(propensities_logged=True)


def test_where_coupons_work_the_lift_is_proven(real):
    lift = real[2]
    assert lift.is_proven(propensities_logged=True)
    assert lift.is_proven(propensities_logged=False)
    assert lift.decisions > 1000


def test_lift_equals_the_purchases_that_the_world_knows(real):
    """Oracle: the world's own chances of those chosen, in hidden types and states of a log whose
    propensities are those of the world; within four standard errors."""
    panel, learned, lift = real
    by_hand, customers = [], []
    for part, view in enumerate(learned.views(panel, RULES)):
        rows = np.flatnonzero(panel.closed & (learned.half[panel.customer] == part))
        chosen = view.greedy(rows).argmax(axis=1)
        rows, chosen = rows[chosen > 0], chosen[chosen > 0]
        weight = 1 / panel.propensity[rows]
        got, none = panel.coupon[rows] == chosen, panel.coupon[rows] == 0
        by_hand.append((got * 1.0 - none) * weight * panel.purchased[rows])
        customers.append(panel.customer[rows])
    raw = np.concatenate(by_hand)  # inverse propensities alone: unbiased, if noisier
    error = raw.std() / np.sqrt(len(raw))
    assert lift.decisions == len(raw)
    assert abs(lift.value - raw.mean()) < 4 * error
    assert lift.standard_error < error


def test_a_handful_proves_nothing_however_sure_it_looks():
    assert Lift(0.2, 0.01, 400, 50).is_proven(propensities_logged=True)
    assert not Lift(0.2, 0.01, 4, 1).is_proven(propensities_logged=True)


def test_nobody_chosen_proves_nothing():
    assert not Lift(float("nan"), float("nan"), 0, 0).is_proven(propensities_logged=True)
