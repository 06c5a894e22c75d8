"""Allocation under several limits against HiGHS, brute force, its certificate and hand cases."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, kron, vstack

from winback.models.allocation import coupons_at_price, pick, solve_budget
from winback.models.errors import DataError
from winback.models.limited_allocation import solve_with_limits
from winback.models.limits import Limit, charged_value, within_ceilings


def everybody(n):
    return np.ones(n, bool)


def instance(seed, n=60, coupons=4, segments=3):
    """Random values and costs; a limit per segment, per coupon and on contacts, all can be kept.

    Floors and ceilings lie around what a random allocation within the budget uses.
    """
    rng = np.random.default_rng(seed)
    value, cost = rng.normal(0.5, 1, (n, coupons)), rng.gamma(2, 1, (n, coupons))
    value[:, 0] = cost[:, 0] = 0
    eligible = rng.random((n, coupons)) < 0.9
    eligible[:, 0] = True
    some = coupons_at_price(rng.normal(0, 1, (n, coupons)), cost, eligible, 0.3)
    segment = rng.integers(0, segments, n)
    every = np.ones(coupons, bool)
    shapes = [(f"segment {s}", segment == s, every, "spend") for s in range(segments)]
    shapes += [(f"coupon {a}", everybody(n), np.arange(coupons) == a, "contacts") for a in (1, 2)]
    shapes += [("contacts", everybody(n), every, "contacts")]
    limits = []
    for shape in shapes:
        used = Limit(*shape).used(some, cost)
        low, high = rng.uniform(0, 0.95) * rng.integers(0, 2), rng.choice([1.05, 1.5, 9.0])
        floor, ceiling = low * used, high * used
        if shape[3] == "contacts":
            floor, ceiling = np.ceil(floor), np.floor(ceiling)
        limits.append(Limit(*shape, floor=floor, ceiling=ceiling))
    return value, cost, math.fsum(pick(cost, some)) * 1.02, eligible, limits


def highs(value, cost, budget, eligible, limits, integral):
    """Optimum by HiGHS over the full problem, its relaxation where not ``integral``."""
    n, coupons = value.shape
    rows = [csr_matrix(cost.reshape(1, -1))]
    rows += [csr_matrix(limit.weight(cost).reshape(1, -1)) for limit in limits]
    answer = milp(
        -value.ravel(),
        integrality=np.full(n * coupons, int(integral)),
        bounds=Bounds(0, eligible.ravel().astype(float)),
        constraints=[
            LinearConstraint(csr_matrix(kron(np.eye(n), np.ones((1, coupons)))), 1, 1),
            LinearConstraint(
                vstack(rows),
                [-np.inf, *(limit.floor for limit in limits)],
                [budget, *(limit.ceiling for limit in limits)],
            ),
        ],
        options={"mip_rel_gap": 0.0},
    )
    return None if answer.x is None else -answer.fun


def assert_kept(result, value, cost, budget, eligible, limits):
    assert pick(eligible, result.coupon).all()
    assert math.fsum(pick(cost, result.coupon)) == result.expected_spend <= budget
    assert math.fsum(pick(value, result.coupon)) == result.primal_value <= result.dual_value
    for limit in limits:
        used = math.fsum(pick(limit.weight(cost), result.coupon))
        assert limit.floor <= used <= limit.ceiling, limit.name


def assert_certified(result, value, cost, budget, eligible, limits):
    """The stated bound is the dual function at the stated prices, added up anew."""
    charged = charged_value(value, cost, limits, result.limit_prices)
    free = coupons_at_price(charged, cost, eligible, result.dual_price)
    net = math.fsum(pick(charged, free)) - result.dual_price * math.fsum(pick(cost, free))
    at = result.dual_price * budget
    for limit in limits:
        price = result.limit_prices[limit.name]
        at += price * (limit.ceiling if price > 0 else limit.floor) if price else 0.0
    assert result.dual_price >= 0
    assert net + at == pytest.approx(result.dual_value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_dual_value_equals_the_linear_program_of_highs_and_all_limits_are_kept(seed):
    problem = instance(seed)
    result = solve_with_limits(*problem)
    assert_kept(result, *problem)
    assert_certified(result, *problem)
    assert result.dual_value == pytest.approx(highs(*problem, integral=False), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("seed", range(6))
def test_few_customers_get_the_best_whole_allocation_of_highs(seed):
    problem = instance(seed + 100, n=30)
    result = solve_with_limits(*problem)
    best = highs(*problem, integral=True)
    assert result.primal_value == pytest.approx(best, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_few_customers_get_the_best_allocation_of_brute_force_or_an_error(seed):
    value, cost, budget, eligible, limits = problem = instance(seed + 200, n=5, coupons=3)
    rows, best = np.arange(5), -np.inf
    for choice in product(range(3), repeat=5):
        coupon = np.array(choice)
        kept = all(limit.floor <= limit.used(coupon, cost) <= limit.ceiling for limit in limits)
        if eligible[rows, choice].all() and cost[rows, choice].sum() <= budget and kept:
            best = max(best, value[rows, choice].sum())
    if best == -np.inf:
        with pytest.raises(DataError, match="expected"):
            solve_with_limits(*problem)
    else:
        assert solve_with_limits(*problem).primal_value == pytest.approx(best, abs=1e-9)


def categories(n, seed=0):
    """Ten categories, floors for four and ceilings for four; one coupon and all contacts capped."""
    rng = np.random.default_rng(seed)
    value, cost = rng.normal(0.5, 1, (n, 4)), rng.gamma(2, 1, (n, 4))
    value[:, 0] = cost[:, 0] = 0
    budget, category = 0.2 * cost.max(axis=1).sum(), rng.integers(0, 10, n)
    every = np.ones(4, bool)
    limits = [
        Limit(f"category {c}", category == c, every, "spend", floor=0.12 * budget) for c in range(4)
    ]
    limits += [
        Limit(f"category {c}", category == c, every, "spend", ceiling=0.08 * budget)
        for c in range(6, 10)
    ]
    limits += [
        Limit("mail", everybody(n), np.arange(4) == 1, "contacts", ceiling=0.05 * n),
        Limit("a day", everybody(n), every, "contacts", ceiling=0.3 * n),
    ]
    return value, cost, budget, np.ones((n, 4), bool), limits


@pytest.mark.parametrize("n", [10_000, 60_000])
def test_gap_is_below_a_tenth_of_a_per_mille(n):
    """Oracle: the certificate, added up anew; 60,000 customers begin with a sample's prices."""
    problem = categories(n)
    result = solve_with_limits(*problem)
    assert_kept(result, *problem)
    assert_certified(result, *problem)
    assert 0 <= result.duality_gap <= 1e-4 * result.dual_value
    prices = result.limit_prices
    assert all(prices[f"category {c}"] < 0 for c in range(4))  # pushed up to their floors
    assert all(prices[f"category {c}"] > 0 for c in range(6, 10))  # held down by their ceilings
    assert prices["mail"] > 0


