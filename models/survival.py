"""Will a customer buy again? The BG/NBD model of repeat purchase days.

Source of the formulas: Fader, Hardie & Lee (2005), "Counting your customers" the easy way: an
alternative to the Pareto/NBD model; Fader & Hardie, note 004 (likelihood) and note 021 (P(alive)).

Symbols, per customer: x = repeat purchase days (count), t_x = days from the first to the last
purchase day, T = days from the first purchase day to the decision date. A customer buys as a
Poisson process with rate λ ~ Gamma(r, α) and drops out after a purchase with probability
p ~ Beta(a, b). a = 0 is the model without dropout: everybody stays a customer.
"""

from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from io import StringIO
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh_tridiagonal
from scipy.optimize import minimize
from scipy.special import expit
from threadpoolctl import threadpool_limits

from winback.models.errors import DataError, SettingsError
from winback.models.histories import PurchaseHistories, checked_histories
from winback.models.logistic import log_odds, logistic, sigmoid
from winback.models.survival_likelihood import Likelihood, coarse

Array = npt.NDArray[np.float64]

ENGINES = ("winback", "lifetimes")
PARAMETERS = ("r", "alpha", "a", "b")
MIN_REPEATERS = 10  # fewer repeat buyers than this cannot carry four parameters
MIN_GAIN = 3.0  # log-likelihood; two more parameters gain 3.0 by chance in 5% of samples (χ², 2 df)
EDGE = 1e-5  # a mean dropout nearer than this to 0 or 1: one purchase in 100,000 is no dropout
SMALLEST_SHAPES = 1e-3  # a + b below it: every customer's dropout is 0 or 1, a limit without use
LOG_BOUND = 9.0  # |log parameter| in scaled time; e⁹ is "infinite" for a Gamma or Beta shape
USEFUL_SHARE = 0.05  # of customers probably gone: fewer would hardly change a campaign
NODES_PER_ROOT = 15  # times √(horizon / (α+T)): Gauss-Jacobi errors then stay below 1e-9
FEWEST_NODES, MOST_NODES = 24, 1000
TO_ROUNDING, NEARLY = 1e-14, 1e-9  # relative gain that ends a search: refits agree; a start
NO_LEVEL = (0.0, 1.0)  # chances as the model says them
LEVEL_PERIODS = 8  # latest windows that the level is set on
LEVEL_PRECISION = np.array([1.0, 10.0])  # a level off by 1, a slope off by 0.3: both are usual
STARTS = ((0.1, 1.0), (0.5, 3.0), (1.0, 1.0), (3.0, 10.0))  # (a, b): rare, usual, frequent, even


@dataclass(frozen=True)
class SurvivalFit:
    """A fitted BG/NBD model; times in the unit of the data (days).

    A degenerate fit (``is_degenerate``) carries the parameters of the model without dropout:
    a = 0, P(alive) = 1. ``log_likelihood`` is always the best one found *with* dropout, so that
    ``gain`` shows what dropout explains. ``reason`` says in words what is worth knowing. ``level``
    is what the log odds of a purchase are multiplied by and moved to, see :func:`set_level`.
    """

    r: float
    alpha: float
    a: float
    b: float
    log_likelihood: float
    log_likelihood_without_dropout: float
    customers: int
    triples: int
    is_degenerate: bool
    reason: str
    engine: str
    level: tuple[float, float] = NO_LEVEL

    @property
    def gain(self) -> float:
        """Log-likelihood that dropout explains; below MIN_GAIN it is not identified."""
        return self.log_likelihood - self.log_likelihood_without_dropout

    @property
    def dropout(self) -> float:
        """Mean probability of dropping out after a purchase, a/(a+b)."""
        return self.a / (self.a + self.b)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SurvivalFit":
        """The inverse of to_dict."""
        return cls(**{**values, "level": tuple(values.get("level", NO_LEVEL))})


