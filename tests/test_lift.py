"""Does the log prove that coupons move those who would get them? Worlds with known truth."""

from dataclasses import dataclass

import numpy as np
import pytest
from worlds import panel_of

from winback.models.cross_fitting import Halves, Rules, fit_halves
from winback.models.lift import Lift, lift_of_the_chosen
from winback.models.situations import Panel
from winback.models.world import (
    CONFOUNDED,
    CONTACT_COST,
    FACE_VALUES,
    World,
    WorldConfig,
    make_world,
)
from winback.models.world_log import History, record_history

CONTACT = np.array([0.0, *[CONTACT_COST] * (len(FACE_VALUES) - 1)])
RULES = Rules(np.array(FACE_VALUES), CONTACT, np.ones(4, bool), 0.95, 0.0, 0.0, 30)


@dataclass(frozen=True)
class Found:
    """A world, its log, and the lift that the log shows."""

    world: World
    history: History
    panel: Panel
    learned: Halves
    lift: Lift


def found(config, customers=3000):
    world = make_world(config)
    history = record_history(world, customers, 20)
    panel = panel_of(history)
    learned = fit_halves(panel, RULES.face_values)
    lift = lift_of_the_chosen(learned.views(panel, RULES), learned)
    return Found(world, history, panel, learned, lift)


def chosen(one):
    """Rows of the panel, and their coupons, where a half's plan chooses one for the other half."""
    rows, coupons = [], []
    for part, view in enumerate(one.learned.views(one.panel, RULES)):
        mine = one.panel.closed & (one.learned.half[one.panel.customer] == part)
        coupon = view.greedy(np.flatnonzero(mine)).argmax(axis=1)
        rows.append(np.flatnonzero(mine)[coupon > 0])
        coupons.append(coupon[coupon > 0])
    return np.concatenate(rows), np.concatenate(coupons)


def true_lifts(one, rows, coupon):
    """What the coupon adds to the chance of a purchase, in each row's hidden type and state."""
    history = one.history
    row = np.full((len(history.first_week), history.weeks), -1)
    row[history.customer, history.week] = np.arange(len(history.week))
    at = row[one.panel.customer[rows], one.panel.period[rows]]
    kind, state = history.people.type[history.customer[at]], history.state[at]
    return one.world.purchase[kind, state, coupon] - one.world.purchase[kind, state, 0]


@pytest.fixture(scope="module", params=[0.0, CONFOUNDED], ids=["by lot", "confounded"])
def real(request):
    return found(WorldConfig(seed=1, confounding=request.param))


@pytest.mark.parametrize("confounding", [0.0, 2.0])
def test_where_coupons_do_nothing_no_lift_is_proven(confounding):
    """Oracle: worlds without effects; without pessimism, so that many are chosen. Four logs."""
    for seed in range(4):
        one = found(WorldConfig(seed=seed, effect=0.0, confounding=confounding), 1500)
        assert not one.lift.is_proven(propensities_logged=True)


def test_where_coupons_work_the_lift_is_proven(real):
    lift = real.lift
    assert lift.is_proven(propensities_logged=True)
    assert lift.is_proven(propensities_logged=False)
    assert lift.decisions > 1000


def test_lift_equals_the_purchases_that_the_world_knows(real):
    """Oracle: the world's own tables, in the hidden types and states of the decisions that chose a
    coupon; within four standard errors, which are a third of the truth at most."""
    rows, coupon = chosen(real)
    true = true_lifts(real, rows, coupon).mean()
    assert real.lift.decisions == len(rows)
    assert real.lift.treated == (real.panel.coupon[rows] == coupon).sum()
    assert abs(real.lift.value - true) < 4 * real.lift.standard_error
    assert real.lift.standard_error < true / 3


def test_a_handful_proves_nothing_however_sure_it_looks():
    assert Lift(0.2, 0.01, 400, 50).is_proven(propensities_logged=True)
    assert not Lift(0.2, 0.01, 4, 1).is_proven(propensities_logged=True)


def test_nobody_chosen_proves_nothing():
    assert not Lift(float("nan"), float("nan"), 0, 0).is_proven(propensities_logged=True)
