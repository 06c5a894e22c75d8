"""Reading what a run left, in the warehouse and as artifacts, into a RunReport."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from winback.models.errors import NotFittedError
from winback.models.settings import LimitSetting
from winback.models.states import COARSE, ROOT, StateSpace, parse_key
from winback.operators.artifacts import PROFIT_REPORT, SURVIVAL
from winback.operators.run import Run
from winback.operators.run_report import CouponLine, Row, RunReport, StateTable, Totals
from winback.operators.snapshots import Catalogue, read_catalogue
from winback.operators.warehouse import read_table, transaction

FIRST_ROWS = 20  # recommendations on the page: enough to see what the reasons look like
LATEST = 10  # finished windows and earlier runs shown
RECENCY, FREQUENCY = COARSE

# Who gets no coupon, in the order in which the rules apply; "drawn" is exploration's own `none`.
WITHOUT_COUPON = {
    "no_consent": "have not agreed to be contacted",
    "no_purchase_yet": "have not bought anything yet",
    "recent_contact": "got a coupon, or as many as allowed, of late",
    "holdout": "are in the comparison group, which never gets coupons and so shows what they bring",
    "low_support": "are customers for whom past offers do not show what a coupon does",
    "no_uplift": "are not known to bring in more with a coupon than it costs",
    "budget": "would be worth a coupon, but the budget, or a limit, brings more with others",
    "drawn": "were drawn by chance to get none, to learn what happens without a coupon",
}

RUN = """
select status, budget, metrics
from {schema}.runs
where run_id = {run_id} and as_of = {as_of}
"""
DECIDED = "{place}.recommendations where as_of = {as_of} and run_id = {run_id}"
TOTALS = f"""
select
    count(*) as customers,
    count(*) filter (where coupon_id <> 'none') as with_coupon,
    count(*) filter (where treatment_group = 'holdout') as held_out,
    count(*) filter (where is_exploration) as explored,
    coalesce(sum(expected_cost), 0) as expected_spend,
    coalesce(sum(expected_uplift), 0) as expected_uplift,
    coalesce(sum(long_run_uplift), 0) as long_run_uplift,
    max(valid_to) as valid_to
from {DECIDED}
"""
COUPONS = f"""
select
    coupon_id,
    count(*) as customers,
    count(*) filter (where is_exploration) as explored,
    sum(expected_cost) as expected_cost,
    sum(expected_uplift) as expected_uplift,
    sum(long_run_uplift) as long_run_uplift
from {DECIDED} and coupon_id <> 'none'
group by coupon_id
"""
WITHOUT = f"""
select
    coalesce(suppression_reason, 'drawn') as reason,
    count(*) as customers
from {DECIDED} and coupon_id = 'none'
group by 1
"""
STATES = f"""
select state, coupon_id, count(*) as customers
from {DECIDED} and state is not null
group by state, coupon_id
"""
FIRST = f"""
select customer_id, coupon_id, is_exploration, expected_cost, expected_uplift, long_run_uplift,
    reason
from {DECIDED}
order by coupon_id = 'none', long_run_uplift desc, customer_id
limit {FIRST_ROWS}
"""
THIN = """
select count(*) as customers
from {place}.recommendations as given
left join {place}.q_table as planned using (as_of, state, coupon_id)
where given.as_of = {as_of} and given.run_id = {run_id}
    and given.coupon_id <> 'none' and not given.is_exploration
    and coalesce(planned.visits, 0) < {min_visits}
"""
PLAN = """
select
    count(*) as states,
    coalesce(sum(visits), 0)::bigint as decisions,
    coalesce(sum(offers), 0)::bigint as offers,
    count(best) as states_with_a_supported_coupon,
    count(*) filter (where best > without) as states_where_a_coupon_wins
