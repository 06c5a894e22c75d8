"""The log as the fit of the response model reads it, against loops over rows."""

from dataclasses import fields, replace

import numpy as np
import pytest

from winback.models.response_data import (
    MAX_WEIGHT,
    closed_rows,
    closed_windows,
    effective_share,
)
from winback.models.situations import COUPONS, SITUATIONS, Panel


@pytest.fixture
def panel():
    """Customers of 0 to 8 rows at four places, the last row of most of them open."""
    random = np.random.default_rng(0)
    length = [0, *random.integers(0, 9, 60), 3, 0]
    first = np.append(0, np.cumsum(length))
    m = int(first[-1])
    closed = np.ones(m, bool)
    closed[(first[1:] - 1)[np.diff(first) > 0]] = (
        random.random(int((np.diff(first) > 0).sum())) < 0.3
    )
    coupon = random.integers(0, 3, m)
    purchased = random.random(m) < 0.5
    return Panel(
        first=first,
        period=np.arange(m),
        situation=random.integers(0, 4 * COUPONS, m),
        coupon=coupon,
        purchased=purchased,
        margin=np.where(purchased, random.normal(10, 8, m), 0.0),
        cost=np.where(purchased & (coupon > 0), 5.0, 0.0),
        propensity=random.uniform(0.05, 1, m),
        own=random.random(m) < 0.2,
        closed=closed,
    )


def test_closed_rows_keep_every_customer_and_drop_open_rows(panel):
    found = closed_rows(panel)
    assert found.customers == panel.customers
    for i in range(panel.customers):
        own = [r for r in range(panel.first[i], panel.first[i + 1]) if panel.closed[r]]
        kept = slice(found.first[i], found.first[i + 1])
        for field in fields(Panel)[1:]:
            before, after = (getattr(p, field.name) for p in (panel, found))
            assert after[kept].tolist() == before[own].tolist()


def test_weights_are_shares_of_coupons_at_a_place_over_propensities(panel):
    """By a loop, from the definition: with five rows of the overall mixture at every place."""
    panel = replace(panel, own=np.zeros(len(panel.period), bool))
    coupon, place = panel.coupon.tolist(), (panel.situation // COUPONS).tolist()
    weights = []
    for own, at, propensity in zip(coupon, place, panel.propensity, strict=True):
        here = [c for c, p in zip(coupon, place, strict=True) if p == at]
        overall = coupon.count(own) / len(coupon)
        share = (here.count(own) + 5 * overall) / (len(here) + 5)
        weights.append(min(share / propensity, MAX_WEIGHT))
    expected = np.array(weights) / np.mean(weights)
    assert closed_windows(panel, 3).weight == pytest.approx(expected)


def test_propensities_equal_to_the_shares_and_unknown_ones_weigh_1(panel):
    panel = replace(panel, own=np.zeros(len(panel.period), bool))
    share = np.bincount(panel.coupon) / len(panel.coupon)
    one_place = replace(panel, situation=panel.situation * 0, propensity=share[panel.coupon])
    assert closed_windows(one_place, 3).weight == pytest.approx(1)
    unknown = replace(panel, propensity=np.where(panel.coupon == 1, np.nan, panel.propensity))
    weight = closed_windows(unknown, 3).weight
    assert (weight[panel.coupon == 1] == 1).all()
    assert weight[panel.coupon != 1].mean() == pytest.approx(1)


def test_own_decisions_weigh_1_and_say_nothing_of_the_customer(panel):
    data = closed_windows(panel, 3)
    assert (data.weight[panel.own] == 1).all()
    assert data.weight[~panel.own].mean() == pytest.approx(1)
    assert panel.inverse_propensity == pytest.approx(np.where(panel.own, 1, 1 / panel.propensity))
    made, without = data.offers
    assert (made + without).sum() == (~panel.own).sum()


def test_one_decision_never_outweighs_the_limit_by_more_than_the_mean(panel):
    rare = replace(panel, propensity=np.where(np.arange(len(panel.period)) == 3, 1e-9, 0.3))
    weight = closed_windows(rare, 3).weight
    assert weight.argmax() == 3
    assert weight.max() <= MAX_WEIGHT / np.mean(weight[weight < weight.max()])


def test_sums_and_offer_counts_equal_loops(panel):
    data = closed_windows(panel, 3)
    rows = [range(panel.first[i], panel.first[i + 1]) for i in range(panel.customers)]
    assert data.sums(panel.margin) == pytest.approx([panel.margin[own].sum() for own in rows])
    made, without = (table.toarray() for table in data.offers)
    assert made.shape == without.shape == (panel.customers, SITUATIONS)
    for i, own in enumerate(rows):
        for s in range(SITUATIONS):
            at = [r for r in own if panel.situation[r] == s and not panel.own[r]]
            assert made[i, s] == sum(panel.coupon[r] > 0 for r in at)
            assert without[i, s] == sum(panel.coupon[r] == 0 for r in at)


def test_margins_too_small_for_a_logarithm_count_as_2_percent_of_the_median(panel):
    data = closed_windows(panel, 3)
    usual = np.median(panel.margin[panel.purchased & (panel.margin > 0)])
    assert data.smallest_margin == pytest.approx(0.02 * usual)
    refunded = panel.purchased & (panel.margin <= 0)
    assert refunded.any()
    assert data.log_margin[refunded] == pytest.approx(np.log(0.02 * usual))
    assert (data.log_margin[~panel.purchased] == 0).all()


def test_effective_share_is_kishs_formula():
    """By hand: weights 1, 1, 4 count like 36 / 18 = 2 of 3 decisions."""
    assert effective_share(np.array([1.0, 1, 4])) == pytest.approx(2 / 3)
    assert effective_share(np.ones(7)) == pytest.approx(1)
    assert effective_share(np.ones(0)) == 0
