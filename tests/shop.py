"""A random little shop in Postgres with all that real data does, and dbt builds on it."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.datetime import DateLoader

from winback.operators.sample import load_frames

PROJECT = Path(__file__).resolve().parent.parent / "dbt_project"
ONLY_MODELS = ("--exclude-resource-type", "test", "--exclude-resource-type", "unit_test")
DBT_FILES = tempfile.TemporaryDirectory(prefix="winback-dbt-")  # not the project's own target
FIRST_DAY = date(2024, 1, 3)
DAYS = 150
LAST_DAY = FIRST_DAY + timedelta(DAYS)
TIMEZONE = "America/New_York"  # its midnight is 05:00 or 04:00 UTC: summer time lies within
CATEGORIES = ("books", "garden", "toys", None)
COUPONS = ("none", "save5", "save10")


def random_shop(seed: int = 0, customers: int = 60) -> dict[str, pd.DataFrame]:
    """Source tables with refunds, ties, null margins, orders without lines, repeated offers."""
    rng = np.random.default_rng(seed)
    count = customers * 12
    cents = rng.integers(0, 40, count)  # few values: ties between categories are frequent
    is_refund = rng.random(count) < 0.1
    revenue = np.where(is_refund, -cents, cents)
    orders = pd.DataFrame(
        {
            "order_id": [f"o{number}" for number in range(count)],
            "customer_id": [f"c{number}" for number in rng.integers(0, customers, count)],
            "ordered_at": _times(rng, count),
            "revenue": revenue,
            "margin": np.where(rng.random(count) < 0.3, np.nan, revenue * 0.4),
            "coupon_cost": np.where(rng.random(count) < 0.2, 5.0, 0.0),
            "coupon_offer_id": None,
        }
    )
    lines = rng.integers(0, count, 2 * count)  # some orders get none
    items = pd.DataFrame(
        {
            "order_id": orders["order_id"].to_numpy()[lines],
            "category": rng.choice(np.array(CATEGORIES, dtype=object), 2 * count),
            "quantity": 1,
            "revenue": rng.integers(0, 10, 2 * count),
        }
    )
    offers = pd.DataFrame(
        {
            "offer_id": [f"f{number}" for number in range(count)],
            "customer_id": [f"c{number}" for number in rng.integers(0, customers + 5, count)],
            "coupon_id": rng.choice(COUPONS, count),
            "offered_at": _times(rng, count),
            "propensity": rng.integers(1, 10, count) / 10,
        }
    )
    return {
        "orders": orders,
        "order_items": items,
        "coupons": pd.DataFrame(
            {
                "coupon_id": COUPONS[1:],
                "label": "Save",
                "face_value": [5, 10],
                "contact_cost": [0.25, 0.5],
                "channel": "email",
            }
        ),
        "coupon_offers": offers,
        "customers": pd.DataFrame(
            {
                "customer_id": [f"c{number}" for number in range(0, customers + 20, 2)],
                "created_at": _times(rng, customers // 2 + 10).where(lambda t: t.dt.day < 20),
                "can_contact": rng.random(customers // 2 + 10) < 0.8,
            }
        ),
        "budgets": pd.DataFrame(
            {
                "period_start": [date(2024, 1, 1), date(2024, 3, 1)],
                "period_end": [date(2024, 3, 1), date(2024, 5, 1)],
                "amount": [300, 250],
            }
        ),
    }


def load(url: str, frames: Mapping[str, pd.DataFrame], schema: str) -> None:
    """Replace the source tables in ``schema``."""
    load_frames(url, frames, schema, label="test")


def build(
    url: str,
    schema: str,
    as_of: date,
    *arguments: str,
    sources: str | None = None,
    **variables: Any,
) -> Any:
    """``dbt build`` as of a date into ``schema``, by default from its sources ``{schema}_raw``.

    Without arguments only the models run that the features need. Returns dbt's own result.
    """
    sources = sources or f"{schema}_raw"
    chosen = {"as_of": str(as_of), "source_schema": sources, "timezone": TIMEZONE, **variables}
    selection = arguments or ("--select", "tag:features", *ONLY_MODELS)
    manifest = parsed_project(url, schema, sources)
    return dbt(url, schema, "build", "--vars", str(chosen), *selection, manifest=manifest)


@cache
def parsed_project(url: str, schema: str, sources: str) -> Any:
    """dbt's manifest, which depends on the names of schemas but not on dates: saves 2 s a build."""
    return dbt(url, schema, "parse", "--vars", str({"source_schema": sources})).result


def dbt(
    url: str, schema: str, *arguments: str, project: Path = PROJECT, manifest: Any = None
) -> Any:
    """Run one dbt command in this process, by the project's own profile."""
    from dbt.cli.main import dbtRunner

    with profile_environment(url, schema):
        return dbtRunner(manifest=manifest).invoke([*arguments, "--project-dir", str(project)])


@contextmanager
def profile_environment(url: str, schema: str) -> Iterator[None]:
    """The environment variables that ``profiles.yml`` reads."""
    connection = conninfo_to_dict(url)
    variables = {
        "WINBACK_PG_HOST": connection["host"],
        "WINBACK_PG_PORT": connection["port"],
        "WINBACK_PG_USER": connection["user"],
        "WINBACK_PG_PASSWORD": connection.get("password", ""),
        "WINBACK_PG_DBNAME": connection["dbname"],
        "WINBACK_SCHEMA_NAME": schema,
        "DBT_PROFILES_DIR": str(PROJECT),
        "DBT_TARGET_PATH": f"{DBT_FILES.name}/target",
        "DBT_LOG_PATH": f"{DBT_FILES.name}/logs",
    }
    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in variables.items()})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class OpenDateLoader(DateLoader):
    """Dates of which infinity is Python's last one."""

    def load(self, data: Any) -> date:
        return date.max if bytes(data) == b"infinity" else super().load(data)


def rows(url: str, query: str) -> pd.DataFrame:
    """Result of a query as a frame."""
    with psycopg.connect(url) as connection:
        connection.adapters.register_loader("date", OpenDateLoader)
        cursor = connection.execute(query)
        return pd.DataFrame(cursor.fetchall(), columns=[one.name for one in cursor.description])


def snapshots(url: str, schema: str) -> pd.DataFrame:
    """``customer_snapshots`` in a stable order, without the columns that say who wrote a row."""
    query = f"select * from {schema}.customer_snapshots order by snapshot_date, customer_id"
    return rows(url, query).drop(columns=["as_of", "run_id"])


def _times(rng: np.random.Generator, count: int) -> "pd.Series[pd.Timestamp]":
    """Moments on the half hour, so that some fall on midnight itself."""
    half_hours = pd.to_timedelta(rng.integers(0, DAYS * 48, count) * 30, unit="min")
    return pd.Series(pd.Timestamp(FIRST_DAY, tz=TIMEZONE).tz_convert("UTC") + half_hours)
