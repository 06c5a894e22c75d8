"""Which worlds a benchmark runs: families of dials, each with as many seeds as wanted."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from winback.models.errors import SettingsError
from winback.models.world import CONFOUNDED, World, WorldConfig, make_world, world_in_week
from winback.models.world_log import History, record_history
from winback.models.world_truth import Truth, week_problem

# In the order in which they are run: the first ones answer the first questions.
FAMILIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "confounded": {"confounding": CONFOUNDED},
    "propensities missing": {"confounding": CONFOUNDED, "propensities_logged": False},
    "null": {"effect": 0.0},
    "sleeping dogs": {"sleeping_dogs": 0.3},  # instead of .12
    "tight budget": {"budget_tightness": 0.15},  # instead of .35
    "strong fatigue": {"fatigue": 0.5},  # half of the effect is lost with each coupon
    "sparse": {"sparsity": 1.0},  # about a third of the purchases
}


@dataclass(frozen=True)
class BenchmarkWorld:
    """One world of a benchmark: a family, a seed, a size, and dials turned for all worlds."""

    family: str
    seed: int
    customers: int
    weeks: int
    dials: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What people read: ``plain 0``."""
        return f"{self.family} {self.seed}"

    @property
    def config(self) -> WorldConfig:
        """The world's dials."""
        return WorldConfig(**{"seed": self.seed, **FAMILIES[self.family], **self.dials})

    @property
    def world_id(self) -> str:
        """Short hash of everything that makes this world what it is."""
        made_of = [asdict(self.config), self.customers, self.weeks]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``BenchmarkWorld(**values)`` is the inverse."""
        return asdict(self)

    def make(self) -> "KnownWorld":
        """Build the world, let its log happen, and solve its week exactly."""
        world = make_world(self.config)
        history = record_history(world, self.customers, self.weeks)
        today = world_in_week(world, self.weeks)
        return KnownWorld(world, today, history, week_problem(today, history.people))


@dataclass(frozen=True)
class KnownWorld:
    """A world whose log has happened; ``today`` is it in the week to decide."""

    world: World
    today: World
    history: History
    truth: Truth


def choose_worlds(
    count: int,
    customers: int,
    weeks: int,
    families: Sequence[str] = (),
    dials: Mapping[str, Any] | None = None,
) -> list[BenchmarkWorld]:
    """The first ``count`` worlds, family by family and then the next seed.

    Raises:
        SettingsError: a family is unknown, or there would be no world.
    """
    chosen = list(families) or list(FAMILIES)
    unknown = sorted(set(chosen) - set(FAMILIES))
    if unknown or count < 1:
        raise SettingsError(
            f"benchmark: expected 1 world or more of {', '.join(FAMILIES)}; "
            f"came {count} of {', '.join(unknown or chosen)}"
        )
    size = len(chosen)
    return [
        BenchmarkWorld(chosen[i % size], i // size, customers, weeks, dict(dials or {}))
        for i in range(count)
    ]
