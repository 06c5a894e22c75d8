"""Fitting the response model: expectation–maximisation over hidden classes of customers.

E-step: chances of the classes and of still being there, from whole histories (response_filter).
M-step: penalised logistic regressions on expected counts by situation and coupon. Coefficients of
a class are drawn toward the mean of all classes, and effects toward none at all, so that few data
invent nothing (Gaussian priors, empirical Bayes in spirit). Two signs are known beforehand and
kept: coupons of late do not make people buy, and a coupon does not make anybody stay.

Expectation–maximisation ends where it began to climb, and a small log does not say how many classes
there are. So models of several numbers of classes are fitted, and joined: single fits, refitted to
a log that grows by the week, now and then chose half of the customers wrongly; the joined do not.

Offers are not drawn at random. What class and situation do not explain of them is undone by
weighing (response_data). The offers themselves also tell the classes apart, since a shop offers to
some people more than others.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from winback.models.errors import DataError
from winback.models.logistic import log_odds, logistic, sigmoid
from winback.models.response import (
    BASE_TERMS,
    COUPON_TERMS,
    EFFECT,
    EFFECT_FATIGUE,
    SHARED_EFFECTS,
    ResponseModel,
    design,
    join,
    leaving_cell,
    leaving_design,
    respond,
)
from winback.models.response_data import (
    ClosedWindows,
    closed_rows,
    closed_windows,
    effective_share,
)
from winback.models.response_filter import expect, forward
from winback.models.response_start import (
    PSEUDO_PURCHASES,
    Parameters,
    amounts,
    first_guess,
    mean_per_coupon,
)
from winback.models.situations import COUPONS, SITUATIONS, Bools, Floats, Ints, Panel

MAX_CLASSES = 8  # more gained nothing in worlds of six types
CUSTOMERS_PER_CLASS = 300  # fewer customers, fewer classes
SIZES = (1.0, 0.75, 0.625)  # of the largest model's classes: those of the models that are joined
MAX_ITERATIONS = 40  # the rest of the way gained no profit in known worlds
TOLERANCE = 2e-6  # relative gain of the log-likelihood below which the fit ends
FIXED = 1e12  # precision of what a regression leaves as it is
BLOCK = 500  # customers whose histories are looked at together
RECENT_PERIODS = 8  # latest windows, on which levels are set right

# Standard deviations of a class around the mean of all classes, log odds.
LEVEL_SPREAD, STEP_SPREAD, EFFECT_SPREAD, CHANGE_SPREAD, COUPON_SPREAD = 2.0, 0.5, 0.7, 0.5, 0.15
MEAN_EFFECT_SPREAD = 0.5  # of the mean itself around no effect
LEAVING_SPREAD = np.array([1.0, 1.0, 1.0])


@dataclass(frozen=True)
class ResponseFit:
    """The model and how its fit ended; of the models joined in it, the likeliest one's figures."""

    model: ResponseModel
    log_likelihood: float
    iterations: int
    largest_weight: float
    effective_share: float  # of the offers, what the weights leave of them


def fit_response(
    panel: Panel,
    face_values: Floats,
    *,
    classes: int | None = None,
    seed: int = 0,
    max_iterations: int = MAX_ITERATIONS,
) -> ResponseFit:
    """Fit the classes to a panel's closed windows.

    Args:
        panel: past decisions; rows that are not closed are left out.
        face_values: (A,) of the coupons, `none` first, currency.
        classes: K of a single model; by default several are joined, the largest of them with one
            class per CUSTOMERS_PER_CLASS customers, at most MAX_CLASSES.
        seed: of the first guess.
        max_iterations: of expectation–maximisation.

    Raises:
        DataError: no closed window, or none with a purchase.
    """
    data = closed_windows(closed_rows(panel), len(face_values))
    if not data.panel.purchased.any():
        raise DataError("expected past windows with a purchase to learn responses from, got none")
    sizes = (classes,) if classes else _sizes(data.panel.customers)
    climb = partial(_climb, data, face_values, seed=seed, max_iterations=max_iterations)
    with ThreadPoolExecutor(max_workers=len(sizes)) as pool:
        climbed = list(pool.map(climb, sizes))
    likelihood, iterations = max((fit.log_likelihood, fit.iterations) for fit in climbed)
    model = join([fit.model for fit in climbed])
    return ResponseFit(
        model=set_level(model, panel, data.weight),
        log_likelihood=likelihood,
        iterations=iterations,
        largest_weight=float(data.weight.max()),
        effective_share=effective_share(data.weight[data.panel.coupon > 0]),
    )


