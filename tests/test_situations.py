"""Situations and panels against plain loops over one customer at a time."""

import numpy as np
import pytest

from winback.models.situations import (
    COUPON_EDGES,
    COUPON_PERIODS,
    COUPONS,
    PURCHASE_EDGES,
    PURCHASE_PERIODS,
    PURCHASES,
    RECENCIES,
    RECENCY_EDGES,
    SITUATIONS,
    Panel,
    bins,
    in_words,
    number,
    situations,
)


def panel_of_periods(first, period):
    blank = np.zeros(len(period))
    return Panel(
        np.array(first), np.array(period), blank.astype(int), blank.astype(int),
        blank.astype(bool), blank, blank, blank, blank.astype(bool), blank.astype(bool),
    )  # fmt: skip


def test_bins_and_number_are_inverse():
    axes = bins()
    assert (number(*axes) == np.arange(SITUATIONS)).all()
    assert [axis.max() + 1 for axis in axes] == [RECENCIES, PURCHASES, COUPONS]
    assert len(set(zip(*(axis.tolist() for axis in axes), strict=True))) == SITUATIONS


@pytest.mark.parametrize("seed", range(3))
def test_situations_equal_a_loop_over_each_customers_windows(seed):
    """Brute force: what happened is kept as lists, and counted anew at every row."""
    random = np.random.default_rng(seed)
    lengths = [0, *random.integers(0, 40, 25), 0]
    recency, days, received, expected = [], [], [], []
    for length in lengths:
        bought, offered, since = [1 + int(random.integers(3))], [0], 0  # before the first decision
        for _ in range(length):
            # what came before the first row counts until as many rows as a quarter have passed
            late = bought if len(bought) <= PURCHASE_PERIODS else bought[-PURCHASE_PERIODS:]
            tired = offered if len(offered) <= COUPON_PERIODS else offered[-COUPON_PERIODS:]
            recency.append(since)
            days.append(sum(bought))
            received.append(sum(offered))
            codes = [
                sum(edge <= count for edge in edges.tolist())
                for edges, count in (
                    (RECENCY_EDGES, since),
                    (PURCHASE_EDGES, sum(late)),
                    (COUPON_EDGES, sum(tired)),
                )
            ]
            expected.append((codes[0] * PURCHASES + codes[1]) * COUPONS + codes[2])
            buys = int(random.random() < 0.3) * int(random.integers(1, 3))
            bought.append(buys)
            offered.append(int(random.random() < 0.4))
            since = 0 if buys else since + 1
    first = np.append(0, np.cumsum(lengths))
    found = situations(first, np.array(recency), np.array(days), np.array(received))
    assert found.tolist() == expected


def test_following_equals_a_dictionary_of_customer_and_period():
    random = np.random.default_rng(0)
    periods = [sorted(random.permutation(12)[: random.integers(0, 12)]) for _ in range(40)]
    first = np.append(0, np.cumsum([len(own) for own in periods]))
    panel = panel_of_periods(first, np.concatenate(periods).astype(int))
    keys = [(who, int(when)) for who, own in enumerate(periods) for when in own]
    row = {key: index for index, key in enumerate(keys)}
    assert panel.following.tolist() == [row.get((who, when + 1), -1) for who, when in keys]
    assert panel.customer.tolist() == [who for who, _ in keys]
    assert panel.customers == 40


def test_one_customers_last_period_does_not_run_on_into_the_next_customers_first():
    """By hand: customer 0 ends in period 4, customer 2 begins in period 5; 1 has no rows."""
    assert panel_of_periods([0, 2, 2, 4], [3, 4, 5, 7]).following.tolist() == [1, -1, -1, -1]
    assert panel_of_periods([0], []).following.tolist() == []


def test_words_say_the_days_and_counts_of_each_bin():
    """By hand, for weeks: bins are given by their lower edges."""
    assert in_words(int(number(2, 4, 3)), 7) == (
        "last purchase 14 or more days ago, 5–7 purchases in 84 days, 3 coupons in 28 days"
    )
    assert in_words(SITUATIONS - 1, 14) == (
        "last purchase 168 or more days ago, 8 or more purchases in 168 days, "
        "4 or more coupons in 56 days"
    )
    assert "1 purchase in" in in_words(int(number(0, 1, 0)), 7)
    assert len({in_words(situation, 7) for situation in range(SITUATIONS)}) == SITUATIONS
