"""Step: have customers, scores and rewards shifted, and did the last forecasts come true?

And did the holdout measure what the log had promised, in the newest window of the last reports?
Histograms and deciles are made in the warehouse; what travels is a few dozen rows. Results go to
``data_checks`` as suite ``drift``. They never stop a run: a shift is news, not a fault.

Features and rewards are compared with the training window. Scores are compared with those published
in the 28 days before, since snapshots of the training window hold none: a slower shift of scores
does not show.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context

from winback.models.calibration import CalibrationBin
from winback.models.drift import SHIFTED, ForecastCheck, Shift, check_forecast, compare
from winback.models.settings import DEFAULT_STATE_BINS, Settings
from winback.models.states import CATEGORY, StateSpace
from winback.operators.base import WinbackOperator
from winback.operators.check_data import write_checks
from winback.operators.run import Run
from winback.operators.validation import CheckResult
from winback.operators.warehouse import read_table

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

SUITE = "drift"
# The same for everybody at a date: its distribution is one point, which moves with the calendar.
SHARED_FEATURES = ("remaining_budget_pct",)
P_ALIVE, P_PURCHASE, REWARD = "p_alive", "p_purchase", "reward"
TENTHS = tuple(n / 10 for n in range(1, 10))
CATEGORIES_KEPT = 20  # the largest; the many small ones together are one bin
SCORE_DAYS = 28  # four weeks of published scores: every day of the week as often

SNAPSHOTS = "customer_snapshots"
# Customers as they are, and as they were when the windows that training reads began.
FEATURES = """
select true as is_now, {columns}
from {schema}.customer_snapshots
where snapshot_date = {as_of}::date
union all
select false, {columns}
from {schema}.closed_windows
where snapshot_date <= {as_of}::date - {decision_days}
"""
SCORES = """
select true as is_now, {columns}
from {work}.customer_scores
where as_of = {as_of}::date
union all
select false, {columns}
from {schema}.customer_scores
where as_of < {as_of}::date and as_of >= {as_of}::date - {score_days}
"""
# Of several columns together: the rows are many, the combinations of their bins are not.
HISTOGRAM = """
select is_now, {bins}, count(*)::bigint as customers
from ({rows}) as quantities
group by 1, {places}
"""
BIN = "width_bucket({column}::double precision, {edges}::double precision[])::text"
REWARDS = """
with newest as (
    select max(snapshot_date) as snapshot_date
    from {schema}.closed_windows
    where snapshot_date <= {as_of}::date - {decision_days}
),
closed as not materialized (
    select reward, snapshot_date = (select snapshot_date from newest) as is_now
    from {schema}.closed_windows
    where snapshot_date <= {as_of}::date - {decision_days}
),
edges as (
    select array(
        select distinct unnest(
            percentile_disc({tenths}::double precision[]) within group (order by reward)
        )
        from closed where not is_now
        order by 1
    ) as rewards
)
select is_now, coalesce('from ' || rewards[place], 'below') as reward, customers
from edges
cross join lateral (
    select is_now, width_bucket(reward, rewards) as place, count(*)::bigint as customers
    from closed
    group by 1, 2
) as counts
"""
LAST_DECISION = """
select runs.as_of, max(decided.valid_to) as valid_to
from {schema}.runs as runs
inner join {schema}.recommendations as decided using (as_of, run_id)
where runs.status = 'published' and runs.as_of = (
    select max(closed.as_of) from {schema}.runs as closed
    where closed.status = 'published' and exists (
        select 1 from {schema}.recommendations as ended
        where ended.as_of = closed.as_of and ended.run_id = closed.run_id
            and ended.valid_to <= {as_of}::date
    )
)
group by runs.as_of
"""
# Of whom something was forecast: with consent and a purchase, like the reports.
DECILES = """
with outcomes as (
    select
        customer_id,
        sum(purchases) as purchases,
        sum(margin - coupon_cost - contact_cost) as profit,
        sum(coupon_cost) as coupon_cost
    from {staging}.int_customer_days
    where event_day >= {decided_on}::date and event_day < {valid_to}::date
    group by customer_id
),
pairs as (
    select
        {forecast} as predicted,
        coalesce({outcome}, 0)::double precision as actual,
        ntile(10) over (order by {forecast}, customer_id) as bin
    from {schema}.recommendations as decided
    left join outcomes using (customer_id)
    where as_of = {decided_on}::date and {among}
        and coalesce(suppression_reason, '') not in ('no_consent', 'no_purchase_yet')
)
select
    bin,
    count(*)::bigint as rows,
    avg(predicted) as predicted,
    avg(actual) as actual,
    coalesce(stddev_samp(actual - predicted), 0) / sqrt(count(*)) as standard_error
