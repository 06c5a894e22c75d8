"""Logistic regression on counts with a prior and with signs that are known."""

import numpy as np

from winback.models.situations import Floats, Ints


def logistic(
    columns: Floats,
    tries: Floats,
    hits: Floats,
    start: Floats,
    mean: Floats,
    precision: Floats,
    steps: int,
    at_most_zero: Ints | None = None,
    at_least_zero: Ints | None = None,
) -> tuple[Floats, Floats]:
    """Logistic regression on counts with a Gaussian prior: coefficients (D,), curvature (D, D).

    Newton's steps, cut at 2 so that separated data do not throw it.
    """
    used = tries > 1e-9
    columns, tries, hits = columns[used], tries[used], hits[used]
    low, high = np.full(len(start), -np.inf), np.full(len(start), np.inf)
    high[[] if at_most_zero is None else at_most_zero] = 0
    low[[] if at_least_zero is None else at_least_zero] = 0
    found, curvature = np.clip(start, low, high), np.diag(precision)
    for _ in range(steps):
        chance = sigmoid(columns @ found)
        gradient = columns.T @ (hits - tries * chance) - precision * (found - mean)
        curvature = (columns * (tries * chance * (1 - chance))[:, None]).T @ columns
        curvature += np.diag(precision)
        step = np.clip(_bounded_step(curvature, gradient, low - found, high - found), -2, 2)
        found = found + step
        if np.abs(step).max() < 1e-6:
            break
    return found, curvature


def _bounded_step(curvature: Floats, gradient: Floats, low: Floats, high: Floats) -> Floats:
    """Newton's step within bounds; the rest steps knowing what its bound holds back."""
    step, held = np.zeros(len(gradient)), np.zeros(len(gradient), np.bool_)
    while True:
        free = np.flatnonzero(~held)
        rest = gradient - curvature[:, held] @ step[held]
        step[free] = np.linalg.solve(curvature[np.ix_(free, free)], rest[free])
        crossing = (step < low) | (step > high)
        if not crossing.any():
            return step
        step, held = np.clip(step, low, high), held | crossing


def log_odds(chance: Floats) -> Floats:
    """ln p / (1 − p), p kept off 0 and 1."""
    clipped = np.clip(chance, 1e-6, 1 - 1e-6)
    odds: Floats = np.log(clipped / (1 - clipped))
    return odds


def sigmoid(odds: Floats) -> Floats:
    """1 / (1 + e^−x)."""
    chance: Floats = 1 / (1 + np.exp(-np.clip(odds, -500, 500)))
    return chance
