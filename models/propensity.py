"""With which probability was each logged coupon given? Estimates where nobody wrote it down.

A multinomial model of the coupon on the features, cross-fitted by customer: nobody's probabilities
come from a model that saw one of their own decisions, since a model that recalls what it saw calls
it certain. Of logistic regression, gradient boosting and the coupons' shares the one with the best
log loss on customers left out is taken, a proper score, so that probabilities are rewarded for
being right and not for separating (Gneiting & Raftery 2007).

No estimate helps against what the features do not show: a coupon given for a hidden reason that
moves the reward too stays confounded.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winback.models.errors import DataError, first_rows
from winback.models.off_policy import effective_sample_size
from winback.models.situations import Panel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FOLDS = 5  # four fifths of the customers teach each model
MAX_FIT_ROWS = 100_000  # twice as many took twice the time for a log loss better by 0.003
MAX_CHOICE_ROWS = 40_000  # log losses of this many rows differ by noise of under 1 %
MAX_STABILISED_WEIGHT = 20.0  # share of the coupon over propensity, see estimate_propensities
SMALLEST = 1e-4  # of any coupon, one never given in the log included
LOW, VERY_LOW = 0.05, 0.01  # probabilities reported as thin: weights above 20 and above 100
TREES, LEAVES, LEAF_ROWS = 60, 15, 100  # small: a propensity is smoother than a reward
MAX_ITERATIONS = 200  # of logistic regression, which settles in about 50
PREDICT_ROWS = 100_000  # forecast at once, so that copies stay small
QUANTILES = (0.01, 0.05, 0.5)
SEPARATED = 0.9  # AUC from which a coupon goes to customers who hardly ever go without it
MIN_SHARE_EFFECTIVE = 0.1  # of a coupon's decisions; below, nine tenths of them count for nothing
MIN_EFFECTIVE = 100.0  # decisions of a coupon, as for a policy's value

_Model = Any  # a scikit-learn classifier, which has no types


@dataclass(frozen=True)
class CouponOverlap:
    """Could everybody have got this coupon?

    Attributes:
        coupon: index of the coupon.
        decisions: decisions that gave it.
        below_1_percent, below_5_percent: share of all decisions whose probability of it is lower.
        effective_sample_size: (Σw)² / Σw² of the decisions that gave it, w = 1 / probability:
            how many decisions they are worth when they stand for all customers.
        separation: AUC of its probability between decisions that gave it and others; 0.5 as
            by lot, 1 as by rule; NaN where all or none gave it.
        smallest, quantiles: of its probability, over all decisions; 1 %, 5 % and 50 %; NaN where
            they are not on record.
    """

    coupon: int
    decisions: int
    below_1_percent: float
    below_5_percent: float
    effective_sample_size: float
    separation: float
    smallest: float
    quantiles: tuple[float, ...]

    @property
    def is_readable(self) -> bool:
        """Whether the log can tell what the coupon would have done with everybody."""
        return _complaint("", self) is None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no NaN: None instead."""
        figures = {name: _or_none(value) for name, value in asdict(self).items()}
        quantiles = [_or_none(value) for value in self.quantiles]
        return {**figures, "quantiles": quantiles, "is_readable": self.is_readable}


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value


@dataclass(frozen=True)
class Overlap:
    """Overlap of all coupons, and a sentence on what that allows."""

    coupons: tuple[CouponOverlap, ...]
    verdict: str


def habits(panel: Panel) -> Floats:
    """(m, 2) how often the customer gets an offer, and buys, in all windows but the row's own.

    A shop offers by what it knows of its customers; where that was not written down, whom it keeps
    offering to tells of it. Later windows count too, so this is for propensities of the past, not
    for forecasts. Shares are drawn toward the mean of all with the weight of two windows.
    """
    closed, customer = panel.closed, panel.customer
    windows = np.bincount(customer, closed, minlength=panel.customers)[customer] - closed
    columns = []
    for event in (panel.coupon > 0, panel.purchased):
        came = event & closed
        others = np.bincount(customer, came, minlength=panel.customers)[customer] - came
        mean = came.sum() / max(closed.sum(), 1)
        columns.append((others + 2 * mean) / (windows + 2))
    return np.column_stack(columns)


