"""The BG/NBD log-likelihood and its gradient, evaluated on distinct values where it can be.

Source: Fader & Hardie, note 004 (A1 to A4). ln Γ and ψ are needed per distinct x, logarithms per
distinct time, what knows no t_x per distinct (x, T); only the mixture of A3 and A4 is per triple.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import digamma, gammaln

from winback.models.histories import PurchaseHistories

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

COARSE_STEPS = 24  # of the oldest age: enough for a start within a few steps of the optimum


@dataclass(frozen=True)
class Likelihood:
    """What evaluations share; build once per fit with :meth:`of`.

    Attributes:
        x: (X,) 0 … largest frequency; ``x_share`` customers' shares.
        age, recency: distinct T and t_x.
        pair_x, pair_age, pair_share: distinct (x, T), as places in ``x`` and ``age``.
        row_x, row_age, row_recency, row_share: the triples of repeat buyers, likewise.
    """

    x: Array
    x_share: Array
    age: Array
    recency: Array
    pair_x: Index
    pair_age: Index
    pair_share: Array
    row_x: Index
    row_age: Index
    row_recency: Index
    row_share: Array

    @classmethod
    def of(cls, data: PurchaseHistories) -> "Likelihood":
        share, x = data.weight / data.weight.sum(), data.x.astype(np.int64)
        age, row_age = np.unique(data.T, return_inverse=True)
        recency, row_recency = np.unique(data.t_x, return_inverse=True)
        size = int(x.max(initial=0)) + 1
        pairs = _sums(x * len(age) + row_age, share, size * len(age))
        found = np.flatnonzero(pairs)
        came_back = np.flatnonzero(x > 0)
        return cls(
            x=np.arange(size, dtype=np.float64),
            x_share=_sums(x, share, size),
            age=age,
            recency=recency,
            pair_x=found // len(age),
            pair_age=found % len(age),
            pair_share=pairs[found],
            row_x=x[came_back],
            row_age=row_age[came_back],
            row_recency=row_recency[came_back],
            row_share=share[came_back],
        )

    def __call__(self, log_parameters: Array) -> tuple[float, Array]:
        """Mean log L and its gradient in the log-parameters.

        Two parameters (r, α) are the model without dropout, four (r, α, a, b) the full one.
        """
        r, alpha = np.exp(log_parameters[:2])
        value, d_r, d_alpha = self._without_dropout(r, alpha)
        if log_parameters.size == 2:
            return value, np.array([r * d_r, alpha * d_alpha])
        a, b = np.exp(log_parameters[2:])
        last = b + np.maximum(self.x, 1) - 1
        soft, gone, d_r_gone, d_alpha_gone = self._mixture(r, alpha, np.log(a) - np.log(last))
        fall = self._rise(digamma, a + b)
        rise = self._rise(gammaln, b) - self._rise(gammaln, a + b)
        value += soft + float(self.x_share @ rise)
        d_a = gone.sum() - a * (self.x_share @ fall)
        d_b = b * (self.x_share @ (self._rise(digamma, b) - fall) - (gone / last).sum())
        gradient = [r * (d_r + d_r_gone), alpha * (d_alpha - d_alpha_gone), d_a, d_b]
        return value, np.array(gradient)

    def _without_dropout(self, r: float, alpha: float) -> tuple[float, float, float]:
        """Σ A1 + A3 and its derivatives by r and α."""
        weight = self.pair_share * np.log(alpha + self.age)[self.pair_age]
        left = self.pair_share / (alpha + self.age)[self.pair_age]
        purchases = r + self.x[self.pair_x]
        value = self.x_share @ self._rise(gammaln, r) + r * np.log(alpha)
        value -= (purchases * weight).sum()
        d_r = self.x_share @ self._rise(digamma, r) + np.log(alpha) - weight.sum()
        return float(value), float(d_r), float(r / alpha - (purchases * left).sum())

    def _mixture(self, r: float, alpha: float, level: Array) -> tuple[float, Array, float, float]:
        """Σ ln(1 + e^(A4 − A3)); Σ w4 by x; what w4 adds to the derivatives by r and α.

        In place, one buffer per quantity: this is all of the fit's time.
        """
        apart = np.log(alpha + self.age)[self.row_age]
        apart -= np.log(alpha + self.recency)[self.row_recency]
        purchases = (r + self.x)[self.row_x]
        odds = purchases * apart
        odds += level[self.row_x]
        small = np.exp(-np.abs(odds))
        soft = np.log1p(small)
        soft += np.maximum(odds, 0.0)
        gone = np.where(odds >= 0, 1.0, small)
        small += 1.0
        gone /= small
        gone *= self.row_share
        closer = (1 / (alpha + self.recency))[self.row_recency]
        closer -= (1 / (alpha + self.age))[self.row_age]
        closer *= purchases
        return (
            _dot(self.row_share, soft),
            _sums(self.row_x, gone, len(self.x)),
            _dot(gone, apart),
            _dot(gone, closer),
        )

    def _rise(self, function: Any, start: float) -> Array:
        """function(start + x) − function(start), (X,)."""
        table = function(start + self.x)
        return np.asarray(table - table[0])


def coarse(data: PurchaseHistories) -> PurchaseHistories:
    """The same customers, times rounded to COARSE_STEPS: where to start, not what to believe."""
    step = data.T.max() / COARSE_STEPS
    T = np.maximum(np.round(data.T / step), 1.0)
    t_x = np.where(data.x > 0, np.clip(np.round(data.t_x / step), 0.5, T), 0.0)
    code = (data.x * (2 * COARSE_STEPS + 2) + 2 * t_x) * (COARSE_STEPS + 2) + T
    _, first, row = np.unique(code, return_index=True, return_inverse=True)
    count = _sums(row, data.weight, len(first))
    return PurchaseHistories(data.x[first], t_x[first] * step, T[first] * step, count, data.scale)


def _dot(a: Array, b: Array) -> float:
    """Σ a·b without BLAS, whose threads stall on shared cores."""
    return float(np.einsum("i,i", a, b))


def _sums(place: Index, values: Array, size: int) -> Array:
    """(size,) Σ values by place."""
    return np.asarray(np.bincount(place, values, minlength=size), dtype=np.float64)
