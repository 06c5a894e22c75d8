"""Rival policies: what other ways of giving out coupons would do with the same log and budget.

Every policy sees the product's own features (arrays from ``customer_snapshots``) and one shared
forecast of what a coupon costs, so that policies differ only in whom they think worth a coupon.
Sources: Künzel et al. (2019) for S- and T-learners, Kennedy (2023) for the DR-learner.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from winback.models.allocation import Floats, Ints, affordable, pick, solve_budget
from winback.models.errors import SettingsError
from winback.models.peers_data import PeerData
from winback.models.peers_learners import Learners
from winback.models.peers_reference import reference_q
from winback.models.peers_tabular import tabular_q

FIFTHS = 5  # RFM scores customers from 1 to 5 on each count


@dataclass(frozen=True)
class Decision:
    """One coupon per customer, (n,), and the money that the policy meant to spend.

    ``wanted_spend`` is the expected cost before the policy was cut to the budget; it differs from
    the budget only where a policy does not know of it.
    """

    coupon: Ints
    wanted_spend: float


Policy = Callable[[PeerData, Learners], Decision]


def none(data: PeerData, learners: Learners) -> Decision:
    """No coupon for anybody."""
    return Decision(np.zeros(data.customers, np.int64), 0.0)


def random(data: PeerData, learners: Learners) -> Decision:
    """Any coupon for customers in random order, until the budget is used up."""
    chance = np.random.default_rng([data.seed, 1])
    coupon = chance.integers(1, data.coupons, data.customers)
    return in_order(chance.permutation(data.customers), coupon, data, learners)


def static(coupon: int, data: PeerData, learners: Learners) -> Decision:
    """The same coupon for customers in random order, until the budget is used up."""
    order = np.random.default_rng([data.seed, 2]).permutation(data.customers)
    return in_order(order, np.full(data.customers, coupon), data, learners)


def rfm_rule(data: PeerData, learners: Learners) -> Decision:
    """The middle coupon for good customers who have gone quiet, the clearest cases first.

    The rule of thumb of win-back campaigns: fifths of frequency and of money, less the fifth of
    how recently they bought.
    """
    recent = -data.column("days_since_last_purchase")
    good = fifth(data.column("frequency")) + fifth(data.column("monetary_value"))
    return _highest_first(good - fifth(recent), data, learners)


def response(kind: str, data: PeerData, learners: Learners) -> Decision:
    """The middle coupon for those likeliest to buy: the classic response model."""
    return _highest_first(learners.response(kind), data, learners)


def uplift(kind: str, data: PeerData, learners: Learners) -> Decision:
    """The most uplift of this week's profit that the budget buys, by one of the learners."""
    return at_budget(learners.uplift(kind), data, learners)


def tabular(data: PeerData, learners: Learners) -> Decision:
    """Long-run values from counts on binned states, the same for all customers of a state."""
    q = tabular_q(data)
    return at_budget(q - q[:, :1], data, learners)


def reference(data: PeerData, learners: Learners) -> Decision:
    """The reference system: the coupon of highest Q, budget or not, cut off where money ends."""
    q = reference_q(data)
    return in_order(np.argsort(-q.max(axis=1), kind="stable"), q.argmax(axis=1), data, learners)


POLICIES: Mapping[str, Policy] = {
    "none": none,
    "random": random,
    "RFM rule": rfm_rule,
    "response, logistic": partial(response, "logistic"),
    "response, boosting": partial(response, "boosting"),
    "S-learner": partial(uplift, "S"),
    "T-learner": partial(uplift, "T"),
    "DR-learner": partial(uplift, "DR"),
    "P(buy) x margin - cost": partial(uplift, "split"),
    "tabular planning": tabular,
    "reference system": reference,
}
STATIC = "coupon {} for all"  # a policy per coupon of the catalogue


def policies(face_values: Floats) -> dict[str, Policy]:
    """All rivals by name; the static ones are named after the coupon's face value."""
    fixed = {
        STATIC.format(f"{face_values[a]:g}"): partial(static, a) for a in _coupons(face_values)
    }
    return {**POLICIES, **fixed}


def decide(name: str, data: PeerData, learners: Learners) -> Decision:
    """What one rival does with the customers of ``data``.

    Raises:
        SettingsError: no rival has this name.
    """
    known = policies(data.face_values)
    if name not in known:
        raise SettingsError(f"policy: expected one of {', '.join(known)}; came {name!r}")
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # scikit-learn's OpenMP and BLAS: fits of half a second gain nothing
        return known[name](data, learners)


def at_budget(value: Floats, data: PeerData, learners: Learners) -> Decision:
    """The highest total ``value`` (n, A) against `none` that the expected cost allows."""
    eligible = np.ones(value.shape, np.bool_)
    solved = solve_budget(value, learners.cost, data.budget, eligible)
    return Decision(solved.coupon, solved.expected_spend)


def in_order(order: Ints, coupon: Ints, data: PeerData, learners: Learners) -> Decision:
    """The customers' coupons (n,) in an order, until the expected cost reaches the budget."""
    costs = pick(learners.cost, coupon)
    served = order[: affordable(costs[order], data.budget)]
    kept = np.zeros_like(coupon)
    kept[served] = coupon[served]
    return Decision(kept, float(costs.sum()))


def fifth(values: Floats) -> NDArray[np.float64]:
    """(n,) 1 to 5 by rank; equal values share a score."""
    below = np.searchsorted(np.sort(values), values, side="left")
    score: NDArray[np.float64] = np.floor(below * FIFTHS / max(len(values), 1)) + 1
    return score


def _highest_first(score: Floats, data: PeerData, learners: Learners) -> Decision:
    coupon = np.full(data.customers, (data.coupons + 1) // 2)
    decision = in_order(np.argsort(-score, kind="stable"), coupon, data, learners)
    spend = float(pick(learners.cost, decision.coupon).sum())  # the rule itself stops at the money
    return Decision(decision.coupon, spend)


def _coupons(face_values: Floats) -> range:
    return range(1, len(face_values))
