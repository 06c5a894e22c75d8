"""The known world: its kernels, its optimum and its log, each against a second computation."""

import math
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
from scipy.stats import chi2

from winback.models.errors import SettingsError
from winback.models.world import (
    CONTACT_COST,
    FACE_VALUES,
    GONE,
    NEW,
    World,
    WorldConfig,
    drifted,
    make_world,
    state_number,
    world_in_week,
)
from winback.models.world_log import (
    Population,
    continue_history,
    draw_coupons,
    live,
    new_customers,
    record_history,
)
from winback.models.world_optimum import (
    greedy_policy,
    optimum,
    optimum_by_linear_program,
    policy_value,
    q_at_price,
)
from winback.models.world_truth import Truth, score, week_problem

NOTHING, TINY, TIGHT, LOOSE, UNLIMITED = 0.0, 0.02, 0.35, 0.9, 2.0  # of what the best would spend
CONFOUNDED = WorldConfig(seed=5, confounding=2.0)
CONSTANT = WorldConfig(
    seed=5, redemption_by_fatigue=0, thrift=0
)  # neither state nor coupon matters
VARYING = WorldConfig(seed=5, redemption_by_fatigue=0.8, thrift=0.3)  # by state and by coupon
COLUMNS = ("customer", "week", "coupon", "propensity", "purchased", "margin", "cost", "state")


@cache
def customers(config: WorldConfig) -> tuple[World, Population]:
    """A world and where 1,000 customers are in it after some weeks."""
    world = make_world(config)
    return world, record_history(world, 1_000, 20).people


def unlimited_spend(world: World, start: np.ndarray) -> float:
    policy = greedy_policy(q_at_price(world, 0.0)[0])
    return float((start * policy_value(world, policy, world.cost)).sum())


def discounted_profit(
    world: World, people: Population, policy: np.ndarray, weeks: int, price: float = 0.0
) -> np.ndarray:
    """(n,) of each customer under a policy, simulated; ``price`` is taken per coupon money."""
    random = np.random.default_rng(1)
    total = np.zeros(len(people.type))
    for week in range(weeks):
        coupon = draw_coupons(policy[people.type, people.state], random)
        seen = live(world, people, coupon, random)
        now = seen.margin - (1 + price) * seen.cost - CONTACT_COST * (coupon > 0)
        total += world.config.gamma**week * now
    return total


def standard_errors_off(sample: np.ndarray, truth: float) -> float:
    return abs(sample.mean() - truth) / (sample.std() / math.sqrt(len(sample)))


@pytest.mark.parametrize("config", [*map(WorldConfig, range(4)), VARYING])
@pytest.mark.parametrize("tightness", [NOTHING, TINY, TIGHT, LOOSE, UNLIMITED])
def test_optimum_equals_the_occupancy_linear_program(config, tightness):
    world, people = customers(config)
    start = people.distribution(world)
    budget = tightness * unlimited_spend(world, start)
    best = optimum(world, start, budget)
    assert best.value == pytest.approx(optimum_by_linear_program(world, start, budget), rel=1e-6)
    assert best.spend <= budget * (1 + 1e-9)
    assert (best.price == 0) == (tightness == UNLIMITED)


@pytest.mark.parametrize("seed", range(2))
def test_a_larger_budget_never_earns_less_and_earns_less_and_less_more(seed):
    """The value is concave in the budget, as a linear program's is in its right-hand side."""
    world, people = customers(WorldConfig(seed=seed))
    start = people.distribution(world)
    budgets = np.linspace(0, 1.2, 6) * unlimited_spend(world, start)
    values = np.array([optimum(world, start, budget).value for budget in budgets])
    gains = np.diff(values)
    assert (gains >= -1e-9 * values[0]).all()
    assert (np.diff(gains) <= 1e-9 * values[0]).all()


def test_a_negative_budget_is_refused():
    world, people = customers(WorldConfig())
    with pytest.raises(SettingsError, match="budget of 0 or more, came -1"):
        optimum(world, people.distribution(world), -1.0)


def test_policy_value_equals_a_long_simulation():
    """Monte Carlo: 30,000 customers for 130 weeks, after which a week counts for 1e-6."""
    world = make_world(WorldConfig(seed=2, gamma=0.9))
    mixed = np.random.default_rng(0).dirichlet(np.ones(4), world.purchase.shape[:2])
    people = new_customers(world, 30_000, np.random.default_rng(0))
    truth = policy_value(world, mixed, world.reward)[people.type, people.state].mean()
    assert standard_errors_off(discounted_profit(world, people, mixed, 130), truth) < 4


