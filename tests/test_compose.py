"""docker-compose.yml against the compose specification and against what the code reads.

Oracles: the specification's JSON schema, Airflow's own table of options, winback's settings.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from airflow.configuration import conf

from winback.models.settings import ENVIRONMENT_PREFIX, Settings
from winback.operators import q_store, warehouse
from winback.operators.local_airflow import QUIET

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docker-compose.yml"
AIRFLOW_SERVICES = {"apiserver", "scheduler", "dag-processor", "triggerer", "init"}
# May be left out by whoever starts it: places, not secrets.
OPTIONAL = {"PIP_EXTRA_INDEX_URL", "AIRFLOW_PORT", "WAREHOUSE_PORT", "REDIS_PORT"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text()))


@pytest.fixture(scope="module")
def environment(compose) -> dict[str, str]:
    """What all Airflow services get."""
    services = compose["services"]
    environments = [services[f"airflow-{name}"]["environment"] for name in AIRFLOW_SERVICES]
    assert all(environment == environments[0] for environment in environments)
    return dict(environments[0])


def test_it_follows_the_compose_specification():
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_service_is_there_and_says_when_it_is_healthy(compose):
    services = compose["services"]
    assert set(services) == {
        *(f"airflow-{name}" for name in AIRFLOW_SERVICES),
        *("airflow-db", "warehouse", "redis"),
    }
    assert {name for name in services if "healthcheck" not in services[name]} == {"airflow-init"}


def test_services_wait_for_services_that_exist_and_can_be_waited_for(compose):
    services = compose["services"]
    for name, service in services.items():
        for other, wait in service.get("depends_on", {}).items():
            assert other in services, name
            healthy = wait["condition"] == "service_healthy"
            assert healthy == ("healthcheck" in services[other]), f"{name} waits for {other}"


def test_volumes_are_declared(compose):
    used = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
    }
    assert used == set(compose["volumes"])


def test_secrets_have_no_default_and_the_top_says_how_to_make_them():
    text = FILE.read_text()
    variables = re.findall(r"(?<!\$)\$\{(\w+)(:[?-])?", text)
    required = {name for name, kind in variables if kind == ":?"}
    assert {name for name, kind in variables if kind != ":?"} == OPTIONAL
    head = text[: text.index("\nx-airflow")]
    assert required == {name for name in required if name in head}
    assert "AIRFLOW_JWT_SECRET" in required


def test_every_winback_variable_is_a_setting(environment):
    named = {name for name in environment if name.startswith(ENVIRONMENT_PREFIX)}
    known = {f"{ENVIRONMENT_PREFIX}{field.upper()}" for field in Settings.model_fields}
    assert named
    assert named <= known


def test_every_airflow_variable_is_an_option_that_airflow_or_cosmos_reads(environment):
    known = {
        f"AIRFLOW__{section.upper()}__{option.upper()}"
        for section, content in conf.configuration_description.items()
        for option in content["options"]
    } | {name for name in QUIET if name.startswith("AIRFLOW__COSMOS__")}
    named = {name for name in environment if name.startswith("AIRFLOW__")}
    assert named <= known
    assert {"AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__CORE__EXECUTOR"} <= named


def test_connections_are_the_ones_that_the_operators_ask_for(compose, environment):
    named = {name: url for name, url in environment.items() if name.startswith("AIRFLOW_CONN_")}
    asked = {warehouse.DEFAULT_CONNECTION: "postgres", q_store.DEFAULT_CONNECTION: "redis"}
    assert set(named) == {f"AIRFLOW_CONN_{conn_id.upper()}" for conn_id in asked}
    for conn_id, kind in asked.items():
        url = named[f"AIRFLOW_CONN_{conn_id.upper()}"]
        parts = urlsplit(re.sub(r"\$\{[^}]*\}", "secret", url))
        assert parts.scheme == kind
        assert parts.hostname in compose["services"]


def test_telemetry_is_off_as_in_the_commands(environment):
    off = {name for name in QUIET if re.search("TELEMETRY|ANONYMOUS|ANALYTICS", name)}
    assert len(off) == 3  # Cosmos, dbt, Great Expectations; Airflow 3.3 sends nothing
    assert {name: environment[name] for name in off} == {name: QUIET[name] for name in off}


def test_tasks_find_the_server_that_they_report_to(compose, environment):
    url = urlsplit(environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"])
    assert url.hostname == "airflow-apiserver"
    assert url.path == "/execution/"
    health = " ".join(compose["services"]["airflow-apiserver"]["healthcheck"]["test"])
    assert f":{url.port}/api/v2/monitor/health" in health


def test_the_image_has_the_pinned_airflow_and_the_whole_package(compose, environment):
    dockerfile = compose["services"]["airflow-init"]["build"]["dockerfile_inline"]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pin = next(line for line in pins if line.startswith("apache-airflow=="))
    assert f"FROM apache/airflow:{pin.partition('==')[2]}-python3.11\n" in dockerfile
    copied = {
        source
        for line in re.findall(r"^COPY --chown=airflow:0 (.*)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert all((ROOT / source).exists() for source in copied)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    root_modules = {path.name for path in ROOT.glob("*.py")}
    assert packages | root_modules | {"dbt_project", "py.typed", "constraints.txt"} <= copied
    assert f"test -f {environment['AIRFLOW__CORE__DAGS_FOLDER']}/winback_daily.py" in dockerfile
