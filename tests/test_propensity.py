"""Propensities against the probabilities that drew the coupons, and overlap by brute force."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from worlds import panel_of

from winback.models import propensity as module
from winback.models.errors import DataError
from winback.models.propensity import (
    clip,
    estimate_propensities,
    fill_logged,
    habits,
    overlap,
    overlap_of_logged,
)
from winback.models.world import WorldConfig, make_world
from winback.models.world_log import record_history


def targeted_log(customers=800, weeks=10, *, steps=False, seed=0):
    """Features, coupon, customer and the true probabilities; logistic or in steps."""
    rng = np.random.default_rng(seed)
    customer = np.repeat(np.arange(customers), weeks)
    features = rng.normal(size=(len(customer), 4))
    features[:, 1] = rng.normal(size=customers)[customer]
    score = np.zeros((len(customer), 3))
    score[:, 1] = features[:, 1] - 1
    score[:, 2] = 0.7 * features[:, 0] - 0.5
    if steps:
        score[:, 1] = np.where(np.abs(features[:, 1]) < 0.7, 1.5, -1.5)
        score[:, 2] = np.where(features[:, 0] * features[:, 2] > 0, 0.5, -1.5)
    truth = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
    coupon = (rng.random(len(customer))[:, None] > truth.cumsum(axis=1)).sum(axis=1)
    return features, coupon, customer, truth


@pytest.mark.parametrize("steps", [False, True])
def test_probabilities_are_those_that_drew_the_coupons(steps):
    """Simulation: within 0.05 on average, and within 0.08 in each decile of the estimate."""
    features, coupon, customer, truth = targeted_log(2000, steps=steps)
    found = estimate_propensities(features, coupon, customer, 3)
    assert found.sum(axis=1) == pytest.approx(np.ones(len(coupon)))
    assert np.abs(found - truth).mean() < 0.05
    for number in range(3):
        for rows in np.array_split(np.argsort(found[:, number]), 10):
            assert found[rows, number].mean() == pytest.approx(truth[rows, number].mean(), abs=0.08)
    share = np.bincount(coupon) / len(coupon)
    assert np.abs(share - truth).mean() > 0.1  # what knowing nothing would give


def test_weights_average_one():
    """Identity: E[1{given = a} / p_a] = 1 for every coupon."""
    features, coupon, customer, _ = targeted_log(2000, 10)
    found = estimate_propensities(features, coupon, customer, 3)
    for number in range(3):
        assert ((coupon == number) / found[:, number]).mean() == pytest.approx(1, abs=0.06)


def test_no_customer_is_forecast_from_their_own_decisions():
    """By construction: a customer always gets the same coupon, by lot, and has a known face.

    A model that saw one of their decisions would be certain of the others.
    """
    rng = np.random.default_rng(0)
    customer = np.repeat(np.arange(300), 20)
    face = rng.normal(size=300)[customer][:, None]
    coupon = rng.integers(0, 2, 300)[customer]
    found = estimate_propensities(face, coupon, customer, 2)
    own = found[np.arange(len(coupon)), coupon]
    assert own.mean() == pytest.approx(0.5, abs=0.05)


def test_a_customers_own_coupons_do_not_move_their_own_probabilities():
    """By construction: other coupons for one customer change only what others are told."""
    features, coupon, customer, _ = targeted_log(60)
    own = customer == 7
    changed = np.where(own, (coupon + 1) % 3, coupon)
    before = estimate_propensities(features, coupon, customer, 3)
    after = estimate_propensities(features, changed, customer, 3)
    assert after[own] == pytest.approx(before[own], abs=1e-3)  # the floor moves with the shares
    assert np.abs(after - before)[~own].max() > 0.02


def test_same_result_every_time_and_whatever_customers_are_called():
    features, coupon, customer, _ = targeted_log(100)
    once = estimate_propensities(features, coupon, customer, 3, seed=2)
    assert (once == estimate_propensities(features, coupon, 3 * customer + 9, 3, seed=2)).all()


def test_a_sample_teaches_and_all_are_forecast(monkeypatch):
    monkeypatch.setattr(module, "MAX_FIT_ROWS", 4000)
    features, coupon, customer, truth = targeted_log(4000)
    found = estimate_propensities(features, coupon, customer, 3)
    assert np.abs(found - truth).mean() < 0.05


def test_missing_features_and_coupons_never_given():
    features, coupon, customer, truth = targeted_log()
    features[::7, 3] = np.nan
    features[:, 2] = np.nan
    found = estimate_propensities(features, coupon, customer, 5)
    assert found[:, 3:].max() == pytest.approx(1e-4)
    assert np.abs(found[:, :3] - truth).mean() < 0.05


def test_nothing_but_none_was_ever_given():
    """Closed form: certain, up to the floor of the coupon that was never seen."""
    found = estimate_propensities(np.ones((6, 1)), np.zeros(6, int), np.arange(6) // 2, 2)
    assert found == pytest.approx(np.tile([1 - 1e-4, 1e-4], (6, 1)))


def test_clip_by_hand():
    """Floors 0.04 and 0.01: what is above them is left alone, else they hold exactly."""
    share = np.array([0.8, 0.2])
    clipped = clip(np.array([[0.7, 0.3], [1.0, 0.0], [0.0, 1.0]]), share)
    assert clipped == pytest.approx(np.array([[0.7, 0.3], [0.99, 0.01], [0.04, 0.96]]))


def test_fill_logged_keeps_what_was_logged():
    logged = np.array([0.3, np.nan, 1.0])
    estimated = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]])
    assert fill_logged(logged, estimated, np.array([0, 1, 1])).tolist() == [0.3, 0.4, 1.0]


def test_overlap_by_brute_force():
    """Oracle: scikit-learn's AUC, counting, and Kish's formula."""
    _, coupon, _, truth = targeted_log()
    report = overlap(truth, coupon)
    for number, found in enumerate(report.coupons):
        probability, given = truth[:, number], coupon == number
        weight = 1 / probability[given]
        assert found.separation == pytest.approx(roc_auc_score(given, probability))
        assert found.effective_sample_size == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
        assert found.below_1_percent == np.mean(probability < 0.01)
        assert found.below_5_percent == np.mean(probability < 0.05)
        assert (found.smallest, found.decisions) == (probability.min(), given.sum())
        assert found.quantiles[-1] == np.median(probability)
    assert [found.is_readable for found in report.coupons] == [True] * 3
    assert report.verdict == "Every coupon was given across all kinds of customers."


def test_overlap_of_logged_draws_by_brute_force():
    """Oracle: Kish's formula and counting among the decisions that gave the coupon."""
    _, coupon, _, truth = targeted_log()
    logged = truth[np.arange(len(coupon)), coupon]
    for number, found in enumerate(overlap_of_logged(logged, coupon, 3).coupons):
        own = logged[coupon == number]
        size = (1 / own).sum() ** 2 / (1 / own**2).sum()
        assert found.effective_sample_size == pytest.approx(size)
        assert found.below_5_percent == np.mean(own < 0.05)
        assert (found.smallest, found.decisions) == (own.min(), len(own))
        assert found.quantiles[-1] == np.median(own)
        assert np.isnan(found.separation)


