"""The suites' files, what is filled into them, and the source contract, without a database."""

from datetime import date
from importlib.resources import files

import pytest
import yaml
from sqlalchemy import text

from winback.expectations import suites
from winback.expectations.source_contract import (
    SourceColumn,
    contract_violations,
    source_tables,
)
from winback.expectations.suites import SQL_RULE, SUITES, CheckParameters, load_suite
from winback.models.errors import SettingsError

PARAMETERS = CheckParameters(date(2024, 7, 29), "manual__2024-07-29T00:00:00+00:00", budget=25.0)

# The contract's own type names, as a shop's tables would have them.
TYPES = {"timestamptz": "timestamp with time zone"}


def all_rules():
    return [
        pytest.param(table, rule, id=f"{suite}-{table.name}-{rule.name}-{rule.column}")
        for suite in SUITES
        for table in load_suite(suite, PARAMETERS).tables
        for rule in table.rules
    ]


@pytest.mark.parametrize(("table", "rule"), all_rules())
def test_rule_is_complete(table, rule):
    assert rule.severity in ("critical", "warning", "info")
    assert rule.description.count(".") >= 2, "what is expected, then what to do"
    assert "{" not in rule.description
    if rule.type == SQL_RULE:
        assert rule.name != SQL_RULE, "several SQL rules stand on one table: each has a name"
        assert not text(rule.kwargs["unexpected_rows_query"])._bindparams


@pytest.mark.parametrize("suite", SUITES)
def test_rules_can_be_told_apart(suite):
    keys = [
        (table.name, rule.name, rule.column)
        for table in load_suite(suite, PARAMETERS).tables
        for rule in table.rules
        if rule.severity != "info"
    ]
    assert len(keys) == len(set(keys))


def test_every_file_is_a_suite():
    names = {path.name for path in files("winback.expectations").iterdir()}
    assert {name for name in names if name.endswith(".yml")} == {f"{name}.yml" for name in SUITES}


def test_columns_that_are_not_nullable_are_checked_for_nulls():
    rules = {
        (table.name, rule.column)
        for table in load_suite("sources", PARAMETERS).tables
        for rule in table.rules
        if rule.type == "expect_column_values_to_not_be_null"
    }
    content = yaml.safe_load(
        files("winback").joinpath("dbt_project/models/staging/_sources.yml").read_text()
    )
    wanted = {
        (table["name"], column["name"])
        for table in content["sources"][0]["tables"]
        for column in table["columns"]
        if not column["config"]["meta"]["nullable"]
    }
    assert rules == wanted


def test_parameters_are_filled_in_as_literals_and_words():
    table = next(t for t in load_suite("sources", PARAMETERS).tables if t.name == "orders")
    midnight = "(timestamp '2024-07-29' at time zone U&'UTC')"
    assert table.query == (
        f'select * from "raw"."orders" where ordered_at < {midnight} or ordered_at is null'
    )
    assert "before as_of 2024-07-29" in next(
        rule.description for rule in table.rules if rule.name == "orders_before_as_of"
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"schema": 'x"; drop schema raw; --'}, "expected the name of a schema"),
        ({"source_schema": "a:b"}, "expected the name of a schema"),
        ({"budget": float("nan")}, "expected a finite number, came nan"),
        ({"budget": float("inf")}, "expected a finite number, came inf"),
    ],
)
def test_impossible_parameters(parameters, message):
    with pytest.raises(SettingsError, match=message):
        load_suite("sources", CheckParameters(date(2024, 1, 1), "r", **parameters))


def test_unknown_suite_names_the_known_ones():
    with pytest.raises(SettingsError, match="expected one of sources, features, scores"):
        load_suite("orders", PARAMETERS)


def test_unknown_placeholder_names_the_known_ones(monkeypatch):
    content = suites.read_suite("scores")
    content["tables"]["customer_scores"]["rows"] = "as_of = {today}"
    monkeypatch.setattr(suites, "read_suite", lambda name: content)
    with pytest.raises(
        SettingsError, match=r"unknown placeholder \{today\}; expected one of as_of"
    ):
        load_suite("scores", PARAMETERS)


def contract():
    """Tables as the contract wants them: table -> column -> Postgres type."""
    return {
        table: {column.name: TYPES.get(column.data_type, column.data_type) for column in columns}
        for table, columns in source_tables().items()
    }


def test_contract_holds_for_its_own_types_and_extra_columns():
    found = contract()
    found["orders"]["shop_note"] = "jsonb"
    found["products"] = {"product_id": "integer"}
    assert list(contract_violations(found)) == []


def test_contract_has_the_tables_and_keys_that_are_documented():
    assert list(source_tables()) == [
        *("orders", "order_items", "coupons", "coupon_offers", "customers", "budgets")
    ]
    assert source_tables()["orders"][0] == SourceColumn("order_id", "text", nullable=False)


ACCEPTED = [
    ("orders", "customer_id", "uuid"),
    ("orders", "order_id", "character varying"),
    ("orders", "revenue", "integer"),
    ("orders", "margin", "double precision"),
    ("orders", "coupon_cost", "real"),
]


@pytest.mark.parametrize(("table", "column", "data_type"), ACCEPTED)
def test_types_that_serve_as_well(table, column, data_type):
    found = contract()
    found[table][column] = data_type
    assert list(contract_violations(found)) == []


# (table, column, type found, expected, came); a type of None: the column is missing
VIOLATIONS = [
    ("orders", None, None, "a table or view (order_id text, customer_id text,", "no such table"),
    ("orders", "margin", None, "a column of type numeric", "no such column (there are order_id,"),
    ("orders", "ordered_at", "timestamp without time zone", "timestamp with time zone", "without"),
    ("orders", "ordered_at", "date", "type timestamp with time zone", "date"),
    ("orders", "revenue", "text", "type numeric or smallint or", "text"),
    ("orders", "order_id", "bigint", "type text or character varying or", "bigint"),
    ("customers", "can_contact", "integer", "type boolean", "integer"),
    ("budgets", "period_start", "timestamp with time zone", "type date", "timestamp with time"),
]


@pytest.mark.parametrize(("table", "column", "data_type", "expected", "came"), VIOLATIONS)
def test_contract_violation_says_what_was_expected_and_what_came(
    table, column, data_type, expected, came
):
    found = contract()
    if column is None:
        del found[table]
    elif data_type is None:
        del found[table][column]
    else:
        found[table][column] = data_type
    (violation,) = contract_violations(found)
    assert (violation.table, violation.column) == (table, column)
    assert expected in violation.expected
    assert came in violation.came
