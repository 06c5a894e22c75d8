"""Steps that run dbt: Cosmos' operator, pointed at winback's project and connection."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import Context
from cosmos import ProfileConfig
from cosmos.constants import InvocationMode
from cosmos.exceptions import CosmosDbtRunError
from cosmos.operators.local import DbtBuildLocalOperator
from cosmos.profiles import PostgresUserPasswordProfileMapping

from winback.models.errors import DataError
from winback.models.settings import load_settings
from winback.operators.warehouse import DEFAULT_CONNECTION, transaction, warehouse_url

PROJECT = Path(__file__).resolve().parent.parent / "dbt_project"

# dbt vars that are settings of the same name.
SETTING_VARS = (
    "source_schema",
    "timezone",
    "decision_days",
    "default_margin_rate",
    "decisions_are_offers",
    "max_contacts_days",
)


class DbtBuildOperator(DbtBuildLocalOperator):
    """``dbt build`` of a selection of winback's project, for one decision date.

    The difference from Cosmos' operator is where its arguments come from: the Airflow connection
    and the run's settings (as dbt vars). A failing build or data test ends as a DataError.
    """

    template_fields: Sequence[str] = (
        *DbtBuildLocalOperator.template_fields,
        "as_of",
        "run_id",
        "settings",
        "warehouse_conn_id",
    )

    def __init__(
        self,
        *,
        as_of: str = "{{ data_interval_end | ds }}",
        run_id: str = "{{ run_id }}",
        settings: Mapping[str, Any] | None = None,
        warehouse_conn_id: str = DEFAULT_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            project_dir=str(PROJECT),
            profile_config=_profile(warehouse_conn_id, load_settings().schema_name),
            invocation_mode=InvocationMode.DBT_RUNNER,
            install_deps=False,
            emit_datasets=False,
            # Unit tests check the SQL, not the data: they belong to development, not to each night.
            dbt_cmd_flags=["--exclude-resource-type", "unit_test"],
            **kwargs,
        )
        self.as_of = as_of
        self.run_id = run_id
        self.settings = settings
        self.warehouse_conn_id = warehouse_conn_id

    def execute(self, context: Context, **kwargs: Any) -> None:
        """Build, after making sure that the warehouse answers (dbt's own error hides that)."""
        chosen = load_settings(self.settings).model_dump(mode="json")
        shaping = {name: chosen[name] for name in SETTING_VARS}
        self.vars = {"as_of": self.as_of, "run_id": self.run_id, **shaping}
        # the connection that was templated, and the schema of these settings
        self.profile_config = _profile(self.warehouse_conn_id, chosen["schema_name"])
        with transaction(warehouse_url(self.warehouse_conn_id)):
            pass
        try:
            super().execute(context, **kwargs)
        except CosmosDbtRunError as error:
            raise DataError(
                f"dbt build --select {self.select}, as of {self.as_of}: {error}"
            ) from error


def _profile(conn_id: str, schema: str) -> ProfileConfig:
    mapping = PostgresUserPasswordProfileMapping(
        conn_id=conn_id, profile_args={"schema": schema, "threads": 2}
    )
    return ProfileConfig(profile_name="winback", target_name="warehouse", profile_mapping=mapping)
