"""How hidden classes of customers respond to coupons, and what that says about each customer.

Given class and situation, and while the customer is still there, the log odds of a purchase are

    β · (1, recency, purchases of late, coupons of late)  +  effect of the coupon

with an effect that is concave in the face value and changes with fatigue, recency and activity.
A class also has its own margins, redemptions, and hazard of leaving. A customer's history gives
the chances of the classes (their belief); forecasts are means over it. So hidden differences
between people count, which a table keyed by state alone cannot see.

Latent class (finite mixture) models of purchase histories: Kamakura & Russell (1989).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from winback.models.logistic import log_odds, sigmoid
from winback.models.mixture import over_classes
from winback.models.situations import (
    COUPONS,
    PURCHASES,
    RECENCIES,
    RECENCY_EDGES,
    SITUATIONS,
    Floats,
    Ints,
    bins,
)

CONCAVITY = 0.6  # of the response in the face value: twice the money moves about 1.5 times as much
STEEPEST = 60.0  # slope of a tilt: e^60 between who buys for sure and who never does
FLATTEST = 0.1  # slope of a level that forecasts are read back through
BISECTIONS = 40  # of a tilt: to the tenth digit
BASE_TERMS = 1 + (RECENCIES - 1) + (PURCHASES - 1) + (COUPONS - 1)
COUPON_TERMS = slice(BASE_TERMS - (COUPONS - 1), BASE_TERMS)
EFFECT, EFFECT_FATIGUE = BASE_TERMS, BASE_TERMS + 1
SHARED_EFFECTS = 4  # effect, and its change with coupons, recency and purchases of late


@dataclass(frozen=True)
class ResponseModel:
    """K classes × SITUATIONS × A coupons.

    Attributes:
        share: (K,) of the classes among customers.
        coefficients: (K, D) log odds of a purchase, columns as in :func:`design`.
        doubt: (K, SITUATIONS, A) standard error of a coupon's effect on the log odds.
        hazard: (K, 2 · COUPONS) chance of leaving at the end of a window, by :func:`leaving_cell`.
        margin: (K,) mean margin of a window with a purchase, currency.
        redeemed: (K, A) mean coupon money of a window with a purchase, currency.
        log_margin, log_margin_spread: (K,) mean and standard deviation of the logarithm.
        redeems: (K, A) share of windows with a purchase in which a coupon is redeemed.
        offers: (K, SITUATIONS) share of windows with an offer in the log.
        smallest_margin: what a smaller margin counts as in the logarithm.
        level: (2,) intercept and slope that set log odds right on the latest windows.
        cost_level: factor that sets the expected coupon money right on the latest windows.
        face_values: (A,) currency.
    """

    share: Floats
    coefficients: Floats
    doubt: Floats
    hazard: Floats
    margin: Floats
    redeemed: Floats
    log_margin: Floats
    log_margin_spread: Floats
    redeems: Floats
    offers: Floats
    smallest_margin: Floats
    level: Floats
    cost_level: Floats
    face_values: Floats

    # What a model has once, not by class.
    COMMON = ("smallest_margin", "level", "cost_level", "face_values")

    @property
    def classes(self) -> int:
        """K."""
        return len(self.share)

    @property
    def coupons(self) -> int:
        """A."""
        return len(self.face_values)

    @property
    def log_odds(self) -> Floats:
        """(K, SITUATIONS, A) of a purchase while still there."""
        odds = self.coefficients @ design(self.face_values).T
        return odds.reshape(self.classes, SITUATIONS, self.coupons)

    @property
    def purchase(self) -> Floats:
        """(K, SITUATIONS, A) chance of a purchase while still there, before the level."""
        return sigmoid(self.log_odds)

    @property
    def cost_levels(self) -> Floats:
        """(A,) factors of the expected coupon money; 1 for redemptions without an offer."""
        return np.append(1.0, np.full(self.coupons - 1, float(self.cost_level)))

    def to_arrays(self) -> dict[str, Floats]:
        """All parameters by name, for a file."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls, tensors: Mapping[str, Any]) -> "ResponseModel":
        """The model of :meth:`to_arrays`."""
        return cls(**{name: np.asarray(values) for name, values in tensors.items()})


def join(models: Sequence[ResponseModel]) -> ResponseModel:
    """One model with the classes of all, each model as likely as the others beforehand.

    A customer's history then weighs the models' classes against each other, as it does within a
    model. The level is the first model's: set it anew.
    """

    def joined(name: str) -> Floats:
        values = [getattr(model, name) for model in models]
        if name in ResponseModel.COMMON:
            first: Floats = values[0]
            return first
        together: Floats = np.concatenate(values)
        return together / len(models) if name == "share" else together

    return ResponseModel(**{field.name: joined(field.name) for field in fields(ResponseModel)})


@dataclass(frozen=True)
class Response:
    """What is expected of n customers in the window, (n, A) each, currency.

    ``doubt`` is one standard error of the profit that a coupon adds.
    """

    purchase: Floats
    margin: Floats
    cost: Floats
    doubt: Floats

    @property
    def charged(self) -> Floats:
        """(n, A) coupon money that the budget pays: redemptions without an offer are not its."""
        paid = self.cost.copy()
        paid[:, 0] = 0.0
        return paid


