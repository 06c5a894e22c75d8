"""Has the world moved since the models learned? Histograms compared, and forecasts with outcomes.

The population stability index (Lewis 1994; Siddiqi 2006) sums (a − e)·ln(a / e) over the bins of
two histograms: Jeffreys' divergence. Under no change it is distributed as (1/n + 1/m)·χ² with one
degree of freedom less than bins (Yurdakul & Naranjo 2020), so that many bins and few rows look
like a shift; what chance alone gives once in a thousand comparisons is not called one.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from winback.models.calibration import CalibrationBin
from winback.models.errors import DataError

Floats = NDArray[np.float64]
Verdict = Literal["stable", "moderate", "shifted", "too few rows"]
MODERATE, SHIFTED = 0.10, 0.25  # the customary limits: look at it; the models need new data
MIN_ROWS = 500  # below, tenths of the customers hold fewer than 50
CHANCE = 0.999  # a dozen figures a night: about one false alarm in three months
PSEUDO_COUNT = 0.5  # Jeffreys' prior: a bin that is empty in one window stays finite
TOLERANCE = 0.2  # share by which a slope or a total may miss, as the targets of a good forecast
ERRORS = 3.0  # standard errors that it must miss by as well: chance alone in 3 of 1,000


@dataclass(frozen=True)
class Shift:
    """One quantity now against the reference.

    Attributes:
        psi: population stability index; None with too few rows.
        verdict: ``moderate`` is worth a look, ``shifted`` beyond limit and chance.
        bin: number of the bin whose share changed most; None with too few rows.
        reference_share, current_share: of that bin, in [0, 1].
    """

    name: str
    reference_rows: int
    current_rows: int
    psi: float | None = None
    verdict: Verdict = "too few rows"
    bin: int | None = None
    reference_share: float | None = None
    current_share: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ForecastCheck:
    """Forecasts whose outcome is known: level and slope, with standard errors.

    Attributes:
        predicted, actual: means per row, in the forecast's unit; ``error`` is that of
            their difference.
        slope: of the outcome on the forecast over the bins, 1 if differences are forecast as
            large as they are; None where all forecasts are equal or rows too few.
        verdict: ``shifted`` where level or slope is wrong by more than tolerance and chance.
    """

    name: str
    rows: int
    predicted: float
    actual: float
    error: float
    slope: float | None = None
    slope_error: float | None = None
    verdict: Verdict = "too few rows"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def population_stability_index(reference: Sequence[int], current: Sequence[int]) -> float:
    """PSI of two histograms over the same bins, each count plus one half.

    >>> round(population_stability_index([500, 500], [600, 400]), 4)
    0.0404

    Args:
        reference: (B,) rows per bin, of the training window.
        current: (B,) rows per bin, now.

    Raises:
        DataError: the bins differ in number, or a count is negative.
    """
    expected, actual = _shares(reference), _shares(current)
    if expected.shape != actual.shape:
        raise DataError(
            f"expected histograms over the same bins, came {len(expected)} and {len(actual)}"
        )
    return float(np.sum((actual - expected) * np.log(actual / expected)))


def chance_psi(bins: int, reference_rows: int, current_rows: int) -> float:
    """The PSI that two windows of one distribution exceed once in a thousand comparisons.

    The reference holds a customer at many dates, which tells less than as many customers would: it
    counts for no more rows than the current window.
    """
    from scipy.special import gammaincinv  # late: loading SciPy is slow, and a DAG file loads this

    if bins < 2:
        return 0.0
    independent = min(reference_rows, current_rows)
    quantile = 2.0 * float(gammaincinv((bins - 1) / 2, CHANCE))  # of χ² with bins − 1
    return (1 / independent + 1 / current_rows) * quantile


def compare(
    name: str, reference: Sequence[int], current: Sequence[int], *, min_rows: int = MIN_ROWS
) -> Shift:
    """Judge one quantity by its two histograms, (B,) rows per bin each."""
    rows = (int(sum(reference)), int(sum(current)))
    if min(rows) < min_rows:
        return Shift(name, *rows)
    psi = population_stability_index(reference, current)
    before, now = np.asarray(reference) / rows[0], np.asarray(current) / rows[1]
    most = int(np.abs(now - before).argmax())
    limit = chance_psi(int(((before > 0) | (now > 0)).sum()), *rows)
    return Shift(
        name, *rows, psi, _verdict(psi, limit), most, float(before[most]), float(now[most])
    )


def check_forecast(
    name: str, bins: Sequence[CalibrationBin], *, min_rows: int = MIN_ROWS
) -> ForecastCheck:
    """Judge forecasts by bins of equal forecasts, such as deciles.

    The slope is least squares over the bins, weighted by rows; its standard error takes every bin's
    own. Give the standard errors of actual − predicted where they are known: those of ``actual``
    alone hold the spread of the forecasts within a bin as well, and so are a little too careful.
    """
    rows = np.array([one.rows for one in bins], np.float64)
    total = int(rows.sum())
    if total == 0:
        return ForecastCheck(name, 0, 0.0, 0.0, 0.0)
    x, y, error = (
        np.array([getattr(one, field) for one in bins])
        for field in ("predicted", "actual", "standard_error")
    )
    weight = rows / total
    mean, came = float(weight @ x), float(weight @ y)
    level_error = float(np.sqrt((weight**2) @ error**2))
    figures = (name, total, mean, came, level_error)
    if total < min_rows:
        return ForecastCheck(*figures)
    slope, slope_error = _slope(weight, x - mean, y, error)
    is_wrong = _misses(came - mean, abs(mean), level_error) or (
        slope is not None and slope_error is not None and _misses(slope - 1.0, 1.0, slope_error)
    )
    return ForecastCheck(*figures, slope, slope_error, "shifted" if is_wrong else "stable")


def _shares(counts: Sequence[int]) -> Floats:
    rows = np.asarray(counts, np.float64)
    if rows.ndim != 1 or not (rows >= 0).all():
        raise DataError(f"expected rows per bin, 0 or more; came {list(counts)[:5]}")
    filled: Floats = (rows + PSEUDO_COUNT) / (rows.sum() + PSEUDO_COUNT * len(rows))
    return filled


def _verdict(psi: float, limit: float) -> Verdict:
    if psi <= max(MODERATE, limit):
        return "stable"
    return "shifted" if psi > SHIFTED else "moderate"


def _slope(
    weight: Floats, x: Floats, y: Floats, error: Floats
) -> tuple[float | None, float | None]:
    spread = float(weight @ x**2)
    if math.isclose(spread, 0.0, abs_tol=1e-18):
        return None, None
    slope = float(weight @ (x * y)) / spread
    return slope, float(np.sqrt((weight * x) ** 2 @ error**2)) / spread


def _misses(difference: float, size: float, error: float) -> bool:
    return abs(difference) > max(TOLERANCE * size, ERRORS * error)
