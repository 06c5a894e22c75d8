"""Value of a policy from a log: enumeration of all logs, closed forms, known truth."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binom
from worlds import panel_of

from winback.models.cross_fitting import Plan, Rules, one_hot, view
from winback.models.errors import DataError, SettingsError
from winback.models.off_policy import (
    DIRECT,
    DOUBLY_ROBUST,
    ESTIMATORS,
    IPS,
    SELF_NORMALISED,
    SWITCH,
    Log,
    difference,
    effective_sample_size,
    estimate,
    switch_threshold,
)
from winback.models.response_fit import fit_response
from winback.models.world import CONTACT_COST, FACE_VALUES, WorldConfig, make_world
from winback.models.world_log import record_history
from winback.models.world_truth import worth_of_weeks

# -- three decisions with three coupons: all 6^3 logs can be written down

LOGGING = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
POLICY = np.array([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.2, 0.2, 0.6]])
CHANCE = np.array([[0.1, 0.3, 0.6], [0.5, 0.4, 0.9], [0.0, 1.0, 0.2]])  # of earning 5
TRUE_MODEL = 5 * CHANCE
WRONG_MODEL = np.array([[3.0, -1.0, 0.5], [9.0, 2.0, 2.0], [1.0, 1.0, 7.0]])
EXACT = float((POLICY * TRUE_MODEL).sum(axis=1).mean())


def expectation(estimator, model=None, stated=LOGGING, policy=POLICY):
    """Σ over all logs of their probability times the estimate."""
    total, every = 0.0, list(product(range(3), (0.0, 5.0)))
    for outcome in product(every, repeat=3):
        coupon = np.array([given for given, _ in outcome])
        reward = np.array([earned for _, earned in outcome])
        rows = np.arange(3)
        bought = CHANCE[rows, coupon]
        chance = LOGGING[rows, coupon] * np.where(reward > 0, bought, 1 - bought)
        log = Log(rows, coupon, reward, stated[rows, coupon])
        total += chance.prod() * estimate(log, policy, estimator, model, draws=2).value
    return total


def test_ips_is_unbiased_over_all_logs():
    assert expectation(IPS) == pytest.approx(EXACT, rel=1e-12)


def test_doubly_robust_is_unbiased_over_all_logs_with_a_wrong_model():
    assert expectation(DOUBLY_ROBUST, WRONG_MODEL) == pytest.approx(EXACT, rel=1e-12)


def test_doubly_robust_is_unbiased_over_all_logs_with_wrong_propensities():
    wrong = np.full((3, 3), 1 / 3)
    assert expectation(DOUBLY_ROBUST, TRUE_MODEL, wrong) == pytest.approx(EXACT, rel=1e-12)
    assert abs(expectation(IPS, stated=wrong) - EXACT) > 0.3  # the same log without a model
    assert abs(expectation(DOUBLY_ROBUST, WRONG_MODEL, wrong) - EXACT) > 0.3  # both wrong


def test_direct_method_is_as_good_as_its_model():
    """Closed form: it does not look at rewards."""
    assert expectation(DIRECT, TRUE_MODEL) == pytest.approx(EXACT, rel=1e-12)
    biased = float((POLICY * WRONG_MODEL).sum(axis=1).mean())
    assert expectation(DIRECT, WRONG_MODEL) == pytest.approx(biased, rel=1e-12)


def test_self_normalised_ips_is_a_weighted_mean_and_stays_within_the_rewards():
    """By hand: weights 2, 0 and 1 on rewards 3, 100 and 6."""
    policy = np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    log = Log(np.arange(3), np.array([0, 1, 1]), np.array([3.0, 100.0, 6.0]), np.array([0.5] * 3))
    assert estimate(log, policy, SELF_NORMALISED).value == pytest.approx((2 * 3 + 6) / 3)
    assert estimate(log, policy, IPS).value == pytest.approx((2 * 3 + 6) / 3)
    shifted = Log(log.customer, log.coupon, log.reward + 10, np.array([0.5, 0.5, 0.1]))
    assert estimate(shifted, policy, SELF_NORMALISED).value == pytest.approx((26 + 80) / 7)
    assert estimate(shifted, policy, IPS).value == pytest.approx((26 + 80) / 3)  # above them all


# -- a world with customers of hidden kinds, whose policies' values are sums over kinds

KINDS = np.array([0.5, 0.3, 0.2])
RATE = np.array([0.1, 0.3, 0.6])  # of purchases, by kind
SIGN = np.array([[0.6, 0.3, 0.1], [0.3, 0.4, 0.3], [0.1, 0.3, 0.6]])  # P(what is seen | kind)
LIFT = np.array([[1.0, 1.6, 1.8], [1.0, 1.2, 1.2], [1.0, 1.0, 1.1]])  # by kind and coupon
COST = np.array([0.0, 1.0, 3.0])
MARGIN = 12.0
WORLD_LOGGING = np.array([[0.7, 0.15, 0.15], [0.5, 0.25, 0.25], [0.2, 0.3, 0.5]])
MEAN = (RATE[:, None] * LIFT) * (MARGIN - COST)  # (kinds, coupons)
BY_SIGN = np.einsum("k,ks,ka->sa", KINDS, SIGN, MEAN) / (KINDS @ SIGN)[:, None]


def draw_log(seed, customers, weeks):
    """A log, and what was seen in each decision; better customers get more coupons."""
    rng = np.random.default_rng(seed)
    customer = np.repeat(np.arange(customers), weeks)
    kind = rng.choice(3, customers, p=KINDS)[customer]
    sign = (rng.random(len(kind))[:, None] > SIGN[kind].cumsum(axis=1)).sum(axis=1)
    coupon = (rng.random(len(kind))[:, None] > WORLD_LOGGING[sign].cumsum(axis=1)).sum(axis=1)
    bought = rng.random(len(kind)) < (RATE[:, None] * LIFT)[kind, coupon]
    reward = bought * (rng.gamma(2.0, MARGIN / 2, len(kind)) - COST[coupon])
    return Log(customer, coupon, reward, WORLD_LOGGING[sign, coupon]), sign


def true_value(policy):
    """Of a policy by what is seen, (signs, coupons)."""
    return float(((KINDS @ SIGN)[:, None] * policy * BY_SIGN).sum())


STATIC = np.eye(3)[[1, 1, 1]]
TARGETED = np.array([[0.1, 0.9, 0.0], [0.0, 1.0, 0.0], [0.8, 0.1, 0.1]])


def test_intervals_cover_the_truth_in_92_to_98_percent_of_250_logs():
    """Simulation: customers differ for good, so decisions of one are no independent evidence."""
    truth = dict.fromkeys(ESTIMATORS, true_value(TARGETED))
    truth["difference"] = true_value(TARGETED) - true_value(STATIC)
    hits = dict.fromkeys(truth, 0)
    for seed in range(250):
        log, sign = draw_log(seed, customers=300, weeks=6)
        policy, model = TARGETED[sign], BY_SIGN[sign]
        found = {
            name: estimate(log, policy, name, model, draws=250)
            for name in ESTIMATORS
        }  # fmt: skip
        found["difference"] = difference(log, policy, STATIC[sign], model=0.8 * model, draws=250)
        for name, one in found.items():
            hits[name] += one.lower <= truth[name] <= one.upper
    assert {name: count for name, count in hits.items() if not 230 <= count <= 245} == {}


def test_interval_by_decision_would_be_too_narrow():
    """Oracle: the normal interval of independent decisions against that by customers."""
    log, sign = draw_log(1, customers=500, weeks=10)
    policy = WORLD_LOGGING[sign]  # the log's own, so that all weights are 1
    by_customer = estimate(log, policy, IPS)
    alone = Log(np.arange(len(sign)), log.coupon, log.reward, log.propensity)
    by_decision = estimate(alone, policy, IPS)
    width = 2 * 1.96 * log.reward.std() / np.sqrt(len(sign))
    assert by_decision.upper - by_decision.lower == pytest.approx(width, rel=0.05)
    assert by_customer.upper - by_customer.lower > 1.2 * width


def test_interval_equals_the_cluster_robust_formula():
    """Closed form on symmetric rewards, where bootstrap-t and normal agree; three levels."""
    rng = np.random.default_rng(4)
    customer, reward = np.repeat(np.arange(2000), 3), rng.normal(5, 2, 6000)
    log = Log(customer, np.zeros(6000, int), reward, np.ones(6000))
    sums = (reward - reward.mean()).reshape(2000, 3).sum(axis=1)
    error = np.sqrt((sums**2).sum()) / 6000
    for level, z in ((0.8, 1.2816), (0.9, 1.6449), (0.95, 1.96)):
        found = estimate(log, np.ones((6000, 1)), IPS, level=level)
        assert found.value == pytest.approx(reward.mean())
        assert reward.mean() - found.lower == pytest.approx(z * error, rel=0.08)
        assert found.upper - reward.mean() == pytest.approx(z * error, rel=0.08)
        assert found.upper - found.lower >= 2 * z * error * 0.9999


def test_doubly_robust_narrows_the_interval_where_the_model_is_right():
    log, sign = draw_log(2, customers=1000, weeks=4)
    widths = {}
    for name in (DIRECT, DOUBLY_ROBUST, IPS):
        found = estimate(log, TARGETED[sign], name, BY_SIGN[sign])
        widths[name] = found.upper - found.lower
    assert widths[DIRECT] < widths[DOUBLY_ROBUST] < widths[IPS]


def test_difference_is_paired():
    """By construction: what both policies do alike cancels; equal policies differ by exactly 0."""
    log, sign = draw_log(3, customers=500, weeks=6)
    policy = TARGETED[sign]
    equal = difference(log, policy, policy.copy(), IPS)
    assert (equal.value, equal.lower, equal.upper, equal.disagreement) == (0, 0, 0, 0)
    nearly = policy.copy()
    nearly[:60] = np.eye(3)[0]
    small = difference(log, policy, nearly, IPS)
    alone = estimate(log, policy, IPS)
    assert small.upper - small.lower < 0.5 * (alone.upper - alone.lower)
    assert small.value == pytest.approx(alone.value - estimate(log, nearly, IPS).value)
    assert small.disagreement == pytest.approx(0.5 * np.abs(policy - nearly).sum(axis=1).mean())


def test_estimates_are_a_function_of_their_arguments_not_of_row_order_or_names():
    log, sign = draw_log(5, customers=200, weeks=5)
    order = np.random.default_rng(0).permutation(len(sign))
    once = estimate(log, TARGETED[sign], DOUBLY_ROBUST, BY_SIGN[sign], seed=3)
    assert once == estimate(log, TARGETED[sign], DOUBLY_ROBUST, BY_SIGN[sign], seed=3)
    again = estimate(
        log.where(order), TARGETED[sign][order], DOUBLY_ROBUST, BY_SIGN[sign][order], seed=3
    )
    assert again.lower == pytest.approx(once.lower, rel=1e-9)
    renamed = Log(10 * log.customer - 7, log.coupon, log.reward, log.propensity)
    assert estimate(renamed, TARGETED[sign], IPS) == estimate(log, TARGETED[sign], IPS)


# -- the world of the benchmark, in which every decision's expected profit is known

LOGS, CUSTOMERS, WEEKS = 200, 400, 12
DIFFERENCE = "difference to none"


def logs_of_the_known_world(confounding):
    """A log of all customers, policy and model (m, A) as learned from others, and (m, A) truths.

    Customers live on their own: 200 logs of 400 are one of 80,000, cut.
    """
    world = make_world(WorldConfig(seed=5, confounding=confounding, overlap=0.1))
    contact = np.array([0.0, *[CONTACT_COST] * (len(FACE_VALUES) - 1)])
    every = np.ones(len(FACE_VALUES), bool)
    rules = Rules(np.array(FACE_VALUES), contact, every, 0.0, 0.0, pessimism=1.0, min_visits=30)
    others = panel_of(record_history(world, 3000, WEEKS, seed=1))
    plan = Plan(fit_response(others, rules.face_values, max_iterations=15).model, rules)
    history = record_history(world, LOGS * CUSTOMERS, WEEKS, seed=3)
    panel = panel_of(history)
    rows = np.flatnonzero(panel.closed)
    customer, seen = panel.customer[rows], view(plan, others, panel)
    log = Log(customer, panel.coupon[rows], seen.earned(rows), panel.propensity[rows])
    true = worth_of_weeks(world, history, customer, panel.period[rows], 0.0)
    return log, seen.greedy(rows), seen.outlook(rows)[0], true


@pytest.mark.slow
@pytest.mark.parametrize("confounding", [0.0, 1.0])
def test_in_200_logs_of_the_known_world_errors_average_0_and_intervals_cover(confounding):
    """Oracle: exact expected profits in the hidden states, γ = 0, of a policy learned elsewhere.

    Errors are against the log's own customers, where the estimates without bias have none; the
    intervals are about all customers like them. The direct method is as biased as its model, and
    switch-DR as its model where it switches off: they are only printed
    (``pytest -m slow tests/test_off_policy.py -s``), the others' errors average 0 within four
    standard errors and their intervals cover as often as 99.9 % of such 200 would at 95 %.
    """
    log, policy, model, true = logs_of_the_known_world(confounding)
    none = one_hot(np.zeros(len(policy), np.int64), policy.shape[1])
    worth = {**dict.fromkeys(ESTIMATORS, policy), DIFFERENCE: policy - none}
    worth = {name: (tilt * true).sum(axis=1) for name, tilt in worth.items()}
    errors, hits = {name: [] for name in worth}, dict.fromkeys(worth, 0)
    for number in range(LOGS):
        mine = log.customer // CUSTOMERS == number
        here = log.where(mine), policy[mine]
        found = {name: estimate(*here, name, model[mine]) for name in ESTIMATORS}
        found[DIFFERENCE] = difference(*here, none[mine], model=model[mine])
        for name, one in found.items():
            errors[name].append(one.value - worth[name][mine].mean())
            hits[name] += one.lower <= worth[name].mean() <= one.upper
    scores = {name: np.mean(e) / np.std(e, ddof=1) * np.sqrt(LOGS) for name, e in errors.items()}
    for name, score in scores.items():
        off = f"{np.mean(errors[name]):+.4f} of {worth[name].mean():.3f}, {score:+.1f} errors"
        print(f"{name}: off by {off}; 95 % intervals held the truth in {hits[name] / LOGS:.1%}")
    low, high = binom.interval(0.999, LOGS, 0.95)
    for name in set(worth) - {DIRECT, SWITCH}:
        assert abs(scores[name]) < 4, name
        assert low <= hits[name] <= high, name


# -- switch

NEVER = np.array([[1.0, 0.0]])


def rare_log(n=4000):
    """Every 40th decision with a propensity of 0.001 and a reward of ±½; the rest by lot."""
    rng = np.random.default_rng(0)
    rare = np.arange(n) % 40 == 0
    propensity = np.where(rare, 0.001, 0.5)
    reward = np.where(rare, rng.choice([-0.5, 0.5], n), rng.normal(1, 0.1, n))
    return Log(np.arange(n), np.zeros(n, int), reward, propensity), rare


def test_switch_threshold_minimises_the_stated_risk():
    """Brute force: every candidate's variance and bias bound, one customer at a time."""
    log, sign = draw_log(6, customers=40, weeks=3)
    policy, model = TARGETED[sign], 0.5 * BY_SIGN[sign]
    weight = policy[np.arange(120), log.coupon] / log.propensity
    residual = log.reward - model[np.arange(120), log.coupon]
    risks = []
    candidates = np.geomspace(weight[weight > 0].min(), weight.max(), 21)
    for tau in candidates:
        kept = [w if w <= tau * (1 + 1e-9) else 0.0 for w in weight]
        term = (policy * model).sum(axis=1) + kept * residual
        by_customer = [sum((term - term.mean())[log.customer == c]) for c in range(40)]
        bias = np.sqrt((residual**2).mean()) * sum(weight - kept) / sum(weight)
        risks.append(sum(np.square(by_customer)) / 120**2 + bias**2)
    best = candidates[int(np.argmin(risks))]
    assert switch_threshold(log, policy, model) == pytest.approx(best, rel=1e-6)


