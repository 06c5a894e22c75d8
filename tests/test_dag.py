"""The DAG file: it loads fast and without errors, and says what the daily run is."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization

from winback.models.errors import (
    DataError,
    HeldError,
    NotFittedError,
    SettingsError,
    StoreUnavailableError,
)
from winback.models.settings import DEPLOYMENT_SETTINGS, Settings, load_settings
from winback.operators.benchmark_steps import ListWorldsOperator
from winback.operators.console import STEPS

DAGS = Path(__file__).resolve().parent.parent / "dags"
ORDER = [
    "start_run",
    "check_sources",
    "dbt_features",
    "check_features",
    "fit_survival",
    "check_scores",
    "check_drift",
    "train_profit",
    "fit_response",
    "plan",
    "list_shards",
    "score_customers",
    "allocate_coupons",
    "evaluate_policy",
    "check_recommendations",
    "publish",
    "dbt_reports",
    "report",
    "finish_run",
]
HEAVY = ("dbt", "great_expectations", "lifetimes", "matplotlib", "numba", "pandas", "pyarrow")
HEAVY += ("scipy", "sklearn", "torch")
IMPORT = "import sys, winback.dags.winback_daily, winback.dags.winback_benchmark"
IMPORT += "; print(*sys.modules)"


@pytest.fixture(scope="module")
def dags():
    bag = DagBag(DAGS)
    assert bag.import_errors == {}
    assert sorted(bag.dags) == ["winback_benchmark", "winback_daily"]
    return bag.dags


@pytest.fixture(scope="module")
def dag(dags):
    return dags["winback_daily"]


@pytest.fixture(scope="module")
def benchmark_dag(dags):
    return dags["winback_benchmark"]


def test_the_steps_form_one_chain(dag):
    assert [task.task_id for task in dag.topological_sort()] == ORDER
    for task_id, following in pairwise(ORDER):
        assert following in dag.get_task(task_id).downstream_task_ids


def test_finish_run_is_the_teardown(dag):
    """It runs after failures too; the run's own result stays that of the other tasks."""
    finish = dag.get_task("finish_run")
    assert finish.is_teardown
    assert not finish.on_failure_fail_dagrun
    assert dag.get_task("start_run").is_setup


def test_the_terminal_has_words_for_every_step():
    assert [*STEPS, "finish_run"] == ORDER


def test_publishing_updates_both_assets(dag):
    assets = {task.task_id: {asset.name for asset in task.outlets} for task in dag.tasks}
    both = {"winback://recommendations", "winback://q_table"}
    assert assets == {task_id: both if task_id == "publish" else set() for task_id in ORDER}


def test_it_says_what_it_is_and_whose(dag):
    assert dag.doc_md
    assert "winback.current_recommendations" in dag.doc_md
    assert dag.description
    assert "winback" in dag.tags
    assert {task.owner for task in dag.tasks} == {"winback"}
    assert not dag.catchup
    assert dag.max_active_runs == 1


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (DataError("x"), RetryAction.FAIL),
        (SettingsError("x"), RetryAction.FAIL),
        (NotFittedError("x"), RetryAction.FAIL),
        (HeldError("x"), RetryAction.FAIL),
        (StoreUnavailableError("x"), RetryAction.RETRY),
        (MemoryError("x"), RetryAction.FAIL),
        (RuntimeError("x"), RetryAction.DEFAULT),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_retry_depends_on_the_error(dag, error, action):
    """The default action is to use up the configured number of tries."""
    for task in dag.tasks:
        assert task.retry_policy.evaluate(error, try_number=1, max_tries=2).action == action
        assert task.retries == load_settings().task_retries
        assert task.execution_timeout == timedelta(hours=load_settings().task_timeout_hours)


def test_the_form_has_every_setting_of_a_run(dag):
    assert list(dag.params) == [n for n in Settings.model_fields if n not in DEPLOYMENT_SETTINGS]
    for name, field in Settings.model_fields.items():
        if name not in DEPLOYMENT_SETTINGS:
            assert dag.params.get_param(name).schema["description_md"] == field.description


def test_the_form_starts_with_the_settings(dag):
    assert load_settings(dag.params.dump()) == load_settings()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("as_of", ["2024-07-29", None], ["next week", 7]),
        ("budget", [0, 12.5, None], [-1, "much"]),
        ("publish", [True, False], ["perhaps"]),
        ("decision_days", [1, 30], [0, 31, 1.5]),
        ("gamma", [0, 0.99], [1, -0.1]),
        ("survival_engine", ["winback", "lifetimes"], ["magic"]),
        ("allowed_coupons", [[], ["save5"]], ["save5"]),
        ("source_schema", ["raw"], ["raw; drop table x"]),
    ],
)
def test_the_form_takes_what_the_settings_take(dag, name, good, bad):
    """Oracle: the settings' own validation."""
    for value in good:
        assert dag.params.get_param(name).resolve(value) == value
        load_settings({name: value})
    for value in bad:
        with pytest.raises(ParamValidationError):
            dag.params.get_param(name).resolve(value)
        with pytest.raises(SettingsError):
            load_settings({name: value})


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("dials", [{}, {"confounding": 2, "propensities_logged": False}], [None, ["effect=2"]]),
        ("families", [[], ["drift"]], ["drift"]),
        ("weeks", [2, 40], [1, "many"]),
    ],
)
def test_the_benchmarks_form_takes_what_a_world_takes(benchmark_dag, name, good, bad):
    for value in good:
        assert benchmark_dag.params.get_param(name).resolve(value) == value
        given = {**benchmark_dag.params.dump(), name: value}
        assert ListWorldsOperator(task_id="x").execute({"params": given})
    for value in bad:
        with pytest.raises(ParamValidationError):
            benchmark_dag.params.get_param(name).resolve(value)


def test_the_benchmark_refuses_dials_that_no_world_has(benchmark_dag):
    given = {**benchmark_dag.params.dump(), "dials": {"efect": 2}}
    with pytest.raises(SettingsError, match=r"expected some of effect, .*; came \['efect'\]"):
        ListWorldsOperator(task_id="x").execute({"params": given})


def test_it_survives_the_way_to_the_scheduler(dag):
    text = json.dumps(DagSerialization.to_dict(dag))
    restored = DagSerialization.from_dict(json.loads(text))
    assert restored.task_ids == dag.task_ids
    for task in dag.tasks:
        twin = restored.get_task(task.task_id)
        assert twin.downstream_task_ids == task.downstream_task_ids
        assert set(twin.template_fields) == set(task.template_fields)
        assert (twin.pool, twin.queue, twin.retries) == (task.pool, task.queue, task.retries)


def test_loading_it_imports_nothing_heavy():
    """Airflow loads DAG files all the time. Oracle: sys.modules of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, env=os.environ
    )
    loaded = set(done.stdout.split())
    assert "winback.operators.publish" in loaded
    assert sorted(loaded & set(HEAVY)) == []
