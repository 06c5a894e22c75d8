"""The words of a decision: one sentence per customer that a marketer understands."""

from collections.abc import Sequence

import numpy as np

from winback.models.allocation import Ints
from winback.models.decision import NONE, Decisions, Summary, Texts

WELL_KNOWN, KNOWN = 400, 100  # past offers: a 10 % response is known to ±3 and ±6 points


def explain(
    decisions: Decisions,
    labels: Sequence[str],
    past_offers: Ints,
    situation: Sequence[str] | Texts,
    *,
    decision_days: int,
    gap_days: int,
    currency: str = "",
) -> Texts:
    """(n,) why each customer gets this coupon, or none.

    Args:
        labels: (A,) the coupons' names for people.
        past_offers: (n,) logged offers of the chosen coupon to customers in a similar situation.
        situation: (n,) that situation in words, such as "last bought 7–13 days ago".
        decision_days: days that the decision lasts.
        gap_days: days before a customer may get another coupon.
        currency: written behind amounts, such as ``EUR``.
    """
    sentences = np.full(len(decisions.coupon), "", dtype=object)
    for reason, sentence in _suppressed(gap_days).items():
        sentences[decisions.suppression_reason == reason] = sentence
    given = decisions.coupon != NONE
    drawn = decisions.is_exploration
    sentences[drawn & ~given] = (
        "No coupon this time: drawn by chance, to learn what happens without one."
    )
    for row in np.nonzero(given)[0].tolist():
        label = labels[int(decisions.coupon[row])]
        cost = money(decisions.expected_cost[row], currency)
        if drawn[row]:
            sentences[row] = _learning(label, cost)
            continue
        gain = money(decisions.long_run_uplift[row], currency)
        window = money(decisions.expected_uplift[row], currency)
        sentences[row] = (
            f"{_earning(label, cost, gain, window, decision_days)}; "
            f"{_confidence(int(past_offers[row]))} ({situation[row]})."
        )
    return sentences


def describe_run(summary: Summary, currency: str = "") -> str:
    """One sentence about the whole run."""
    given = sum(list(summary.coupons.values())[1:])
    if len(summary.coupons) == 1:
        return "Nobody gets a coupon: the catalogue holds none."
    if summary.budget == 0:
        return "Nobody gets a coupon: the budget is 0."
    if summary.is_cold_start:
        return (
            f"No coupon has enough past offers to judge it, so {given:,} of {summary.customers:,} "
            f"customers get one drawn by chance, to learn; expected cost "
            f"{money(summary.expected_spend, currency)} of {money(summary.budget, currency)}."
        )
    return (
        f"{given:,} of {summary.customers:,} customers get a coupon; expected cost "
        f"{money(summary.expected_spend, currency)} of {money(summary.budget, currency)}, expected "
        f"gain {money(summary.long_run_uplift, currency)} in the long run."
    )


def money(amount: float, currency: str = "") -> str:
    """An amount for people: two decimals, thousands apart, a true minus and no minus zero."""
    sign = "−" if round(amount, 2) < 0 else ""
    return f"{sign}{abs(amount):,.2f} {currency}".rstrip()


def _suppressed(gap_days: int) -> dict[str, str]:
    return {
        "no_consent": "No coupon: this customer has not agreed to be contacted.",
        "no_purchase_yet": "No coupon: this customer has not bought anything yet.",
        "recent_contact": f"No coupon: this customer got one in the last {_days(gap_days)}.",
        "holdout": "No coupon: in the comparison group, which shows what coupons really bring.",
        "low_support": "No coupon: too few past offers to customers like this one to judge any.",
        "no_uplift": "No coupon: none is expected to bring in more than it costs.",
        "budget": "No coupon: one would pay off, but the budget brings more with others.",
    }


def _earning(label: str, cost: str, gain: str, window: str, decision_days: int) -> str:
    return (
        f"{label}: expected to bring {gain} more profit than no coupon in the long run ({window} "
        f"in the next {_days(decision_days)}), at about {cost} of redeemed coupon money"
    )


def _learning(label: str, cost: str) -> str:
    return (
        f"{label}: drawn by chance, to learn how customers like this one respond, "
        f"at about {cost} of redeemed coupon money."
    )


def _confidence(past_offers: int) -> str:
    if past_offers >= WELL_KNOWN:
        return f"well known from {past_offers:,} similar offers"
    if past_offers >= KNOWN:
        return f"fairly sure after {past_offers:,} similar offers"
    return f"a first estimate after {past_offers:,} similar offers"


def _days(days: int) -> str:
    return "day" if days == 1 else f"{days} days"
