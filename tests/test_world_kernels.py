"""The known world's kernels: what they depend on, and what each dial does to them.

Oracles: the list in the module's docstring, and closed forms.
"""

import numpy as np
import pytest
from scipy.special import logit

from winback.models.world import (
    FACE_VALUES,
    FATIGUES,
    GONE,
    RECENCIES,
    TIERS,
    WorldConfig,
    make_world,
)

CONFOUNDED = WorldConfig(seed=5, confounding=2.0)
CONSTANT = WorldConfig(seed=5, redemption_by_fatigue=0, thrift=0)
VARYING = WorldConfig(seed=5, redemption_by_fatigue=0.8, thrift=0.3)
AXES = ("type", "recency", "tier", "fatigue", "coupon")
DEPENDS_ON = {
    "purchase": {"type", "recency", "tier", "fatigue", "coupon"},
    "redemption": {"type", "fatigue", "coupon"},
    "margin": {"type", "tier", "coupon"},
    "leaving": {"type", "recency", "fatigue", "coupon"},
}


def at_home(table: np.ndarray) -> np.ndarray:
    """(H, recency, tier, fatigue, A) of the customers who are not gone."""
    return table[:, :GONE].reshape(len(table), RECENCIES, TIERS, FATIGUES, -1)


@pytest.mark.parametrize(("kernel", "named"), DEPENDS_ON.items())
def test_by_default_kernels_depend_on_type_state_and_coupon_as_documented(kernel, named):
    """Oracle: the list in the module's docstring, axis by axis of the arrays."""
    table = at_home(getattr(make_world(WorldConfig(seed=5)), kernel))
    moved = {name for axis, name in enumerate(AXES) if (np.ptp(table, axis) > 1e-12).any()}
    assert moved == named


def test_by_default_coupons_and_fatigue_move_every_type_in_every_state():
    """Directions by definition, for each type in each state and not for some only."""
    world = make_world(WorldConfig(seed=5))
    redemption, margin, leaving = map(at_home, (world.redemption, world.margin, world.leaving))
    assert (np.diff(redemption[..., 1:], axis=3) < 0).all()  # the more tired, the less
    assert (np.diff(redemption, axis=4) > 0).all()  # larger coupons are forgotten less
    assert (np.diff(margin, axis=4) < 0).all()
    assert (leaving[..., 1] > leaving[..., 0]).all()
    assert (np.ptp(leaving[..., 1:], axis=4) == 0).all()  # of whatever face value
    assert (np.diff(leaving[..., 1], axis=3) > 0).all()
    assert (np.ptp(leaving[..., 0], axis=3) == 0).all()  # fatigue drives away with coupons only


def test_dial_of_the_effect():
    """Closed form: log odds of buying and the chance of leaving that coupons add go by the dial."""
    full, half = make_world(WorldConfig(seed=5)), make_world(WorldConfig(seed=5, effect=0.5))
    added = [logit(at_home(one.purchase)) for one in (full, half)]
    gains = [odds - odds[..., :1] for odds in added]
    assert gains[1] == pytest.approx(0.5 * gains[0])
    assert added[1][..., 0] == pytest.approx(added[0][..., 0])
    driven = [one.leaving - one.leaving[:, :, :1] for one in (full, half)]
    assert driven[1] == pytest.approx(0.5 * driven[0])
    for name in ("share", "redemption", "margin", "logging"):
        assert np.array_equal(getattr(full, name), getattr(half, name))


@pytest.mark.parametrize("dial", [0.0, 0.5])
def test_dial_of_fatigue(dial):
    """Closed form: each coupon that weighs takes the dial's share off a gain; harm stays whole."""
    odds = logit(at_home(make_world(WorldConfig(seed=4, fatigue=dial)).purchase))
    gain = odds[..., 1:] - odds[..., :1]
    fresh = gain[:, :, :, :1]
    helped = (fresh > 0).all(axis=(1, 2, 3, 4))
    assert helped.tolist() == [True, True, True, True, False, True]  # but for the sleeping dogs
    worn = (1 - dial) ** np.arange(FATIGUES)[:, None]
    assert gain[helped] == pytest.approx((fresh * worn)[helped])
    assert gain[~helped] == pytest.approx(np.broadcast_to(fresh, gain.shape)[~helped])


@pytest.mark.parametrize("dial", [0.0, 0.5, 1.0])
def test_dial_of_the_sleeping_dogs(dial):
    """Closed form: the fifth type has the share; the others divide the rest as before."""
    usual = make_world(WorldConfig(seed=4))
    world = make_world(WorldConfig(seed=4, sleeping_dogs=dial))
    others = np.arange(6) != 4
    assert world.share[4] == dial
    assert world.share[others] == pytest.approx(
        usual.share[others] * (1 - dial) / (1 - usual.share[4])
    )
    assert (world.purchase[4, :GONE, 1:] < world.purchase[4, :GONE, :1]).all()
    for name in ("purchase", "redemption", "margin", "leaving", "kernel"):
        assert np.array_equal(getattr(world, name), getattr(usual, name))


def test_the_tired_redeem_less_and_coupons_shrink_margins_as_the_dials_say():
    """Closed form: log odds fall by the dial per coupon that weighs, margins by the face value."""
    plain, world = make_world(CONSTANT), make_world(VARYING)
    fatigue = np.append(np.tile(np.arange(4), GONE // 4), 0)
    odds = [logit(one.redemption[:, :, 1:]) for one in (plain, world)]
    fall = np.broadcast_to(0.8 * fatigue[:, None], odds[0].shape)
    assert odds[0] - odds[1] == pytest.approx(fall)
    shrunk = plain.margin * (1 - 0.3 * np.array(FACE_VALUES) / 14)
    assert world.margin == pytest.approx(shrunk)


@pytest.mark.parametrize(
    "config",
    [WorldConfig(), CONFOUNDED, WorldConfig(effect=0.0), WorldConfig(sparsity=3.0), VARYING],
)
def test_kernels_are_probabilities(config):
    world = make_world(config)
    for chances in (world.purchase, world.redemption, world.leaving, world.kernel, world.logging):
        assert chances.min() >= 0
        assert chances.max() <= 1 + 1e-12
    for rows in (world.kernel.sum(axis=3), world.logging.sum(axis=2), world.share.sum()):
        np.testing.assert_allclose(rows, 1, rtol=1e-12)
