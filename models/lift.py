"""Does the log show that coupons make those buy whom a plan would give them to?

A plan that looks at many customers finds some whom chance made look moved by coupons; where
coupons do nothing at all, that is everybody it finds. So the customers that a model of one half
would choose are looked up in the other half (cross_fitting): did they buy more often with the
coupon than without? The estimate is doubly robust (Robins, Rotnitzky & Zhao 1994). Purchases and
not profits are compared, since a purchase is seen with far less noise than its worth.
"""

from dataclasses import dataclass
from math import nan

import numpy as np

from winback.models.cross_fitting import Halves, View
from winback.models.long_run import MOST_OFTEN
from winback.models.response import respond
from winback.models.situations import Bools, Floats, Ints

PROOF_LOGGED = 3.0  # standard errors: by chance once in 700 logs without any effect
# Estimated propensities leave what features do not show, so that chance is not all there is.
PROOF_ESTIMATED = 5.0
FEWEST_TREATED = 50  # decisions that got the very coupon; fewer make standard errors too small


@dataclass(frozen=True)
class Lift:
    """How much more often the chosen buy with their coupon; chances per decision.

    Attributes:
        value: mean over the decisions; NaN without any.
        standard_error: by customers.
        decisions: that chose a coupon.
        treated: of these, that got it.
    """

    value: float
    standard_error: float
    decisions: int
    treated: int

    def is_proven(self, propensities_logged: bool) -> bool:
        """Whether the log shows it beyond chance, and beyond what estimated propensities hide."""
        needed = PROOF_LOGGED if propensities_logged else PROOF_ESTIMATED
        shown = self.value > needed * self.standard_error
        return bool(shown and self.treated >= FEWEST_TREATED)


def lift_of_the_chosen(views: tuple[View, View], learned: Halves) -> Lift:
    """Lift of what each half's plan would have chosen for the other half's customers.

    The plans should have no pessimism: it guards against errors that this test is made to see, and
    leaves a small log too few decisions to see them on.
    """
    panel = views[0].panel
    rows = np.flatnonzero(panel.closed & (panel.propensity < 1))
    half = learned.half[panel.customer[rows]]
    parts = [_lifts(view, rows[half == part]) for part, view in enumerate(views)]
    chosen, lifts, treated = (np.concatenate(column) for column in zip(*parts, strict=True))
    if len(chosen) == 0:
        return Lift(nan, nan, 0, 0)
    mean = float(lifts.mean())
    by_customer = np.bincount(panel.customer[chosen], weights=lifts - mean)
    error = float(np.sqrt((by_customer**2).sum())) / len(chosen)
    return Lift(mean, error, len(chosen), int(treated.sum()))


def _lifts(view: View, rows: Ints) -> tuple[Ints, Floats, Bools]:
    """The rows with a chosen coupon, each one's doubly robust lift, and whether it got it."""
    chosen = view.greedy(rows).argmax(axis=1)
    rows, chosen = rows[chosen > 0], chosen[chosen > 0]
    panel = view.panel
    said = respond(view.plan.response, view.belief[rows], panel.situation[rows]).purchase
    with_coupon, without = said[np.arange(len(rows)), chosen], said[:, 0]
    weight = np.minimum(1 / np.maximum(panel.propensity[rows], 1e-6), MOST_OFTEN)
    coupon, bought = panel.coupon[rows], panel.purchased[rows]
    treated, untreated = coupon == chosen, coupon == 0
    surprise = treated * (bought - with_coupon) - untreated * (bought - without)
    return rows, with_coupon - without + weight * surprise, treated
