"""Population stability and the check of forecasts: closed forms, brute force, simulations."""

import math

import numpy as np
import pytest
from scipy.stats import chi2, entropy, linregress

from winback.models.calibration import CalibrationBin, decile_table
from winback.models.drift import (
    MIN_ROWS,
    PSEUDO_COUNT,
    chance_psi,
    check_forecast,
    compare,
    population_stability_index,
)
from winback.models.errors import DataError

RUNS = 300  # simulations; 95 % of them leaves room for 15 misses


def test_psi_of_two_bins_in_closed_form():
    """(a − e)·logit a − (a − e)·logit e, with the half counts added."""
    expected, actual = 500.5 / 1001, 600.5 / 1001
    odds = math.log(actual / (1 - actual)) - math.log(expected / (1 - expected))
    found = population_stability_index([500, 500], [600, 400])
    assert found == pytest.approx((actual - expected) * odds, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_psi_is_jeffreys_divergence(seed):
    """Oracle: scipy.stats.entropy in both directions; empty bins included."""
    rng = np.random.default_rng(seed)
    reference, current = rng.integers(0, 50, 8), rng.integers(0, 50, 8)
    p, q = reference + PSEUDO_COUNT, current + PSEUDO_COUNT
    assert population_stability_index(reference, current) == pytest.approx(
        entropy(p, q) + entropy(q, p), rel=1e-12
    )


def test_psi_is_zero_for_equal_shares_and_symmetric():
    assert population_stability_index([10, 20, 30], [10, 20, 30]) == 0
    assert population_stability_index([1000, 1], [1, 1000]) == pytest.approx(
        population_stability_index([1, 1000], [1000, 1])
    )


@pytest.mark.parametrize(("bins", "customers"), [(2, 500), (5, 1000), (20, 500), (200, 500)])
def test_no_change_is_not_called_one(bins, customers):
    """Simulation: the same customers' shares, drawn twice; many bins and few rows are the trap."""
    rng = np.random.default_rng(bins)
    shares = rng.dirichlet(np.ones(bins))
    verdicts = [
        compare("x", rng.multinomial(20 * customers, shares), rng.multinomial(customers, shares))
        for _ in range(RUNS)
    ]
    assert sum(shift.verdict == "stable" for shift in verdicts) >= 0.95 * RUNS


def test_no_change_of_customers_seen_at_many_dates():
    """Simulation: the reference repeats each of 600 customers 30 times, so it tells less."""
    rng = np.random.default_rng(3)
    shares = np.full(40, 1 / 40)
    shifts = [
        compare("x", 30 * rng.multinomial(600, shares), rng.multinomial(600, shares))
        for _ in range(RUNS)
    ]
    assert sum(shift.verdict == "stable" for shift in shifts) >= 0.95 * RUNS


@pytest.mark.parametrize(("moved", "verdict"), [(0.4, "moderate"), (1.0, "shifted")])
def test_a_shift_is_found_and_its_bin_named(moved, verdict):
    """Simulation: normal values move by δ deviations, which makes δ² for narrow bins."""
    edges = [-1.0, 0.0, 1.0]
    for seed in range(30):
        rng = np.random.default_rng(seed)
        before = _histogram(rng.normal(size=20_000), edges)
        now = _histogram(rng.normal(size=8000) + moved, edges)
        shift = compare("x", before, now)
        assert shift.verdict == verdict
        change = now / 8000 - before / 20_000
        assert shift.bin == np.abs(change).argmax()
        assert shift.current_share - shift.reference_share == pytest.approx(change[shift.bin])


def test_too_few_rows_give_no_number():
    for reference, current in (([MIN_ROWS - 1, 0], [0, 9999]), ([9999, 0], [0, MIN_ROWS - 1])):
        shift = compare("x", reference, current)
        assert (shift.verdict, shift.psi, shift.bin) == ("too few rows", None, None)
    assert compare("x", [MIN_ROWS, 0], [0, MIN_ROWS]).verdict == "shifted"


def test_the_limit_of_chance_is_a_quantile_of_chi_squared():
    """Oracle: scipy.stats.chi2; the reference counts for no more rows than the current window."""
    assert chance_psi(7, 50_000, 800) == pytest.approx(2 / 800 * chi2.ppf(0.999, 6))
    assert chance_psi(7, 600, 800) == pytest.approx((1 / 600 + 1 / 800) * chi2.ppf(0.999, 6))


def test_one_bin_cannot_shift():
    assert compare("x", [1000], [1000]).verdict == "stable"


@pytest.mark.parametrize(("reference", "current"), [([1, 2], [1, 2, 3]), ([-1, 2], [1, 2])])
def test_histograms_that_do_not_match_are_refused(reference, current):
    with pytest.raises(DataError, match="expected"):
        population_stability_index(reference, current)


def test_level_and_slope_against_linregress():
    """Oracle: scipy.stats.linregress over the bin means, which are equally large here."""
    rng = np.random.default_rng(0)
    predicted = rng.gamma(2.0, 2.0, 5000)
    bins = decile_table(predicted, 0.7 * predicted + rng.normal(size=5000))
    check = check_forecast("profit", bins)
    line = linregress([one.predicted for one in bins], [one.actual for one in bins])
    assert check.slope == pytest.approx(line.slope)
    assert check.predicted == pytest.approx(predicted.mean())
    assert check.verdict == "shifted"


def test_standard_errors_are_those_of_repeated_draws():
    """Simulation: the spread of level and slope over 400 draws, noise growing with the forecast."""
    rng = np.random.default_rng(1)
    predicted = rng.gamma(2.0, 2.0, 2000)
    checks = [
        check_forecast("x", _bins(predicted, rng.poisson(predicted).astype(float)))
        for _ in range(400)
    ]
    for value, error in (("slope", "slope_error"), ("actual", "error")):
        spread = np.std([getattr(check, value) for check in checks])
        assert np.mean([getattr(check, error) for check in checks]) == pytest.approx(
            spread, rel=0.1
        )


@pytest.mark.parametrize(
    ("factor", "offset", "verdict"),
    [(1.0, 0.0, "stable"), (1.5, -2.0, "shifted"), (1.0, 2.0, "shifted"), (0.9, 0.4, "stable")],
)
def test_forecasts_are_judged_by_level_and_by_slope(factor, offset, verdict):
    """Simulation: outcomes are Poisson around factor · forecast + offset, forecasts average 4."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        predicted = rng.gamma(8.0, 0.5, 4000)
        actual = rng.poisson(np.maximum(factor * predicted + offset, 0)).astype(float)
        assert check_forecast("x", decile_table(predicted, actual)).verdict == verdict


def test_noise_is_not_called_miscalibration():
    """Simulation: redemptions are rare, so a right forecast misses by far more than a fifth."""
    rng = np.random.default_rng(2)
    stable = 0
    for _ in range(RUNS):
        predicted = rng.uniform(0, 0.04, 600)
        actual = (rng.random(600) < predicted).astype(float)
        stable += check_forecast("x", decile_table(predicted, actual)).verdict == "stable"
    assert stable >= 0.95 * RUNS


def test_few_rows_and_equal_forecasts_have_no_slope():
    few = check_forecast("x", [CalibrationBin(1, MIN_ROWS - 1, 1.0, 9.0, 0.1)])
    assert (few.verdict, few.slope, few.actual) == ("too few rows", None, 9.0)
    equal = check_forecast("x", [CalibrationBin(n, 300, 1.0, 1.0, 0.1) for n in (1, 2)])
    assert (equal.verdict, equal.slope) == ("stable", None)
    assert check_forecast("x", []).verdict == "too few rows"


def _bins(predicted, actual):
    """Deciles with the standard errors of actual − predicted."""
    order = np.argsort(predicted)
    return [
        CalibrationBin(
            number,
            len(rows),
            predicted[rows].mean(),
            actual[rows].mean(),
            (actual - predicted)[rows].std(ddof=1) / np.sqrt(len(rows)),
        )
        for number, rows in enumerate(np.array_split(order, 10), start=1)
    ]


def _histogram(values, edges):
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
