"""Benchmarks of the allocation: one coupon per customer within a budget, and within ten limits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from winback.operators.bench_measure import Answer, BenchError, Done, Place, Step, close
from winback.operators.bench_peers import coupon_program, solve_by_highs, solve_by_pdlp

COUPONS = 4  # `none` and three
CATEGORIES = 10  # a limit each
TIGHT = 0.4  # budget as a share of what everybody's best coupon would cost
CEILING, FLOOR = 0.8, 1.2  # of what a category spends when the budget is the only limit
GAP = 1e-6  # relative, what counts as solved
PEERS_LARGEST = 1_000_000  # customers: minutes there, hours at ten times as many
SOLVERS = 2e-4  # relative difference of bounds that solvers of their own tolerance may show

Problem = tuple[Any, Any, float, Any]  # value, cost, budget, eligible


def problem(n: int, seed: int = 0) -> Problem:
    """Values, expected costs (n, COUPONS), a budget that binds, and who may get what."""
    random = np.random.default_rng(seed)
    face = np.array([0.0, 4.0, 8.0, 14.0])
    redeems = random.beta(2, 6, (n, 1))
    cost = redeems * face * random.uniform(0.8, 1.2, (n, COUPONS))
    value = random.normal(0.3, 1.0, (n, 1)) * np.sqrt(face) + random.normal(0, 0.5, (n, COUPONS))
    value[:, 0] = 0.0
    eligible = random.random((n, COUPONS)) < 0.9
    eligible[:, 0] = True
    best = np.where(eligible, value, -np.inf).argmax(axis=1)
    return value, cost, TIGHT * float(cost[np.arange(n), best].sum()), eligible


def category_limits(n: int, given: Problem) -> list[Any]:
    """Half of the categories may spend less than the budget alone would give, half must more."""
    from winback.models.allocation import solve_budget
    from winback.models.limits import Limit

    value, cost, budget, eligible = given
    category = np.random.default_rng(1).integers(0, CATEGORIES, n)
    every = np.ones(COUPONS, bool)
    alone = solve_budget(value, cost, budget, eligible).coupon
    limits = []
    for number in range(CATEGORIES):
        name, members = f"category {number}", category == number
        used = Limit(name, members, every, "spend").used(alone, cost)
        bounds = {"ceiling": CEILING * used} if number % 2 else {"floor": FLOOR * used}
        limits.append(Limit(name, members, every, "spend", **bounds))
    return limits


def _inputs(size: int, limited: bool) -> tuple[Problem, list[Any]]:
    given = problem(size)
    return given, category_limits(size, given) if limited else []


def _winback(size: int, place: Place, *, limited: bool) -> Callable[[], Done]:
    from winback.models.allocation import solve_budget
    from winback.models.limited_allocation import solve_with_limits

    given, limits = _inputs(size, limited)

    def run() -> Done:
        found = solve_with_limits(*given, limits) if limited else solve_budget(*given)
        used = [
            (limit.used(found.coupon, given[1]), limit.floor, limit.ceiling) for limit in limits
        ]
        kept = all(floor <= use <= ceiling for use, floor, ceiling in used)
        if not kept or found.expected_spend > given[2]:
            raise BenchError("an allocation exceeds its budget or a limit")
        gap = found.duality_gap / abs(found.dual_value)
        return Done({"bound": found.dual_value, "gap": gap}, notes={"gap": gap})

    return run


def _peer(
    size: int, place: Place, *, limited: bool, solve: Callable[[Any], float]
) -> Callable[[], Done]:
    given, limits = _inputs(size, limited)
    program = coupon_program(*given, limits)
    return lambda: Done({"bound": solve(program)})


def _same_bound(ours: Answer, theirs: Answer, gap: float) -> str:
    """The linear program's optimum is our certificate's bound; ours is integral besides."""
    words = close("bound", ours["bound"], theirs["bound"], SOLVERS)
    return f"{words}, gap {ours['gap']:.1g}" + ("" if ours["gap"] <= gap else " (too wide)")


def _step(name: str, title: str, limited: bool) -> Step:
    return Step(
        name=name,
        title=title,
        unit="customers",
        sizes=(10_000, 100_000, 1_000_000, 10_000_000),
        quick=(1_000, 4_000),
        sides={
            "winback": partial(_winback, limited=limited),
            "HiGHS, interior point": partial(_peer, limited=limited, solve=solve_by_highs),
            "OR-tools PDLP": partial(_peer, limited=limited, solve=solve_by_pdlp),
        },
        agree=partial(_same_bound, gap=GAP),
        largest=dict.fromkeys(("HiGHS, interior point", "OR-tools PDLP"), PEERS_LARGEST),
    )


ALLOCATION_STEPS = (
    _step("allocation", f"allocation × {COUPONS} coupons", False),
    _step("limits", f"allocation × {COUPONS} coupons, {CATEGORIES} further limits", True),
)
