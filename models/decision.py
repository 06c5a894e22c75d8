"""From forecasts to decisions: one coupon for every customer, and why.

One pure function, :func:`decide`: suppression first, then the holdout, then exploration, then the
budget's best use for everybody else. Coupon 0 is always `none`: no offer and no cost.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from winback.models.allocation import (
    Allocation,
    Bools,
    Floats,
    Ints,
    coupons_at_price,
    pick,
    solve_budget,
)
from winback.models.errors import DataError, first_rows
from winback.models.experiment import (
    SEPARATOR,
    Exploration,
    Ids,
    assign_holdout,
    draw_exploration,
    policy_probabilities,
)

NONE = 0  # index of the coupon `none`
SUPPRESSION_REASONS = (  # the first that applies is given
    "no_consent",
    "no_purchase_yet",
    "recent_contact",
    "holdout",
    "low_support",
    "no_uplift",
    "budget",
)

Texts = NDArray[np.object_]


@dataclass(frozen=True)
class Customers:
    """Who is decided upon, as of the decision date; all (n,).

    ``recent_contact``: got a coupon within the contact gap.
    """

    customer_id: Ids
    can_contact: Bools
    has_purchased: Bools
    recent_contact: Bools


@dataclass(frozen=True)
class Outlook:
    """What is expected of each customer with each coupon; (n, A), currency, `none` first.

    Rows of customers without a purchase are not read.

    Attributes:
        margin: margin of the window, the coupon's cost not taken off.
        cost: redeemed coupon money. That of `none` (coupons from earlier offers) lowers the
            profit but takes nothing from this run's budget.
        contact_cost: (A,) cost of sending a coupon, 0 for `none`.
        future_value: γ Σ P̂(s′ | s, a) V(s′), what follows after the window.
        is_supported: enough logged decisions to judge this coupon in the customer's state.
    """

    margin: Floats
    cost: Floats
    contact_cost: Floats
    future_value: Floats
    is_supported: Bools


@dataclass(frozen=True)
class Experiment:
    """Holdout and exploration, see :mod:`winback.models.experiment`; all shares in [0, 1].

    ``exploration_budget_share``: at most this share of the budget goes to exploring customers.
    """

    salt: str
    holdout_share: float
    exploration_rate: float
    propensity_floor: float
    exploration_budget_share: float


@dataclass(frozen=True)
class Decisions:
    """One decision per customer, (n,) each, named as the columns of `recommendations`.

    ``allocation`` is the certificate, explorers included; ``is_cold_start``: no customer has a
    coupon with enough logged decisions to judge it.
    """

    decision_id: Texts
    coupon: Ints  # index into the catalogue
    treatment_group: Texts
    is_exploration: Bools
    propensity: Floats
    expected_profit: Floats
    baseline_profit: Floats
    expected_uplift: Floats
    expected_cost: Floats
    q_value: Floats
    long_run_uplift: Floats
    suppression_reason: Texts  # None where nothing stood against a coupon

    budget: float
    allocation: Allocation
    exploration: Exploration
    is_cold_start: bool


@dataclass(frozen=True)
class Summary:
    """A run in numbers; money in currency.

    ``dual_price`` is the long-run uplift that one more unit of budget would buy, and
    ``duality_gap`` how much more than this allocation any other could bring, at most.
    ``exploration_rate`` is the mean over customers who may get a coupon; a scale below 1 says
    that the budget did not pay for the wanted rate.
    """

    customers: int
    held_out: int
    coupons: dict[str, int]  # customers per coupon
    suppressed: dict[str, int]
    explored: int
    budget: float
    expected_spend: float
    exploration_spend: float
    expected_uplift: float
    long_run_uplift: float
    dual_price: float
    duality_gap: float
    exploration_rate: float
    exploration_scale: float
    smallest_propensity: float
    is_cold_start: bool


@dataclass(frozen=True)
class _Prospects:
    """(n, A) money of each customer with each coupon; zeros for who has not purchased."""

    profit: Floats
    value: Floats  # Q̃ = profit + future value
    uplift: Floats  # Q̃(a) − Q̃(none)
    cost: Floats  # budget money, 0 for `none`


def decide(
    customers: Customers, outlook: Outlook, experiment: Experiment, budget: float, as_of: date
) -> Decisions:
    """Give every customer one coupon, or `none`, for the window that begins at ``as_of``.

    The optimiser maximises the long-run uplift Q̃(a) − Q̃(none), where Q̃ = margin − cost − contact
    cost + future value, and gives only supported coupons of positive uplift. Exploring customers
    draw any coupon, first, and are charged to the budget: the whole list never costs more than
    ``budget`` in expectation. Without any supported coupon (a cold start) exploration may use
    all of it, since nothing else can. A budget of 0 gives nobody a coupon.

    Raises:
        DataError: shapes differ, ids repeat, a number is missing, a cost or the budget negative.
        SettingsError: a share of the experiment is impossible.
    """
    _check(customers, outlook, budget)
    prospects = _prospects(outlook, customers.has_purchased)
    holdout = assign_holdout(customers.customer_id, experiment.salt, experiment.holdout_share)
    free = customers.can_contact & customers.has_purchased & ~customers.recent_contact & ~holdout
    promising = outlook.is_supported & (prospects.uplift > 0)
    may_get = _with_none(np.repeat((free & (budget > 0))[:, None], prospects.cost.shape[1], axis=1))
    worthwhile = _with_none(may_get & promising)

    is_cold_start = not outlook.is_supported[:, 1:].any()
    exploration = draw_exploration(
        customers.customer_id,
        as_of,
        experiment.salt,
        may_get,
        prospects.cost,
        rate=experiment.exploration_rate,
        floor=experiment.propensity_floor,
        limit=budget * (1.0 if is_cold_start else experiment.exploration_budget_share),
    )
    allocation = _allocate(prospects, budget, worthwhile, exploration)
    coupon = allocation.coupon
    idle = free & (coupon == NONE) & ~exploration.explores
    expected_profit, baseline_profit = pick(prospects.profit, coupon), prospects.profit[:, NONE]
    return Decisions(
        decision_id=decision_ids(as_of, customers.customer_id),
        coupon=coupon,
        treatment_group=np.where(holdout, "holdout", "treatment").astype(object),
        is_exploration=exploration.explores,
        propensity=_propensity(prospects, may_get, worthwhile, exploration, allocation),
        expected_profit=expected_profit,
        baseline_profit=baseline_profit,
        expected_uplift=expected_profit - baseline_profit,
        expected_cost=pick(prospects.cost, coupon),
        q_value=pick(prospects.value, coupon),
        long_run_uplift=pick(prospects.uplift, coupon),
        suppression_reason=_reasons(customers, holdout, idle, outlook.is_supported, promising),
        budget=budget,
        allocation=allocation,
        exploration=exploration,
        is_cold_start=is_cold_start,
    )


def summarise(decisions: Decisions, coupon_ids: Sequence[str]) -> Summary:
    """The run's numbers, for the `runs` table and the summary on the screen."""
    reason, rate = decisions.suppression_reason, decisions.exploration.rate
    counts = np.bincount(decisions.coupon, minlength=len(coupon_ids))
    return Summary(
        customers=len(reason),
        held_out=int((decisions.treatment_group == "holdout").sum()),
        coupons=dict(zip(coupon_ids, counts.tolist(), strict=True)),
        suppressed={name: int((reason == name).sum()) for name in SUPPRESSION_REASONS},
        explored=int(decisions.is_exploration.sum()),
        budget=decisions.budget,
        expected_spend=decisions.allocation.expected_spend,
        exploration_spend=decisions.exploration.expected_cost,
        expected_uplift=math.fsum(decisions.expected_uplift),
        long_run_uplift=decisions.allocation.primal_value,
        dual_price=decisions.allocation.dual_price,
        duality_gap=decisions.allocation.duality_gap,
        exploration_rate=float(rate[rate > 0].mean()) if (rate > 0).any() else 0.0,
        exploration_scale=decisions.exploration.scale,
        smallest_propensity=float(decisions.propensity.min(initial=1.0)),
        is_cold_start=decisions.is_cold_start,
    )


