"""Steps of ``winback_benchmark``: list the worlds, run one of them, report."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, Context

from winback.models.settings import load_settings
from winback.operators.artifacts import root_folder
from winback.operators.warehouse import DEFAULT_CONNECTION, warehouse_url

if TYPE_CHECKING:
    from winback.operators.benchmark import BenchmarkOptions

SIZES = ("worlds", "customers", "weeks")


class ListWorldsOperator(BaseOperator):
    """The worlds of the DAG's params, one mapping each.

    Raises:
        SettingsError: a param is impossible.
    """

    def execute(self, context: Context) -> list[dict[str, Any]]:
        from winback.operators.benchmark_worlds import choose_worlds

        params: Mapping[str, Any] = context["params"]
        count, customers, weeks = (params[name] for name in SIZES)
        _options(params)  # wrong ones are refused here, not in every world
        worlds = choose_worlds(count, customers, weeks, params["families"], params["dials"])
        return [world.to_dict() for world in worlds]


class RunWorldOperator(BaseOperator):
    """Run all policies in one world, or let it live on for the param ``loop``'s weeks.

    Args:
        world: one of the mappings of :class:`ListWorldsOperator`.
        warehouse_conn_id: Airflow connection of the Postgres warehouse.
    """

    template_fields: Sequence[str] = ("world", "warehouse_conn_id")

    def __init__(
        self, *, world: Any, warehouse_conn_id: str = DEFAULT_CONNECTION, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.world = world
        self.warehouse_conn_id = warehouse_conn_id

    def execute(self, context: Context) -> int:
        from winback.operators.benchmark import run_world
        from winback.operators.benchmark_loop import run_loop
        from winback.operators.benchmark_worlds import BenchmarkWorld

        params: Mapping[str, Any] = context["params"]
        options = _options(params, warehouse_url(self.warehouse_conn_id))
        world = BenchmarkWorld(**self.world)
        if params["loop"]:
            return len(run_loop(world, options, self.log.info, params["loop"]))
        return len(run_world(world, options, self.log.info))


class BenchmarkReportOperator(BaseOperator):
    """Write the table and the page from what the warehouse has of the worlds.

    Args:
        worlds: the mappings of :class:`ListWorldsOperator`.
        warehouse_conn_id: Airflow connection of the Postgres warehouse.

    Raises:
        NotFittedError: no world has been run.
    """

    template_fields: Sequence[str] = ("worlds", "warehouse_conn_id")

    def __init__(
        self, *, worlds: Any, warehouse_conn_id: str = DEFAULT_CONNECTION, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.worlds = worlds
        self.warehouse_conn_id = warehouse_conn_id

    def execute(self, context: Context) -> dict[str, str]:
        from winback.operators.benchmark_report import write_report
        from winback.operators.benchmark_table import read_rows
        from winback.operators.benchmark_worlds import BenchmarkWorld

        worlds = [BenchmarkWorld(**world) for world in self.worlds]
        params: Mapping[str, Any] = context["params"]
        options = _options(params, warehouse_url(self.warehouse_conn_id))
        rows = read_rows(options.url, options.schema, worlds)
        folder = root_folder(load_settings().artifacts_uri) / "benchmark"
        return write_report(rows, folder, _call(context["dag"].dag_id, params))


def _options(params: Mapping[str, Any], url: str = "") -> "BenchmarkOptions":
    """The DAG's params as the command's options.

    Raises:
        SettingsError: a policy or a setting is unknown, or a value impossible.
    """
    from winback.operators.benchmark import BenchmarkOptions

    settings = dict(params["settings"])
    schema = load_settings(settings).schema_name
    policies = tuple(params["policies"])
    return BenchmarkOptions(url, schema, policies, settings, fresh=params["fresh"])


def _call(dag_id: str, params: Mapping[str, Any]) -> str:
    """How to get the same report again."""
    return f"airflow dags trigger {dag_id} --conf {shlex.quote(json.dumps(dict(params)))}"
