"""What the plan of a run would have earned on the log, against none and against the last plan.

A decision's reward is what its window earned plus γ times the value of where the customer stood
afterwards; coupon money is charged at the run's price, since every unit of it is missed elsewhere.
So policies that spend differently can be compared under one budget. All of it is per decision.

Cross-fitting: customers are split in two halves. What is expected of a customer (q) and what
follows (V) come from a model of the other half, and so does the policy ``challenger``: a learner
that is valued on its own rows picks what luck favoured there. The plan in use learned from all
customers, so ``challenger`` is a little worse than it.

Two plans in use are compared as they are, the new one (``challenger_as_is``) with that of the last
published run (``champion``), on decisions that both have learned from: luck helps both alike there
and cancels in the difference, and a rerun with the same model differs by 0. On decisions that only
the new plan has seen luck would favour it; learned from half of the customers it would be a worse
plan than the champion for that alone. Where the champion has seen no decision, ``challenger``
stands in.

Left out of all policies: exploration, holdout, consent, the contact gap, limits and the exact end
of the budget; and the profit model's forecast, which moves the level of a customer's forecasts.
Decisions without a choice (propensity 1) and the latest one of each customer, of which nobody
knows yet what followed, are left out of the log.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from winback.models.long_run import personal_future
from winback.models.mdp import CustomerModel, learn_model, value_iteration
from winback.models.off_policy import (
    DOUBLY_ROBUST,
    ESTIMATORS,
    IPS,
    Estimate,
    Log,
    difference,
    estimate,
)
from winback.models.response import ResponseModel, respond
from winback.models.response_fit import beliefs, fit_response
from winback.models.situations import SITUATIONS, Bools, Floats, Ints, Panel

NONE, LOGGED, CHALLENGER = "none", "logged", "challenger"
AS_IS, CHAMPION = "challenger_as_is", "champion"
MEAN = "mean"  # the estimator of what was done: its rewards need no weights
MAX_CUSTOMERS = 40_000  # two models of 20,000 each in half a minute; drawn by lot beyond
ITERATIONS = 30  # of each fit; the last digits of a likelihood change no value
TOLERANCE = 1e-5  # of the plan, relative: far below any interval
GATE_LEVEL = 0.90  # two-sided: the lower bound alone is wrong in 5 % of all logs
DRAWS = 400  # for intervals that only inform; the gate's have the default


@dataclass(frozen=True)
class Rules:
    """What decides beside the response; (A,) by coupon.

    Attributes:
        face_values, contact_cost: currency.
        offered: coupons that may be given; `none` always.
        gamma: discount per decision period.
        price: of coupon money in this run, profit per unit.
        pessimism: standard errors taken off a coupon's effect.
        min_visits: decisions in the log that a coupon needs in a situation.
    """

    face_values: Floats
    contact_cost: Floats
    offered: Bools
    gamma: float
    price: float
    pessimism: float
    min_visits: int


@dataclass(frozen=True)
class Plan:
    """A response model and the rules that its run went by.

    ``until``: the first period whose outcome the model has not seen; None: it has seen all.
    """

    response: ResponseModel
    rules: Rules
    until: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """Values per decision, currency.

    Attributes:
        decisions, customers: that the log has of them, after what is left out.
        estimates: by policy and estimator.
        given: by policy, the share of decisions with a coupon.
        profit_without: expected profit of a window without a coupon.
        claimed: what the model says that the challenger brings against no coupons.
        versus_none: challenger − none, doubly robust, at ``GATE_LEVEL``.
        versus_champion: challenger_as_is − champion; None without a champion.
    """

    decisions: int
    customers: int
    estimates: dict[str, dict[str, Estimate]]
    given: dict[str, float]
    profit_without: float
    claimed: float
    versus_none: Estimate
    versus_champion: Estimate | None


@dataclass(frozen=True)
class View:
    """A plan on a panel's rows: what it believes, expects and would do there.

    Attributes:
        plan: what it goes by.
        model: customers as the plan has them.
        panel: the rows that it is asked about; nobody learns from their outcomes here.
    """

    plan: Plan
    model: CustomerModel
    panel: Panel

    @property
    def rules(self) -> Rules:
        """Of the plan."""
        return self.plan.rules

    @cached_property
    def belief(self) -> Floats:
        """(m, K) of every row of the panel."""
        return beliefs(self.plan.response, self.panel)

    @cached_property
    def values(self) -> Floats:
        """(K, SITUATIONS) of standing there, at the plan's price."""
        q, _, _ = value_iteration(self.model, self.rules.gamma, TOLERANCE, price=self.rules.price)
        return self.model.value(q).reshape(-1, SITUATIONS)

    def worth(self, rows: Ints) -> Floats:
        """(n,) value of where customers stand, over their classes."""
        situation = self.panel.situation[rows]
        worth: Floats = (self.belief[rows] * self.values[:, situation].T).sum(axis=1)
        return worth

    def outlook(self, rows: Ints) -> tuple[Floats, Floats, Floats]:
        """(n, A) each: the window's profit, value with what follows less the price, doubt."""
        belief, situation = self.belief[rows], self.panel.situation[rows]
        seen = respond(self.plan.response, belief, situation)
        profit = seen.margin - seen.cost - self.rules.contact_cost
        value, gamma = self.values.ravel(), self.rules.gamma
        future = personal_future(self.model, value, belief, situation, gamma)
        return profit, profit + future - self.rules.price * seen.charged, seen.doubt

    def greedy(self, rows: Ints) -> Floats:
        """(n, A) probability 1 of the coupon that the plan gives at its own price."""
        _, value, doubt = self.outlook(rows)
        allowed = self.model.allowed[self.panel.situation[rows]] & self.rules.offered
        allowed[:, 0] = True
        cautious = value - value[:, :1] - self.rules.pessimism * doubt
        return one_hot(np.where(allowed, cautious, -np.inf).argmax(axis=1), value.shape[1])

    def rewards(self, rows: Ints) -> Floats:
        """(n,) what the window earned, less the price of its coupon money, and what follows."""
        panel, rules = self.panel, self.rules
        coupon, cost = panel.coupon[rows], panel.cost[rows]
        earned = panel.margin[rows] - cost - rules.contact_cost[coupon]
        charged = rules.price * cost * (coupon > 0)
        following: Floats = rules.gamma * self.worth(panel.following[rows])
        return earned - charged + following


