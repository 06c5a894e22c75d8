"""One coupon per customer, as much value as the budget buys: a multiple-choice knapsack.

    max  Σ_i Σ_a value_ia x_ia   with   Σ_a x_ia = 1,   Σ_i Σ_a cost_ia x_ia ≤ B,   x binary

Its dual, ``D(λ) = λB + Σ_i max_a (value_ia − λ cost_ia)`` with λ ≥ 0, bounds every allocation from
above (Sinha & Zoltners 1979; Dyer 1984). λ is the price of budget money: at λ = 2 the last unit
of currency buys a value of 2. The minimum of D is found exactly, without a tolerance: each
customer's coupons reduce to upgrades of falling value per money (the upper hull of its
(cost, value) points), all upgrades are sorted, and the first that does not fit sets λ.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from winback.models import allocation_kernels as kernels
from winback.models.errors import DataError, first_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

SAMPLED, AROUND = 10_000, 300  # upgrades; six standard deviations of where a sample ends
BLOCK_ROWS = 65_536  # customers whose upgrades are found before they are put together


@dataclass(frozen=True)
class Allocation:
    """A feasible allocation with its certificate.

    Attributes:
        coupon: (n,) index of the coupon that each customer gets.
        dual_price: λ, value per unit of budget money; 0 where the budget does not bind.
        primal_value: value of this allocation.
        dual_value: D(λ), the least upper bound on any allocation's value.
        duality_gap: dual_value − primal_value, at most the best gain of one customer.
        expected_spend: Σ cost of the chosen coupons, never above the budget.
        limit_prices: value per unit of each further limit (:mod:`winback.models.limits`), above 0
            where its ceiling binds and below 0 where its floor does; empty without limits.
    """

    coupon: Ints
    dual_price: float
    primal_value: float
    dual_value: float
    duality_gap: float
    expected_spend: float
    limit_prices: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Upgrades:
    """Moves of single customers to a dearer coupon, most value per money first; all (m,)."""

    customer: Ints
    target: Ints
    rate: Floats  # value gained per money, falling
    extra_cost: Floats


def solve_budget(value: Floats, cost: Floats, budget: float, eligible: Bools) -> Allocation:
    """Choose one eligible coupon per customer, of the highest total value within the budget.

    Equal values go to the lowest cost, then the lowest coupon index; equal value per money to the
    first customer. The money that remains before the first upgrade that does not fit goes to the
    best ones that do, so the gap is at most that one upgrade's gain.

    Args:
        value: (n, A) what a coupon is worth with this customer, currency; read where eligible.
        cost: (n, A) expected budget money that it takes, currency, 0 or more.
        budget: money for all customers together, 0 or more.
        eligible: (n, A) coupons that a customer may get, at least one each.

    Raises:
        DataError: a shape differs, a number is missing, infinite or (cost, budget) negative, a
            customer has no eligible coupon, or the cheapest coupons alone exceed the budget.
    """
    value, cost, eligible = checked(value, cost, budget, eligible)
    cheapest = np.zeros(len(value), np.int64)
    kernels.least_cost(value, cost, eligible, cheapest)
    room = budget - kernels.total_of(cost, cheapest)
    upgrades = _hull(value, cost, eligible, cheapest, room)
    coupon, taken = _take(cheapest, upgrades, cost, budget, room)
    price = float(upgrades.rate[taken]) if taken < len(upgrades.rate) else 0.0
    if taken < len(upgrades.rate):
        coupon = _use_leftover(coupon, value, cost, eligible, budget)
    return _certify(coupon, value, cost, eligible, budget, price)


def checked(
    value: Floats, cost: Floats, budget: float, eligible: Bools
) -> tuple[Floats, Floats, Bools]:
    """Value, cost and eligible as they may be computed with: 0 where not eligible.

    Raises:
        DataError: as :func:`solve_budget`.
    """
    value = np.ascontiguousarray(value, np.float64)
    cost = np.ascontiguousarray(cost, np.float64)
    eligible = np.ascontiguousarray(eligible, np.bool_)
    _check_shapes(value, cost, eligible)
    if not (math.isfinite(budget) and budget >= 0):
        raise DataError(f"expected a budget of 0 or more, came {budget}")
    values, costs = np.empty_like(value), np.empty_like(cost)
    if any(kernels.copy_eligible(value, cost, eligible, values, costs)):
        _refuse_rows(values, costs, eligible)
    _check_affordable(costs, eligible, budget)
    return values, costs, eligible


def coupons_at_price(value: Floats, cost: Floats, eligible: Bools, price: float) -> Ints:
    """(n,) the coupon of highest ``value − price · cost``; ties: lowest cost, then index."""
    coupon = np.zeros(len(value), np.int64)
    kernels.most_net(value, cost, eligible, float(price), coupon)
    return coupon


def pick(table: Floats, coupon: Ints) -> Floats:
    """(n,) each customer's entry of ``table`` (n, A) at their coupon."""
    first = np.arange(0, table.size, max(table.shape[1], 1), dtype=np.int64)
    return np.ascontiguousarray(table).ravel().take(first + coupon)