from pairs
group by bin
order by bin
"""
FORECASTS = {  # forecast: what came, and of whom it says something
    "p_purchase": ("(purchases > 0)::int", "true"),
    "expected_profit": ("profit", "true"),
    "expected_cost": ("coupon_cost", "coupon_id <> 'none'"),
}
# Missing before the first reports; without the column if an older winback made it.
HAS_ESTIMATES = """
select count(*)::int as columns from information_schema.columns
where table_schema = {name} and table_name = 'incremental_profit' and column_name = 'estimate_holds'
"""
NEWEST_ESTIMATE = """
select as_of::text as as_of, estimate_holds, lower, upper, estimated_lower, estimated_upper
from {schema}.incremental_profit
where valid_to <= {as_of}::date
order by as_of desc
limit 1
"""


@dataclass(frozen=True)
class Quantity:
    """What is compared: a column, the rows that it stands in, and the edges of its bins if any."""

    name: str
    table: str
    rows: str
    edges: tuple[float, ...] = ()

    def in_words(self, label: str | None) -> str:
        """One of its bins in words."""
        if label is None or not self.edges:
            return f"{self.name} {label or 'unknown'}"
        ends = ("-inf", *(f"{edge:.15g}" for edge in self.edges), "inf")
        low, high = ends[int(label)], ends[int(label) + 1]
        return StateSpace({self.name: self.edges}).describe(f"{self.name}=[{low},{high})")


class CheckDriftOperator(WinbackOperator):
    """Compare features and rewards with the training window, scores with those of the last 28
    days, and the last forecasts with their outcomes.

    Writes ``data_checks`` (suite ``drift``, severity ``warning``) and never fails over a shift.
    Needs the features and this run's scores.
    """

    def execute(self, context: Context) -> dict[str, Any]:
        return check_drift(self.current_run())


def check_drift(run: Run) -> dict[str, Any]:
    """Check, record and return the figures for the run's metrics.

    Returns:
        ``quantities`` and ``forecasts`` (mappings of the fields of Shift and ForecastCheck, the
        former with the bin ``in_words``), ``decided_on`` (date of the forecasts, None before a
        window is over), ``shifted`` (count) and ``in_words``.
    """
    shifts = _shifts(run, _quantities(run.settings))
    decided_on, forecasts = _check_forecasts(run)
    schema = run.settings.schema_name
    results = [_shift_result(schema, *found) for found in shifts]
    results += [_forecast_result(schema, decided_on, check) for check in forecasts]
    results += [_estimate_result(schema, row) for row in _newest_estimate(run)]
    write_checks(run.url, schema, run.run_id, date.fromisoformat(run.as_of), results)
    failed = [result for result in results if not result.success]
    for result in failed:
        logger.warning("%s", result.description)
    return {
        "quantities": [{**shift.to_dict(), "in_words": words} for _, shift, words in shifts],
        "forecasts": [check.to_dict() for check in forecasts],
        "decided_on": decided_on,
        "shifted": len(failed),
        "in_words": _summary(results, failed),
    }


def _quantities(settings: Settings) -> list[Quantity]:
    bins = settings.state_bins
    features = [name for name in bins if name not in (*SHARED_FEATURES, P_ALIVE)]
    alive = bins.get(P_ALIVE, DEFAULT_STATE_BINS[P_ALIVE])
    return [
        *(Quantity(name, SNAPSHOTS, FEATURES, tuple(bins[name])) for name in features),
        Quantity(CATEGORY, SNAPSHOTS, FEATURES),
        Quantity(P_ALIVE, "customer_scores", SCORES, tuple(alive)),
        Quantity(P_PURCHASE, "customer_scores", SCORES, TENTHS),
        Quantity(REWARD, SNAPSHOTS, REWARDS),
    ]


def _shifts(run: Run, quantities: list[Quantity]) -> list[tuple[Quantity, Shift, str]]:
    """Each quantity, how it is judged, and the bin that changed most in words."""
    found = []
    for rows, together in groupby(quantities, key=lambda quantity: quantity.rows):
        group = list(together)
        table = _count_bins(run, rows, group)
        for quantity in group:
            labels, reference, current = _histograms(table, quantity.name)
            shift = compare(quantity.name, reference, current)
            words = "" if shift.bin is None else quantity.in_words(labels[shift.bin])
            found.append((quantity, shift, words))
    return found


def _count_bins(run: Run, rows: str, quantities: list[Quantity]) -> "pa.Table":
    """Customers before and now in each combination of the quantities' bins."""
    from psycopg import sql

    names = {
        **run.names,
        "tenths": list(TENTHS),
        "decision_days": run.settings.decision_days,
        "score_days": SCORE_DAYS,
    }
    if rows == REWARDS:
        return read_table(run.url, rows, names)
    columns = [sql.Identifier(quantity.name) for quantity in quantities]
    bins = [
        sql.SQL(BIN).format(column=column, edges=sql.Literal(list(quantity.edges)))
        if quantity.edges
        else column
        for column, quantity in zip(columns, quantities, strict=True)
    ]
    named = [sql.SQL("{} as {}").format(*pair) for pair in zip(bins, columns, strict=True)]
    histogram = {
        "columns": sql.SQL(", ").join(columns),
        "bins": sql.SQL(", ").join(named),
        "places": sql.SQL(", ").join(sql.SQL(str(2 + place)) for place in range(len(columns))),
    }
    return read_table(run.url, HISTOGRAM.replace("{rows}", rows), {**names, **histogram})


