"""A customer world whose every kernel is known, so that the best policy can be computed.

Customers are of hidden types. Each week a customer is in one of the states

    (weeks since the last purchase, purchase tier, coupon fatigue)   or   gone for good,

gets one coupon, and buys at most once. What depends on what:

    purchase    type, recency, tier, coupon; what a coupon adds wears off with fatigue
    redemption  type, face value, fatigue
    margin      type, tier, face value
    leaving     type, recency; fatigue in weeks with a coupon, of whatever face value
    next state  state, purchase, leaving, and whether a coupon came: not the type
    log's offer type, recency, tier where ``confounding`` is not 0; all face values alike

Given type, state and coupon, these are independent draws, week by week and customer by customer.
The calendar matters only from ``drift_week`` on, where there is one.

Who is worth a coupon is therefore a matter of the hidden type (some buy anyway, some only with a
coupon, some leave because of it), of the state, and of the weeks after.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from winback.models.errors import SettingsError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

RECENCIES = 10  # weeks since the last purchase, the last one: this many or more
TIERS = 3  # how much of a regular
FATIGUES = 4  # coupons that still weigh, the last one: three or more
STATES = RECENCIES * TIERS * FATIGUES + 1
NEW = 0  # the state after a first purchase: recency, tier and fatigue are 0
LOST = (RECENCIES - 1) * TIERS * FATIGUES  # longest silence, lowest tier, no fatigue
GONE = STATES - 1  # absorbing
RISE = 0.35  # chance that a purchase raises the tier: about three make a better customer
QUIET_WEEKS = 2  # since the last purchase; from here on silence lowers the tier
FALL = 0.25  # chance of it in a silent week: a month of silence undoes what three purchases made
REST = 0.5  # chance that a week without a coupon lets fatigue fall by one

FACE_VALUES = (0.0, 4.0, 8.0, 14.0)
CONTACT_COST = 0.05  # an e-mail
CONCAVITY = 0.6  # twice the face value moves people about 1.5 times as much
UNIFORM, CONFOUNDED = 0.0, 2.0  # of `confounding`: offers by chance, offers to likely buyers


@dataclass(frozen=True)
class WorldConfig:
    """The dials of a world. Each seed draws other customers and other reactions.

    Attributes:
        seed: which world of the family.
        effect: multiplies what coupons do to purchases and leaving; 0 is the null world.
        sleeping_dogs: share of the type that buys less with a coupon (in four worlds of five: its
            effect is drawn too). Every type leaves through fatigue, bargain hunters more than it.
        fatigue: what is lost of a coupon's effect with each coupon that still weighs.
        confounding: log odds by which one standard deviation of the chance of buying anyway raises
            the chance of an offer in the log.
        offer_rate: share of customer weeks with an offer in the log.
        overlap: smallest chance of an offer, and of none, in the log.
        propensities_logged: whether the tables say how likely each offer was.
        delay_days: orders of the last so many days have not reached the tables yet.
        budget_tightness: budget as a share of what the best policy without a budget spends.
        sparsity: log odds taken off every chance of a purchase.
        redemption_by_fatigue: log odds of redeeming taken off by each coupon that still weighs.
        thrift: share of a purchase's margin that the largest coupon takes off, redeemed or not;
            the others by their face values.
        drift_week: from this week of the log on the world is another one, see :func:`drifted`.
        gamma: discount per week.
    """

    seed: int = 0
    effect: float = 1.0
    sleeping_dogs: float = 0.12
    fatigue: float = 0.18
    confounding: float = UNIFORM
    offer_rate: float = 0.3
    overlap: float = 0.03
    propensities_logged: bool = True
    delay_days: int = 0
    budget_tightness: float = 0.35
    sparsity: float = 0.0
    redemption_by_fatigue: float = 0.2
    thrift: float = 0.05
    drift_week: int | None = None
    gamma: float = 0.95

    def __post_init__(self) -> None:
        self._expect(lambda x: 0 <= x <= 1, "from 0 to 1", "sleeping_dogs", "fatigue")
        self._expect(lambda x: 0 <= x <= 1, "from 0 to 1", "budget_tightness")
        self._expect(lambda x: 0 <= x < 1, "of at least 0 and below 1", "gamma", "thrift")
        self._expect(lambda x: 0 < x < 1, "between 0 and 1", "offer_rate")
        self._expect(lambda x: 0 < x < 0.5, "between 0 and 0.5", "overlap")
        self._expect(lambda x: 0 <= x < math.inf, "of 0 or more", "effect", "redemption_by_fatigue")
        self._expect(lambda x: 0 <= x < math.inf, "of 0 or more", "delay_days", "drift_week")
        self._expect(math.isfinite, "that is finite", "confounding", "sparsity")

    def _expect(self, is_possible: Callable[[float], bool], words: str, *dials: str) -> None:
        for dial in dials:
            value = getattr(self, dial)
            if value is not None and not is_possible(value):
                raise SettingsError(f"world: expected {dial} {words}, came {value}")


@dataclass(frozen=True)
class World:
    """H types × S states × A coupons. Nothing is bought by customers who are gone.

    Attributes:
        share: (H,) of each type among new customers.
        purchase: (H, S, A) chance of a purchase in the week.
        redemption: (H, S, A) chance that a purchase redeems the coupon.
        margin: (H, S, A) mean margin of a purchase before the coupon's cost, currency.
        leaving: (H, S, A) chance of leaving for good at the end of the week.
        kernel: (H, S, A, S) chance of the next state.
        logging: (H, S, A) chance of each coupon in the log.
    """

    config: WorldConfig
    share: Floats
    purchase: Floats
    redemption: Floats
    margin: Floats
    leaving: Floats
    kernel: Floats
    logging: Floats

    @property
    def cost(self) -> Floats:
        """(H, S, A) expected redeemed coupon money of the week, currency."""
        cost: Floats = self.purchase * self.redemption * np.array(FACE_VALUES)
        return cost

    @property
    def reward(self) -> Floats:
        """(H, S, A) expected profit of the week: margin, less redeemed money and contact."""
        contact = np.array([0.0, *[CONTACT_COST] * (len(FACE_VALUES) - 1)])
        reward: Floats = self.purchase * self.margin - self.cost - contact
        return reward


@dataclass(frozen=True)
class _Types:
    """What the types are like; (H,) each."""

    share: Floats
    base: Floats  # log odds of a purchase in the week after one
    slope: Floats  # log odds lost per doubling of the weeks since
    effect: Floats  # log odds gained by a coupon of 10
    redeems: Floats  # log odds of redeeming a coupon of 10 at a purchase
    margin: Floats  # mean margin of a purchase
    leaves: Floats  # chance of leaving in a week without coupons
    annoyed: Floats  # chance of leaving that each coupon adds, times fatigue


# share, base, slope, effect, redeems, margin, leaves, annoyed
CAST = (
    (0.22, -0.2, 0.5, 0.15, 1.0, 24.0, 0.0020, 0.0001),  # buy anyway
    (0.24, -1.8, 0.5, 1.70, 0.3, 34.0, 0.0030, 0.0002),  # persuadable
    (0.18, -2.9, 0.5, 0.30, -0.4, 13.0, 0.0040, 0.0001),  # rarely here
    (0.18, -2.2, -0.4, 1.50, 1.8, 24.0, 0.0025, 0.0100),  # bargain hunters: stock up, then tire
    (0.12, -0.9, 0.5, -0.20, -0.4, 40.0, 0.0025, 0.0020),  # sleeping dogs
    (0.10, -1.3, 1.2, 1.50, 0.3, 22.0, 0.0060, 0.0002),  # lapsing, can be won back
)
_DOGS = 4
_ANOTHER = 1_000_003  # added to the seed of a drifted world: no other world's seed is that far off
_SPREAD = np.array([0.25, 0.3, 0.15, 0.25, 0.3, 0.2, 0.3, 0.3])  # of the draws around the cast


def make_world(config: WorldConfig) -> World:
    """Build all kernels of the world that ``config.seed`` draws."""
    return _build(_draw_types(config), config)


def drifted(world: World) -> World:
    """What a world becomes: all traits drawn anew, and each type reacts as the next one would.

    The shares of the types stay, so that customers can be carried over.
    """
    drawn = _draw_types(replace(world.config, seed=world.config.seed + _ANOTHER))
    types = replace(
        drawn,
        share=world.share,
        effect=np.roll(drawn.effect, -1),
        redeems=np.roll(drawn.redeems, -1),
        annoyed=np.roll(drawn.annoyed, -1),
    )
    return _build(types, world.config)


def world_in_week(world: World, week: int) -> World:
    """The world as it is in a week of the log: drifted from ``drift_week`` on."""
    drift_week = world.config.drift_week
    return world if drift_week is None or week < drift_week else drifted(world)


def _build(types: _Types, config: WorldConfig) -> World:
    recency, tier, fatigue = _coordinates()
    effect = _effect(types, fatigue, config)
    base = (
        types.base[:, None]
        - types.slope[:, None] * np.log2(1 + recency)
        + 0.45 * tier
        - config.sparsity
    )
    odds = base[:, :, None] + effect
    purchase = _at_home(_sigmoid(odds))
    leaving = _leaving(types, recency, fatigue)
    return World(
        config=config,
        share=types.share,
        purchase=purchase,
        redemption=_redemption(types, fatigue, config),
        margin=_margin(types, tier, config),
        leaving=leaving,
        kernel=_kernel(purchase, leaving),
        logging=_logging(base, config),
    )


def state_number(recency: Ints, tier: Ints, fatigue: Ints) -> Ints:
    """Index of a state from its coordinates."""
    number: Ints = (np.minimum(recency, RECENCIES - 1) * TIERS + tier) * FATIGUES + fatigue
    return number


def _coordinates() -> tuple[Ints, Ints, Ints]:
    """(S,) each: recency, tier and fatigue; who is gone looks like who has long been silent."""
    recency, tier, fatigue = np.indices((RECENCIES, TIERS, FATIGUES)).reshape(3, -1)
    return np.append(recency, RECENCIES - 1), np.append(tier, 0), np.append(fatigue, 0)


def _draw_types(config: WorldConfig) -> _Types:
    """The cast with every trait moved: additively for log odds, by a factor for the rest."""
    random = np.random.default_rng([config.seed, 3])
    cast = np.array(CAST)
    noise = random.standard_normal(cast.shape) * _SPREAD
    additive = np.array([False, True, False, True, True, False, False, False])
    drawn = np.where(additive, cast + noise, cast * np.exp(noise))
    drawn[:, 3] *= config.effect
    drawn[:, 7] *= config.effect
    drawn[:, 0] *= (1 - config.sleeping_dogs) / (drawn[:, 0].sum() - drawn[_DOGS, 0])
    drawn[_DOGS, 0] = config.sleeping_dogs
    return _Types(*drawn.T)


def _effect(types: _Types, fatigue: Ints, config: WorldConfig) -> Floats:
    """(H, S, A) log odds that a coupon adds; what helps wears off with fatigue, harm does not."""
    size = (np.array(FACE_VALUES) / 10) ** CONCAVITY
    fresh = np.where(types.effect[:, None] > 0, (1 - config.fatigue) ** fatigue[None, :], 1.0)
    return (types.effect[:, None] * fresh)[:, :, None] * size


def _redemption(types: _Types, fatigue: Ints, config: WorldConfig) -> Floats:
    """(H, S, A) chance that a purchase redeems the coupon; larger coupons are forgotten less."""
    face = np.array(FACE_VALUES)
    fresh = types.redeems[:, None] + 0.08 * (face - 10)
    tired = config.redemption_by_fatigue * fatigue
    return np.where(face > 0, _sigmoid(fresh[:, None, :] - tired[:, None]), 0.0)


def _margin(types: _Types, tier: Ints, config: WorldConfig) -> Floats:
    """(H, S, A) mean margin of a purchase; who has a coupon buys less, or what is cheaper."""
    usual = types.margin[:, None] * (1 + 0.12 * tier)
    kept: Floats = 1 - config.thrift * np.array(FACE_VALUES) / max(FACE_VALUES)
    return usual[:, :, None] * kept


def _leaving(types: _Types, recency: Ints, fatigue: Ints) -> Floats:
    offered = (np.array(FACE_VALUES) > 0).astype(np.float64)
    tired = types.annoyed[:, None, None] * (0.3 + fatigue)[None, :, None] * offered
    quiet = types.leaves[:, None, None] * (1 + 0.2 * recency)[None, :, None]
    chance: Floats = np.minimum(quiet + tired, 0.5)
    return _at_home(chance)


def _at_home(chance: Floats) -> Floats:
    """Nothing happens to who is gone."""
    chance = chance.copy()
    chance[:, GONE] = 0.0
    return chance


def _kernel(purchase: Floats, leaving: Floats) -> Floats:
    """(H, S, A, S): a purchase resets recency and may raise the tier; silence lowers it."""
    types, _, coupons = purchase.shape
    kernel = np.zeros((types, STATES, coupons, STATES))
    recency, tier, fatigue = (axis[:GONE] for axis in _coordinates())
    rows = np.arange(GONE)
    for coupon in range(coupons):
        for tired, share_tired in _next_fatigue(fatigue, coupon > 0):
            for bought in (True, False):
                chance = purchase[:, :GONE, coupon] if bought else 1 - purchase[:, :GONE, coupon]
                for level, share_level in _next_tier(tier, recency, bought):
                    since = np.zeros_like(recency) if bought else recency + 1
                    target = state_number(since, level, tired)
                    share = chance * (1 - leaving[:, :GONE, coupon]) * share_tired * share_level
                    kernel[:, rows, coupon, target] += share
    kernel[:, :GONE, :, GONE] = leaving[:, :GONE]
    kernel[:, GONE, :, GONE] = 1.0
    return kernel


def _next_fatigue(fatigue: Ints, offered: bool) -> list[tuple[Ints, float]]:
    """Where fatigue may go, and how likely."""
    if offered:
        return [(np.minimum(fatigue + 1, FATIGUES - 1), 1.0)]
    return [(np.maximum(fatigue - 1, 0), REST), (fatigue, 1 - REST)]


def _next_tier(tier: Ints, recency: Ints, bought: bool) -> list[tuple[Ints, Floats]]:
    """Where the tier may go, and how likely: up by a purchase, down in the third silent week."""
    moves = np.full(tier.shape, RISE) if bought else np.where(recency >= QUIET_WEEKS, FALL, 0.0)
    there = np.minimum(tier + 1, TIERS - 1) if bought else np.maximum(tier - 1, 0)
    return [(there, moves), (tier, 1 - moves)]


def _logging(base: Floats, config: WorldConfig) -> Floats:
    """(H, S, A) chances of the log: an offer by the appetite for buying anyway, then any coupon."""
    base = np.where(np.arange(STATES) == GONE, base[:, [LOST]], base)  # nobody sees who is gone
    appetite = (base - base.mean()) / base.std()
    odds = np.log(config.offer_rate / (1 - config.offer_rate)) + config.confounding * appetite
    offer = np.clip(_sigmoid(odds), config.overlap, 1 - config.overlap)
    coupons = len(FACE_VALUES) - 1
    return np.stack([1 - offer, *[offer / coupons] * coupons], axis=2)


def _sigmoid(odds: Floats) -> Floats:
    chance: Floats = 1 / (1 + np.exp(-odds))
    return chance
