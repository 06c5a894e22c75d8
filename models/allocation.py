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

from winback.models.errors import DataError, first_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

BLOCK_ROWS = 65_536  # rows whose temporaries (about ten matrices) stay in the processor's cache


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
    cheapest = _cheapest(value, cost, eligible)
    upgrades = _hull(value, cost, eligible, cheapest)
    coupon, taken = _take(cheapest, upgrades, cost, budget)
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
    value, cost = np.asarray(value, np.float64), np.asarray(cost, np.float64)
    eligible = np.asarray(eligible, np.bool_)
    _check_shapes(value, cost, eligible)
    value, cost = np.where(eligible, value, 0.0), np.where(eligible, cost, 0.0)
    _check_numbers(value, cost, budget, eligible)
    _check_affordable(np.where(eligible, cost, np.inf).min(axis=1), budget)
    return value, cost, eligible


def coupons_at_price(value: Floats, cost: Floats, eligible: Bools, price: float) -> Ints:
    """(n,) the coupon of highest ``value − price · cost``; ties: lowest cost, then index."""
    net = np.where(eligible, value - price * cost, -np.inf)
    best = net == net.max(axis=1, keepdims=True)
    return _argmin(np.where(best, cost, np.inf))


def pick(table: Floats, coupon: Ints) -> Floats:
    """(n,) each customer's entry of ``table`` (n, A) at their coupon."""
    return np.take_along_axis(table, coupon[:, None], axis=1)[:, 0]


def affordable(costs: Floats, limit: float) -> int:
    """How many of the leading ``costs`` (m,) add up to at most ``limit``, without rounding."""
    count = int(np.searchsorted(np.cumsum(costs), limit, side="right"))
    while count and math.fsum(costs[:count]) > limit:
        count -= 1
    return count


def _argmin(table: Floats) -> Ints:
    """(n,) column of the smallest entry, the first of equal ones."""
    column: Ints = table.argmin(axis=1)
    return column


def _cheapest(value: Floats, cost: Floats, eligible: Bools) -> Ints:
    """(n,) the best of each customer's cheapest coupons."""
    price = np.where(eligible, cost, np.inf)
    lowest = eligible & (price == price.min(axis=1, keepdims=True, initial=np.inf))
    return _argmin(np.where(lowest, -value, np.inf))


def _best_upgrade(
    value: Floats, cost: Floats, eligible: Bools, current: Ints, room: float = math.inf
) -> tuple[Ints, Floats, Floats]:
    """(n,) each: target, rate and extra cost of the upgrade of most value per money.

    Only upgrades with an extra cost of at most ``room`` count; rate 0 where there is none.
    """
    extra = cost - pick(cost, current)[:, None]
    gain = value - pick(value, current)[:, None]
    possible = eligible & (extra > 0) & (extra <= room) & (gain > 0)
    rate = np.divide(gain, extra, out=np.zeros_like(gain), where=possible)
    best = rate.max(axis=1)
    target = _argmin(np.where(possible & (rate == best[:, None]), extra, np.inf))
    return target, best, pick(extra, target)


def _hull(value: Floats, cost: Floats, eligible: Bools, cheapest: Ints) -> _Upgrades:
    """All customers' upgrades along their upper hulls, sorted; a customer's own stay in order."""
    blocks = [
        _block_hull(value[rows], cost[rows], eligible[rows], cheapest[rows], rows.start)
        for rows in _blocks(len(value))
    ]
    customer, target, rate, extra = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    order = np.argsort(-rate, kind="stable")
    return _Upgrades(customer[order], target[order], rate[order], extra[order])


def _blocks(n: int) -> list[slice]:
    return [slice(start, start + BLOCK_ROWS) for start in range(0, max(n, 1), BLOCK_ROWS)]


