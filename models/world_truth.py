"""What every coupon is truly worth to the customers of a known world.

In the week to decide, a decision's value is its own week and what follows under the best policy
within the long-run budget: r(h, s, a) + γ Σ P(s' | h, s, a) V_λ(h, s'). For decisions of the log it
is their week alone, less a price of coupon money: r(h, s, a) − λ c(h, s, a).

c = p q f and r = p m − c − k: chance of a purchase p, of redeeming at it q, and mean margin m, each
by type, state and coupon; the coupon's face value f and contact cost k. What they depend on is said
in :mod:`winback.models.world`. Later weeks are those of the world as it is in the week to decide.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from winback.models.allocation import pick, solve_budget
from winback.models.errors import DataError, first_rows
from winback.models.world import Floats, Ints, World, make_world, world_in_week
from winback.models.world_log import History, Population
from winback.models.world_optimum import greedy_policy, optimum, policy_value, q_at_price


@dataclass(frozen=True)
class Truth:
    """n customers × A coupons, money in currency; coupon 0 is `none`.

    Attributes:
        value: (n, A) profit of the week and of all that follows, discounted.
        uplift: (n, A) value less that of `none`.
        purchase: (n, A) chance of a purchase in the week.
        profit: (n, A) expected profit of the week alone.
        cost: (n, A) expected redeemed coupon money of the week.
        budget: coupon money for the week.
        price: λ of the long-run budget.
        oracle: (n,) the coupons of highest uplift within the budget.
        oracle_uplift: what they bring.
    """

    value: Floats
    uplift: Floats
    purchase: Floats
    profit: Floats
    cost: Floats
    budget: float
    price: float
    oracle: Ints
    oracle_uplift: float


@dataclass(frozen=True)
class Score:
    """How good a choice of coupons is; shares in [0, 1].

    Attributes:
        uplift: true uplift of all coupons given, currency.
        percent: of the oracle's uplift; not a number where the oracle gains nothing.
        spend: true expected redeemed coupon money.
        spend_share: of the budget; not a number without a budget.
        given: customers who get a coupon.
        harm: coupons whose uplift is negative, of those given.
        wasted: of the customers whom no coupon helps, those who get one.
    """

    uplift: float
    percent: float
    spend: float
    spend_share: float
    given: float
    harm: float
    wasted: float


def week_problem(world: World, people: Population) -> Truth:
    """The decision of one week, with everything known.

    The long-run budget is ``budget_tightness`` times what the best policy without a budget spends;
    the week's is what the best policy within it is expected to spend on these customers. Where no
    coupon pays, it is that of the same world with effects: there must be money to waste.

    Args:
        world: as it is in the week, see :func:`winback.models.world.world_in_week`.
        people: the customers at the beginning of the week.
    """
    start = people.distribution(world)
    best = optimum(world, start, world.config.budget_tightness * _unlimited_spend(world, start))
    at = (people.type, people.state)
    value, cost = (world.reward + best.future)[at], world.cost[at]
    uplift = value - value[:, :1]
    budget = math.fsum(pick(cost, best.q.argmax(axis=2)[at]))
    if budget == 0 and world.config.effect != 1:
        budget = week_problem(make_world(replace(world.config, effect=1.0)), people).budget
    solved = solve_budget(uplift, cost, budget, np.ones(cost.shape, np.bool_))
    return Truth(
        value=value,
        uplift=uplift,
        purchase=world.purchase[at],
        profit=world.reward[at],
        cost=cost,
        budget=budget,
        price=best.price,
        oracle=solved.coupon,
        oracle_uplift=solved.primal_value,
    )


def score(truth: Truth, coupon: Ints) -> Score:
    """Judge coupons (n,), indices into the truth's columns."""
    given = coupon > 0
    uplift, spend = pick(truth.uplift, coupon), math.fsum(pick(truth.cost, coupon))
    hopeless = truth.uplift[:, 1:].max(axis=1) <= 0
    gain = math.fsum(uplift)
    return Score(
        uplift=gain,
        percent=100 * gain / truth.oracle_uplift if truth.oracle_uplift > 0 else math.nan,
        spend=spend,
        spend_share=spend / truth.budget if truth.budget > 0 else math.nan,
        given=float(given.mean()),
        harm=float((uplift[given] < 0).sum() / max(given.sum(), 1)),
        wasted=float(given[hopeless].sum() / max(hopeless.sum(), 1)),
    )


def worth_of_weeks(
    world: World, history: History, customer: Ints, week: Ints, price: float
) -> Floats:
    """(m, A) expected profit of past weeks less ``price`` times coupon money, in hidden states.

    Args:
        world: as it was when the log began.
        history: the log.
        customer: (m,) numbers of customers.
        week: (m,) of the log, a week that has such a row.
        price: profit that a unit of coupon money would bring elsewhere.

    Raises:
        DataError: a customer has no row in that week.
    """
    row = np.full((len(history.first_week), history.weeks), -1)
    row[history.customer, history.week] = np.arange(len(history.week))
    at = row[customer, week]
    if (at < 0).any():
        missing = np.column_stack([customer, week])[at < 0].tolist()
        raise DataError(f"expected customer weeks of the log, came {first_rows(missing)}")
    worth = np.empty((len(at), world.purchase.shape[2]))
    for number in np.unique(week).tolist():
        now, mine = world_in_week(world, number), week == number
        kind, state = history.people.type[customer[mine]], history.state[at[mine]]
        worth[mine] = (now.reward - price * now.cost)[kind, state]
    return worth


def _unlimited_spend(world: World, start: Floats) -> float:
    """Discounted coupon money per customer of the best policy without a budget."""
    policy = greedy_policy(q_at_price(world, 0.0)[0])
    return float((start * policy_value(world, policy, world.cost)).sum())
