"""Benchmarks of the survival model: the BG/NBD fit and what it says of every customer."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from winback.operators.bench_measure import Answer, BenchError, Done, Place, Step, close

SHOP = {"r": 0.25, "alpha": 31.0, "a": 0.8, "b": 2.4}  # days; as the CDNOW customers of the paper
DAYS = 365  # a year of first purchases
HORIZON = 7.0  # days of a decision
SHOWN = 2_000  # customers whose probabilities are compared
LOG_LIKELIHOOD, PROBABILITY = 1e-8, 1e-6  # relative differences that count as equal

Histories = tuple[Any, Any, Any]  # frequency, recency, age: (n,) each


def customers(n: int, seed: int = 0) -> Histories:
    """BG/NBD customers on a daily grid: repeat purchase days, recency, age, days."""
    random = np.random.default_rng(seed)
    rate = random.gamma(SHOP["r"], 1 / SHOP["alpha"], n)
    leaves = random.beta(SHOP["a"], SHOP["b"], n)
    age = random.integers(1, DAYS + 1, n)
    frequency, recency = np.zeros(n, np.int64), np.zeros(n, np.int64)
    active = np.arange(n)
    while len(active):
        wait = random.exponential(1 / np.maximum(rate[active], 1e-12))
        day = recency[active] + np.maximum(np.ceil(np.minimum(wait, 10 * DAYS)), 1).astype(np.int64)
        active, day = active[day <= age[active]], day[day <= age[active]]
        frequency[active] += 1
        recency[active] = day
        active = active[random.random(len(active)) >= leaves[active]]
    return frequency, recency, age


def grouped(histories: Histories) -> tuple[Histories, Any, Any]:
    """Distinct triples, how many customers have each, and each customer's triple.

    The warehouse does this in the daily run (rfm_triples).
    """
    rows = np.stack(histories)
    distinct, number, count = np.unique(rows, axis=1, return_inverse=True, return_counts=True)
    return (distinct[0], distinct[1], distinct[2]), count, number.ravel()


def _fit_winback(size: int, place: Place) -> Callable[[], Done]:
    from winback.models.survival import fit_survival

    triples, count, _ = grouped(customers(size))

    def run() -> Done:
        fit = fit_survival(*triples, weights=count)
        return Done({"log_likelihood": fit.log_likelihood}, notes={"triples": fit.triples})

    return run


def _fit_rows(size: int, place: Place) -> Callable[[], Done]:
    return _lifetimes_fit(customers(size), None)


def _fit_triples(size: int, place: Place) -> Callable[[], Done]:
    triples, count, _ = grouped(customers(size))
    return _lifetimes_fit(triples, count)


def _lifetimes_fit(histories: Histories, weights: Any) -> Callable[[], Done]:
    """Its log-likelihood in days: it is stated as a mean, in a time scaled by the oldest age."""
    from lifetimes import BetaGeoFitter

    count = np.ones(len(histories[0])) if weights is None else weights

    def run() -> Done:
        fitter = BetaGeoFitter()
        fitter.fit(*histories, weights=weights)
        scaled = -fitter._negative_log_likelihood_ * count.sum()
        repeats = float(count @ histories[0])
        return Done({"log_likelihood": float(scaled + repeats * np.log(fitter._scale))})

    return run


def _same_likelihood(ours: Answer, theirs: Answer) -> str:
    name = "log_likelihood"
    return close("log-likelihood", ours[name], theirs[name], LOG_LIKELIHOOD)


def _score_winback(size: int, place: Place) -> Callable[[], Done]:
    """As the daily run: once per triple, and then each customer's (there in the warehouse)."""
    triples, _, number = grouped(customers(size))
    scores = _scorer(triples)
    return lambda: _shown({name: values[number] for name, values in scores().items()})


def _score_rows(size: int, place: Place) -> Callable[[], Done]:
    scores = _scorer(customers(size))
    return lambda: _shown(scores())


def _scorer(histories: Histories) -> Callable[[], dict[str, Any]]:
    from winback.models.survival import (
        expected_purchases,
        probability_alive,
        probability_of_purchase,
    )

    fit = _known_fit()
    return lambda: {
        "p_alive": probability_alive(fit, *histories),
        "p_purchase": probability_of_purchase(fit, *histories, HORIZON),
        "expected": expected_purchases(fit, *histories, HORIZON),
    }


def _score_lifetimes(size: int, place: Place) -> Callable[[], Done]:
    """P(alive) and E[purchases]; it has no P(purchase), so it does two things of three."""
    import pandas as pd
    from lifetimes import BetaGeoFitter

    frequency, recency, age = customers(size)
    fitter = BetaGeoFitter()
    fitter.params_ = pd.Series(SHOP)

    def run() -> Done:
        expected = fitter.conditional_expected_number_of_purchases_up_to_time(
            HORIZON, frequency, recency, age
        )
        alive = fitter.conditional_probability_alive(frequency, recency, age)
        return _shown({"p_alive": alive, "expected": expected})

    return run


def _known_fit() -> Any:
    from winback.models.survival import SurvivalFit

    nothing = {"log_likelihood": 0.0, "log_likelihood_without_dropout": 0.0}
    counts = {"customers": 0, "triples": 0, "is_degenerate": False}
    return SurvivalFit(**SHOP, **nothing, **counts, reason="", engine="")  # type: ignore[arg-type]


def _shown(scores: Mapping[str, Any]) -> Done:
    return Done({name: np.asarray(values)[:SHOWN].tolist() for name, values in scores.items()})


def _same_scores(ours: Answer, theirs: Answer) -> str:
    worst = 0.0
    for name in theirs:
        a, b = np.array(ours[name]), np.array(theirs[name])
        worst = max(worst, float((np.abs(a - b) / np.maximum(np.abs(b), 1e-9)).max()))
    if not worst <= PROBABILITY:
        raise BenchError(f"probabilities differ by {worst:g} relative, expected {PROBABILITY:g}")
    return f"probabilities {worst:.1g} apart"


SURVIVAL_STEPS = (
    Step(
        name="survival-fit",
        title="BG/NBD fit",
        unit="customers",
        sizes=(10_000, 100_000, 1_000_000),
        quick=(2_000, 8_000),
        sides={
            "winback": _fit_winback,
            "lifetimes, unique triples": _fit_triples,
            "lifetimes, all rows": _fit_rows,
        },
        agree=_same_likelihood,
    ),
    Step(
        name="probabilities",
        title="P(alive), P(purchase), E[purchases]",
        unit="customers",
        sizes=(10_000, 100_000, 1_000_000),
        quick=(2_000, 8_000),
        sides={
            "winback": _score_winback,
            "winback, row by row": _score_rows,
            "lifetimes": _score_lifetimes,
        },
        agree=_same_scores,
    ),
)
