"""Exact values in a known world: of any policy, and of the best one within a budget.

A budget couples customers only through its price: with λ per unit of coupon money the best policy
maximises Σ γ^t (r − λ c), customer by customer, and the λ at which the expected discounted spend
meets the budget is found by bisection. The linear program over discounted visits (occupancy
measure; Puterman 1994, section 8.9; Altman 1999) is the same problem without prices, and its check.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from winback.models.errors import SettingsError
from winback.models.world import Floats, Ints, World

TOLERANCE = 1e-10  # of the value iteration, relative
BISECTIONS = 45  # halvings of the price: 13 digits


@dataclass(frozen=True)
class Optimum:
    """The best policy within a long-run budget.

    Attributes:
        price: λ, what one more unit of coupon money would bring.
        q: (H, S, A) Q_λ: discounted profit less λ times the coupon money, the first week included.
        future: (H, S, A) γ Σ P V_λ, what follows the week.
        value: discounted profit per customer of the best policy, mixed at λ to meet the budget.
        spend: its discounted coupon money per customer.
    """

    price: float
    q: Floats
    future: Floats
    value: float
    spend: float


def policy_value(world: World, policy: Floats, payoff: Floats) -> Floats:
    """(H, S) discounted sum of ``payoff`` (H, S, A) under ``policy`` (H, S, A): a linear solve."""
    chance = np.einsum("hsa,hsat->hst", policy, world.kernel)
    now = np.einsum("hsa,hsa->hs", policy, payoff)
    system = np.eye(now.shape[1]) - world.config.gamma * chance
    solved: Floats = np.linalg.solve(system, now[:, :, None])[:, :, 0]
    return solved


def q_at_price(world: World, price: float) -> tuple[Floats, Floats]:
    """Q_λ and γ Σ P V_λ, (H, S, A) each, by policy iteration: exact after a few solves."""
    payoff = world.reward - price * world.cost
    greedy = np.zeros(payoff.shape[:2], np.int64)
    while True:
        value = policy_value(world, _indicator(greedy, payoff.shape[2]), payoff)
        future = world.config.gamma * np.einsum("hsat,ht->hsa", world.kernel, value)
        q = payoff + future
        current = np.take_along_axis(q, greedy[:, :, None], axis=2)[:, :, 0]
        better = q.max(axis=2) > current + TOLERANCE * np.maximum(1, np.abs(current))
        if not better.any():
            return q, future
        greedy = np.where(better, q.argmax(axis=2), greedy)


def optimum(world: World, start: Floats, budget: float) -> Optimum:
    """The best policy from ``start`` (H, S) shares of customers, within discounted ``budget``.

    ``budget`` is coupon money per customer, discounted like profit. Where the optimum spends the
    budget exactly, it mixes the two policies on either side of the price.

    Raises:
        SettingsError: the budget is negative.
    """
    if budget < 0:
        raise SettingsError(f"world: expected a budget of 0 or more, came {budget}")
    value, spend = _worth(world, start, 0.0)
    if spend <= budget:
        return _at(world, 0.0, value, spend)
    low, high = 0.0, 1.0
    while _worth(world, start, high)[1] > budget:
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _worth(world, start, middle)[1] > budget else (low, middle)
    (value_low, spend_low), (value_high, spend_high) = (
        _worth(world, start, low),
        _worth(world, start, high),
    )
    share = (budget - spend_high) / (spend_low - spend_high) if spend_low > spend_high else 0.0
    return _at(world, high, value_high + share * (value_low - value_high), min(spend_low, budget))


def optimum_by_linear_program(world: World, start: Floats, budget: float) -> float:
    """Discounted profit per customer of the best policy, by the occupancy linear program.

    Variables are discounted visits x(h, s, a) ≥ 0 with, for all (h, s'),
    Σ_a x(h, s', a) = start(h, s') + γ Σ_{s, a} P(s' | h, s, a) x(h, s, a).
    """
    types, states, coupons = world.purchase.shape
    gamma = world.config.gamma
    pairs = states * coupons
    flows = [
        np.repeat(np.eye(states), coupons, axis=1) - gamma * world.kernel[h].reshape(pairs, -1).T
        for h in range(types)
    ]
    solved = linprog(
        -world.reward.ravel(),
        A_ub=world.cost.reshape(1, -1),
        b_ub=[budget],
        A_eq=sparse.block_diag([sparse.csr_matrix(flow) for flow in flows]),
        b_eq=start.ravel(),
        method="highs",
    )
    if solved.status != 0:
        raise SettingsError(f"world: the linear program did not end well: {solved.message}")
    return float(-solved.fun)


def greedy_policy(q: Floats) -> Floats:
    """(H, S, A) all chance on the best coupon; ties go to the first."""
    return _indicator(q.argmax(axis=2), q.shape[2])


def _indicator(coupon: Ints, coupons: int) -> Floats:
    table: Floats = np.eye(coupons)[coupon]
    return table


def _worth(world: World, start: Floats, price: float) -> tuple[float, float]:
    """Discounted profit and coupon money per customer of the best policy at a price."""
    policy = greedy_policy(q_at_price(world, price)[0])
    value = policy_value(world, policy, world.reward)
    spend = policy_value(world, policy, world.cost)
    return float((start * value).sum()), float((start * spend).sum())


def _at(world: World, price: float, value: float, spend: float) -> Optimum:
    q, future = q_at_price(world, price)
    return Optimum(price, q, future, value, spend)
