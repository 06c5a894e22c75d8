"""Where a customer stands at a decision: recency, purchases and coupons of late.

The part of a customer's state that a decision moves: a purchase resets recency, a coupon adds to
the coupons of late. The planner's states are these situations times the hidden customer classes;
everything is counted in decision periods, so it fits any length of them.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Right-open edges; below the first edge is a bin of its own.
RECENCY_EDGES = np.array([1, 2, 3, 4, 6, 8, 12])  # periods since the last purchase, finer at first
PURCHASE_EDGES = np.array([1, 2, 3, 5, 8])  # purchase days in PURCHASE_PERIODS: how much a regular
COUPON_EDGES = np.array([1, 2, 3, 4])  # coupons in COUPON_PERIODS: how tired of them
PURCHASE_PERIODS = 12  # a quarter of weeks: long enough to tell a regular from a lucky month
SMALLEST_PROPENSITY = 1e-6  # a smaller one is a mistake of the log
COUPON_PERIODS = 4  # a month of weeks: what people still remember

RECENCIES, PURCHASES, COUPONS = (
    len(edges) + 1 for edges in (RECENCY_EDGES, PURCHASE_EDGES, COUPON_EDGES)
)
SITUATIONS = RECENCIES * PURCHASES * COUPONS


@dataclass(frozen=True)
class Panel:
    """Decisions of n customers, customer by customer and oldest first, m rows in all.

    The rows of customer i are ``first[i] … first[i + 1]``. The last row of each may be the decision
    at hand: its outcome is not known and not read (``closed`` false).

    Attributes:
        first: (n + 1,) where each customer's rows begin.
        period: (m,) number of the decision period.
        situation: (m,) see :func:`situations`.
        coupon: (m,) index of the coupon offered, 0 is none.
        purchased: (m,) at least one purchase in the window.
        margin: (m,) margin of the window, currency.
        cost: (m,) redeemed coupon money of the window.
        propensity: (m,) chance with which the coupon was drawn; NaN where unknown.
        own: (m,) decided by winback, so by the rows before it alone: such an offer says nothing
            of the customer, and nothing hidden has to be undone (ignorable; Rubin 1976).
        closed: (m,) the window is over.
    """

    first: Ints
    period: Ints
    situation: Ints
    coupon: Ints
    purchased: Bools
    margin: Floats
    cost: Floats
    propensity: Floats
    own: Bools
    closed: Bools

    @property
    def customers(self) -> int:
        """n."""
        return len(self.first) - 1

    @property
    def customer(self) -> Ints:
        """(m,) whose row it is."""
        return np.repeat(np.arange(self.customers), np.diff(self.first))

    def part(self, customers: slice) -> "Panel":
        """The panel of customers in a row (start and stop given), without a copy."""
        start, stop = self.first[customers.start], self.first[customers.stop]
        first, *columns = (getattr(self, field.name) for field in fields(self))
        first = first[customers.start : customers.stop + 1] - start
        return Panel(first, *(column[start:stop] for column in columns))

    def take(self, customers: Ints) -> "Panel":
        """The panel of some customers, by rising index."""
        counts = np.diff(self.first)[customers]
        chosen = np.zeros(self.customers, np.bool_)
        chosen[customers] = True
        rows = chosen[self.customer]
        columns = (getattr(self, field.name) for field in fields(self) if field.name != "first")
        first = np.append(0, np.cumsum(counts)).astype(np.int64)
        return Panel(first, *(column[rows] for column in columns))

    @property
    def inverse_propensity(self) -> Floats:
        """(m,) 1 / propensity; 1 for own decisions, and where it is unknown."""
        known = np.isfinite(self.propensity) & ~self.own
        inverse = np.ones(len(self.period))
        inverse[known] = 1 / np.maximum(self.propensity[known], SMALLEST_PROPENSITY)
        return inverse

    @property
    def following(self) -> Ints:
        """(m,) the same customer's next row if it is the next period's, else −1."""
        row = np.arange(len(self.period))
        linked = np.zeros(len(row), np.bool_)
        linked[:-1] = self.period[1:] == self.period[:-1] + 1
        linked[self.first[1:][np.diff(self.first) > 0] - 1] = False
        return np.where(linked, row + 1, -1)


def situations(first: Ints, recency: Ints, purchase_days: Ints, coupons: Ints) -> Ints:
    """(m,) number of each row's situation.

    Args:
        first: (n + 1,) where each customer's rows begin.
        recency: (m,) whole periods since the last purchase.
        purchase_days: (m,) purchase days up to the row, ever.
        coupons: (m,) coupons received up to the row, ever.
    """
    of_late = _since(first, purchase_days, PURCHASE_PERIODS)
    tired = _since(first, coupons, COUPON_PERIODS)
    return number(
        np.searchsorted(RECENCY_EDGES, recency, side="right"),
        np.searchsorted(PURCHASE_EDGES, of_late, side="right"),
        np.searchsorted(COUPON_EDGES, tired, side="right"),
    )


def number(recency: Ints, purchases: Ints, coupons: Ints) -> Ints:
    """The situation's number from its three bins."""
    return (recency * PURCHASES + purchases) * COUPONS + coupons


def bins() -> tuple[Ints, Ints, Ints]:
    """(SITUATIONS,) each: recency, purchase and coupon bin."""
    recency, purchases, coupons = np.indices((RECENCIES, PURCHASES, COUPONS)).reshape(3, -1)
    return recency, purchases, coupons


def in_words(situation: int, days: int) -> str:
    """A situation for people; ``days`` is the length of a period.

    >>> in_words(0, 7)
    'last purchase within 7 days, no purchase in 84 days, no coupon in 28 days'
    """
    recency, purchases, coupons = (int(axis[situation]) for axis in bins())
    low = 0 if recency == 0 else int(RECENCY_EDGES[recency - 1]) * days
    when = f"within {days} days" if recency == 0 else f"{low} or more days ago"
    bought = _count(PURCHASE_EDGES, purchases, "purchase")
    offered = _count(COUPON_EDGES, coupons, "coupon")
    return (
        f"last purchase {when}, {bought} in {PURCHASE_PERIODS * days} days, "
        f"{offered} in {COUPON_PERIODS * days} days"
    )


def _count(edges: Ints, code: int, one: str) -> str:
    if code == 0:
        return f"no {one}"
    low = int(edges[code - 1])
    if code == len(edges):
        return f"{low} or more {one}s"
    high = int(edges[code]) - 1
    return f"{low} {one}{'s' * (low > 1)}" if low == high else f"{low}–{high} {one}s"


def _since(first: Ints, counter: Ints, periods: int) -> Ints:
    """(m,) how much a running counter grew in the last ``periods`` rows of the customer.

    Rows before the first one count in full: the counter starts with the customer.
    """
    row = np.arange(len(counter))
    begin = np.repeat(first[:-1], np.diff(first))
    earlier = np.maximum(row - periods, begin)
    before = np.where(row - periods >= begin, counter[earlier], 0)
    return counter - before
