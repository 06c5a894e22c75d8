"""The prices of several limits at once: the least point of the allocation's dual function.

Each customer takes the coupon of highest value less the prices of all limits that it counts in;
what all of them then bring, plus the limits at their prices, bounds every allocation from above:

    D(π) = Σ_i max_a (value_ia − Σ_l π_l w_lia) + Σ_l (π_l > 0 ? π_l ceiling_l : π_l floor_l)

D is convex and piecewise linear; one price per limit, above 0 for a ceiling and below 0 for a
floor. Every evaluation is a cutting plane (Kelley 1960), one for each group of customers who
count in the same limits, and the next prices lie half way between the best so far and the least
point of all planes (in-out separation, Ben-Ameur & Neto 2007). The planes bound D from below, so
the distance to the least point is known.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import njit
from scipy.optimize import linprog

from winback.models.allocation import Bools, Floats, Ints

STEPS = 500  # evaluations of D; 20 to 80 are usual
TOLERANCE = 1e-8  # of D's own size: thousands of times below one customer of a million
NEAR_ZERO = 1e-2  # of the values' spread: below it, that share of the spread is D's size
NEGLIGIBLE = 1e-5  # prices this far below the largest are the search's own inaccuracy
GIVEN_UP = 1e-7  # of the bound: what it may rise by for prices that are exactly 0
INWARD = 0.5  # how far the next prices stay back towards the best; half is the usual choice
WIDER = 4.0  # growth of the box of prices while its edge holds the least point back
WIDEST = 1e6  # usual prices: dearer is only a limit that can be kept in one single way
PLANE_GROUPS = 32  # planes per evaluation at most, which keeps the linear program small
SAMPLE = 20_000  # customers whose prices are within about 1 % of everybody's
SAMPLE_BOX = 0.05  # half width of the box around the sample's prices, of the usual price

Tables = tuple[Floats, Floats]


@dataclass(frozen=True)
class LimitedProblem:
    """n customers × A coupons under L limits; customers of one profile count in the same limits.

    Attributes:
        value, cost, eligible: (n, A).
        profile: (n,) row of ``member``.
        member: (K, L) the limits that a profile counts in.
        coupons: (L, A) the coupons that count in a limit.
        in_money: (L,) counts what a coupon costs; otherwise 1 per customer.
        floor, ceiling: (L,).
    """

    value: Floats
    cost: Floats
    eligible: Bools
    profile: Ints
    member: Bools
    coupons: Bools
    in_money: Bools
    floor: Floats
    ceiling: Floats

    def price_tables(self, prices: Floats) -> Tables:
        """(K, A) each: price per unit of money and per contact of every coupon."""
        weight, counts = self.member * prices, self.coupons.astype(np.float64)
        return (weight * self.in_money) @ counts, (weight * ~self.in_money) @ counts

    def sample(self, step: int) -> "LimitedProblem":
        """Every ``step``-th customer, with their share of every limit."""
        rows = slice(None, None, step)
        share = len(self.profile[rows]) / len(self.profile)
        return LimitedProblem(
            np.ascontiguousarray(self.value[rows]),
            np.ascontiguousarray(self.cost[rows]),
            np.ascontiguousarray(self.eligible[rows]),
            self.profile[rows],
            self.member,
            self.coupons,
            self.in_money,
            self.floor * share,
            self.ceiling * share,
        )


@dataclass(frozen=True)
class Prices:
    """The least point found, D there and the planes' lower bound on D's minimum.

    ``is_bounded`` false: D falls below what the worst allocation is worth, which proves that no
    allocation keeps all limits.
    """

    prices: Floats
    bound: float
    lower: float
    is_bounded: bool
    steps: int


@dataclass(frozen=True)
class _Plane:
    """Value and use (G,), (G, L) of each group's choice at some prices."""

    value: Floats
    use: Floats


def find_prices(problem: LimitedProblem) -> Prices:
    """Minimise D, a sample of the customers first: it says where the prices about lie."""
    if len(problem.profile) == 0:
        return Prices(np.zeros(len(problem.floor)), 0.0, 0.0, bool((problem.floor <= 0).all()), 0)
    scale = _Scale.of(problem)
    start, width = np.zeros(len(problem.floor)), np.ones(len(problem.floor))
    step = len(problem.profile) // SAMPLE
    if step > 1:
        guess = _minimise(problem.sample(step), scale, start, width, 1e-6)
        if guess.is_bounded:  # a sample may be short of a rare segment
            start, width = guess.prices / scale.price, np.full(len(start), SAMPLE_BOX)
    return _tidy(problem, scale, _minimise(problem, scale, start, width, TOLERANCE))