def fit_survival(
    frequency: npt.ArrayLike,
    recency: npt.ArrayLike,
    age: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    engine: str = "winback",
    penalizer: float = 0.0,
) -> SurvivalFit:
    """Maximum likelihood on (frequency, recency, age) triples, each (n,).

    ``weights`` counts the customers of a triple (default 1). ``penalizer`` × Σ parameters² (in
    scaled time) is added to the mean negative log-likelihood. Raises DataError for rows that are
    no purchase history, SettingsError for an unknown engine.
    """
    if engine not in ENGINES:
        raise SettingsError(f"survival engine: expected {' or '.join(ENGINES)}; got {engine!r}")
    data = PurchaseHistories.from_rows(frequency, recency, age, weights)
    if data.repeat_purchases == 0:
        return _fit_without_repeats(data, engine)
    likelihood = Likelihood.of(data)
    with threadpool_limits(1, "blas"):  # on four parameters, threads only wait for each other
        rate = _fit_without_dropout(data, likelihood, penalizer)
        if engine == "lifetimes":
            full = _fit_lifetimes(data, penalizer)
        else:
            full = _fit_full(data, likelihood, rate, penalizer)
    return _judge(data, likelihood, rate, full, engine)


def probability_alive(
    fit: SurvivalFit, frequency: npt.ArrayLike, recency: npt.ArrayLike, age: npt.ArrayLike
) -> Array:
    """P(still a customer at T | x, t_x, T), (n,); 1 for x = 0: only a repeat buyer drops out."""
    x, t_x, T = checked_histories(frequency, recency, age)
    if fit.a == 0:
        return np.ones_like(T)
    log_odds_gone = np.log(fit.a / (fit.b + np.maximum(x, 1) - 1)) + (fit.r + x) * np.log1p(
        (T - t_x) / (fit.alpha + t_x)
    )
    return np.where(x > 0, expit(-log_odds_gone), 1.0)


def probability_of_purchase(
    fit: SurvivalFit,
    frequency: npt.ArrayLike,
    recency: npt.ArrayLike,
    age: npt.ArrayLike,
    horizon_days: float,
) -> Array:
    """P(at least one purchase in (T, T + horizon]), (n,).

    P(alive)·[1 − ((α+T)/(α+T+h))^(r+x)]: an alive customer's rate is Gamma(r + x, α + T). Then the
    fit's level, and never above P(alive).
    """
    x, _, T = checked_histories(frequency, recency, age)
    alive = probability_alive(fit, frequency, recency, age)
    log_none = -(fit.r + x) * np.log1p(_horizon(horizon_days) / (fit.alpha + T))
    said = -np.expm1(log_none) * alive
    if fit.level == NO_LEVEL:
        return said
    start, slope = fit.level
    return np.minimum(sigmoid(start + slope * log_odds(said)), alive)


def set_level(
    fit: SurvivalFit,
    histories: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike],
    windows: npt.ArrayLike,
    bought: npt.ArrayLike,
    horizon_days: float,
) -> SurvivalFit:
    """Set P(purchase) right on past windows; a level set before is replaced.

    BG/NBD knows neither seasons nor that somebody leaves between purchases, so its chances can be
    too bold or too timid; their order is kept. A logistic regression of what came on the log odds
    that were said (Cox 1958), drawn toward what was said where windows are few.

    Args:
        fit: the model.
        histories: frequency, recency and age at the beginning of the windows, (n,) each.
        windows: (n,) how many windows began with that history.
        bought: (n,) in how many of them there was a purchase.
        horizon_days: length of a window.
    """
    fit = replace(fit, level=NO_LEVEL)
    count, hits = (np.asarray(values, dtype=np.float64) for values in (windows, bought))
    if not 0 < hits.sum() < count.sum():
        return fit
    said = log_odds(probability_of_purchase(fit, *histories, horizon_days))
    columns = np.column_stack([np.ones_like(said), said])
    as_said, order_kept = np.array([0.0, 1.0]), np.array([1])
    found, _ = logistic(
        columns, count, hits, as_said, as_said, LEVEL_PRECISION, 30, at_least_zero=order_kept
    )
    return replace(fit, level=(float(found[0]), float(found[1])))


