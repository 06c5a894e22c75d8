"""The dbt project as an analytics engineer meets it: alone, as a package, with little data."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import yaml
from shop import (
    LAST_DAY,
    ONLY_MODELS,
    PROJECT,
    build,
    dbt,
    load,
    profile_environment,
    random_shop,
    rows,
)

from winback.operators.sample import create_source_tables

AS_OF = LAST_DAY - timedelta(10)
SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def shop(warehouse_url: str) -> str:
    """The random shop in schema ``raw``."""
    load(warehouse_url, random_shop(customers=30), "raw")
    return warehouse_url


def test_build_and_docs_by_environment_alone(shop: str, tmp_path: Path) -> None:
    """``cd dbt_project && dbt build``, then docs: every node and column must be described."""
    with profile_environment(shop, "winback"):
        for command in ("build", "docs generate"):
            subprocess.run(
                [SCRIPTS / "dbt", *command.split(), "--target-path", tmp_path],
                cwd=PROJECT,
                check=True,
            )
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    catalog = json.loads((tmp_path / "catalog.json").read_text())
    built = {**catalog["nodes"], **catalog["sources"]}
    nodes = {
        name: node
        for name, node in {**manifest["nodes"], **manifest["sources"]}.items()
        if node["resource_type"] in ("model", "snapshot", "source")
    }
    assert [name for name, node in nodes.items() if not says_grain(node)] == []
    assert [
        f"{name}.{column}"
        for name, node in nodes.items()
        for column in built[name]["columns"]
        if not node["columns"].get(column, {}).get("description") and not is_dbts_own(column)
    ] == []


def says_grain(node: dict[str, str]) -> bool:
    return "one row per" in node["description"].lower()


def is_dbts_own(column: str) -> bool:
    """dbt adds dbt_valid_from and the like to its snapshots."""
    return column.startswith("dbt_")


def test_only_orders_must_have_rows(warehouse_url: str) -> None:
    empty = {name: frame.head(0) for name, frame in random_shop().items()}
    load(warehouse_url, {**empty, "orders": random_shop(customers=10)["orders"]}, "bare_raw")
    assert build(warehouse_url, "bare", AS_OF, "--select", "tag:features", "tag:reports").success
    found = rows(warehouse_url, "select * from bare.customer_snapshots")
    assert set(found["category"]) == {"unknown"}
    assert set(found["coupon_id"].dropna()) == {"none"}
    assert found["remaining_budget_pct"].isna().all()
    assert list(
        rows(warehouse_url, "select coupon_id from bare_staging.stg_coupons")["coupon_id"]
    ) == ["none"]


def test_without_orders_the_marts_are_empty(warehouse_url: str) -> None:
    with psycopg.connect(warehouse_url) as connection:
        create_source_tables(connection, "nothing_raw")
    assert build(warehouse_url, "nothing", AS_OF, "--select", "tag:features", "tag:reports").success
    assert rows(warehouse_url, "select * from nothing.customer_snapshots").empty


# (table, statement, the test that fails, what its stored failures name, the mart left as it was)
BAD_SOURCES = [
    (
        "orders",
        "insert into raw.orders values ('o1', 'c1', '2024-02-01', 77)",
        "orders_with_one_id_are_identical",
        "o1",
        "customer_rfm",
    ),
    (
        "coupon_offers",
        "insert into raw.coupon_offers values ('f1', 'c1', 'save5', '2024-02-01')",
        "offers_with_one_id_are_identical",
        "f1",
        "customer_rfm",
    ),
    (
        "coupon_offers",
        "insert into raw.coupon_offers values ('new', 'c1', 'save99', '2024-02-01')",
        "offered_coupons_are_in_the_catalogue",
        "save99",
        "customer_snapshots",
    ),
    (
        "customers",
        "insert into raw.customers values ('c2', '2020-02-01', false)",
        "customers_with_one_id_are_identical",
        "c2",
        "customers_known",
    ),
    (
        "budgets",
        "insert into raw.budgets values ('2024-02-01', '2024-03-15', 9)",
        "budget_periods_do_not_overlap",
        "2024-02-01",
        "customer_snapshots",
    ),
]


@pytest.mark.parametrize(
    ("table", "statement", "test", "named", "mart"),
    BAD_SOURCES,
    ids=[case[2] for case in BAD_SOURCES],
)
def test_bad_sources_stop_the_build_and_are_named(
    shop: str, table: str, statement: str, test: str, named: str, mart: str
) -> None:
    with psycopg.connect(shop) as connection:
        connection.execute(f"create table saved as table raw.{table}")
        connection.execute(statement)
    selection = ("--select", "tag:features", "--exclude-resource-type", "unit_test")
    try:
        result = build(shop, "strict", AS_OF, *selection, sources="raw")
    finally:
        with psycopg.connect(shop) as connection:
            connection.execute(f"truncate raw.{table}")
            connection.execute(f"insert into raw.{table} table saved")
            connection.execute("drop table saved")
    assert not result.success
    status = {one.node.name: str(one.status) for one in result.result}
    assert [name for name, one in status.items() if one == "fail"] == [test]
    assert status[mart] == "skipped"
    failures = rows(shop, f"select * from strict_staging.{test}")
    assert named in failures.astype(str).to_numpy().ravel().tolist()


def test_a_repeated_id_is_found_beside_days_tested_before(shop: str) -> None:
    """Only the new row's day is tested again, but against all days, and until it is put right."""
    test = "orders_with_one_id_are_identical"
    selection = ("--select", "+int_category_days", "--exclude-resource-type", "unit_test")
    assert build(shop, "tested", AS_OF, *selection, sources="raw").success
    with psycopg.connect(shop) as connection:
        connection.execute("insert into raw.orders values ('o1', 'c1', '2024-01-20 12:34+00', 7)")
    try:
        results = [build(shop, "tested", AS_OF, *selection, sources="raw") for _ in range(2)]
        named = rows(shop, f"select * from tested_staging.{test}")
    finally:
        with psycopg.connect(shop) as connection:
            connection.execute("delete from raw.orders where ordered_at = '2024-01-20 12:34+00'")
    for result in results:
        assert [one.node.name for one in result.result if one.status == "fail"] == [test]
    assert list(named["unique_field"]) == ["o1"]
    assert build(shop, "tested", AS_OF, *selection, sources="raw").success