def _tidy(problem: LimitedProblem, scale: "_Scale", found: Prices) -> Prices:
    """Prices that are 0 but for the search's tolerance are 0."""
    prices = found.prices / scale.price
    prices = np.where(np.abs(prices) <= NEGLIGIBLE * np.abs(prices).max(), 0.0, prices)
    _, height = _plane(problem, scale, prices)
    if not found.is_bounded or height * scale.value > found.bound + GIVEN_UP * abs(found.bound):
        return found
    return replace(found, prices=prices * scale.price, bound=height * scale.value)


@dataclass(frozen=True)
class _Scale:
    """Units in which values, uses and prices are about 1."""

    value: float  # spread of a group's total value
    use: Floats  # (L,) the largest use of each limit
    price: Floats  # (L,)
    worst: float  # value of the worst allocation

    @staticmethod
    def of(problem: LimitedProblem) -> "_Scale":
        lowest = np.where(problem.eligible, problem.value, np.inf).min(axis=1)
        highest = np.where(problem.eligible, problem.value, -np.inf).max(axis=1)
        value = float((highest - lowest).sum()) or 1.0
        profiles = len(problem.member)
        money = np.bincount(problem.profile, problem.cost.max(axis=1), profiles)
        contacts = np.bincount(problem.profile, minlength=profiles)
        use = np.where(problem.in_money, money @ problem.member, contacts @ problem.member)
        use = np.where(use > 0, use, 1.0)
        return _Scale(value, use, value / use, float(lowest.sum()))


def most_use(problem: LimitedProblem) -> Floats:
    """(L,) what each limit could at most be used, were there no other."""
    return np.array([_extreme_use(problem, row).sum() for row in range(len(problem.floor))])


def least_use(problem: LimitedProblem) -> Floats:
    """(L,) what each limit is used at least."""
    return np.array([-_extreme_use(problem, row, -1.0).sum() for row in range(len(problem.floor))])


def _extreme_use(problem: LimitedProblem, limit: int, sign: float = 1.0) -> Floats:
    rows = problem.member[problem.profile, limit]
    use = weights(problem, limit, rows)
    extreme: Floats = np.where(problem.eligible[rows], sign * use, -np.inf).max(axis=1)
    return extreme


def weights(problem: LimitedProblem, limit: int, rows: Any) -> Floats:
    """(rows, A) how much a customer's coupons count in a limit, membership not looked at."""
    cost = problem.cost[rows]
    counted: Floats = problem.coupons[limit] * (
        cost if problem.in_money[limit] else np.ones_like(cost)
    )
    return counted


def choose(problem: LimitedProblem, prices: Floats) -> tuple[Ints, Floats]:
    """(n,) each: the best coupon at these prices, and how much worse the second best is."""
    coupon, margin = np.zeros(len(problem.profile), np.int64), np.zeros(len(problem.profile))
    _choose_all(*_arrays(problem), *problem.price_tables(prices), coupon, margin)
    return coupon, margin


def _evaluate(problem: LimitedProblem, prices: Floats) -> tuple[Floats, Floats]:
    """(K,) and (K, L): value and use of each profile's choice at these prices."""
    shape = (len(problem.member), problem.value.shape[1])
    value, money, contacts = np.zeros(shape[0]), np.zeros(shape), np.zeros(shape)
    _add_up(*_arrays(problem), *problem.price_tables(prices), value, money, contacts)
    counts = problem.coupons.T.astype(np.float64)
    use: Floats = np.where(problem.in_money, money @ counts, contacts @ counts)
    return value, np.multiply(use, problem.member)


def _arrays(problem: LimitedProblem) -> tuple[Floats, Floats, Bools, Ints]:
    return problem.value, problem.cost, problem.eligible, problem.profile


@njit(cache=False)
def _best(value, cost, eligible, per_money, per_contact, i, k):  # type: ignore[no-untyped-def]
    """The best coupon of customer i in profile k, and its lead; ties: lowest cost, then index."""
    best, second, coupon = -np.inf, -np.inf, -1
    for a in range(value.shape[1]):
        if eligible[i, a]:
            net = value[i, a] - per_money[k, a] * cost[i, a] - per_contact[k, a]
            if net > best or (net == best and cost[i, a] < cost[i, coupon]):
                best, second, coupon = net, best, a
            elif net > second:
                second = net
    return coupon, best - second


@njit(cache=False)
def _add_up(  # type: ignore[no-untyped-def]
    value, cost, eligible, profile, per_money, per_contact, total, money, contacts
):
    for i in range(profile.size):
        k = profile[i]
        best, a = -np.inf, -1  # as _best, without the second: a third of the time
        for b in range(value.shape[1]):
            if eligible[i, b]:
                net = value[i, b] - per_money[k, b] * cost[i, b] - per_contact[k, b]
                if net > best or (net == best and cost[i, b] < cost[i, a]):
                    best, a = net, b
        total[k] += value[i, a]
        money[k, a] += cost[i, a]
        contacts[k, a] += 1.0


