"""Last step of the decision: recommendations to the warehouse, the Q-table to Redis, or neither."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NoReturn

from airflow.sdk import Context

from winback.models.errors import HeldError, NotFittedError
from winback.models.states import StateSpace
from winback.operators.base import WinbackOperator
from winback.operators.q_store import DEFAULT_CONNECTION, QStore, connect, redis_url
from winback.operators.run import Run
from winback.operators.warehouse import read_table, transaction

PUBLISHED_TABLES = ("customer_scores", "q_table", "recommendations")
REPLACE = (
    "delete from {schema}.{table} where as_of = {as_of}",
    "insert into {schema}.{table} select * from {work}.{table}"
    " where as_of = {as_of} and run_id = {run_id}",
)
FORGET_WORK = "delete from {work}.{table} where as_of = {as_of}"

# Append-only: what has been published once was perhaps sent, so the first word stands.
APPEND_DECISIONS = """
insert into {schema}.decisions (
    decision_id, as_of, run_id, customer_id, coupon_id, propensity,
    treatment_group, is_exploration, valid_from, valid_to, published_at
)
select
    decision_id, as_of, run_id, customer_id, coupon_id, propensity,
    treatment_group, is_exploration, valid_from, valid_to, created_at
from {work}.recommendations
where as_of = {as_of} and run_id = {run_id}
order by decision_id
on conflict (decision_id) do nothing
"""
RECORD_RUN = """
insert into {schema}.runs (
    run_id, as_of, status, budget, expected_spend, dual_price, duality_gap,
    metrics, started_at, finished_at
)
values (
    {run_id}, {as_of}, {status}, {budget}, {expected_spend}, {dual_price}, {duality_gap},
    {metrics}, {started_at}, {finished_at}
)
on conflict (run_id) do update set
    as_of = excluded.as_of, status = excluded.status, budget = excluded.budget,
    expected_spend = excluded.expected_spend, dual_price = excluded.dual_price,
    duality_gap = excluded.duality_gap, metrics = excluded.metrics,
    started_at = excluded.started_at, finished_at = excluded.finished_at
"""
COMMITTED = """
select
    exists (
        select from {schema}.recommendations where as_of = {as_of} and run_id = {run_id}
    ) and not exists (
        select from {work}.recommendations where as_of = {as_of} and run_id = {run_id}
    ) as is_committed
"""
SUPPORTED_VALUES = """
select state, coupon_id, q_value
from {origin}.q_table
where as_of = {as_of} and run_id = {run_id} and is_supported
order by state collate "C", coupon_id
"""


COUPONS = """
select coupon_id, label, face_value::double precision as face_value, channel
from {staging}.stg_coupons
order by coupon_id
"""


class PublishOperator(WinbackOperator):
    """Publish a checked run: all of it or nothing.

    The new Q-table is staged in Redis and verified first; then one warehouse transaction replaces
    the rows of this ``as_of``, and moves Redis' pointer as its last act before the commit.

    Args:
        started_at: when the run began, ISO format.
        metrics: figures of the steps, stored with the run.
        redis_conn_id: Airflow connection of Redis.

    Raises:
        HeldError: the gate keeps the current policy; the run is recorded, nothing else changes.
    """

    template_fields: Sequence[str] = (
        *WinbackOperator.template_fields,
        "started_at",
        "metrics",
        "redis_conn_id",
    )

    def __init__(
        self,
        *,
        started_at: str = "{{ dag_run.start_date.isoformat() }}",
        metrics: Mapping[str, Any] | None = None,
        redis_conn_id: str = DEFAULT_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.started_at = started_at
        self.metrics = metrics
        self.redis_conn_id = redis_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        run = self.current_run()
        metrics = dict(self.metrics or {})
        if not run.settings.publish:
            record_run(run, "dry_run", metrics, self.started_at)
            return {"status": "dry_run"}
        if (metrics.get("evaluation") or {}).get("passed") is False:
            hold(run, metrics, self.started_at)
        return publish(run, redis_url(self.redis_conn_id), metrics, self.started_at)


def publish(
    run: Run, redis_address: str, metrics: dict[str, Any], started_at: str
) -> dict[str, Any]:
    """Move a run's work tables into place and serve its Q-table.

    Raises:
        NotFittedError: the work tables hold nothing of this run.
        StoreUnavailableError: the warehouse or Redis failed; nothing has changed for readers.
    """
    days = run.settings.keep_versions_days
    store = QStore(connect(redis_address), keep_seconds=days * 86_400)
    if _is_committed(run):
        version = store.stage(run.as_of, _supported_values(run, "schema"), _meta(run))
        store.activate(version)
        return {"status": "published", "redis_version": version}
    version = store.stage(run.as_of, _supported_values(run, "work"), _meta(run))
    served_before = store.served()
    try:
        with transaction(run.url) as connection:
            rows = _replace_tables(connection, run)
            _record(connection, run, "published", metrics, started_at)
            store.activate(version)
    except BaseException:
        store.restore(version, served_before)  # the commit failed: readers of Redis go back as well
        raise
    return {"status": "published", "redis_version": version, **rows}


def hold(run: Run, metrics: Mapping[str, Any], started_at: str) -> NoReturn:
    """Record the run as held, write its report, and end in an error.

    An error, since the tasks and assets after publishing must not go on as if it had happened; and
    the report here, since the task that writes it comes after publishing.
    """
    from winback.operators.report import write_report

    record_run(run, "held", metrics, started_at)
    place = write_report(run)
    raise HeldError(
        f"{metrics['evaluation']['reason']} Recommendations and Q-table are the ones before. See "
        f"{place}; to publish all the same, run it again with override_gate."
    )


def record_run(run: Run, status: str, metrics: Mapping[str, Any], started_at: str) -> None:
    """Write the run's row without publishing anything (``dry_run``, ``held``, ``failed``)."""
    with transaction(run.url) as connection:
        _record(connection, run, status, metrics, started_at)


