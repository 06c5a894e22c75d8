"""The benchmark: policies in worlds whose best policy is known, through the source tables.

Each world is written into source tables of its own, goes through dbt and the steps of the daily
run, and every policy decides for its customers from the same snapshots and the same budget. What
a policy brings is then read off the world itself.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from winback.models.allocation import Floats, Ints, pick
from winback.models.errors import SettingsError, WinbackError
from winback.models.peers import decide, policies
from winback.models.peers_data import PeerData
from winback.models.peers_judgement import Stated, bounds, judge
from winback.models.peers_learners import Learners
from winback.models.settings import load_settings
from winback.models.world import FACE_VALUES
from winback.models.world_observer import best_observer
from winback.operators.benchmark_peers import read_peer_data
from winback.operators.benchmark_product import (
    ABLATIONS,
    MEASURED,
    PRODUCT,
    Place,
    Product,
    build_features,
    check,
    shaping_features,
)
from winback.operators.benchmark_table import policies_done, prepare, version_of, write_row
from winback.operators.benchmark_value import value_figures
from winback.operators.benchmark_worlds import BenchmarkWorld, KnownWorld
from winback.operators.world_source import COUPONS, customer_numbers, write_world

Say = Callable[[str], None]
OBSERVER = "best observer"
BOUNDS = ("oracle", OBSERVER, "oracle, this week only", "oracle, state only")


@dataclass(frozen=True)
class BenchmarkOptions:
    """Where a benchmark keeps its table, and what it leaves out.

    Attributes:
        url: of the warehouse.
        schema: whose ``policy_benchmark`` the rows go to.
        policies: names of those to run; empty: all.
        settings: of winback, for all its variants; the others have their defaults, whatever the
            environment says.
        fresh: run what the table already has by the present code.
    """

    url: str
    schema: str = "winback"
    policies: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False

    def __post_init__(self) -> None:
        load_settings(self.settings, {})  # refused before the first world is made
        unknown = sorted(set(self.policies) - set(all_policies()))
        if unknown:
            raise SettingsError(
                f"policies: expected some of {', '.join(all_policies())}; came {', '.join(unknown)}"
            )

    def wants(self, policy: str) -> bool:
        """Whether a policy is to be run."""
        return not self.policies or policy in self.policies


def all_policies() -> list[str]:
    """Every policy's name: what perfect knowledge brings, the rivals, winback and its variants."""
    return [*BOUNDS, *policies(np.array(FACE_VALUES)), *ABLATIONS]


def run_world(world: BenchmarkWorld, options: BenchmarkOptions, say: Say) -> list[dict[str, Any]]:
    """Run all policies in one world that the table does not have yet; return their rows."""
    prepare(options.url, options.schema)
    missing = policies_to_run(world, options)
    if not missing:
        say(f"{world.name}: in the table already")
        return []
    began = time.monotonic()
    known = world.make()
    with scratch(world, options) as place:
        as_of = write_world(
            place.url, known.world, known.history, budget=known.truth.budget, schema=place.sources
        )
        settings = {**MEASURED, "budget": known.truth.budget, **options.settings}
        product = Product(place.run(as_of.isoformat(), **settings))
        build_features(product.run)
        check(product.run, "sources", "features")
        say(f"{world.name}: log and features ready, {time.monotonic() - began:.0f} s")
        by_name = deciders(known, product)
        own = partial(value_figures, known, product.run)
        record = partial(_measure, world=world, known=known, own=own, options=options, say=say)
        return [record(policy, by_name[policy]) for policy in missing]


def run_worlds(
    worlds: Sequence[BenchmarkWorld],
    options: BenchmarkOptions,
    say: Say,
    run: Callable[[BenchmarkWorld, BenchmarkOptions, Say], Any] = run_world,
) -> list[str]:
    """Run one world after the other; return the names of those that failed, and say why."""
    began, failed = time.monotonic(), []
    for number, world in enumerate(worlds, start=1):
        try:
            run(world, options, say)
        except WinbackError as error:
            failed.append(world.name)
            say(f"{world.name}: failed. {error}")
        spent = time.monotonic() - began
        left = spent / number * (len(worlds) - number)
        say(f"{number} of {len(worlds)} worlds, {spent / 60:.0f} min, about {left / 60:.0f} to go")
    return failed


