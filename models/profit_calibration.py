"""Corrections of the profit model learned outside the network: levels, effects, redemption.

Arrays only. Columns of a base: logit P(buy), log margin given a purchase. Columns of an effect:
the same two and logit P(redeem given a purchase).
"""

from dataclasses import dataclass, replace

import numpy as np

from winback.models.calibration import Link, fit_glm, logit, shrink, shrink_together
from winback.models.profit_data import (
    NO_COUPON,
    Booleans,
    Floats,
    Integers,
    ProfitData,
    ProfitSchema,
)

PURCHASE, MARGIN, REDEEM = range(3)
ROWS_FLOOR = 50  # fewer rows cannot tell an effect from noise
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
        has_effect: (A,) coupons with enough rows; the others are forecast like ``none``.
        centre: (A, 3) the network's own mean effect, replaced by `mean_effect`.
        varies: (3,) share of the effect's variation between customers that later dates confirm.
        mean_effect: (A, 3) shrunk mean effect of each coupon over the customers who got it.
        margin_scale: mean margin of a window with a purchase, in currency units.
        refunds: mean margin of a window without one (refunds: 0 or below).
    """

    level: Floats
    redeem_level: float
    has_effect: Booleans
    centre: Floats
    varies: Floats
    mean_effect: Floats
    margin_scale: float
    refunds: float

    def base(self, base: Floats) -> Floats:
        """(n, 2) as the network says it to (n, 2) calibrated."""
        return self.level[:, 0] + self.level[:, 1] * base

    def effect(self, effect: Floats) -> Floats:
        """(n, A, 3) as the network says it to (n, A, 3) shrunk to what the data confirm."""
        shrunk = self.mean_effect + self.varies * (effect - self.centre)
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


def coupons_with_effect(coupon_rows: Integers) -> Booleans:
    """(A,) coupons whose effect can be told from noise: enough rows with them and with ``none``."""
    has_effect: Booleans = (coupon_rows >= ROWS_FLOOR) & (coupon_rows[NO_COUPON] >= ROWS_FLOOR)
    has_effect[NO_COUPON] = False
    return has_effect


@dataclass(frozen=True)
class Outcomes:
    """Rows beside what the network says of them.

    Attributes:
        data: (n) rows.
        base: (n, 2) base, not yet calibrated.
        effect: (n, 3) effect of the row's own coupon; 0 for ``none``.
        is_late: (n,) row of the tuning dates.
    """

    data: ProfitData
    base: Floats
    effect: Floats
    is_late: Booleans

    def take(self, rows: Booleans) -> "Outcomes":
        """Rows by mask."""
        return Outcomes(
            self.data.take(rows), self.base[rows], self.effect[rows], self.is_late[rows]
        )


def calibrate(
    outcomes: Outcomes, redemption: Redemption, has_effect: Booleans, margin_scale: float
) -> Calibration:
    """Learn all corrections from rows of the training and the tuning dates.

    Levels come from the tuning dates; each coupon's mean effect from all its rows (the base has
    not seen them); how far the effect varies between customers from its rows of the tuning dates.
    """
    data = outcomes.data
    is_offered = has_effect[data.coupon]
    centre = _means_by_coupon(data.coupon, outcomes.effect, len(has_effect))
    varying = np.where(is_offered[:, None], outcomes.effect - centre[data.coupon], 0.0)
    compared = replace(outcomes, effect=varying).take(is_offered | (data.coupon == NO_COUPON))
    varies = fit_varying(compared, redemption, margin_scale)
    confirmed = replace(compared, effect=varies * compared.effect)
    nothing_bought = ~data.purchased
    return Calibration(
        level=fit_level(outcomes.take(outcomes.is_late), margin_scale),
        redeem_level=fit_redeem_level(confirmed, redemption),
        has_effect=has_effect,
        centre=centre,
        varies=varies,
        mean_effect=fit_mean_effects(confirmed, has_effect, margin_scale),
        margin_scale=margin_scale,
        refunds=float(data.margin[nothing_bought].mean()) if nothing_bought.any() else 0.0,
    )


def _means_by_coupon(coupon: Integers, effect: Floats, coupons: int) -> Floats:
    means = np.zeros((coupons, effect.shape[1]))
    for index in np.unique(coupon):
        means[index] = effect[coupon == index].mean(axis=0)
    return means


def fit_level(late: Outcomes, margin_scale: float) -> Floats:
    """(2, 2) intercept and slope per column that put the base right on later dates.

    Fitted on rows with ``none``, which no effect touches; on all rows where those are too few.
    """
    is_none = late.data.coupon == NO_COUPON
    rows = late.take(is_none) if is_none.sum() >= ROWS_FLOOR else late
    bought = rows.take(rows.data.purchased)
    purchase = _line(rows.base[:, PURCHASE], rows.data.purchased.astype(np.float64), "logit")
    margin = _line(bought.base[:, MARGIN], bought.data.margin / margin_scale, "log")
    return np.array([purchase, margin])


def _line(score: Floats, target: Floats, link: Link) -> Floats:
    """Intercept and slope; identity where the data say nothing (one row's worth of prior)."""
    change, _ = fit_glm(_with_intercept(score), target, score, link, ridge=1.0)
    change[1] += 1.0
    return change


def fit_varying(compared: Outcomes, redemption: Redemption, margin_scale: float) -> Floats:
    """(3,) share in [0, 1] of each effect's variation between customers that later dates confirm.

    Regresses each outcome of later rows with a coupon on the variation that the network claimed
    for them, and shrinks by its own noise: 0 where coupons do the same to everybody.
    """
    shares = np.zeros(3)
    late = compared.take(compared.is_late & (compared.data.coupon != NO_COUPON))
    if len(late.data) < ROWS_FLOOR:
        return shares
    for column, (rows, target, offset, link) in enumerate(
        _problems(late, redemption, margin_scale)
    ):
        design = np.column_stack([_with_intercept(offset), late.effect[rows, column]])
        found, covariance = fit_glm(design, target, offset, link, ridge=1e-3)
        shares[column] = np.clip(shrink(found[2], covariance[2, 2]), 0.0, 1.0)
    return shares


def fit_mean_effects(confirmed: Outcomes, has_effect: Booleans, margin_scale: float) -> Floats:
    """(A, 3) mean effects; shrunk to their pooled mean, and that to 0 (empirical Bayes).

    Rows with a coupon are compared to rows with ``none`` of the same period and the same forecast.
    The third column, redemption, stays 0: it is measured against the coupon's own rate.
    """
    means = np.zeros((len(has_effect), 3))
    coupons = np.flatnonzero(has_effect)
    if not len(coupons):
        return means
    problems = _problems(confirmed, None, margin_scale)[:REDEEM]
    for column, (rows, target, offset, link) in enumerate(problems):
        offset = offset + confirmed.effect[rows, column]
        is_coupon = (confirmed.data.coupon[rows][:, None] == coupons).astype(np.float64)
        design = np.column_stack([is_coupon, confirmed.is_late[rows], _with_intercept(offset)])
        found, covariance = fit_glm(design, target, offset, link, ridge=1e-3)
        own = slice(len(coupons))
        means[coupons, column] = shrink_together(found[own], np.diag(covariance)[own])
    return means


def fit_redeem_level(confirmed: Outcomes, redemption: Redemption) -> float:
    """The correction that makes expected redemptions those observed."""
    offered = confirmed.take(confirmed.data.coupon != NO_COUPON)
    rows, target, offset, link = _problems(offered, redemption, 1.0)[REDEEM]
    offset = offset + offered.effect[rows, REDEEM]
    level, _ = fit_glm(np.ones((len(target), 1)), target, offset, link, ridge=1.0)
    return float(level[0])


def _with_intercept(score: Floats) -> Floats:
    return np.column_stack([np.ones_like(score), score])


def _problems(
    outcomes: Outcomes, redemption: Redemption | None, margin_scale: float
) -> list[tuple[Booleans, Floats, Floats, Link]]:
    """Rows, target, offset and link of the three regressions; the last only with redemption."""
    data, base = outcomes.data, outcomes.base
    bought, everyone = data.purchased, np.ones(len(data), dtype=bool)
    problems: list[tuple[Booleans, Floats, Floats, Link]] = [
        (everyone, bought.astype(np.float64), base[:, PURCHASE], "logit"),
        (bought, data.margin[bought] / margin_scale, base[bought, MARGIN], "log"),
    ]
    if redemption is not None:
        rate = logit(redemption.rate)[data.coupon[bought]]
        problems.append((bought, (data.cost[bought] > 0).astype(np.float64), rate, "logit"))
    return problems
