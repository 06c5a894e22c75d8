"""What holds for every operator: usable by itself, no I/O before execute, templated arguments."""

import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
from datetime import date, datetime, timezone

import psutil
import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.serialization.serialized_objects import DagSerialization
from pipeline import Shop, checked_template, copy_of

import winback.operators
from winback.models import errors
from winback.models.errors import SettingsError, StoreUnavailableError
from winback.models.settings import load_settings
from winback.operators.artifacts import Artifacts
from winback.operators.progress import EVENTS_FILE, report
from winback.operators.run import Run
from winback.operators.start_run import resolve_as_of
from winback.operators.train_profit import TrainProfitOperator, outcome, start_training
from winback.operators.warehouse import transaction, warehouse_url

NEEDED = {"CheckDataOperator": {"suite": "sources"}}  # arguments without a default
COMMON = ("settings", "warehouse_conn_id")


def operator_classes() -> list[type[BaseOperator]]:
    """Every operator of the daily run defined in the package, however many there are."""
    modules = [
        importlib.import_module(f"winback.operators.{module.name}")
        for module in pkgutil.iter_modules(winback.operators.__path__)
        if module.name != "benchmark_steps"  # their worlds make no sense in somebody else's DAG
    ]
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, BaseOperator)
        and value.__module__ == module.__name__
        and value.__name__ != "WinbackOperator"
    ]


OPERATORS = {kind.__name__: kind for kind in operator_classes()}


@pytest.fixture(params=OPERATORS)
def operator(request, monkeypatch) -> BaseOperator:
    """One of each, made where no connection is configured."""
    for name in [name for name in os.environ if name.startswith("AIRFLOW_CONN_")]:
        monkeypatch.delenv(name)
    return OPERATORS[request.param](task_id="one", **NEEDED.get(request.param, {}))


def test_the_steps_are_operators():
    assert len(OPERATORS) >= 10
    assert "PublishOperator" in OPERATORS


def test_it_is_made_without_a_connection_and_can_be_templated(operator):
    for name in operator.template_fields:
        assert hasattr(operator, name), name
    assert set(COMMON) <= set(operator.template_fields)


def test_it_works_in_somebody_elses_dag(operator):
    with DAG("theirs", schedule=None) as dag:
        type(operator)(task_id="one", **NEEDED.get(type(operator).__name__, {}))
    restored = DagSerialization.from_dict(json.loads(json.dumps(DagSerialization.to_dict(dag))))
    assert restored.get_task("one").task_type == type(operator).__name__


def test_it_is_documented(operator):
    assert type(operator).__doc__


def test_a_missing_connection_is_a_wrong_configuration(operator):
    """Raised by execute, with the name of the connection and what to set."""
    operator.run_id = "r"
    operator.as_of = "2024-07-29"
    context = {"run_id": "r", "params": {}, "dag_run": FirstRun()}
    with pytest.raises(SettingsError, match="AIRFLOW_CONN_WINBACK_WAREHOUSE"):
        operator.execute(context)


class FirstRun:
    """What start_run reads of Airflow's dag_run."""

    run_id = "r"
    data_interval_end = run_after = start_date = datetime(2024, 7, 29, 5, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("values", "interval_end", "expected"),
    [
        ({}, "2024-07-29T05:00:00+00:00", date(2024, 7, 29)),
        ({"timezone": "America/New_York"}, "2024-07-29T03:00:00+00:00", date(2024, 7, 28)),
        ({"timezone": "Asia/Tokyo"}, "2024-07-29T16:00:00+00:00", date(2024, 7, 30)),
        ({"as_of": "2024-01-01"}, "2024-07-29T05:00:00+00:00", date(2024, 1, 1)),
    ],
)
def test_the_decision_date_is_the_param_or_the_intervals_end_in_the_timezone(
    values, interval_end, expected
):
    assert resolve_as_of(load_settings(values), datetime.fromisoformat(interval_end)) == expected


def test_a_password_with_special_characters_arrives(monkeypatch):
    """Airflow's own URL quoting in, libpq's out. Oracle: psycopg reads the URL."""
    from psycopg.conninfo import conninfo_to_dict

    monkeypatch.setenv(
        "AIRFLOW_CONN_WINBACK_WAREHOUSE", "postgres://us%40er:p%2Fa%3As%40s@db.example:6543/shop"
    )
    read = conninfo_to_dict(warehouse_url())
    assert read == {
        "user": "us@er",
        "password": "p/a:s@s",
        "host": "db.example",
        "port": "6543",
        "dbname": "shop",
    }


def test_an_unreachable_warehouse_is_named_without_its_password():
    with (
        pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1/shop") as failure,
        transaction("postgresql://u:secret@127.0.0.1:1/shop"),
    ):
        pass
    assert "secret" not in str(failure.value)


def test_a_run_does_not_print_its_password():
    run = Run("postgresql://u:secret@h/d", "2024-07-29", "r", load_settings())
    assert "secret" not in repr(run)


