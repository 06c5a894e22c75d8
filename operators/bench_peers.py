"""What people use today, in the way its own documentation shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from winback.models.errors import SettingsError

PDLP_TOLERANCE = 1e-6  # relative, its documented default


@dataclass(frozen=True)
class CouponProgram:
    """The allocation's linear program: max value · x, low ≤ rows · x ≤ high, 0 ≤ x ≤ most.

    The first rows are one per customer (Σ x = 1), then the budget and the limits.
    """

    value: Any  # (variables,)
    rows: Any  # sparse (constraints, variables)
    low: Any
    high: Any
    most: Any  # (variables,) 0 where a coupon is not eligible


def coupon_program(
    value: Any, cost: Any, budget: float, eligible: Any, limits: Sequence[Any]
) -> CouponProgram:
    """The program of :func:`winback.models.limited_allocation.solve_with_limits`."""
    from scipy import sparse

    n, coupons = value.shape
    customer = np.repeat(np.arange(n), coupons)
    one_each = sparse.csr_matrix(
        (np.ones(n * coupons), (customer, np.arange(n * coupons))), shape=(n, n * coupons)
    )
    weights = [cost, *(limit.weight(cost) for limit in limits)]
    capped = sparse.csr_matrix(np.stack([weight.ravel() for weight in weights]))
    return CouponProgram(
        value=np.where(eligible, value, 0.0).ravel(),
        rows=sparse.vstack([one_each, capped], format="csc"),
        low=np.concatenate([np.ones(n), [-np.inf], [limit.floor for limit in limits]]),
        high=np.concatenate([np.ones(n), [budget], [limit.ceiling for limit in limits]]),
        most=eligible.astype(np.float64).ravel(),
    )


def solve_by_highs(program: CouponProgram) -> float:
    """The optimum by HiGHS' interior point method, through SciPy."""
    from scipy import sparse
    from scipy.optimize import linprog

    rows, equal = program.rows.tocsr(), program.low == program.high
    above = ~equal & np.isfinite(program.high)
    below = ~equal & np.isfinite(program.low)
    answer = linprog(
        -program.value,
        A_ub=sparse.vstack([rows[above], -rows[below]], format="csr"),
        b_ub=np.concatenate([program.high[above], -program.low[below]]),
        A_eq=rows[equal],
        b_eq=program.low[equal],
        bounds=np.column_stack([np.zeros(len(program.most)), program.most]),
        method="highs-ipm",
    )
    return -float(answer.fun)


def solve_by_pdlp(program: CouponProgram) -> float:
    """The optimum by PDLP, to its default tolerance."""
    try:
        from ortools.pdlp import solvers_pb2
        from ortools.pdlp.python import pdlp
    except ImportError as error:
        raise SettingsError(
            "OR-tools is not installed. Run: pip install 'winback[bench]'"
        ) from error
    quadratic = pdlp.QuadraticProgram()
    quadratic.resize_and_initialize(len(program.value), len(program.low))
    quadratic.objective_vector = -program.value
    quadratic.constraint_matrix = program.rows
    quadratic.constraint_lower_bounds = program.low
    quadratic.constraint_upper_bounds = program.high
    quadratic.variable_lower_bounds = np.zeros(len(program.value))
    quadratic.variable_upper_bounds = program.most
    parameters = solvers_pb2.PrimalDualHybridGradientParams()
    accuracy = parameters.termination_criteria.simple_optimality_criteria
    accuracy.eps_optimal_relative = accuracy.eps_optimal_absolute = PDLP_TOLERANCE
    result = pdlp.primal_dual_hybrid_gradient(quadratic, parameters)
    return float(program.value @ result.primal_solution)
