"""BG/NBD against published figures, another library, closed forms and simulated customers."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.special import hyp2f1

from winback.models.errors import DataError, SettingsError
from winback.models.survival import (
    NO_LEVEL,
    SurvivalFit,
    expected_purchases,
    fit_survival,
    gate_is_useful,
    probability_alive,
    probability_of_purchase,
    set_level,
)

TRUTH = {"r": 0.6, "alpha": 20.0, "a": 0.8, "b": 1.45}  # times in days


def model(r, alpha, a, b):
    return SurvivalFit(r, alpha, a, b, 0.0, 0.0, 1, 1, a == 0, "", "winback")


def simulate(rng, n, ages, r, alpha, a, b):
    """(frequency, recency, age, rate, is_alive), each (n,), purchase by purchase."""
    rate, dropout = rng.gamma(r, 1 / alpha, n), rng.beta(a, b, n) if a else np.zeros(n)
    x, t_x, t, alive = np.zeros(n), np.zeros(n), np.zeros(n), np.ones(n, dtype=bool)
    going = alive.copy()
    while going.any():
        t[going] += rng.exponential(1 / rate[going])
        bought = going & (t <= ages)
        x[bought] += 1
        t_x[bought] = t[bought]
        alive[bought & (rng.random(n) < dropout)] = False
        going = bought & alive
    return x, t_x, np.broadcast_to(ages, (n,)).astype(float), rate, dropout, alive


@pytest.fixture(scope="module")
def cdnow():
    """Columns (frequency, recency, age in weeks) of the CDNOW sample, 2,357 customers."""
    package = importlib.util.find_spec("lifetimes")
    path = Path(package.origin).parent / "datasets" / "cdnow_customers_summary.csv"
    with path.open() as file:
        rows = list(csv.reader(file))[1:]
    return np.array([[float(value) for value in row[1:]] for row in rows]).T


def test_fit_matches_the_published_cdnow_estimates(cdnow):
    """Fader, Hardie & Lee (2005), table 2."""
    fit = fit_survival(*cdnow)
    published = (0.2426, 4.4135, 0.7929, 2.4258)
    assert (fit.r, fit.alpha, fit.a, fit.b) == pytest.approx(published, abs=1e-4)
    assert fit.log_likelihood == pytest.approx(-9582.426, abs=1e-3)
    assert (fit.customers, fit.triples, fit.is_degenerate, fit.reason) == (2357, 1016, False, "")


def test_fit_on_counted_triples_equals_fit_on_customers(cdnow):
    triples, count = np.unique(cdnow, axis=1, return_counts=True)
    found, expected = fit_survival(*triples, count).to_dict(), fit_survival(*cdnow).to_dict()
    assert found.pop("level") == expected.pop("level") == NO_LEVEL
    assert found == pytest.approx(expected)


def test_published_cdnow_customer_figures(cdnow):
    """Customer 1: x = 2, t_x = 30.43, T = 38.86; 39 weeks ahead (same paper, section 5)."""
    fit = fit_survival(*cdnow)
    assert expected_purchases(fit, [2], [30.43], [38.86], 39) == pytest.approx(1.226, abs=5e-4)
    assert probability_alive(fit, [2], [30.43], [38.86]) == pytest.approx(0.7266, abs=5e-5)


@pytest.mark.parametrize("seed", range(3))
def test_engines_and_customer_figures_agree_with_lifetimes_on_random_data(seed):
    from lifetimes import BetaGeoFitter

    rng = np.random.default_rng(seed)
    ages = rng.integers(30, 400, 800).astype(float)
    truth = np.exp(rng.uniform([-1, 2, -1, 0], [0.5, 4, 1, 2]))
    x, t_x, T, *_ = simulate(rng, 800, ages, *truth)
    fitter = BetaGeoFitter()
    fitter.fit(x, t_x, T)
    ours, theirs = (fit_survival(x, t_x, T, engine=engine) for engine in ("winback", "lifetimes"))
    oracle = fitter.params_[["r", "alpha", "a", "b"]].to_numpy()
    assert (ours.r, ours.alpha, ours.a, ours.b) == pytest.approx(oracle, rel=1e-2)
    assert (theirs.r, theirs.alpha, theirs.a, theirs.b) == pytest.approx(oracle, rel=1e-9)
    assert ours.log_likelihood >= theirs.log_likelihood - 1e-4
    fixed = model(*oracle)
    assert probability_alive(fixed, x, t_x, T) == pytest.approx(
        fitter.conditional_probability_alive(x, t_x, T)
    )
    assert expected_purchases(fixed, x, t_x, T, 30) == pytest.approx(
        fitter.conditional_expected_number_of_purchases_up_to_time(30, x, t_x, T), rel=1e-6
    )


def test_penalised_engines_agree(cdnow):
    ours, theirs = (
        fit_survival(*cdnow, engine=engine, penalizer=1e-2) for engine in ("winback", "lifetimes")
    )
    assert (ours.r, ours.alpha, ours.a, ours.b) == pytest.approx(
        (theirs.r, theirs.alpha, theirs.a, theirs.b), rel=1e-3
    )


def test_simulated_parameters_are_recovered_and_better_with_more_customers():
    errors = []
    for n in (500, 50_000):
        rng = np.random.default_rng(0)
        x, t_x, T, *_ = simulate(rng, n, rng.integers(50, 365, n), **TRUTH)
        fit = fit_survival(x, t_x, T)
        errors.append(max(abs(np.log(getattr(fit, name) / TRUTH[name])) for name in TRUTH))
    assert errors[0] < 0.5
    assert errors[1] < 0.05  # ten times sharper, as √100 promises


def test_conditional_figures_match_simulated_futures():
    """200,000 customers, their next 30 days drawn from each one's own rate and dropout."""
    rng, horizon = np.random.default_rng(1), 30.0
    x, t_x, T, rate, dropout, alive = simulate(rng, 200_000, 200.0, **TRUTH)
    bought, t, going = np.zeros(x.size), np.zeros(x.size), alive.copy()
    while going.any():
        t[going] += rng.exponential(1 / rate[going])
        hit = going & (t <= horizon)
        bought[hit] += 1
        going = hit & (rng.random(x.size) >= dropout)
    fit, rounded = model(**TRUTH), np.minimum(x, 6)
    for forecast, outcome in (
        (probability_alive(fit, x, t_x, T), alive),
        (probability_of_purchase(fit, x, t_x, T, horizon), bought > 0),
        (expected_purchases(fit, x, t_x, T, horizon), bought),
    ):
        for value in range(7):
            group = rounded == value
            error = 5 * (outcome - forecast)[group].std() / np.sqrt(group.sum()) + 1e-12
            assert forecast[group].mean() == pytest.approx(outcome[group].mean(), abs=error)


