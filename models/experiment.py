"""Draws that keep the data honest: a lasting holdout, exploration, and exact propensities.

Every draw is a hash of who, when and a salt, so a retried task draws the same coupons and nobody
can redraw a customer by running again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from winback.models.allocation import Bools, Floats, Ints, affordable, pick
from winback.models.errors import DataError, SettingsError, first_rows
from winback.models.limits import Limit

SEPARATOR = "\0"  # Postgres text cannot hold it, so no two lists of words join to the same text
SPEND_DEVIATIONS = 3.0  # exploration exceeds its money by chance about once in a thousand runs

Ids = Sequence[str] | NDArray[np.object_] | NDArray[np.str_]


@dataclass(frozen=True)
class Exploration:
    """Who explores and with which coupon.

    Attributes:
        explores: (n,) the exploring branch draws this customer's coupon.
        coupon: (n,) the coupon it draws, or would have drawn.
        rate: (n,) ε_i, the probability that it draws; 0 where only one coupon is eligible.
        scale: what the budget and the limits left of the wanted rates, in [0, 1].
        expected_cost: expected budget money that the explorers take, currency.
    """

    explores: Bools
    coupon: Ints
    rate: Floats
    scale: float
    expected_cost: float


def unit_hash(ids: Ids, *salts: str) -> Floats:
    """(n,) numbers in [0, 1), uniform over ids, independent between lists of salts.

    The first 53 bits of BLAKE2b(salt ‖ NUL ‖ … ‖ id), UTF-8, big-endian, over 2⁵³: the same on
    every machine, Python and run.

    >>> unit_hash(["c1", "c2"], "winback", "holdout").round(6).tolist()
    [0.285925, 0.091422]

    Raises:
        DataError: an id is not text (a missing one, for example).
    """
    names = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    wrong = [row for row, name in enumerate(names) if not isinstance(name, str)]
    if wrong:
        raise DataError(f"expected customer ids as text; wrong in rows {first_rows(wrong)}")
    head = "".join(salt + SEPARATOR for salt in salts).encode()
    digests = b"".join(blake2b(head + name.encode(), digest_size=8).digest() for name in names)
    bits = np.frombuffer(digests, ">u8") >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def assign_holdout(ids: Ids, salt: str, share: float) -> Bools:
    """(n,) whether a customer is in the holdout, for good: it depends on id and salt only.

    A larger share keeps everybody who was in a smaller one.

    Raises:
        SettingsError: the share is outside [0, 1].
    """
    _check_share("holdout share", share)
    return unit_hash(ids, salt, "holdout") < share


def draw_exploration(
    ids: Ids,
    as_of: date,
    salt: str,
    eligible: Bools,
    cost: Floats,
    *,
    rate: float,
    floor: float,
    limit: float,
    limits: Sequence[Limit] = (),
    limit_share: float = 1.0,
) -> Exploration:
    """Let ε of the customers explore: a coupon drawn uniformly from their eligible ones.

    ε_i = max(``rate``, ``floor`` · K_i), so that each of the K_i eligible coupons has at least
    the probability ``floor``. Where this may cost more than ``limit``, all ε_i shrink by one
    factor (below the floor if need be): the largest with mean + 3 standard deviations of the
    explorers' cost within the limit. The factor does not depend on the draws, so ε_i stays the
    exact probability of exploring, and a smaller limit only takes explorers away. Should chance
    exceed the limit all the same, the explorers with the highest draws stand back; only then
    (about once in a thousand runs) is ε_i slightly above their true probability.

    Args:
        ids: (n,) customers.
        eligible: (n, A) coupons that a customer may get.
        cost: (n, A) expected budget money of a coupon, currency, 0 or more.
        rate: ε, share of customers who explore; 0 turns exploration off.
        floor: smallest probability of an eligible coupon.
        limit: money for exploration; the explorers never cost more.
        limits: further limits; who counts in one explores as far as its ceiling allows too.
        limit_share: the part of every ceiling that exploration may use.

    Raises:
        SettingsError: rate or floor is outside [0, 1], or the floors of K coupons exceed 1.
    """
    wanted = _wanted_rates(eligible, rate, floor)
    scale = np.full(len(wanted), _affordable_scale(wanted, eligible, cost, limit))
    for further in limits:
        room = limit_share * further.ceiling
        fits = _affordable_scale(wanted, eligible, further.weight(cost), room)
        scale[further.customers] = np.minimum(scale[further.customers], fits)
    day = f"{as_of:%Y-%m-%d}"  # of a datetime too
    coupon = _uniform_coupon(unit_hash(ids, salt, day, "coupon"), eligible)
    chance = unit_hash(ids, salt, day, "explore")
    explores = chance < scale * wanted
    drawn_cost = pick(cost, coupon)
    explorers = np.nonzero(explores)[0]
    explorers = explorers[np.argsort(chance[explorers] / wanted[explorers], kind="stable")]
    kept = explorers[: affordable(drawn_cost[explorers], limit)]
    for further in limits:
        kept = _within(further, kept, coupon, cost, limit_share * further.ceiling)
    explores[:] = False
    explores[kept] = True
    mean_scale = float((scale * wanted).sum() / wanted.sum()) if wanted.any() else 1.0
    return Exploration(explores, coupon, scale * wanted, mean_scale, math.fsum(drawn_cost[kept]))


def policy_probabilities(greedy: Ints, eligible: Bools, rate: Floats) -> Floats:
    """(n, A) π_i(a) = (1 − ε_i)·1[a = greedy_i] + ε_i/K_i over the K_i eligible coupons.

    At the coupon drawn this is the propensity to log: the probability of this customer's coupon
    given everybody else's draws. It is exact for whoever did not explore, since their greedy
    coupon is what the optimiser gave them. For an explorer ``greedy`` is the coupon that they
    would get at the final price of budget money; had they not explored, their money would have
    gone back to the budget and moved that price by O(1/n), which matters only to customers who
    are within O(1/n) of preferring another coupon.
    """
    probabilities: Floats = eligible * (rate / eligible.sum(axis=1))[:, None]
    probabilities[np.arange(len(greedy)), greedy] += 1 - rate
    return probabilities


def _wanted_rates(eligible: Bools, rate: float, floor: float) -> Floats:
    _check_share("exploration rate", rate)
    _check_share("propensity floor", floor)
    choices = eligible.sum(axis=1)
    most = int(choices.max(initial=0))
    if floor * most > 1:
        raise SettingsError(
            f"expected a propensity floor of at most {1 / most:.4g}, since {most} coupons share "
            f"the probability 1; came {floor:g}"
        )
    wanted = np.maximum(rate, floor * choices) if rate > 0 else np.zeros(len(choices))
    return np.where(choices > 1, wanted, 0.0)


def _affordable_scale(wanted: Floats, eligible: Bools, cost: Floats, limit: float) -> float:
    """The largest s ≤ 1 with s·M + k·√(s·V) ≤ limit, M and V mean and variance bound at s = 1."""
    weight = eligible * (wanted / np.maximum(eligible.sum(axis=1), 1))[:, None]
    mean, variance = float((weight * cost).sum()), float((weight * cost**2).sum())
    if mean == 0 or math.isinf(limit):
        return 1.0
    spread = SPEND_DEVIATIONS * math.sqrt(variance)
    root = 2 * limit / (spread + math.sqrt(spread**2 + 4 * mean * limit))
    return min(1.0, root**2)


def _within(limit: Limit, explorers: Ints, coupon: Ints, cost: Floats, room: float) -> Ints:
    """The explorers but for the last of those who together exceed what a limit leaves them."""
    weight = pick(limit.weight(cost), coupon)[explorers]
    kept: Ints = explorers[(np.cumsum(weight) <= room) | (weight == 0)]
    return kept


def _uniform_coupon(chance: Floats, eligible: Bools) -> Ints:
    """(n,) the eligible coupon number ⌊chance · K⌋."""
    wanted = np.floor(chance * eligible.sum(axis=1)).astype(np.int64)
    coupon: Ints = (np.cumsum(eligible, axis=1) > wanted[:, None]).argmax(axis=1)
    return coupon


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise SettingsError(f"expected a {name} between 0 and 1, came {share}")
