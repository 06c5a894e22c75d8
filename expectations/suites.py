"""Read the suites (one YAML file per checked step) and fill in what belongs to one run.

A suite is a list of tables; a table names the rows that the run looks at and its expectations::

    orders:
      schema: source_schema          # a name of CheckParameters, not a schema's own name
      keys: [order_id]               # columns that name a row in a message
      rows: ordered_at < {as_of_start}
      expectations:
        - type: expect_column_values_to_not_be_null
          kwargs: {column: customer_id}
          severity: critical         # stops the run; warning and info are recorded
          description: What is expected, and what to do otherwise.

Expectations are Great Expectations' own types. ``unexpected_rows_expectation`` takes a query that
returns the rows which break a rule, and a ``name``, since several may stand on one table. In
queries ``{rows}`` is the table cut to the run's rows (give it an alias), ``{keys}`` and
``{columns}`` are the table's key and contract columns, and every field of
:class:`CheckParameters` is there as an SQL literal or identifier.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import date
from importlib.resources import files
from math import isfinite
from typing import Any, Literal, cast

import yaml

from winback.expectations.source_contract import source_tables
from winback.models.errors import SettingsError

SUITES = ("sources", "features", "scores", "recommendations")
SQL_RULE = "unexpected_rows_expectation"
BROKEN_ROWS = "winback_broken_rows"  # column of a filled-in query: how many rows it returns

Severity = Literal["critical", "warning", "info"]

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")
# SQLAlchemy reads :name as a parameter and Great Expectations reads braces, so every character
# but these, and a colon inside a word (10:30), is written as a Unicode escape.
_UNSAFE = re.compile(r"[^\w .+~/:-]|(?<!\w):", re.ASCII)


@dataclass(frozen=True)
class CheckParameters:
    """What one run fills into the suites.

    ``budget`` is in currency; None where the run takes it from the budgets table. ``gap_days`` is
    the number of days before a customer may get another coupon.
    """

    as_of: date
    run_id: str
    source_schema: str = "raw"
    schema: str = "winback"
    work_schema: str = "winback_work"
    timezone: str = "UTC"
    decision_days: int = 7
    gap_days: int = 7
    budget: float | None = None

    def as_text(self) -> dict[str, str]:
        """The values as a person reads them."""
        return {field.name: str(getattr(self, field.name)) for field in fields(self)}

    def as_sql(self) -> dict[str, str]:
        """The values as SQL literals, schemas as identifiers; ``as_of_start`` is as_of's midnight.

        Raises:
            SettingsError: a schema name would need more than quotes, or a number is not finite.
        """
        sql = {field.name: _literal(getattr(self, field.name)) for field in fields(self)}
        for name in ("source_schema", "schema", "work_schema"):
            sql[name] = _identifier(getattr(self, name))
        midnight = f"timestamp '{self.as_of.isoformat()}' at time zone {sql['timezone']}"
        return {**sql, "as_of_start": f"({midnight})"}


@dataclass(frozen=True)
class Rule:
    """One expectation about one table. ``name`` tells several SQL rules of a table apart."""

    type: str
    name: str
    kwargs: Mapping[str, Any]
    severity: Severity
    description: str

    @property
    def column(self) -> str | None:
        """The column that the rule is about, None for whole rows."""
        return self.kwargs.get("column")


@dataclass(frozen=True)
class CheckedTable:
    """A table, the query for the rows that a run looks at, and the rules for them."""

    schema: str
    name: str
    keys: tuple[str, ...]
    query: str
    rules: tuple[Rule, ...]

    @property
    def address(self) -> str:
        """``schema.table``."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class Suite:
    """All that is checked at one step of the run."""

    name: str
    tables: tuple[CheckedTable, ...]


def load_suite(name: str, parameters: CheckParameters) -> Suite:
    """Read ``expectations/<name>.yml`` and fill in a run's parameters.

    Raises:
        SettingsError: no such suite, a file that breaks the format above, or an impossible value.
    """
    if name not in SUITES:
        raise SettingsError(f"no suite {name!r}; expected one of {', '.join(SUITES)}")
    tables = read_suite(name)["tables"]
    return Suite(name, tuple(_table(name, table, tables[table], parameters) for table in tables))


def read_suite(name: str) -> dict[str, Any]:
    """The content of a suite's file, nothing filled in."""
    text = files("winback.expectations").joinpath(f"{name}.yml").read_text(encoding="utf-8")
    return cast("dict[str, Any]", yaml.safe_load(text))


def _table(
    suite: str, name: str, content: Mapping[str, Any], parameters: CheckParameters
) -> CheckedTable:
    schema = str(getattr(parameters, content["schema"]))
    keys = tuple(content["keys"])
    sql = {**parameters.as_sql(), "keys": _columns(keys)}
    query = f"select * from {_identifier(schema)}.{_identifier(name)}"
    if "rows" in content:
        query += f" where {_fill(content['rows'], sql)}"
    sql["rows"] = f"({query})"
    if suite == "sources":
        sql["columns"] = _columns(column.name for column in source_tables()[name])
    text = parameters.as_text()
    rules = [_rule(rule, sql, text) for rule in content["expectations"]]
    return CheckedTable(schema, name, keys, query, (*_contract_rules(suite, name), *rules))


def _rule(content: Mapping[str, Any], sql: Mapping[str, str], text: Mapping[str, str]) -> Rule:
    kwargs = {key: _fill(value, sql) for key, value in content.get("kwargs", {}).items()}
    if content["type"] == SQL_RULE:  # in order, so that messages name the same rows every time
        query = kwargs["unexpected_rows_query"]
        count = f"count(*) over () as {BROKEN_ROWS}"
        kwargs["unexpected_rows_query"] = (
            f"select broken.*, {count} from ({query}) broken order by broken"
        )
    return Rule(
        type=content["type"],
        name=content.get("name", content["type"]),
        kwargs=kwargs,
        severity=content["severity"],
        description=_fill(" ".join(content["description"].split()), text),
    )


def _contract_rules(suite: str, table: str) -> list[Rule]:
    """The source contract's columns that must not be null."""
    if suite != "sources":
        return []
    return [
        Rule(
            "expect_column_values_to_not_be_null",
            "expect_column_values_to_not_be_null",
            {"column": column.name},
            "critical",
            f"Every row of {table} has a value for {column.name}. "
            "Fill the column in the source, or leave such rows out in the view over it.",
        )
        for column in source_tables()[table]
        if not column.nullable
    ]


def _fill(value: Any, values: Mapping[str, str]) -> Any:
    if not isinstance(value, str):
        return value
    return _PLACEHOLDER.sub(lambda match: _known(match[1], values), value)


def _known(name: str, values: Mapping[str, str]) -> str:
    if name not in values:
        raise SettingsError(f"unknown placeholder {{{name}}}; expected one of {', '.join(values)}")
    return values[name]


def _columns(names: Iterable[str]) -> str:
    return ", ".join(map(_identifier, names))


def _identifier(name: str) -> str:
    if not _IDENTIFIER.fullmatch(name):
        raise SettingsError(f"expected the name of a schema, table or column, came {name!r}")
    return f'"{name}"'


def _literal(value: date | str | float | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, date):
        return f"date '{value.isoformat()}'"
    if isinstance(value, str):
        return f"U&'{_UNSAFE.sub(_escape, value)}'"
    if not isfinite(value):
        raise SettingsError(f"expected a finite number, came {value}")
    return repr(value)


def _escape(match: re.Match[str]) -> str:
    return f"\\+{ord(match[0]):06X}"
