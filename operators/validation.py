"""Run one suite with Great Expectations on the warehouse: rules in, results and HTML out."""

import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winback.expectations.source_contract import contract_violations
from winback.expectations.suites import (
    SQL_RULE,
    CheckedTable,
    CheckParameters,
    Rule,
    Suite,
    load_suite,
)
from winback.models.errors import NotFittedError, StoreUnavailableError, first_rows
from winback.operators.warehouse import transaction

if TYPE_CHECKING:
    from great_expectations.core import (
        ExpectationSuiteValidationResult,
        ExpectationValidationResult,
    )
    from great_expectations.core.batch_definition import BatchDefinition
    from great_expectations.data_context.data_context.ephemeral_data_context import (
        EphemeralDataContext,
    )
    from great_expectations.datasource.fluent.postgres_datasource import PostgresDatasource
    from great_expectations.expectations.expectation import Expectation

SAMPLE_ROWS = 5  # as many as an error message shows
VALUE_RULES = "expect_column_values_"  # on each row's value: one query counts for all of them
COUNTED = {"result_format": "BOOLEAN_ONLY"}  # more makes two queries per rule, broken or not
FOUND = {"result_format": "SUMMARY"}


@dataclass(frozen=True)
class CheckResult:
    """What one rule found; ``unexpected_percent`` is 0 to 100, None where rows are not counted."""

    suite: str
    expectation: str
    table: str
    column: str | None
    severity: str
    success: bool
    unexpected_count: int | None
    unexpected_percent: float | None
    sample: tuple[str, ...]
    came: str
    description: str

    @property
    def place(self) -> str:
        """``schema.table`` or ``schema.table.column``."""
        return f"{self.table}.{self.column}" if self.column else self.table

    def __str__(self) -> str:
        """Where, what was expected and what to do, what came."""
        return f"{self.place} ({self.expectation}): {self.description} Came: {self.came}."


def run_checks(
    url: str, suite_name: str, parameters: CheckParameters, docs_folder: Path | None = None
) -> list[CheckResult]:
    """Check one suite; nothing is written but the HTML report, if a folder is given for it.

    Source tables are first compared with the contract: where tables, columns or types differ,
    those results are all there is, and no report is made.

    Raises:
        NotFittedError: a table that an earlier task makes does not exist.
        StoreUnavailableError: the warehouse cannot be reached.
        SettingsError: the suite does not exist, or a parameter is impossible.
    """
    suite = load_suite(suite_name, parameters)
    violations = _violations(url, suite, parameters)
    return violations or validate(url, suite, docs_folder)


def validate(url: str, suite: Suite, docs_folder: Path | None = None) -> list[CheckResult]:
    """Evaluate the rules of a loaded suite, in its order; its tables have to exist."""
    with _quiet(), _warehouse(url) as (context, warehouse):
        _fetch_columns_only(warehouse, {table.query for table in suite.tables})
        results = [
            result
            for table in suite.tables
            for result in _validate_table(context, warehouse, suite, table)
        ]
        if docs_folder:
            _build_docs(context, docs_folder)
    return results


def _violations(url: str, suite: Suite, parameters: CheckParameters) -> list[CheckResult]:
    if suite.name == "sources":
        found = _columns(url, parameters.source_schema)
        return [
            CheckResult(
                suite=suite.name,
                expectation=violation.expectation,
                table=f"{parameters.source_schema}.{violation.table}",
                column=violation.column,
                severity="critical",
                success=False,
                unexpected_count=None,
                unexpected_percent=None,
                sample=(),
                came=violation.came,
                description=f"Expected {violation.expected}. Load it, or map your own table onto "
                "it with a view of this name.",
            )
            for violation in contract_violations(found)
        ]
    missing = [t.address for t in suite.tables if t.name not in _columns(url, t.schema)]
    if missing:
        raise NotFittedError(
            f"expected the tables that earlier tasks make, missing: {', '.join(missing)}. "
            "Run dbt build and the tasks before this check."
        )
    return []


def _columns(url: str, schema: str) -> dict[str, dict[str, str]]:
    """Columns and types (domains resolved) of every table and view of a schema, by table."""
    query = """
        select c.relname, a.attname,
            format_type(coalesce(nullif(t.typbasetype, 0), t.oid), null)
        from pg_catalog.pg_class c
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0
        join pg_catalog.pg_type t on t.oid = a.atttypid
        where n.nspname = %s and c.relkind in ('r', 'p', 'v', 'm', 'f') and not a.attisdropped
        order by c.relname, a.attnum
    """
    tables: dict[str, dict[str, str]] = {}
    with transaction(url) as connection:
        for table, column, data_type in connection.execute(query, (schema,)):
            tables.setdefault(table, {})[column] = data_type
    return tables


@contextmanager
def _warehouse(url: str) -> "Iterator[tuple[EphemeralDataContext, PostgresDatasource]]":
    """A context in memory: the connection is stored nowhere and closed at the end."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    warehouse = context.data_sources.add_postgres("warehouse", connection_string=_sqlalchemy(url))
    try:
        yield context, warehouse
    finally:
        warehouse.get_execution_engine().close()


def _fetch_columns_only(warehouse: "PostgresDatasource", queries: Set[str]) -> None:
    """The library learns a query's columns by running it: the whole table would come over."""
    from sqlalchemy import event

    engine = warehouse.get_execution_engine().engine

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def limit(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> tuple[str, Any]:
        return (f"{statement} limit 0" if statement in queries else statement), parameters


def _sqlalchemy(url: str) -> str:
    # Great Expectations would take a $ in a password for the beginning of a variable's name.
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url).replace("$", "%24")


