"""winback_benchmark: winback and its rivals in worlds whose best policy is known."""

from datetime import datetime, timezone
from typing import Any

from airflow.sdk import DAG, Param, TriggerRule

from winback.operators.benchmark_steps import (
    BenchmarkReportOperator,
    ListWorldsOperator,
    RunWorldOperator,
)

DOC = """
### How much of the attainable profit does winback capture?

Each task makes one customer world whose every chance is known, writes its log into source tables of
its own, runs winback and its rivals on it, and judges their coupons by the world itself. Worlds
that the table has by the present code are not run again unless `fresh` is set.

Results: `winback.policy_benchmark` in the warehouse, `benchmark/benchmark.html` and
`benchmark/benchmark.md` beside the runs' artifacts.
"""

with DAG(
    "winback_benchmark",
    description="Policies in worlds whose best policy is known",
    doc_md=DOC,
    schedule=None,  # takes minutes per world: on demand
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    tags=["winback", "benchmark"],
    params={
        "worlds": Param(4, type="integer", minimum=1, description_md="How many worlds"),
        "customers": Param(20_000, type="integer", minimum=1, description_md="Of each world"),
        "weeks": Param(40, type="integer", minimum=2, description_md="Of log before the decision"),
        "families": Param([], type="array", description_md="Of worlds; empty: all, in turn"),
        "dials": Param(
            {}, type="object", description_md='Of all worlds, such as `{"confounding": 2}`'
        ),
        "policies": Param(
            [], type="array", description_md="Names; empty: all, in a closed loop winback"
        ),
        "settings": Param(
            {},
            type="object",
            description_md='Of winback, for all its variants, such as `{"pessimism": 2}`',
        ),
        "loop": Param(0, type="integer", minimum=0, description_md="Weeks of a closed loop"),
        "fresh": Param(False, type="boolean", description_md="Run again what the table has"),
    },
    default_args={"owner": "winback"},
) as dag:
    worlds: Any = ListWorldsOperator(task_id="list_worlds").output
    run_world = RunWorldOperator.partial(
        task_id="run_world",
        max_active_tis_per_dagrun=1,  # a world wants a core and some gigabytes to itself
    ).expand(world=worlds)
    report = BenchmarkReportOperator(
        task_id="report",
        worlds=worlds,
        trigger_rule=TriggerRule.ALL_DONE,  # one failed world does not hide the others
    )
    run_world >> report