def evaluate(
    panel: Panel,
    challenger: Plan,
    champion: Plan | None = None,
    *,
    periods: int = 12,
    classes: int | None = None,
    seed: int = 0,
) -> Evaluation | None:
    """Value the policies on the log's latest decisions.

    Args:
        panel: the log, with propensities wherever there was a choice.
        challenger: this run's plan.
        champion: the last published run's.
        periods: how many of the latest whose outcome and follow-up are known.
        classes: K of the two halves' models; by default by the number of customers.
        seed: of the halves.

    Returns:
        None if the log holds no decision that could be valued, or one half nothing to learn from.

    Raises:
        DataError: a propensity is outside (0, 1].
    """
    known = panel.customers
    panel = _at_most(panel, MAX_CUSTOMERS, seed)
    rows, half = valued_rows(panel, periods), halves(panel.customers, seed)
    if not all(_can_teach(panel, half == part, rows) for part in (0, 1)):
        return None
    views = cross_fit(panel, challenger.rules, half, classes, seed)
    log, policies, profit, q = _cross_valued(views, rows, half)
    for name, plan in ((AS_IS, challenger), (CHAMPION, champion)):
        if plan is not None:
            policies[name] = view(plan, panel, panel, known).greedy(rows)
    gain = (policies[CHALLENGER] * (q - q[:, :1])).sum(axis=1)
    return Evaluation(
        decisions=len(rows),
        customers=len(np.unique(log.customer)),
        estimates={name: _estimates(log, policy, q) for name, policy in policies.items()}
        | {LOGGED: {MEAN: _as_done(log)}},
        given={name: float(1 - policy[:, 0].mean()) for name, policy in policies.items()}
        | {LOGGED: float((log.coupon > 0).mean())},
        profit_without=float(profit[:, 0].mean()),
        claimed=float(gain.mean()),
        versus_none=_compare(log, policies, CHALLENGER, NONE, q),
        versus_champion=_versus_champion(log, policies, q, panel.period[rows], champion),
    )


def valued_rows(panel: Panel, periods: int) -> Ints:
    """Rows whose outcome and follow-up are known, with a choice, in the latest ``periods``."""
    usable = panel.closed & (panel.following >= 0) & (panel.propensity < 1)
    latest = int(panel.period[usable].max(initial=0))
    return np.flatnonzero(usable & (panel.period > latest - periods))