def _validate_table(
    context: "EphemeralDataContext",
    warehouse: "PostgresDatasource",
    suite: Suite,
    table: CheckedTable,
) -> list[CheckResult]:
    """All rules on values at once by counting; then the rows that break one, where any do."""
    asset = warehouse.add_query_asset(table.name, query=table.query)
    batch = asset.add_batch_definition("rows")
    results: dict[int, CheckResult] = {}

    def validate(kind: str, chosen: Callable[[int, Rule], bool], result_format: Any) -> None:
        rules = {index: rule for index, rule in enumerate(table.rules) if chosen(index, rule)}
        if not rules:
            return
        name = "-".join(filter(None, (suite.name, table.name, kind)))
        for one in _run(context, batch, name, rules, result_format).results:
            index = _rule_index(one)
            results[index] = _result(suite.name, table, table.rules[index], one)

    validate("", lambda _, rule: rule.type.startswith(VALUE_RULES), COUNTED)
    broken = {index for index, result in results.items() if not result.success}
    validate("broken", lambda index, _: index in broken, _column_format(table))
    validate("queries", lambda _, rule: not rule.type.startswith(VALUE_RULES), FOUND)
    return [results[index] for index in sorted(results)]


def _run(
    context: "EphemeralDataContext",
    batch: "BatchDefinition[Any]",
    name: str,
    rules: Mapping[int, Rule],
    result_format: dict[str, Any],
) -> "ExpectationSuiteValidationResult":
    from great_expectations import ExpectationSuite, ValidationDefinition

    expectations = [_expectation(index, rule) for index, rule in rules.items()]
    suite = context.suites.add(ExpectationSuite(name=name, expectations=expectations))
    definition = ValidationDefinition(name=name, data=batch, suite=suite)
    return context.validation_definitions.add(definition).run(result_format=result_format)


def _expectation(index: int, rule: Rule) -> "Expectation":
    from great_expectations.expectations.metadata_types import FailureSeverity
    from great_expectations.expectations.registry import get_expectation_impl

    from winback.expectations.counted_rows import counted_rows

    kind = counted_rows() if rule.type == SQL_RULE else get_expectation_impl(rule.type)
    return kind(
        **rule.kwargs,
        severity=FailureSeverity(rule.severity),
        description=rule.description,
        meta={"rule": index},  # results come back in another order
    )


def _rule_index(found: "ExpectationValidationResult") -> int:
    configuration = found.expectation_config
    assert configuration is not None  # only results loaded from elsewhere lack it
    return int(configuration.meta["rule"])


def _column_format(table: CheckedTable) -> dict[str, Any]:
    return {
        "result_format": "SUMMARY",  # COMPLETE would fetch every unexpected value
        "unexpected_index_column_names": list(table.keys),
        "partial_unexpected_count": SAMPLE_ROWS,
    }


def _result(
    suite: str, table: CheckedTable, rule: Rule, found: "ExpectationValidationResult"
) -> CheckResult:
    details: Mapping[str, Any] = found.result
    if found.success and not details:  # counted only
        details = {"unexpected_count": 0, "unexpected_percent": 0.0}
    rows = details.get("partial_unexpected_index_list") or details.get("details", {}).get(
        "unexpected_rows", ()
    )
    sample = tuple(_row(row) for row in list(rows)[:SAMPLE_ROWS])
    count = details.get("unexpected_count", details.get("observed_value"))
    error = _exception(found.exception_info)
    return CheckResult(
        suite=suite,
        expectation=rule.name,
        table=table.address,
        column=rule.column,
        severity="critical" if error else rule.severity,
        success=bool(found.success),
        unexpected_count=None if error else count,
        unexpected_percent=details.get("unexpected_percent"),
        sample=sample,
        came=error or (first_rows(sample, count) if sample else str(count)),
        description=rule.description,
    )


def _row(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _exception(info: Mapping[str, Any]) -> str | None:
    """Why a rule could not be evaluated, None where it was.

    Raises:
        StoreUnavailableError: the server went away or stopped the query, in the middle of it.
    """
    parts = [info] if "raised_exception" in info else list(info.values())
    messages = [str(part["exception_message"]) for part in parts if part["raised_exception"]]
    if not messages:
        return None
    message = messages[0].splitlines()[0]
    if _is_operational(message):
        raise StoreUnavailableError(f"the warehouse did not finish a check: {message}. Try again.")
    return f"the rule could not be evaluated, {message}"


def _is_operational(message: str) -> bool:
    """Whether the driver's error, which only its text is left of, may be gone on a retry."""
    import psycopg

    name = re.match(r"\(psycopg\.(?:errors\.)?(\w+)\)", message)
    error = getattr(psycopg.errors, name[1], None) if name else None
    return error is not None and issubclass(error, psycopg.OperationalError)


def _build_docs(context: "EphemeralDataContext", folder: Path) -> None:
    site: Any = {  # its type leaves the buttons out
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(folder),
        },
    }
    context.add_data_docs_site("run", site)
    context.build_data_docs(site_names=["run"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep usage statistics, hints on standard output and log lines of the library away."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    from great_expectations.data_context.types import base

    base.logger.setLevel(logging.ERROR)  # this module sets a level of its own
    with redirect_stdout(io.StringIO()):  # a hint per SQL rule that it does not use {batch}
        yield