@njit(cache=False)
def _choose_all(  # type: ignore[no-untyped-def]
    value, cost, eligible, profile, per_money, per_contact, coupon, margin
):
    for i in range(profile.size):
        coupon[i], margin[i] = _best(value, cost, eligible, per_money, per_contact, i, profile[i])


def _minimise(
    problem: LimitedProblem, scale: _Scale, start: Floats, width: Floats, tolerance: float
) -> Prices:
    """Prices in ``scale``'s units within a box around ``start``, which widens where it binds."""
    planes: list[_Plane] = []
    centre, best, bound, lower = start, start, np.inf, -np.inf
    worst = np.where(problem.eligible, problem.value, np.inf).min(axis=1).sum() / scale.value
    query = start
    for step in range(1, STEPS + 1):
        plane, height = _plane(problem, scale, query)
        planes.append(plane)
        if height < bound:
            best, bound = query, height
        if bound < worst - 1e-9 * (1 + abs(worst)):
            return Prices(best * scale.price, bound * scale.value, -np.inf, False, step)
        target, lower = _least_of_planes(problem, scale, planes, centre, width)
        if bound - lower <= tolerance * max(abs(bound), NEAR_ZERO):
            at_edge = np.abs(target - centre) >= width * (1 - 1e-9)
            at_edge &= ~_is_natural_edge(problem, target) & (width < WIDEST)
            if not at_edge.any():
                break
            width = np.where(at_edge, WIDER * width, width)
            target, lower = _least_of_planes(problem, scale, planes, centre, width)
        query = INWARD * best + (1 - INWARD) * target
    return Prices(best * scale.price, bound * scale.value, lower * scale.value, True, step)


def _is_natural_edge(problem: LimitedProblem, prices: Floats) -> Bools:
    """(L,) price 0 of a limit that has no floor or no ceiling: the box is not what holds it."""
    edge: Bools = (prices == 0) & ((problem.floor <= 0) | np.isinf(problem.ceiling))
    return edge


def _plane(problem: LimitedProblem, scale: _Scale, prices: Floats) -> tuple[_Plane, float]:
    value, use = _evaluate(problem, prices * scale.price)
    value, use = value / scale.value, use / scale.use
    height = float(value.sum() - use.sum(axis=0) @ prices) + _limits_at(problem, scale, prices)
    group = np.arange(len(value)) * min(PLANE_GROUPS, len(value)) // len(value)
    starts = np.searchsorted(group, np.arange(group[-1] + 1))
    return _Plane(np.add.reduceat(value, starts), np.add.reduceat(use, starts, axis=0)), height


def _limits_at(problem: LimitedProblem, scale: _Scale, prices: Floats) -> float:
    limit = np.where(prices > 0, problem.ceiling, problem.floor) / scale.use
    return float(np.where(prices == 0, 0.0, limit * prices).sum()) if len(prices) else 0.0


def _least_of_planes(
    problem: LimitedProblem,
    scale: _Scale,
    planes: list[_Plane],
    centre: Floats,
    width: Floats,
) -> tuple[Floats, float]:
    """The least point of the planes' upper envelope in the box, and its height.

    Variables: the L prices, each limit's cost at its price, each group's value.
    """
    limits, groups = len(centre), len(planes[0].value)
    identity = np.eye(limits)
    value = np.concatenate([plane.value for plane in planes])
    use = np.concatenate([plane.use for plane in planes])
    of_group = np.tile(np.eye(groups), (len(planes), 1))
    rows = [np.hstack([-use, np.zeros((len(use), limits)), -of_group])]
    for limit, exists in ((problem.ceiling, np.isfinite(problem.ceiling)), (problem.floor, None)):
        kept = slice(None) if exists is None else exists
        slope = np.where(np.isfinite(limit), limit / scale.use, 0.0)
        block = [identity * slope, -identity, np.zeros((limits, groups))]
        rows.append(np.hstack(block)[kept])
    matrix = np.vstack(rows)
    right = np.zeros(len(matrix))
    right[: len(value)] = -value
    low = np.where(problem.floor > 0, centre - width, np.maximum(centre - width, 0))
    high = np.where(np.isinf(problem.ceiling), np.minimum(centre + width, 0), centre + width)
    free = np.full(limits + groups, np.inf)
    answer = linprog(
        np.concatenate([np.zeros(limits), np.ones(limits + groups)]),
        A_ub=matrix,
        b_ub=right,
        bounds=np.column_stack([np.append(low, -free), np.append(high, free)]),
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    return answer.x[:limits], float(answer.fun)
