"""Airflow on this machine, for the commands: its own home, winback's DAGs, no telemetry."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winback.models.errors import StoreUnavailableError
from winback.operators.processes import free_port
from winback.operators.progress import EVENTS_FILE

DAGS = Path(__file__).resolve().parent.parent / "dags"
START_SECONDS = 180  # Airflow's parts import for half a minute on two busy cores
POLL_SECONDS = 0.2  # how often the waiting terminal looks for news

QUIET = {
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    "AIRFLOW__COSMOS__ENABLE_TELEMETRY": "False",
    # its folder below /tmp belongs to whoever came first: nobody else could run dbt
    "AIRFLOW__COSMOS__ENABLE_CACHE_PROFILE": "False",
    "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    "GX_ANALYTICS_ENABLED": "false",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads starve the database on shared cores
}


def airflow_environment(data_dir: Path, connections: Mapping[str, str]) -> dict[str, str]:
    """Environment of an Airflow that knows winback's DAGs and the given connections.

    A home or connection that is already set in the environment stays as it is.
    """
    home = {"AIRFLOW_HOME": str(data_dir / "airflow")}
    named = {f"AIRFLOW_CONN_{name.upper()}": url for name, url in connections.items()}
    given = {
        "WINBACK_ARTIFACTS_URI": (data_dir / "artifacts").resolve().as_uri(),
        "WINBACK_TASK_RETRIES": "0",  # somebody is waiting, and can start it again
    }
    fixed = {
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        **QUIET,
    }
    return {**home, **given, **os.environ, **fixed, **named}


@dataclass
class LocalRun:
    """A ``winback_daily`` run in a process of its own.

    ``events`` yields what happens while it happens; ``exit_code`` is there afterwards.
    """

    process: "subprocess.Popen[str]"
    events_file: Path

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the run's events until it ends."""
        with open(self.events_file, encoding="utf-8") as file:
            while True:
                ended = self.process.poll() is not None
                line = file.readline()
                if line:
                    yield json.loads(line)
                elif ended:
                    return
                else:
                    time.sleep(POLL_SECONDS)

    @property
    def exit_code(self) -> int:
        """0: every task succeeded."""
        return self.process.wait()


@contextmanager
def start_daily_run(
    params: Mapping[str, Any], environment: Mapping[str, str], log_file: Path
) -> Iterator[LocalRun]:
    """Start one run; its raw log goes to ``log_file``. Leaving the block ends the process."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    events_file = log_file.with_suffix(".events.jsonl")
    events_file.write_text("", encoding="utf-8")
    with open(log_file, "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "winback.operators.dag_process"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**environment, EVENTS_FILE: str(events_file)},
        )
        if process.stdin is not None:
            process.stdin.write(json.dumps(dict(params)))
            process.stdin.close()
        try:
            yield LocalRun(process, events_file)
        finally:
            end_process_group(process)


@contextmanager
def start_standalone(environment: Mapping[str, str], data_dir: Path) -> Iterator[str]:
    """Start Airflow's scheduler, processor, triggerer and UI on loopback; yield the address.

    Raises:
        StoreUnavailableError: Airflow did not come up within START_SECONDS.
    """
    port = free_port(0)
    address = f"http://127.0.0.1:{port}"
    served = {
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": address,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
        # Loopback only, one person: no login page in the way.
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__PARALLELISM": "2",  # the steps follow each other; a process per slot waits
    }
    log_file = data_dir / "logs" / "airflow.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with open(log_file, "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "standalone"],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**environment, **served, "PATH": _own_commands_first()},
        )
        try:
            _wait_until_healthy(process, address, log_file)
            yield address
        finally:
            end_process_group(process)


def _own_commands_first() -> str:
    """``airflow standalone`` starts its parts by name: they must be this environment's."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _wait_until_healthy(process: Any, address: str, log_file: Path) -> None:
    import urllib.error
    import urllib.request

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/api/v2/monitor/health", timeout=5) as answer:
                health = json.load(answer)
            if health["scheduler"]["status"] == health["dag_processor"]["status"] == "healthy":
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(1)
    raise StoreUnavailableError(
        f"Airflow did not come up at {address} within {START_SECONDS} s; see {log_file}."
    )


def end_process_group(process: "subprocess.Popen[Any]") -> None:
    """End a process and its children, politely first."""
    import psutil

    with psutil_errors_ignored():
        family = [
            psutil.Process(process.pid),
            *psutil.Process(process.pid).children(recursive=True),
        ]
        for member in family:
            member.terminate()
        for member in psutil.wait_procs(family, timeout=20)[1]:
            member.kill()


@contextmanager
def psutil_errors_ignored() -> Iterator[None]:
    """A process that is gone needs no ending."""
    import psutil

    try:
        yield
    except psutil.NoSuchProcess:
        return