@pytest.mark.parametrize(
    ("a", "b", "x"),
    [(0.8, 1.45, 3), (0.8, 1.45, 60), (3, 2, 0), (1 + 1e-6, 2, 4), (0.3, 0.4, 0), (30, 70, 5)],
)
def test_expected_purchases_equal_the_closed_form(a, b, x):
    """Equation (10) with Euler's transform of ₂F₁; the quadrature knows nothing of it."""
    r, alpha, t_x, T, t = 0.6, 20.0, min(x, 1) * 150.0, 200.0, 30.0
    z, c = t / (alpha + T + t), a + b + x - 1
    inner = (1 - z) ** (a - 1) * hyp2f1(c - (r + x), a - 1, c, z)
    closed = c / (a - 1) * (1 - inner) * probability_alive(model(r, alpha, a, b), [x], [t_x], [T])
    assert expected_purchases(model(r, alpha, a, b), [x], [t_x], [T], t) == pytest.approx(
        closed, rel=1e-8
    )


def test_expected_purchases_a_year_after_the_first_day():
    """A horizon of 350 × (α + T), x = 0: equation (9) of the paper shifted by T."""
    r, alpha, a, b, z = 0.6, 0.05, 0.8, 1.45, 365 / 366.05
    inner = (1 - z) ** (a - 1) * hyp2f1(a + b - 1 - r, a - 1, a + b - 1, z)
    closed = (a + b - 1) / (a - 1) * (1 - inner)
    assert expected_purchases(model(r, alpha, a, b), [0], [0], [1], 365) == pytest.approx(
        closed, rel=1e-9
    )


