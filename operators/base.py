"""What all operators of winback share: their arguments, and the run that they belong to."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import BaseOperator

from winback.models.settings import load_settings
from winback.operators.processes import limit_memory, peak_memory_mb
from winback.operators.run import Run
from winback.operators.warehouse import DEFAULT_CONNECTION, warehouse_url

logger = logging.getLogger(__name__)


class WinbackOperator(BaseOperator):
    """Base of the steps: a decision date, a run id, settings and the warehouse connection.

    Args:
        as_of: decision date, ISO format.
        run_id: what the step's rows are marked with.
        settings: overrides of :class:`winback.models.settings.Settings`, by name.
        warehouse_conn_id: Airflow connection of the Postgres warehouse.
    """

    template_fields: Sequence[str] = ("as_of", "run_id", "settings", "warehouse_conn_id")

    def __init__(
        self,
        *,
        as_of: str = "{{ data_interval_end | ds }}",
        run_id: str = "{{ run_id }}",
        settings: Mapping[str, Any] | None = None,
        warehouse_conn_id: str = DEFAULT_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.as_of = as_of
        self.run_id = run_id
        self.settings = settings
        self.warehouse_conn_id = warehouse_conn_id

    def pre_execute(self, context: Any) -> None:
        """Keep the task within the memory of the settings."""
        limit_memory(load_settings(self.settings).memory_limit_gb)

    def post_execute(self, context: Any, result: Any = None) -> None:
        """Say how much memory it took; a process that runs several tasks counts the largest."""
        logger.info("%s: at most %.2f GB of memory", self.task_id, peak_memory_mb() / 1e3)

    def current_run(self) -> Run:
        """Validate the arguments; call from ``execute`` only, it looks the connection up."""
        settings = load_settings(self.settings)
        return Run(warehouse_url(self.warehouse_conn_id), self.as_of, self.run_id, settings)
