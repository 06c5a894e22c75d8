"""Why this coupon and not another: the next best against brute force, and the words for it."""

import dataclasses
import math

import numpy as np
import pytest
from test_decision import (
    EXPERIMENT,
    MONDAY,
    NO_EXPERIMENT,
    by_hand,
    everybody,
    world,
)

from winback.models.decision import SUPPRESSION_REASONS, decide
from winback.models.experiment import assign_holdout
from winback.models.limits import Limit
from winback.models.next_best import NextBest
from winback.models.reasons import explain

BUDGETS = [0.0, 5.0, 100.0, 1e5]


def doubtful(n=300, seed=0):
    """The world of random forecasts, with doubt."""
    customers, outlook = world(n, seed, supported=0.8)
    doubt = np.random.default_rng(seed).random((n, 3)) * [0, 0.5, 1]
    return customers, dataclasses.replace(outlook, doubt=doubt)


def some_limits(n):
    """One limit in money, one in customers, and a floor."""
    odd, coupons = np.arange(n) % 2 == 1, np.array([True, True, False])
    return [
        Limit("odd", odd, np.ones(3, bool), "spend", ceiling=8.0),
        Limit("small", np.ones(n, bool), coupons, "contacts", ceiling=40.0),
        Limit("large to even", ~odd, ~coupons, "contacts", floor=20.0),
    ]


def by_brute_force(customers, outlook, d, limits):
    """(coupon, uplift, cost) of each customer's next best: every coupon tried, one by one."""
    free = customers.can_contact & customers.has_purchased & ~customers.recent_contact
    free &= d.treatment_group == "treatment"
    cost = outlook.cost * [0, 1, 1]
    value = outlook.margin - outlook.cost - outlook.contact_cost + outlook.future_value
    uplift = value - value[:, :1]
    answer = []
    for row in np.arange(len(free)):
        best = (-1, math.nan, math.nan)
        choices = []
        for a in range(3):
            charge = sum(
                d.allocation.limit_prices.get(limit.name, 0.0) * limit.weight(cost)[row, a]
                for limit in limits
            )
            sure = uplift[row, a] - outlook.doubt[row, a]
            alone = all(limit.weight(cost)[row, a] <= limit.ceiling for limit in limits)
            floored = any(
                limit.floor > 0 and limit.customers[row] and limit.coupons[a] for limit in limits
            )
            if a and not (free[row] and outlook.is_supported[row, a] and alone):
                continue
            net = sure - d.allocation.dual_price * cost[row, a] - charge
            choices.append((a, net, bool(a) and (sure > 0 or floored)))
        worthy = [choice for choice in choices if choice[2] or not choice[0]]
        pool = worthy if len(worthy) > 1 else choices
        for a, _, _ in sorted(pool, key=lambda choice: (-choice[1], cost[row, choice[0]])):
            if a != d.coupon[row]:
                best = (a, uplift[row, a], cost[row, a])
                break
        answer.append(best)
    return np.array(answer)


CASES = [*((budget, False) for budget in BUDGETS), (100.0, True), (1e5, True)]


@pytest.mark.parametrize(("budget", "is_limited"), CASES)
def test_next_best_is_that_of_brute_force(budget, is_limited):
    customers, outlook = doubtful()
    limits = some_limits(300) if is_limited else []
    d = decide(customers, outlook, EXPERIMENT, budget, MONDAY, limits)
    other = d.next_best
    came = np.column_stack([other.coupon, other.long_run_uplift, other.expected_cost])
    np.testing.assert_allclose(came, by_brute_force(customers, outlook, d, limits), atol=1e-12)
    assert set(other.coupon.tolist()) == ({-1, 0, 1, 2} if budget else {-1, 1, 2})
    assert not (other.coupon == d.coupon).any()


@pytest.mark.parametrize("is_limited", [False, True])
def test_blocks_of_customers_give_the_next_best_of_all_at_once(monkeypatch, is_limited):
    limits = some_limits(300) if is_limited else []
    whole = decide(*doubtful(), EXPERIMENT, 100.0, MONDAY, limits).next_best
    monkeypatch.setattr("winback.models.next_best.BLOCK", 7)
    blocks = decide(*doubtful(), EXPERIMENT, 100.0, MONDAY, limits).next_best
    for field in dataclasses.fields(NextBest):
        np.testing.assert_array_equal(getattr(blocks, field.name), getattr(whole, field.name))