def test_switch_drops_what_no_bias_could_outweigh_and_else_equals_doubly_robust():
    """Closed form: without the rare decisions the terms are q + 2(r − q), with the model there."""
    log, rare = rare_log()
    policy, model = always(), np.ones((4000, 2))
    model[rare] = 0.0
    terms = np.where(rare, 0.0, 1 + 2 * (log.reward - 1))
    assert estimate(log, policy, SWITCH, model).value == pytest.approx(terms.mean())
    terms[rare] = 1000 * log.reward[rare]
    assert estimate(log, policy, DOUBLY_ROBUST, model).value == pytest.approx(terms.mean())
    calm = log.where(~rare)
    for one in (SWITCH, DOUBLY_ROBUST):
        found = estimate(calm, policy[~rare], one, model[~rare])
        assert found.value == pytest.approx((1 + 2 * (calm.reward - 1)).mean())


# -- alarms


def by_lot(n=4000, propensity=0.5, coupon=None):
    coupon = np.arange(n) % 2 if coupon is None else coupon
    reward = np.random.default_rng(0).normal(1, 1, n)
    return Log(np.arange(n), coupon, reward, np.full(n, propensity))


def always(n=4000):
    return np.tile(NEVER, (n, 1))


def test_effective_sample_size_closed_form():
    """Kish: equal weights count in full, one of n counts as one."""
    assert effective_sample_size(np.full(50, 7.0)) == pytest.approx(50)
    assert effective_sample_size(np.array([3.0, 0, 0])) == 1
    assert effective_sample_size(np.zeros(3)) == 0