def test_prices_lie_between_what_one_unit_less_and_one_more_bring():
    """Oracle: differences of the optimum, which is concave in every floor and ceiling."""
    value, cost, budget, eligible, limits = categories(2_000)
    result = solve_with_limits(value, cost, budget, eligible, limits)
    for row, end in [(0, "floor"), (5, "ceiling"), (8, "ceiling")]:
        price, change = result.limit_prices[limits[row].name], {}
        for step in (-1.0, 1.0):
            moved = replace(limits[row], **{end: getattr(limits[row], end) + step})
            others = [*limits[:row], moved, *limits[row + 1 :]]
            bound = solve_with_limits(value, cost, budget, eligible, others).dual_value
            change[step] = bound - result.dual_value
        assert change[1.0] - 1e-4 <= price <= -change[-1.0] + 1e-4
        assert abs(price) > 0.01


def test_limits_that_do_not_bind_leave_the_budget_s_exact_solution():
    value, cost, budget, eligible, _ = instance(1)
    loose = [Limit("loose", everybody(60), np.ones(4, bool), "contacts", 0, 60)]
    alone = solve_budget(value, cost, budget, eligible)
    for limits in ([], loose):
        result = solve_with_limits(value, cost, budget, eligible, limits)
        assert result.coupon.tolist() == alone.coupon.tolist()
        assert result.dual_value == alone.dual_value
        assert result.limit_prices == {limit.name: 0.0 for limit in limits}


def test_same_problem_same_allocation():
    problem = categories(3_000)
    first, second = solve_with_limits(*problem), solve_with_limits(*problem)
    assert first.coupon.tolist() == second.coupon.tolist()
    assert first.limit_prices == second.limit_prices


def test_equal_customers_by_hand():
    """Ten alike, worth 3 at cost 2: the ceiling of 5 contacts leaves 5 coupons, the spend 10."""
    value, cost = np.tile([0.0, 3.0], (10, 1)), np.tile([0.0, 2.0], (10, 1))
    most = Limit("a day", everybody(10), np.ones(2, bool), "contacts", ceiling=5)
    result = solve_with_limits(value, cost, 100.0, np.ones((10, 2), bool), [most])
    assert result.coupon.sum() == 5
    assert result.limit_prices["a day"] == pytest.approx(3.0)
    assert result.duality_gap == pytest.approx(0.0, abs=1e-6)


def test_floor_is_kept_at_a_loss():
    """By hand: the segment's coupons lose 1 each, and its floor of 4 takes two of them."""
    value, cost = np.tile([0.0, -1.0], (6, 1)), np.tile([0.0, 2.0], (6, 1))
    floor = Limit("segment", np.arange(6) < 3, np.ones(2, bool), "spend", floor=4.0)
    result = solve_with_limits(value, cost, 10.0, np.ones((6, 2), bool), [floor])
    assert result.coupon[:3].sum() == 2
    assert result.coupon[3:].sum() == 0
    assert result.limit_prices["segment"] == pytest.approx(-0.5)


