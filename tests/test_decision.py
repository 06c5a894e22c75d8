"""Decisions: the contract's rules, honest propensities, bad input, and the words."""

import dataclasses
import math
from datetime import date, datetime, timedelta

import numpy as np
import pytest

from winback.models.decision import (
    SUPPRESSION_REASONS,
    Decisions,
    decide,
    decision_ids,
    summarise,
)
from winback.models.decision_inputs import Customers, Experiment, Outlook
from winback.models.errors import DataError, SettingsError
from winback.models.experiment import assign_holdout
from winback.models.limits import Limit
from winback.models.reasons import describe_run

MONDAY = date(2024, 1, 1)
EXPERIMENT = Experiment(
    salt="s",
    holdout_share=0.1,
    exploration_rate=0.2,
    propensity_floor=0.01,
    exploration_budget_share=0.2,
)
NO_EXPERIMENT = dataclasses.replace(EXPERIMENT, holdout_share=0.0, exploration_rate=0.0)
COUPONS = ["none", "small", "large"]


def world(n=1000, seed=0, supported=0.9):
    """Customers with random flags, and random forecasts for three coupons."""
    rng = np.random.default_rng(seed)
    customers = Customers(
        customer_id=np.array([f"c{number}" for number in range(n)], dtype=object),
        can_contact=rng.random(n) < 0.9,
        has_purchased=rng.random(n) < 0.9,
        recent_contact=rng.random(n) < 0.1,
    )
    cost = rng.gamma(2, 0.5, (n, 3)) * [0, 1, 2]
    is_supported = rng.random((n, 3)) < supported
    is_supported[:, 0] = True
    outlook = Outlook(
        margin=rng.normal(5, 2, (n, 1)) + rng.normal(1, 1, (n, 3)) * [0, 1, 2] + cost,
        cost=cost,
        contact_cost=np.array([0, 0.1, 0.1]),
        future_value=rng.normal(10, 0.2, (n, 3)),
        is_supported=is_supported,
    )
    return customers, outlook


def everybody(n):
    """Customers that nothing keeps from a coupon."""
    yes = np.ones(n, bool)
    return Customers([f"c{number}" for number in range(n)], yes, yes, ~yes)


def by_hand(uplift, cost):
    """An outlook of given long-run uplifts and costs, everything supported."""
    uplift, cost = np.array(uplift, float), np.array(cost, float)
    zero = np.zeros_like(uplift)
    return Outlook(uplift + cost, cost, zero[0], zero, zero == 0)


@pytest.mark.parametrize("budget", [0.0, 0.5, 20.0, 200.0, 1e5])
@pytest.mark.parametrize("supported", [0.0, 0.4, 1.0])
def test_rules_of_the_contract(budget, supported):
    customers, outlook = world(supported=supported)
    d = decide(customers, outlook, EXPERIMENT, budget, MONDAY)
    given = d.coupon > 0
    free = customers.can_contact & customers.has_purchased & ~customers.recent_contact
    holdout = assign_holdout(customers.customer_id, "s", 0.1)

    assert math.fsum(d.expected_cost) == d.allocation.expected_spend <= budget
    assert (d.treatment_group == np.where(holdout, "holdout", "treatment")).all()
    assert not (given & (holdout | ~free)).any()
    assert (d.propensity[holdout | ~free] == 1).all()
    assert ((d.propensity > 0) & (d.propensity <= 1)).all()
    greedy = given & ~d.is_exploration
    assert outlook.is_supported[greedy, d.coupon[greedy]].all()
    assert (d.long_run_uplift[greedy] > 0).all()
    assert (d.expected_cost[~given] == 0).all()
    assert (d.long_run_uplift[~given] == 0).all()
    assert d.expected_uplift == pytest.approx(d.expected_profit - d.baseline_profit)
    no_reason = d.suppression_reason == None  # noqa: E711
    assert (no_reason == (given | d.is_exploration)).all()
    assert d.is_cold_start == (supported == 0)
    assert len(set(decision_ids(MONDAY, customers.customer_id))) == len(given)