def decision_ids(as_of: date, customer_id: Ids) -> Texts:
    """(n,) 32 hexadecimal digits each, the same for a date and customer in every run."""
    head = f"{as_of:%Y-%m-%d}{SEPARATOR}".encode()
    digests = [blake2b(head + name.encode(), digest_size=16).hexdigest() for name in customer_id]
    return np.array(digests, dtype=object)


def _prospects(outlook: Outlook, has_purchased: Bools) -> _Prospects:
    read = has_purchased[:, None]
    margin, cost, future = (
        np.where(read, table, 0.0).astype(np.float64)
        for table in (outlook.margin, outlook.cost, outlook.future_value)
    )
    profit = margin - cost - outlook.contact_cost
    value = profit + future
    cost[:, NONE] = 0.0
    return _Prospects(profit, value, value - value[:, :1], cost)


def _with_none(eligible: Bools) -> Bools:
    eligible[:, NONE] = True
    return eligible


def _allocate(
    prospects: _Prospects, budget: float, worthwhile: Bools, exploration: Exploration
) -> Allocation:
    """An explorer is a customer with one choice, the coupon drawn: charged before the others."""
    eligible = worthwhile.copy()
    explorers = np.nonzero(exploration.explores)[0]
    eligible[explorers] = False
    eligible[explorers, exploration.coupon[explorers]] = True
    return solve_budget(prospects.uplift, prospects.cost, budget, eligible)


