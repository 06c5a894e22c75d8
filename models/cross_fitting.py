"""Models of one half of the customers, to be asked about the other half.

A learner that is valued on its own rows picks what luck favoured there. So customers are split in
two halves by lot, a response model is fitted to each, and whatever a plan is said to be worth is
said by the model that has not seen the customer (cross-fitting; Chernozhukov et al. 2018).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from winback.models.long_run import personal_future
from winback.models.mdp import CustomerModel, learn_model, value_iteration
from winback.models.response import ResponseModel, respond
from winback.models.response_fit import beliefs, fit_response
from winback.models.situations import SITUATIONS, Bools, Floats, Ints, Panel

ITERATIONS = 30  # of each fit; the last digits of a likelihood change no value
TOLERANCE = 1e-5  # of the plan, relative: far below any interval


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

    def earned(self, rows: Ints) -> Floats:
        """(n,) profit of the windows alone."""
        panel = self.panel
        contact = self.rules.contact_cost[panel.coupon[rows]]
        earned: Floats = panel.margin[rows] - panel.cost[rows] - contact
        return earned

    def rewards(self, rows: Ints) -> Floats:
        """(n,) what the window earned, less the price of its coupon money, and what follows."""
        panel, rules = self.panel, self.rules
        charged = rules.price * panel.cost[rows] * (panel.coupon[rows] > 0)
        following: Floats = rules.gamma * self.worth(panel.following[rows])
        return self.earned(rows) - charged + following


@dataclass(frozen=True)
class Halves:
    """Which half each customer of a panel belongs to, and what the other half taught.

    Attributes:
        half: (n,) 0 or 1.
        models: for the customers of half 0 and of half 1, each learned from the other.
    """

    half: Ints
    models: tuple[ResponseModel, ResponseModel]

    def views(self, panel: Panel, rules: Rules) -> tuple[View, View]:
        """The panel as the two models see it."""
        first, second = (
            view(Plan(model, rules), panel.take(np.flatnonzero(self.half != part)), panel)
            for part, model in enumerate(self.models)
        )
        return first, second


def fit_halves(
    panel: Panel, face_values: Floats, *, classes: int | None = None, seed: int = 0
) -> Halves | None:
    """Fit a model to each half; None if one half has no purchase or no offer to learn from.

    Args:
        panel: the log.
        face_values: (A,) of the coupons, currency.
        classes: K of one model for each half; by default several are joined.
        seed: of the halves.
    """
    half = halves(panel.customers, seed)
    models = []
    for part in (0, 1):
        others = panel.take(np.flatnonzero(half != part))
        if not (others.purchased & others.closed).any() or not (others.coupon > 0).any():
            return None
        fit = fit_response(
            others, face_values, classes=classes, seed=seed, max_iterations=ITERATIONS
        )
        models.append(fit.model)
    return Halves(half, (models[0], models[1]))


def view(plan: Plan, taught: Panel, panel: Panel) -> View:
    """The plan on ``panel``; how situations move and what coupons are known is as in ``taught``.

    ``min_visits`` shrinks to the share that the customers of ``taught`` are of the panel's.
    """
    rules = plan.rules
    visits = max(1, round(rules.min_visits * taught.customers / max(panel.customers, 1)))
    model = learn_model(plan.response, taught, rules.contact_cost, min_visits=visits)
    return View(plan, model, panel)


def halves(customers: int, seed: int) -> Ints:
    """(customers,) 0 or 1 by lot, as many of each."""
    half: Ints = np.random.default_rng(seed).permutation(customers) % 2
    return half


def one_hot(coupon: Ints, coupons: int) -> Floats:
    """(n, A) a policy that gives these coupons for sure."""
    policy = np.zeros((len(coupon), coupons))
    policy[np.arange(len(coupon)), coupon] = 1.0
    return policy
