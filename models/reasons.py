"""The words of a decision: one sentence per customer that a marketer understands.

Sentences are put together column by column, since a run may have a million of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from winback.models.allocation import Floats, Ints
from winback.models.decision import Decisions, Summary
from winback.models.decision_inputs import NONE, Texts
from winback.models.money import money

NO_CONSENT = "No coupon: this customer has not agreed to be contacted."
NO_PURCHASE_YET = "No coupon: this customer has not bought anything yet."
WELL_KNOWN, KNOWN = 400, 100  # past offers: a 10 % response is known to ±3 and ±6 points
UNPROVEN = "past offers do not show yet that coupons make customers buy"
ALL = slice(None)


@dataclass(frozen=True)
class _Speaker:
    """Who words the decisions: knows the coupons' names, the currency and each situation."""

    decisions: Decisions
    labels: Texts
    situation: Texts
    p_purchase: Floats
    decision_days: int
    currency: str

    def amounts(self, values: Floats) -> Texts:
        """:func:`money` of each; equal amounts are worded once."""
        rounded, place = np.unique(np.round(values, 2), return_inverse=True)
        words = np.array([money(amount, self.currency) for amount in rounded], dtype=object)
        return words[place]

    def price(self) -> str:
        """What coupon money brings elsewhere."""
        return f"{money(self.decisions.allocation.dual_price)} per {self.currency or 'unit'}"


def explain(
    decisions: Decisions,
    labels: Sequence[str],
    past_offers: Ints,
    situation: Sequence[str] | Texts,
    p_purchase: Floats,
    *,
    decision_days: int,
    gap_days: int,
    max_contacts: int | None = None,
    max_contacts_days: int = 0,
    currency: str = "",
    rows: slice = ALL,
) -> Texts:
    """(n,) why each customer gets this coupon, or none, and not the next best.

    Args:
        decisions: of n customers.
        labels: (A,) the coupons' names for people.
        past_offers: (n,) logged offers of the chosen coupon to customers in a similar situation.
        situation: (n,) that situation in words, such as "last purchase within 7 days".
        p_purchase: (n,) chance of a purchase within the decision's days; NaN where unknown.
        decision_days: days that the decision lasts.
        gap_days: days before a customer may get another coupon.
        max_contacts: coupons that a customer may get in ``max_contacts_days``; None: any number.
        max_contacts_days: days over which that counts.
        currency: written behind amounts, such as ``EUR``.
        rows: only these customers; a million sentences at once take a gigabyte.
    """
    contacts = _contacts(gap_days, max_contacts, max_contacts_days)
    speaker = _Speaker(
        decisions, _texts(labels), _texts(situation), p_purchase, decision_days, currency
    )
    at = np.arange(len(decisions.coupon))[rows]
    reason, drawn = decisions.suppression_reason[at], decisions.is_exploration[at]
    given = decisions.coupon[at] != NONE
    # without proof no coupon stands aside for what it would bring
    compared = (decisions.next_best.coupon[at] >= 0) & decisions.is_proven
    sentences = np.full(len(at), "", dtype=object)
    sentences[reason == "no_consent"] = NO_CONSENT
    sentences[reason == "no_purchase_yet"] = NO_PURCHASE_YET
    for name, sentence in _suppressed(contacts, decisions.is_proven).items():
        because = reason == name
        sentences[because] = _join(sentence, _standing(speaker, at[because]))
    passed_over = compared & ((reason == "no_uplift") | (reason == "budget"))
    sentences[passed_over] = _passing_over(speaker, at[passed_over])
    sentences[drawn & ~given] = _join(
        "No coupon this time: drawn by chance, to learn what happens without one",
        _standing(speaker, at[drawn & ~given]),
    )
    sentences[drawn & given] = _learning(speaker, at[drawn & given])
    chosen = at[given & ~drawn]
    sentences[given & ~drawn] = (
        _earning(speaker, chosen, past_offers[chosen])
        if decisions.is_proven
        else _ordered(speaker, chosen)
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
            f"No coupon can be judged from the past offers, so {given:,} of {summary.customers:,} "
            f"customers get one drawn by chance, to learn; expected cost "
            f"{money(summary.expected_spend, currency)} of {money(summary.budget, currency)}."
        )
    if not summary.is_proven:
        ordered = f", and {summary.chosen:,} because a limit has a floor" if summary.chosen else ""
        return (
            f"{UNPROVEN[0].upper()}{UNPROVEN[1:]}, so only {given - summary.chosen:,} of "
            f"{summary.customers:,} customers get one drawn by chance, to learn{ordered}; expected "
            f"cost {money(summary.expected_spend, currency)} of "
            f"{money(summary.budget, currency)}, the rest is kept."
        )
    return (
        f"{given:,} of {summary.customers:,} customers get a coupon; expected cost "
        f"{money(summary.expected_spend, currency)} of {money(summary.budget, currency)}, expected "
        f"gain {money(summary.long_run_uplift, currency)} in the long run."
    )