def _block_hull(
    value: Floats, cost: Floats, eligible: Bools, current: Ints, first_row: int
) -> tuple[Ints, Ints, Floats, Floats]:
    n, coupons = value.shape
    target = np.zeros((n, coupons - 1), np.int64)
    rate, extra = np.zeros((n, coupons - 1)), np.zeros((n, coupons - 1))
    falling = np.full(n, np.inf)  # rounding must not put a customer's second upgrade first
    for step in range(coupons - 1):
        target[:, step], best, extra[:, step] = _best_upgrade(value, cost, eligible, current)
        falling = np.minimum(falling, best)
        rate[:, step] = falling
        current = np.where(best > 0, target[:, step], current)
    row, column = np.nonzero(rate)  # row by row: ties go to the first customer
    return row + first_row, target[row, column], rate[row, column], extra[row, column]


def _take(current: Ints, upgrades: _Upgrades, cost: Floats, budget: float) -> tuple[Ints, int]:
    """The allocation after as many leading upgrades as the budget allows, and their number."""
    room = budget - math.fsum(pick(cost, current))
    taken = int(np.searchsorted(np.cumsum(upgrades.extra_cost), room, side="right"))
    while True:
        coupon = current.copy()
        coupon[upgrades.customer[:taken]] = upgrades.target[:taken]  # a customer's last one stays
        if taken == 0 or math.fsum(pick(cost, coupon)) <= budget:
            return coupon, taken
        taken -= 1  # the running sum was rounded down


def _use_leftover(
    coupon: Ints, value: Floats, cost: Floats, eligible: Bools, budget: float
) -> Ints:
    """Spend what remains on the upgrades that still fit, most value per money first."""
    rows = np.arange(len(coupon))
    while len(rows):
        room = budget - math.fsum(pick(cost, coupon))
        target, rate, extra = _best_upgrade(
            value[rows], cost[rows], eligible[rows], coupon[rows], room
        )
        order = np.argsort(-rate, kind="stable")[: np.count_nonzero(rate)]
        rows = rows[order]
        moves = _Upgrades(rows, target[order], rate[order], extra[order])
        coupon, taken = _take(coupon, moves, cost, budget)
        if taken == 0:
            break
        rows = np.sort(rows)  # only they can still have an upgrade that fits: room shrinks
    return coupon


def _certify(
    coupon: Ints, value: Floats, cost: Floats, eligible: Bools, budget: float, price: float
) -> Allocation:
    primal = math.fsum(pick(value, coupon))
    bound = coupons_at_price(value, cost, eligible, price)
    net = math.fsum(pick(value, bound)) - price * math.fsum(pick(cost, bound))
    dual = max(price * budget + net, primal)  # never below it but for rounding
    spend = math.fsum(pick(cost, coupon))
    return Allocation(coupon, price, primal, dual, dual - primal, spend)


def _check_shapes(value: Floats, cost: Floats, eligible: Bools) -> None:
    if value.ndim != 2 or value.shape[1] == 0 or not value.shape == cost.shape == eligible.shape:
        raise DataError(
            "expected value, cost and eligible of one shape (customers, coupons), came "
            f"{value.shape}, {cost.shape}, {eligible.shape}"
        )


def _check_numbers(value: Floats, cost: Floats, budget: float, eligible: Bools) -> None:
    if not (math.isfinite(budget) and budget >= 0):
        raise DataError(f"expected a budget of 0 or more, came {budget}")
    has_any = eligible.max(axis=1, keepdims=True)
    _check_rows(has_any, "an eligible coupon (at least `none`) for every customer")
    _check_rows(np.isfinite(value), "a finite value of every coupon")
    _check_rows(np.isfinite(cost) & (cost >= 0), "a finite cost of 0 or more of every coupon")


def _check_rows(right: Bools, expected: str) -> None:
    wrong = np.nonzero(~right.all(axis=1))[0]
    if len(wrong):
        raise DataError(f"expected {expected}; wrong in rows {first_rows(wrong.tolist())}")


def _check_affordable(costs: Floats, budget: float) -> None:
    least = math.fsum(costs)
    if least > budget:
        raise DataError(
            f"expected a budget of at least {least:g}, what the cheapest eligible coupons cost, "
            f"came {budget:g}: make the free coupon `none` eligible for everybody"
        )
