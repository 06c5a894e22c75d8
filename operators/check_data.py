"""Check data with Great Expectations: sources, features, scores and recommendations.

Every result goes to ``data_checks`` and into an HTML report; a failing critical rule stops the run.
"""

import logging
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from airflow.sdk import Context

from winback.expectations.suites import CheckParameters
from winback.models.errors import DataError
from winback.operators.artifacts import Artifacts
from winback.operators.base import WinbackOperator
from winback.operators.budget import run_budget
from winback.operators.run import Run
from winback.operators.validation import CheckResult, run_checks
from winback.operators.warehouse import transaction

logger = logging.getLogger(__name__)

LOG_LEVELS = {"critical": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO}
DECORATION = {".gif", ".otf"}  # tutorial films and fonts, 4 MB with every report


def write_checks(
    url: str, schema: str, run_id: str, as_of: date, results: Sequence[CheckResult]
) -> None:
    """Put the results into ``data_checks``, replacing what this run had written for the suite."""
    from psycopg import sql

    table = sql.Identifier(schema, "data_checks")
    columns = (
        *("as_of", "run_id", "suite", "expectation", "table_name", "column", "severity"),
        *("success", "unexpected_count", "unexpected_percent", "description"),
    )
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    delete = sql.SQL("delete from {} where run_id = %s and suite = any(%s)").format(table)
    insert = sql.SQL("insert into {} ({}) values ({})").format(
        table, names, sql.SQL(", ").join([sql.Placeholder()] * len(columns))
    )
    suites = sorted({result.suite for result in results})
    with transaction(url) as connection, connection.cursor() as cursor:
        cursor.execute(delete, (run_id, suites))
        cursor.executemany(insert, [(as_of, run_id, *_record(result)) for result in results])


def raise_on_critical(results: Sequence[CheckResult]) -> None:
    """Log every failed rule; stop if one of them is critical.

    Raises:
        DataError: lists each critical failure with what was expected, what came and what to do.
    """
    failed = [result for result in results if not result.success]
    for result in failed:
        logger.log(LOG_LEVELS[result.severity], "%s: %s", result.severity, result)
    critical = [result for result in failed if result.severity == "critical"]
    if critical:
        lines = "\n".join(f"- {result}" for result in critical)
        raise DataError(
            f"{len(critical)} of {len(results)} checks of {critical[0].suite} failed and stop the "
            f"run; nothing is published:\n{lines}"
        )


def check_parameters(run: Run, suite: str) -> CheckParameters:
    """What a run fills into a suite; recommendations are held to the budget that the run has."""
    settings = run.settings
    budget = run_budget(run).amount if suite == "recommendations" else settings.budget
    return CheckParameters(
        as_of=date.fromisoformat(run.as_of),
        run_id=run.run_id,
        source_schema=settings.source_schema,
        schema=settings.schema_name,
        work_schema=settings.work_schema,
        timezone=settings.timezone,
        decision_days=settings.decision_days,
        gap_days=settings.gap_days,
        budget=budget,
    )


def check_data(run: Run, suite: str) -> dict[str, Any]:
    """Check, record, report and decide: the whole step for one suite.

    Returns:
        ``checks``, ``failed_warnings`` (counts) and ``data_docs`` (the report's address).

    Raises:
        DataError: a critical rule failed; results and report are written before.
    """
    parameters = check_parameters(run, suite)
    with TemporaryDirectory() as folder:
        results = run_checks(run.url, suite, parameters, Path(folder))
        docs = _keep_docs(Path(folder), run.artifacts, f"data_docs/{suite}")
    write_checks(run.url, parameters.schema, run.run_id, parameters.as_of, results)
    if docs:
        logger.info("Data Docs: %s", docs)
    raise_on_critical(results)
    warnings = [result for result in results if result.severity == "warning" and not result.success]
    return {"checks": len(results), "failed_warnings": len(warnings), "data_docs": docs}


class CheckDataOperator(WinbackOperator):
    """Check one suite (``sources``, ``features``, ``scores`` or ``recommendations``).

    Args:
        suite: name of a file in ``expectations/``.

    Raises:
        DataError: a critical rule failed; nothing after this task may run.
    """

    template_fields: Sequence[str] = (*WinbackOperator.template_fields, "suite")

    def __init__(self, *, suite: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.suite = suite

    def execute(self, context: Context) -> dict[str, Any]:
        return check_data(self.current_run(), self.suite)


def _record(result: CheckResult) -> tuple[object, ...]:
    return (
        *(result.suite, result.expectation, result.table, result.column, result.severity),
        *(result.success, result.unexpected_count, result.unexpected_percent, result.description),
    )


def _keep_docs(built: Path, artifacts: Artifacts, name: str) -> str | None:
    """Copy the report into the artifact store; return its first page, None if none was made."""
    files = [path for path in sorted(built.rglob("*")) if path.is_file()]
    pages = [path for path in files if path.suffix not in DECORATION]
    for page in pages:
        artifacts.write_bytes(f"{name}/{page.relative_to(built)}", page.read_bytes())
    return artifacts.uri(f"{name}/index.html") if pages else None