def respond(
    model: ResponseModel,
    belief: Floats,
    situation: Ints,
    margin: Floats | None = None,
) -> Response:
    """Forecast customers with every coupon.

    Args:
        model: the classes.
        belief: (n, K) chance of each class and of still being there.
        situation: (n,) numbers of :mod:`winback.models.situations`.
        margin: (n,) margin of a purchase without a coupon, where something knows it better.
    """
    own, margins = model.purchase, model.margin[:, None, None]
    spread = own * (1 - own) * model.doubt * np.abs(margins)
    by_class = np.concatenate([own, own * margins, own * model.redeemed[:, None], spread], axis=2)
    mean, earned, redeemed, doubt = np.split(over_classes(by_class, belief, situation), 4, axis=1)
    raw = log_odds(mean)
    start = model.level[0] + model.level[1] * raw[:, 0]
    purchase = sigmoid(start[:, None] + raw - raw[:, :1])
    scale = purchase / np.maximum(mean, 1e-12)
    earned = earned * scale
    if margin is not None:
        said = earned[:, 0] / np.maximum(purchase[:, 0], 1e-12)
        earned *= (margin / np.where(np.abs(said) > 1e-9, said, 1.0))[:, None]
    return Response(
        purchase=purchase,
        margin=earned,
        cost=redeemed * scale * model.cost_levels,
        doubt=doubt * scale,
    )


def agreeing(model: ResponseModel, belief: Floats, situation: Ints, chance: Floats) -> Floats:
    """(n, K) beliefs by which customers buy without a coupon as often as something better says.

    Of all such beliefs those closest to the given ones by Kullback–Leibler divergence (Csiszár
    1975): b_k e^(θ p_k), normalised together with being gone, θ by bisection. So a forecast that
    knows a customer better also says who the customer is, and the coupons' effects follow.

    Args:
        model: the classes.
        belief: (n, K) chance of each class and of still being there.
        situation: (n,) situations.
        chance: (n,) of a purchase without a coupon, at the level of late; what no belief can say
            is approached.
    """
    own = model.purchase[:, situation, 0].T
    wanted = sigmoid((log_odds(chance) - model.level[0]) / max(model.level[1], FLATTEST))
    gone = np.maximum(1 - belief.sum(axis=1), 0.0)
    low, high = np.full((2, len(chance)), [[-STEEPEST], [STEEPEST]])

    def tilted(slope: Floats) -> Floats:
        weight = belief * np.exp(slope[:, None] * own)
        total: Floats = weight / np.maximum(weight.sum(axis=1) + gone, 1e-300)[:, None]
        return total

    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = (tilted(middle) * own).sum(axis=1) > wanted
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return tilted((low + high) / 2)


def levelled_purchase(model: ResponseModel) -> Floats:
    """(K, SITUATIONS, A) chance of a purchase while still there, at the level of late."""
    odds = model.log_odds
    start = model.level[0] + model.level[1] * odds[:, :, :1]
    return sigmoid(start + odds - odds[:, :, :1])


def design(face_values: Floats) -> Floats:
    """(SITUATIONS · A, D) columns of the log odds, coupon fastest.

    Base terms are steps: each bin adds to the one before. The effect terms are 0 for `none`.
    """
    recency, purchases, tired = bins()
    steps: list[npt.NDArray[Any]] = [np.ones(SITUATIONS)]
    steps += [recency >= step for step in range(1, RECENCIES)]
    steps += [purchases >= step for step in range(1, PURCHASES)]
    steps += [tired >= step for step in range(1, COUPONS)]
    base = np.repeat(np.stack(steps, axis=1).astype(np.float64), len(face_values), axis=0)
    size = np.tile(relative_size(face_values), SITUATIONS)
    away = np.log2(1 + np.append(0, RECENCY_EDGES))[recency] / 4  # 0 to about 1
    changes = [np.minimum(tired, 3) / 3, away, np.minimum(purchases, 3) / 3]
    shared = [size, *(size * np.repeat(change, len(face_values)) for change in changes)]
    which = np.tile(np.arange(len(face_values)), SITUATIONS)
    own = [(which == coupon).astype(np.float64) for coupon in range(1, len(face_values))]
    return np.column_stack([base, *shared, *own])


def relative_size(face_values: Floats) -> Floats:
    """(A,) how strongly a coupon's face value speaks, 1 for the largest; `none` is 0."""
    size = np.maximum(face_values, 0.0)
    size[1:] = np.where(size[1:] > 0, size[1:], size[1:].max(initial=0.0) or 1.0)  # a free gift
    size = size / max(float(size.max(initial=0.0)), 1e-12)
    spoken: Floats = size**CONCAVITY
    return spoken


def leaving_cell(situation: Ints, coupon: Ints) -> Ints:
    """Column of ``hazard``: coupons of late, and whether another one comes."""
    cell: Ints = (coupon > 0) * COUPONS + situation % COUPONS
    return cell


def leaving_design() -> Floats:
    """(2 · COUPONS, 3): level, an offer, an offer on top of others."""
    offered, tired = np.indices((2, COUPONS)).reshape(2, -1)
    return np.column_stack([np.ones(2 * COUPONS), offered, offered * tired / 3.0])
