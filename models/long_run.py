"""The budget of all weeks to come, as one price of coupon money.

A plan that ignores the budget believes that tomorrow's coupons are free to give, so it overrates
what leads there. At price λ every value is that of profit − λ · coupon money; the λ at which
today's customers would spend this period's budget is found by bisection, planning anew at each λ.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from winback.models.mdp import CustomerModel, value_iteration
from winback.models.mixture import over_classes
from winback.models.situations import SITUATIONS, Floats, Ints, Panel

CHECKED_PERIODS = 24  # latest windows that the cost of the chosen is checked on: half a year
CERTAINTY = 1.645  # standard errors: too little is kept back in one case of twenty
CERTAINTY_ESTIMATED = 3.0  # where propensities are guesses, which no standard error knows of
FEWEST_REDEMPTIONS = 100  # with fewer the comparison says nothing
PRIOR_REDEMPTIONS = 100.0  # what all coupons together count for in each one's own ratio
MOST_OFTEN = 60.0  # one window never counts for more than this many
BISECTIONS = 24  # of the price; the last step is below a ten-millionth of it
PRICE_LIMIT = 1e6  # a price nobody pays: the budget is 0


@dataclass(frozen=True)
class Today:
    """The n customers to decide on, with every coupon.

    Attributes:
        belief: (n, K) chance of each class and of still being there.
        situation: (n,) their situations.
        profit: (n, A) expected profit of the window, currency.
        cost: (n, A) expected coupon money that the budget pays; 0 for `none`.
        free: (n,) may get a coupon at all.
    """

    belief: Floats
    situation: Ints
    profit: Floats
    cost: Floats
    free: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ChosenCost:
    """Coupon money that came over what was said; see :func:`cost_of_the_chosen`.

    Attributes:
        ratio: (A,) by coupon; 1 for `none`.
        relative_error: standard error of the ratio of all coupons together, as a share of it.
    """

    ratio: Floats
    relative_error: float

    def spendable(self, *, propensities_logged: bool) -> float:
        """Share of a budget to plan with at ``ratio``, so that it holds at the ratio's bound."""
        certainty = CERTAINTY if propensities_logged else CERTAINTY_ESTIMATED
        return 1 / (1 + certainty * self.relative_error)


def price_of_budget(
    model: CustomerModel, today: Today, budget: float, gamma: float, tolerance: float = 1e-5
) -> float:
    """λ at which the customers of today spend ``budget`` in a period; 0 if it does not bind."""
    q = np.zeros(model.shape)

    def spend(price: float) -> float:
        nonlocal q
        q, _, _ = value_iteration(model, gamma, tolerance, price=price, start=q)
        following = personal_future(model, model.value(q), today.belief, today.situation, gamma)
        net = today.profit + following - price * today.cost
        allowed = model.allowed[today.situation].copy()
        allowed[:, 1:] &= today.free[:, None]
        best = np.where(allowed, net, -np.inf).argmax(axis=1)
        return float(np.take_along_axis(today.cost, best[:, None], axis=1).sum())

    if len(today.situation) == 0 or spend(0.0) <= budget:
        return 0.0
    low, high = 0.0, 1.0
    while spend(high) > budget and high < PRICE_LIMIT:
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if spend(middle) > budget else (low, middle)
    return high


def personal_future(
    model: CustomerModel, value: Floats, belief: Floats, situation: Ints, gamma: float
) -> Floats:
    """(n, A) γ E[V(s')] over each customer's classes, currency; who has left has no future.

    The state's class stays hidden, so this is the mean over classes of each class's own plan
    (QMDP; Littman, Cassandra & Kaelbling 1995): coupons are not given to learn who somebody is.
    """
    following = model.future(value, gamma).reshape(-1, SITUATIONS, model.shape[1])
    return over_classes(following, belief, situation)


def cost_of_the_chosen(panel: Panel, cost: Floats, chosen: Ints) -> ChosenCost:
    """How much more the coupons of a plan cost than said, measured on the latest windows.

    A plan picks customers for what is believed of them, so it picks the errors too, and the
    budget would pay for them. Where those whom it would have given a coupon had one, whichever,
    the coupon money that came is compared with what was said of that coupon: a ratio estimate with
    the sum of a customer's rows as its unit (Cochran 1977, ch. 6). The shop's own windows are
    weighed by 1 / propensity, to a mean of 1; winback's count once each. Each coupon's own ratio is
    that of the windows where it is both chosen and was offered, drawn toward the ratio of all: who
    is chosen for a dear coupon is chosen for other errors than who is for a cheap one.

    Args:
        panel: m decisions.
        cost: (m, A) coupon money said, 0 for `none`.
        chosen: (m,) coupon that the plan gives; 0 is none.
    """
    latest = panel.period > panel.period[panel.closed].max(initial=0) - CHECKED_PERIODS
    rows = np.flatnonzero(panel.closed & latest & (chosen > 0) & (panel.coupon > 0))
    weight = np.minimum(panel.inverse_propensity[rows], MOST_OFTEN)
    theirs = ~panel.own[rows]
    weight[theirs] *= theirs.sum() / max(weight[theirs].sum(), 1e-12)
    said = weight * cost[rows, panel.coupon[rows]]
    came = weight * panel.cost[rows]
    ratio = np.ones(cost.shape[1])
    if (came > 0).sum() < FEWEST_REDEMPTIONS or said.sum() <= 0:
        return ChosenCost(ratio, 0.0)
    overall = float(came.sum() / said.sum())
    prior = PRIOR_REDEMPTIONS * float(came[came > 0].mean()) / overall  # as said
    matched, coupons = chosen[rows] == panel.coupon[rows], len(ratio)
    given = panel.coupon[rows][matched]
    came_of, said_of = (
        np.bincount(given, money[matched], coupons)[1:].astype(np.float64) for money in (came, said)
    )
    ratio[1:] = (came_of + prior * overall) / (said_of + prior)
    off = np.bincount(panel.customer[rows], came - overall * said)
    return ChosenCost(ratio, float(np.sqrt((off**2).sum()) / came.sum()))
