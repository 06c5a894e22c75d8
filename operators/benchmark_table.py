"""The table ``policy_benchmark``: one row per world and policy, kept from run to run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from winback import __version__
from winback.models.settings import load_settings
from winback.operators.benchmark_worlds import BenchmarkWorld
from winback.operators.warehouse import ensure_output_tables, read_table, transaction

FIGURES = (
    *("uplift", "percent", "spend", "spend_share", "given", "harm", "wasted"),
    *("stated_spend", "wanted_spend", "week_uplift", "stated_week_uplift", "stated_uplift"),
    *("cost_slope", "week_slope", "uplift_slope", "purchase_slope"),
)
# What winback says of its plan by the log; nobody else says anything.
VALUES = ("value_estimate", "value_lower", "value_upper", "value_true", "value_oracle")
KEY = ("world_id", "policy", "week")
COLUMNS = (
    *KEY,
    *("world", "family", "seed", "customers", "weeks", "config"),
    *("budget", "oracle_uplift", *FIGURES, *VALUES, "seconds", "code_version"),
)
READ = """
select * from {schema}.policy_benchmark
where world_id = any({worlds})
order by family, seed, week, policy
"""
DONE = """
select policy from {schema}.policy_benchmark
where world_id = {world_id} and week = {week} and code_version = {code_version}
"""
DBT_CODE = ("dbt_project/**/*.sql", "dbt_project/dbt_project.yml")
# What the figures of a rival or of a bound depend on; winback's depend on all code.
RIVAL_CODE = (
    *("models/world*.py", "operators/benchmark_worlds.py"),  # the worlds and what is true in them
    *("operators/world_source.py", "operators/sample.py"),  # their tables
    *("operators/benchmark_product.py", "operators/dbt_build.py", *DBT_CODE),  # their features
    *("operators/benchmark_peers.py", "operators/snapshots.py", "operators/warehouse.py"),
    *("models/peers*.py", "models/allocation*.py", "operators/benchmark.py"),  # their decisions
    *("models/survival*.py", "models/histories.py", "models/logistic.py"),  # the reference system
    "models/calibration.py",  # the slopes
)
ALL_CODE = ("models/*.py", "operators/*.py", *DBT_CODE)


def version_of(settings: Mapping[str, Any], *, is_rival: bool = False) -> str:
    """What a row's figures come from: the code, and the settings changed that matter to them."""
    code = _code_version(is_rival)
    if not settings:
        return code
    chosen = load_settings(settings, {})  # "2" and 2.0 are the same setting
    text = chosen.model_dump_json(include=set(settings))
    return f"{code}.{hashlib.sha256(text.encode()).hexdigest()[:4]}"


@cache
def _code_version(is_rival: bool) -> str:
    """The package's version and a hash of the files that a policy's figures depend on."""
    root = Path(str(files("winback")))
    digest = hashlib.sha256()
    for pattern in RIVAL_CODE if is_rival else ALL_CODE:
        for path in sorted(root.glob(pattern)):
            digest.update(path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"


def prepare(url: str, schema: str) -> None:
    """Make the table where it is missing."""
    ensure_output_tables(url, schema, f"{schema}_work")


def policies_done(
    url: str, schema: str, world: BenchmarkWorld, version: str, week: int = 0
) -> set[str]:
    """Policies that have a row of this world by this version of code and settings."""
    names = {"schema": _identifier(schema), "world_id": world.world_id, "week": week}
    names["code_version"] = version
    return set(read_table(url, DONE, names)["policy"].to_pylist())


def write_row(
    url: str,
    schema: str,
    world: BenchmarkWorld,
    policy: str,
    figures: Mapping[str, Any],
    *,
    version: str,
    week: int = 0,
) -> dict[str, Any]:
    """Put in one policy's figures, in place of older ones; return the row."""
    row = {
        **{"world_id": world.world_id, "policy": policy, "week": week},
        **{"world": world.name, "family": world.family, "seed": world.seed},
        **{"customers": world.customers, "weeks": world.weeks},
        "config": json.dumps(asdict(world.config), sort_keys=True),
        "code_version": version,
        **dict.fromkeys(VALUES),
        **figures,
    }
    with transaction(url) as connection:
        connection.execute(_upsert(schema), row)
    return row


def read_rows(url: str, schema: str, worlds: Sequence[BenchmarkWorld]) -> list[dict[str, Any]]:
    """All rows of some worlds, as mappings."""
    names = {"schema": _identifier(schema), "worlds": [world.world_id for world in worlds]}
    rows: list[dict[str, Any]] = read_table(url, READ, names).to_pylist()
    return rows


def _upsert(schema: str) -> Any:
    from psycopg import sql

    kept = [name for name in COLUMNS if name not in KEY]
    return sql.SQL(
        "insert into {table} ({columns}) values ({values}) on conflict ({key}) "
        "do update set {changes}, measured_at = now()"
    ).format(
        table=sql.Identifier(schema, "policy_benchmark"),
        columns=sql.SQL(", ").join(map(sql.Identifier, COLUMNS)),
        values=sql.SQL(", ").join(map(sql.Placeholder, COLUMNS)),
        key=sql.SQL(", ").join(map(sql.Identifier, KEY)),
        changes=sql.SQL(", ").join(
            sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in kept
        ),
    )


def _identifier(name: str) -> Any:
    from psycopg import sql

    return sql.Identifier(name)
