"""The gate's rule case by case, and its error rates in a world with known values."""

import json
from dataclasses import replace

import numpy as np
import pytest

from winback.models.errors import SettingsError
from winback.models.gate import judge
from winback.models.off_policy import Estimate, Log, difference

BETTER = Estimate(0.3, 0.1, 0.5, 900.0, 8.0, None, 0.4)
ALIKE = Estimate(0.0, -0.1, 0.1, 900.0, 8.0, None, 0.4)
WORSE = Estimate(-0.3, -0.5, -0.1, 900.0, 8.0, None, 0.4)
WORTHLESS = replace(BETTER, alarm="only 12 decisions count")
SAME = replace(WORTHLESS, disagreement=0.001)
EXPLORING = {"only_exploration": True}
GONE = {"incomparable": "Gone."}

SIMILAR = replace(WORTHLESS, disagreement=0.08)

CASES = [  # champion, none, tolerance, further arguments, passed, words of the reason
    (BETTER, BETTER, 0.0, {}, True, "brings +0.3 per decision (interval +0.1 to +0.5)"),
    (ALIKE, BETTER, 0.1, {}, True, "within the tolerated -0.1"),
    (ALIKE, BETTER, 0.09, {}, False, "a loss beyond the tolerated -0.09 is not ruled out"),
    (WORSE, BETTER, 0.09, {}, False, "worse than the tolerated -0.09"),
    (BETTER, BETTER, 0.0, {}, True, "+0.1 to +0.5): it earns money"),
    (BETTER, ALIKE, 0.0, {}, True, "a loss is not ruled out, the holdout will tell"),
    (BETTER, WORSE, 0.9, {}, False, "Against no coupons at all it brings -0.3"),
    (None, BETTER, 0.0, {}, True, "No policy is published yet"),
    (None, BETTER, 0.0, GONE, True, "Passed. Gone. A plan that replaces it unseen must be shown"),
    (None, BETTER, 0.0, GONE, True, "and this one is. Against no coupons at all it brings +0.3"),
    (None, replace(BETTER, lower=0.0), 0.9, GONE, False, "this one is not. To replace it all the"),
    (
        None,
        ALIKE,
        0.9,
        GONE,
        False,
        "publish by override_gate. Against no coupons at all",
    ),
    (None, WORTHLESS, 0.9, GONE, False, "Held; the current policy stays. Gone. A plan that"),
    (None, replace(BETTER, lower=np.nan), 0.9, GONE, False, "this one is not"),
    (None, SAME, 0.9, GONE, False, "this one is not"),
    (None, None, 0.9, GONE, False, "this one is not"),
    (None, WORSE, 0.9, {**GONE, **EXPLORING}, True, "Gone. Only exploration is planned"),
    (None, None, 0.9, {**GONE, **EXPLORING}, True, "Gone. Only exploration is planned"),
    (None, WORSE, 0.0, {}, False, "it loses money"),
    (None, None, 0.0, {}, True, "No log shows yet what coupons do"),
    (None, None, 0.0, EXPLORING, True, "No coupon but those of exploration"),
    (None, WORTHLESS, 0.0, EXPLORING, True, "exploration is given. The comparison with no coupons"),
    (None, WORTHLESS, 0.0, {}, True, "worthless: only 12 decisions count. The holdout will tell"),
    (None, SAME, 0.0, {}, True, "decides as no coupons at all in 99.9%"),
    (WORTHLESS, BETTER, 0.0, {}, False, "comparison with the current policy is worthless"),
    (WORTHLESS, WORTHLESS, 0.0, EXPLORING, True, "Only exploration is planned, which mends that"),
    (WORSE, WORTHLESS, 0.09, EXPLORING, False, "worse than the tolerated"),
    (SAME, BETTER, 0.0, {}, True, "decides as the current policy in 99.9% of all decisions"),
    (SIMILAR, BETTER, 0.0, {}, True, "It decides as the current policy in 92.0% of all decisions"),
    (replace(BETTER, lower=np.nan), BETTER, 0.0, {}, False, "worthless: no interval"),
]


@pytest.mark.parametrize(("champion", "none", "tolerance", "more", "passed", "words"), CASES)
def test_rule(champion, none, tolerance, more, passed, words):
    """By hand, each line of the documented rule."""
    verdict = judge(champion, none, tolerance, **more)
    assert (verdict.passed, verdict.rule_passed, verdict.override) == (passed, passed, False)
    assert words in verdict.reason
    assert verdict.reason.startswith("Passed." if passed else "Held; the current policy stays.")


