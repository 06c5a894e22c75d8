"""The source tables that winback reads, as dbt's source file declares them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from winback.models.errors import SettingsError

SOURCES_FILE = "dbt_project/models/staging/_sources.yml"

# Postgres types (as format_type writes them, without a length) that serve as each declared type.
# Timestamps need a timezone: without one nobody knows on which day an order was placed.
ACCEPTED_TYPES = {
    "text": ("text", "character varying", "character", "uuid", "citext"),
    "numeric": ("numeric", "smallint", "integer", "bigint", "real", "double precision"),
    "timestamptz": ("timestamp with time zone",),
    "date": ("date",),
    "boolean": ("boolean",),
}


@dataclass(frozen=True)
class SourceColumn:
    """One column that winback reads; ``data_type`` is a key of :data:`ACCEPTED_TYPES`."""

    name: str
    data_type: str
    nullable: bool


@dataclass(frozen=True)
class Violation:
    """One place where the source tables differ from the contract, in words."""

    expectation: str
    table: str
    column: str | None
    expected: str
    came: str


@cache
def source_tables() -> dict[str, tuple[SourceColumn, ...]]:
    """Columns by table, in the order of dbt's source file.

    Raises:
        SettingsError: a column of the file has no known ``data_type``.
    """
    content = yaml.safe_load(files("winback").joinpath(SOURCES_FILE).read_text(encoding="utf-8"))
    tables = content["sources"][0]["tables"]
    return {table["name"]: tuple(map(_source_column, table["columns"])) for table in tables}


def contract_violations(found: Mapping[str, Mapping[str, str]]) -> Iterator[Violation]:
    """Compare what the warehouse holds (table -> column -> type) with the contract.

    Only the first difference of a table or column is given: a missing table has no columns.
    """
    for table, columns in source_tables().items():
        if table in found:
            yield from _column_violations(table, columns, found[table])
        else:
            wanted = ", ".join(f"{column.name} {column.data_type}" for column in columns)
            yield Violation(
                "expect_table_to_exist", table, None, f"a table or view ({wanted})", "no such table"
            )


def _source_column(column: Mapping[str, Any]) -> SourceColumn:
    meta = {**column.get("meta", {}), **column.get("config", {}).get("meta", {})}
    data_type = column.get("data_type")
    if data_type not in ACCEPTED_TYPES:
        raise SettingsError(
            f"{SOURCES_FILE}: column {column['name']} has data_type {data_type!r}; "
            f"expected one of {', '.join(ACCEPTED_TYPES)}"
        )
    return SourceColumn(column["name"], data_type, bool(meta.get("nullable", False)))


def _column_violations(
    table: str, columns: tuple[SourceColumn, ...], found: Mapping[str, str]
) -> Iterator[Violation]:
    for column in columns:
        came = found.get(column.name)
        accepted = ACCEPTED_TYPES[column.data_type]
        if came is None:
            expected = f"a column of type {column.data_type}"
            there = f"no such column (there are {', '.join(found) or 'none'})"
            yield Violation("expect_column_to_exist", table, column.name, expected, there)
        elif came not in accepted:
            expected = f"type {' or '.join(accepted)}"
            yield Violation(
                "expect_column_values_to_be_in_type_list", table, column.name, expected, came
            )