def _contacts(gap_days: int, max_contacts: int | None, max_contacts_days: int) -> str:
    """Which coupons of late keep a customer from another one; either rule may be off."""
    rules = [f"one in the last {_days(gap_days)}"] if gap_days else []
    if max_contacts is not None:
        rules.append(f"{max_contacts} in {'the last ' * (not rules)}{_days(max_contacts_days)}")
    return ", or ".join(rules)


def _suppressed(contacts: str, is_proven: bool) -> dict[str, str]:
    """What kept each from a coupon; where the customer stands follows."""
    not_worth_it = "none is expected to bring in more than it costs" if is_proven else UNPROVEN
    return {
        "recent_contact": f"No coupon: this customer got {contacts}",
        "holdout": "No coupon: in the comparison group, which shows what coupons really bring",
        "low_support": "No coupon: past offers do not show what one does for such customers",
        "no_uplift": f"No coupon: {not_worth_it}",
        "budget": "No coupon: each one that would pay off exceeds a limit by itself",
    }


def _passing_over(speaker: _Speaker, at: Ints) -> Texts:
    """Of customers for whom no coupon is worth its money: the one that came closest."""
    decisions, other = speaker.decisions, speaker.decisions.next_best
    worth_giving = decisions.suppression_reason[at] == "budget"
    within = np.where(other.behind[at] == "worth", "the best that the limits allow", "the best")
    best = "the budget is 0; the best" if decisions.budget == 0 else within
    start = np.where(worth_giving, best, "the best").astype(object)
    doubt = np.where(
        worth_giving, ", not surely enough to go before others", ", too unsure to count on"
    )
    tails: dict[str, str | Texts] = {
        "doubt": doubt,
        "budget": f", less than the budget brings elsewhere ({speaker.price()})",
        "limits": _limited(", less than others bring within the limits ({})", other.limits[at]),
        "budget_and_limits": _limited(
            f", less than the budget ({speaker.price()}) and the limits ({{}}) bring elsewhere",
            other.limits[at],
        ),
        "room": "" if decisions.budget == 0 else f", but {_no_room(decisions)}",
    }
    return _join(
        "No coupon: ",
        start,
        _prospect(speaker, at, " more long-run profit", " of coupon money"),
        _tail(tails, other.behind[at]),
        _situated(speaker, at),
    )


def _earning(speaker: _Speaker, at: Ints, past_offers: Ints) -> Texts:
    decisions, amounts = speaker.decisions, speaker.amounts
    offers, place = np.unique(past_offers, return_inverse=True)
    confidence = np.array([_confidence(count) for count in offers.tolist()], dtype=object)
    return _join(
        speaker.labels[decisions.coupon[at]],
        ": expected to bring ",
        amounts(decisions.long_run_uplift[at]),
        " more long-run profit than no coupon (",
        amounts(decisions.expected_uplift[at]),
        f" in the next {_days(speaker.decision_days)}) at about ",
        amounts(decisions.expected_cost[at]),
        " of coupon money; ",
        _next_best(speaker, at),
        confidence[place],
        _situated(speaker, at),
    )