def test_money_columns_are_the_formulas_of_the_contract():
    """By hand: margin 9, cost 2, contact 1, future 4 against margin 5, future 3 with `none`."""
    outlook = Outlook(
        margin=np.array([[5.0, 9.0]]),
        cost=np.array([[0.0, 2.0]]),
        contact_cost=np.array([0.0, 1.0]),
        future_value=np.array([[3.0, 4.0]]),
        is_supported=np.ones((1, 2), bool),
    )
    d = decide(everybody(1), outlook, NO_EXPERIMENT, 2.0, MONDAY)
    money = (d.expected_profit, d.baseline_profit, d.expected_uplift, d.expected_cost)
    assert [column[0] for column in money] == [6, 5, 1, 2]
    assert [d.q_value[0], d.long_run_uplift[0], d.propensity[0]] == [10, 2, 1]


def test_redeemed_money_of_earlier_offers_takes_nothing_from_the_budget():
    outlook = by_hand([[0, 1]], [[3, 2]])
    d = decide(everybody(1), outlook, NO_EXPERIMENT, 2.0, MONDAY)
    assert d.coupon.tolist() == [1]
    assert d.expected_cost.tolist() == [2]


def test_suppression_precedence():
    """The contract's order, one customer per reason; every later reason holds for them too."""
    n = 7
    unsupported = np.array([[True, False]] * n)
    unsupported[5:, 1] = True
    outlook = dataclasses.replace(
        by_hand([[0, -1.0]] * 6 + [[0, 1.0]], [[0, 5.0]] * n), is_supported=unsupported
    )
    rank = np.arange(n)
    customers = Customers([f"c{row}" for row in rank], rank > 0, rank > 1, (rank < 3))
    in_holdout = [name for name in map(str, range(99)) if assign_holdout([name], "s", 0.5)[0]]
    not_in = [name for name in map(str, range(99)) if not assign_holdout([name], "s", 0.5)[0]]
    customers = dataclasses.replace(customers, customer_id=in_holdout[:4] + not_in[:3])
    experiment = dataclasses.replace(NO_EXPERIMENT, holdout_share=0.5)
    d = decide(customers, outlook, experiment, 1.0, MONDAY)
    assert tuple(d.suppression_reason) == SUPPRESSION_REASONS


def test_zero_budget_gives_nobody_a_coupon_even_free_ones():
    outlook = by_hand([[0, 1.0]] * 5, [[0, 0.0]] * 5)
    d = decide(everybody(5), outlook, EXPERIMENT, 0.0, MONDAY)
    assert (d.coupon == 0).all()
    assert (d.propensity == 1).all()
    assert "budget" in d.suppression_reason


@pytest.mark.parametrize("budget", [20.0, 100.0, 1e5])
def test_cold_start_explores_with_all_that_the_money_pays_for(budget):
    """By hand: spending 3 standard deviations below the budget, and half of the free at most."""
    customers, outlook = world(supported=0.0)
    d = decide(customers, outlook, EXPERIMENT, budget, MONDAY)
    given, chance, cost = d.coupon > 0, d.exploration.chance, outlook.cost * [0, 1, 1]
    assert given.any()
    assert (given == d.is_exploration).all()
    mean, variance = (chance * cost).sum(), (chance * cost**2).sum()
    free = d.exploration.rate > 0
    assert budget == 1e5 or mean + 3 * np.sqrt(variance) == pytest.approx(budget)
    assert budget < 1e5 or d.exploration.rate[free] == pytest.approx(np.full(free.sum(), 0.5))
    assert d.allocation.expected_spend <= budget
    # exact: what was drawn with its chance, and none for whoever did not explore
    assert d.propensity[given] == pytest.approx(chance[given, d.coupon[given]])
    assert d.propensity[~given] == pytest.approx(1 - d.exploration.rate[~given])
    # the coupon that costs half is drawn √2 times as often, above the floor
    eligible = free[:, None] & np.ones(3, bool)
    prices = (eligible * cost).sum(axis=0)[1:]
    above = chance[free][0, 1:] / d.exploration.rate[free][0] * 0.5 - EXPERIMENT.propensity_floor
    assert above[0] / above[1] == pytest.approx(np.sqrt(prices[1] / prices[0]))
    assert "one drawn by chance, to learn" in describe_run(summarise(d, COUPONS))


def test_a_cold_start_learns_of_more_customers_than_the_usual_rate_would():
    """Oracle: the same run with one customer's coupon known, so that it is no cold start."""
    customers, outlook = world(supported=0.0)
    cold = decide(customers, outlook, EXPERIMENT, 1e5, MONDAY)
    outlook.is_supported[0, 1] = True
    usual = decide(customers, outlook, EXPERIMENT, 1e5, MONDAY)
    assert not usual.is_cold_start
    counts = [np.bincount(d.coupon[d.is_exploration], minlength=3)[1:] for d in (cold, usual)]
    assert (counts[0] > 2.5 * counts[1]).all()