def append_decisions(connection: Any, run: Run) -> None:
    """Put the run's decisions on record, from its work table."""
    _execute(connection, APPEND_DECISIONS, run)


def _is_committed(run: Run) -> bool:
    """Whether an earlier try got as far as the commit, and died before it could say so."""
    return bool(read_table(run.url, COMMITTED, run.names)["is_committed"][0].as_py())


def _replace_tables(connection: Any, run: Run) -> dict[str, int]:
    rows = {}
    for table in PUBLISHED_TABLES:
        for statement in REPLACE:
            rows[table] = _execute(connection, statement, run, table=table).rowcount
    if rows["recommendations"] == 0:
        raise NotFittedError(
            f"expected the recommendations of run {run.run_id} for {run.as_of} in "
            f"{run.settings.work_schema}.recommendations, found none. Run allocate_coupons first."
        )
    append_decisions(connection, run)
    for table in PUBLISHED_TABLES:
        _execute(connection, FORGET_WORK, run, table=table)
    return rows


def _record(
    connection: Any, run: Run, status: str, metrics: Mapping[str, Any], started_at: str
) -> None:
    allocation = metrics.get("allocation") or {}
    figures = {
        name: allocation.get(name)
        for name in ("budget", "expected_spend", "dual_price", "duality_gap")
    }
    _execute(
        connection,
        RECORD_RUN,
        run,
        status=status,
        metrics=json.dumps(metrics, sort_keys=True),
        started_at=started_at,
        finished_at=datetime.now(timezone.utc),
        **figures,
    )


def _execute(connection: Any, statement: str, run: Run, **values: Any) -> Any:
    from psycopg import sql

    table = values.pop("table", None)
    named = {**run.names, **values}
    quoted = {
        name: value if isinstance(value, sql.Composable) else sql.Literal(value)
        for name, value in named.items()
    }
    if table is not None:
        quoted["table"] = sql.Identifier(table)
    return connection.execute(sql.SQL(statement).format(**quoted))


def _supported_values(run: Run, origin: str) -> Any:
    names = {**run.names, "origin": run.names[origin]}
    return read_table(run.url, SUPPORTED_VALUES, names)


def _meta(run: Run) -> dict[str, Any]:
    coupons = read_table(run.url, COUPONS, run.names)
    return {
        "run_id": run.run_id,
        "state_space": StateSpace(run.settings.state_bins).to_dict(),
        "catalogue": coupons.to_pylist(),
    }
