"""What the plan of a run would have earned on the log, against none and against the last plan.

A decision's reward is what its window earned plus γ times the value of where the customer stood
afterwards; coupon money is charged at the run's price, since every unit of it is missed elsewhere.
So policies that spend differently can be compared under one budget. All of it is per decision.

What is expected of a customer (q) and what follows (V) come from a model of the other half of the
customers (cross_fitting), and so does the policy ``challenger``. The plan in use learned from all
customers, so ``challenger`` is a little worse than it.

Two plans in use are compared as they are, the new one (``challenger_as_is``) with that of the last
published run (``champion``), on decisions that both have learned from: luck helps both alike there
and cancels in the difference, and a rerun with the same model differs by 0. On decisions that only
the new plan has seen luck would favour it; learned from half of the customers it would be a worse
plan than the champion for that alone. Where the champion has seen no decision, ``challenger``
stands in.

Left out of all policies: exploration, holdout, consent, the contact gap, limits and the exact end
of the budget; and the profit model's forecast, which moves who a customer is taken to be.
Decisions without a choice (propensity 1) and the latest one of each customer, of which nobody
knows yet what followed, are left out of the log.
"""

from dataclasses import dataclass, replace

import numpy as np

from winback.models.cross_fitting import Halves, Plan, Rules, View, one_hot, view
from winback.models.off_policy import (
    DOUBLY_ROBUST,
    ESTIMATORS,
    IPS,
    Estimate,
    Log,
    difference,
    estimate,
)
from winback.models.situations import Floats, Ints, Panel

NONE, LOGGED, CHALLENGER = "none", "logged", "challenger"
AS_IS, CHAMPION = "challenger_as_is", "champion"
MEAN = "mean"  # the estimator of what was done: its rewards need no weights
GATE_LEVEL = 0.90  # two-sided: the lower bound alone is wrong in 5 % of all logs
DRAWS = 400  # for intervals that only inform; the gate's have the default


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
        window_gain: challenger − none in the window alone, nothing charged beyond coupons and
            contact and nothing that follows, doubly robust at 95 %: what a holdout measures.
        effects: by position of each coupon that the log holds, likewise: everybody gets it − nobody
            gets any.
    """

    decisions: int
    customers: int
    estimates: dict[str, dict[str, Estimate]]
    given: dict[str, float]
    profit_without: float
    claimed: float
    versus_none: Estimate
    versus_champion: Estimate | None
    window_gain: Estimate
    effects: dict[int, Estimate]


def evaluate(
    panel: Panel,
    learned: Halves,
    challenger: Plan,
    champion: Plan | None = None,
    *,
    periods: int = 12,
) -> Evaluation | None:
    """Value the policies on the log's latest decisions.

    Args:
        panel: the log, with propensities wherever there was a choice.
        learned: the models of its two halves.
        challenger: this run's plan.
        champion: the last published run's.
        periods: how many of the latest whose outcome and follow-up are known.

    Returns:
        None if one half holds no decision that could be valued.

    Raises:
        DataError: a propensity is outside (0, 1].
    """
    rows = _rows_of_both(panel, learned, periods)
    if rows is None:
        return None
    views = learned.views(panel, challenger.rules)
    log, policies, profit, q = _cross_valued(views, rows, learned.half)
    for name, plan in ((AS_IS, challenger), (CHAMPION, champion)):
        if plan is not None:
            policies[name] = view(plan, panel, panel).greedy(rows)
    gain = (policies[CHALLENGER] * (q - q[:, :1])).sum(axis=1)
    window = replace(log, reward=views[0].earned(rows))
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
        window_gain=_gain(window, policies[CHALLENGER], profit),
        effects=_effects(window, profit),
    )


@dataclass(frozen=True)
class Gain:
    """What the cross-fitted plan brings against no coupons, and the policy that this is said of.

    Attributes:
        rows: (m,) valued rows of the panel.
        policy: (m, A) probability of each coupon there.
        estimate: challenger − none per decision, doubly robust, with its 95 % interval.
    """

    rows: Ints
    policy: Floats
    estimate: Estimate


def gain_over_none(
    panel: Panel, learned: Halves, rules: Rules, *, periods: int = 12
) -> Gain | None:
    """As in :func:`evaluate`, but with its decisions, so that who knows the truth can check it."""
    rows = _rows_of_both(panel, learned, periods)
    if rows is None:
        return None
    log, policies, _, q = _cross_valued(learned.views(panel, rules), rows, learned.half)
    return Gain(rows, policies[CHALLENGER], _gain(log, policies[CHALLENGER], q))


def _rows_of_both(panel: Panel, learned: Halves, periods: int) -> Ints | None:
    """The valued rows, or None if they are of one half only."""
    rows = valued_rows(panel, periods)
    return rows if len(np.unique(learned.half[panel.customer[rows]])) == 2 else None


def valued_rows(panel: Panel, periods: int) -> Ints:
    """Rows whose outcome and follow-up are known, with a choice, in the latest ``periods``."""
    usable = panel.closed & (panel.following >= 0) & (panel.propensity < 1)
    latest = int(panel.period[usable].max(initial=0))
    return np.flatnonzero(usable & (panel.period > latest - periods))


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


def _gain(log: Log, policy: Floats, q: Floats) -> Estimate:
    """A policy against no coupons, with its 95 % interval."""
    none = one_hot(np.zeros(len(policy), np.int64), policy.shape[1])
    return difference(log, policy, none, DOUBLY_ROBUST, q)


def _effects(window: Log, profit: Floats) -> dict[int, Estimate]:
    """By coupon, what it would change in the window if everybody got it; ``profit`` is (n, A)."""
    return {
        coupon: _gain(window, one_hot(np.full(len(profit), coupon), profit.shape[1]), profit)
        for coupon in np.unique(window.coupon[window.coupon > 0]).tolist()
    }


def _compare(log: Log, policies: dict[str, Floats], one: str, other: str, q: Floats) -> Estimate:
    return difference(log, policies[one], policies[other], DOUBLY_ROBUST, q, level=GATE_LEVEL)