def test_no_alarm_where_the_log_was_drawn_by_lot():
    found = estimate(by_lot(), always(), IPS)
    assert found.alarm is None
    assert (found.effective_sample_size, found.max_weight) == (2000, 2)


def one_heavy():
    log = by_lot()
    propensity = np.where(np.arange(4000) == 0, 0.004, 0.5)
    return Log(log.customer, log.coupon, log.reward, propensity)


def few_rewards():
    log = by_lot()
    return Log(log.customer, log.coupon, np.where(np.arange(4000) < 4, 1e4, 0.0), log.propensity)


ALARMS = [
    (by_lot(coupon=np.ones(4000, int)), "holds none of the coupons"),
    (by_lot(propensity=0.8), "weights average 0.62 instead of 1"),
    (by_lot(180), "180 decisions are worth only 90"),
    (one_heavy(), "one decision carries 6% of all weight (largest weight 250)"),
    (few_rewards(), "2 customers decide the estimate"),
]


@pytest.mark.parametrize(("log", "words"), ALARMS)
def test_alarms(log, words):
    found = estimate(log, always(len(log.coupon)), IPS)
    assert words in (found.alarm or "")


def test_difference_is_judged_where_the_policies_differ():
    """By hand: 50 of 4,000 decisions differ, and half of these hold the policy's coupon."""
    other = always()
    other[:50] = [0.0, 1.0]
    found = difference(by_lot(), always(), other, IPS)
    assert (found.effective_sample_size, found.disagreement) == (25, 0.0125)
    assert "50 decisions are worth only 25" in found.alarm
    other[10:100] = NEVER
    found = difference(by_lot(), always(), other, IPS)
    assert (found.alarm, found.effective_sample_size) == (None, 5)  # 0.25 % cannot matter


