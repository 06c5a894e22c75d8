"""Purchase histories: what the BG/NBD model knows of a customer, checked and counted.

frequency (x) = repeat purchase days, recency (t_x) = days from the first to the last purchase
day, age (T) = days from the first purchase day to the decision date.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from winback.models.errors import DataError, first_rows

Array = npt.NDArray[np.float64]

LONGEST_AGE = 1.0  # scaled time, as in lifetimes: a penalizer then means the same in both engines


@dataclass(frozen=True)
class PurchaseHistories:
    """Unique triples with counts, time scaled; logs and Γ are evaluated on distinct values only."""

    x: Array
    t_x: Array
    T: Array
    weight: Array
    scale: float  # scaled time = days × scale

    @classmethod
    def from_rows(
        cls,
        frequency: npt.ArrayLike,
        recency: npt.ArrayLike,
        age: npt.ArrayLike,
        weights: npt.ArrayLike | None,
    ) -> "PurchaseHistories":
        x, t_x, T = checked_histories(frequency, recency, age)
        weight = _checked_weights(weights, x.size)
        if weight.sum() == 0:
            raise DataError("survival fit: expected customers with a purchase; got none")
        if T.max() == 0:
            raise DataError("survival fit: expected ages above 0 days; every customer's age is 0")
        scale = LONGEST_AGE / float(T.max())
        if _rises(x, t_x, T):  # as the warehouse gives them: grouped and in order
            return cls(x, t_x * scale, T * scale, weight.astype(np.float64), scale)
        rows, inverse = np.unique(np.stack([x, t_x, T]), axis=1, return_inverse=True)
        count = np.bincount(inverse.ravel(), weight, minlength=rows.shape[1])
        return cls(rows[0], rows[1] * scale, rows[2] * scale, count.astype(np.float64), scale)

    @property
    def customers(self) -> int:
        return round(float(self.weight.sum()))

    @property
    def repeaters(self) -> float:
        return float(self.weight[self.x > 0].sum())

    @property
    def repeat_purchases(self) -> float:
        return float(self.weight @ self.x)


def _checked_weights(weights: npt.ArrayLike | None, size: int) -> Array:
    weight = np.ones(size) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != (size,):
        raise DataError(f"weights: expected {size} numbers, one per row; got shape {weight.shape}")
    _refuse(~(np.isfinite(weight) & (weight >= 0)), "weights must be counts of 0 or more")
    return weight


def checked_histories(
    frequency: npt.ArrayLike, recency: npt.ArrayLike, age: npt.ArrayLike
) -> tuple[Array, Array, Array]:
    """The three columns as float arrays of one length, refused where they are no history."""
    x, t_x, T = (np.atleast_1d(np.asarray(c, dtype=np.float64)) for c in (frequency, recency, age))
    if not x.shape == t_x.shape == T.shape or x.ndim != 1:
        raise DataError(
            "frequency, recency and age: expected one value per customer in each; "
            f"got shapes {x.shape}, {t_x.shape}, {T.shape}"
        )
    _refuse(~(np.isfinite(x) & np.isfinite(t_x) & np.isfinite(T)), "missing or infinite values")
    _refuse((x < 0) | (t_x < 0) | (T < 0), "frequency, recency and age must not be negative")
    _refuse(x != np.floor(x), "frequency must be a whole number of repeat purchase days")
    _refuse(t_x > T, "recency must not exceed age")
    _refuse((x == 0) & (t_x > 0), "without a repeat purchase (frequency 0) recency must be 0")
    _refuse((x > 0) & (t_x == 0), "with a repeat purchase day recency must be above 0")
    return x, t_x, T


def _refuse(bad: npt.NDArray[np.bool_], rule: str) -> None:
    if bad.any():
        rows: list[int] = np.flatnonzero(bad).tolist()
        raise DataError(f"purchase histories: {rule}; see rows {first_rows(rows)}")


def _rises(x: Array, t_x: Array, T: Array) -> bool:
    """Whether triples are distinct and in order already, by x, then t_x, then T."""
    by_x, by_t_x, by_T = np.diff(x), np.diff(t_x), np.diff(T)
    rises = (by_x > 0) | ((by_x == 0) & ((by_t_x > 0) | ((by_t_x == 0) & (by_T > 0))))
    return bool(rises.all())