@pytest.mark.parametrize(
    ("config", "coupon"), [(WorldConfig(1), 0), (WorldConfig(1), 2), (VARYING, 3)]
)
def test_a_coupons_value_equals_a_simulation_of_the_best_policy_after_it(config, coupon):
    """Monte Carlo of one customer, 20,000 times: this coupon now, then the best at the price."""
    world, people = customers(config)
    truth = week_problem(world, people)
    best = greedy_policy(q_at_price(world, truth.price)[0])
    who = int(np.flatnonzero((people.type == 1) & (people.state != GONE))[0])
    copies = Population(
        np.full(20_000, people.type[who]), np.full(20_000, people.state[who], np.int64)
    )
    random = np.random.default_rng(3)
    seen = live(world, copies, np.full(20_000, coupon), random)
    later = discounted_profit(world, copies, best, 200, truth.price)
    total = seen.margin - seen.cost - CONTACT_COST * (coupon > 0) + world.config.gamma * later
    assert standard_errors_off(total, truth.value[who, coupon]) < 4


def test_who_is_gone_stays_gone_and_buys_nothing():
    world = make_world(WorldConfig())
    assert (world.kernel[:, GONE, :, GONE] == 1).all()
    people = Population(np.arange(600) % 6, np.full(600, GONE))
    seen = live(world, people, np.arange(600) % 4, np.random.default_rng(0))
    assert (people.state == GONE).all()
    assert not seen.purchased.any()


def test_simulated_weeks_follow_the_kernels():
    """Chi-square over 60 random (type, state, coupon), 3,000 weeks each."""
    world, random = make_world(WorldConfig(seed=4)), np.random.default_rng(8)
    statistic, freedom = 0.0, 0
    for _ in range(60):
        cell = random.integers(6), random.integers(GONE), random.integers(4)
        people = Population(np.full(3_000, cell[0]), np.full(3_000, cell[1]))
        live(world, people, np.full(3_000, cell[2]), random)
        expected = 3_000 * world.kernel[cell]
        count = np.bincount(people.state, minlength=len(expected))
        assert (count[expected == 0] == 0).all()
        often = expected >= 5  # the rest together would be too rare for the test
        statistic += float(((count - expected)[often] ** 2 / expected[often]).sum())
        freedom += int(often.sum()) - 1
    assert 1e-4 < chi2.sf(statistic, freedom) < 1 - 1e-4


@pytest.mark.parametrize("config", [WorldConfig(seed=6), VARYING])
def test_simulated_purchases_follow_the_kernels(config):
    """Totals over 100,000 weeks against the sums of the chances, within 4 standard errors."""
    world, random = make_world(config), np.random.default_rng(9)
    n = 100_000
    people = Population(random.integers(0, 6, n), random.integers(0, GONE, n))
    coupon = random.integers(0, 4, n)
    at = (people.type, people.state, coupon)
    seen = live(world, people, coupon, random)
    payoff = seen.margin - seen.cost - CONTACT_COST * (coupon > 0)
    for came, truth in (
        (seen.purchased, world.purchase),
        (seen.cost, world.cost),
        (payoff, world.reward),
    ):
        assert standard_errors_off(came - truth[at], 0.0) < 4


@pytest.mark.parametrize("fatigue", range(4))
@pytest.mark.parametrize("coupon", range(4))
def test_simulated_redemptions_and_margins_follow_the_tables(fatigue, coupon):
    """Frequencies in 40,000 weeks of one type in one state, within 4 standard errors."""
    world, random = make_world(VARYING), np.random.default_rng([fatigue, coupon])
    cell = (0, int(state_number(0, 1, fatigue)), coupon)
    people = Population(np.full(40_000, cell[0]), np.full(40_000, cell[1]))
    seen = live(world, people, np.full(40_000, coupon), random)
    bought = seen.purchased
    assert standard_errors_off(seen.margin[bought], world.margin[cell]) < 4
    redeemed = (seen.cost > 0)[bought]
    if coupon:
        assert standard_errors_off(redeemed, world.redemption[cell]) < 4
    assert set(seen.cost[bought][redeemed]) <= {FACE_VALUES[coupon]}


