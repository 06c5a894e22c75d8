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
MOST_DESIGNED = 0.5  # at most half get a coupon, so that none stays as well known as all coupons
CHEAPEST = 0.01  # of the dearest coupon's cost: one next to free is drawn at most 10 × as often

Ids = Sequence[str] | NDArray[np.object_] | NDArray[np.str_]


@dataclass(frozen=True)
class Exploration:
    """Who explores and with which coupon.

    Attributes:
        explores: (n,) the exploring branch draws this customer's coupon.
        coupon: (n,) the coupon it draws, or would have drawn.
        chance: (n, A) probability that it draws this coupon; 0 where only `none` is eligible.
        scale: what the budget and the limits left of the wanted chances, in [0, 1].
        expected_cost: expected budget money that the explorers take, currency.
    """

    explores: Bools
    coupon: Ints
    chance: Floats
    scale: float
    expected_cost: float

    @property
    def rate(self) -> Floats:
        """(n,) ε_i, the probability of exploring."""
        rate: Floats = self.chance.sum(axis=1)
        return rate


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


def uniform_chances(eligible: Bools, rate: float, floor: float) -> Floats:
    """(n, A) ε_i/K_i for each of the K_i eligible coupons, `none` among them.

    ε_i = max(``rate``, ``floor`` · K_i); 0 where ``rate`` is 0 or only `none` is eligible.

    Args:
        eligible: (n, A) coupons that a customer may get, `none` first and always.
        rate: ε, share of customers who explore; 0 turns exploration off.
        floor: smallest probability of an eligible coupon.

    Raises:
        SettingsError: rate or floor is outside [0, 1], or the floors of K coupons exceed 1.
    """
    _check_floor(eligible, floor)
    return _chances(eligible, np.ones(eligible.shape[1]), rate, floor)


def designed_chances(eligible: Bools, cost: Floats, rate: float, floor: float) -> Floats:
    """(n, A) chances that learn most about all coupons for the money, where nothing is known.

    n_a customers tell coupon a's effect with a variance in proportion to 1/n_a. Among all n_a that
    cost the same, Σ n_a c_a = B, the sum Σ 1/n_a is least at n_a ∝ 1/√c_a: optimum allocation with
    costs, at equal variances (Neyman 1934; Cochran, Sampling Techniques, 3rd ed. 1977, §5.5). c_a
    is the coupon's mean cost and the same split holds for everybody, so that dear customers are
    learned from as well. Whoever explores gets a coupon; `none` is what all others get.

    Args:
        eligible: (n, A) coupons that a customer may get, `none` first and always.
        cost: (n, A) expected budget money of a coupon, currency, 0 or more.
        rate: probability of a coupon, unless the floors of all coupons are more; 0: no exploration.
        floor: smallest probability of an eligible coupon; what is above it is split by cost.

    Raises:
        SettingsError: rate or floor is outside [0, 1], or the floors of K coupons exceed 1.
    """
    _check_floor(eligible, floor)
    mean = (eligible * cost).sum(axis=0) / np.maximum(eligible.sum(axis=0), 1)
    dearest = mean.max(initial=0.0)
    weight = 1 / np.sqrt(np.maximum(mean, CHEAPEST * dearest)) if dearest else np.ones(len(mean))
    return _chances(eligible & (np.arange(len(mean)) > 0), weight, rate, floor)


