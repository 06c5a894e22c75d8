"""The hidden states that a log holds, and what past weeks were worth in them.

Oracle: the world's own kernels, and its weeks lived again.
"""

from dataclasses import replace

import numpy as np
import pytest

from winback.models.errors import DataError
from winback.models.world import (
    CONTACT_COST,
    FACE_VALUES,
    GONE,
    NEW,
    WorldConfig,
    make_world,
    world_in_week,
)
from winback.models.world_log import Population, continue_history, live, record_history
from winback.models.world_truth import worth_of_weeks

CUSTOMERS, WEEKS, PRICE = 3_000, 14, 0.3
DRIFTING = WorldConfig(seed=5, confounding=2.0, drift_week=7)


def before_and_after(log):
    """Rows of all weeks but the last of each customer, and the states a week later."""
    order = np.lexsort((log.week, log.customer))
    rows = order[:-1][np.diff(log.customer[order]) == 0]
    later = order[1:][np.diff(log.customer[order]) == 0]
    last = np.flatnonzero(log.week == log.weeks - 1)
    final = log.people.state[log.customer[last]]
    return np.append(rows, last), np.append(log.state[later], final)


def test_recorded_states_move_as_the_worlds_kernel_says():
    """Oracle: (H, S, A, S) chances; every move is possible, and those to any state are as many."""
    world = make_world(WorldConfig(seed=5, confounding=2.0))
    log = record_history(world, CUSTOMERS, WEEKS)
    rows, following = before_and_after(log)
    kind = log.people.type[log.customer]
    chances = world.kernel[kind[rows], log.state[rows], log.coupon[rows]]
    assert len(rows) == len(log.week)
    assert (chances[np.arange(len(rows)), following] > 0).all()
    expected, error = chances.sum(axis=0), np.sqrt((chances * (1 - chances)).sum(axis=0))
    came = np.bincount(following, minlength=GONE + 1)
    often = expected > 20  # enough for a normal bound
    assert often.sum() > 40
    assert (np.abs(came - expected)[often] < 4.5 * error[often]).all()


def test_everybody_starts_in_the_state_after_a_first_purchase():
    log = record_history(make_world(DRIFTING), CUSTOMERS, WEEKS)
    first = log.week == log.first_week[log.customer] + 1
    assert set(log.state[first]) == {NEW}
    assert len(set(log.state[~first])) > 40


def test_logged_propensities_are_those_of_the_recorded_states():
    """Oracle: the world's logging chances, before and after the drift."""
    world = make_world(DRIFTING)
    log = record_history(world, CUSTOMERS, WEEKS)
    kind = log.people.type[log.customer]
    for week in range(1, WEEKS):
        mine = log.week == week
        chance = world_in_week(world, week).logging[kind, log.state, log.coupon]
        assert np.array_equal(log.propensity[mine], chance[mine])


def test_one_more_week_begins_where_the_last_one_ended():
    world = make_world(WorldConfig(seed=5))
    log = record_history(world, 200, WEEKS)
    coupon, chance = np.arange(200) % 4, np.full(200, 0.25)
    longer = continue_history(world, log, coupon, chance, np.random.default_rng(0))
    assert np.array_equal(longer.state[-200:], log.people.state)
    assert np.array_equal(longer.state[:-200], log.state)


@pytest.mark.parametrize("coupon", range(len(FACE_VALUES)))
def test_weeks_are_worth_what_they_bring_when_lived_again(coupon):
    """Simulation: 40 customer weeks on both sides of the drift, each lived 4,000 times."""
    world = make_world(DRIFTING)
    log = record_history(world, 50, WEEKS)
    rows = np.random.default_rng(coupon).choice(len(log.week), 40, replace=False)
    worth = worth_of_weeks(world, log, log.customer[rows], log.week[rows], PRICE)
    random = np.random.default_rng([coupon, 1])
    assert min(log.week[rows]) < DRIFTING.drift_week < max(log.week[rows])
    off = []
    for row, truth in zip(rows, worth[:, coupon], strict=True):
        kind, state = log.people.type[log.customer[row]], log.state[row]
        people = Population(np.full(4_000, kind), np.full(4_000, state))
        now = world_in_week(world, int(log.week[row]))
        week = live(now, people, np.full(4_000, coupon), random)
        came = week.margin - (1 + PRICE) * week.cost - (CONTACT_COST if coupon else 0.0)
        error = max(came.std() / np.sqrt(4_000), 0.01 if state == GONE else 0.0)
        off.append((came.mean() - truth) / error)
    assert np.abs(off).max() < 4.5
    assert np.abs(np.mean(off)) < 4 / np.sqrt(len(off))


def test_weeks_that_nobody_lived_have_no_worth():
    log = record_history(make_world(DRIFTING), 50, WEEKS)
    too_early = log.first_week[:2]
    with pytest.raises(DataError, match=r"customer weeks of the log, came .* \(2 rows\)"):
        worth_of_weeks(make_world(DRIFTING), log, np.arange(2), too_early, PRICE)


def test_the_price_of_coupon_money_is_taken_once():
    """Oracle: worth is linear in the price, and its slope is the expected cost."""
    world = make_world(replace(DRIFTING, drift_week=None))
    log = record_history(world, 50, WEEKS)
    at = (log.customer, log.week)
    free, dear = (worth_of_weeks(world, log, *at, price) for price in (0.0, 2.0))
    cost = world.cost[log.people.type[log.customer], log.state]
    assert free - dear == pytest.approx(2 * cost)