def test_artifacts_of_two_runs_lie_apart(tmp_path):
    first, second = (Artifacts(tmp_path.as_uri(), "2024-07-29", name) for name in ("a", "b/../a"))
    first.write_json("x.json", {"of": "a"})
    second.write_json("x.json", {"of": "b"})
    assert first.read_json("x.json") == {"of": "a"}
    assert second.read_json("x.json") == {"of": "b"}
    assert not list(tmp_path.rglob("*.partial"))


def test_artifacts_lie_in_the_home_of_whoever_runs_the_task(tmp_path, monkeypatch):
    """By default: a folder that outlives a reboot, since the next run is compared with it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load_settings({}, {})
    artifacts = Artifacts(settings.artifacts_uri, "2024-07-29", "r")
    artifacts.write_json("x.json", {"of": "a"})
    file = tmp_path / ".winback" / "artifacts" / "as_of=2024-07-29" / "r" / "x.json"
    assert json.loads(file.read_text()) == {"of": "a"}
    assert artifacts.read_json("x.json") == {"of": "a"}
    assert artifacts.uri("x.json") == file.as_uri()


def test_an_artifact_folder_of_nobody_says_what_to_set():
    with pytest.raises(SettingsError, match=r"came ~no-such-user/x: .* WINBACK_ARTIFACTS_URI"):
        _ = Artifacts("~no-such-user/x", "2024-07-29", "r").folder


def test_events_are_written_only_where_somebody_waits(tmp_path, monkeypatch):
    file = tmp_path / "events.jsonl"
    monkeypatch.delenv(EVENTS_FILE, raising=False)
    report("started", task="plan")
    monkeypatch.setenv(EVENTS_FILE, str(file))
    report("started", task="plan")
    report("epoch", loss=0.5)
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert [event["event"] for event in events] == ["started", "epoch"]


@pytest.mark.parametrize("kind", ["DataError", "NotFittedError", "StoreUnavailableError"])
def test_an_error_in_the_training_process_keeps_its_class(kind):
    with pytest.raises(getattr(errors, kind), match="in words"):
        outcome(1, {"event": "error", "kind": kind, "message": "in words"})


GREEDY = """
import numpy as np
from winback.operators.plan import PlanOperator
PlanOperator(task_id="plan", settings={"memory_limit_gb": %s}).pre_execute({})
held = np.ones(500_000_000)  # 4 GB
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux")
@pytest.mark.parametrize(("limit", "ends"), [(3, "Unable to allocate"), (None, "")])
def test_a_task_stays_within_the_memory_of_the_settings(limit, ends):
    code = GREEDY.replace("ones", "empty") % limit
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ends in done.stderr.strip().splitlines()[-1] if ends else done.returncode == 0


# Training in a process of its own, on the prepared shop.


@pytest.fixture(scope="module")
def shop(servers):
    with copy_of(checked_template(servers), servers) as shop:
        yield shop


def training(shop: Shop, run_id: str, **settings) -> Run:
    """A run whose survival fit is there and whose training is still to do."""
    values = {"artifacts_uri": shop.artifacts.as_uri(), "learning_rate": 0.01, **settings}
    run = Run(shop.url, shop.as_of, run_id, load_settings(values))
    done = Run(shop.url, shop.as_of, "first", run.settings)
    run.artifacts.write_json("survival.json", done.artifacts.read_json("survival.json"))
    return run


def operator_for(run: Run) -> TrainProfitOperator:
    settings = run.settings.model_dump(mode="json")
    return TrainProfitOperator(
        task_id="train", as_of=run.as_of, run_id=run.run_id, settings=settings
    )


def test_a_killed_training_goes_on_where_it_was(shop):
    """Oracle: the weights of a training that nobody interrupted, bit for bit."""
    undisturbed = training(shop, "undisturbed", epochs=3, patience=3)
    operator_for(undisturbed).execute({})
    killed = training(shop, "killed", epochs=3, patience=3)
    process = start_training(killed)
    assert process.stdout is not None
    first, second = (json.loads(process.stdout.readline()) for _ in range(2))
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"exit code -9 .* goes on from the last finished epoch"):
        outcome(process.wait(), second)
    assert not killed.artifacts.exists("profit.safetensors")
    again = start_training(killed)
    events = [json.loads(line) for line in again.stdout]
    assert again.wait() == 0
    epochs = [event["epoch"] for event in events if event["event"] == "epoch"]
    assert first["epoch"] == 1
    assert 1 not in epochs, "the first epoch must not be trained again"
    weights = [run.artifacts.read_bytes("profit.safetensors") for run in (undisturbed, killed)]
    assert weights[0] == weights[1]


def test_on_kill_ends_the_training(shop):
    operator = operator_for(training(shop, "stopped", epochs=50, patience=50))
    operator._process = start_training(operator.current_run())
    process = psutil.Process(operator._process.pid)
    assert operator._process.stdout is not None
    operator._process.stdout.readline()  # an epoch is done: it is at work
    operator.on_kill()
    assert psutil.wait_procs([process], timeout=30)[0]