def _next_best(speaker: _Speaker, at: Ints) -> Texts:
    """Why a coupon was preferred to the next best one."""
    other = speaker.decisions.next_best
    tails: dict[str, str | Texts] = {
        "doubt": ", but less surely",
        "budget": f", but for money that brings more elsewhere ({speaker.price()})",
        "limits": _limited(", but against the limits ({})", other.limits[at]),
        "budget_and_limits": _limited(
            f", but against the limits ({{}}) and for money that brings more elsewhere "
            f"({speaker.price()})",
            other.limits[at],
        ),
        "room": f", but {_no_room(speaker.decisions)}",
    }
    is_none = other.coupon[at] == NONE
    words = np.full(len(at), "the next best is no coupon", dtype=object)
    words[is_none & (other.behind[at] != "worth")] = "no coupon would bring more"
    words[~is_none] = _join("the next best", _prospect(speaker, at[~is_none], "", ""))
    return _join(words, _tail(tails, other.behind[at]), "; ")


def _prospect(speaker: _Speaker, at: Ints, of_profit: str, of_money: str) -> Texts:
    """What the next best coupon would bring and cost, or is expected to lose."""
    other = speaker.decisions.next_best
    gain, cost = other.long_run_uplift[at], speaker.amounts(other.expected_cost[at])
    bring = _join(" would bring ", speaker.amounts(gain), of_profit, " at about ", cost, of_money)
    lose = _join(" is expected to lose ", speaker.amounts(-gain))
    label = speaker.labels[other.coupon[at]]
    return _join(", ", label, ",", np.where(np.round(gain, 2) < 0, lose, bring))


def _tail(tails: Mapping[str, str | Texts], behind: Texts) -> Texts:
    """(m,) the words for each reason why the next best is behind; "" where there are none."""
    words = np.full(len(behind), "", dtype=object)
    for reason, text in tails.items():
        words = np.where(behind == reason, text, words)
    return words


def _limited(pattern: str, names: Texts) -> Texts:
    """The pattern with each customer's limits in the place of ``{}``."""
    head, tail = pattern.split("{}")
    return _join(head, names, tail)


def _no_room(decisions: Decisions) -> str:
    limits = " and the limits" if decisions.allocation.limit_prices else ""
    return f"what is left of the budget{limits} does not allow it"


def _ordered(speaker: _Speaker, at: Ints) -> Texts:
    """Of customers who get a coupon without proof that it sells."""
    return _join(
        speaker.labels[speaker.decisions.coupon[at]],
        ": given because a limit has a floor, at about ",
        speaker.amounts(speaker.decisions.expected_cost[at]),
        f" of coupon money; {UNPROVEN}",
        _situated(speaker, at),
    )


def _learning(speaker: _Speaker, at: Ints) -> Texts:
    return _join(
        speaker.labels[speaker.decisions.coupon[at]],
        ": drawn by chance, to learn how customers like this one respond, at about ",
        speaker.amounts(speaker.decisions.expected_cost[at]),
        " of coupon money",
        _standing(speaker, at),
    )


def _situated(speaker: _Speaker, at: Ints) -> Texts:
    return _join(" (", speaker.situation[at], ").")


def _standing(speaker: _Speaker, at: Ints) -> Texts:
    """The end of a sentence that compares no amounts: the customer's situation and chance."""
    likely = _likely(speaker.p_purchase[at], speaker.decision_days)
    return _join(" (", speaker.situation[at], likely, ").")


def _likely(chance: Floats, days: int) -> Texts:
    """(m,) "; 12 % likely to buy within 7 days", or nothing where it is not known."""
    percent = np.where(np.isnan(chance), 101, np.rint(100 * chance)).astype(np.int64)
    tail = f" % likely to buy within {'a day' if days == 1 else _days(days)}"
    words = ["; under 1" + tail, *(f"; {n}{tail}" for n in range(1, 100)), "; over 99" + tail, ""]
    return _texts(words)[percent]


def _join(*parts: str | Texts) -> Texts:
    """Row by row, one part after the other; plain text is the same in every row."""
    joined: Texts = np.array("", dtype=object)
    for part in parts:
        joined = joined + part
    return joined


def _texts(words: Sequence[str] | Texts) -> Texts:
    return np.array(words, dtype=object)


def _confidence(past_offers: int) -> str:
    if past_offers >= WELL_KNOWN:
        return f"well known from {past_offers:,} similar offers"
    if past_offers >= KNOWN:
        return f"fairly sure after {past_offers:,} similar offers"
    return f"a first estimate after {past_offers:,} similar offers"


def _days(days: int) -> str:
    return "day" if days == 1 else f"{days} days"