def _histograms(rows: "pa.Table", name: str) -> tuple[list[str | None], list[int], list[int]]:
    """Labels of the bins and their rows before and now; rare bins are put together."""
    counts: dict[str | None, list[int]] = {}
    for row in rows.to_pylist():
        counts.setdefault(row[name], [0, 0])[row["is_now"]] += row["customers"]
    ranked = sorted(counts, key=lambda label: (-counts[label][0], -counts[label][1], label or ""))
    kept, rare = ranked[:CATEGORIES_KEPT], ranked[CATEGORIES_KEPT:]
    table = [counts[label] for label in kept]
    if rare:
        kept = [*kept, "other"]
        table.append([sum(counts[label][window] for label in rare) for window in (0, 1)])
    return kept, [before for before, _ in table], [now for _, now in table]


def _check_forecasts(run: Run) -> tuple[str | None, list[ForecastCheck]]:
    """Forecasts of the newest published decision whose window is over, if there is one."""
    newest = read_table(run.url, LAST_DECISION, run.names).to_pylist()
    if not newest:
        return None, []
    window = {"decided_on": str(newest[0]["as_of"]), "valid_to": str(newest[0]["valid_to"])}
    return window["decided_on"], [
        check_forecast(name, _deciles(run, name, window)) for name in FORECASTS
    ]


def _deciles(run: Run, forecast: str, window: Mapping[str, str]) -> list[CalibrationBin]:
    from psycopg import sql

    outcome, among = FORECASTS[forecast]
    names = {
        **run.names,
        **window,
        "forecast": sql.Identifier(forecast),
        "outcome": sql.SQL(outcome),
        "among": sql.SQL(among),
    }
    return [CalibrationBin(**row) for row in read_table(run.url, DECILES, names).to_pylist()]


