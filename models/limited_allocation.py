"""The best allocation within a budget and further limits, with a certificate.

    max  Σ_i Σ_a value_ia x_ia   with   Σ_a x_ia = 1,   floor_l ≤ Σ_i Σ_a w_lia x_ia ≤ ceiling_l

The budget is one of the limits. Each has a price (:mod:`winback.models.limit_prices`); at the
prices nearly everybody's best coupon is clear. The few customers nearest to indifference, the
core, are settled by a small integer program with the room that the others leave (the core problem
of Balas & Zemel 1980), so the result is an allocation, not a fraction, and keeps every limit.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, vstack

from winback.models import allocation_kernels as kernels
from winback.models.allocation import Allocation, Bools, Floats, Ints, checked, pick, solve_budget
from winback.models.errors import DataError
from winback.models.limit_prices import (
    LimitedProblem,
    Prices,
    choose,
    find_prices,
    least_use,
    most_use,
    weights,
)
from winback.models.limits import BUDGET, Limit, check_limits

GAP = 1e-4  # of the bound: a tenth of a per mille, far below what forecasts are off
POOR = 1e-3  # of the bound: a gap that a larger core may close
CORES = (128, 512, 2_048, 8_192)  # customers settled exactly; the first is often enough
ENOUGH = 512  # a larger core only where this one finds nothing: whole coupons leave the gap
NODES = 50_000  # customers × nodes of the integer program's search: no clock, so repeatable
TIGHTER = (0.0, 1e-6, 1e-5)  # money kept back where the solver's own tolerance exceeds a limit


def solve_with_limits(
    value: Floats,
    cost: Floats,
    budget: float,
    eligible: Bools,
    limits: Sequence[Limit],
) -> Allocation:
    """Choose one eligible coupon per customer, of the highest total value within all limits.

    The bound is proved; the allocation's distance to it is typically below ``GAP`` of it from
    10,000 customers on, and with few customers as small as whole coupons allow.

    Args:
        value, cost, budget, eligible: as :func:`winback.models.allocation.solve_budget`.
        limits: any number; without one the budget's exact solution is returned.

    Raises:
        DataError: an input is wrong, or the limits cannot be kept together; the message names the
            first that does not fit beside those before it, and what could be reached.
    """
    limits = list(limits)
    value, cost, eligible = checked(value, cost, budget, eligible)
    check_limits(limits, value.shape)
    problem = _problem(value, cost, budget, eligible, limits)
    found = find_prices(problem)
    if (found.prices[1:] == 0).all():
        alone = _budget_alone(value, cost, budget, eligible, limits)
        if alone is not None:
            return alone
    coupon = _settle(problem, found) if found.is_bounded else None
    if coupon is None:
        raise DataError(_impossible(problem, [BUDGET, *(limit.name for limit in limits)]))
    primal, spend = kernels.total_of(value, coupon), kernels.total_of(cost, coupon)
    dual = max(found.bound, primal)  # never below it but for rounding
    prices = dict(zip((limit.name for limit in limits), found.prices[1:].tolist(), strict=True))
    return Allocation(
        coupon, float(found.prices[0]), primal, dual, dual - primal, spend, limit_prices=prices
    )


def _budget_alone(
    value: Floats, cost: Floats, budget: float, eligible: Bools, limits: list[Limit]
) -> Allocation | None:
    """The allocation by the budget only, if it keeps the limits: nothing can be better."""
    alone = solve_budget(value, cost, budget, eligible)
    used = [limit.used(alone.coupon, cost) for limit in limits]
    if all(limit.floor <= use <= limit.ceiling for limit, use in zip(limits, used, strict=True)):
        return replace(alone, limit_prices={limit.name: 0.0 for limit in limits})
    return None


def _problem(
    value: Floats, cost: Floats, budget: float, eligible: Bools, limits: list[Limit]
) -> LimitedProblem:
    n, coupons = value.shape
    everything = Limit(BUDGET, np.ones(n, bool), np.ones(coupons, bool), "spend", 0.0, budget)
    every = [everything, *limits]
    in_money = np.array([limit.unit == "spend" for limit in every])
    counted = np.array([limit.coupons for limit in every])
    counted[:, 0] &= in_money
    profile, member = _profiles(np.array([limit.customers for limit in every]))
    floor = np.array([limit.floor for limit in every], np.float64)
    ceiling = np.array([limit.ceiling for limit in every], np.float64)
    floor = np.where(in_money, floor, np.ceil(floor))
    ceiling = np.where(in_money, ceiling, np.floor(ceiling))
    problem = LimitedProblem(
        value, cost, eligible, profile, member, counted, in_money, floor, ceiling
    )
    return replace(problem, eligible=_possible(problem))


def _profiles(customers: Bools) -> tuple[Ints, Bools]:
    """(n,) profile of each customer and (K, L) the limits of each, from (L, n) memberships."""
    profile = np.zeros(customers.shape[1], np.int64)
    for members in customers:  # renumbered each time, so that many limits do not overflow
        code = 2 * profile + members
        profile = (np.cumsum(np.bincount(code) > 0) - 1)[code]
    first = np.unique(profile, return_index=True)[1]
    return profile, customers[:, first].T.copy()


def _possible(problem: LimitedProblem) -> Bools:
    """(n, A) eligible coupons that alone exceed no limit."""
    fits = problem.eligible.copy()
    dearest = problem.cost.max(initial=0.0)
    for row, ceiling in enumerate(problem.ceiling):
        if ceiling >= (dearest if problem.in_money[row] else 1.0):
            continue
        members = np.nonzero(problem.member[problem.profile, row])[0]
        over = weights(problem, row, members) > ceiling
        if over.any():
            fits[members] &= ~over
    stuck = np.nonzero(~fits.any(axis=1))[0]
    fits[stuck] = problem.eligible[stuck]  # the prices will prove that nothing fits
    return fits


def _settle(problem: LimitedProblem, found: Prices) -> Ints | None:
    """Everybody's best coupon at the prices but in the core; None where no whole one fits."""
    coupon, margin = choose(problem, found.prices)
    order = _leading(margin, CORES[-1])
    for size in CORES:
        core = np.sort(order[:size])
        settled = _settle_core(problem, coupon, core, found.bound)
        enough = size >= ENOUGH or _is_close(problem, settled, found.bound)
        if size >= len(coupon) or (settled is not None and enough):
            return settled
    return None


