"""The facts of one run, read once: for the report's page and for the command's summary."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from winback.models.errors import NotFittedError
from winback.models.reasons import money
from winback.models.states import COARSE, ROOT, StateSpace, parse_key
from winback.models.survival import SurvivalFit, gate_is_useful
from winback.operators.artifacts import PROFIT_REPORT, SURVIVAL
from winback.operators.run import Run
from winback.operators.snapshots import Catalogue, read_catalogue
from winback.operators.warehouse import read_table

Row = dict[str, Any]

FIRST_ROWS = 20  # recommendations on the page: enough to see what the reasons look like
LATEST = 10  # finished windows and earlier runs shown
RECENCY, FREQUENCY = COARSE

# Who gets no coupon, in the order in which the rules apply; "drawn" is exploration's own `none`.
WITHOUT_COUPON = {
    "no_consent": "have not agreed to be contacted",
    "no_purchase_yet": "have not bought anything yet",
    "recent_contact": "got a coupon only a few days ago",
    "holdout": "are in the comparison group, which never gets coupons and so shows what they bring",
    "low_support": "are customers for whom there are too few past offers to judge any coupon",
    "no_uplift": "are not expected to bring in more with a coupon than it costs",
    "budget": "would be worth a coupon, but the budget brings more with others",
    "drawn": "were drawn by chance to get none, to learn what happens without a coupon",
}

RUN = """
select status, budget, dual_price, metrics::text as metrics
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
# 1.96 standard errors of the difference between two shares: right in 95 of 100 cases.
PERFORMANCE = f"""
with groups as (
    select
        as_of,
        treatment_group,
        sum(customers)::double precision as customers,
        sum(buyers)::double precision / sum(customers)::double precision as bought,
        (sum(order_profit) - sum(coupon_cost) - sum(contact_cost))
            / sum(customers)::double precision as profit,
        sum(coupon_cost) as coupon_cost,
        sum(expected_cost) as expected_cost,
        max(budget) as budget
    from {{schema}}.campaign_performance
    group by as_of, treatment_group
)
select
    treated.as_of,
    treated.customers::bigint as customers,
    held.customers::bigint as held_out,
    treated.bought,
    held.bought as held_bought,
    treated.bought - held.bought as bought_difference,
    1.96 * sqrt(
        treated.bought * (1 - treated.bought) / treated.customers
        + held.bought * (1 - held.bought) / held.customers
    ) as bought_margin,
    treated.profit,
    held.profit as held_profit,
    treated.profit - held.profit as profit_difference,
    treated.coupon_cost,
    treated.expected_cost,
    treated.budget
from groups as treated
inner join groups as held on treated.as_of = held.as_of and held.treatment_group = 'holdout'
where treated.treatment_group = 'treatment'
order by treated.as_of desc
limit {LATEST}
"""
PUBLISHED = f"""
select distinct on (as_of) as_of, budget, expected_spend
from {{schema}}.runs
where status = 'published' and as_of <= {{as_of}} and budget is not null
order by as_of desc, finished_at desc
limit {LATEST}
"""
FIRST_PUBLISHED = "select min(as_of) as as_of from {schema}.runs where status = 'published'"


@dataclass(frozen=True)
class Totals:
    """The whole run: customers, and money in currency. ``valid_to`` is the day after the last."""

    customers: int
    with_coupon: int
    held_out: int
    explored: int
    expected_spend: float
    expected_uplift: float
    long_run_uplift: float
    valid_to: date


@dataclass(frozen=True)
class CouponLine:
    """What one coupon of the catalogue does in this run; ``explored`` of them drawn by chance."""

    coupon_id: str
    label: str
    position: int  # in the catalogue, for its colour
    customers: int = 0
    explored: int = 0
    expected_cost: float = 0.0
    expected_uplift: float = 0.0
    long_run_uplift: float = 0.0


@dataclass(frozen=True)
class StateTable:
    """Customers by recency and frequency bin, both in words; ``counts`` by coupon id."""

    recency: list[str]
    frequency: list[str]
    counts: Mapping[tuple[str, str], Counter[str]]

    def of(self, recency: str, frequency: str) -> tuple[int, int]:
        """Customers of a cell, and those of them who get a coupon."""
        cell = self.counts.get((recency, frequency), Counter())
        return cell.total(), cell.total() - cell["none"]

    def by_recency(self, coupon_ids: Sequence[str]) -> dict[str, list[int]]:
        """Customers per coupon, one number per recency bin."""
        return {
            coupon_id: [
                sum(self.counts.get((row, column), Counter())[coupon_id] for column in self.frequency)
                for row in self.recency
            ]
            for coupon_id in coupon_ids
        }


