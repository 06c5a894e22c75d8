"""Holdout, exploration and propensities against closed forms and simulations of known truth."""

from datetime import date, timedelta
from hashlib import blake2b

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import chi2, kstest

from winback.models.allocation import pick
from winback.models.errors import DataError, SettingsError
from winback.models.experiment import (
    CHEAPEST,
    assign_holdout,
    designed_chances,
    draw_exploration,
    policy_probabilities,
    uniform_chances,
    unit_hash,
)

MONDAY = date(2024, 1, 1)
IDS = [f"customer {number}" for number in range(20_000)]


def explore(ids=IDS, as_of=MONDAY, salt="s", eligible=None, cost=None, limit=1e9, **settings):
    """Exploration over three coupons that cost 0, 1 and 2."""
    eligible = np.ones((len(ids), 3), bool) if eligible is None else eligible
    cost = np.tile([0.0, 1.0, 2.0], (len(ids), 1)) if cost is None else cost
    wanted = uniform_chances(eligible, **{"rate": 0.2, "floor": 0.01, **settings})
    return draw_exploration(ids, as_of, salt, wanted, cost, limit=limit)


def test_unit_hash_is_the_documented_formula():
    """Oracle: hashlib by hand. The second number is pinned: it must never change."""
    digest = blake2b(b"a\0b\0c1", digest_size=8).digest()
    by_hand = (int.from_bytes(digest, "big") >> 11) / 2**53
    assert unit_hash(["c1"], "a", "b").tolist() == [by_hand]
    assert unit_hash(["c1"], "winback", "holdout")[0] == pytest.approx(0.285925, abs=1e-6)