def test_dials_of_redemption_and_margin_change_nothing_else():
    """By definition: at 0 redemption is the same in all states, margins are with all coupons; and
    the same customers buy in the same weeks whatever the dials."""
    plain, varying = make_world(CONSTANT), make_world(VARYING)
    assert (np.ptp(plain.redemption, axis=1) == 0).all()
    assert (np.ptp(plain.margin, axis=2) == 0).all()
    for name in ("share", "purchase", "leaving", "kernel", "logging"):
        assert np.array_equal(getattr(plain, name), getattr(varying, name))
    logs = [record_history(world, 300, 12) for world in (plain, varying)]
    changed = {name for name in COLUMNS if not np.array_equal(*(getattr(g, name) for g in logs))}
    assert changed == {"margin", "cost"}
    without = logs[0].coupon == 0
    assert np.array_equal(logs[0].margin[without], logs[1].margin[without])


@pytest.mark.parametrize("config", [WorldConfig(seed=5), CONFOUNDED])
def test_logged_propensities_are_the_chances_of_the_draw(config):
    """Each coupon's rows, weighted by 1 / propensity, count all rows in expectation."""
    log = record_history(make_world(config), 3_000, 24)
    for coupon in range(4):
        weight = np.where(log.coupon == coupon, 1 / log.propensity, 0.0)
        assert standard_errors_off(weight, 1.0) < 4


@pytest.mark.parametrize("seed", range(5))
def test_in_the_null_world_none_is_best_for_everybody(seed):
    world, people = customers(WorldConfig(seed=seed, effect=0.0))
    assert (q_at_price(world, 0.0)[0].argmax(axis=2) == 0).all()
    truth = week_problem(world, people)
    assert (truth.uplift[:, 1:] < 0).all()
    assert (truth.oracle == 0).all()
    assert truth.budget > 0  # there is money to waste
    everybody = score(truth, np.ones(1_000, np.int64))
    assert math.isnan(everybody.percent)
    assert (everybody.wasted, everybody.harm) == (1, 1)


@pytest.mark.parametrize("config", [WorldConfig(seed=0), CONFOUNDED, WorldConfig(seed=3), VARYING])
def test_score_of_the_oracle_is_100_and_of_none_0(config):
    world, people = customers(config)
    truth = week_problem(world, people)
    best, none = score(truth, truth.oracle), score(truth, np.zeros(1_000, np.int64))
    assert best.percent == pytest.approx(100)
    assert 0.9 < best.spend_share <= 1
    assert (best.harm, best.wasted) == (0, 0)
    assert (none.percent, none.spend_share, none.given) == (0, 0, 0)
    everybody = score(truth, np.full(1_000, 3))
    assert everybody.percent < 100  # at several times the budget: most would have bought anyway
    assert everybody.spend_share > 2
    assert everybody.wasted == 1


def test_score_of_a_problem_worked_out_by_hand():
    uplift = np.array([[0, 4.0, 6.0], [0, 2.0, -1.0], [0, -1.0, -2.0], [0, -3.0, 0.0]])
    cost = np.array([[0, 1.0, 2.0]] * 4)
    truth = Truth(
        value=uplift + 10,
        uplift=uplift,
        purchase=np.full_like(uplift, 0.1),
        profit=uplift,
        cost=cost,
        budget=4.0,
        price=0.0,
        oracle=np.array([2, 1, 0, 0]),
        oracle_uplift=8.0,
    )
    came = score(truth, np.array([2, 2, 1, 0]))
    assert came.uplift == 4  # 6 - 1 - 1
    assert came.percent == 50
    assert (came.spend, came.spend_share) == (5, 1.25)
    assert came.given == 0.75
    assert came.harm == pytest.approx(2 / 3)  # the second and the third customer
    assert came.wasted == 0.5  # nothing helps the third and the fourth


def test_a_tighter_budget_lets_the_oracle_spend_and_gain_less():
    by_tightness = [
        week_problem(*customers(WorldConfig(seed=1, budget_tightness=share)))
        for share in (0.1, 0.35, 0.8)
    ]
    budgets = [truth.budget for truth in by_tightness]
    prices = [truth.price for truth in by_tightness]
    assert budgets == sorted(budgets)
    assert prices == sorted(prices, reverse=True)
    assert budgets[0] < budgets[1] < budgets[2]