@dataclass(frozen=True)
class _Climbed:
    """Where expectation–maximisation ended."""

    model: ResponseModel
    log_likelihood: float
    iterations: int


def _sizes(customers: int) -> tuple[int, ...]:
    """Numbers of classes of the models to be joined, the largest first."""
    largest = int(np.clip(customers // CUSTOMERS_PER_CLASS, 1, MAX_CLASSES))
    return tuple(dict.fromkeys(max(1, round(largest * size)) for size in SIZES))


def _climb(
    data: ClosedWindows, face_values: Floats, classes: int, *, seed: int, max_iterations: int
) -> _Climbed:
    """One model of so many classes, before its level is set."""
    state = first_guess(data, face_values, classes, seed)
    likelihood, iteration = -np.inf, 0
    for iteration in range(1, max_iterations + 1):  # noqa: B007
        before = likelihood
        likelihood, posterior, counts = _expect(data, state, face_values)
        state = _maximise(data, state, posterior, counts, face_values)
        if likelihood - before < TOLERANCE * abs(likelihood):
            break
    return _Climbed(_model(data, state, posterior, face_values), float(likelihood), iteration)


def beliefs(model: ResponseModel, panel: Panel) -> Floats:
    """(m, K) chance of each class and of still being there, from what came before each row."""
    found = np.zeros((len(panel.period), model.classes))
    for customers in _blocks(panel):
        rows = slice(panel.first[customers.start], panel.first[customers.stop])
        found[rows] = _beliefs(model, panel.part(customers))
    return found


def beliefs_now(model: ResponseModel, panel: Panel) -> Floats:
    """(n, K) :func:`beliefs` at the last row of each customer, who has one; holds no others."""
    found = np.zeros((panel.customers, model.classes))
    for customers in _blocks(panel):
        part = panel.part(customers)
        found[customers] = _beliefs(model, part)[part.first[1:] - 1]
    return found


def _blocks(panel: Panel) -> list[slice]:
    """Customers some hundreds at a time: what is computed of them stays in the cache."""
    n = panel.customers
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


def _beliefs(model: ResponseModel, panel: Panel) -> Floats:
    found = np.zeros((len(panel.period), model.classes))
    bought = panel.purchased & panel.closed
    odds = log_odds(model.offers).T
    made, not_made = -np.logaddexp(0, -odds), -np.logaddexp(0, odds)
    offered = (panel.coupon > 0)[:, None]
    offer = np.where(offered, made[panel.situation], not_made[panel.situation])
    offer[panel.own] = 0.0
    forward(
        panel.first,
        panel.situation * model.coupons + panel.coupon,
        leaving_cell(panel.situation, panel.coupon),
        bought,
        panel.closed,
        _evidence(model, panel, bought),
        offer,
        model.purchase.reshape(model.classes, -1),
        model.hazard,
        model.share,
        found,
    )
    return found


def set_level(model: ResponseModel, panel: Panel, weight: Floats) -> ResponseModel:
    """Set purchases and coupon money right on the latest windows, given only what was known then.

    Purchases: a logistic regression of what came on the log odds said without a coupon, effects
    taken as they are; coupon money: the ratio. A level set before is replaced.
    ``weight`` is that of the panel's closed rows.
    """
    model = replace(model, level=np.array([0.0, 1.0]), cost_level=np.array(1.0))
    belief = beliefs(model, panel)[panel.closed]
    closed = closed_rows(panel)
    recent = closed.period > closed.period.max() - RECENT_PERIODS
    said = respond(model, belief[recent], closed.situation[recent])
    rows, coupon = np.arange(recent.sum()), closed.coupon[recent]
    base = log_odds(said.purchase[:, 0])
    effect = log_odds(said.purchase[rows, coupon]) - base
    columns = np.column_stack([np.ones(len(rows)), base, effect])
    came, counts = closed.purchased[recent], weight[recent]
    levelled = model
    if 0 < came.sum() < len(came):
        as_said, precision = np.array([0.0, 1.0, 1.0]), np.array([1.0, 10.0, FIXED])
        found, _ = logistic(
            columns,
            counts,
            counts * came,
            as_said,
            as_said,
            precision,
            20,
            at_least_zero=np.array([1]),
        )
        levelled = replace(model, level=found[:2])
    offered = coupon > 0
    expected = respond(levelled, belief[recent], closed.situation[recent]).cost[rows, coupon]
    redeemed = float((counts * closed.cost[recent])[offered].sum())
    said_cost = float((counts * expected)[offered].sum())
    prior = PSEUDO_PURCHASES * float(model.redeemed[:, 1:].mean()) if model.coupons > 1 else 0.0
    ratio = (redeemed + prior) / (said_cost + prior) if said_cost + prior > 0 else 1.0
    return replace(levelled, cost_level=np.array(ratio))


def _expect(
    data: ClosedWindows, state: Parameters, face_values: Floats
) -> tuple[float, Floats, tuple[Floats, ...]]:
    """Log-likelihood, posterior (n, K), and expected counts (tries, buys, stays, exits)."""
    classes, cells = len(state.share), SITUATIONS * data.coupons
    chance = sigmoid(state.coefficients @ design(face_values).T)
    posterior = np.zeros((data.panel.customers, classes))
    counts = tuple(np.zeros((classes, size)) for size in (cells, cells, 2 * COUPONS, 2 * COUPONS))
    likelihood = expect(
        data.panel.first, data.cell, data.leaves, data.panel.purchased,
        _log_likelihood_of_amounts(data, state), chance, state.hazard, state.share,
        data.weight, posterior, *counts,
    )  # fmt: skip
    return float(likelihood), posterior, counts


def _log_likelihood_of_amounts(data: ClosedWindows, state: Parameters) -> Floats:
    """(n, K) of margins, redemptions and offers: all that is not whether a purchase came."""
    n, total, square = data.log_margin_moments[:, :, None]
    mean, spread = state.log_margin, state.spread
    margins: Floats = -0.5 * (square - 2 * mean * total + n * mean**2) / spread**2 - n * np.log(
        spread
    )
    yes, no = data.redemptions, data.purchases - data.redemptions
    redeemed: Floats = yes.T @ np.log(state.redeems).T + no.T @ np.log(1 - state.redeems).T
    return margins + redeemed + _log_likelihood_of_offers(data, state)


def _log_likelihood_of_offers(data: ClosedWindows, state: Parameters) -> Floats:
    made, not_made = data.offers
    odds = state.offering @ _base_design().T
    likelihood: Floats = made @ -np.logaddexp(0, -odds).T + not_made @ -np.logaddexp(0, odds).T
    return likelihood


def _base_design() -> Floats:
    """(SITUATIONS, BASE_TERMS) the base columns alone."""
    base: Floats = design(np.zeros(1))[:, :BASE_TERMS]
    return base


def _maximise(
    data: ClosedWindows,
    state: Parameters,
    posterior: Floats,
    counts: tuple[Floats, ...],
    face_values: Floats,
) -> Parameters:
    tries, buys, stays, exits = counts
    coefficients, curvature = _coefficients(state, tries, buys, face_values)
    log_margin, spread, redeems = amounts(data, posterior)
    return Parameters(
        share=(posterior.sum(axis=0) + 1) / (len(posterior) + posterior.shape[1]),
        coefficients=coefficients,
        curvature=curvature,
        leaving=_leaving(state, stays, exits),
        offering=_offering(data, state, posterior),
        log_margin=log_margin,
        spread=spread,
        redeems=redeems,
    )


def _coefficients(
    state: Parameters, tries: Floats, buys: Floats, face_values: Floats
) -> tuple[Floats, Floats]:
    """Every class's regression, drawn toward the classes' mean."""
    columns, precision = design(face_values), 1 / _spreads(len(face_values)) ** 2
    information = np.array([np.diag(matrix) for matrix in state.curvature])
    toward_none = np.zeros(columns.shape[1])
    toward_none[EFFECT:] = 1 / MEAN_EFFECT_SPREAD**2
    mean = (information * state.coefficients).sum(axis=0) / (information.sum(axis=0) + toward_none)
    fitted = [
        logistic(columns, n, hits, start, mean, precision, 3, at_most_zero=_not_positive(start))
        for n, hits, start in zip(tries, buys, state.coefficients, strict=True)
    ]
    coefficients, curvature = zip(*fitted, strict=True)
    return np.array(coefficients), np.array(curvature)


def _not_positive(coefficients: Floats) -> Ints:
    """Coupons of late never help; they wear off an effect, if there is one."""
    harmful = list(range(COUPON_TERMS.start, COUPON_TERMS.stop))
    return np.array([*harmful, *([EFFECT_FATIGUE] if coefficients[EFFECT] > 0 else [])])


def _spreads(coupons: int) -> Floats:
    steps = [LEVEL_SPREAD, *[STEP_SPREAD] * (BASE_TERMS - 1)]
    effects = [EFFECT_SPREAD, *[CHANGE_SPREAD] * (SHARED_EFFECTS - 1)]
    return np.array([*steps, *effects, *[COUPON_SPREAD] * (coupons - 1)])


def _leaving(state: Parameters, stays: Floats, exits: Floats) -> Floats:
    """(K, 3) log odds of leaving: the level drawn toward the classes' mean, coupons toward none.

    Coupons only ever add to it, so a mean of classes would be above nothing by noise alone, and
    would lead those after it whom coupons never drove away.
    """
    mean, precision = np.array([state.leaving[:, 0].mean(), 0.0, 0.0]), 1 / LEAVING_SPREAD**2
    grows = np.array([1, 2])
    fitted = [
        logistic(leaving_design(), n, left, start, mean, precision, 3, at_least_zero=grows)[0]
        for n, left, start in zip(stays, exits, state.leaving, strict=True)
    ]
    return np.array(fitted)


def _offering(data: ClosedWindows, state: Parameters, posterior: Floats) -> Floats:
    """(K, BASE_TERMS) log odds of an offer in the log, drawn toward the classes' mean."""
    made, not_made = (table.T @ posterior for table in data.offers)
    mean = state.offering.mean(axis=0)
    precision = 1 / np.array([LEVEL_SPREAD, *[STEP_SPREAD] * (BASE_TERMS - 1)]) ** 2
    fitted = [
        logistic(_base_design(), yes + no, yes, start, mean, precision, 3)[0]
        for yes, no, start in zip(made.T, not_made.T, state.offering, strict=True)
    ]
    return np.array(fitted)


def _model(
    data: ClosedWindows, state: Parameters, posterior: Floats, face_values: Floats
) -> ResponseModel:
    bought = data.panel.purchased.astype(np.float64)
    n = posterior.T @ data.log_margin_moments[0]
    margin = posterior.T @ data.sums(bought * data.panel.margin)
    overall = float((bought * data.panel.margin).sum() / bought.sum())
    return ResponseModel(
        share=state.share,
        coefficients=state.coefficients,
        doubt=_doubt(data, state, face_values),
        hazard=state.hazard,
        margin=(margin + PSEUDO_PURCHASES * overall) / (n + PSEUDO_PURCHASES),
        # until a coupon's redemptions are seen, every purchase is taken to cost its face value
        redeemed=mean_per_coupon(
            data, posterior, data.sums_by_coupon(data.panel.cost), face_values
        ),
        log_margin=state.log_margin,
        log_margin_spread=state.spread,
        redeems=state.redeems,
        offers=sigmoid(state.offering @ _base_design().T),
        smallest_margin=np.array(data.smallest_margin),
        level=np.array([0.0, 1.0]),
        cost_level=np.array(1.0),
        face_values=np.asarray(face_values, dtype=np.float64),
    )


def _doubt(data: ClosedWindows, state: Parameters, face_values: Floats) -> Floats:
    """Standard errors of the effects, from the curvature and what the weights leave of it."""
    columns = design(face_values).reshape(SITUATIONS, len(face_values), -1)
    step = columns - columns[:, :1]
    inflation = 1 / max(effective_share(data.weight[data.panel.coupon > 0]), 1e-3)
    variance = [
        np.einsum("sad,de,sae->sa", step, np.linalg.inv(matrix), step, optimize=True)
        for matrix in state.curvature
    ]
    error: Floats = np.sqrt(inflation * np.maximum(np.array(variance), 0.0))
    return error


def _evidence(model: ResponseModel, panel: Panel, bought: Bools) -> Floats:
    """(m, K) log-likelihood of a purchase's margin and redemption; 0 without one."""
    evidence = np.zeros((len(panel.period), model.classes))
    rows = np.flatnonzero(bought)
    margin = np.log(np.maximum(panel.margin[rows], float(model.smallest_margin)))
    away = (margin[:, None] - model.log_margin) / model.log_margin_spread
    redeems = model.redeems[:, panel.coupon[rows]].T
    yes = (panel.cost[rows] > 0)[:, None]
    evidence[rows] = -0.5 * away**2 - np.log(model.log_margin_spread)
    evidence[rows] += np.log(np.where(yes, redeems, 1 - redeems))
    return evidence
