"""Which worlds a benchmark runs, and that measured ones stay the same."""

import json

import numpy as np
import pytest

from winback.operators.benchmark_worlds import (
    FAMILIES,
    BenchmarkWorld,
    choose_worlds,
    read_dials,
)


def test_the_first_worlds_go_through_the_families():
    worlds = choose_worlds(len(FAMILIES) + 1, 10, 5)
    assert [world.family for world in worlds[:-1]] == list(FAMILIES)
    assert worlds[-1].name == "plain 1"
    assert len({world.world_id for world in worlds}) == len(worlds)
    assert list(FAMILIES)[:4] == ["plain", "confounded", "propensities missing", "null"]


@pytest.mark.parametrize(
    ("family", "seed", "dials", "world_id"),
    [
        ("plain", 3, {}, "86cc41fe17b5"),
        ("propensities missing", 3, {}, "21694a3d8854"),
        ("sparse", 3, {}, "03050311b660"),
        ("plain", 3, {"confounding": 1}, "4cf94e3e3914"),
    ],
)
def test_worlds_that_were_measured_keep_their_ids(family, seed, dials, world_id):
    """Oracle: the ids in the rows behind the README's table."""
    assert BenchmarkWorld(family, seed, 20_000, 40, read_dials(dials)).world_id == world_id


@pytest.mark.parametrize("dial", ["redemption_by_fatigue", "thrift"])
def test_a_dial_that_is_turned_makes_another_world(dial):
    plain, other = (BenchmarkWorld("plain", 0, 10, 5, read_dials({dial: x})) for x in (0, "0.1"))
    assert plain.world_id != other.world_id


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_leaves_something_to_gain_but_the_null_worlds(family):
    """And a budget to waste; in a short log as in a long one."""
    known = BenchmarkWorld(family, 0, 200, 6).make()
    assert (known.truth.oracle_uplift > 0) == (family != "null")
    assert known.truth.budget > 0


@pytest.mark.parametrize("weeks", [2, 3, 6, 40])
def test_the_last_quarter_of_a_drifting_log_is_another_world(weeks):
    """Oracle: the calendar; and the week to decide is that of the other world, too."""
    known = BenchmarkWorld("drift", 0, 20, weeks).make()
    week = known.world.config.drift_week
    assert weeks / 2 <= week < weeks
    assert weeks - week == -(-weeks // 4)
    assert not np.array_equal(known.today.purchase, known.world.purchase)


def test_dials_are_read_from_text_and_turn_over_the_familys():
    text = {"drift_week": "3", "propensities_logged": "false", "effect": "2", "overlap": ".1"}
    (world,) = choose_worlds(1, 10, 20, ["drift"], text)
    config = world.config
    assert (config.drift_week, config.propensities_logged) == (3, False)
    assert (config.effect, config.overlap) == (2.0, 0.1)
    again = BenchmarkWorld(**json.loads(json.dumps(world.to_dict())))
    assert (again, again.world_id) == (world, world.world_id)
