"""The daily run without a scheduler: the DAG's own tasks, in order, in this process.

Copies of one finished run come from a template database, so that a test may destroy its own.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import psycopg
import redis
from airflow.sdk.definitions.mappedoperator import MappedOperator
from psycopg import sql

from winback.dags.winback_daily import dag
from winback.operators import sample_small
from winback.operators.sample import generate_sample
from winback.operators.servers import Endpoints, database_url

TASKS = [task.task_id for task in dag.topological_sort()]
LAST_BEFORE_PUBLISH = "check_recommendations"
OUTPUTS = ("recommendations", "q_table", "customer_scores", "decisions")
ARTIFACTS = tempfile.TemporaryDirectory(prefix="winback-artifacts-")
FAST = {"epochs": 1, "learning_rate": 0.01}  # enough for forecasts that differ between customers
_numbers = count()


class DailyRun:
    """One run of ``winback_daily``; ``results`` holds what its tasks returned.

    Args:
        run_id: as Airflow would name it.
        params: the DAG's params for this run.
    """

    def __init__(self, run_id: str = "first", **params: Any) -> None:
        self.run_id = run_id
        self.params = {**dag.params.dump(), **FAST, **params}
        self.results: dict[str, Any] = {}
        self.failures: list[dict[str, str]] = []

    def go(self, *, after: str | None = None, until: str | None = None) -> "DailyRun":
        """Execute the tasks after one up to another, the teardown left out."""
        first = TASKS.index(after) + 1 if after else 0
        last = TASKS.index(until) if until else TASKS.index("finish_run") - 1
        for task_id in TASKS[first : last + 1]:
            self.execute(task_id)
        return self

    def execute(self, task_id: str) -> Any:
        """Execute one task of the DAG with its templates filled in."""
        try:
            self.results[task_id] = self._execute(task_id)
        except Exception as error:
            kind = type(error).__name__
            self.failures.append({"task": task_id, "kind": kind, "error": str(error)})
            raise
        return self.results[task_id]

    def _execute(self, task_id: str) -> Any:
        task, context = dag.get_task(task_id), self._context(task_id)
        if not isinstance(task, MappedOperator):
            return self._filled_in(task_id, copy(task)).execute(context)
        if "list_shards" not in self.results:
            self.execute("list_shards")
        parts = map(task.unmap, self.results["list_shards"])
        return [self._filled_in(task_id, part).execute(context) for part in parts]

    def _filled_in(self, task_id: str, operator: Any) -> Any:
        if task_id == "start_run":
            return operator
        started = self.results.get("start_run") or self.execute("start_run")
        for name in ("as_of", "run_id", "settings", "started_at"):
            if name in operator.template_fields:
                setattr(operator, name, started[name])
        if task_id == "dbt_features":  # unit tests do not look at the data
            operator.dbt_cmd_flags = ["--exclude-resource-type", "unit_test"]
        if task_id == "publish":
            names = {"survival": "fit_survival", "profit": "train_profit", "plan": "plan"}
            names |= {"response": "fit_response", "allocation": "allocate_coupons"}
            names["drift"] = "check_drift"
            names["evaluation"] = "evaluate_policy"
            operator.metrics = {key: self.results.get(task, {}) for key, task in names.items()}
            operator.metrics["settings"] = started["settings"]
        return operator

    def _context(self, task_id: str) -> Any:
        """The part of Airflow's context that the tasks read."""
        now = datetime.now(timezone.utc)
        return {
            "run_id": self.run_id,
            "params": self.params,
            "dag": dag,
            "dag_run": SimpleNamespace(
                run_id=self.run_id, data_interval_end=now, run_after=now, start_date=now
            ),
            "ti": SimpleNamespace(task_id=task_id, xcom_pull=lambda **_: self.failures),
        }