@dataclass(frozen=True)
class RunReport:
    """One run in facts and sentences; money in currency, rows as plain mappings.

    Attributes:
        is_published: else the results lie in the work schema (a dry run, or held back).
        budget: None where the run recorded none.
        without_coupon: (reason in words, customers), largest first.
        thin: coupons given on fewer than ``min_visits`` past offers in the very same situation.
        profit: the artifact of ``compare_with_baselines``, with the training's history.
        performance: treatment against holdout, newest finished window first.
        first_comparison: first decision date with a finished window; None before any publishing.
        checks: rows of ``data_checks``.
        published: budget and expected spend of the latest decision dates, oldest first.
    """

    as_of: date
    run_id: str
    status: str
    decision_days: int
    currency: str
    place: str
    schema: str
    budget: float | None
    budget_source: str
    is_cold_start: bool
    totals: Totals
    coupons: list[CouponLine]
    without_coupon: list[tuple[str, int]]
    states: StateTable
    thin: int
    min_visits: int
    recommendations: list[Row]
    survival: SurvivalFit
    gate_is_useful: bool
    gate_in_words: str
    profit: Row
    plan: Row
    performance: list[Row]
    first_comparison: date | None
    checks: list[Row]
    published: list[Row]

    @property
    def is_published(self) -> bool:
        """Whether readers see this run's rows."""
        return self.status == "published"

    @property
    def headline(self) -> str:
        """Who gets coupons, when, and for how much money."""
        totals = self.totals
        days = span(self.as_of, totals.valid_to - timedelta(days=1))
        spend = money(totals.expected_spend, self.currency)
        limit = "" if self.budget is None else f" of a budget of {money(self.budget, self.currency)}"
        return (
            f"{totals.with_coupon:,} of {totals.customers:,} customers get a coupon for {days}: "
            f"expected cost {spend}{limit}."
        )

    @property
    def uplift_in_words(self) -> str:
        """The expected gain, marked as what it is."""
        totals = self.totals
        return (
            f"The models expect {signed(totals.expected_uplift, self.currency)} profit in these "
            f"{self.decision_days} days and {signed(totals.long_run_uplift, self.currency)} in the "
            "long run, compared with sending no coupons. These are estimates, not proof."
        )

    @property
    def survival_in_words(self) -> str:
        """BG/NBD in one line: its parameters, and whether P(alive) is of any use here."""
        fit = self.survival
        if fit.is_degenerate:
            return f"The survival gate is useless here: {fit.reason}."
        verdict = "" if self.gate_is_useful else "The survival gate is useless here: "
        found = f"{verdict}{self.gate_in_words}."
        return f"{found[0].upper()}{found[1:]}{f' Note: {fit.reason}.' if fit.reason else ''}"

    @property
    def survival_parameters(self) -> str:
        """The fitted parameters and what they were fitted on."""
        fit = self.survival
        dropout = "" if fit.is_degenerate else f", a = {fit.a:.3g}, b = {fit.b:.3g}"
        return f"r = {fit.r:.3g}, α = {fit.alpha:.3g}{dropout}; {fit.customers:,} buyers"

    @property
    def plan_in_words(self) -> str:
        """The planner in one line."""
        plan = self.plan
        return (
            f"Learned from {plan['decisions']:,} past decisions ({plan['offers']:,} with a coupon) "
            f"in {plan['states']:,} kinds of situations; in "
            f"{plan['states_with_a_supported_coupon']:,} of them a coupon can be judged, in "
            f"{plan['states_where_a_coupon_wins']:,} one is expected to pay off in the long run."
        )

    @property
    def failed_checks(self) -> list[Row]:
        """Checks that failed without stopping the run."""
        return [check for check in self.checks if not check["success"]]


def read_report(run: Run) -> RunReport:
    """Read a run's facts, from ``winback`` if it was published, else from the work schema.

    Raises:
        NotFittedError: the run is not recorded, or its recommendations or artifacts are gone.
    """
    names = run.names
    record = _one(run, RUN, names, "a row of this run in runs")
    is_published = record["status"] == "published"
    names["place"] = names["schema" if is_published else "work"]
    totals = Totals(**_one(run, TOTALS, names, ""))
    if totals.customers == 0:
        raise NotFittedError(_nothing_found(run, "recommendations of this run"))
    return _collect(run, names, record, totals)