def test_a_cold_start_without_exploration_gives_nothing():
    d = decide(*world(supported=0.0), NO_EXPERIMENT, 100.0, MONDAY)
    assert (d.is_cold_start, d.coupon.any(), d.propensity.min()) == (True, False, 1)


def test_exploration_keeps_to_its_share_of_the_budget():
    customers, outlook = world()
    d = decide(customers, outlook, EXPERIMENT, 100.0, MONDAY)
    assert 0 < d.exploration.expected_cost <= 20
    assert 0 < d.exploration.scale < 1


def unproven(n=1000, supported=0.5):
    customers, outlook = world(n, supported=supported)
    return customers, dataclasses.replace(outlook, is_proven=False)


@pytest.mark.parametrize("budget", [0.0, 20.0, 100.0, 1e5])
def test_without_proof_only_chance_gives_coupons(budget):
    """Oracles: the rule for each customer; the draws of the same run with proof."""
    customers, outlook = unproven()
    d = decide(customers, outlook, EXPERIMENT, budget, MONDAY)
    proven = dataclasses.replace(outlook, is_proven=True)
    other = decide(customers, proven, EXPERIMENT, budget, MONDAY)
    assert (other.coupon[~other.is_exploration] > 0).any() == (budget > 0)
    assert not d.coupon[~d.is_exploration].any()
    assert (d.is_exploration == other.is_exploration).all()
    assert (d.coupon[d.is_exploration] == other.coupon[d.is_exploration]).all()
    assert not d.is_cold_start
    assert d.allocation.expected_spend == pytest.approx(d.exploration.expected_cost)
    assert d.exploration.expected_cost <= 0.2 * budget
    free = customers.can_contact & customers.has_purchased & ~customers.recent_contact
    idle = free & (d.treatment_group == "treatment") & ~d.is_exploration
    supported = outlook.is_supported[:, 1:].any(axis=1)
    reason = np.where(supported, "no_uplift", "low_support")
    assert (d.suppression_reason[idle] == reason[idle]).all()
    assert {"no_uplift", "low_support"} <= set(d.suppression_reason[idle])
    # by hand: one coupon of three by chance, none otherwise
    rate, drawn = d.exploration.rate, d.is_exploration & (d.coupon > 0)
    assert d.propensity[drawn] == pytest.approx(rate[drawn] / 3)
    assert d.propensity[idle] == pytest.approx(1 - rate[idle] * 2 / 3)
    assert (d.is_proven, summarise(d, COUPONS).is_proven) == (False, False)
    assert summarise(d, COUPONS).chosen == 0


def test_a_cold_start_without_proof_explores_with_the_whole_budget():
    """No coupon has support anywhere: the same decisions as ever."""
    customers, outlook = unproven(supported=0.0)
    d = decide(customers, outlook, EXPERIMENT, 100.0, MONDAY)
    assert d.is_cold_start
    assert 20 < d.allocation.expected_spend <= 100
    proven = dataclasses.replace(outlook, is_proven=True)
    assert (d.coupon == decide(customers, proven, EXPERIMENT, 100.0, MONDAY).coupon).all()
    assert "No coupon can be judged" in describe_run(summarise(d, COUPONS))


def test_without_proof_a_floor_is_kept_by_the_cheapest_coupons():
    """By hand: two of four customers, whatever the forecasts promise; the rest get none."""
    outlook = by_hand([[0, 9.0, 9.0]] * 4, [[0, 4, 6], [0, 1, 2], [0, 3, 5], [0, 2, 1.5]])
    outlook = dataclasses.replace(outlook, is_proven=False)
    floor = Limit("order", np.ones(4, bool), np.ones(3, bool), "contacts", floor=2.0)
    d = decide(everybody(4), outlook, NO_EXPERIMENT, 50.0, MONDAY, [floor])
    assert d.coupon.tolist() == [0, 1, 0, 2]
    assert d.suppression_reason.tolist() == ["no_uplift", None, "no_uplift", None]
    assert d.allocation.expected_spend == 2.5


