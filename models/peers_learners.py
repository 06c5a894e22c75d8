"""The learners behind the rival policies: scikit-learn's boosting on a sample of the log.

Each forecast is learned once and shared; at most ``MAX_ROWS`` rows.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from winback.models.allocation import Floats, Ints
from winback.models.errors import SettingsError
from winback.models.peers_data import Bools, PeerData

Model: TypeAlias = Callable[[Floats], Floats]

MAX_ROWS = 300_000  # a random sample of the log beyond: about a second per fit
ROUNDS, LEAVES = 80, 15  # more trees or leaves change the decisions of 20,000 customers little
MIN_LEAF = 200  # offers are rare and money is noisy: smaller leaves chase noise
# Effects are noisier still than outcomes: trees of few, large leaves found them best.
COARSE_ROUNDS, COARSE_LEAVES, COARSE_SHARE = 50, 5, 0.01
SMALLEST_CHANCE = 0.02  # propensities are trimmed here: a weight of at most 50
FOLDS = 2  # of the cross-fitting, by customer


class Learners:
    """Forecasts for the customers of ``data``, each learned when first asked for."""

    def __init__(self, data: PeerData) -> None:
        self.data = data
        chance = np.random.default_rng([data.seed, 3])
        kept = chance.permutation(len(data.coupon))[:MAX_ROWS]
        self._rows: Ints = np.sort(kept)
        self._coupon = data.coupon[self._rows]
        self._features = data.features[self._rows]
        self._reward = data.reward[self._rows]

    @cached_property
    def cost(self) -> Floats:
        """(n, A) expected redeemed money: face value × P(the coupon is redeemed)."""
        offered = self._coupon > 0
        redeemed = self.data.cost[self._rows] > 0
        design = self._design(self._features, self._coupon)[offered]
        chance = _classifier(design, redeemed[offered], self.data.seed)
        money = [
            self.data.face_values[a] * chance(self._with(self.data.now, a))
            for a in range(1, self.data.coupons)
        ]
        return np.column_stack([np.zeros(self.data.customers), *money])

    def response(self, kind: str) -> Floats:
        """(n,) P(buy) of a customer, coupons ignored: ``logistic`` or ``boosting``."""
        bought = self.data.purchased[self._rows]
        if kind == "boosting":
            model = _classifier(self._features, bought, self.data.seed)
        else:
            model = _logistic(self._features, bought)
        return model(self.data.now)

    def uplift(self, kind: str) -> Floats:
        """(n, A) this week's extra profit against `none`, by learner ``S``, ``T``, ``DR``, or
        ``split``: P(buy) × margin − cost, each learned apart.

        Raises:
            SettingsError: there is no such learner.
        """
        learners = {"S": self._single, "T": self._two, "DR": self._doubly_robust}
        learners["split"] = self._split
        if kind not in learners:
            raise SettingsError(f"learner: expected one of {', '.join(learners)}; came {kind!r}")
        value = learners[kind]()
        gain: Floats = value - value[:, :1]
        return gain

    def _single(self) -> Floats:
        return self._outcome(np.ones(len(self._rows), np.bool_), self.data.now)

    def _two(self) -> Floats:
        """A model per coupon."""
        columns = []
        for coupon in range(self.data.coupons):
            own = self._coupon == coupon
            model = _coarse(self._features[own], self._reward[own], self.data.seed)
            columns.append(model(self.data.now))
        return np.column_stack(columns)

    def _split(self) -> Floats:
        bought = self.data.purchased[self._rows]
        design = self._design(self._features, self._coupon)
        margin_of = _regressor(
            self._features[bought], self.data.margin[self._rows][bought], self.data.seed
        )
        buys = _classifier(design, bought, self.data.seed)
        margin = margin_of(self.data.now)
        chance = [buys(self._with(self.data.now, a)) for a in range(self.data.coupons)]
        earned = np.column_stack(chance) * margin[:, None]
        return np.asarray(earned - self.cost - self.data.contact_costs)

    def _doubly_robust(self) -> Floats:
        """Effects regressed on cross-fitted doubly robust scores (Kennedy 2023)."""
        scores = np.zeros((len(self._rows), self.data.coupons))
        fold = self.data.customer[self._rows] % FOLDS
        chances = self._propensities(fold)
        for number in range(FOLDS):
            held = fold == number
            outcome = self._outcome(~held, self._features[held])
            scores[held] = outcome
            at = (np.flatnonzero(held), self._coupon[held])
            drawn = np.take_along_axis(outcome, self._coupon[held][:, None], axis=1)[:, 0]
            scores[at] += (self._reward[held] - drawn) / chances[at]
        gains = [
            _coarse(self._features, scores[:, a] - scores[:, 0], self.data.seed)(self.data.now)
            for a in range(1, self.data.coupons)
        ]
        return np.column_stack([np.zeros(self.data.customers), *gains])

    def _propensities(self, fold: Ints) -> Floats:
        """(m', A) P(coupon | features), cross-fitted; the logged chance where there is one."""
        chances = np.zeros((len(self._rows), self.data.coupons))
        for number in range(FOLDS):
            held = fold == number
            chances[held] = _chances(
                self._features[~held],
                self._coupon[~held],
                self._features[held],
                self.data.coupons,
                self.data.seed,
            )
        logged = self.data.propensity[self._rows]
        known = np.flatnonzero(np.isfinite(logged))
        chances[known, self._coupon[known]] = logged[known]
        return np.maximum(chances, SMALLEST_CHANCE)

    def _outcome(self, rows: Bools, features: Floats) -> Floats:
        """(k, A) expected profit of the week with each coupon, learned from some of the rows."""
        design = self._design(self._features[rows], self._coupon[rows])
        model = _regressor(design, self._reward[rows], self.data.seed)
        return np.column_stack([model(self._with(features, a)) for a in range(self.data.coupons)])

    def _design(self, features: Floats, coupon: Ints) -> Floats:
        return np.column_stack([features, self.data.face_values[coupon]])

    def _with(self, features: Floats, coupon: int) -> Floats:
        return self._design(features, np.full(len(features), coupon))


def _options(seed: int) -> dict[str, Any]:
    return {
        "max_iter": ROUNDS,
        "max_leaf_nodes": LEAVES,
        "min_samples_leaf": MIN_LEAF,
        "early_stopping": False,
        "random_state": seed,
    }


def _coarse(design: Floats, target: Floats, seed: int) -> Model:
    """A regressor for what is to be subtracted, or has been: effects."""
    leaf = max(MIN_LEAF, int(COARSE_SHARE * len(target)))
    sizes = {"max_iter": COARSE_ROUNDS, "max_leaf_nodes": COARSE_LEAVES}
    return _regressor(design, target, seed, min_samples_leaf=leaf, **sizes)


def _regressor(design: Floats, target: Floats, seed: int, **sizes: int) -> Model:
    """A function from features (k, F) to forecasts (k,); the mean where rows are few."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    if len(target) < 2 * MIN_LEAF:
        mean = float(target.mean()) if len(target) else 0.0
        return lambda features: np.full(len(features), mean)
    model: Model = (
        HistGradientBoostingRegressor(**{**_options(seed), **sizes}).fit(design, target).predict
    )
    return model


def _classifier(design: Floats, target: Bools, seed: int) -> Model:
    """A function from features (k, F) to chances (k,); the share where it cannot be learned."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    if len(target) < 2 * MIN_LEAF or target.all() or not target.any():
        share = float(target.mean()) if len(target) else 0.0
        return lambda features: np.full(len(features), share)
    model = HistGradientBoostingClassifier(**_options(seed)).fit(design, target)
    return lambda features: model.predict_proba(features)[:, 1]


def _logistic(features: Floats, target: Bools) -> Model:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if target.all() or not target.any():
        return lambda now: np.full(len(now), float(target.mean()))
    impute = SimpleImputer(keep_empty_features=True)
    model = make_pipeline(impute, StandardScaler(), LogisticRegression(max_iter=500))
    model.fit(features, target)
    return lambda now: model.predict_proba(now)[:, 1]


def _chances(features: Floats, coupon: Ints, held: Floats, coupons: int, seed: int) -> Floats:
    """(k, A) P(coupon | features) of held rows, one coupon at a time and scaled to add up to 1."""
    columns = [_classifier(features, coupon == a, seed)(held) for a in range(coupons)]
    table = np.column_stack(columns)
    normalised: Floats = table / np.maximum(table.sum(axis=1, keepdims=True), SMALLEST_CHANCE)
    return normalised