@pytest.mark.parametrize("budget", BUDGETS)
def test_chosen_coupon_is_at_least_as_good_as_the_next_best_at_the_prices(budget):
    """Duality: without a gap, nobody would rather have another coupon at the dual price."""
    customers, outlook = world(300)
    d = decide(customers, outlook, NO_EXPERIMENT, budget, MONDAY)
    other, price = d.next_best, d.allocation.dual_price
    compared = (other.coupon >= 0) & (budget > 0)
    net = other.long_run_uplift - price * other.expected_cost
    worse = np.maximum(net - d.net_value, 0)[compared].sum()
    assert worse <= d.allocation.duality_gap + 1e-9
    assert d.net_value == pytest.approx(d.long_run_uplift - price * d.expected_cost)


def test_who_may_not_get_a_coupon_has_no_next_best():
    customers, outlook = doubtful(1000)
    d = decide(customers, outlook, EXPERIMENT, 50.0, MONDAY)
    barred = ~customers.can_contact | ~customers.has_purchased | customers.recent_contact
    barred |= assign_holdout(customers.customer_id, EXPERIMENT.salt, EXPERIMENT.holdout_share)
    barred |= d.suppression_reason == "low_support"
    missing = d.next_best.coupon == -1
    assert missing[barred].all()
    assert not missing[d.coupon > 0].any()
    for reason in ("no_uplift", "budget"):
        assert (d.next_best.coupon[d.suppression_reason == reason] > 0).all()
    for numbers in (d.next_best.long_run_uplift, d.next_best.expected_cost):
        assert (np.isnan(numbers) == missing).all()
    assert (d.next_best.behind[missing] == None).all()  # noqa: E711


def test_a_catalogue_of_none_has_no_next_best():
    d = decide(everybody(3), by_hand([[0.0]] * 3, [[0.0]] * 3), NO_EXPERIMENT, 1.0, MONDAY)
    assert d.next_best.coupon.tolist() == [-1] * 3


# One customer, coupons a and b: long-run uplift, doubt and cost; a limit's ceiling for b, or None;
# what a rival customer makes of the only unit of budget; then what is chosen, the next best, why.
BEHIND = [
    ((2.0, 1.0), (0, 0), (1, 1), None, 0.1, (1, 2, "worth")),
    ((2.0, 3.0), (0, 2), (1, 1), None, 0.1, (1, 2, "doubt")),
    ((-1.0, -2.0), (0, 0), (1, 1), None, 0.1, (0, 1, "worth")),
    ((0.5, -2.0), (1, 0), (1, 1), None, 0.1, (0, 1, "doubt")),
    ((0.5, 0.8), (0, 0), (1, 1), None, 2.0, (0, 2, "budget")),
    ((2.5, 1.0), (1, 0), (1, 1), None, 2.0, (0, 1, "doubt")),
]


@pytest.mark.parametrize(("uplift", "doubt", "cost", "ceiling", "rival", "expected"), BEHIND)
def test_why_the_next_best_is_behind_by_hand(uplift, doubt, cost, ceiling, rival, expected):
    """The first customer's case; the second would make ``rival`` of a unit of money."""
    outlook = by_hand([[0, *uplift], [0, rival, -1]], [[0, *cost], [0, 1, 1]])
    outlook = dataclasses.replace(outlook, doubt=np.array([[0.0, *doubt], [0.0, 0.0, 0.0]]))
    d = decide(everybody(2), outlook, NO_EXPERIMENT, 1.0, MONDAY)
    assert (d.coupon[0], d.next_best.coupon[0], d.next_best.behind[0]) == expected


