"""The closed loop: a known world lives on under a policy's own decisions, week after week."""

import time
from dataclasses import replace
from typing import Any

import numpy as np

from winback.models.allocation import Floats, Ints, solve_budget
from winback.models.errors import SettingsError
from winback.models.peers_judgement import Stated, judge
from winback.models.world import make_world, world_in_week
from winback.models.world_log import History, continue_history, record_history
from winback.models.world_truth import Truth, week_problem
from winback.operators.benchmark import (
    OBSERVER,
    BenchmarkOptions,
    Say,
    deciders,
    in_words,
    read_decisions,
    scratch,
)
from winback.operators.benchmark_product import (
    ABLATIONS,
    PRODUCT,
    Place,
    Product,
    build_features,
)
from winback.operators.benchmark_table import policies_done, prepare, version_of, write_row
from winback.operators.benchmark_worlds import BenchmarkWorld, KnownWorld
from winback.operators.publish import append_decisions
from winback.operators.warehouse import transaction
from winback.operators.world_source import write_world


def run_loop(
    world: BenchmarkWorld, options: BenchmarkOptions, say: Say, weeks: int
) -> list[dict[str, Any]]:
    """Let the policies named in the options, or winback, decide for ``weeks`` weeks in one world.

    Each policy has the same log, and from then on a history of its own.

    Returns:
        Per policy the rows of the weeks 1, 2, …; none of policies of which the table has the last
        week by the present code.

    Raises:
        SettingsError: the best observer is among them, which takes every coupon on record for one
            that the log's own policy gave.
    """
    if OBSERVER in options.policies:
        raise SettingsError(f"policies: expected some that can live in a loop; came {OBSERVER}")
    prepare(options.url, options.schema)
    version = version_of(options.settings)
    done = policies_done(options.url, options.schema, world, version, weeks)
    rows = []
    for policy in options.policies or (PRODUCT,):
        if policy in done and not options.fresh:
            say(f"{world.name}: the loop of {policy} is in the table already")
        else:
            rows += _live(world, policy, options, say, weeks)
    return rows


def _live(
    world: BenchmarkWorld, policy: str, options: BenchmarkOptions, say: Say, weeks: int
) -> list[dict[str, Any]]:
    """One policy's weeks: winback's with holdout and exploration as in daily use.

    Every week has the budget of the first one, and starts from all that is on record by then,
    earlier decisions with their propensities included.
    """
    first = make_world(world.config)
    history = record_history(first, world.customers, world.weeks)
    random = np.random.default_rng([world.seed, 19])
    budget, rows = None, []
    with scratch(world, options) as place:
        for week in range(1, weeks + 1):
            today = world_in_week(first, history.weeks)
            truth = _at(week_problem(today, history.people), budget)
            budget = truth.budget
            known = KnownWorld(first, today, history, truth)
            row, history = _week(world, policy, known, place, options, week, random)
            say(f"{world.name}, week {week:2d}: {in_words(policy, row)}")
            rows.append(row)
    return rows


def _week(
    world: BenchmarkWorld,
    policy: str,
    known: KnownWorld,
    place: Place,
    options: BenchmarkOptions,
    week: int,
    random: np.random.Generator,
) -> tuple[dict[str, Any], History]:
    """One week: decide, judge the decisions, and let them happen."""
    began = time.monotonic()
    product = _with_features(known, place, options, known.history.weeks - week + 1)
    coupon, stated, propensity = _decide(policy, known, product)
    figures = judge(known.today, known.history.people, known.truth, coupon, stated)
    figures |= {"budget": known.truth.budget, "oracle_uplift": known.truth.oracle_uplift}
    figures["seconds"] = time.monotonic() - began
    version = version_of(options.settings)
    row = write_row(options.url, options.schema, world, policy, figures, version=version, week=week)
    following = continue_history(known.today, known.history, coupon, propensity, random)
    return row, following


def _with_features(
    known: KnownWorld, place: Place, options: BenchmarkOptions, decided_from: int
) -> Product:
    """winback in the week to decide, its features built from all that is on record."""
    budget = known.truth.budget
    as_of = write_world(
        place.url, known.world, known.history,
        budget=budget, schema=place.sources, decided_from=decided_from,
    )  # fmt: skip
    run = place.run(as_of.isoformat(), **{"budget": budget, "cadence_days": 7, **options.settings})
    build_features(run)
    return Product(run)


def _decide(policy: str, known: KnownWorld, product: Product) -> tuple[Ints, Stated, Floats]:
    """(n,) coupons, what was said of them, and the chances with which they were drawn."""
    if policy in ABLATIONS:
        rows = product.recommend(ABLATIONS[policy])
        with transaction(product.run.url) as connection:
            append_decisions(connection, product.run)  # what the next week's log is compared with
        return read_decisions(known, rows)
    coupon, stated = deciders(known, product)[policy]()
    return coupon, stated, np.ones(len(coupon))  # certain; the lot of `random` is read by nobody


def _at(truth: Truth, budget: float | None) -> Truth:
    """The same week with another budget; the oracle spends that."""
    if budget is None:
        return truth
    eligible = np.ones(truth.cost.shape, np.bool_)
    best = solve_budget(truth.uplift, truth.cost, budget, eligible)
    return replace(truth, budget=budget, oracle=best.coupon, oracle_uplift=best.primal_value)