def _collect(run: Run, names: Row, record: Row, totals: Totals) -> RunReport:
    import json

    settings = run.settings
    allocation = json.loads(record["metrics"]).get("allocation") or {}
    gate = gate_is_useful(read_table(run.url, ALIVE, names)["p_alive"].to_numpy())
    work = settings.work_schema
    return RunReport(
        as_of=date.fromisoformat(run.as_of),
        run_id=run.run_id,
        status=record["status"],
        decision_days=settings.decision_days,
        currency=settings.currency,
        place=settings.schema_name if record["status"] == "published" else work,
        schema=settings.schema_name,
        budget=record["budget"],
        budget_source=allocation.get("budget_source", ""),
        is_cold_start=allocation.get("is_cold_start", False),
        totals=totals,
        coupons=_coupon_lines(read_catalogue(run), _rows(run, COUPONS, names)),
        without_coupon=_without_coupon(_rows(run, WITHOUT, names)),
        states=_state_table(StateSpace(settings.state_bins), _rows(run, STATES, names)),
        thin=_rows(run, THIN, {**names, "min_visits": settings.min_visits})[0]["customers"],
        min_visits=settings.min_visits,
        recommendations=_rows(run, FIRST, names),
        survival=SurvivalFit.from_dict(run.artifacts.read_json(SURVIVAL)),
        gate_is_useful=gate[0],
        gate_in_words=gate[1],
        profit=run.artifacts.read_json(PROFIT_REPORT),
        plan=_rows(run, PLAN, names)[0],
        performance=_rows(run, PERFORMANCE, names),
        first_comparison=_first_comparison(run, names),
        checks=_rows(run, CHECKS, names),
        published=_rows(run, PUBLISHED, names)[::-1],
    )


def day(value: date) -> str:
    """A date for people: 18 December 2017."""
    return f"{value.day} {value:%B %Y}"


def span(first: date, last: date) -> str:
    """Days for people, both included: 18–24 December 2017."""
    if first == last:
        return day(first)
    if (first.year, first.month) == (last.year, last.month):
        return f"{first.day}–{day(last)}"
    return f"{day(first)} to {day(last)}"


def signed(amount: float, currency: str = "") -> str:
    """An amount with its sign; the minus is as wide as the plus."""
    sign = "" if abs(amount) < 0.005 else "−" if amount < 0 else "+"  # 0.00 has none
    return f"{sign}{money(abs(amount), currency)}"


def _rows(run: Run, query: str, names: Row) -> list[Row]:
    rows: list[Row] = read_table(run.url, query, names).to_pylist()
    return rows


def _one(run: Run, query: str, names: Row, wanted: str) -> Row:
    rows = _rows(run, query, names)
    if not rows:
        raise NotFittedError(_nothing_found(run, wanted))
    return rows[0]


def _nothing_found(run: Run, wanted: str) -> str:
    return (
        f"expected {wanted} (run {run.run_id}, as_of {run.as_of}), found none: the tasks before "
        "the report have not run, or a later run replaced it. Run winback_daily for this date."
    )


def _coupon_lines(catalogue: Catalogue, rows: list[Row]) -> list[CouponLine]:
    """One line per coupon, in catalogue order; a coupon that left it since keeps its id as label."""
    figures = {row["coupon_id"]: row for row in rows}
    labels = dict(zip(catalogue.coupon_ids[1:], catalogue.labels[1:], strict=True))
    labels.update({coupon_id: coupon_id for coupon_id in sorted(set(figures) - set(labels))})
    shared = {label for label, uses in Counter(labels.values()).items() if uses > 1}
    labels.update({key: f"{label} ({key})" for key, label in labels.items() if label in shared})
    return [
        CouponLine(position=position, label=label, **figures.get(coupon_id, {"coupon_id": coupon_id}))
        for position, (coupon_id, label) in enumerate(labels.items(), start=1)
    ]


def _without_coupon(rows: list[Row]) -> list[tuple[str, int]]:
    lines = [(WITHOUT_COUPON[row["reason"]], row["customers"]) for row in rows]
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


def _first_comparison(run: Run, names: Row) -> date | None:
    first = _rows(run, FIRST_PUBLISHED, names)[0]["as_of"]
    return None if first is None else first + timedelta(days=run.settings.decision_days)
