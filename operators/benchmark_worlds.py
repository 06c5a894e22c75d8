"""Which worlds a benchmark runs: families of dials, each with as many seeds as wanted.

What the dials do, and what depends on what in a world, is said in :mod:`winback.models.world`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from winback.models.errors import SettingsError
from winback.models.world import CAST, CONFOUNDED, World, WorldConfig, make_world, world_in_week
from winback.models.world_log import History, record_history
from winback.models.world_truth import Truth, week_problem

DRIFT = "drift"
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
    DRIFT: {},  # another world for the last quarter of the log, however long: see BenchmarkWorld
    "late orders": {"delay_days": 3},  # on Monday the weekend's orders are not there yet
    "thin overlap": {"confounding": 2 * CONFOUNDED, "overlap": 0.005},  # half all but certain
    "weak effect": {"effect": 0.5},  # about a quarter of the uplift is left to gain
    # about a third as many redeem at full fatigue (usually three quarters), and the largest
    # coupon takes a fifth off the margin (usually a twentieth)
    "tired and thrifty": {"redemption_by_fatigue": 0.6, "thrift": 0.2},
}
DIALS = tuple(dial.name for dial in fields(WorldConfig) if dial.name != "seed")
_CONFIG = TypeAdapter(WorldConfig)


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
        """The world's dials: the family's, and over them those turned for all worlds."""
        family = FAMILIES[self.family]
        if self.family == DRIFT:
            family = {**family, "drift_week": 3 * self.weeks // 4}
        return WorldConfig(**{"seed": self.seed, **family, **self.dials})

    @property
    def world_id(self) -> str:
        """Short hash of everything that makes this world what it is."""
        made_of = [CAST, asdict(self.config), self.customers, self.weeks]
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


def read_dials(given: Mapping[str, Any]) -> dict[str, Any]:
    """Dials by name, their values read from text where they are text.

    Raises:
        SettingsError: a name is unknown or a value impossible.
    """
    unknown = sorted(set(given) - set(DIALS))
    if unknown:
        raise SettingsError(f"dials: expected some of {', '.join(DIALS)}; came {unknown}")
    try:
        config = _CONFIG.validate_python(dict(given))
    except ValidationError as error:
        wrong = error.errors()[0]
        raise SettingsError(
            f"dial {wrong['loc'][0]}: {wrong['msg']} (came {wrong['input']!r})"
        ) from error
    return {name: getattr(config, name) for name in given}


def choose_worlds(
    count: int,
    customers: int,
    weeks: int,
    families: Sequence[str] = (),
    dials: Mapping[str, Any] | None = None,
) -> list[BenchmarkWorld]:
    """The first ``count`` worlds, family by family and then the next seed.

    Raises:
        SettingsError: a family is unknown, there would be no world, or a dial is wrong.
    """
    chosen, turned = list(families) or list(FAMILIES), read_dials(dials or {})
    unknown = sorted(set(chosen) - set(FAMILIES))
    if unknown or count < 1:
        raise SettingsError(
            f"benchmark: expected 1 world or more of {', '.join(FAMILIES)}; "
            f"came {count} of {', '.join(unknown or chosen)}"
        )
    size = len(chosen)
    return [
        BenchmarkWorld(chosen[i % size], i // size, customers, weeks, turned) for i in range(count)
    ]