@contextmanager
def scratch(world: BenchmarkWorld, options: BenchmarkOptions) -> Iterator[Place]:
    """Schemas and a folder for one world, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="winback-benchmark-") as folder:
        name = f"{options.schema}_benchmark_{world.world_id}"
        place = Place(options.url, name, Path(folder).as_uri())
        place.clear()
        try:
            yield place
        finally:
            place.clear()


Decider = Callable[[], tuple[Ints, Stated]]


def deciders(known: KnownWorld, product: Product) -> dict[str, Decider]:
    """What each policy decides, by name; the rivals share one reading of the warehouse."""
    shared = _Shared(known, product)
    perfect = bounds(known.truth, known.history.people)
    observer = partial(best_observer, known.world, known.today, known.history, known.truth)
    rivals = policies(np.array(FACE_VALUES))
    return {
        OBSERVER: partial(_perfect, observer),
        **{name: partial(_perfect, best) for name, best in perfect.items()},
        **{name: partial(shared.rival, name) for name in rivals},
        **{name: partial(_variant, known, product, chosen) for name, chosen in ABLATIONS.items()},
    }


class _Shared:
    """The rivals' data and forecasts, read and learned once when first needed."""

    def __init__(self, known: KnownWorld, product: Product) -> None:
        self._known, self._product = known, product
        self._data: PeerData | None = None

    def rival(self, name: str) -> tuple[Ints, Stated]:
        """One rival's coupons."""
        if self._data is None:
            self._data, ids = read_peer_data(self._product.run, self._known.truth.budget)
            self._row = customer_numbers(ids)
            self._learners = Learners(self._data)
        decision = decide(name, self._data, self._learners)
        cost = pick(self._learners.cost, decision.coupon)
        spread = partial(_spread, row=self._row, known=self._known)
        return spread(decision.coupon), Stated(
            cost=spread(cost), wanted_spend=decision.wanted_spend
        )


def _perfect(best: Callable[[], Ints]) -> tuple[Ints, Stated]:
    return best(), Stated()


def _variant(known: KnownWorld, product: Product, chosen: Mapping[str, Any]) -> tuple[Ints, Stated]:
    """winback with some settings changed."""
    rows = product.recommend(chosen)
    if not chosen:
        check(product.run, "scores", "recommendations")
    coupon, stated, _ = read_decisions(known, rows)
    return coupon, stated


def read_decisions(known: KnownWorld, rows: Any) -> tuple[Ints, Stated, Floats]:
    """Recommendations, (n,) by customer of the world: coupons, what was said of them, chances."""
    row = customer_numbers(rows["customer_id"].to_pylist())
    coupon = np.array([COUPONS.index(name) for name in rows["coupon_id"].to_pylist()], np.int64)
    columns = {
        "cost": "expected_cost",
        "week_uplift": "expected_uplift",
        "long_run_uplift": "long_run_uplift",
        "purchase": "p_purchase",
    }
    said = {
        name: _spread(rows[column].to_numpy(), row=row, known=known)
        for name, column in columns.items()
    }
    propensity = np.ones(len(known.history.first_week))
    propensity[row] = rows["propensity"].to_numpy()
    return _spread(coupon, row=row, known=known), Stated(**said), propensity


def _spread(values: Any, *, row: Ints, known: KnownWorld) -> Any:
    """Values of some customers among those of all; 0 for who is not in the tables yet."""
    full = np.zeros(len(known.history.first_week), dtype=values.dtype)
    full[row] = values
    return full


def _measure(
    policy: str,
    decider: Decider,
    *,
    world: BenchmarkWorld,
    known: KnownWorld,
    own: Callable[[], Mapping[str, Any]],
    options: BenchmarkOptions,
    say: Say,
) -> dict[str, Any]:
    """One policy decides and is judged; winback's ``own`` estimate of its value is, too."""
    began = time.monotonic()
    coupon, stated = decider()
    figures = judge(known.today, known.history.people, known.truth, coupon, stated)
    figures |= {"budget": known.truth.budget, "oracle_uplift": known.truth.oracle_uplift}
    figures["seconds"] = time.monotonic() - began
    if policy == PRODUCT:
        figures |= own()
    say(f"{world.name}: {in_words(policy, figures)}")
    version = _version(options, is_rival=policy not in ABLATIONS)
    return write_row(options.url, options.schema, world, policy, figures, version=version)


def in_words(policy: str, figures: Mapping[str, Any]) -> str:
    """One policy's main figures on one line."""
    percent = figures["percent"]
    gains = f"{figures['uplift']:8.0f} of uplift where none can be gained"
    brings = gains if percent is None else f"{percent:6.1f} % of the oracle's uplift"
    spent = figures["spend_share"]
    return (
        f"{policy:28s}{brings}, {spent or 0:.2f} of the budget, "
        f"{100 * figures['harm']:.0f} % harm, {100 * figures['wasted']:.0f} % wasted, "
        f"{figures['seconds']:.0f} s"
    )


def _version(options: BenchmarkOptions, *, is_rival: bool) -> str:
    """Rivals read winback's features, and nothing else of it."""
    settings = shaping_features(options.settings) if is_rival else options.settings
    return version_of(settings, is_rival=is_rival)


def policies_to_run(world: BenchmarkWorld, options: BenchmarkOptions) -> list[str]:
    """Those wanted of which the table has no row of this code and these settings."""
    wanted = [policy for policy in all_policies() if options.wants(policy)]
    if options.fresh:
        return wanted
    done = partial(policies_done, options.url, options.schema, world)
    rivals = done(_version(options, is_rival=True))
    variants = done(_version(options, is_rival=False))
    return [name for name in wanted if name not in (variants if name in ABLATIONS else rivals)]
