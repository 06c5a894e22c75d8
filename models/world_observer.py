"""The best that anybody could do from what is on record: knows the world, but not who is who.

The observer knows every parameter of the world and of its log, and sees what a shop sees: which
coupon came, whether a purchase followed, for how much, and whether it redeemed. Type and state stay
hidden, so there is a belief over both, moved on by Bayes' rule week by week (the exact filter of a
hidden Markov model; Rabiner 1989). Within the budget nobody can expect a higher uplift from this
log. Some of the coupons harm in spite of all: who is more cautious harms fewer, and gains less.
"""

import numpy as np

from winback.models.allocation import solve_budget
from winback.models.world import GONE, NEW, RECENCIES, Floats, Ints, World, world_in_week
from winback.models.world_log import MARGIN_SPREAD, History
from winback.models.world_optimum import q_at_price
from winback.models.world_truth import Truth

BATCH = 5_000  # customers at once: beliefs of 121 states and six types in 30 MB


def best_observer(world: World, today: World, history: History, truth: Truth) -> Ints:
    """(n,) the coupons of highest expected uplift within the budget, given what is on record.

    Args:
        world: as it was when the log began.
        today: as it is in the week to decide.
        history: the log, with orders that come late: the observer need not wait for them.
        truth: of that week; its price and budget are known to the observer too.
    """
    value = today.reward + q_at_price(today, truth.price)[1]
    uplift, cost = np.empty((2, *truth.uplift.shape))
    for start in range(0, len(history.first_week), BATCH):
        some = slice(start, start + BATCH)
        belief = beliefs(world, history, np.arange(len(history.first_week))[some])
        uplift[some] = np.einsum("nhs,hsa->na", belief, value - value[:, :, :1])
        cost[some] = np.einsum("nhs,hsa->na", belief, today.cost)
    allowed = np.ones(cost.shape, np.bool_)
    return solve_budget(uplift, cost, truth.budget, allowed).coupon


def beliefs(world: World, history: History, customers: Ints) -> Floats:
    """(n, H, S) chances of type and state of some customers after the last week on record."""
    belief = np.zeros((len(customers), *world.purchase.shape[:2]))
    belief[:, :, NEW] = world.share
    place = np.full(len(history.first_week), -1)
    place[customers] = np.arange(len(customers))
    mine = np.flatnonzero(place[history.customer] >= 0)
    weeks = np.split(mine, np.searchsorted(history.week[mine], np.arange(1, history.weeks)))
    for week, rows in enumerate(weeks):
        now = world_in_week(world, week)
        for coupon in range(world.purchase.shape[2]):
            for bought in (False, True):
                seen = rows[(history.coupon[rows] == coupon) & (history.purchased[rows] == bought)]
                at = place[history.customer[seen]]
                belief[at] = _moved_on(now, belief[at], history, seen, coupon, bought)
    return belief


def _moved_on(
    world: World, belief: Floats, history: History, rows: Ints, coupon: int, bought: bool
) -> Floats:
    """Beliefs a week later, of customers who got ``coupon`` and bought or did not."""
    belief = belief * world.logging[:, :, coupon]
    if bought:
        belief *= _likelihood_of_amounts(world, history, rows, coupon)
    # A purchase sets recency to 0 and nothing else does, so the next state tells what happened.
    kernel = world.kernel[:, :, coupon].copy()
    resets = np.arange(kernel.shape[2]) < GONE // RECENCIES
    kernel[:, :, resets != bought] = 0.0
    chance, leaving = world.purchase[:, :, coupon], world.leaving[:, :, coupon]
    kernel[:, :, GONE] = (chance if bought else 1 - chance) * leaving
    if not bought:
        kernel[:, GONE, GONE] = 1.0
    moved = np.matmul(belief.transpose(1, 0, 2), kernel).transpose(1, 0, 2)
    later: Floats = moved / moved.sum(axis=(1, 2), keepdims=True)
    return later


def _likelihood_of_amounts(world: World, history: History, rows: Ints, coupon: int) -> Floats:
    """(n, H, S) of each purchase's margin and of its redemption, up to a constant."""
    margin = np.log(np.maximum(history.margin[rows], 0.01))[:, None, None]
    mean = np.log(world.margin[:, :, coupon]) - MARGIN_SPREAD**2 / 2
    likelihood: Floats = np.exp(-0.5 * ((margin - mean) / MARGIN_SPREAD) ** 2)
    if coupon:
        redeemed = (history.cost[rows] > 0)[:, None, None]
        share = world.redemption[:, :, coupon]
        likelihood *= np.where(redeemed, share, 1 - share)
    return likelihood