def _propensity(
    prospects: _Prospects,
    may_get: Bools,
    worthwhile: Bools,
    exploration: Exploration,
    allocation: Allocation,
) -> Floats:
    at_price = coupons_at_price(prospects.uplift, prospects.cost, worthwhile, allocation.dual_price)
    greedy = np.where(exploration.explores, at_price, allocation.coupon)
    return pick(policy_probabilities(greedy, may_get, exploration.rate), allocation.coupon)


def _reasons(
    customers: Customers, holdout: Bools, idle: Bools, is_supported: Bools, promising: Bools
) -> Texts:
    """(n,) the first reason that applies; ``idle``: free, yet the optimiser gave `none`."""
    applies = (
        ~customers.can_contact,
        ~customers.has_purchased,
        customers.recent_contact,
        holdout,
        idle & ~is_supported[:, 1:].any(axis=1),
        idle & ~promising[:, 1:].any(axis=1),
        idle,
    )
    reason = np.full(len(idle), None, dtype=object)
    for name, rows in reversed(list(zip(SUPPRESSION_REASONS, applies, strict=True))):
        reason[rows] = name
    return reason


def _check(customers: Customers, outlook: Outlook, budget: float) -> None:
    n, coupons = outlook.margin.shape if outlook.margin.ndim == 2 else (0, 0)
    if coupons == 0:
        raise DataError(
            f"expected a margin per customer and coupon, `none` first; came {outlook.margin.shape}"
        )
    if not (math.isfinite(budget) and budget >= 0):
        raise DataError(f"expected a budget of 0 or more, came {budget}")
    _check_customers(customers, n)
    _check_outlook(customers, outlook, (n, coupons))


def _check_customers(customers: Customers, n: int) -> None:
    if len(customers.customer_id) != n:
        raise DataError(f"expected {n} customer ids, came {len(customers.customer_id)}")
    for name in ("can_contact", "has_purchased", "recent_contact"):
        flags = getattr(customers, name)
        if flags.shape != (n,) or flags.dtype != np.bool_:
            raise DataError(
                f"expected {name} as {n} values true or false, came {flags.dtype} {flags.shape}"
            )
    if len(set(customers.customer_id)) < n:
        repeated = [name for name, count in Counter(customers.customer_id).items() if count > 1]
        raise DataError(f"expected each customer once; several rows for {first_rows(repeated)}")


def _check_outlook(customers: Customers, outlook: Outlook, shape: tuple[int, int]) -> None:
    for name in ("cost", "future_value", "is_supported"):
        came = getattr(outlook, name).shape
        if came != shape:
            raise DataError(f"expected {name} of shape {shape} like margin, came {came}")
    contact = outlook.contact_cost
    if contact.shape != shape[1:] or contact[NONE] != 0 or not (contact >= 0).all():
        raise DataError(
            f"expected {shape[1]} contact costs of 0 or more, 0 for `none`; came {contact.tolist()}"
        )
    finite = [np.isfinite(table) for table in (outlook.margin, outlook.cost, outlook.future_value)]
    wrong = ~np.logical_and.reduce(finite).all(axis=1) | (outlook.cost < 0).any(axis=1)
    wrong &= customers.has_purchased
    if wrong.any():
        ids = np.asarray(customers.customer_id, dtype=object)[wrong]
        raise DataError(
            "expected finite forecasts and costs of 0 or more for every buyer; "
            f"wrong for customers {first_rows(ids)}: score and train again"
        )