def draw_exploration(
    ids: Ids,
    as_of: date,
    salt: str,
    wanted: Floats,
    cost: Floats,
    *,
    limit: float,
    limits: Sequence[Limit] = (),
    limit_share: float = 1.0,
) -> Exploration:
    """Let some customers explore: each draws its coupons with the wanted chances, or fewer.

    Where this may cost more than ``limit``, all chances shrink by one factor (below their floor if
    need be): the largest with mean + 3 standard deviations of the explorers' cost within the
    limit. The factor does not depend on the draws, so the chances stay exact probabilities, and a
    smaller limit only takes explorers away. Should chance exceed the limit all the same, the
    explorers with the highest draws stand back; only then (about once in a thousand runs) are the
    chances slightly above their true probabilities.

    Args:
        ids: (n,) customers.
        wanted: (n, A) wanted probability that exploration gives a coupon, rows sum to 1 at most.
        cost: (n, A) expected budget money of a coupon, currency, 0 or more.
        limit: money for exploration; the explorers never cost more.
        limits: further limits; who counts in one explores as far as its ceiling allows too.
        limit_share: the part of every ceiling that exploration may use.
    """
    scale = np.full(len(wanted), _affordable_scale(wanted, cost, limit))
    for further in limits:
        room = limit_share * further.ceiling
        fits = _affordable_scale(wanted, further.weight(cost), room)
        scale[further.customers] = np.minimum(scale[further.customers], fits)
    day = f"{as_of:%Y-%m-%d}"  # of a datetime too
    coupon = _drawn_coupon(unit_hash(ids, salt, day, "coupon"), wanted)
    draw, rate = unit_hash(ids, salt, day, "explore"), wanted.sum(axis=1)
    explores = draw < scale * rate
    drawn_cost = pick(cost, coupon)
    explorers = np.nonzero(explores)[0]
    explorers = explorers[np.argsort(draw[explorers] / rate[explorers], kind="stable")]
    kept = explorers[: affordable(drawn_cost[explorers], limit)]
    for further in limits:
        kept = _within(further, kept, coupon, cost, limit_share * further.ceiling)
    explores[:] = False
    explores[kept] = True
    mean_scale = float((scale * rate).sum() / rate.sum()) if rate.any() else 1.0
    spent = math.fsum(drawn_cost[kept])
    return Exploration(explores, coupon, scale[:, None] * wanted, mean_scale, spent)


def policy_probabilities(greedy: Ints, chance: Floats) -> Floats:
    """(n, A) π_i(a) = (1 − ε_i)·1[a = greedy_i] + the chance that exploration gives a.

    ε_i is the sum of the chances (n, A) of customer i. At the coupon drawn this is the propensity
    to log: the probability of this customer's coupon given everybody else's draws. It is exact for
    whoever did not explore, since their greedy coupon is what the optimiser gave them, and in a
    cold start, where everybody's is `none`. For another explorer ``greedy`` is the coupon that they
    would get at the final price of budget money; had they not explored, their money would have
    gone back to the budget and moved that price by O(1/n), which matters only to customers who
    are within O(1/n) of preferring another coupon.
    """
    probabilities = chance.copy()
    probabilities[np.arange(len(greedy)), greedy] += 1 - chance.sum(axis=1)
    return probabilities


def _check_floor(eligible: Bools, floor: float) -> None:
    _check_share("propensity floor", floor)
    most = int(eligible.sum(axis=1).max(initial=0))
    if floor * most > 1:
        raise SettingsError(
            f"expected a propensity floor of at most {1 / most:.4g}, since {most} coupons share "
            f"the probability 1; came {floor:g}"
        )


def _chances(drawn: Bools, weight: Floats, rate: float, floor: float) -> Floats:
    """(n, A) the floor for every coupon that may be drawn, the rest of the rate by weight (A,)."""
    _check_share("exploration rate", rate)
    if rate == 0:
        return np.zeros(drawn.shape)
    weights = drawn * weight
    split = weights / np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    floors = floor * drawn.sum(axis=1, keepdims=True)
    chances = drawn * (floor + np.maximum(rate - floors, 0.0) * split)
    return np.where(drawn[:, 1:].any(axis=1, keepdims=True), chances, 0.0)


def _affordable_scale(wanted: Floats, cost: Floats, limit: float) -> float:
    """The largest s ≤ 1 with s·M + k·√(s·V) ≤ limit, M and V mean and variance bound at s = 1."""
    mean, variance = float((wanted * cost).sum()), float((wanted * cost**2).sum())
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


def _drawn_coupon(draw: Floats, wanted: Floats) -> Ints:
    """(n,) the coupon within whose part of the wanted chances the draw falls."""
    cumulative = np.cumsum(wanted, axis=1)
    coupon: Ints = (cumulative > (draw * cumulative[:, -1])[:, None]).argmax(axis=1)
    return coupon


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise SettingsError(f"expected a {name} between 0 and 1, came {share}")
