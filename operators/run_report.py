"""The facts of one run in words: for the report's page and for the command's summary."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from winback.models.money import money

if TYPE_CHECKING:
    from winback.models.survival import SurvivalFit

Row = dict[str, Any]

POLICIES = {  # as policy_evaluations names them, in words
    "none": "No coupons",
    "logged": "What was really done",
    "champion": "The current policy",
    "challenger_as_is": "The new plan",
    "challenger": "The new plan, each half of the customers by what the other half taught",
}


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
        rows: dict[str, Counter[str]] = {words: Counter() for words in self.recency}
        for (recency, _), cell in self.counts.items():
            rows[recency].update(cell)
        return {name: [rows[words][name] for words in self.recency] for name in coupon_ids}


@dataclass(frozen=True)
class RunReport:
    """One run in facts and sentences; money in currency, rows as plain mappings.

    Attributes:
        is_published: else the results lie in the work schema (a dry run, or held back).
        budget: None where the run recorded none.
        is_proven: the log shows that coupons make customers buy.
        without_coupon: (reason in words, customers), largest first.
        thin: coupons given on fewer than ``min_visits`` past offers in the very same situation.
        profit: the artifact of ``compare_with_baselines``, with the training's history.
        performance: rows of ``incremental_profit``, newest finished window first.
        to_date: the row of ``incremental_profit_to_date``; None before a window is over.
        limits: the settings' limits beside the budget: ``name``, ``unit``, ``floor``, ``ceiling``,
            what the coupons ``used`` of it and its ``price`` (as ``dual_price``, below 0 where the
            floor binds); None where not recorded.
        overlap: what past offers can tell of each coupon, from ``fit_response``; empty likewise.
        drift: what the task ``check_drift`` returned; empty where it has not run.
        evaluation: likewise of ``evaluate_policy``.
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
    is_proven: bool
    totals: Totals
    coupons: list[CouponLine]
    without_coupon: list[tuple[str, int]]
    states: StateTable
    thin: int
    min_visits: int
    recommendations: list[Row]
    survival: "SurvivalFit"
    gate_is_useful: bool
    gate_in_words: str
    profit: Row
    plan: Row
    limits: list[Row]
    overlap: Row
    performance: list[Row]
    to_date: Row | None
    drift: Row
    evaluation: Row
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
        if self.budget is not None:
            spend += f" of a budget of {money(self.budget, self.currency)}"
        return (
            f"{totals.with_coupon:,} of {totals.customers:,} customers get a coupon for {days}: "
            f"expected cost {spend}."
        )

    @property
    def only_explores(self) -> bool:
        """Whether every coupon is drawn by chance although coupons could be judged."""
        explored = sum(line.explored for line in self.coupons)
        return not self.is_cold_start and 0 < explored == self.totals.with_coupon

    @property
    def advice(self) -> str:
        """What to make of a list on which no coupon is expected to pay off; else empty."""
        if not (self.is_proven or self.is_cold_start):
            return (
                "Past offers do not show yet that coupons make customers buy, so none is chosen: "
                "they are drawn by chance, so that this can be learned, and the rest of the budget "
                "is kept."
            )
        if not self.only_explores:
            return ""
        return (
            "For nobody is a coupon expected to bring in more than it costs, judging by what past "
            "coupons changed. The coupons given are drawn by chance, so that this can be learned; "
            "the rest of the budget is best kept, or spent on other coupons."
        )

    @property
    def uplift_in_words(self) -> str:
        """The expected gain, marked as what it is."""
        totals = self.totals
        if self.is_cold_start:
            return (
                "What coupons bring cannot be read from the past offers, so these are drawn by "
                "chance, to learn it; no gain is claimed."
            )
        if not self.is_proven:
            return (
                "The past offers do not show that coupons make people buy, so these are drawn by "
                "chance, to learn it; no gain is claimed."
            )
        return (
            f"The models expect {signed(totals.expected_uplift, self.currency)} profit in these "
            f"{self.decision_days} days and {signed(totals.long_run_uplift, self.currency)} in the "
            "long run, compared with sending no coupons. These are estimates, not proof."
        )

    @property
    def incremental_in_words(self) -> str:
        """What the whole policy has brought so far against the holdout, with its interval."""
        found = self.to_date
        if found is None:
            return ""
        if found["lower"] is None:
            return (
                f"{found['treated_customers']:,} customers may get coupons and "
                f"{found['holdout_customers']:,} are in the comparison group: too few to compare."
            )
        lower, upper = (signed(found[end], self.currency) for end in ("lower", "upper"))
        return (
            f"Since {day(found['first_decision'])}, in {found['days_covered']} days, each of the "
            f"{found['treated_customers']:,} customers who may get coupons brought in "
            f"{signed(found['incremental_profit'], self.currency)} against the "
            f"{found['holdout_customers']:,} who never do (95% interval {lower} to {upper}): "
            f"{signed(found['total_profit'], self.currency)} in all, where the forecasts said "
            f"{signed(found['expected_total_profit'], self.currency)}. "
            f"{_verdict(found['lower'], found['upper'])}"
        )

    @property
    def comparison_warnings(self) -> list[str]:
        """Why the comparison with the holdout may say nothing; newest windows shown only."""
        rows = [*self.performance, *([self.to_date] if self.to_date else [])]
        warnings = []
        if any(row["sample_ratio_ok"] is False for row in rows):
            warnings.append(
                "The comparison group is not as large as it was drawn, beyond chance. Something "
                "removes customers from one group: find it before trusting these figures."
            )
        if any(row["holdout_offered"] for row in self.performance):
            warnings.append(
                "Customers of the comparison group were offered coupons by somebody else. They "
                "look more like the others then: the true differences are larger than these."
            )
        chosen = sum(row["customers_chosen"] or 0 for row in self.performance)
        if chosen and not any(row["treated_offered"] for row in self.performance):
            warnings.append(
                f"{chosen:,} coupons were decided in these windows, but no offer was reported in "
                "coupon_offers: the differences are those of coupons that nobody may have got."
            )
        return warnings

    @property
    def verdict(self) -> str:
        """The gate's reason; empty where policies were not compared."""
        return str(self.evaluation.get("reason", ""))

    @property
    def policies(self) -> list[Row]:
        """The policies valued on the log, in words, with their figures."""
        found = self.evaluation.get("policies", {})
        return [{"name": words, **found[key]} for key, words in POLICIES.items() if key in found]

    @property
    def effects(self) -> list[Row]:
        """What each coupon would add in the window if everybody got it, in catalogue order."""
        return list(self.evaluation.get("effects", []))

    @property
    def overlap_rows(self) -> list[Row]:
        """Each coupon's overlap; none before the first offer."""
        return [row for row in self.overlap.get("coupons", []) if "decisions" in row]

    @property
    def overlap_warning(self) -> str:
        """What the log cannot tell of coupons; empty where it can tell of all."""
        is_readable = all(row["is_readable"] for row in self.overlap_rows)
        return "" if is_readable else str(self.overlap["verdict"])

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
            f"{plan['states_with_a_supported_coupon']:,} of them a coupon may be given, in "
            f"{plan['states_where_a_coupon_wins']:,} one is expected to pay off in the long run."
        )

    @property
    def failed_checks(self) -> list[Row]:
        """Checks that failed without stopping the run."""
        return [check for check in self.checks if not check["success"]]


def _verdict(lower: float, upper: float) -> str:
    if lower > 0:
        return "So the coupons pay off."
    if upper < 0:
        return "So the coupons cost more than they bring."
    return "The interval holds zero: this may be chance."


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
