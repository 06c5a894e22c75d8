"""Corrections of the profit model learned outside the network: levels, effects, redemption.

Arrays only. Columns of a base: logit P(buy), log margin given a purchase. Columns of an effect:
the same two and logit P(redeem given a purchase).
"""

from dataclasses import dataclass

import numpy as np

from winback.models.calibration import Link, fit_glm, logit, shrink_effect
from winback.models.profit_data import (
    NO_COUPON,
    Booleans,
    Floats,
    Integers,
    ProfitData,
    ProfitSchema,
)

PURCHASE, MARGIN, REDEEM = range(3)
COUPON_ROWS_FLOOR = 50  # fewer rows cannot tell an effect from noise
_RATE_PRIOR = 20.0  # purchases' worth of the pooled redemption rate in each coupon's own
_COST_PRIOR = 10.0  # redemptions' worth of the pooled cost in each coupon's own


@dataclass(frozen=True)
class Redemption:
    """Per coupon (A,): P(redeemed given a purchase) and the mean cost when redeemed."""

    rate: Floats
    cost: Floats


@dataclass(frozen=True)
class Calibration:
    """Corrections learned on later dates than the weights.

    Attributes:
        level: (2, 2) intercept and slope of the base, for purchase and log margin.
        redeem_level: correction of logit P(redeem) of every coupon.
        has_effect: (A,) coupons with enough training rows; the others are forecast like ``none``.
        mean_effect: (A, 3) mean effect of each coupon over the customers who got it.
        confirmed: (3, 2) share of the mean effect, and of its variation between customers, that
            later dates confirm.
        margin_scale: mean margin of a window with a purchase, in currency units.
        refunds: mean margin of a window without one (refunds: 0 or below).
    """

    level: Floats
    redeem_level: float
    has_effect: Booleans
    mean_effect: Floats
    confirmed: Floats
    margin_scale: float
    refunds: float

    def base(self, base: Floats) -> Floats:
        """(n, 2) as the network says it to (n, 2) calibrated."""
        return self.level[:, 0] + self.level[:, 1] * base

    def effect(self, effect: Floats) -> Floats:
        """(n, A, 3) as the network says it to (n, A, 3) shrunk to what is confirmed."""
        varying = effect - self.mean_effect
        shrunk = self.confirmed[:, 0] * self.mean_effect + self.confirmed[:, 1] * varying
        return np.where(self.has_effect[:, None], shrunk, 0.0)


def estimate_redemption(data: ProfitData, schema: ProfitSchema) -> Redemption:
    """Redemption rate and cost of each coupon, shrunk to the pooled coupons.

    Before any redemption was seen the forecast errs on the dear side, so that a budget holds: one
    imagined purchase was redeemed at face value. A coupon without rows gets the pooled rate, and
    its own face value times the pooled ratio of redeemed cost to face value.
    """
    face = np.array(schema.face_values, dtype=np.float64)
    bought = data.purchased & (data.coupon != NO_COUPON)
    redeemed = bought & (data.cost > 0)
    purchases, redemptions, spent = (
        np.bincount(data.coupon[rows], weights=weight[rows], minlength=len(face))
        for rows, weight in (
            (bought, np.ones(len(data))),
            (redeemed, np.ones(len(data))),
            (redeemed, data.cost),
        )
    )
    pooled_rate = (redemptions.sum() + 1) / (purchases.sum() + 1)
    per_face = spent.sum() / max((redemptions * face).sum(), 1e-9) if redemptions.any() else 1.0
    rate = (redemptions + _RATE_PRIOR * pooled_rate) / (purchases + _RATE_PRIOR)
    cost = (spent + _COST_PRIOR * per_face * face) / (redemptions + _COST_PRIOR)
    rate[NO_COUPON] = cost[NO_COUPON] = 0.0
    return Redemption(rate, cost)


def mean_effects(coupon: Integers, effect: Floats) -> Floats:
    """(A, 3) mean of effect (n, A, 3) over the rows that got each coupon; 0 without rows.

    The mean effect on redemption is 0: it is measured against the coupon's own rate.
    """
    means = np.zeros(effect.shape[1:])
    for index in np.unique(coupon[coupon != NO_COUPON]):
        means[index, :REDEEM] = effect[coupon == index, index, :REDEEM].mean(axis=0)
    return means


def fit_redeem_level(
    data: ProfitData, effect: Floats, redemption: Redemption, share: float
) -> float:
    """The correction that makes expected redemptions of rows with a coupon those observed.

    Args:
        data: rows that got a coupon; effect: (n, A, 3) of the same rows.
        share: how much of the effect's variation is used.
    """
    bought = data.take(data.purchased)
    own = effect[data.purchased][np.arange(len(bought)), bought.coupon, REDEEM]
    offset = logit(redemption.rate)[bought.coupon] + share * own
    redeemed = (bought.cost > 0).astype(np.float64)
    level, _ = fit_glm(np.ones((len(bought), 1)), redeemed, offset, "logit", ridge=1.0)
    return float(level[0])


def fit_level(data: ProfitData, base: Floats, margin_scale: float) -> Floats:
    """(2, 2) intercept and slope per column that put the base right on later dates.

    Fitted on rows with ``none``, which no effect touches; on all rows where those are too few.
    """
    rows = data.coupon == NO_COUPON
    rows = rows if rows.sum() >= COUPON_ROWS_FLOOR else np.ones(len(data), dtype=bool)
    bought = rows & data.purchased
    purchase = _line(base[rows, PURCHASE], data.purchased[rows].astype(np.float64), "logit")
    margin = _line(base[bought, MARGIN], data.margin[bought] / margin_scale, "log")
    return np.array([purchase, margin])


def _line(score: Floats, target: Floats, link: Link) -> Floats:
    """Intercept and slope; identity where the data say nothing (one row's worth of prior)."""
    design = np.column_stack([np.ones_like(score), score])
    change, _ = fit_glm(design, target, score, link, ridge=1.0)
    change[1] += 1.0
    return change


def fit_confirmed(
    data: ProfitData,
    base: Floats,
    effect: Floats,
    mean_effect: Floats,
    redemption: Redemption,
    margin_scale: float,
) -> Floats:
    """(3, 2) shares of mean and varying effect that later dates confirm.

    Regresses each outcome of the rows with a coupon on the effect that the network claimed for
    them, then shrinks by its own noise: in a world where coupons do nothing it is near 0.

    Args:
        data: rows of later dates that got a coupon.
        base: (n, 2) calibrated base; effect: (n, A, 3) of the same rows.
        mean_effect: (A, 3) from the training dates.
    """
    confirmed = np.zeros((3, 2))
    if len(data) < COUPON_ROWS_FLOOR:
        return confirmed
    own = effect[np.arange(len(data)), data.coupon]
    mean = mean_effect[data.coupon]
    bought = data.purchased
    rate = logit(redemption.rate)[data.coupon]

    def share(column: int, rows: Booleans, target: Floats, offset: Floats, link: Link) -> None:
        first = np.ones(len(data)) if column == REDEEM else mean[:, column]
        design = np.column_stack([first, own[:, column] - mean[:, column]])
        found, covariance = fit_glm(design[rows], target[rows], offset[rows], link, ridge=1e-3)
        confirmed[column] = [shrink_effect(found[k], covariance[k, k]) for k in range(2)]

    share(PURCHASE, np.ones_like(bought), bought.astype(np.float64), base[:, PURCHASE], "logit")
    share(MARGIN, bought, data.margin / margin_scale, base[:, MARGIN], "log")
    share(REDEEM, bought, (data.cost > 0).astype(np.float64), rate, "logit")
    return confirmed
