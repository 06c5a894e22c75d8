"""winback itself on a known world: the steps of the daily run, in order, in schemas of their own.

The steps are the functions that the operators of ``winback_daily`` call. Left out are the scheduler
with its record of runs, the drift checks, the evaluation with its gate, publishing, and reports.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from winback.models.errors import DataError, SettingsError
from winback.models.settings import load_settings
from winback.operators.run import Run
from winback.operators.warehouse import ensure_output_tables, read_table, transaction

# Greedy decisions for everybody: what is measured is the policy, not its experiments. The worlds
# decide once a week, and their budget is a week's.
MEASURED: dict[str, Any] = {"holdout_share": 0.0, "exploration_rate": 0.0, "cadence_days": 7}

# winback, and winback with a part taken away: settings that differ from the defaults.
ABLATIONS: dict[str, dict[str, Any]] = {
    "winback": {},
    "winback without pessimism": {"pessimism": 0.0},
    "winback without BG/NBD": {"use_survival": False},
    "winback without the Transformer": {"use_transformer": False},
    "winback without planning": {"use_planning": False},
    "winback with Q for Q_λ": {"use_long_run_price": False},
    "winback with one class": {"response_classes": 1},
}
PRODUCT = "winback"

FEATURES, SURVIVAL, PROFIT = "dbt_features", "fit_survival", "train_profit"
RESPONSE, PLAN = "fit_response", "plan"
# Where a run has to begin again when a setting changes; what is not named here: at the plan.
FIRST_STEP = {
    "as_of": FEATURES,
    "source_schema": FEATURES,
    "schema_name": FEATURES,
    "artifacts_uri": FEATURES,
    "timezone": FEATURES,
    "decision_days": FEATURES,
    "default_margin_rate": FEATURES,
    "decisions_are_offers": FEATURES,
    "max_contacts_days": FEATURES,
    "survival_engine": SURVIVAL,
    "survival_penalizer": SURVIVAL,
    "use_survival": PROFIT,
    "max_training_rows": PROFIT,
    "epochs": PROFIT,
    "patience": PROFIT,
    "batch_size": PROFIT,
    "learning_rate": PROFIT,
    "validation_share": PROFIT,
    "device": PROFIT,
    "seed": PROFIT,
    "use_transformer": RESPONSE,
    "response_classes": RESPONSE,
    "max_response_customers": RESPONSE,
}

RECOMMENDATIONS = """
select
    customer_id, coupon_id, propensity, expected_cost, expected_uplift, long_run_uplift,
    coalesce(p_purchase, 0)::double precision as p_purchase