SURE = [  # champion, none, further arguments: nothing is missing, worthless or left open
    (None, BETTER, {}),
    (None, None, EXPLORING),
    (SAME, BETTER, {}),
    (BETTER, SAME, {}),
    (WORSE, WORSE, {}),
]
UNSURE = [
    (None, None, {}),
    (None, ALIKE, {}),
    (None, WORTHLESS, {}),
    (None, WORTHLESS, EXPLORING),
    (None, BETTER, GONE),
    (None, None, {**GONE, **EXPLORING}),
    (WORTHLESS, BETTER, EXPLORING),
    (SIMILAR, BETTER, {}),
    (ALIKE, BETTER, {}),
]


@pytest.mark.parametrize(
    ("case", "is_sure"), [*((case, True) for case in SURE), *((case, False) for case in UNSURE)]
)
def test_verdicts_on_alarms_and_missing_comparisons_are_not_sure(case, is_sure):
    """By hand; whoever reads a verdict that is not sure should be warned."""
    champion, none, more = case
    assert judge(champion, none, 0.0, **more).is_sure == is_sure


def test_override_publishes_a_policy_that_cannot_be_compared():
    verdict = judge(None, ALIKE, 0.0, override=True, **GONE)
    assert (verdict.passed, verdict.rule_passed, verdict.is_sure) == (True, False, False)
    assert verdict.reason.startswith("Published by override, the rule would have held it. Gone.")


def test_override_publishes_and_is_recorded():
    verdict = judge(WORSE, BETTER, 0.0, override=True)
    assert (verdict.passed, verdict.rule_passed, verdict.override) == (True, False, True)
    assert verdict.reason.startswith("Published by override, the rule would have held it.")
    needless = judge(BETTER, BETTER, 0.0, override=True)
    assert (needless.rule_passed, needless.override) == (True, True)
    assert needless.reason.startswith("Passed.")


def test_figures_are_json():
    figures = judge(replace(WORTHLESS, value=np.nan), None, 0.2).figures
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["versus_champion_value"] is None
    assert figures["versus_champion_alarm"] == "only 12 decisions count"
    assert figures["tolerance"] == 0.2


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_bad_tolerance(tolerance):
    with pytest.raises(SettingsError, match="tolerance of 0 or more"):
        judge(BETTER, BETTER, tolerance)


# -- error rates: purchases by what is seen and coupon; each coupon suits another kind

RATE = np.array([[0.2, 0.3, 0.1], [0.2, 0.1, 0.35], [0.4, 0.3, 0.3]])
LOGGING = np.array([[0.6, 0.2, 0.2], [0.4, 0.3, 0.3], [0.4, 0.2, 0.4]])
MARGIN = 10.0
ORACLE = np.eye(3)[RATE.argmax(axis=1)]
UPLIFT = MARGIN * float((RATE.max(axis=1) - RATE[:, 0]).mean())
TOLERANCE = 0.05 * UPLIFT  # half of the ten points that the gate should tell apart


def mixture(share):
    """Worth ``share`` of the oracle's uplift over no coupons: linear in the probabilities."""
    return share * ORACLE + (1 - share) * np.eye(3)[[0, 0, 0]]


def passes(seed, challenger, champion):
    """A log of 2,000 customers who differ for good in their appetite, and its verdict."""
    rng = np.random.default_rng(seed)
    customer = np.repeat(np.arange(2000), 10)
    appetite = rng.choice([0.5, 1.5], 2000)[customer]
    sign = rng.integers(0, 3, len(customer))
    coupon = (rng.random(len(sign))[:, None] > LOGGING[sign].cumsum(axis=1)).sum(axis=1)
    reward = MARGIN * (rng.random(len(sign)) < appetite * RATE[sign, coupon])
    log = Log(customer, coupon, reward, LOGGING[sign, coupon])
    policies = challenger[sign], champion[sign], mixture(0.0)[sign]
    model = np.full((len(sign), 3), reward.mean())  # no more than the mean: weights must do it
    against = [
        difference(log, policies[0], other, model=model, level=0.9, draws=100, seed=seed)
        for other in policies[1:]
    ]
    return judge(*against, TOLERANCE).passed


def test_worse_policies_pass_in_5_percent_at_most_and_better_ones_are_held_in_20_at_most():
    """Simulation of 100 logs each way; the policies differ by ten points of the oracle's uplift."""
    better, worse = mixture(0.6), mixture(0.5)
    assert MARGIN * float(((better - worse) * RATE).sum(axis=1).mean()) == pytest.approx(
        0.1 * UPLIFT
    )
    assert sum(passes(seed, worse, better) for seed in range(100)) <= 5
    assert sum(not passes(seed, better, worse) for seed in range(100)) <= 20


def test_policies_as_bad_as_tolerated_pass_in_about_5_percent():
    """Simulation at the edge, where the stated error of the lower bound applies."""
    edge = 0.6 - TOLERANCE / UPLIFT
    passed = sum(passes(seed, mixture(edge), mixture(0.6)) for seed in range(150))
    assert passed <= 14  # 5 % of 150 and two standard errors and a half