def test_a_limit_that_binds_is_named_and_not_the_budget():
    """Two customers, a limit of one coupon for both, and money for everybody."""
    limit = Limit("one a day", np.ones(2, bool), np.ones(2, bool), "contacts", ceiling=1.0)
    d = decide(
        everybody(2), by_hand([[0, 2.0], [0, 1.0]], [[0, 1.0]] * 2), NO_EXPERIMENT, 9.0, MONDAY,
        [limit],
    )  # fmt: skip
    assert d.suppression_reason.tolist() == [None, "budget"]
    assert (d.next_best.behind[1], d.next_best.limits[1]) == ("limits", "one a day")
    assert d.net_value[1] == 0
    (sentence,) = words_of(d, rows=slice(1, 2))
    assert "less than others bring within the limits (one a day)" in sentence
    assert "budget" not in sentence


def test_a_floor_says_why_a_coupon_is_given_at_a_loss():
    floor = Limit("loyal", np.ones(1, bool), np.ones(2, bool), "contacts", floor=1.0)
    d = decide(everybody(1), by_hand([[0, -1.0]], [[0, 1.0]]), NO_EXPERIMENT, 9.0, MONDAY, [floor])
    assert d.coupon.tolist() == [1]
    assert "no coupon would bring more, but" in words_of(d)[0]
    assert "the limits" in words_of(d)[0]


def words_of(decisions, rows=slice(None), past_offers=0, likely=0.117, gap_days=14, **contacts):
    """Sentences with fixed labels, situation and chance of a purchase."""
    n = len(decisions.coupon)
    return explain(
        decisions,
        ["no coupon", "10 % off", "5 off", "20 off"],
        np.full(n, past_offers),
        ["last purchase 7 or more days ago"] * n,
        np.full(n, likely),
        decision_days=7,
        gap_days=gap_days,
        currency="EUR",
        rows=rows,
        **contacts,
    )


@pytest.mark.parametrize(
    ("gap_days", "most", "words"),
    [
        (14, None, "got one in the last 14 days ("),
        (1, None, "got one in the last day ("),
        (14, 2, "got one in the last 14 days, or 2 in 30 days ("),
        (0, 2, "got 2 in the last 30 days ("),
    ],
)
def test_a_recent_contact_names_the_rules_that_there_are(gap_days, most, words):
    contacted = dataclasses.replace(everybody(1), recent_contact=np.ones(1, bool))
    d = decide(contacted, by_hand([[0, 1.0]], [[0, 1.0]]), NO_EXPERIMENT, 9.0, MONDAY)
    (sentence,) = words_of(d, gap_days=gap_days, max_contacts=most, max_contacts_days=30)
    assert f"No coupon: this customer {words}" in sentence


def test_sentences_of_a_few_rows_are_those_of_all():
    customers, outlook = doubtful()
    d = decide(customers, outlook, EXPERIMENT, 50.0, MONDAY)
    everyone = words_of(d)
    parts = [words_of(d, rows=slice(start, start + 70)) for start in range(0, 300, 70)]
    assert everyone.tolist() == np.concatenate(parts).tolist()
    assert (everyone != "").all()


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_number_in_a_sentence_is_the_column_s(budget):
    """Oracle: the same decision worded by an f-string for one customer at a time."""
    customers, outlook = doubtful()
    d = decide(customers, outlook, NO_EXPERIMENT, budget, MONDAY)
    labels, other = ["no coupon", "10 % off", "5 off"], d.next_best

    def euro(amount):
        return f"{amount:,.2f} EUR".replace("-", "−")

    for row, sentence in enumerate(words_of(d)):
        if d.coupon[row]:
            head = (
                f"{labels[d.coupon[row]]}: expected to bring {euro(d.long_run_uplift[row])} more "
                f"long-run profit than no coupon ({euro(d.expected_uplift[row])} in the next 7 "
                f"days) at about {euro(d.expected_cost[row])} of coupon money; "
            )
            assert sentence.startswith(head)
        if other.coupon[row] > 0:
            gain = other.long_run_uplift[row]
            said = (
                f"expected to lose {euro(-gain)}"
                if round(gain, 2) < 0
                else f"bring {euro(abs(gain))}"
            )
            assert f", {labels[other.coupon[row]]}, " in sentence
            assert said in sentence
    assert words_of(d, rows=slice(0, 0)).shape == (0,)


