"""Check data with Great Expectations: sources, features, scores and recommendations.

Every result goes to ``data_checks`` and into an HTML report; a failing critical rule stops the run.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink, Context

from winback.expectations.suites import CheckParameters
from winback.models.errors import DataError
from winback.models.settings import load_settings
from winback.operators.artifacts import Artifacts
from winback.operators.base import WinbackOperator
from winback.operators.budget import run_budget
from winback.operators.run import Run
from winback.operators.validation import CheckResult, run_checks
from winback.operators.warehouse import transaction

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

logger = logging.getLogger(__name__)

LOG_LEVELS = {"critical": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO}
REPORT_FOLDER = "data_docs/{suite}"
REPORT = "index.html"
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
    failed = _failed(results)
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
    with TemporaryDirectory() as name:
        folder = Path(name)
        results = run_checks(run.url, suite, parameters, folder / "details")
        page = render_report(suite, parameters, results, _detail_pages(folder))
        (folder / REPORT).write_text(page, encoding="utf-8")
        _keep(folder, run.artifacts, REPORT_FOLDER.format(suite=suite))
    write_checks(run.url, parameters.schema, run.run_id, parameters.as_of, results)
    report = report_uri(run.artifacts, suite)
    logger.info("Data Docs: %s", report)
    raise_on_critical(results)
    warnings = [result for result in _failed(results) if result.severity == "warning"]
    return {"checks": len(results), "failed_warnings": len(warnings), "data_docs": report}


def report_uri(artifacts: Artifacts, suite: str) -> str:
    """Address of the report of one suite's checks in one run."""
    return artifacts.uri(f"{REPORT_FOLDER.format(suite=suite)}/{REPORT}")


def render_report(
    suite: str,
    parameters: CheckParameters,
    results: Sequence[CheckResult],
    pages: Mapping[str, str],
) -> str:
    """One page that needs no network: failed rules first, links to the library's own pages."""
    from jinja2 import Environment

    template = files("winback.operators").joinpath("checks.html.j2").read_text(encoding="utf-8")
    order = list(LOG_LEVELS)
    failed = sorted(_failed(results), key=lambda result: order.index(result.severity))
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            suite=suite,
            as_of=parameters.as_of,
            run_id=parameters.run_id,
            results=results,
            failed=failed,
            passed=[result for result in results if result.success],
            stops=any(result.severity == "critical" for result in failed),
            pages=pages,
        )
    )


class DataDocsLink(BaseOperatorLink):
    """The task's button that opens the report, there after a failed check as well."""

    name = "Data Docs"

    def get_link(self, operator: "BaseOperator", *, ti_key: "TaskInstanceKey") -> str:
        """Address of the report, from the operator's rendered arguments."""
        assert isinstance(operator, CheckDataOperator)
        root = load_settings(operator.settings).artifacts_uri
        return report_uri(Artifacts(root, operator.as_of, operator.run_id), operator.suite)


class CheckDataOperator(WinbackOperator):
    """Check one suite (``sources``, ``features``, ``scores`` or ``recommendations``).

    Args:
        suite: name of a file in ``expectations/``.

    Raises:
        DataError: a critical rule failed; nothing after this task may run.
    """

    template_fields: Sequence[str] = (*WinbackOperator.template_fields, "suite")
    operator_extra_links = (DataDocsLink(),)

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


def _failed(results: Sequence[CheckResult]) -> list[CheckResult]:
    return [result for result in results if not result.success]


def _detail_pages(folder: Path) -> dict[str, str]:
    """Links to the library's result pages, by suite and table."""
    found = sorted(folder.glob("details/validations/*/**/*.html"))
    return {path.relative_to(folder).parts[2]: str(path.relative_to(folder)) for path in found}


def _keep(folder: Path, artifacts: Artifacts, name: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in DECORATION:
            artifacts.write_bytes(f"{name}/{path.relative_to(folder)}", path.read_bytes())
