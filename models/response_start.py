"""The first guess of the hidden classes, and what purchases are worth in each.

Expectation–maximisation ends where it began to climb, so the guess is made of what customers show:
how often they buy, for how much, and whether they redeem.
"""

from dataclasses import dataclass

import numpy as np

from winback.models.logistic import log_odds, sigmoid
from winback.models.response import (
    BASE_TERMS,
    EFFECT,
    SHARED_EFFECTS,
    leaving_design,
)
from winback.models.response_data import ClosedWindows
from winback.models.situations import Floats

PSEUDO_PURCHASES = 10.0  # purchases that the mean of all classes counts for in margin and coupons


@dataclass
class Parameters:
    """Parameters on their way; K classes."""

    share: Floats
    coefficients: Floats  # (K, D)
    curvature: Floats  # (K, D, D) of the penalised likelihood
    leaving: Floats  # (K, 3)
    offering: Floats  # (K, BASE_TERMS)
    log_margin: Floats
    spread: Floats
    redeems: Floats  # (K, A)

    @property
    def hazard(self) -> Floats:
        """(K, 2 · COUPONS)."""
        return np.clip(sigmoid(self.leaving @ leaving_design().T), 1e-5, 0.5)


def first_guess(data: ClosedWindows, face_values: Floats, classes: int, seed: int) -> Parameters:
    """Groups of customers alike in rate, margin and redemption, each with and without effects.

    Customers who differ in nothing but their response cannot be told apart beforehand: half of each
    group starts as responsive, and the E-step sorts them out.
    """
    from sklearn.cluster import KMeans  # a second that DAG parsing saves

    random = np.random.default_rng(seed)
    bought = data.panel.purchased.astype(np.float64)
    length = np.maximum(np.diff(data.panel.first), 1)
    purchases = data.sums(bought)
    rate = (purchases + 0.03) / (length + 0.06)
    overall = float(data.log_margin.sum() / bought.sum())
    margin = (data.sums(data.log_margin) + 2 * overall) / (purchases + 2)
    offered = data.sums(bought * (data.panel.coupon > 0))
    redeems = (data.sums(data.redeems) + 1) / (offered + 2)
    looks = np.column_stack([log_odds(rate), margin, 0.5 * redeems])
    looks /= np.maximum(looks.std(axis=0), 1e-9) * np.array([1.0, 1.0, 2.0])
    groups = min(max(1, classes // 2), len(length))
    group = KMeans(groups, n_init=4, random_state=seed).fit_predict(looks) if groups > 1 else 0
    group = np.broadcast_to(group, length.shape)
    member = group + groups * random.integers(0, 2, len(length)) if classes > 1 else group
    member = np.minimum(member, classes - 1)
    posterior = np.full((len(length), classes), 0.1 / classes)
    posterior[np.arange(len(length)), member] += 0.9
    terms = BASE_TERMS + SHARED_EFFECTS + len(face_values) - 1
    coefficients = np.zeros((classes, terms))
    coefficients[:, 0] = log_odds(posterior.T @ purchases / (posterior.T @ length))
    if classes > 1:
        coefficients[:, EFFECT] = np.where(np.arange(classes) < groups, -0.2, 1.2)
    offer_share = float((data.panel.coupon > 0).mean())
    offering = np.zeros((classes, BASE_TERMS))
    offering[:, 0] = log_odds(np.array(offer_share))
    leaving = np.tile([log_odds(np.array(0.01)), 0.0, 0.0], (classes, 1))
    log_margin, spread, redeem = amounts(data, posterior)
    curvature = np.tile(np.eye(terms), (classes, 1, 1))
    share = posterior.mean(axis=0)
    return Parameters(share, coefficients, curvature, leaving, offering, log_margin, spread, redeem)


def amounts(data: ClosedWindows, posterior: Floats) -> tuple[Floats, Floats, Floats]:
    """Per class: mean and spread of log margins, and (K, A) shares of purchases that redeem."""
    moments = data.log_margin_moments
    n, total, square = moments @ posterior
    overall = float(moments[1].sum() / moments[0].sum())
    mean = (total + PSEUDO_PURCHASES * overall) / (n + PSEUDO_PURCHASES)
    variance = (square - 2 * mean * total + mean**2 * n + 0.5) / (n + 2)
    redeems = mean_per_coupon(data, posterior, data.redemptions)
    return mean, np.sqrt(np.maximum(variance, 0.01)), np.clip(redeems, 1e-4, 1 - 1e-4)


def mean_per_coupon(
    data: ClosedWindows, posterior: Floats, sums: Floats, expected: Floats | None = None
) -> Floats:
    """(K, A) mean per purchase of what ``sums`` (A, n) adds up, drawn toward that of all classes.

    That in turn is drawn toward ``expected`` (A,) if given, so an unknown coupon has a value too.
    """
    all_of_them, count = sums.sum(axis=1), data.purchases.sum(axis=1)
    if expected is not None:
        all_of_them, count = all_of_them + PSEUDO_PURCHASES * expected, count + PSEUDO_PURCHASES
    pooled = all_of_them / np.maximum(count, 1.0)
    n, total = posterior.T @ data.purchases.T, posterior.T @ sums.T
    mean: Floats = (total + PSEUDO_PURCHASES * pooled) / (n + PSEUDO_PURCHASES)
    return mean