def test_expected_purchases_are_continuous_at_a_equal_1():
    below, at, above = (
        expected_purchases(model(0.6, 20, a, 1.5), [0, 4], [0, 90], [120, 120], 60)
        for a in (1 - 1e-7, 1.0, 1 + 1e-7)
    )
    assert at == pytest.approx((below + above) / 2, rel=1e-10)


def test_frequent_buyers_do_not_overflow():
    x, t_x, T = np.array([400, 5000]), np.array([720, 6000]), np.array([730, 20_000])
    for figure in (probability_of_purchase, expected_purchases):
        assert np.isfinite(figure(model(**TRUTH), x, t_x, T, 365)).all()
    alive = probability_alive(model(**TRUTH), x, t_x, T)
    assert ((alive >= 0) & (alive <= 1)).all()


def test_snapshot_rows_degenerate_and_are_reported():
    """Regression: snapshot dates drawn at random and taken for purchases make everybody alive
    for ever; the fit must say so."""
    rng = np.random.default_rng(2)
    dates = [np.unique(rng.integers(0, 181, rng.poisson(7) + 1)) for _ in range(3000)]
    x, t_x, T = np.array([(d.size - 1, d[-1] - d[0], 181 - d[0]) for d in dates]).T
    for engine in ("winback", "lifetimes"):
        fit = fit_survival(x, t_x, T, engine=engine)
        assert fit.is_degenerate
        assert fit.a == 0
        assert "everybody counts as still a customer" in fit.reason
        assert (probability_alive(fit, x, t_x, T) == 1).all()


def test_without_dropout_the_fit_is_the_poisson_gamma_model():
    """Closed form: a customer's rate is Gamma(r + x, α + T), dropout or not."""
    rng = np.random.default_rng(3)
    x, t_x, T, *_ = simulate(rng, 20_000, rng.integers(50, 365, 20_000), 0.6, 20.0, 0, 1)
    fit = fit_survival(x, t_x, T)
    assert fit.is_degenerate
    assert (fit.r, fit.alpha) == pytest.approx((0.6, 20.0), rel=0.05)
    assert expected_purchases(fit, [3], [50], [100], 7) == pytest.approx(
        (fit.r + 3) / (fit.alpha + 100) * 7
    )
    assert probability_of_purchase(fit, [3], [50], [100], 7) == pytest.approx(
        1 - ((fit.alpha + 100) / (fit.alpha + 107)) ** (fit.r + 3)
    )


@pytest.mark.parametrize(
    ("x", "t_x", "T", "words"),
    [
        ([0, 0, 0], [0, 0, 0], [5, 9, 9], "second day"),
        ([0], [0], [1], "second day"),
        ([2, 0, 1], [9, 0, 4], [30, 30, 30], "only 2 customers"),
    ],
)
def test_a_handful_of_customers_gives_a_usable_fit_that_says_so(x, t_x, T, words):
    fit = fit_survival(x, t_x, T)
    assert fit.is_degenerate
    assert words in fit.reason
    for p in (probability_alive(fit, x, t_x, T), probability_of_purchase(fit, x, t_x, T, 7)):
        assert ((p > 0) & (p <= 1)).all()
    assert (expected_purchases(fit, x, t_x, T, 7) > 0).all()


def test_equal_ages_are_no_obstacle():
    x, t_x, T, *_ = simulate(np.random.default_rng(4), 20_000, 200.0, **TRUTH)
    fit = fit_survival(x, t_x, T)
    assert fit.dropout == pytest.approx(0.8 / 2.25, rel=0.1)


def test_gate_says_when_it_separates_nobody():
    assert gate_is_useful([0.99] * 98 + [0.1] * 2) == (
        False,
        "only 2.0% of the customers have more likely left than not: "
        "P(alive) separates nobody here, do not select by it",
    )
    assert gate_is_useful([0.9, 0.1])[0]