def expected_purchases(
    fit: SurvivalFit,
    frequency: npt.ArrayLike,
    recency: npt.ArrayLike,
    age: npt.ArrayLike,
    horizon_days: float,
) -> Array:
    """E[purchases in (T, T + horizon] | x, t_x, T], (n,).

    Given alive, λ ~ Gamma(r+x, α+T) and p ~ Beta(a, b+x), and a customer makes
    (1 − e^(−λph))/p purchases on average; the λ integral is closed and the p integral is
    Gauss-Jacobi quadrature. It equals equation (10) of the paper without ₂F₁: nothing overflows
    for frequent buyers, and a = 1 or a + b < 1 are no special cases. The fit's level moves the
    chance of a purchase; how many a buyer makes then is left as it is.
    """
    if fit.level != NO_LEVEL:
        as_said = replace(fit, level=NO_LEVEL)
        history = (frequency, recency, age, horizon_days)
        said, right = (probability_of_purchase(one, *history) for one in (as_said, fit))
        moved = np.divide(right, said, out=np.ones_like(said), where=said > 0)
        return expected_purchases(as_said, *history) * moved
    x, _, T = checked_histories(frequency, recency, age)
    u = _horizon(horizon_days) / (fit.alpha + T)
    if fit.a == 0:
        return (fit.r + x) * u
    values, row = np.unique(x, return_inverse=True)
    nodes = int(np.clip(NODES_PER_ROOT * np.sqrt(u.max(initial=0)), FEWEST_NODES, MOST_NODES))
    rules = np.array([_beta_rule(fit.a, fit.b + value, nodes) for value in values])
    total = np.zeros_like(T)
    for node in range(nodes if x.size else 0):
        p, weight = rules[row, 0, node], rules[row, 1, node]  # of (values, 2, nodes)
        total += weight * -np.expm1(-(fit.r + x) * np.log1p(p * u)) / p
    return total * probability_alive(fit, frequency, recency, age)


def gate_is_useful(alive: npt.ArrayLike) -> tuple[bool, str]:
    """Whether P(alive), (n,), separates customers, and a sentence that says so.

    On a panel of active customers nearly everybody is alive: the gate then says nothing.
    """
    p = np.asarray(alive, dtype=np.float64)
    share = float(np.mean(p < 0.5)) if p.size else 0.0
    if share >= USEFUL_SHARE:
        return True, f"{share:.0%} of the customers have more likely left than not"
    return False, (
        f"only {share:.1%} of the customers have more likely left than not: "
        "P(alive) separates nobody here, do not select by it"
    )


def _maximise(
    likelihood: Likelihood, starts: list[Array], penalizer: float, tolerance: float = TO_ROUNDING
) -> Array:
    """The best of several L-BFGS-B runs on log-parameters (scaled time)."""

    def loss(log_parameters: Array) -> tuple[float, Array]:
        value, gradient = likelihood(log_parameters)
        squares = np.exp(2 * log_parameters)
        return -value + penalizer * squares.sum(), -gradient + 2 * penalizer * squares

    options = {"maxiter": 1000, "ftol": tolerance, "gtol": 1e-9}
    runs = [
        minimize(
            loss,
            start,
            jac=True,
            method="L-BFGS-B",
            options=options,
            bounds=[(-LOG_BOUND, LOG_BOUND)] * start.size,
        )
        for start in starts
    ]
    return np.asarray(min(runs, key=lambda run: run.fun).x)


def _fit_without_dropout(
    data: PurchaseHistories, likelihood: Likelihood, penalizer: float
) -> Array:
    """log(r, α), scaled time, of the model with a = 0."""
    rate = data.repeat_purchases / float(data.weight @ data.T)
    starts = [np.log([r, r / rate]) for r in (0.3, 3.0)]  # rates that differ much and little
    return _maximise(likelihood, starts, penalizer)


def _fit_full(
    data: PurchaseHistories, likelihood: Likelihood, rate: Array, penalizer: float
) -> Array:
    """log(r, α, a, b), scaled time: the best start is found on rounded times."""
    starts = [np.concatenate([rate, np.log(dropout)]) for dropout in STARTS]
    rough = Likelihood.of(coarse(data))
    near = _maximise(rough, [*starts, np.zeros(4)], penalizer, NEARLY)
    return _maximise(likelihood, [near], penalizer)


def _fit_lifetimes(data: PurchaseHistories, penalizer: float) -> Array | None:
    """The same from the package `lifetimes` (archived); None where it does not converge."""
    from lifetimes import BetaGeoFitter
    from lifetimes.utils import ConvergenceError

    fitter = BetaGeoFitter(penalizer_coef=penalizer)
    try:
        with np.errstate(all="ignore"), redirect_stdout(StringIO()):  # it prints its troubles
            fitter.fit(data.x, data.t_x, data.T, weights=data.weight)
    except ConvergenceError:
        return None
    parameters = [float(fitter.params_[name]) for name in PARAMETERS]
    return np.log(np.maximum(parameters, np.exp(-LOG_BOUND)))