def _shift_result(schema: str, quantity: Quantity, shift: Shift, in_words: str) -> CheckResult:
    is_score = quantity.table == "customer_scores"
    before = f"{SCORE_DAYS} days before" if is_score else "training window"
    expected = f"{shift.name} is spread as in the {before} (PSI at most {SHIFTED})."
    if shift.psi is None or shift.current_share is None or shift.reference_share is None:
        came = f"too few rows to judge: {shift.current_rows:,} now, {shift.reference_rows:,} before"
    else:
        came = (
            f"PSI {shift.psi:.2f}, {shift.verdict}; changed most: {in_words}, "
            f"{shift.current_share:.0%} now, {shift.reference_share:.0%} before"
        )
    advice = "Look for missing or late source rows first; else the customers have changed."
    place = (f"{schema}.{quantity.table}", "population_stability_index")
    return _result(place, shift.name, shift.verdict, expected, came, advice)


def _forecast_result(schema: str, decided_on: str | None, check: ForecastCheck) -> CheckResult:
    expected = f"What {check.name} of {decided_on} forecast has come, to a fifth (mean and slope)."
    if check.verdict == "too few rows":
        came = f"too few rows to judge: {check.rows:,}"
    else:
        came = f"{check.predicted:.3g} forecast per customer, {check.actual:.3g} came"
        came += (
            "" if check.slope is None else f", slope {check.slope:.2f} ± {check.slope_error:.2f}"
        )
    advice = "See forecast_vs_actual by coupon; a holiday explains one window, not several."
    place = (f"{schema}.recommendations", "forecast_comes_true")
    return _result(place, check.name, check.verdict, expected, came, advice)


def _newest_estimate(run: Run) -> list[dict[str, Any]]:
    """The newest window that the last reports compared with its holdout; none before them."""
    named = {"name": run.settings.schema_name}
    if not read_table(run.url, HAS_ESTIMATES, named)["columns"][0].as_py():
        return []
    rows: list[dict[str, Any]] = read_table(run.url, NEWEST_ESTIMATE, run.names).to_pylist()
    return rows


def _estimate_result(schema: str, row: Mapping[str, Any]) -> CheckResult:
    expected = (
        f"What the log promised of {row['as_of']} is what the holdout measured (95 % intervals "
        "overlap)."
    )
    if row["estimate_holds"] is None:
        verdict, came = "too few rows", "too few rows to judge: an interval is missing"
    else:
        verdict = "stable" if row["estimate_holds"] else "shifted"
        came = (
            f"{row['estimated_lower']:.3g} to {row['estimated_upper']:.3g} promised per customer, "
            f"{row['lower']:.3g} to {row['upper']:.3g} measured"
        )
    advice = (
        "See incremental_profit: were the coupons sent, were the log's propensities right, or has "
        "the shop changed since?"
    )
    place = (f"{schema}.incremental_profit", "estimate_holds")
    return _result(place, "estimated_profit", verdict, expected, came, advice)


def _result(
    place: tuple[str, str], column: str, verdict: str, expected: str, came: str, advice: str
) -> CheckResult:
    success = verdict != "shifted"
    return CheckResult(
        suite=SUITE,
        expectation=place[1],
        table=place[0],
        column=column,
        severity="info" if verdict == "too few rows" else "warning",
        success=success,
        unexpected_count=None,
        unexpected_percent=None,
        sample=(),
        came=came,
        description=f"{expected} Came: {came}.{'' if success else ' ' + advice}",
    )


def _summary(results: Sequence[CheckResult], failed: Sequence[CheckResult]) -> str:
    judged = [result for result in results if result.severity != "info"]
    if not judged:
        return "There are too few customers or past decisions to tell whether anything has shifted."
    if not failed:
        return f"Nothing has shifted much: {len(judged)} comparisons are within their limits."
    names = ", ".join(str(result.column) for result in failed)
    return f"{len(failed)} of {len(judged)} comparisons have shifted: {names}."