from (
    select
        sum(visits) as visits,
        sum(visits) filter (where coupon_id <> 'none') as offers,
        max(q_value) filter (where coupon_id <> 'none' and is_supported) as best,
        max(q_value) filter (where coupon_id = 'none') as without
    from {place}.q_table
    where as_of = {as_of} and run_id = {run_id}
    group by state
) as states
"""
ALIVE = "select p_alive from {place}.customer_scores where as_of = {as_of} and run_id = {run_id}"
CHECKS = """
select suite, table_name, "column", severity, success, unexpected_count, description
from {schema}.data_checks
where run_id = {run_id} and as_of = {as_of}
order by suite, success, severity, table_name, "column"
"""
PERFORMANCE = f"""
select *, treated_buyers::double precision / treated_customers as treated_bought,
    holdout_buyers::double precision / nullif(holdout_customers, 0) as holdout_bought
from {{schema}}.incremental_profit
order by as_of desc
limit {LATEST}
"""
TO_DATE = "select * from {schema}.incremental_profit_to_date where as_of = {as_of}"
PUBLISHED = f"""
select distinct on (as_of) as_of, budget, expected_spend
from {{schema}}.runs
where status = 'published' and as_of <= {{as_of}} and budget is not null
order by as_of desc, finished_at desc
limit {LATEST}
"""
FIRST_PUBLISHED = "select min(as_of) as as_of from {schema}.runs where status = 'published'"


@dataclass(frozen=True)
class _Source:
    """One connection, so that all facts are of one moment, and what the queries may name."""

    connection: Any
    names: Row

    def rows(self, query: str) -> list[Row]:
        from psycopg import sql
        from psycopg.rows import dict_row

        quoted = {
            name: value if isinstance(value, sql.Composable) else sql.Literal(value)
            for name, value in self.names.items()
        }
        with self.connection.cursor(row_factory=dict_row) as cursor:
            found: list[Row] = cursor.execute(sql.SQL(query).format(**quoted)).fetchall()
        return found

    def rows_of_report(self, table: str, query: str) -> list[Row]:
        """Rows of a table that dbt makes after publishing; none before the first time."""
        schema = self.names["schema"].as_string(None)
        exists = "select to_regclass({relation}) is not null as exists"
        named = _Source(self.connection, {"relation": f"{schema}.{table}"})
        return self.rows(query) if named.rows(exists)[0]["exists"] else []


def read_report(run: Run) -> RunReport:
    """Read a run's facts, from ``winback`` if it was published, else from the work schema.

    Raises:
        NotFittedError: the run is not recorded, or its recommendations or artifacts are gone.
    """
    with transaction(run.url) as connection:
        names = {**run.names, "min_visits": run.settings.min_visits}
        records = _Source(connection, names).rows(RUN)
        if not records:
            raise NotFittedError(_nothing_found(run, "this run in the table runs"))
        is_published = records[0]["status"] == "published"
        names["place"] = names["schema" if is_published else "work"]
        source = _Source(connection, names)
        totals = Totals(**source.rows(TOTALS)[0])
        if totals.customers == 0:
            raise NotFittedError(_nothing_found(run, "recommendations of this run"))
        return _collect(run, source, records[0], totals)


def _collect(run: Run, source: _Source, record: Row, totals: Totals) -> RunReport:
    from winback.models.survival import SurvivalFit, gate_is_useful

    settings = run.settings
    allocation = record["metrics"].get("allocation") or {}
    gate = gate_is_useful(read_table(run.url, ALIVE, source.names)["p_alive"].to_numpy())
    return RunReport(
        as_of=date.fromisoformat(run.as_of),
        run_id=run.run_id,
        status=record["status"],
        decision_days=settings.decision_days,
        currency=settings.currency,
        place=settings.schema_name if record["status"] == "published" else settings.work_schema,
        schema=settings.schema_name,
        budget=record["budget"],
        budget_source=allocation.get("budget_source", ""),
        is_cold_start=allocation.get("is_cold_start", False),
        is_proven=allocation.get("is_proven", True),
        totals=totals,
        coupons=_coupon_lines(read_catalogue(run), source.rows(COUPONS)),
        without_coupon=_without_coupon(source.rows(WITHOUT)),
        states=_state_table(StateSpace(settings.state_bins), source.rows(STATES)),
        thin=source.rows(THIN)[0]["customers"],
        min_visits=settings.min_visits,
        recommendations=source.rows(FIRST),
        survival=SurvivalFit.from_dict(run.artifacts.read_json(SURVIVAL)),
        gate_is_useful=gate[0],
        gate_in_words=gate[1],
        profit=run.artifacts.read_json(PROFIT_REPORT),
        plan=source.rows(PLAN)[0],
        limits=_limits(settings.limits, allocation),
        overlap=(record["metrics"].get("response") or {}).get("overlap") or {},
        performance=source.rows_of_report("incremental_profit", PERFORMANCE),
        to_date=next(iter(source.rows_of_report("incremental_profit_to_date", TO_DATE)), None),
        drift=record["metrics"].get("drift") or {},
        evaluation=record["metrics"].get("evaluation") or {},
        first_comparison=_first_comparison(source, settings.decision_days),
        checks=source.rows(CHECKS),
        published=source.rows(PUBLISHED)[::-1],
    )


def _nothing_found(run: Run, wanted: str) -> str:
    return (
        f"expected {wanted} (run {run.run_id}, as_of {run.as_of}), found none: the tasks before "
        "the report have not run, or a later run replaced it. Run winback_daily for this date."
    )


def _coupon_lines(catalogue: Catalogue, rows: list[Row]) -> list[CouponLine]:
    """One line per coupon, in catalogue order; one that has left it is called by its id."""
    figures = {row["coupon_id"]: row for row in rows}
    labels = dict(zip(catalogue.coupon_ids[1:], catalogue.labels[1:], strict=True))
    labels.update({coupon_id: coupon_id for coupon_id in sorted(set(figures) - set(labels))})
    shared = {label for label, uses in Counter(labels.values()).items() if uses > 1}
    labels.update({key: f"{label} ({key})" for key, label in labels.items() if label in shared})
    return [
        CouponLine(label=label, position=position, **figures.get(key, {"coupon_id": key}))
        for position, (key, label) in enumerate(labels.items(), start=1)
    ]


def _limits(limits: Sequence[LimitSetting], allocation: Row) -> list[Row]:
    """The limits set, with what the allocation made of them."""
    prices, used = (allocation.get(name) or {} for name in ("limit_prices", "limits_used"))
    return [
        {**limit.model_dump(), "price": prices.get(limit.name), "used": used.get(limit.name)}
        for limit in limits
    ]


def _without_coupon(rows: list[Row]) -> list[tuple[str, int]]:
    lines: list[tuple[str, int]] = [
        (WITHOUT_COUPON.get(row["reason"], str(row["reason"])), row["customers"]) for row in rows
    ]
    return sorted(lines, key=lambda line: (-line[1], line[0]))


def _state_table(space: StateSpace, rows: list[Row]) -> StateTable:
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    bins: dict[str, dict[str, float]] = {RECENCY: {}, FREQUENCY: {}}
    for row in rows:
        parts = parse_key(row["state"])
        words = []
        for name in (RECENCY, FREQUENCY):
            label = parts.get(name)  # None: the settings' bins leave this feature out
            words.append(space.describe(f"{name}={label}" if label else ROOT))
            bins[name][words[-1]] = float(label.strip("[)").split(",")[0]) if label else 0.0
        counts[words[0], words[1]][row["coupon_id"]] += row["customers"]
    recency, frequency = (sorted(ends, key=ends.__getitem__) for ends in bins.values())
    return StateTable(recency, frequency, dict(counts))


def _first_comparison(source: _Source, decision_days: int) -> date | None:
    first = source.rows(FIRST_PUBLISHED)[0]["as_of"]
    return None if first is None else first + timedelta(days=decision_days)