def test_dials_of_the_log():
    plain, confounded = make_world(WorldConfig(seed=5)), make_world(CONFOUNDED)
    assert np.ptp(plain.logging[:, :, 0]) == 0  # offers by chance
    bought = [0, 0]
    for chosen, config in enumerate((WorldConfig(seed=5), CONFOUNDED)):
        world, people = customers(config)
        offer = 1 - world.logging[people.type, people.state, 0]
        at_home = people.state != GONE
        buying = world.purchase[people.type, people.state, 0]
        bought[chosen] = float(np.average(buying[at_home], weights=offer[at_home]))
    assert bought[1] > 1.3 * bought[0]  # offers go to those who would buy anyway
    wide = make_world(replace(CONFOUNDED, overlap=0.2))
    assert wide.logging[:, :, 0].min() == pytest.approx(0.2)
    assert confounded.logging[:, :, 0].max() == pytest.approx(1 - CONFOUNDED.overlap)
    sparse = make_world(WorldConfig(seed=5, sparsity=2.0))
    assert (sparse.purchase[:, :GONE] < plain.purchase[:, :GONE] / 2).mean() > 0.9


def test_a_drifting_log_is_another_worlds_from_the_week_of_the_drift():
    config = WorldConfig(seed=5)
    plain = record_history(make_world(config), 300, 20)
    world = make_world(replace(config, drift_week=12))
    log = record_history(world, 300, 20)
    before = log.week < 12
    assert all(
        np.array_equal(getattr(log, name)[before], getattr(plain, name)[before]) for name in COLUMNS
    )
    assert not np.array_equal(log.purchased[~before], plain.purchased[~before])
    assert world_in_week(world, 11) is world
    later = world_in_week(world, 12)
    assert np.array_equal(later.share, world.share)
    assert np.abs(later.purchase - world.purchase).max() > 0.1
    assert np.array_equal(later.purchase, drifted(world).purchase)


def test_the_same_seed_records_the_same_log():
    world = make_world(CONFOUNDED)
    first, again, other = (record_history(world, 200, 10, seed) for seed in (1, 1, 2))
    for name in COLUMNS:
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.first_week, other.first_week)


def test_one_more_week_leaves_the_weeks_before_as_they_were():
    world = make_world(WorldConfig())
    log = record_history(world, 200, 10)
    states = log.people.state.copy()
    coupon = np.arange(200) % 4
    longer = continue_history(world, log, coupon, np.full(200, 0.25), np.random.default_rng(0))
    assert np.array_equal(log.people.state, states)
    assert not np.array_equal(longer.people.state, states)
    assert all(np.array_equal(getattr(longer, name)[:-200], getattr(log, name)) for name in COLUMNS)
    assert (longer.weeks, log.weeks) == (11, 10)
    assert np.array_equal(longer.coupon[-200:], coupon)
    assert set(longer.week[-200:]) == {10}
    assert set(longer.propensity[-200:]) == {0.25}


def test_everybody_starts_by_a_first_purchase():
    """A customer's rows are all weeks after their first purchase, in order."""
    log = record_history(make_world(WorldConfig()), 100, 12)
    for customer in range(100):
        weeks = log.week[log.customer == customer]
        assert weeks.tolist() == list(range(log.first_week[customer] + 1, 12))
    people = new_customers(make_world(WorldConfig()), 5, np.random.default_rng(0))
    assert people.state.tolist() == [NEW] * 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"overlap": 0.6},
        {"sleeping_dogs": 1.5},
        {"gamma": 1.0},
        {"effect": -1.0},
        {"delay_days": -1},
        {"drift_week": -2},
        {"redemption_by_fatigue": -0.1},
        {"thrift": 1.0},
        {"offer_rate": 0.0},
        {"budget_tightness": math.nan},
        {"confounding": math.inf},
        {"sparsity": math.nan},
    ],
)
def test_impossible_dials_are_refused(wrong):
    with pytest.raises(SettingsError, match=f"world: expected {next(iter(wrong))} .*, came "):
        WorldConfig(**wrong)
    assert set(wrong) <= {field.name for field in fields(WorldConfig)}


def test_a_log_needs_customers_and_two_weeks():
    with pytest.raises(SettingsError, match="came 5, 1"):
        record_history(make_world(WorldConfig()), 5, 1)