def estimate_propensities(
    features: Floats,
    coupon: Ints,
    customer: Ints,
    n_coupons: int,
    *,
    folds: int = FOLDS,
    seed: int = 0,
) -> Floats:
    """(n, A) probability of each coupon in each decision, rows sum to 1.

    Probabilities are kept above 1/20 of the coupon's share in the log (and above 10⁻⁴): a decision
    then weighs at most 20 times what it would had the coupon been drawn by lot. Such trimming of
    stabilised weights trades a little bias for much variance (Crump et al. 2009).

    Args:
        features: (n, F) what was known at the decision; NaN where missing.
        coupon: (n,) index of the coupon given, below ``n_coupons``.
        customer: (n,) number of the customer; all decisions of one fall in one fold.
        n_coupons: A, `none` included.
        folds: parts of the customers; each is forecast from the others.
        seed: of the folds, the sample of ``MAX_FIT_ROWS`` rows and the boosting.

    Raises:
        DataError: lengths differ, a coupon is outside the catalogue, a feature infinite, or there
            are fewer than two customers.
    """
    _check(features, coupon, customer, n_coupons)
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(seed)
    number = np.unique(customer, return_inverse=True)[1]
    customers = int(number.max()) + 1
    fold = rng.permutation(np.arange(customers) % min(folds, customers))[number]
    fit = _sample(rng, len(coupon), MAX_FIT_ROWS)
    with threadpool_limits(1):  # the same sums in the same order on every machine
        few = fit[_sample(rng, len(fit), MAX_CHOICE_ROWS)]
        build = _best_model(features[few], coupon[few], fold[few], n_coupons, seed)
        probability = np.empty((len(coupon), n_coupons))
        for part in range(int(fold.max()) + 1):
            rows, others = fold == part, fit[fold[fit] != part]
            model = _taught(build, features[others], coupon[others])
            probability[rows] = _predict(model, features[rows], n_coupons)
    return clip(probability, np.bincount(coupon, minlength=n_coupons) / len(coupon))


def clip(probability: Floats, share: Floats) -> Floats:
    """(n, A) kept above a twentieth of the coupon's share (A,) and above 10⁻⁴, rows sum to 1."""
    floor = np.maximum(share / MAX_STABILISED_WEIGHT, SMALLEST)
    free = np.maximum(probability - floor, 0.0)
    total = free.sum(axis=1, keepdims=True)
    free = np.divide(free, total, out=np.full_like(free, 1 / len(share)), where=total > 0)
    clipped: Floats = floor + (1 - floor.sum()) * free
    return clipped


def fill_logged(logged: Floats, estimated: Floats, coupon: Ints) -> Floats:
    """(n,) propensity of the coupon given: the logged one, estimated where that is NaN.

    Raises:
        DataError: lengths differ, or a logged propensity is outside (0, 1].
    """
    if not len(logged) == len(estimated) == len(coupon):
        raise DataError(
            f"expected {len(logged)} decisions throughout, came {len(estimated)} estimated, "
            f"{len(coupon)} coupons"
        )
    wrong = ~np.isnan(logged) & ~((logged > 0) & (logged <= 1))
    if wrong.any():
        raise DataError(
            f"expected logged propensities above 0 and at most 1; wrong in rows {_rows(wrong)}"
        )
    given = np.take_along_axis(estimated, coupon[:, None], axis=1)[:, 0]
    return np.where(np.isnan(logged), given, logged)


def overlap(
    propensity: Floats,
    coupon: Ints,
    names: Sequence[str] | None = None,
    own: Bools | None = None,
) -> Overlap:
    """How far the log can tell what each coupon would have done with everybody.

    Args:
        propensity: (n, A) probability of each coupon.
        coupon: (n,) index of the coupon given.
        names: (A,) of the coupons, for the verdict; else their index.
        own: (n,) winback's own decisions. They speak only of coupons that nobody else gave, and
            each counts once there: what chose them is on record, so they hide nothing.
    """
    n_coupons = propensity.shape[1]
    names = [f"coupon {number}" for number in range(n_coupons)] if names is None else names
    theirs = np.ones(len(coupon), np.bool_) if own is None else ~own
    log, logged = propensity[theirs], coupon[theirs]
    found = []
    for number in range(n_coupons):
        once = np.ones(int((coupon[~theirs] == number).sum()))
        if (logged == number).any() or (len(log) and not len(once)):
            found.append(_coupon_overlap(number, log[:, number], logged == number))
        else:
            found.append(_all_given(number, once))
    return _judged(tuple(found), names)


def overlap_of_logged(
    logged: Floats, coupon: Ints, n_coupons: int, names: Sequence[str] | None = None
) -> Overlap:
    """The same from the logged probability of the coupon given alone, (n,).

    What the others' probabilities were is not on record, so shares and quantiles are those of the
    decisions that gave the coupon, and separation is NaN.
    """
    names = [f"coupon {number}" for number in range(n_coupons)] if names is None else names
    found = tuple(_all_given(number, logged[coupon == number]) for number in range(n_coupons))
    return _judged(found, names)


def _all_given(number: int, probability: Floats) -> CouponOverlap:
    """Of a coupon whose probability is known only where it was given."""
    if not len(probability):
        return CouponOverlap(number, 0, nan, nan, 0.0, nan, nan, (nan,) * len(QUANTILES))
    return _coupon_overlap(number, probability, np.ones(len(probability), np.bool_))


def _judged(coupons: tuple[CouponOverlap, ...], names: Sequence[str]) -> Overlap:
    thin = [_complaint(names[one.coupon], one) for one in coupons]
    complaints = [words for words in thin if words]
    if complaints:
        verdict = "Effects for all customers cannot be read from this log: " + "; ".join(complaints)
        return Overlap(coupons, f"{verdict}.")
    return Overlap(coupons, "Every coupon was given across all kinds of customers.")


