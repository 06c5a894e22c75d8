"""What a person sees in the terminal while a run works."""

from collections.abc import Iterable, Mapping
from textwrap import wrap
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from winback.models.money import money
from winback.operators.run_report import RunReport, day, signed

STEPS = {  # the DAG's tasks, in its order, in words
    "start_run": "Settle date and settings",
    "check_sources": "Check orders, coupons and budgets",
    "dbt_features": "Build customer features (dbt)",
    "check_features": "Check the features",
    "fit_survival": "Fit who is still a customer (BG/NBD)",
    "check_scores": "Check the scores",
    "check_drift": "Compare with the past (drift)",
    "train_profit": "Train the profit forecast (Transformer)",
    "fit_response": "Learn who responds to which coupon",
    "plan": "Plan for the long run (Dyna-Q)",
    "list_shards": "Split the customers into parts",
    "score_customers": "Score the customers",
    "allocate_coupons": "Decide within the budget",
    "evaluate_policy": "Compare with the current policy (gate)",
    "check_recommendations": "Check the recommendations",
    "publish": "Publish to warehouse and Redis",
    "dbt_reports": "Build the reporting tables (dbt)",
    "report": "Write the report",
}

AFTER_PUBLISHING = ("dbt_reports", "report")
SHOWN = 5  # recommendations in the terminal; the report has more


class RunView:
    """Shows a run's events as they come: a line per finished step, bars for epochs and parts."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run: dict[str, Any] | None = None  # as_of, run_id and settings, once settled
        self.failure: dict[str, Any] | None = None
        self._started: dict[str, float] = {}

    def follow(self, events: Iterable[dict[str, Any]]) -> None:
        """Show events until they end; the first failure is kept in ``failure``."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            waiting = progress.add_task("Start Airflow", total=None)
            for event in events:
                getattr(self, f"_show_{event['event']}")(event, progress, waiting)

    def _begin(self, task: str, at: float) -> str:
        self._started[task] = at
        return STEPS.get(task, task)

    def _show_run(self, event: dict[str, Any], progress: Progress, waiting: Any) -> None:
        self.run = event

    def _show_started(self, event: dict[str, Any], progress: Progress, waiting: Any) -> None:
        words = self._begin(event["task"], event["at"])
        if event.get("part", -1) <= 0:  # the bar of a task's parts goes on
            progress.reset(waiting, description=words, total=None)

    def _show_epoch(self, event: dict[str, Any], progress: Progress, waiting: Any) -> None:
        words = (
            f"{STEPS['train_profit']}: epoch {event['epoch']} of at most {event['epochs']}, "
            f"loss on later dates {event['validation_loss']:.4f}, "
            f"{event['rows_per_second']:,.0f} rows/s"
        )
        done = {"completed": event["epoch"], "total": event["epochs"]}
        progress.update(waiting, description=words, **done)

    def _show_scored(self, event: dict[str, Any], progress: Progress, waiting: Any) -> None:
        words = f"{STEPS['score_customers']}: {event['rate']:,.0f} customers/s"
        done = {"completed": event["part"], "total": event["parts"]}
        progress.update(waiting, description=words, **done)

    def _show_succeeded(self, event: dict[str, Any], progress: Progress, waiting: Any) -> None:
        task = event["task"]
        if task in STEPS:
            number, seconds = list(STEPS).index(task) + 1, event["at"] - self._started[task]
            part = f", part {event['part'] + 1}" if event.get("part", -1) > 0 else ""
            step = f"[green]✓[/] {number:2d}/{len(STEPS)}  {STEPS[task] + part:<42}"
            self.console.print(f"  {step} {seconds:6.1f} s", highlight=False)

    def _show_failed(self, event: dict[str, Any], progress: Progress, waiting: Any) -> None:
        self.failure = self.failure or event
        self.console.print(f"  [red]✗[/] {STEPS.get(event['task'], event['task'])}")


def show_failure(console: Console, failure: dict[str, Any] | None, log_file: str) -> None:
    """Say what went wrong, and what that means for the readers of the tables."""
    if failure is None:
        failure = {"task": "", "error": "The run ended before its first step."}
    late = failure["task"] in AFTER_PUBLISHING
    meaning = "Published, but a later step failed." if late else "Nothing was published."
    console.print(f"\n[red bold]{meaning}[/] {escape(failure['error'])}", highlight=False)
    console.print(f"Full log: {escape(log_file)}", highlight=False, soft_wrap=True)


def show_summary(console: Console, report: RunReport) -> None:
    """The run in a few lines and a table: what a marketer wants to know first."""
    console.print(f"\n[bold]Coupons for {day(report.as_of)}[/]")
    _indented(console, report.headline)
    for sentence in filter(None, (report.advice, report.uplift_in_words, report.overlap_warning)):
        _indented(console, sentence)
    if report.verdict:
        _indented(console, f"Is the new plan better? {report.verdict}")
    console.print()
    console.print(_coupon_table(report))
    console.print()
    for reason, customers in report.without_coupon:
        _indented(console, f"{customers:6,} {reason}", hanging=7)
    console.print("\n[bold]How good the models are[/]")
    for line in (
        f"BG/NBD: {report.survival_in_words} ({report.survival_parameters})",
        f"Transformer: {report.profit['verdict']}",
        f"Dyna-Q: {report.plan_in_words}",
    ):
        _indented(console, line)
    console.print(f"\n[bold]First rows of {report.schema}.current_recommendations[/]")
    for row in report.recommendations[:SHOWN]:
        _indented(console, f"{row['customer_id']}: {row['reason']}")


def show_places(console: Console, places: Mapping[str, str]) -> None:
    """Where to look next: one name and one address or command a line."""
    console.print("\n[bold]Where to look next[/]")
    for name, place in places.items():
        console.print(f"  {name:<16} {escape(place)}", highlight=False, soft_wrap=True)


def _indented(console: Console, text: str, hanging: int = 2) -> None:
    """Print a text two columns in; its later lines begin ``hanging`` columns further."""
    width = max(20, console.width - 2)
    for line in wrap(text, width, subsequent_indent=" " * hanging, drop_whitespace=True):
        console.print(f"  {escape(line)}", highlight=False)


def _coupon_table(report: RunReport) -> Table:
    table = Table(box=None, padding=(0, 2))
    for title in (
        "coupon",
        "customers",
        "expected cost",
        "profit in the window",
        "in the long run",
    ):
        table.add_column(title, justify="left" if title == "coupon" else "right")
    for line in report.coupons:
        table.add_row(
            escape(line.label),
            f"{line.customers:,}",
            money(line.expected_cost, report.currency),
            signed(line.expected_uplift, report.currency),
            signed(line.long_run_uplift, report.currency),
        )
    return table