def _leading(values: Floats, most: int) -> Ints:
    """The first places of a stable sort of values (n,): ``most`` of them, or more where equal."""
    if most >= len(values):
        return np.argsort(values, kind="stable")
    few = np.flatnonzero(values <= np.partition(values, most)[most])
    return few[np.argsort(values[few], kind="stable")]


def _is_close(problem: LimitedProblem, coupon: Ints | None, bound: float) -> bool:
    if coupon is None:
        return False
    return bool(bound - kernels.total_of(problem.value, coupon) <= POOR * abs(bound))


def _settle_core(problem: LimitedProblem, coupon: Ints, core: Ints, bound: float) -> Ints | None:
    """Replace the core's coupons by its best ones within the room that the others leave."""
    everybody = np.arange(len(coupon))
    rows = np.delete(everybody, core)
    use = _used(problem, rows, coupon[rows])
    for kept_back in TIGHTER:
        margin = np.where(problem.in_money, kept_back, 0.0)
        chosen = _integer_program(
            problem, core, problem.floor - use + margin, problem.ceiling - use - margin, bound
        )
        if chosen is None:
            return None
        settled = coupon.copy()
        settled[core] = chosen
        if _keeps_limits(problem, _used(problem, everybody, settled)):
            return settled
    return None


def _used(problem: LimitedProblem, rows: Ints, coupon: Ints) -> Floats:
    """(L,) what some customers' coupons (rows,) use of each limit, exactly summed."""
    cost, profile = pick(problem.cost[rows], coupon), problem.profile[rows]
    used = np.zeros(len(problem.floor))
    for row, counted in enumerate(problem.coupons):
        counts = problem.member[:, row][profile] & counted[coupon]
        used[row] = kernels.exact_sum(cost[counts]) if problem.in_money[row] else counts.sum()
    return used


def _keeps_limits(problem: LimitedProblem, used: Floats) -> bool:
    return bool(((problem.floor <= used) & (used <= problem.ceiling)).all())


def _integer_program(
    problem: LimitedProblem, core: Ints, floor: Floats, ceiling: Floats, bound: float
) -> Ints | None:
    """(core,) the best coupons of some customers, floor and ceiling (L,) left for them."""
    customer, coupon = np.nonzero(problem.eligible[core])
    value = problem.value[core][customer, coupon]
    member = problem.member[problem.profile[core]]
    counted = [
        csr_matrix((member[:, [row]] * weights(problem, row, core))[customer, coupon])
        for row in range(len(floor))
    ]
    one_each = csr_matrix((np.ones(len(value)), (customer, np.arange(len(value)))))
    worth = max(1e-12, float(np.abs(value).sum()))
    answer = milp(
        -value,
        integrality=np.ones(len(value)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(vstack(counted), floor, ceiling),
        ],
        options={
            "node_limit": NODES // len(core),
            "mip_rel_gap": min(0.1, 0.1 * GAP * abs(bound) / worth),
        },
    )
    if answer.x is None:
        return None
    chosen = np.zeros(len(core), np.int64)
    taken = answer.x > 0.5
    chosen[customer[taken]] = coupon[taken]
    return chosen


def _impossible(problem: LimitedProblem, names: list[str]) -> str:
    """Which limit cannot be kept beside those before it, and what it could be."""
    least, most = least_use(problem), most_use(problem)
    for row, name in enumerate(names):
        low, high = float(least[row]), float(most[row])
        if row and low <= problem.ceiling[row] and problem.floor[row] <= high:
            low, high = -_most_beside(problem, row, -1.0), _most_beside(problem, row, 1.0)
        unit = "budget money" if problem.in_money[row] else "customers with a coupon"
        beside = f" beside {', '.join(names[:row])}" if row else ""
        slack = 1e-6 * max(1.0, abs(high))
        if problem.floor[row] > high + slack:
            return (
                f"expected the limit {name} to reach its floor of {problem.floor[row]:g} {unit}; "
                f"at most {high:g} can be reached{beside}. Lower this floor to {high:g} or less, "
                "or raise a ceiling or the budget."
            )
        if problem.ceiling[row] < low - slack:
            return (
                f"expected the limit {name} to stay below its ceiling of "
                f"{problem.ceiling[row]:g} {unit}; at least {low:g} is needed{beside}. Raise this "
                f"ceiling to {low:g} or more, lower a floor, or make `none` eligible."
            )
    return (
        f"expected an allocation of whole coupons within the limits {', '.join(names)}, found "
        "none: a floor lies too close to a ceiling. Leave at least one coupon's cost between them."
    )


def _most_beside(problem: LimitedProblem, limit: int, sign: float) -> float:
    """The most (sign 1) or least (−1, negative) use of a limit beside those before it."""
    rows = np.arange(len(problem.profile))
    member = problem.member[problem.profile, limit][:, None]
    before = replace(
        problem,
        value=sign * member * weights(problem, limit, rows),
        member=problem.member[:, :limit],
        coupons=problem.coupons[:limit],
        in_money=problem.in_money[:limit],
        floor=problem.floor[:limit],
        ceiling=problem.ceiling[:limit],
    )
    return find_prices(before).bound