NEXT = {"next": 2, "uplift": 2.1, "cost": 0.9}
STANDING = "(last purchase 7 or more days ago; 12 % likely to buy within 7 days)."
WORDS = [
    (
        {"coupon": 1, "past_offers": 412, **NEXT, "behind": "worth"},
        "10 % off: expected to bring 3.20 EUR more long-run profit than no coupon "
        "(1.10 EUR in the next 7 days) at about 1.90 EUR of coupon money; "
        "the next best, 5 off, would bring 2.10 EUR at about 0.90 EUR; "
        "well known from 412 similar offers (last purchase 7 or more days ago).",
    ),
    (
        {"coupon": 1, "past_offers": 120, "next": 0, "uplift": 0, "cost": 0, "behind": "worth"},
        "of coupon money; the next best is no coupon; fairly sure after 120 similar offers (last",
    ),
    (
        {"coupon": 1, "past_offers": 35, **NEXT, "behind": "doubt"},
        "at about 0.90 EUR, but less surely; a first estimate after 35 similar offers",
    ),
    (
        {"coupon": 1, "next": 3, "uplift": 4.0, "cost": 3.5, "behind": "budget"},
        "the next best, 20 off, would bring 4.00 EUR at about 3.50 EUR, but for money that brings "
        "more elsewhere (2.40 per EUR); ",
    ),
    ({"coupon": 1, **NEXT, "behind": "limits"}, "0.90 EUR, but against the limits (loyal, mail); "),
    (
        {"coupon": 1, **NEXT, "behind": "budget_and_limits"},
        "but against the limits (loyal, mail) and for money that brings more elsewhere (2.40 per",
    ),
    (
        {"coupon": 1, **NEXT, "behind": "room"},
        "at about 0.90 EUR, but what is left of the budget does not allow it; ",
    ),
    (
        {"coupon": 1, "is_exploration": True, **NEXT, "behind": "room"},
        "10 % off: drawn by chance, to learn how customers like this one respond, "
        f"at about 1.90 EUR of coupon money {STANDING}",
    ),
    (
        {"is_exploration": True, **NEXT, "behind": "room"},
        f"No coupon this time: drawn by chance, to learn what happens without one {STANDING}",
    ),
    ({"reason": "no_consent"}, "No coupon: this customer has not agreed to be contacted."),
    ({"reason": "no_purchase_yet"}, "No coupon: this customer has not bought anything yet."),
    (
        {"reason": "recent_contact"},
        f"No coupon: this customer got one in the last 14 days {STANDING}",
    ),
    (
        {"reason": "holdout"},
        f"No coupon: in the comparison group, which shows what coupons really bring {STANDING}",
    ),
    ({"reason": "holdout", "likely": 0.004}, "; under 1 % likely to buy within 7 days)."),
    ({"reason": "holdout", "likely": 0.996}, "; over 99 % likely to buy within 7 days)."),
    ({"reason": "holdout", "likely": np.nan}, "really bring (last purchase 7 or more days ago)."),
    (
        {"reason": "low_support"},
        f"No coupon: past offers do not show what one does for such customers {STANDING}",
    ),
    (
        {"reason": "no_uplift"},
        f"No coupon: none is expected to bring in more than it costs {STANDING}",
    ),
    (
        {"reason": "no_uplift", "next": 2, "uplift": -0.4, "cost": 0.9, "behind": "worth"},
        "No coupon: the best, 5 off, is expected to lose 0.40 EUR "
        "(last purchase 7 or more days ago).",
    ),
    (
        {"reason": "no_uplift", "next": 2, "uplift": -0.001, "cost": 0.9, "behind": "worth"},
        "would bring 0.00 EUR more long-run profit at about 0.90 EUR of coupon money (last",
    ),
    (
        {"reason": "no_uplift", "next": 2, "uplift": 0.2, "cost": 0.9, "behind": "doubt"},
        "0.20 EUR more long-run profit at about 0.90 EUR of coupon money, too unsure to count on (",
    ),
    (
        {"reason": "budget", "next": 2, "uplift": 0.2, "cost": 0.9, "behind": "budget"},
        "No coupon: the best, 5 off, would bring 0.20 EUR more long-run profit at about 0.90 EUR "
        "of coupon money, less than the budget brings elsewhere (2.40 per EUR) "
        "(last purchase 7 or more days ago).",
    ),
    (
        {"reason": "budget", **NEXT, "behind": "limits"},
        "of coupon money, less than others bring within the limits (loyal, mail) (last",
    ),
    (
        {"reason": "budget", **NEXT, "behind": "budget_and_limits"},
        "less than the budget (2.40 per EUR) and the limits (loyal, mail) bring elsewhere (last",
    ),
    (
        {"reason": "budget", **NEXT, "behind": "doubt"},
        "of coupon money, not surely enough to go before others (last",
    ),
    (
        {"reason": "budget", **NEXT, "behind": "room"},
        "of coupon money, but what is left of the budget does not allow it (last",
    ),
    (
        {"reason": "budget", "next": 2, "uplift": -0.4, "cost": 0.9, "behind": "worth"},
        "No coupon: the best that the limits allow, 5 off, is expected to lose 0.40 EUR (last",
    ),
    (
        {"reason": "budget", **NEXT, "behind": "room", "budget": 0.0},
        "No coupon: the budget is 0; the best, 5 off, would bring 2.10 EUR more long-run profit at "
        "about 0.90 EUR of coupon money (last purchase",
    ),
    (
        {"reason": "budget"},
        f"No coupon: each one that would pay off exceeds a limit by itself {STANDING}",
    ),
]