def _fit_without_repeats(data: PurchaseHistories, engine: str) -> SurvivalFit:
    """Nobody came back yet: the rate's Jeffreys posterior Gamma(1/2, total time), no dropout."""
    return SurvivalFit(
        r=0.5,
        alpha=float(data.weight @ data.T) / data.scale,
        a=0.0,
        b=1.0,
        log_likelihood=0.0,
        log_likelihood_without_dropout=0.0,
        customers=data.customers,
        triples=data.x.size,
        is_degenerate=True,
        reason="no customer has bought on a second day yet: rates and dropout cannot be learned",
        engine=engine,
    )


def _judge(
    data: PurchaseHistories,
    likelihood: Likelihood,
    rate: Array,
    full: Array | None,
    engine: str,
) -> SurvivalFit:
    """Accept the fit with dropout, or fall back to the one without and say why."""
    without = likelihood(rate)[0] * data.customers
    with_dropout = without if full is None else likelihood(full)[0] * data.customers
    problem = _problem(data, full, with_dropout - without)
    r, alpha, a, b = (*np.exp(rate), 0.0, 1.0) if problem or full is None else np.exp(full)
    return SurvivalFit(
        r=float(r),
        alpha=float(alpha) / data.scale,
        a=float(a),
        b=float(b),
        log_likelihood=with_dropout + _unscaled(data),
        log_likelihood_without_dropout=without + _unscaled(data),
        customers=data.customers,
        triples=data.x.size,
        is_degenerate=bool(problem),
        reason=problem or _remark(full),
        engine=engine,
    )


def _unscaled(data: PurchaseHistories) -> float:
    """log L in days minus log L in scaled time: each repeat purchase is a density in time."""
    return data.repeat_purchases * float(np.log(data.scale))


def _problem(data: PurchaseHistories, full: Array | None, gain: float) -> str:
    """Why dropout is not identified; empty when it is."""
    if full is None or not np.isfinite(full).all():
        return "the fit did not converge: everybody counts as still a customer"
    if data.repeaters < MIN_REPEATERS:
        return (
            f"only {data.repeaters:.0f} customers bought again ({MIN_REPEATERS} needed): "
            "dropout cannot be learned, everybody counts as still a customer"
        )
    a, b = np.exp(full[2:])
    fitted = f"(a = {a:.3g}, b = {b:.3g})"
    if gain < MIN_GAIN:
        return (
            f"dropout explains nothing here (log-likelihood gain {gain:.2f}, {MIN_GAIN:g} needed) "
            f"{fitted}: everybody counts as still a customer"
        )
    if a + b < SMALLEST_SHAPES:
        return f"dropout happens only right after the first repeat purchase {fitted}: not usable"
    if not EDGE < a / (a + b) < 1 - EDGE:
        return f"mean dropout probability {a / (a + b):.2g} lies at the edge {fitted}: not usable"
    return ""


def _remark(full: Array | None) -> str:
    """What is worth knowing about an accepted fit."""
    if full is None or np.abs(full).max() < LOG_BOUND - 0.01:
        return ""
    limits = np.flatnonzero(np.abs(full) > LOG_BOUND - 0.01)
    names = [PARAMETERS[index] for index in limits]
    return f"at the limit of the search (customers hardly differ there): {', '.join(names)}"


def _beta_rule(a: float, b: float, nodes: int) -> tuple[Array, Array]:
    """Nodes and weights with E[g(p)] ≈ Σ w·g(p) for p ~ Beta(a, b): Golub & Welsch (1969)."""
    k = np.arange(1, nodes)
    s = a + b - 2 + 2 * k  # shifted Jacobi recurrence on [0, 1]
    diagonal, square = np.empty(nodes), np.empty(nodes - 1)
    diagonal[0] = a / (a + b)
    diagonal[1:] = 0.5 + ((a - 1) ** 2 - (b - 1) ** 2) / (2 * s * (s + 2))
    square[0] = a * b / ((a + b) ** 2 * (a + b + 1))  # the variance; 0/0 below where a + b = 1
    k, s = k[1:], s[1:]
    square[1:] = k * (k + a - 1) * (k + b - 1) * (k + a + b - 2) / (s**2 * (s**2 - 1))
    p, vectors = eigh_tridiagonal(diagonal, np.sqrt(square))
    return np.maximum(p, 1e-15), vectors[0] ** 2


def _horizon(days: float) -> float:
    if not (np.isfinite(days) and days >= 0):
        raise DataError(f"horizon_days: expected a number of days, 0 or more; got {days!r}")
    return float(days)
