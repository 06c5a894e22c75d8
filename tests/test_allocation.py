"""The budget's allocation against brute force, the HiGHS solver and its own certificate."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, kron, vstack

from winback.models.allocation import affordable, coupons_at_price, pick, solve_budget
from winback.models.errors import DataError


def instance(seed, n=40, coupons=4, kind="continuous"):
    """Random values, costs (`none` free) and eligibility; a tenth of the coupons not eligible."""
    rng = np.random.default_rng(seed)
    if kind == "ties":  # whole numbers: many equal rates, values and costs
        value = rng.integers(-2, 5, (n, coupons)).astype(float)
        cost = rng.integers(0, 4, (n, coupons)).astype(float)
    elif kind == "same":  # all customers alike: every upgrade has the same rate
        value = np.tile(rng.normal(1, 1, coupons), (n, 1))
        cost = np.tile(rng.uniform(0, 3, coupons), (n, 1))
    else:
        value = rng.normal(0.5, 1, (n, coupons))
        cost = rng.gamma(2, 1, (n, coupons))
    value[:, 0] = cost[:, 0] = 0
    eligible = rng.random((n, coupons)) < 0.9
    eligible[:, 0] = True
    budget = rng.uniform(0, 0.6) * cost.max(axis=1).sum()
    return value, cost, budget, eligible


def highs_bound(value, cost, budget, eligible):
    """Optimum of the linear relaxation by HiGHS."""
    n, coupons = value.shape
    one_each = kron(np.eye(n), np.ones((1, coupons)))
    result = linprog(
        -value.ravel(),
        A_ub=vstack([csr_matrix(cost.reshape(1, -1))]),
        b_ub=[budget],
        A_eq=csr_matrix(one_each),
        b_eq=np.ones(n),
        bounds=[(0, float(e)) for e in eligible.ravel()],
        method="highs",
    )
    assert result.status == 0
    return -result.fun


def brute_force(value, cost, budget, eligible):
    n, coupons = value.shape
    rows = np.arange(n)
    best = -np.inf
    for choice in product(range(coupons), repeat=n):
        if eligible[rows, choice].all() and cost[rows, choice].sum() <= budget:
            best = max(best, value[rows, choice].sum())
    return best


def best_gain(value, eligible):
    """The most that one customer's coupon can add over their worst eligible one."""
    high = np.where(eligible, value, -np.inf).max(axis=1)
    low = np.where(eligible, value, np.inf).min(axis=1)
    return (high - low).max()


@pytest.mark.parametrize("kind", ["continuous", "ties", "same"])
@pytest.mark.parametrize("seed", range(15))
def test_dual_value_equals_highs_and_gap_is_below_one_customer(kind, seed):
    value, cost, budget, eligible = problem = instance(seed, kind=kind)
    result = solve_budget(*problem)
    scale = max(1.0, np.abs(value).sum())
    assert result.dual_value == pytest.approx(highs_bound(*problem), abs=1e-9 * scale)
    assert result.dual_value >= result.primal_value
    assert result.duality_gap <= best_gain(value, eligible) + 1e-9 * scale
    assert math.fsum(pick(cost, result.coupon)) == result.expected_spend <= budget
    assert pick(eligible, result.coupon).all()
    assert math.fsum(pick(value, result.coupon)) == result.primal_value


@pytest.mark.parametrize("kind", ["continuous", "ties"])
@pytest.mark.parametrize("seed", range(10))
def test_brute_force_lies_between_primal_and_dual(kind, seed):
    problem = instance(seed, n=5, coupons=3, kind=kind)
    result, best = solve_budget(*problem), brute_force(*problem)
    assert result.primal_value - 1e-9 <= best <= result.dual_value + 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_price_is_a_minimum_of_the_dual_function(seed):
    value, cost, budget, eligible = instance(seed)
    result = solve_budget(value, cost, budget, eligible)

    def dual(price):
        return price * budget + np.where(eligible, value - price * cost, -np.inf).max(axis=1).sum()

    assert dual(result.dual_price) == pytest.approx(result.dual_value, rel=1e-12)
    around = result.dual_price * np.array([0.5, 0.9, 0.999, 1.001, 1.1, 2])
    assert min(dual(price) for price in around) >= result.dual_value - 1e-9


def test_leftover_goes_to_the_best_upgrade_that_fits():
    """By hand: the 10-coupon is best per money, does not fit in 7, so the 5-coupon is given."""
    value, cost = np.array([[0.0, 1.0, 9.0]]), np.array([[0.0, 5.0, 10.0]])
    result = solve_budget(value, cost, 7.0, np.ones((1, 3), bool))
    assert result.coupon.tolist() == [1]
    assert result.dual_price == pytest.approx(0.9)
    assert result.dual_value == pytest.approx(6.3)


