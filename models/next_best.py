"""Why this coupon and not another: the best one that a customer could have got instead.

Coupons are compared as the allocation does: by the long-run uplift less its doubt, less what their
money would bring elsewhere (the dual price), less what their place in the further limits would.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from winback.models.allocation import Allocation, Bools, Floats, Ints, coupons_at_price, pick
from winback.models.decision_inputs import NONE, Prospects, Texts
from winback.models.limits import Limit, charged_value

BLOCK = 100_000  # customers at a time: a third less memory at the decision's peak

Behind = Literal["worth", "doubt", "budget", "limits", "budget_and_limits", "room"]


@dataclass(frozen=True)
class NextBest:
    """The best coupon other than the chosen one, (n,) each.

    Attributes:
        coupon: index into the catalogue; −1 where a customer could have got no other.
        long_run_uplift: against `none`, currency; NaN without a next best.
        expected_cost: budget money, currency; NaN without a next best.
        behind: why it is not chosen, one of :data:`Behind`, judged step by step: ``worth`` (it
            brings no more), ``doubt`` (more, but not surely), ``budget``, ``limits`` or
            ``budget_and_limits`` (what more it brings is less than others make of the money it
            takes, of its place in the limits, or of both), ``room`` (better at these prices, but
            what was left did not suffice; or the choice was drawn by chance). None without a next
            best.
        limits: names of the further limits that speak against it, "" if none does.
    """

    coupon: Ints
    long_run_uplift: Floats
    expected_cost: Floats
    behind: Texts
    limits: Texts


def find_next_best(
    prospects: Prospects,
    eligible: Bools,
    worth_giving: Bools,
    allocation: Allocation,
    limits: Sequence[Limit] = (),
) -> NextBest:
    """The best alternative to each customer's coupon, at the prices of the allocation.

    Of the coupons worth giving where a customer has any, else of all that can be judged, the best
    of a bad lot: so that also who gets `none` is told which coupon came closest. `none` is an
    alternative to every coupon.

    Args:
        prospects: (n, A) money, currency.
        eligible: (n, A) coupons that a customer may get and that can be judged.
        worth_giving: (n, A) coupons that the allocation would consider.
        allocation: what was chosen, and its prices.
        limits: the allocation's further limits.
    """
    parts = [
        _next_best_of(
            Prospects(*(getattr(prospects, field.name)[rows] for field in fields(Prospects))),
            eligible[rows],
            worth_giving[rows],
            replace(allocation, coupon=allocation.coupon[rows]),
            [replace(limit, customers=limit.customers[rows]) for limit in limits],
        )
        for start in range(0, max(len(eligible), 1), BLOCK)
        for rows in (slice(start, start + BLOCK),)
    ]
    names = [field.name for field in fields(NextBest)]
    return NextBest(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _next_best_of(
    prospects: Prospects,
    eligible: Bools,
    worth_giving: Bools,
    allocation: Allocation,
    limits: Sequence[Limit],
) -> NextBest:
    """The same for some customers: nobody's depends on another's."""
    chosen = allocation.coupon
    others = _candidates(eligible, worth_giving)
    others[np.arange(len(chosen)), chosen] = False
    net = charged_value(prospects.cautious, prospects.cost, limits, allocation.limit_prices)
    coupon = coupons_at_price(net, prospects.cost, others, allocation.dual_price)
    exists = others.sum(axis=1) > 0
    charges, names = _limit_charges(prospects.cost, chosen, coupon, allocation, limits)
    return NextBest(
        coupon=np.where(exists, coupon, -1),
        long_run_uplift=np.where(exists, pick(prospects.uplift, coupon), np.nan),
        expected_cost=np.where(exists, pick(prospects.cost, coupon), np.nan),
        behind=_where(exists, _behind(prospects, chosen, coupon, allocation, charges), None),
        limits=_where(exists, names, ""),
    )


def _where(exists: Bools, words: Texts, otherwise: str | None) -> Texts:
    words[~exists] = otherwise
    return words


def _candidates(eligible: Bools, worth_giving: Bools) -> Bools:
    liked = eligible & worth_giving
    liked[:, NONE] = False
    candidates: Bools = np.where(liked.any(axis=1, keepdims=True), liked, eligible)
    candidates[:, NONE] = True
    return candidates


def _behind(
    prospects: Prospects, chosen: Ints, coupon: Ints, allocation: Allocation, charges: Floats
) -> Texts:
    """(n,) why ``coupon`` is not chosen; ``charges``: what more it takes of the limits."""
    gain, sure, cost = (
        pick(table, coupon) - pick(table, chosen)
        for table in (prospects.uplift, prospects.cautious, prospects.cost)
    )
    money = allocation.dual_price * cost
    dearer = gain <= money + charges
    reasons: list[tuple[Behind, Bools]] = [
        ("worth", gain <= 0),
        ("doubt", sure <= 0),
        ("budget_and_limits", dearer & (money > 0) & (charges > 0)),
        ("limits", dearer & (charges > 0)),
        ("budget", dearer),
        ("doubt", sure <= money + charges),
    ]
    behind = np.full(len(coupon), "room", dtype=object)
    for name, applies in reversed(reasons):
        behind[applies] = name
    return behind


def _limit_charges(
    cost: Floats, chosen: Ints, coupon: Ints, allocation: Allocation, limits: Sequence[Limit]
) -> tuple[Floats, Texts]:
    """(n,) each: what more the coupon takes of all limits at their prices, and which it strains."""
    total = np.zeros(len(coupon))
    names = np.full(len(coupon), "", dtype=object)
    for limit in limits:
        price = allocation.limit_prices.get(limit.name, 0.0)
        if not price:
            continue
        weight = limit.weight(cost)
        charge = price * (pick(weight, coupon) - pick(weight, chosen))
        total += charge
        strained = charge > 0
        names[strained] += np.where(names[strained] == "", limit.name, f", {limit.name}")
    return total, names