def test_no_weight_at_all_gives_no_number():
    found = estimate(by_lot(coupon=np.ones(4000, int)), always(), SELF_NORMALISED)
    assert np.isnan(found.value)


# -- errors

ONE = np.ones(3)
COUPON = np.zeros(3, int)
GOOD = Log(COUPON, COUPON, ONE, ONE)
BAD_INPUTS = [
    (lambda: Log(COUPON, COUPON, ONE, ONE[:2]), DataError, "columns of one length"),
    (lambda: Log(COUPON, COUPON, ONE * np.nan, ONE), DataError, "rewards; wrong in rows 0, 1, 2"),
    (lambda: Log(COUPON, COUPON, ONE, 0 * ONE), DataError, "estimate those that were not logged"),
    (lambda: estimate(GOOD, np.ones((2, 1)), IPS), DataError, "(3, coupons); came (2, 1)"),
    (lambda: estimate(GOOD, np.ones((3, 2)), IPS), DataError, "sum to 1; wrong in rows 0, 1, 2"),
    (lambda: estimate(GOOD, np.ones((3, 1)), "magic"), SettingsError, "came 'magic'"),
    (lambda: estimate(GOOD, np.ones((3, 1)), IPS, level=1), SettingsError, "level between 0 and 1"),
    (lambda: estimate(GOOD, np.ones((3, 1))), DataError, "doubly_robust needs expected rewards"),
    (
        lambda: estimate(GOOD, np.ones((3, 1)), model=np.full((3, 1), np.inf)),
        DataError,
        "finite expected rewards; wrong in rows 0, 1, 2 (3 rows)",
    ),
    (
        lambda: estimate(Log(COUPON, COUPON + 1, ONE, ONE), np.ones((3, 1)), IPS),
        DataError,
        "coupons from 0 to 0; wrong in rows 0, 1, 2",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_INPUTS)
def test_bad_input(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)
