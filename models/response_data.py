"""What the fit of the response model reads of a log: closed windows, weighed.

Offers are not drawn at random. What the situation does not explain of them is undone by weighing:
each decision counts with (share of its coupon in its situation) / propensity, a stabilised
inverse-propensity weight (Robins, Hernán & Brumback 2000), cut at MAX_WEIGHT. winback's own past
decisions went by what is on record and nothing else, so they count once each.
"""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from scipy import sparse

from winback.models.response import leaving_cell
from winback.models.situations import COUPONS, SITUATIONS, Floats, Ints, Panel

MAX_WEIGHT = 20.0  # one decision never counts for more than this many
SMALLEST_MARGIN = 0.02  # of the median: margins near 0 and refunds have no logarithm worth having


@dataclass
class ClosedWindows:
    """What the E-step reads of a panel of closed windows."""

    panel: Panel
    coupons: int
    cell: Ints  # (m,) situation · A + coupon
    leaves: Ints  # (m,)
    weight: Floats  # (m,)
    smallest_margin: float  # what a smaller margin counts as, refunds too
    log_margin: Floats  # (m,) 0 without a purchase
    redeems: Floats  # (m,) 1 where a purchase redeems
    by_customer: sparse.csr_matrix  # (n, m) sums rows of a customer

    def sums(self, values: Floats) -> Floats:
        """(n, …) sums over each customer's rows."""
        total: Floats = self.by_customer @ values
        return total

    def sums_by_coupon(self, values: Floats) -> Floats:
        """(A, n) sums over each customer's purchases with each coupon."""
        bought, coupon = self.panel.purchased, self.panel.coupon
        return np.array([self.sums(values * (bought & (coupon == a))) for a in range(self.coupons)])

    # what every iteration asks again

    @cached_property
    def log_margin_moments(self) -> Floats:
        """(3, n) purchases, and the sums of their log margins and of the squares."""
        bought = self.panel.purchased.astype(np.float64)
        return np.array(
            [self.sums(values) for values in (bought, self.log_margin, bought * self.log_margin**2)]
        )

    @cached_property
    def purchases(self) -> Floats:
        """(A, n) purchases with each coupon."""
        return self.sums_by_coupon(np.ones(len(self.cell)))

    @cached_property
    def redemptions(self) -> Floats:
        """(A, n) purchases that redeemed each coupon."""
        return self.sums_by_coupon(self.redeems)

    @cached_property
    def offers(self) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """(n, SITUATIONS) windows with an offer, and without; own decisions say nothing."""
        offered, theirs = self.panel.coupon > 0, ~self.panel.own
        shape = (self.panel.customers, SITUATIONS)
        place = (self.panel.customer, self.panel.situation)
        made, without = (
            sparse.csr_matrix((rows.astype(np.float64), place), shape=shape)
            for rows in (offered & theirs, ~offered & theirs)
        )
        return made, without


def closed_windows(panel: Panel, coupons: int) -> ClosedWindows:
    """Weigh a panel of closed rows, and take its logarithms."""
    rows = len(panel.period)
    bought = panel.purchased
    usual = panel.margin[bought & (panel.margin > 0)]
    smallest = SMALLEST_MARGIN * float(np.median(usual)) if len(usual) else 1.0
    log_margin = np.where(bought, np.log(np.maximum(panel.margin, smallest)), 0.0)
    return ClosedWindows(
        panel=panel,
        coupons=coupons,
        cell=panel.situation * coupons + panel.coupon,
        leaves=leaving_cell(panel.situation, panel.coupon),
        weight=_weights(panel, coupons),
        smallest_margin=smallest,
        log_margin=log_margin,
        redeems=(bought & (panel.cost > 0)).astype(np.float64),
        by_customer=sparse.csr_matrix(
            (np.ones(rows), np.arange(rows), panel.first), shape=(panel.customers, rows)
        ),
    )


def closed_rows(panel: Panel) -> Panel:
    """The panel's closed rows, every customer kept."""
    kept = panel.closed
    counts = np.add.reduceat(np.append(kept, False), panel.first[:-1]) if panel.customers else 0
    counts = np.where(np.diff(panel.first) > 0, counts, 0)
    first, *columns = (getattr(panel, field.name) for field in fields(Panel))
    first = np.append(0, np.cumsum(counts)).astype(np.int64)
    return Panel(first, *(column[kept] for column in columns))


def _weights(panel: Panel, coupons: int) -> Floats:
    """(m,) stabilised inverse propensities, mean 1; 1 if unknown, and for own decisions."""
    place = panel.situation // COUPONS
    places = SITUATIONS // COUPONS
    counts = np.bincount(place * coupons + panel.coupon, minlength=places * coupons)
    overall = np.bincount(panel.coupon, minlength=coupons) / max(len(panel.coupon), 1)
    share = counts.reshape(places, coupons) + 5 * overall  # a rare situation leans on the rest
    share = share / np.maximum(share.sum(axis=1, keepdims=True), 1e-12)
    known = np.isfinite(panel.propensity) & ~panel.own
    weight = np.ones(len(place))
    drawn = share[place[known], panel.coupon[known]]
    weight[known] = np.minimum(drawn * panel.inverse_propensity[known], MAX_WEIGHT)
    if known.any():
        weight[known] /= weight[known].mean()
    return weight


def effective_share(weight: Floats) -> float:
    """Kish's effective sample size as a share of the decisions, (Σw)² / (n Σw²)."""
    if not len(weight):
        return 0.0
    return float(weight.sum() ** 2 / (weight**2).sum() / len(weight))