@dataclass(frozen=True)
class Shop:
    """A warehouse with the sample in it, a Redis, an artifact folder, a date to decide at."""

    url: str
    redis_url: str
    artifacts: Path
    as_of: str

    def daily_run(self, run_id: str = "first", **params: Any) -> DailyRun:
        """A run of this shop."""
        given = {"as_of": self.as_of, "artifacts_uri": self.artifacts.as_uri(), **params}
        return DailyRun(run_id, **given)

    def query(self, statement: str, *values: Any) -> list[Any]:
        """Run one statement and return its rows, if it has any."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    @property
    def database(self) -> str:
        """Name of the shop's database."""
        return self.url.rpartition("/")[2]

    @property
    def redis(self) -> "redis.Redis[str]":
        """A client of the shop's Redis."""
        return redis.from_url(self.redis_url, decode_responses=True)

    def published(self) -> dict[str, Any]:
        """Everything that readers see: the rows of the output tables, all that Redis serves."""
        everything = "select * from winback.{} order by 1, 2, 3, 4"
        rows = {name: self.query(everything.format(name)) for name in OUTPUTS}
        client = self.redis
        pointers = client.mget("winback:current", "winback:previous")
        tables = {name: client.hgetall(f"winback:q:{name}") for name in pointers if name}
        return {**rows, "pointers": pointers, "tables": tables}

    def connections(self) -> dict[str, str]:
        """The Airflow connections as environment variables."""
        return {
            "AIRFLOW_CONN_WINBACK_WAREHOUSE": self.url,
            "AIRFLOW_CONN_WINBACK_REDIS": self.redis_url,
        }


@contextmanager
def copy_of(template: str, servers: Endpoints) -> Iterator[Shop]:
    """A database and artifacts of one's own from a template, an empty Redis, and connections."""
    name = f"shop_{next(_numbers)}"
    _create_database(servers, name, template)
    artifacts = _copy_artifacts(template, name)
    redis.from_url(servers.redis_url).flushall()
    shop = Shop(
        url=database_url(servers.postgres_url, name),
        redis_url=servers.redis_url,
        artifacts=artifacts,
        as_of=sample_small.last_day().isoformat(),
    )
    with patch.dict(os.environ, shop.connections()):
        yield shop
    _drop_database(servers, name)
    shutil.rmtree(artifacts)


@cache
def sample_template(servers: Endpoints) -> str:
    """Name of a database that holds the generated sample and nothing else."""
    name = "template_sample"
    with _maintenance(servers) as connection:  # nothing here has to survive a power failure
        connection.execute("alter system set fsync = off")
        connection.execute("select pg_reload_conf()")
    _create_database(servers, name, "template0")
    generate_sample(database_url(servers.postgres_url, name))
    return name


@cache
def checked_template(servers: Endpoints) -> str:
    """Name of a database in which the run ``first`` is ready to be published."""
    name = "template_checked"
    with copy_of(sample_template(servers), servers) as shop:
        shop.daily_run().go(until=LAST_BEFORE_PUBLISH)
        _create_database(servers, name, shop.database)
        _copy_artifacts(shop.database, name)
    return name


def _copy_artifacts(template: str, name: str) -> Path:
    """The folder of a database's artifacts, filled with those of a template, if it has any."""
    folder, origin = Path(ARTIFACTS.name) / name, Path(ARTIFACTS.name) / template
    folder.mkdir()
    if origin.exists():
        shutil.copytree(origin, folder, dirs_exist_ok=True)
    return folder


def _create_database(servers: Endpoints, name: str, template: str) -> None:
    """Create a database from a template, which nobody may be connected to."""
    statement = sql.SQL("create database {} template {}")
    leave = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
    with _maintenance(servers) as connection:
        connection.execute(leave, (template,))
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))


def _drop_database(servers: Endpoints, name: str) -> None:
    with _maintenance(servers) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def _maintenance(servers: Endpoints) -> "psycopg.Connection[Any]":
    return psycopg.connect(database_url(servers.postgres_url, "postgres"), autocommit=True)
