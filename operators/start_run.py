"""Step 1: settle the decision date and the settings of a run, and make its tables."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import BaseOperator, Context

from winback.models.settings import Settings, load_settings
from winback.operators import q_store
from winback.operators.progress import report
from winback.operators.warehouse import DEFAULT_CONNECTION, ensure_output_tables, warehouse_url


def resolve_as_of(settings: Settings, interval_end: datetime) -> date:
    """The param, else the date of the data interval's end in the configured timezone."""
    return settings.as_of or interval_end.astimezone(ZoneInfo(settings.timezone)).date()


class StartRunOperator(BaseOperator):
    """Check the DAG's params and return what the other steps work with.

    Args:
        settings: overrides of the params, by name.
        warehouse_conn_id: Airflow connection of the Postgres warehouse.
        redis_conn_id: Airflow connection of Redis.

    Returns:
        ``as_of``, ``run_id``, ``started_at`` and the validated ``settings``, all JSON.

    Raises:
        SettingsError: a param is unknown or impossible, or a connection is missing.
        StoreUnavailableError: the warehouse, or Redis in a run that publishes, does not answer;
            better now than after the training.
    """

    template_fields: Sequence[str] = ("settings", "warehouse_conn_id", "redis_conn_id")

    def __init__(
        self,
        *,
        settings: Mapping[str, Any] | None = None,
        warehouse_conn_id: str = DEFAULT_CONNECTION,
        redis_conn_id: str = q_store.DEFAULT_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(multiple_outputs=True, **kwargs)
        self.settings = settings
        self.warehouse_conn_id = warehouse_conn_id
        self.redis_conn_id = redis_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        given = {**context["params"], **(self.settings or {})}
        settings = load_settings({name: given[name] for name in given if given[name] is not None})
        run = context["dag_run"]
        as_of = resolve_as_of(settings, run.data_interval_end or run.run_after)
        url = warehouse_url(self.warehouse_conn_id)
        ensure_output_tables(url, settings.schema_name, settings.work_schema)
        if settings.publish:
            q_store.check_reachable(q_store.redis_url(self.redis_conn_id))
        started = {
            "as_of": as_of.isoformat(),
            "run_id": run.run_id,
            "started_at": (run.start_date or run.run_after).isoformat(),
            "settings": settings.model_dump(mode="json"),
        }
        report("run", **started)
        return started