def test_json_round_trip(cdnow):
    fit = fit_survival(*cdnow)
    assert SurvivalFit.from_dict(fit.to_dict()) == fit


BAD_ROWS = [
    (([-1], [0], [9]), "must not be negative; see rows 0 (1 row)"),
    (([1] * 7, [9] * 7, [5] * 7), "must not exceed age; see rows 0, 1, 2, 3, 4, … (7 rows)"),
    (([1, 0], [2, 3], [9, 9]), "(frequency 0) recency must be 0; see rows 1 (1 row)"),
    (([2], [0], [9]), "with a repeat purchase day recency must be above 0"),
    (([1.5], [2], [9]), "frequency must be a whole number"),
    (([np.nan], [0], [9]), "missing or infinite values"),
    (([1, 2], [2], [9]), "got shapes (2,), (1,), (1,)"),
    (([], [], []), "expected customers with a purchase; got none"),
    (([0], [0], [0]), "every customer's age is 0"),
]


@pytest.mark.parametrize(("rows", "message"), BAD_ROWS)
def test_bad_histories_are_refused(rows, message):
    with pytest.raises(DataError) as caught:
        fit_survival(*rows)
    assert message in str(caught.value)


def test_bad_options_are_refused():
    with pytest.raises(DataError, match="counts of 0 or more"):
        fit_survival([0], [0], [9], [-1])
    with pytest.raises(DataError, match="horizon_days"):
        probability_of_purchase(model(**TRUTH), [0], [0], [9], float("nan"))
    with pytest.raises(SettingsError, match="winback or lifetimes"):
        fit_survival([0], [0], [9], engine="pymc")


def test_level_puts_a_chance_right_that_was_said_too_timidly(cdnow):
    """Simulation with known truth: log odds of what comes are 0.3 + 1.5 times those said."""
    fit, horizon = fit_survival(*cdnow), 2.0
    said = probability_of_purchase(fit, *cdnow, horizon)
    odds = 0.3 + 1.5 * np.log(said / (1 - said))
    bought = np.random.default_rng(0).binomial(40, 1 / (1 + np.exp(-odds)))
    found = set_level(fit, cdnow, np.full(len(said), 40), bought, horizon)
    assert found.level == pytest.approx((0.3, 1.5), abs=0.06)
    right = probability_of_purchase(found, *cdnow, horizon)
    assert right.mean() == pytest.approx(bought.mean() / 40, rel=0.01)
    assert (np.argsort(right, kind="stable") == np.argsort(said, kind="stable")).all()
    assert (right <= probability_alive(found, *cdnow)).all()
    per_buyer = expected_purchases(fit, *cdnow, horizon) / said
    assert expected_purchases(found, *cdnow, horizon) == pytest.approx(right * per_buyer)
    assert set_level(found, cdnow, np.full(len(said), 40), bought, horizon) == found


def test_level_equals_a_logistic_regression_up_to_its_prior(cdnow):
    """Independent: scikit-learn's, without penalty, on windows that outweigh the prior."""
    from sklearn.linear_model import LogisticRegression

    fit, horizon = fit_survival(*cdnow), 2.0
    said = probability_of_purchase(fit, *cdnow, horizon)
    bought = np.random.default_rng(1).random(len(said)) < 2 * said
    column = np.log(said / (1 - said))[:, None]
    other = LogisticRegression(C=np.inf, tol=1e-8).fit(column, bought)
    found = set_level(fit, cdnow, np.full(len(said), 1000), 1000 * bought, horizon)
    assert found.level == pytest.approx((other.intercept_[0], other.coef_[0, 0]), abs=1e-3)


def test_level_stays_where_windows_teach_nothing(cdnow):
    fit, n = fit_survival(*cdnow), len(cdnow[0])
    for windows, bought in ((np.zeros(n), np.zeros(n)), (np.ones(n), np.zeros(n))):
        assert set_level(fit, cdnow, windows, bought, 2.0).level == NO_LEVEL