def test_own_decisions_speak_only_of_coupons_that_nobody_else_gave():
    """Oracle: others' decisions alone for their coupons; a count for a coupon of one's own."""
    _, coupon, _, truth = targeted_log()
    certain = np.repeat([[0.01, 0.97, 0.01, 0.01], [0.5, 0.2, 0.2, 0.1]], [5000, 300], axis=0)
    chances = np.vstack([np.column_stack([truth, np.full(len(truth), 1e-4)]), certain])
    drawn = np.append(coupon, np.repeat([1, 3], [5000, 300]))
    own = np.arange(len(drawn)) >= len(coupon)
    names = ["none", "5 EUR", "10 EUR", "20 EUR"]
    found = overlap(chances, drawn, names, own)
    assert found.coupons[:3] == overlap(truth, coupon).coupons
    assert (found.coupons[3].decisions, found.coupons[3].effective_sample_size) == (300, 300)
    assert found.verdict == "Every coupon was given across all kinds of customers."
    mixed = overlap(chances, drawn, names).verdict  # without the mark: 20 EUR tells rows apart
    assert "20 EUR went to particular customers only" in mixed
    alone = overlap(chances[own], drawn[own], names, own[own])
    assert [one.decisions for one in alone.coupons] == [0, 5000, 0, 300]
    assert alone.verdict.endswith("none was never given; 10 EUR was never given.")