def affordable(costs: Floats, limit: float) -> int:
    """How many of the leading ``costs`` (m,) add up to at most ``limit``, without rounding."""
    count = int(np.searchsorted(np.cumsum(costs), limit, side="right"))
    while count and kernels.exact_sum(costs[:count]) > limit:
        count -= 1
    return count


def _hull(value: Floats, cost: Floats, eligible: Bools, cheapest: Ints, room: float) -> _Upgrades:
    """All customers' upgrades along their upper hulls, in an order to take them in.

    A customer's own stay in order.
    """
    parts = []
    for start in range(0, max(len(value), 1), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        customer, *rest = kernels.hulls(value[rows], cost[rows], eligible[rows], cheapest[rows])
        parts.append((customer + start, *rest))
    customer, target, rate, extra = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = _by_worth(rate, extra, room)
    return _Upgrades(customer[order], target[order], rate[order], extra[order])


def _by_worth(rate: Floats, extra: Floats, room: float) -> Ints:
    """(m,) order of falling rate around the upgrade that the room ends at; equal ones stay.

    A sample says where that is. Before it all fit in any order, after it none is looked at, so a
    few per cent are sorted; if the sample was wrong, everything is.
    """
    step = len(rate) // SAMPLED
    if step > 1:
        some = np.argsort(-rate[::step], kind="stable")
        sampled = rate[::step][some]
        ends = int(np.searchsorted(step * np.cumsum(extra[::step][some]), room))
        high = sampled[ends - AROUND] if ends >= AROUND else np.inf
        low = sampled[ends + AROUND] if ends + AROUND < len(some) else 0.0
        fit, near = rate > high, (rate <= high) & (rate >= low)
        before = float(extra[fit].sum())
        if before <= room and (low == 0.0 or before + float(extra[near].sum()) > room):
            close = np.flatnonzero(near)
            sorted_ones = close[np.argsort(-rate[close], kind="stable")]
            return np.concatenate([np.flatnonzero(fit), sorted_ones, np.flatnonzero(rate < low)])
    return np.argsort(-rate, kind="stable")


def _take(
    current: Ints, upgrades: _Upgrades, cost: Floats, budget: float, room: float
) -> tuple[Ints, int]:
    """The allocation after as many leading upgrades as the room allows, and their number."""
    taken = int(np.searchsorted(np.cumsum(upgrades.extra_cost), room, side="right"))
    while True:
        coupon = current.copy()
        coupon[upgrades.customer[:taken]] = upgrades.target[:taken]  # a customer's last one stays
        if taken == 0 or kernels.total_of(cost, coupon) <= budget:
            return coupon, taken
        taken -= 1  # the running sum was rounded down


def _use_leftover(
    coupon: Ints, value: Floats, cost: Floats, eligible: Bools, budget: float
) -> Ints:
    """Spend what remains on the upgrades that still fit, most value per money first."""
    rows = np.arange(len(coupon))
    while len(rows):
        room = budget - kernels.total_of(cost, coupon)
        found = kernels.upgrades_within(value, cost, eligible, coupon, rows, room)
        order = _by_worth(found[2], found[3], room)
        moves = _Upgrades(*(column[order] for column in found))
        coupon, taken = _take(coupon, moves, cost, budget, room)
        if taken == 0:
            break
        rows = found[0]  # only they can still have an upgrade that fits: room shrinks
    return coupon


def _certify(
    coupon: Ints, value: Floats, cost: Floats, eligible: Bools, budget: float, price: float
) -> Allocation:
    primal = kernels.total_of(value, coupon)
    bound = coupons_at_price(value, cost, eligible, price)
    net = kernels.total_of(value, bound) - price * kernels.total_of(cost, bound)
    dual = max(price * budget + net, primal)  # never below it but for rounding
    spend = kernels.total_of(cost, coupon)
    return Allocation(coupon, price, primal, dual, dual - primal, spend)


def _check_shapes(value: Floats, cost: Floats, eligible: Bools) -> None:
    if value.ndim != 2 or value.shape[1] == 0 or not value.shape == cost.shape == eligible.shape:
        raise DataError(
            "expected value, cost and eligible of one shape (customers, coupons), came "
            f"{value.shape}, {cost.shape}, {eligible.shape}"
        )


def _refuse_rows(value: Floats, cost: Floats, eligible: Bools) -> None:
    """Say which rows are wrong, and how."""
    has_any = eligible.max(axis=1, keepdims=True)
    _check_rows(has_any, "an eligible coupon (at least `none`) for every customer")
    _check_rows(np.isfinite(value), "a finite value of every coupon")
    _check_rows(np.isfinite(cost) & (cost >= 0), "a finite cost of 0 or more of every coupon")


def _check_rows(right: Bools, expected: str) -> None:
    wrong = np.nonzero(~right.all(axis=1))[0]
    if len(wrong):
        raise DataError(f"expected {expected}; wrong in rows {first_rows(wrong.tolist())}")


def _check_affordable(cost: Floats, eligible: Bools, budget: float) -> None:
    cheapest = np.zeros(len(cost), np.int64)
    kernels.least_cost(cost, cost, eligible, cheapest)
    least = kernels.total_of(cost, cheapest)
    if least > budget:
        raise DataError(
            f"expected a budget of at least {least:g}, what the cheapest eligible coupons cost, "
            f"came {budget:g}: make the free coupon `none` eligible for everybody"
        )
