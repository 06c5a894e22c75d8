"""From forecasts to decisions: one coupon for every customer, and why.

One pure function, :func:`decide`: suppression first, then the holdout, then exploration, then the
budget's best use for everybody else. Coupon 0 is always `none`: no offer and no cost.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import blake2b

import numpy as np

from winback.models.allocation import (
    Allocation,
    Bools,
    Floats,
    Ints,
    coupons_at_price,
    pick,
    solve_budget,
)
from winback.models.decision_inputs import (
    NONE,
    Customers,
    Experiment,
    Outlook,
    Prospects,
    Texts,
    check_inputs,
    prospects_of,
)
from winback.models.experiment import (
    MOST_DESIGNED,
    SEPARATOR,
    Exploration,
    Ids,
    assign_holdout,
    designed_chances,
    draw_exploration,
    policy_probabilities,
    uniform_chances,
)
from winback.models.limits import Limit, charged_value, within_ceilings
from winback.models.next_best import NextBest, find_next_best

SUPPRESSION_REASONS = (  # the first that applies is given
    "no_consent",
    "no_purchase_yet",
    "recent_contact",
    "holdout",
    "low_support",
    "no_uplift",
    "budget",
)


@dataclass(frozen=True)
class Decisions:
    """One decision per customer, (n,) each, named as the columns of `recommendations`.

    ``net_value`` is the long-run uplift less what its money, and its place in the further limits,
    bring elsewhere. ``allocation`` is the certificate, explorers included; ``is_cold_start``: no
    customer has a coupon with enough logged decisions to judge it; ``is_proven``: the log shows
    that coupons make customers buy.
    """

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
    net_value: Floats
    next_best: NextBest

    budget: float
    allocation: Allocation
    exploration: Exploration
    is_cold_start: bool
    is_proven: bool


@dataclass(frozen=True)
class Summary:
    """A run in numbers; money in currency.

    ``dual_price`` is the long-run uplift that one more unit of budget would buy, and
    ``duality_gap`` how much more than this allocation any other could bring, at most.
    ``exploration_rate`` is the mean over customers who may get a coupon; a scale below 1 says
    that the budget did not pay for the wanted rate. ``chosen`` customers get a coupon that was
    not drawn by chance.
    """

    customers: int
    held_out: int
    coupons: dict[str, int]  # customers per coupon
    suppressed: dict[str, int]
    chosen: int
    explored: int
    budget: float
    expected_spend: float
    exploration_spend: float
    expected_uplift: float
    long_run_uplift: float
    dual_price: float
    duality_gap: float
    limit_prices: dict[str, float]  # as dual_price, of each further limit
    exploration_rate: float
    exploration_scale: float
    smallest_propensity: float
    is_cold_start: bool
    is_proven: bool


def decide(
    customers: Customers,
    outlook: Outlook,
    experiment: Experiment,
    budget: float,
    as_of: date,
    limits: Sequence[Limit] = (),
) -> Decisions:
    """Give every customer one coupon, or `none`, for the window that begins at ``as_of``.

    The optimiser maximises the long-run uplift Q̃(a) − Q̃(none) less its doubt, where Q̃ = margin −
    cost − contact cost + future value, and gives only supported coupons where that is positive.
    Exploring customers draw any coupon, first, and are charged to the budget: the whole list never
    costs more than ``budget`` in expectation. Without any supported coupon (a cold start)
    exploration may use all of it, since nothing else can: up to half of the customers get a coupon,
    by a design that learns most for the money
    (:func:`winback.models.experiment.designed_chances`). A budget of 0 gives nobody a coupon.
    Explorers count in the further ``limits`` as everybody does, and take at most the same share
    of their ceilings; a floor is kept with supported coupons, at a loss if it must be.

    Where the log does not show that coupons make customers buy, exploration alone gives any, with
    its usual share of the budget; a floor is an order, and kept as cheaply as it can be.

    Raises:
        DataError: shapes differ, ids repeat, a number is missing, a cost or the budget negative,
            or the limits cannot be kept together.
        SettingsError: a share of the experiment is impossible.
    """
    check_inputs(customers, outlook, budget)
    prospects = prospects_of(outlook, customers.has_purchased)
    is_supported, is_proven = outlook.is_supported, outlook.is_proven
    del outlook  # for a caller who gave it away: its tables are a quarter of what is held
    holdout = assign_holdout(customers.customer_id, experiment.salt, experiment.holdout_share)
    free = customers.can_contact & customers.has_purchased & ~customers.recent_contact & ~holdout
    promising = is_supported & (prospects.cautious > 0)
    eligible = _with_none(np.repeat(free[:, None], prospects.cost.shape[1], axis=1))
    if limits:
        eligible = _with_none(within_ceilings(eligible, prospects.cost, limits))
    may_get = _with_none(eligible & (budget > 0))
    worth_giving = promising | _floored(limits, is_supported)
    worthwhile = _with_none(may_get & worth_giving)

    is_cold_start = not is_supported[:, 1:].any()
    share = 1.0 if is_cold_start else experiment.exploration_budget_share
    exploration = draw_exploration(
        customers.customer_id,
        as_of,
        experiment.salt,
        _wanted_chances(may_get, prospects, experiment, is_cold_start=is_cold_start),
        prospects.cost,
        limit=budget * share,
        limits=limits,
        limit_share=share,
    )
    allocation = _allocate(prospects, budget, worthwhile, exploration, limits)
    coupon = allocation.coupon
    idle = free & (coupon == NONE) & ~exploration.explores
    expected_profit, baseline_profit = pick(prospects.profit, coupon), prospects.profit[:, NONE]
    return Decisions(
        coupon=coupon,
        treatment_group=np.where(holdout, "holdout", "treatment").astype(object),
        is_exploration=exploration.explores,
        propensity=_propensity(prospects, worthwhile, exploration, allocation, limits),
        expected_profit=expected_profit,
        baseline_profit=baseline_profit,
        expected_uplift=expected_profit - baseline_profit,
        expected_cost=pick(prospects.cost, coupon),
        q_value=pick(prospects.value, coupon),
        long_run_uplift=pick(prospects.uplift, coupon),
        suppression_reason=_reasons(customers, holdout, idle, is_supported, promising),
        net_value=_net_value(prospects, allocation, limits),
        next_best=find_next_best(
            prospects, eligible & is_supported, worth_giving, allocation, limits
        ),
        budget=budget,
        allocation=allocation,
        exploration=exploration,
        is_cold_start=is_cold_start,
        is_proven=is_proven,
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
        chosen=int(((decisions.coupon != NONE) & ~decisions.is_exploration).sum()),
        explored=int(decisions.is_exploration.sum()),
        budget=decisions.budget,
        expected_spend=decisions.allocation.expected_spend,
        exploration_spend=decisions.exploration.expected_cost,
        expected_uplift=math.fsum(decisions.expected_uplift),
        long_run_uplift=math.fsum(decisions.long_run_uplift),
        dual_price=decisions.allocation.dual_price,
        duality_gap=decisions.allocation.duality_gap,
        limit_prices=dict(decisions.allocation.limit_prices),
        exploration_rate=float(rate[rate > 0].mean()) if (rate > 0).any() else 0.0,
        exploration_scale=decisions.exploration.scale,
        smallest_propensity=float(decisions.propensity.min(initial=1.0)),
        is_cold_start=decisions.is_cold_start,
        is_proven=decisions.is_proven,
    )


def decision_ids(as_of: date, customer_id: Ids) -> Texts:
    """(n,) 32 hexadecimal digits each, the same for a date and customer in every run."""
    head = f"{as_of:%Y-%m-%d}{SEPARATOR}".encode()
    digests = [blake2b(head + name.encode(), digest_size=16).hexdigest() for name in customer_id]
    return np.array(digests, dtype=object)


def _with_none(eligible: Bools) -> Bools:
    eligible[:, NONE] = True
    return eligible


def _floored(limits: Sequence[Limit], is_supported: Bools) -> Bools:
    """(n, A) supported coupons that count towards a floor."""
    counts = np.zeros_like(is_supported)
    for limit in limits:
        if limit.floor > 0:
            counts |= limit.customers[:, None] & limit.coupons
    return counts & is_supported


def _wanted_chances(
    may_get: Bools, prospects: Prospects, experiment: Experiment, *, is_cold_start: bool
) -> Floats:
    """(n, A) with which chances exploration draws coupons if the money pays for it."""
    rate, floor = experiment.exploration_rate, experiment.propensity_floor
    if is_cold_start and rate > 0:
        return designed_chances(may_get, prospects.cost, MOST_DESIGNED, floor)
    return uniform_chances(may_get, rate, floor)


def _allocate(
    prospects: Prospects,
    budget: float,
    worthwhile: Bools,
    exploration: Exploration,
    limits: Sequence[Limit],
) -> Allocation:
    """An explorer is a customer with one choice, the coupon drawn: charged before the others."""
    eligible = worthwhile.copy()
    explorers = np.nonzero(exploration.explores)[0]
    eligible[explorers] = False
    eligible[explorers, exploration.coupon[explorers]] = True
    if not limits:
        return solve_budget(prospects.cautious, prospects.cost, budget, eligible)
    from winback.models.limited_allocation import solve_with_limits  # numba: a second to import

    return solve_with_limits(prospects.cautious, prospects.cost, budget, eligible, limits)


def _propensity(
    prospects: Prospects,
    worthwhile: Bools,
    exploration: Exploration,
    allocation: Allocation,
    limits: Sequence[Limit],
) -> Floats:
    net = charged_value(prospects.cautious, prospects.cost, limits, allocation.limit_prices)
    at_price = coupons_at_price(net, prospects.cost, worthwhile, allocation.dual_price)
    greedy = np.where(exploration.explores, at_price, allocation.coupon)
    return pick(policy_probabilities(greedy, exploration.chance), allocation.coupon)


def _net_value(prospects: Prospects, allocation: Allocation, limits: Sequence[Limit]) -> Floats:
    """(n,) what the chosen coupon adds beyond what its money and place bring elsewhere."""
    charged = charged_value(prospects.uplift, prospects.cost, limits, allocation.limit_prices)
    spent = pick(prospects.cost, allocation.coupon)
    return pick(charged, allocation.coupon) - allocation.dual_price * spent


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
