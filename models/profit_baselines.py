"""Is the Transformer worth it? The same later rows forecast by simpler models.

Gradient boosting (scikit-learn's HistGradientBoosting) sees the same features, a summary of the
sequence and the coupon; the mean sees nothing. Both may also learn from the tuning dates, which
the Transformer uses only to stop and to calibrate: a comparison in the baselines' favour.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss, r2_score, roc_auc_score
from threadpoolctl import threadpool_limits

from winback.models.calibration import CalibrationBin, decile_table
from winback.models.profit import ProfitModel
from winback.models.profit_data import Booleans, Floats, ProfitData, ProfitSchema

TRANSFORMER, BOOSTING, MEAN = "transformer", "gradient_boosting", "mean"
_NAMES = {TRANSFORMER: "the Transformer", BOOSTING: "gradient boosting", MEAN: "the mean"}
ALIKE = 0.01  # errors closer than this share say nothing, with this many rows or fewer
_EDGE = 1e-6  # a probability of exactly 0 or 1 would make the log loss infinite


@dataclass(frozen=True)
class Scores:
    """How well one model forecasts; reward = margin − redeemed coupon cost of a window."""

    reward_rmse: float  # currency units
    reward_r2: float  # against the mean of these very rows; 0 or below: no better than it
    purchase_log_loss: float
    purchase_auc: float | None  # None where everybody or nobody bought


@dataclass(frozen=True)
class ProfitReport:
    """Later rows that neither weights nor calibration have seen.

    Attributes:
        rows: customers × dates compared.
        from_day: first decision date of them, as in ``ProfitData.day``.
        scores: by model, ``transformer``, ``gradient_boosting`` and ``mean``.
        purchase_deciles: the Transformer's P(buy) beside the share that bought.
        reward_deciles: the Transformer's expected reward beside the reward.
        is_transformer_best: lower reward RMSE than both others.
        verdict: the same in a sentence.
    """

    rows: int
    from_day: int
    scores: Mapping[str, Scores]
    purchase_deciles: list[CalibrationBin]
    reward_deciles: list[CalibrationBin]
    is_transformer_best: bool
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def compare_with_baselines(model: ProfitModel, data: ProfitData, *, seed: int = 0) -> ProfitReport:
    """Score the model and both baselines on the dates from ``model``'s report date on.

    Args:
        model: trained on the earlier dates of the same data.
        data: what ``train_profit`` was given.
        seed: of gradient boosting's own early stopping.
    """
    from_day = int(model.training["report_from"])
    later = data.day >= from_day
    earlier = data.day + model.config.decision_days <= from_day
    train, report = data.take(earlier), data.take(later)
    forecast = model.forecast(report.sequence, report.features, report.p_purchase)
    logged = forecast.of(report.coupon)
    with threadpool_limits(model.config.threads):  # scikit-learn's OpenMP: as the Transformer
        boosting = boosting_forecast(train, report, model.schema, seed)
    forecasts = {
        TRANSFORMER: (logged.purchase, logged.reward),
        BOOSTING: boosting,
        MEAN: mean_forecast(train, report),
    }
    scores = {name: score(report, *values) for name, values in forecasts.items()}
    best = min(scores, key=lambda name: scores[name].reward_rmse) == TRANSFORMER
    return ProfitReport(
        rows=len(report),
        from_day=from_day,
        scores=scores,
        purchase_deciles=decile_table(logged.purchase, report.purchased.astype(np.float64)),
        reward_deciles=decile_table(logged.reward, report.reward),
        is_transformer_best=best,
        verdict=_verdict(scores, len(report)),
    )


def score(data: ProfitData, purchase: Floats, reward: Floats) -> Scores:
    """Compare P(buy) (n,) and expected reward (n,) with what happened."""
    bought = data.purchased
    both = bool(bought.any() and not bought.all())
    return Scores(
        reward_rmse=float(np.sqrt(np.mean((data.reward - reward) ** 2))),
        reward_r2=float(r2_score(data.reward, reward)),
        purchase_log_loss=float(
            log_loss(bought, np.clip(purchase, _EDGE, 1 - _EDGE), labels=[False, True])
        ),
        purchase_auc=float(roc_auc_score(bought, purchase)) if both else None,
    )


def baseline_design(data: ProfitData, schema: ProfitSchema) -> Floats:
    """(n, F + 1 + 6 + A): features, P(purchase), sequence summary, coupon one-hot.

    The summary: purchase days in the last 7, 14 and 30 days, days since the last one (31: none),
    its category (0: none), number of different categories.
    """
    is_bought = data.sequence > 0
    days = is_bought.shape[1]
    since = np.where(is_bought.any(axis=1), is_bought[:, ::-1].argmax(axis=1) + 1, days + 1)
    last = data.sequence[np.arange(len(data)), np.maximum(days - since, 0)]
    ordered = np.sort(data.sequence, axis=1)
    different = ((np.diff(ordered, axis=1, prepend=0) > 0) & (ordered > 0)).sum(axis=1)
    counts = [is_bought[:, -window:].sum(axis=1) for window in (7, 14, days)]
    coupons = np.eye(len(schema.coupons))[data.coupon]
    return np.column_stack(
        [data.features, data.p_purchase, *counts, since, last, different, coupons]
    )


def boosting_forecast(
    train: ProfitData, later: ProfitData, schema: ProfitSchema, seed: int
) -> tuple[Floats, Floats]:
    """P(buy) (n,) and reward (n,) of the later rows by scikit-learn's default boosting."""
    design, later_design = baseline_design(train, schema), baseline_design(later, schema)
    regressor = HistGradientBoostingRegressor(random_state=seed).fit(design, train.reward)
    return _boosting_purchase(design, train.purchased, later_design, seed), regressor.predict(
        later_design
    )


def _boosting_purchase(
    design: Floats, purchased: Booleans, later_design: Floats, seed: int
) -> Floats:
    if purchased.all():  # a classifier needs two classes
        return np.ones(len(later_design))
    classifier = HistGradientBoostingClassifier(random_state=seed).fit(design, purchased)
    probability: Floats = classifier.predict_proba(later_design)[:, 1]
    return probability


def mean_forecast(train: ProfitData, later: ProfitData) -> tuple[Floats, Floats]:
    """The earlier rows' share of buyers and mean reward, for everybody."""
    n = len(later)
    return np.full(n, train.purchased.mean()), np.full(n, train.reward.mean())


def _verdict(scores: Mapping[str, Scores], rows: int) -> str:
    errors = ", ".join(f"{_NAMES[name]} {value.reward_rmse:.2f}" for name, value in scores.items())
    own = scores[TRANSFORMER].reward_rmse
    rival = min(value.reward_rmse for name, value in scores.items() if name != TRANSFORMER)
    if abs(own - rival) < ALIKE * rival:
        outcome = "the Transformer is about as good as the best simpler model, not better"
    elif own < rival:
        outcome = "the Transformer forecasts best"
    else:
        outcome = "the Transformer does not beat the simpler models: read its forecasts with care"
    return f"Error per customer and window (RMSE, {rows:,} later rows): {errors}; {outcome}."
