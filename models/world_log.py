"""Customers who live in a known world: what a shop would have on record of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from winback.models.errors import SettingsError
from winback.models.world import (
    FACE_VALUES,
    FALL,
    FATIGUES,
    GONE,
    NEW,
    QUIET_WEEKS,
    RECENCIES,
    REST,
    RISE,
    TIERS,
    Bools,
    Floats,
    Ints,
    World,
    drifted,
    state_number,
)

MARGIN_SPREAD = 0.4  # standard deviation of the logarithm of a purchase's margin


@dataclass(frozen=True)
class Week:
    """One week of n customers; (n,) each."""

    coupon: Ints
    propensity: Floats  # of the coupon drawn
    purchased: Bools
    margin: Floats  # currency, 0 without a purchase
    cost: Floats  # redeemed coupon money
    state: Ints  # hidden: where the customer stood when the coupon came


@dataclass
class Population:
    """n customers of hidden type and state; (n,) each."""

    type: Ints
    state: Ints

    def distribution(self, world: World) -> Floats:
        """(H, S) shares of all customers."""
        types, states = world.purchase.shape[:2]
        count = np.bincount(self.type * states + self.state, minlength=types * states)
        return count.reshape(types, states) / max(len(self.type), 1)


@dataclass(frozen=True)
class History:
    """What n customers did in a world, customer week by customer week, oldest first; (m,) each.

    ``first_week``: (n,) the week in which a customer bought for the first time, the week before
    their first row. ``people``: who and where everybody is after the last week. ``state`` and
    ``people`` are hidden: no table of a shop holds them.
    """

    customer: Ints
    week: Ints
    coupon: Ints
    propensity: Floats
    purchased: Bools
    margin: Floats
    cost: Floats
    state: Ints
    first_week: Ints
    people: Population

    @property
    def weeks(self) -> int:
        """Weeks so far: the number of the next one."""
        return int(self.week[-1]) + 1


def new_customers(world: World, n: int, random: np.random.Generator) -> Population:
    """Customers who have just bought for the first time."""
    kind = random.choice(len(world.share), size=n, p=world.share)
    return Population(kind, np.full(n, NEW))


def live(world: World, people: Population, coupon: Ints, random: np.random.Generator) -> Week:
    """One week with the coupons given: moves ``people`` on in place and returns what happened."""
    at = (people.type, people.state, coupon)
    purchased = random.random(len(coupon)) < world.purchase[at]
    redeemed = purchased & (random.random(len(coupon)) < world.redemption[at])
    margin = np.where(purchased, draw_margins(world.margin[at], random), 0.0)
    leaves = random.random(len(coupon)) < world.leaving[at]
    state = people.state
    people.state = np.where(
        (state == GONE) | leaves, GONE, _moved(state, coupon, purchased, random)
    )
    return Week(
        coupon=coupon,
        propensity=world.logging[at],
        purchased=purchased,
        margin=margin,
        cost=np.where(redeemed, np.array(FACE_VALUES)[coupon], 0.0),
        state=state,
    )


def draw_coupons(chances: Floats, random: np.random.Generator) -> Ints:
    """(n,) coupons drawn from (n, A) chances."""
    passed = (random.random((len(chances), 1)) > chances.cumsum(axis=1)).sum(axis=1)
    coupon: Ints = np.minimum(passed, chances.shape[1] - 1)
    return coupon


def draw_margins(mean: Floats, random: np.random.Generator) -> Floats:
    """Log-normal margins with the means given, in whole cents."""
    noise = random.lognormal(-(MARGIN_SPREAD**2) / 2, MARGIN_SPREAD, mean.shape)
    margin: Floats = np.round(mean * noise, 2)
    return margin


def record_history(world: World, n: int, weeks: int, seed: int = 0) -> History:
    """Let ``n`` customers live for up to ``weeks`` weeks under the world's logging policy.

    They first buy in a week drawn from the first half, so that histories differ in length.

    Raises:
        SettingsError: no customers, or fewer than the two weeks of a purchase and a decision.
    """
    if n < 1 or weeks < 2:
        raise SettingsError(f"world: expected 1 customer and 2 weeks or more, came {n}, {weeks}")
    random = np.random.default_rng([world.config.seed, seed, 11])
    people = new_customers(world, n, random)
    first_week = random.integers(0, weeks // 2, n)
    parts: list[tuple[Ints, Ints, Week]] = []
    for week in range(weeks):
        if week == world.config.drift_week:
            world = drifted(world)
        active = np.flatnonzero(first_week < week)
        here = Population(people.type[active], people.state[active])
        coupon = draw_coupons(world.logging[here.type, here.state], random)
        parts.append((active, np.full(len(active), week), live(world, here, coupon, random)))
        people.state[active] = here.state
    return _joined(parts, first_week, people)


def continue_history(
    world: World, history: History, coupon: Ints, propensity: Floats, random: np.random.Generator
) -> History:
    """The history with one more week, in which every customer gets a coupon of one's choice.

    Args:
        world: as it is in that week, see :func:`winback.models.world.world_in_week`.
        history: left as it is.
        coupon: (n,) what each customer gets.
        propensity: (n,) chance with which that coupon was drawn.
        random: draws what happens.
    """
    people = replace(history.people)
    seen = replace(live(world, people, coupon, random), propensity=propensity)
    so_far = Week(*(getattr(history, field.name) for field in fields(Week)))
    parts = [
        (history.customer, history.week, so_far),
        (np.arange(len(coupon)), np.full(len(coupon), history.weeks), seen),
    ]
    return _joined(parts, history.first_week, people)


def _joined(
    parts: Sequence[tuple[Ints, Ints, Week]], first_week: Ints, people: Population
) -> History:
    """Who, when and what happened, put together."""
    seen = {
        field.name: np.concatenate([getattr(week, field.name) for _, _, week in parts])
        for field in fields(Week)
    }
    return History(
        customer=np.concatenate([who for who, _, _ in parts]),
        week=np.concatenate([when for _, when, _ in parts]),
        **seen,
        first_week=first_week,
        people=people,
    )


def _moved(state: Ints, coupon: Ints, purchased: Bools, random: np.random.Generator) -> Ints:
    """The next state, as the world's kernel has it, of who stays."""
    recency, tier, fatigue = np.unravel_index(
        np.minimum(state, GONE - 1), (RECENCIES, TIERS, FATIGUES)
    )
    rises = purchased & (random.random(len(state)) < RISE)
    falls = ~purchased & (recency >= QUIET_WEEKS) & (random.random(len(state)) < FALL)
    rests = (coupon == 0) & (random.random(len(state)) < REST)
    tired = np.where(coupon > 0, fatigue + 1, fatigue - rests)
    return state_number(
        np.where(purchased, 0, recency + 1),
        np.clip(tier + rises - falls, 0, TIERS - 1),
        np.clip(tired, 0, FATIGUES - 1),
    )
