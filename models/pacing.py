"""A period's coupon money over its runs, when redemptions come days after the decision.

The plain rule shares what is not yet spent among the days left. Offers that are out will still be
redeemed, though: near a period's end, and where a decision lasts long beside the period, that money
is given away twice, and what the last runs give away falls on the next period. The paced rule
takes off what open offers are expected to cost before the period ends, and shares the rest among
the runs to come by how much of each one's cost falls into the period. Constant spending is its
fixed point, over period after period.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from winback.models.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST = 2.0  # times the plain rule's share: the last runs would otherwise chase every chance of luck
ENOUGH_REDEMPTIONS = 100  # a day's share of one seventh is then known to ± 7 points


@dataclass(frozen=True)
class Period:
    """Where a budget period stands at a run: money in currency, days from the run's date on."""

    amount: float
    spent: float
    days_left: int

    @property
    def left(self) -> float:
        """Money not yet spent, 0 or more."""
        return max(0.0, self.amount - self.spent)


@dataclass(frozen=True)
class OpenOffers:
    """Offers whose window is not over, one row per day on which they went out; all (m,).

    Attributes:
        age_days: days since they went out, 1 or more.
        expected_cost: what they were expected to cost in their whole window, currency.
    """

    age_days: Ints
    expected_cost: Floats


def share_of_period(period: Period, cadence_days: int) -> float:
    """The plain rule: what is left, times min(1, days between runs ÷ days left)."""
    return period.left * min(1.0, cadence_days / period.days_left)


def paced_share(period: Period, cadence_days: int, offers: OpenOffers, timing: Floats) -> float:
    """This run's budget, so that the period's spending ends at its amount.

    Args:
        period: amount, spent and days left (1 or more).
        cadence_days: days between runs.
        offers: earlier offers that may still be redeemed.
        timing: (W,) share of an offer's cost that falls on each day of its window, sum 1.

    Raises:
        DataError: an offer's age or cost is impossible, or the timing is no distribution.
    """
    _check(offers, timing)
    free = max(0.0, period.left - committed(offers, timing, period.days_left))
    runs_left = np.arange(period.days_left, 0, -cadence_days)
    to_share = float(_by_day(timing, runs_left).sum())
    # a first day without redemptions leaves a period's last run nothing to share by
    paced = free / to_share if to_share > 0 else free
    return min(paced, MOST * share_of_period(period, cadence_days))


def committed(offers: OpenOffers, timing: Floats, days_left: int) -> float:
    """What open offers are expected to cost from now on and before the period ends, currency.

    What they have cost already says little about what comes (other customers redeem): it is the
    timing that does.
    """
    coming = _by_day(timing, offers.age_days + days_left) - _by_day(timing, offers.age_days)
    return float((offers.expected_cost * coming).sum())


def redemption_timing(cost_by_day: Floats, redemptions: int) -> Floats:
    """(W,) share of an offer's cost by day of its window, from what past offers cost (W,).

    Even over the window where fewer than ``ENOUGH_REDEMPTIONS`` are known.
    """
    days = len(cost_by_day)
    total = float(cost_by_day.sum())
    if redemptions < ENOUGH_REDEMPTIONS or total <= 0:
        return np.full(days, 1.0 / days)
    return cost_by_day / total


def _by_day(timing: Floats, days: Ints) -> Floats:
    """(m,) share of an offer's cost that falls within its first days."""
    cumulative = np.concatenate([[0.0], np.cumsum(timing)])
    share: Floats = cumulative[np.minimum(days, len(timing))]
    return share


def _check(offers: OpenOffers, timing: Floats) -> None:
    cost = offers.expected_cost
    if (offers.age_days < 1).any() or not (np.isfinite(cost) & (cost >= 0)).all():
        raise DataError(
            "expected open offers of an age of 1 day or more and an expected cost of 0 or more; "
            f"came ages {offers.age_days[:5].tolist()} and costs {cost[:5].tolist()}"
        )
    if len(timing) == 0 or (timing < 0).any() or abs(float(timing.sum()) - 1) > 1e-6:
        raise DataError(f"expected shares of the window's days that sum to 1, came {timing[:7]}")
