"""Last task, always: record a run that failed, so that nobody has to read scheduler logs."""

from collections.abc import Sequence
from typing import Any

from airflow.sdk import Context

from winback.operators.base import WinbackOperator
from winback.operators.progress import FAILURE
from winback.operators.publish import record_run
from winback.operators.warehouse import read_table

RECORDED = "select status from {schema}.runs where run_id = {run_id}"


class FinishRunOperator(WinbackOperator):
    """Write ``failed`` into ``runs`` when no other status has been recorded for the run.

    A teardown: it runs after failures too, and does not hide them.

    Args:
        started_at: when the run began, ISO format.
    """

    template_fields: Sequence[str] = (*WinbackOperator.template_fields, "started_at")

    def __init__(
        self, *, started_at: str = "{{ dag_run.start_date.isoformat() }}", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.started_at = started_at

    def execute(self, context: Context) -> dict[str, Any]:
        run = self.current_run()
        recorded = read_table(run.url, RECORDED, run.names).to_pylist()
        if recorded:
            return {"status": recorded[0]["status"]}
        record_run(run, "failed", {"failures": _failures(context)}, self.started_at)
        return {"status": "failed"}


def _failures(context: Context) -> list[dict[str, str]]:
    """Task, kind and error text of the tasks that failed."""
    tasks = list(context["dag"].task_ids)
    return [found for found in context["ti"].xcom_pull(task_ids=tasks, key=FAILURE) if found]