def test_without_proof_limits_hold_and_floors_give_no_more_than_they_ask_for():
    """Oracle: the limits' own sums; who is in no floor gets a coupon by chance alone."""
    customers, outlook = unproven(supported=0.9)
    odd, every = np.arange(1000) % 2 == 1, np.ones(3, bool)
    limits = [
        Limit("odd", odd, every, "spend", floor=30.0),
        Limit("large", np.ones(1000, bool), np.arange(3) == 2, "contacts", ceiling=20),
    ]
    d = decide(customers, outlook, EXPERIMENT, 200.0, MONDAY, limits)
    chosen = (d.coupon > 0) & ~d.is_exploration
    assert chosen.any()
    assert odd[chosen].all()
    assert outlook.is_supported[chosen, d.coupon[chosen]].all()
    spent = d.expected_cost[odd].sum()
    assert 30 <= spent <= 30 + d.expected_cost[chosen].max()
    assert (d.coupon == 2).sum() <= 20
    assert describe_run(summarise(d, COUPONS), "EUR").startswith(
        "Past offers do not show yet that coupons make customers buy, so only "
        f"{((d.coupon > 0) & d.is_exploration).sum()} of 1,000 customers get one drawn by chance, "
        f"to learn, and {chosen.sum()} because a limit has a floor; expected cost "
    )


def test_words_of_a_run_without_proof():
    customers, outlook = unproven()
    d = decide(customers, outlook, EXPERIMENT, 100.0, MONDAY)
    sentence = describe_run(summarise(d, COUPONS), "EUR")
    assert f"so only {(d.coupon > 0).sum()} of 1,000 customers get one drawn by chance" in sentence
    assert "to learn; expected cost" in sentence
    assert sentence.endswith("of 100.00 EUR, the rest is kept.")


def test_a_catalogue_of_none_only():
    customers, outlook = world(50)
    first = slice(0, 1)
    only = Outlook(
        outlook.margin[:, first],
        outlook.cost[:, first],
        outlook.contact_cost[first],
        outlook.future_value[:, first],
        outlook.is_supported[:, first],
    )
    d = decide(customers, only, EXPERIMENT, 10.0, MONDAY)
    assert (d.coupon == 0).all()
    assert describe_run(summarise(d, ["none"])).startswith("Nobody gets a coupon: the catalogue")


def test_no_customers():
    customers, outlook = world(0)
    d = decide(customers, outlook, EXPERIMENT, 10.0, MONDAY)
    assert summarise(d, COUPONS).customers == len(d.coupon) == 0


def test_customers_without_a_purchase_need_no_forecast():
    customers, outlook = world()
    before = decide(customers, outlook, EXPERIMENT, 50.0, MONDAY)
    outlook.margin[~customers.has_purchased] = np.nan
    outlook.cost[~customers.has_purchased] = -1
    after = decide(customers, outlook, EXPERIMENT, 50.0, MONDAY)
    assert (before.coupon == after.coupon).all()
    assert np.isfinite(after.expected_profit).all()


def test_rerun_gives_the_same_decisions_and_ids_name_date_and_customer():
    customers, outlook = world()
    one, two = (decide(customers, outlook, EXPERIMENT, 50.0, MONDAY) for _ in range(2))
    for field in dataclasses.fields(Decisions)[:12]:
        assert (getattr(one, field.name) == getattr(two, field.name)).all(), field.name
    pinned = "9976564f1b6d7792595a182a329ec372"  # must never change: offers refer to it
    assert decision_ids(MONDAY, ["c1"])[0] == pinned
    assert decision_ids(datetime(2024, 1, 1, 9), ["c1"])[0] == pinned
    assert decision_ids(MONDAY, ["c1"])[0] != decision_ids(MONDAY + timedelta(1), ["c1"])[0]


@pytest.mark.parametrize(("supported", "budget"), [(0.9, 150.0), (0.0, 300.0)])
def test_ips_from_logged_draws_is_unbiased(supported, budget):
    """Simulation: what "none", "small" and "large to everybody" bring is known.

    300 customers, 1,500 dates with new forecasts, a budget that binds; also in cold starts.
    Oracle: E[1[drawn = a]/π] is 1 for every coupon, and the weighted outcomes average to the true
    mean outcome.
    """
    n, dates = 300, 1500
    experiment = Experiment("s", 0.0, 0.4, 0.01, 0.5)
    weights, estimates, truths = (np.zeros((dates, 3)) for _ in range(3))
    for day in range(dates):
        _, outlook = world(n, seed=day, supported=supported)
        d = decide(everybody(n), outlook, experiment, budget, MONDAY + timedelta(day))
        assert d.is_cold_start or d.allocation.dual_price > 0
        weight = (d.coupon[:, None] == np.arange(3)) / d.propensity[:, None]
        weights[day], truths[day] = weight.mean(axis=0), outlook.margin.mean(axis=0)
        estimates[day] = (weight * outlook.margin).mean(axis=0)
    for error, scale in ((weights - 1, 1.0), (estimates - truths, truths.mean(axis=0))):
        spread = error.std(axis=0) / np.sqrt(dates)
        assert (np.abs(error.mean(axis=0)) < 4 * spread).all()
        assert (spread < 0.01 * scale).all()  # the test sees a bias of a few percent


