"""The observer of a known world: beliefs against who the customers really are."""

import numpy as np
import pytest
from scipy.stats import lognorm

from winback.models.world import FACE_VALUES, GONE, NEW, WorldConfig, make_world, state_number
from winback.models.world_log import MARGIN_SPREAD, record_history
from winback.models.world_observer import beliefs, best_observer
from winback.models.world_truth import score, week_problem

VARYING = {"redemption_by_fatigue": 1.2, "thrift": 0.4}


@pytest.mark.parametrize("dials", [{"confounding": 2.0}, {"drift_week": 6}, VARYING])
def test_beliefs_are_the_shares_of_types_and_of_who_is_gone(dials):
    """Oracle: simulation with known truth. Of customers believed with chance p to be of a type, or
    gone, a share p is, within four standard errors, in each fifth of p with ten to expect."""
    world = make_world(WorldConfig(seed=2, **dials))
    history = record_history(world, 6000, 15)
    belief = beliefs(world, history, np.arange(6000))
    assert belief.sum(axis=(1, 2)) == pytest.approx(1.0)
    events = {"gone": (belief[:, :, GONE].sum(axis=1), history.people.state == GONE)}
    for kind in range(len(world.share)):
        events[f"type {kind}"] = (belief[:, kind].sum(axis=1), history.people.type == kind)
    for name, (chance, came) in events.items():
        for part in np.array_split(np.argsort(chance, kind="stable"), 5):
            expected = chance[part].sum()
            if expected > 10:
                error = np.sqrt((chance[part] * (1 - chance[part])).sum())
                assert abs(came[part].sum() - expected) < 4 * error, name


def test_a_belief_after_two_weeks_equals_bayes_rule_by_hand():
    """Oracle: the product of chances and SciPy's log-normal densities. Two coupons in a row and no
    purchase of the first one leave no doubt of the state, so only the type is hidden."""
    world = make_world(WorldConfig(seed=2, confounding=1.0, **VARYING))
    history = record_history(world, 6000, 3)
    start, later = NEW, int(state_number(1, 0, 1))
    checked = 0
    for customer in np.flatnonzero(history.first_week == 0):
        first, second = np.flatnonzero(history.customer == customer)
        a, b = history.coupon[[first, second]]
        if not (a and b and history.purchased[second] and not history.purchased[first]):
            continue
        stays = (1 - world.purchase[:, start, a]) * (1 - world.leaving[:, start, a])
        scale = world.margin[:, later, b] * np.exp(-(MARGIN_SPREAD**2) / 2)
        amount = lognorm.pdf(history.margin[second], MARGIN_SPREAD, scale=scale)
        redeemed, chance = history.cost[second] == FACE_VALUES[b], world.redemption[:, later, b]
        amount *= chance if redeemed else 1 - chance
        offers = world.logging[:, start, a] * world.logging[:, later, b]
        posterior = world.share * offers * stays * world.purchase[:, later, b] * amount
        belief = beliefs(world, history, np.array([customer]))[0].sum(axis=1)
        assert belief == pytest.approx(posterior / posterior.sum(), rel=1e-9)
        checked += 1
    assert checked > 20


def test_a_belief_of_some_customers_is_that_of_all():
    world = make_world(WorldConfig(seed=4))
    history = record_history(world, 50, 8)
    some = np.array([3, 17, 41])
    everybody = beliefs(world, history, np.arange(50))
    assert np.allclose(beliefs(world, history, some), everybody[some], rtol=1e-12)


def test_the_observer_is_below_the_oracle_and_above_chance():
    """Bounds by definition: who knows less gains less; and no coupon is given in a null world."""
    world = make_world(WorldConfig(seed=3))
    history = record_history(world, 2000, 30)
    truth = week_problem(world, history.people)
    found = score(truth, best_observer(world, world, history, truth))
    assert 40 < found.percent < 100
    assert found.spend_share < 1.1
    null = make_world(WorldConfig(seed=3, effect=0.0))
    silent = record_history(null, 300, 10)
    problem = week_problem(null, silent.people)
    assert score(problem, best_observer(null, null, silent, problem)).given == 0