def test_unbinding_budget_has_price_zero_and_gives_everybody_their_best():
    value, cost, _, eligible = instance(3)
    result = solve_budget(value, cost, 1e6, eligible)
    assert result.dual_price == result.duality_gap == 0
    assert pick(value, result.coupon).tolist() == np.where(eligible, value, -9).max(1).tolist()


def test_zero_budget_gives_free_coupons_only():
    value, cost, _, eligible = instance(4)
    cost[0, 2], value[0, 2], eligible[0, 2] = 0, 5, True
    result = solve_budget(value, cost, 0.0, eligible)
    assert result.coupon[0] == 2
    assert result.expected_spend == 0
    assert result.duality_gap == pytest.approx(0, abs=1e-9)


def test_budget_below_the_cheapest_coupon_gives_none():
    value, cost, _, eligible = instance(5)
    result = solve_budget(value, cost, cost[:, 1:].min() / 2, eligible)
    assert (result.coupon == 0).all()


def test_equal_values_go_to_the_lowest_cost_then_the_lowest_index():
    value = np.array([[0, 4, 4, 4.0]])
    cost = np.array([[0, 2, 1, 1.0]])
    assert solve_budget(value, cost, 9, np.ones((1, 4), bool)).coupon.tolist() == [2]
    assert coupons_at_price(value, cost, np.ones((1, 4), bool), 0.0).tolist() == [2]


def test_equal_customers_are_served_in_order_and_the_last_money_is_used():
    value, cost = np.tile([0.0, 1.0], (10, 1)), np.tile([0.0, 2.0], (10, 1))
    result = solve_budget(value, cost, 7.0, np.ones((10, 2), bool))
    assert result.coupon.tolist() == [1] * 3 + [0] * 7


def test_spend_stays_within_budgets_that_binary_fractions_miss():
    """Oracle: exact rational sums. 0.1 is a little more than a tenth in binary."""
    value, cost = np.tile([0.0, 1.0], (60, 1)), np.tile([0.0, 0.1], (60, 1))
    for tenths in range(1, 60):
        result = solve_budget(value, cost, tenths / 10, np.ones((60, 2), bool))
        assert math.fsum(pick(cost, result.coupon)) <= tenths / 10
        assert result.coupon.sum() >= tenths - 1


def test_blocks_do_not_change_the_result(monkeypatch):
    problem = instance(6, n=100)
    whole = solve_budget(*problem).coupon
    monkeypatch.setattr("winback.models.allocation.BLOCK_ROWS", 7)
    assert solve_budget(*problem).coupon.tolist() == whole.tolist()


def test_no_customers():
    empty = np.zeros((0, 3))
    result = solve_budget(empty, empty, 5.0, empty > 0)
    assert result.coupon.shape == (0,)
    assert result.dual_value == result.primal_value == result.expected_spend == 0


def test_ineligible_entries_are_not_read():
    value, cost, budget, eligible = instance(7)
    expected = solve_budget(value, cost, budget, eligible).coupon
    value[~eligible], cost[~eligible] = np.nan, -np.inf
    assert solve_budget(value, cost, budget, eligible).coupon.tolist() == expected.tolist()


def test_affordable_counts_exactly():
    assert affordable(np.array([1.0, 2.0, 3.0]), 3.0) == 2
    assert affordable(np.array([0.0, 0.0]), 0.0) == 2
    assert affordable(np.array([]), 1.0) == 0


ONES = np.ones((7, 2))
YES = np.ones((7, 2), bool)
NOBODY = np.zeros((7, 2), bool)
BAD_INPUTS = [
    ((ONES, ONES[:, :1], 1, YES), "of one shape (customers, coupons), came (7, 2), (7, 1)"),
    ((ONES[:, :0], ONES[:, :0], 1, YES[:, :0]), "of one shape (customers, coupons)"),
    ((ONES, ONES, -5, YES), "a budget of 0 or more, came -5"),
    ((ONES, ONES, math.nan, YES), "a budget of 0 or more, came nan"),
    ((ONES, ONES, 9, NOBODY), "an eligible coupon (at least `none`)"),
    ((ONES * math.nan, ONES, 9, YES), "finite value of every coupon; wrong in rows 0, 1, 2, 3, 4,"),
    ((ONES, ONES * math.nan, 9, YES), "finite cost of 0 or more of every coupon; wrong in rows 0"),
    ((ONES, -ONES, 9, YES), "cost of 0 or more of every coupon; wrong in rows 0, 1, 2, 3, 4, … (7"),
    ((ONES, ONES, 6, YES), "budget of at least 7, what the cheapest eligible coupons cost, came 6"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUTS)
def test_bad_input(arguments, message):
    with pytest.raises(DataError) as error:
        solve_budget(*arguments)
    assert message in str(error.value)