def test_what_is_not_on_record_is_null_in_json():
    """JSON has no NaN, and PostgreSQL refuses it; what is known comes through unchanged."""
    coupon = np.repeat([0, 1], 200)
    report = overlap_of_logged(np.full(400, 0.5), coupon, 3, ["none", "5 EUR", "10 EUR"])
    assert report.verdict.endswith("10 EUR was never given.")
    given, never = (report.coupons[number].to_dict() for number in (1, 2))
    assert given == {
        "coupon": 1,
        "decisions": 200,
        "below_1_percent": 0.0,
        "below_5_percent": 0.0,
        "effective_sample_size": pytest.approx(200),
        "separation": None,
        "smallest": 0.5,
        "quantiles": [0.5, 0.5, 0.5],
        "is_readable": True,
    }
    unknown = dict.fromkeys(("below_1_percent", "below_5_percent", "separation", "smallest"))
    sizes = {"decisions": 0, "effective_sample_size": 0.0, "quantiles": [None] * 3}
    assert never == {"coupon": 2, "is_readable": False, **unknown, **sizes}
    assert "NaN" not in json.dumps([given["separation"], never])


def test_separation_of_a_lottery_is_one_half():
    report = overlap(np.full((1000, 2), 0.5), np.arange(1000) % 2)
    assert [found.separation for found in report.coupons] == [0.5, 0.5]


def test_overlap_says_what_is_missing():
    """By hand: one coupon never given, one by rule, one rarely where it is unlikely."""
    coupon = np.repeat([0, 1, 2], [5000, 5000, 300])
    probability = np.full((10_300, 4), 0.02)
    probability[np.arange(10_300), coupon] = 0.94
    probability[10_000:, 2] = np.where(np.arange(300) < 3, 0.001, 0.94)
    report = overlap(probability, coupon, ["none", "5 EUR", "10 EUR", "20 EUR"])
    assert [found.is_readable for found in report.coupons] == [False] * 4
    assert "20 EUR was never given" in report.verdict
    assert "5 EUR went to particular customers only (separation 1.00)" in report.verdict
    assert "the 300 decisions with 10 EUR are worth only 4" in report.verdict


def good():
    return np.zeros((4, 1)), np.zeros(4, int), np.arange(4)


BAD_INPUTS = [
    (lambda x, a, c: estimate_propensities(x[:3], a, c, 1), "features of 4 decisions"),
    (lambda x, a, c: estimate_propensities(x, a + 1, c, 1), "coupons from 0 to 0; wrong in rows 0"),
    (lambda x, a, c: estimate_propensities(x + np.inf, a, c, 1), "finite features or NaN"),
    (lambda x, a, c: estimate_propensities(x, a, 0 * c, 1), "two customers at least"),
    (lambda x, a, c: fill_logged(a - 1.0, x, a), "above 0 and at most 1; wrong in rows 0, 1, 2"),
    (lambda x, a, c: fill_logged(np.ones(3), x, a), "expected 3 decisions throughout, came 4"),
]


@pytest.mark.parametrize(("call", "message"), BAD_INPUTS)
def test_bad_input(call, message):
    with pytest.raises(DataError) as raised:
        call(*good())
    assert message in str(raised.value)


def test_habits_equal_a_loop_over_the_other_windows():
    """Oracle: a loop over a small panel, open rows left out."""
    panel = panel_of(record_history(make_world(WorldConfig(seed=1)), 30, 9))
    found = habits(panel)
    for column, event in enumerate((panel.coupon > 0, panel.purchased)):
        mean = event[panel.closed].mean()
        for row in range(len(panel.period)):
            others = panel.closed & (panel.customer == panel.customer[row])
            others[row] = False
            expected = (event[others].sum() + 2 * mean) / (others.sum() + 2)
            assert found[row, column] == pytest.approx(expected)