UNPROVEN = "past offers do not show yet that coupons make customers buy"
WORDS += [
    ({"reason": "no_uplift", "is_proven": False}, f"No coupon: {UNPROVEN} {STANDING}"),
    (
        {"reason": "no_uplift", "is_proven": False, **NEXT, "behind": "doubt"},
        f"No coupon: {UNPROVEN} {STANDING}",
    ),
    (
        {"reason": "low_support", "is_proven": False},
        f"No coupon: past offers do not show what one does for such customers {STANDING}",
    ),
    (
        {"coupon": 1, "is_proven": False, **NEXT, "behind": "worth"},
        "10 % off: given because a limit has a floor, at about 1.90 EUR of coupon money; "
        f"{UNPROVEN} (last purchase 7 or more days ago).",
    ),
    (
        {"coupon": 1, "is_exploration": True, "is_proven": False, **NEXT, "behind": "room"},
        "10 % off: drawn by chance, to learn how customers like this one respond, ",
    ),
]


@pytest.mark.parametrize(("case", "words"), WORDS)
def test_words_of_a_decision(case, words):
    outlook = by_hand([[0, 1.0, 0, 0]], [[0, 1.0, 1, 1]])
    decisions = decide(everybody(1), outlook, NO_EXPERIMENT, 1.0, MONDAY)
    other = NextBest(
        np.array([case.get("next", -1)]),
        np.array([case.get("uplift", np.nan)]),
        np.array([case.get("cost", np.nan)]),
        np.array([case.get("behind")], dtype=object),
        np.array(["loyal, mail"], dtype=object),
    )
    decisions = dataclasses.replace(
        decisions,
        coupon=np.array([case.get("coupon", 0)]),
        is_exploration=np.array([case.get("is_exploration", False)]),
        suppression_reason=np.array([case.get("reason")], dtype=object),
        long_run_uplift=np.array([3.2]),
        expected_uplift=np.array([1.1]),
        expected_cost=np.array([1.9]),
        allocation=dataclasses.replace(decisions.allocation, dual_price=2.4),
        next_best=other,
        budget=case.get("budget", 1.0),
        is_proven=case.get("is_proven", True),
    )
    chosen = {name: case[name] for name in ("past_offers", "likely") if name in case}
    (sentence,) = words_of(decisions, **chosen)
    assert words in sentence


def test_every_suppression_reason_has_its_words():
    assert {case["reason"] for case, _ in WORDS if "reason" in case} == set(SUPPRESSION_REASONS)