FORECAST = by_hand([[0, 1.0]] * 7, [[0, 1.0]] * 7)
SEVEN = everybody(7)
MISSING = np.full((7, 2), np.nan)
BAD_INPUTS = [
    ({"budget": -1.0}, DataError, "a budget of 0 or more, came -1"),
    ({"budget": math.inf}, DataError, "a budget of 0 or more, came inf"),
    ({"margin": MISSING}, DataError, "wrong for customers c0, c1, c2, c3, c4, … (7 rows)"),
    ({"cost": -FORECAST.cost}, DataError, "costs of 0 or more for every buyer; wrong for"),
    ({"future_value": MISSING}, DataError, "finite forecasts and costs of 0 or more"),
    ({"margin": np.ones(7)}, DataError, "a margin per customer and coupon, `none` first"),
    ({"cost": np.ones((7, 3))}, DataError, "cost of shape (7, 2) like margin, came (7, 3)"),
    ({"contact_cost": np.array([1.0, 1.0])}, DataError, "0 for `none`; came [1.0, 1.0]"),
    ({"contact_cost": np.array([0, np.nan])}, DataError, "2 contact costs of 0 or more"),
    ({"customer_id": ["a"] * 7}, DataError, "each customer once; several rows for a (1 row)"),
    ({"customer_id": ["a"]}, DataError, "expected 7 customer ids, came 1"),
    ({"customer_id": [None, *"abcdef"]}, DataError, "customer ids as text; wrong in rows 0"),
    ({"can_contact": np.ones(7)}, DataError, "can_contact as 7 values true or false, came float"),
    ({"holdout_share": 2.0}, SettingsError, "a holdout share between 0 and 1, came 2.0"),
    ({"propensity_floor": 0.6}, SettingsError, "a propensity floor of at most 0.5, since 2"),
]


def with_changes(thing, changes):
    names = {field.name for field in dataclasses.fields(thing)}
    return dataclasses.replace(thing, **{k: v for k, v in changes.items() if k in names})


@pytest.mark.parametrize(("changes", "error", "message"), BAD_INPUTS)
def test_bad_input(changes, error, message):
    budget = changes.get("budget", 5.0)
    parts = (with_changes(part, changes) for part in (SEVEN, FORECAST, EXPERIMENT))
    with pytest.raises(error) as raised:
        decide(*parts, budget, MONDAY)
    assert message in str(raised.value)


def test_words_of_a_run():
    customers, outlook = world()
    d = decide(customers, outlook, EXPERIMENT, 100.0, MONDAY)
    given = (d.coupon > 0).sum()
    sentence = describe_run(summarise(d, COUPONS), "EUR")
    assert sentence.startswith(f"{given} of 1,000 customers get a coupon; expected cost 100.00 EUR")
    assert "of 100.00 EUR, expected gain" in sentence
    broke = summarise(decide(customers, outlook, EXPERIMENT, 0.0, MONDAY), COUPONS)
    assert describe_run(broke) == "Nobody gets a coupon: the budget is 0."


def test_summary_adds_up():
    customers, outlook = world()
    d = decide(customers, outlook, EXPERIMENT, 100.0, MONDAY)
    summary = summarise(d, COUPONS)
    assert sum(summary.coupons.values()) == summary.customers == 1000
    idle = sum(summary.suppressed.values()) + ((d.coupon == 0) & d.is_exploration).sum()
    assert idle == summary.coupons["none"]
    assert summary.smallest_propensity == d.propensity.min()
    assert summary.exploration_rate == pytest.approx(0.2 * summary.exploration_scale)
    assert summary.long_run_uplift == pytest.approx(d.long_run_uplift.sum())