def test_unit_hash_is_uniform_and_salts_are_independent():
    """Oracle: Kolmogorov-Smirnov test and the correlation of independent numbers."""
    one, two = unit_hash(IDS, "one"), unit_hash(IDS, "two")
    assert kstest(one, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / np.sqrt(len(IDS))
    assert unit_hash(["c"], "ab", "")[0] != unit_hash(["c"], "a", "b")[0]


def test_unit_hash_takes_arrays_and_no_ids():
    assert unit_hash(np.array(["é", "b"]), "s").tolist() == unit_hash(["é", "b"], "s").tolist()
    assert unit_hash([], "s").shape == (0,)


def test_holdout_depends_on_customer_and_salt_only_and_grows_nested():
    small, large = assign_holdout(IDS, "s", 0.1), assign_holdout(IDS, "s", 0.3)
    assert abs(small.mean() - 0.1) < 4 * np.sqrt(0.09 / len(IDS))
    assert not (small & ~large).any()
    backwards = assign_holdout(IDS[::-1], "s", 0.1)[::-1]
    assert (small == backwards).all()
    assert (small != assign_holdout(IDS, "t", 0.1)).any()
    assert not assign_holdout(IDS, "s", 0.0).any()
    assert assign_holdout(IDS, "s", 1.0).all()


def test_draws_repeat_for_a_date_and_change_between_dates():
    first, again = explore(), explore()
    other = explore(as_of=MONDAY + timedelta(7))
    assert (first.explores == again.explores).all()
    assert (first.coupon == again.coupon).all()
    assert (first.explores != other.explores).any()
    assert (first.coupon != other.coupon).any()


def test_explorers_draw_uniformly_from_their_eligible_coupons():
    """Oracle: chi-square of the coupons drawn, and the binomial spread of how many explore."""
    eligible = np.ones((len(IDS), 3), bool)
    eligible[::2, 1] = False
    drawn = explore(eligible=eligible)
    assert pick(eligible, drawn.coupon).all()
    for rows, choices in ((slice(0, None, 2), [0, 2]), (slice(1, None, 2), [0, 1, 2])):
        explores = drawn.explores[rows]
        assert abs(explores.mean() - 0.2) < 4 * np.sqrt(0.16 / len(explores))
        counts = np.bincount(drawn.coupon[rows][explores], minlength=3)[choices]
        expected = counts.sum() / len(choices)
        assert chi2.sf(((counts - expected) ** 2 / expected).sum(), len(choices) - 1) > 0.001


def test_floor_raises_the_rate_where_many_coupons_share_it():
    drawn = explore(rate=0.02, floor=0.01)
    assert drawn.rate == pytest.approx(np.full(len(IDS), 0.03))
    probabilities = policy_probabilities(np.zeros(len(IDS), int), drawn.chance)
    assert probabilities.min() == pytest.approx(0.01)
    assert not explore(rate=0.0, floor=0.01).explores.any()


def test_one_eligible_coupon_never_explores_and_has_propensity_one():
    eligible = np.tile([True, False, False], (len(IDS), 1))
    drawn = explore(eligible=eligible, rate=1.0)
    assert not drawn.explores.any()
    assert (policy_probabilities(drawn.coupon, drawn.chance)[:, 0] == 1).all()


def test_limit_shrinks_the_rate_nested_and_is_kept():
    """By hand: 20,000 customers, rate 0.2, mean cost 1, mean square 5/3: 4000 at full rate."""
    wide = explore(rate=0.2)
    assert wide.scale == 1
    assert wide.expected_cost == pytest.approx(4000, rel=0.1)
    narrow = explore(rate=0.2, limit=1000.0)
    assert narrow.scale * 4000 == pytest.approx(1000 - 3 * np.sqrt(narrow.scale * 4000 * 5 / 3))
    assert 800 < narrow.expected_cost <= 1000
    assert not (narrow.explores & ~wide.explores).any()
    assert (narrow.coupon == wide.coupon).all()
    assert explore(limit=0.0).expected_cost == 0


def test_limit_is_kept_on_every_date_and_hardly_ever_by_force():
    """Oracle: the normal tail. Spending stays 3 standard deviations below, 0.1 % of the dates."""
    ids, forced = IDS[:300], 0
    for week in range(400):
        drawn = explore(ids, MONDAY + timedelta(7 * week), limit=30.0)
        assert drawn.expected_cost <= 30
        chance = unit_hash(ids, "s", (MONDAY + timedelta(7 * week)).isoformat(), "explore")
        forced += ((chance < drawn.rate) != drawn.explores).any()
    assert forced <= 4


def test_free_exploration_is_not_limited():
    assert explore(cost=np.zeros((len(IDS), 3)), limit=0.0).scale == 1


def by_chance(rng, shape=(20, 3)):
    """Coupons that customers may get, and what each costs per customer."""
    eligible = rng.random(shape) < 0.7
    eligible[:, 0] = True
    return eligible, rng.gamma(4, 0.25, shape) * [0, 1, 4]


@pytest.mark.parametrize("is_designed", [False, True])
def test_frequencies_equal_the_probabilities(is_designed):
    """Simulation: per customer and coupon over 2,000 dates, chi-square over all customers."""
    ids = IDS[:20]
    eligible, cost = by_chance(np.random.default_rng(1))
    wanted = (
        designed_chances(eligible, cost, 0.5, 0.01)
        if is_designed
        else uniform_chances(eligible, 0.2, 0.01)
    )
    greedy = np.zeros(20, int) if is_designed else np.where(eligible[:, 2], 2, 0)
    counts, dates = np.zeros((20, 3)), 2000
    for day in range(dates):
        drawn = draw_exploration(ids, MONDAY + timedelta(day), "s", wanted, cost, limit=30.0)
        coupon = np.where(drawn.explores, drawn.coupon, greedy)
        counts[np.arange(20), coupon] += 1
    expected = dates * policy_probabilities(greedy, drawn.chance)
    assert expected.sum(axis=1) == pytest.approx(np.full(20, dates))
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    assert (counts[~eligible] == 0).all()
    statistic = ((counts - expected) ** 2)[possible] / expected[possible]
    assert chi2.sf(statistic.sum(), possible.sum() - 20) > 0.001


def test_designed_chances_are_the_closed_form():
    """By hand: costs 1, 4 and 16 are drawn as 1 : 1/2 : 1/4, whoever may get which."""
    eligible, cost = np.ones((3, 4), bool), np.tile([0.0, 1.0, 4.0, 16.0], (3, 1))
    cost[1:] *= [[0.5], [1.5]]  # the mean counts: dear customers are drawn as often
    everybody = designed_chances(eligible, cost, 0.5, 0.0)
    assert everybody == pytest.approx(np.tile([0, 2 / 7, 1 / 7, 0.5 / 7], (3, 1)))
    eligible[0, 1], eligible[1, 1:] = False, False
    some = designed_chances(eligible, np.tile([0.0, 1.0, 4.0, 16.0], (3, 1)), 0.5, 0.0)
    assert some[0] == pytest.approx([0, 0, 1 / 3, 1 / 6])
    assert some[1].tolist() == [0, 0, 0, 0]


def test_designed_chances_keep_the_floor_and_bound_what_is_next_to_free():
    """By hand; the floor is given first, and the rest is split."""
    eligible = np.ones((1, 3), bool)
    floored = designed_chances(eligible, np.array([[0.0, 1.0, 4.0]]), 0.5, 0.1)
    assert floored == pytest.approx(np.array([[0, 0.1 + 0.2, 0.1 + 0.1]]))
    assert designed_chances(eligible, np.ones((1, 3)), 0.5, 0.3).tolist() == [[0, 0.3, 0.3]]
    free = designed_chances(eligible, np.array([[0.0, 0.0, 4.0]]), 0.5, 0.0)[0]
    assert free[1] / free[2] == pytest.approx(1 / np.sqrt(CHEAPEST))
    assert designed_chances(eligible, np.zeros((1, 3)), 0.5, 0.0).tolist() == [[0, 0.25, 0.25]]
    assert not designed_chances(eligible, np.ones((1, 3)), 0.0, 0.1).any()


def test_the_design_is_the_best_split_of_the_money():
    """Oracle: a numerical minimum of Σ 1/n_a at the same money; alike is clearly worse."""
    price, customers = np.array([1.0, 4.0, 14.0]), 20_000
    cost = np.tile([0.0, *price], (customers, 1))
    chances = designed_chances(np.ones((customers, 4), bool), cost, 0.5, 0.0)[:, 1:]
    n = chances.sum(axis=0)
    money = float(n @ price)

    def spread(shares):
        return float((1 / (shares / (shares @ price) * money)).sum())

    searched = minimize(lambda logs: spread(np.exp(logs)), np.zeros(3), tol=1e-12)
    assert (1 / n).sum() == pytest.approx(searched.fun, rel=1e-6)
    assert spread(np.ones(3)) > 1.25 * (1 / n).sum()


@pytest.mark.parametrize("limit", [50.0, 500.0, 1e9])
def test_designed_draws_keep_the_budget_and_the_split(limit):
    """Oracles: the sum of chance × cost, the limit, and the chi-square of what was drawn."""
    price = np.array([0.0, 1.0, 4.0])
    cost = np.tile(price, (len(IDS), 1))
    wanted = designed_chances(np.ones(cost.shape, bool), cost, 0.5, 0.01)
    drawn = draw_exploration(IDS, MONDAY, "s", wanted, cost, limit=limit)
    assert (drawn.chance * cost).sum() <= limit
    assert drawn.expected_cost == pytest.approx(price[drawn.coupon[drawn.explores]].sum())
    assert drawn.expected_cost <= limit
    assert drawn.rate.max() <= 0.5 + 1e-12
    assert (drawn.scale == 1) == (limit == 1e9)
    count = np.bincount(drawn.coupon[drawn.explores], minlength=3)
    expected = count.sum() * wanted[0] / wanted[0].sum()
    assert count[0] == 0
    assert chi2.sf(((count - expected)[1:] ** 2 / expected[1:]).sum(), 1) > 0.001


BAD_INPUTS = [
    (lambda: unit_hash(["a", None, 7]), DataError, "ids as text; wrong in rows 1, 2 (2 rows)"),
    (lambda: assign_holdout(["a"], "s", 1.2), SettingsError, "holdout share between 0 and 1"),
    (lambda: explore(rate=-0.1), SettingsError, "exploration rate between 0 and 1, came -0.1"),
    (lambda: explore(floor=2), SettingsError, "propensity floor between 0 and 1, came 2"),
    (lambda: explore(floor=0.4), SettingsError, "floor of at most 0.3333, since 3 coupons share"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_INPUTS)
def test_bad_input(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)