def halves(customers: int, seed: int) -> Ints:
    """(customers,) 0 or 1 by lot, as many of each."""
    half: Ints = np.random.default_rng(seed).permutation(customers) % 2
    return half


def one_hot(coupon: Ints, coupons: int) -> Floats:
    """(n, A) a policy that gives these coupons for sure."""
    policy = np.zeros((len(coupon), coupons))
    policy[np.arange(len(coupon)), coupon] = 1.0
    return policy


def cross_fit(
    panel: Panel, rules: Rules, half: Ints, classes: int | None = None, seed: int = 0
) -> tuple[View, View]:
    """Views of the panel for the customers of half 0 and of half 1, each learned from the other."""
    views = []
    for part in (0, 1):
        others = panel.take(np.flatnonzero(half != part))
        fit = fit_response(
            others, rules.face_values, classes=classes, seed=seed, max_iterations=ITERATIONS
        )
        views.append(view(Plan(fit.model, rules), others, panel, panel.customers))
    return views[0], views[1]


def view(plan: Plan, taught: Panel, panel: Panel, customers: int) -> View:
    """The plan on ``panel``; how situations move and what coupons are known is as in ``taught``.

    ``min_visits`` shrinks to the share that the customers of ``taught`` are of ``customers``.
    """
    rules = plan.rules
    visits = max(1, round(rules.min_visits * taught.customers / max(customers, 1)))
    model = learn_model(plan.response, taught, rules.contact_cost, min_visits=visits)
    return View(plan, model, panel)


def _cross_valued(
    views: tuple[View, View], rows: Ints, half: Ints
) -> tuple[Log, dict[str, Floats], Floats, Floats]:
    """The log, the policies `none` and challenger, and (n, A) profit and q, by the other half."""
    panel, coupons = views[0].panel, len(views[0].rules.face_values)
    customer = panel.customer[rows]
    policy, profit, q = np.empty((3, len(rows), coupons))
    reward = np.empty(len(rows))
    for part, other in enumerate(views):
        mine = half[customer] == part
        profit[mine], q[mine], _ = other.outlook(rows[mine])
        policy[mine], reward[mine] = other.greedy(rows[mine]), other.rewards(rows[mine])
    log = Log(customer, panel.coupon[rows], reward, panel.propensity[rows])
    none = one_hot(np.zeros(len(rows), np.int64), coupons)
    return log, {NONE: none, CHALLENGER: policy}, profit, q


def _at_most(panel: Panel, customers: int, seed: int) -> Panel:
    if panel.customers <= customers:
        return panel
    random = np.random.default_rng(seed)
    return panel.take(np.sort(random.choice(panel.customers, customers, replace=False)))


def _can_teach(panel: Panel, members: Bools, rows: Ints) -> bool:
    """Whether a half has purchases and offers to learn from, and decisions to be valued."""
    own = members[panel.customer] & panel.closed
    offers = (panel.coupon[own] > 0).any()
    return bool(panel.purchased[own].any() and offers and own[rows].any())


def _estimates(log: Log, policy: Floats, q: Floats) -> dict[str, Estimate]:
    return {name: estimate(log, policy, name, q, draws=DRAWS) for name in ESTIMATORS}


def _as_done(log: Log) -> Estimate:
    """Mean of the rewards, by customers: each decision stands for itself."""
    done = Log(log.customer, np.zeros_like(log.coupon), log.reward, np.ones_like(log.propensity))
    return estimate(done, np.ones((len(log.coupon), 1)), IPS, draws=DRAWS)


def _versus_champion(
    log: Log, policies: dict[str, Floats], q: Floats, period: Ints, champion: Plan | None
) -> Estimate | None:
    """On the decisions that both have learned from, else against the cross-fitted challenger."""
    if champion is None:
        return None
    seen = np.full(len(period), True) if champion.until is None else period < champion.until
    if not seen.any():
        return _compare(log, policies, CHALLENGER, CHAMPION, q)
    both = {name: policies[name][seen] for name in (AS_IS, CHAMPION)}
    return _compare(log.where(seen), both, AS_IS, CHAMPION, q[seen])


def _compare(log: Log, policies: dict[str, Floats], one: str, other: str, q: Floats) -> Estimate:
    return difference(log, policies[one], policies[other], DOUBLY_ROBUST, q, level=GATE_LEVEL)