def test_ceiling_zero_takes_a_coupon_out():
    value, cost, budget, eligible, _ = instance(3)
    never = Limit("never", everybody(60), np.arange(4) == 2, "spend", ceiling=0.0)
    result = solve_with_limits(value, cost, budget, eligible, [never])
    eligible[:, 2] = False
    without = solve_budget(value, cost, budget, eligible)
    assert result.dual_value == pytest.approx(without.dual_value, rel=1e-7)
    assert (result.coupon != 2).all()


def test_coupons_that_alone_exceed_a_ceiling_are_not_eligible():
    cost = np.array([[0.0, 2.0, 4.0], [0.0, 1.0, 3.0]])
    most = Limit("first", np.array([True, False]), np.ones(3, bool), "spend", ceiling=3.0)
    fits = within_ceilings(np.ones((2, 3), bool), cost, [most])
    assert fits.tolist() == [[True, True, False], [True, True, True]]


def test_none_is_never_a_contact():
    limit = Limit("a day", everybody(3), np.ones(2, bool), "contacts", ceiling=1)
    assert limit.used(np.array([0, 1, 0]), np.ones((3, 2))) == 1
    assert Limit("money", everybody(3), np.ones(2, bool), "spend").used(
        np.array([0, 1, 0]), np.full((3, 2), 2.0)
    ) == pytest.approx(6.0)


def test_no_customers():
    empty = np.zeros((0, 3))
    limit = Limit("a day", everybody(0), np.ones(3, bool), "contacts", ceiling=5)
    assert solve_with_limits(empty, empty, 5.0, empty > 0, [limit]).coupon.shape == (0,)
    with pytest.raises(DataError, match="floor of 2 customers with a coupon; at most 0 can"):
        solve_with_limits(empty, empty, 5.0, empty > 0, [replace(limit, floor=2)])


def one_segment(floor=0.0, ceiling=math.inf, unit="spend", name="loyal"):
    return Limit(name, np.arange(10) < 4, np.ones(2, bool), unit, floor, ceiling)


IMPOSSIBLE = [
    (
        [one_segment(9)],
        100,
        r"loyal to reach its floor of 9 budget money; at most 8 .*beside budget",
    ),
    (
        [one_segment(7)],
        5,
        r"loyal to reach its floor of 7 .*at most 5 can be reached beside budget",
    ),
    (
        [one_segment(6), Limit("new", np.arange(10) >= 4, np.ones(2, bool), "spend", 6)],
        10,
        r"new to reach its floor of 6 .*at most 4 can be reached beside budget, loyal. Lower this",
    ),
    (
        [one_segment(3, unit="contacts"), one_segment(0, 4, name="money")],
        100,
        r"money to stay below its ceiling of 4 budget money; at least 6 is needed beside .*loyal",
    ),
    ([one_segment(3, 3.5)], 100, r"whole coupons within the limits budget, loyal, found none"),
]


@pytest.mark.parametrize(("limits", "budget", "message"), IMPOSSIBLE)
def test_impossible_limits_name_the_first_that_does_not_fit(limits, budget, message):
    """Ten customers, one coupon of cost 2 each."""
    value, cost = np.tile([0.0, 3.0], (10, 1)), np.tile([0.0, 2.0], (10, 1))
    with pytest.raises(DataError, match=message):
        solve_with_limits(value, cost, budget, np.ones((10, 2), bool), limits)


def test_coupon_that_must_be_given_and_may_not_is_an_error():
    value, cost = np.tile([0.0, 3.0], (10, 1)), np.tile([0.0, 2.0], (10, 1))
    forced = np.tile([False, True], (10, 1))
    with pytest.raises(DataError, match=r"ceiling of 3 customers .*at least 4 .*make `none`"):
        solve_with_limits(value, cost, 100, forced, [one_segment(0, 3, "contacts")])


BAD_LIMITS = [
    ([one_segment(), one_segment()], "different names other than budget; came loyal"),
    ([one_segment(name="budget")], "different names other than budget; came budget"),
    ([one_segment(5, 4)], "expected 0 ≤ floor ≤ ceiling in the limit loyal, came a floor of 5"),
    ([one_segment(-1)], "expected 0 ≤ floor ≤ ceiling"),
    ([one_segment(math.nan)], "expected 0 ≤ floor ≤ ceiling"),
    ([one_segment(unit="clicks")], "expected spend or contacts in loyal, came 'clicks'"),
    ([Limit("short", everybody(9), np.ones(2, bool), "spend")], "10 customers and 2 coupons in"),
    (
        [Limit("text", np.full(10, "x"), np.ones(2, bool), "spend")],
        "true or false for 10 customers",
    ),
]


@pytest.mark.parametrize(("limits", "message"), BAD_LIMITS)
def test_bad_limits(limits, message):
    value, cost = np.tile([0.0, 3.0], (10, 1)), np.tile([0.0, 2.0], (10, 1))
    with pytest.raises(DataError) as error:
        solve_with_limits(value, cost, 100, np.ones((10, 2), bool), limits)
    assert message in str(error.value)