def test_published_decisions_count_as_offers_when_told(shop: str) -> None:
    day = AS_OF - timedelta(3)
    selection = ("--select", "tag:features", *ONLY_MODELS)
    query = "select last_coupon_on from decided.customers_known where customer_id = 'c1'"
    assert build(shop, "decided", AS_OF, *selection, sources="raw").success
    with psycopg.connect(shop) as connection:
        connection.execute("delete from raw.coupon_offers where customer_id = 'c1'")
        connection.execute(
            "insert into decided.decisions values ('d1', %(day)s, 'run', 'c1', 'save5', 0.5,"
            " 'treatment', true, %(day)s, %(day)s + 7, now())",
            {"day": day},
        )
    assert build(shop, "decided", AS_OF, *selection, sources="raw").success
    assert rows(shop, query)["last_coupon_on"].item() is None
    told = {"sources": "raw", "decisions_are_offers": True}
    assert build(shop, "decided", AS_OF, *selection, **told).success
    assert rows(shop, query)["last_coupon_on"].item() == day


USER_PROJECT = {
    "dbt_project.yml": {
        "name": "acme",
        "version": "1.0",
        "profile": "winback",
        "models": {"winback": {"+schema": "coupons"}},
        "vars": {"winback": {"output_schema": "acme_coupons", "as_of": str(AS_OF)}},
    },
    "packages.yml": {"packages": [{"local": str(PROJECT)}]},
    "models/sources.yml": {
        "sources": [{"name": "raw", "tables": [{"name": "orders"}, {"name": "customers"}]}]
    },
}
USER_MODELS = {
    "stg_orders": "select order_id as mine from {{ source('raw', 'orders') }} limit 1",
    "best_customers": "select customer_id from {{ ref('winback', 'customer_rfm') }} limit 5",
}


def test_as_a_package_of_a_project_with_its_own_orders(shop: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name, content in USER_PROJECT.items():
        (tmp_path / name).write_text(yaml.safe_dump(content))
    for name, query in USER_MODELS.items():
        (tmp_path / "models" / f"{name}.sql").write_text(query)
    assert dbt(shop, "acme", "deps", project=tmp_path).success
    assert dbt(shop, "acme", "build", project=tmp_path).success
    assert list(rows(shop, "select * from acme.stg_orders")) == ["mine"]
    assert len(rows(shop, "select * from acme.best_customers")) == 5
    assert not rows(shop, "select * from acme_coupons.customer_snapshots").empty
    assert rows(shop, "select * from acme_coupons.current_recommendations").empty


def test_sqlfluff() -> None:
    lint = subprocess.run(
        [SCRIPTS / "sqlfluff", "lint", "dbt_project"],
        cwd=PROJECT.parent,
        capture_output=True,
        text=True,
    )
    assert lint.returncode == 0, lint.stdout