from {work}.recommendations
where as_of = {as_of}
order by customer_id
"""


@dataclass(frozen=True)
class Place:
    """Schemas and a folder for one world's tables and artifacts, apart from everybody's own."""

    url: str
    name: str
    artifacts_uri: str

    @property
    def sources(self) -> str:
        """Schema of the source tables."""
        return f"{self.name}_raw"

    def run(self, as_of: str, **settings: Any) -> Run:
        """A run of the product in this place.

        What is not given has its default, whatever the environment says: figures hang on the code
        and on ``settings`` alone.
        """
        own = {
            "as_of": as_of,
            "source_schema": self.sources,
            "schema_name": self.name,
            "artifacts_uri": self.artifacts_uri,
        }
        return Run(self.url, as_of, "benchmark", load_settings({**settings, **own}, {}))

    def clear(self) -> None:
        """Drop the schemas with all that is in them."""
        from psycopg import sql

        with transaction(self.url) as connection:
            for suffix in ("_raw", "_staging", "_work", ""):
                name = sql.Identifier(f"{self.name}{suffix}")
                connection.execute(sql.SQL("drop schema if exists {} cascade").format(name))


def build_features(run: Run) -> None:
    """dbt, with the tests of the nightly run.

    Raises:
        DataError: a model or a data test failed; the message ends in dbt's own words.
    """
    from winback.operators.dbt_build import PROJECT, SETTING_VARS

    ensure_output_tables(run.url, run.settings.schema_name, run.settings.work_schema)
    chosen = run.settings.model_dump(mode="json")
    variables = {name: chosen[name] for name in SETTING_VARS}
    variables |= {"as_of": run.as_of, "run_id": run.run_id}
    with tempfile.TemporaryDirectory(prefix="winback-dbt-") as folder:
        command = [sys.executable, "-m", "dbt.cli.main", "build", "--select", "tag:features"]
        command += ["--exclude-resource-type", "unit_test", "--vars", json.dumps(variables)]
        command += ["--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT)]
        environment = {**os.environ, **_profile(run), "DBT_TARGET_PATH": folder}
        environment |= {"DBT_LOG_PATH": folder, "DBT_SEND_ANONYMOUS_USAGE_STATS": "false"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"dbt build, as of {run.as_of}: {(done.stdout + done.stderr)[-3000:]}")


def _profile(run: Run) -> dict[str, str]:
    """The environment variables that ``profiles.yml`` reads."""
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(run.url)
    names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
    names["dbname"] = "DBNAME"
    profile = {f"WINBACK_PG_{names[key]}": str(parts[key]) for key in names if key in parts}
    return {**profile, "WINBACK_SCHEMA_NAME": run.settings.schema_name}


def fit(run: Run) -> None:
    """Fit BG/NBD and score every customer."""
    from winback.operators.fit_survival import fit_and_score

    fit_and_score(run)


def train(run: Run) -> None:
    """Train the profit model in its own process, as the operator does."""
    from winback.operators.artifacts import CHECKPOINT_STATE
    from winback.operators.train_profit import outcome, start_training

    if run.artifacts.exists(CHECKPOINT_STATE):  # of other settings or an older log
        (run.artifacts.folder / CHECKPOINT_STATE).unlink()
    process = start_training(run)
    last: dict[str, Any] = {}
    for line in process.stdout or ():
        last = json.loads(line)
    outcome(process.wait(), last)


def respond(run: Run) -> None:
    """Fit the response model."""
    from winback.operators import fit_response

    fit_response.fit(run)


def plan_and_allocate(run: Run) -> None:
    """Plan, score every customer, and decide."""
    from winback.operators.allocate_coupons import allocate
    from winback.operators.plan import plan
    from winback.operators.score_customers import list_shards, score_shard

    plan(run)
    for part in list_shards(run):
        score_shard(run, **part)
    allocate(run)


def check(run: Run, *suites: str) -> None:
    """The data checks of the daily run; a critical failure ends the benchmark."""
    from winback.operators.check_data import check_data

    for suite in suites:
        check_data(run, suite)


STEPS: dict[str, Callable[[Run], None]] = {
    SURVIVAL: fit,
    PROFIT: train,
    RESPONSE: respond,
    PLAN: plan_and_allocate,
}


class Product:
    """winback in one place at one date; variants re-run only the steps that they change."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._done: dict[str, dict[str, Any]] = {}  # settings that each step last ran with

    def recommend(self, overrides: Mapping[str, Any]) -> Any:
        """Decide with some settings changed; the recommendations as an Arrow table.

        Raises:
            SettingsError: a setting is unknown, or shapes the features, which all variants share.
        """
        _check_names(overrides, set(type(self.run.settings).model_fields))
        settings = load_settings({**self.run.settings.model_dump(), **overrides}, {})
        run, stale = replace(self.run, settings=settings), False
        for step, function in STEPS.items():
            used = {k: v for k, v in overrides.items() if FIRST_STEP.get(k, PLAN) == step}
            stale = stale or self._done.get(step) != used
            if stale:
                self._done[step] = used
                function(run)
        return read_table(run.url, RECOMMENDATIONS, run.names)


def shaping_features(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that the features depend on."""
    return {key: value for key, value in settings.items() if FIRST_STEP.get(key) == FEATURES}


def _check_names(overrides: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise SettingsError(f"benchmark: no such settings: {', '.join(unknown)}")
    fixed = sorted(shaping_features(overrides))
    if fixed:
        raise SettingsError(
            "benchmark: expected settings of steps after the features, which are built once for "
            f"all variants; came {', '.join(fixed)}. Set them for all variants instead."
        )