def _coupon_overlap(number: int, probability: Floats, given: Bools) -> CouponOverlap:
    own = probability[given]
    quantiles = np.quantile(probability, QUANTILES).tolist()
    return CouponOverlap(
        coupon=number,
        decisions=int(given.sum()),
        below_1_percent=float((probability < VERY_LOW).mean()),
        below_5_percent=float((probability < LOW).mean()),
        effective_sample_size=effective_sample_size(1 / own) if len(own) else 0.0,
        separation=_separation(probability, given),
        smallest=float(probability.min()),
        quantiles=tuple(quantiles),
    )


def _separation(probability: Floats, given: Bools) -> float:
    """AUC by ranks, ties by half (Mann & Whitney 1947)."""
    from scipy.stats import rankdata

    positive = int(given.sum())
    negative = len(given) - positive
    if not positive or not negative:
        return nan
    ranks = float(rankdata(probability)[given].sum())
    return (ranks - positive * (positive + 1) / 2) / (positive * negative)


def _complaint(name: str, found: CouponOverlap) -> str | None:
    if not found.decisions:
        return f"{name} was never given"
    size = found.effective_sample_size
    if size < max(MIN_EFFECTIVE, MIN_SHARE_EFFECTIVE * found.decisions):
        return f"the {found.decisions:,} decisions with {name} are worth only {size:,.0f}"
    if found.separation > SEPARATED:
        return f"{name} went to particular customers only (separation {found.separation:.2f})"
    return None


def _sample(rng: np.random.Generator, rows: int, limit: int) -> Ints:
    """Row numbers, in order: all, or ``limit`` of them by lot."""
    if rows <= limit:
        return np.arange(rows)
    drawn: Ints = np.sort(rng.choice(rows, limit, replace=False))
    return drawn


def _best_model(
    features: Floats, coupon: Ints, fold: Ints, n_coupons: int, seed: int
) -> Callable[[], _Model]:
    """The candidate of least log loss on the first fold's customers, taught by the others."""
    later = fold == 0
    if not later.any() or later.all():  # so few rows that a fold holds all or none of them
        return _shares
    losses = {}
    for build in (_shares, _logistic, lambda: _boosting(seed)):
        model = _taught(build, features[~later], coupon[~later])
        probability = _predict(model, features[later], n_coupons)
        own = np.take_along_axis(probability, coupon[later][:, None], axis=1)
        losses[build] = -float(np.log(np.maximum(own, SMALLEST)).mean())
    return min(losses, key=lambda build: losses[build])


def _taught(build: Callable[[], _Model], features: Floats, coupon: Ints) -> _Model:
    """A fitted model; that of the shares where only one coupon was given."""
    build = build if len(np.unique(coupon)) > 1 else _shares
    return build().fit(features, coupon)


def _predict(model: _Model, features: Floats, n_coupons: int) -> Floats:
    """(n, A); zero for coupons that the model has not seen."""
    probability = np.zeros((len(features), n_coupons))
    for start in range(0, len(features), PREDICT_ROWS):
        rows = slice(start, start + PREDICT_ROWS)
        probability[rows, model.classes_] = model.predict_proba(features[rows])
    return probability


def _shares() -> _Model:
    from sklearn.dummy import DummyClassifier

    return DummyClassifier(strategy="prior")


def _filled(*steps: _Model) -> _Model:
    """A pipeline that first marks missing features and fills them with the mean."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    return make_pipeline(SimpleImputer(add_indicator=True, keep_empty_features=True), *steps)


def _logistic() -> _Model:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    return _filled(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))


def _boosting(seed: int) -> _Model:
    from sklearn.ensemble import HistGradientBoostingClassifier

    boosting = HistGradientBoostingClassifier(
        max_iter=TREES,
        max_leaf_nodes=LEAVES,
        min_samples_leaf=LEAF_ROWS,
        early_stopping=False,  # its validation rows would not be split by customer
        random_state=seed,
    )
    return _filled(boosting)


def _check(features: Floats, coupon: Ints, customer: Ints, n_coupons: int) -> None:
    if features.ndim != 2 or not len(features) == len(coupon) == len(customer):
        raise DataError(
            f"expected features of {len(coupon)} decisions and their customers; came "
            f"{features.shape} and {len(customer)}"
        )
    wrong = (coupon < 0) | (coupon >= n_coupons)
    if wrong.any():
        raise DataError(f"expected coupons from 0 to {n_coupons - 1}; wrong in rows {_rows(wrong)}")
    infinite = np.asarray(np.isinf(features).any(axis=1))
    if infinite.any():
        raise DataError(f"expected finite features or NaN; wrong in rows {_rows(infinite)}")
    if len(np.unique(customer)) < 2:
        raise DataError("expected decisions of two customers at least: one is forecast by others")


def _rows(wrong: Bools) -> str:
    return first_rows(np.nonzero(wrong)[0].tolist())
