"""Two forecasts of the same purchase made one: the classes' and the profit model's.

Log odds of a purchase without a coupon are a linear mixture of both forecasts' log odds, fitted on
windows that the profit model was not trained on (stacked generalisation, Wolpert 1992); margins of
a purchase likewise, by non-negative least squares. What does not help gets a weight near 0.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from winback.models.logistic import log_odds, logistic, sigmoid
from winback.models.situations import Floats

PRIOR = np.array([0.0, 1.0, 0.0])  # the classes alone, as they are
PRECISION = np.array([1.0, 20.0, 20.0])  # worth about a hundred windows
FEWEST_PURCHASES = 30  # with fewer the mixture stays the prior


@dataclass(frozen=True)
class Stack:
    """Weights of the mixture.

    ``purchase``: intercept, weight of the classes' log odds, weight of the profit model's.
    ``margin``: weight of the classes' margin of a purchase, weight of the profit model's.
    """

    purchase: tuple[float, float, float]
    margin: tuple[float, float]

    def chance(self, classes: Floats, model: Floats) -> Floats:
        """(n,) chance of a purchase without a coupon from both models' chances (n,)."""
        intercept, own, other = self.purchase
        return sigmoid(intercept + own * log_odds(classes) + other * log_odds(model))

    def margins(self, classes: Floats, model: Floats) -> Floats:
        """(n,) margin of a purchase from both forecasts of it, currency."""
        own, other = self.margin
        mixed: Floats = own * classes + other * model
        return mixed


def fit_stack(
    classes: Floats,
    model: Floats,
    purchased: npt.NDArray[np.bool_],
    weight: Floats,
    class_margin: Floats,
    model_margin: Floats,
    margin: Floats,
) -> Stack:
    """Fit on past windows without a coupon, (n,) each.

    Args:
        classes, model: chances of a purchase said by each.
        purchased: what came.
        weight: of each window.
        class_margin, model_margin: margins of a purchase said by each, currency.
        margin: what came; read where purchased.
    """
    if purchased.sum() < FEWEST_PURCHASES:
        return Stack((0.0, 1.0, 0.0), (1.0, 0.0))
    columns = np.column_stack([np.ones(len(classes)), log_odds(classes), log_odds(model)])
    found, _ = logistic(columns, weight, weight * purchased, PRIOR, PRIOR, PRECISION, 30)
    root = np.sqrt(weight[purchased])[:, None]
    said = np.column_stack([class_margin, model_margin])[purchased]
    shares, _ = nnls(said * root, margin[purchased] * root[:, 0])
    if shares.sum() <= 0:
        shares = np.array([1.0, 0.0])
    return Stack(tuple(found.tolist()), tuple(shares.tolist()))
