"""Do forecasts come true? Decile tables, and the regression that puts a forecast right.

The regression is a generalised linear model with the canonical link, whose score equations make
the mean forecast equal the mean outcome (McCullagh & Nelder 1989, ch. 2), and with the robust
covariance of quasi-likelihood (White 1982), since margins are no Poisson counts.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Link = Literal["logit", "log"]


@dataclass(frozen=True)
class CalibrationBin:
    """One row of a decile table: the forecast's mean beside the outcome's."""

    bin: int
    rows: int
    predicted: float
    actual: float
    standard_error: float  # of `actual`


def decile_table(predicted: Floats, actual: Floats, bins: int = 10) -> list[CalibrationBin]:
    """Sort rows by forecast into equally large bins, lowest first; ties stay in row order.

    Args:
        predicted: (n,) forecasts.
        actual: (n,) outcomes in the same unit.
        bins: number of bins; fewer rows than bins give one row per bin.
    """
    order = np.argsort(predicted, kind="stable")
    groups = [rows for rows in np.array_split(order, bins) if len(rows)]
    return [
        CalibrationBin(
            bin=number,
            rows=len(rows),
            predicted=float(predicted[rows].mean()),
            actual=float(actual[rows].mean()),
            standard_error=float(actual[rows].std() / np.sqrt(len(rows))),
        )
        for number, rows in enumerate(groups, start=1)
    ]


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e^−x) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def logit(p: Floats, edge: float = 1e-4) -> Floats:
    """log(p / (1 − p)), with p kept `edge` away from 0 and 1."""
    p = np.clip(p, edge, 1 - edge)
    return np.log(p) - np.log1p(-p)


def fit_glm(
    design: Floats,
    target: Floats,
    offset: Floats,
    link: Link,
    *,
    ridge: float = 1e-6,
    iterations: int = 25,
) -> tuple[Floats, Floats]:
    """Fit E[target] = link⁻¹(offset + design·coefficients) by Newton's method.

    Args:
        design: (n, k).
        target: (n,); 0/1 for ``logit``, any sign with a positive mean for ``log``.
        offset: (n,) on the scale of the link.
        link: ``logit`` (logistic) or ``log`` (quasi-Poisson).
        ridge: keeps columns without information at 0.
        iterations: Newton steps at most; it converges in fewer than 10.

    Returns:
        (k,) coefficients and (k, k) robust covariance.
    """
    coefficients = np.zeros(design.shape[1])
    penalty = ridge * np.eye(design.shape[1])
    for _ in range(iterations):
        mean, slope = _inverse_link(offset + design @ coefficients, link)
        bread = np.linalg.inv(design.T @ (design * slope[:, None]) + penalty)
        step = bread @ (design.T @ (target - mean) - penalty @ coefficients)
        step /= max(1.0, float(np.abs(step).max()))  # far starts overshoot under the log link
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-8:
            break
    scores = design * (target - mean)[:, None]
    return coefficients, bread @ (scores.T @ scores) @ bread


def _inverse_link(eta: Floats, link: Link) -> tuple[Floats, Floats]:
    """The mean and its derivative by the linear predictor."""
    if link == "log":
        mean = np.exp(np.minimum(eta, 30.0))
        return mean, mean
    mean = sigmoid(eta)
    return mean, mean * (1 - mean)


def shrink(estimate: Floats | float, variance: Floats | float) -> Floats:
    """Positive-part shrinkage to 0 (James & Stein 1961), twice as strict: 0 below √2 errors.

    √2 standard errors is where Akaike's criterion starts to keep a coefficient; a policy takes the
    best of several coupons, so that noise let through here would be handed out as money.
    """
    estimate = np.asarray(estimate, dtype=np.float64)
    noise = 2.0 * np.asarray(variance) / np.maximum(estimate**2, 1e-300)
    return estimate * np.maximum(0.0, 1.0 - noise)


def shrink_together(estimates: Floats, variances: Floats) -> Floats:
    """Shrink estimates (k,) to their pooled mean, and the pooled mean to 0."""
    weights = 1.0 / np.maximum(variances, 1e-12)
    pooled = float(weights @ estimates / weights.sum())
    return shrink(pooled, 1.0 / weights.sum()) + shrink(estimates - pooled, variances)
