"""Real servers for the tests: one embedded PostgreSQL and Redis per session."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import psycopg
import pytest
import redis

from winback.operators.servers import Endpoints, database_url, running_servers

AIRFLOW_HOME = tempfile.mkdtemp(prefix="winback-airflow-")  # not the one in the user's home
atexit.register(shutil.rmtree, AIRFLOW_HOME, ignore_errors=True)

os.environ.update(  # before a test imports NumPy, Airflow, dbt or Great Expectations
    OMP_NUM_THREADS="1",  # two spinning threads on tiny arrays are slower than one
    DBT_SEND_ANONYMOUS_USAGE_STATS="false",
    GX_ANALYTICS_ENABLED="false",
    AIRFLOW__COSMOS__ENABLE_TELEMETRY="False",
    AIRFLOW_HOME=AIRFLOW_HOME,
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Studies take as long as they take; the time limit is for what must be quick."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(scope="session")
def servers() -> Iterator[Endpoints]:
    """The embedded servers of this session."""
    # not pytest's tmp_path: it is closed to the system user that runs PostgreSQL for root
    folder = tempfile.mkdtemp(prefix="winback-tests-")
    with running_servers(folder) as endpoints:
        yield endpoints
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_url(servers: Endpoints) -> str:
    """URL of the server's maintenance database."""
    return database_url(servers.postgres_url, "postgres")


@pytest.fixture(scope="module")
def warehouse_url(postgres_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A new, empty database for one test module."""
    name = request.module.__name__.rpartition(".")[2]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'drop database if exists "{name}" with (force)')
        connection.execute(f'create database "{name}"')
        yield database_url(postgres_url, name)
        connection.execute(f'drop database "{name}" with (force)')


@pytest.fixture
def redis_url(servers: Endpoints) -> str:
    """URL of an empty Redis."""
    redis.from_url(servers.redis_url).flushall()
    return servers.redis_url
