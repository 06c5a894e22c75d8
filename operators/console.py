"""What a person sees in the terminal while a run works."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

STEPS = {  # the DAG's tasks, in its order, in words
    "start_run": "Settle date and settings",
    "check_sources": "Check orders, coupons and budgets",
    "dbt_features": "Build customer features (dbt)",
    "check_features": "Check the features",
    "fit_survival": "Fit who is still a customer (BG/NBD)",
    "check_scores": "Check the scores",
    "train_profit": "Train the profit forecast (Transformer)",
    "plan": "Plan for the long run (Dyna-Q)",
    "allocate_coupons": "Decide within the budget",
    "check_recommendations": "Check the recommendations",
    "publish": "Publish to warehouse and Redis",
    "dbt_reports": "Build the reporting tables (dbt)",
    "report": "Write the report",
}


class RunView:
    """Shows a run's events as they come: one line per finished step, a bar for the training."""

    def __init__(self, console: Console) -> None:
        self.console = console
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

    def _show_started(self, event: dict[str, Any], progress: Progress, waiting: Any) -> None:
        words = self._begin(event["task"], event["at"])
        progress.reset(waiting, description=words, total=None)

    def _show_epoch(self, event: dict[str, Any], progress: Progress, waiting: Any) -> None:
        words = (
            f"{STEPS['train_profit']}: epoch {event['epoch']} of at most {event['epochs']}, "
            f"loss on later dates {event['validation_loss']:.4f}, "
            f"{event['rows_per_second']:,.0f} rows/s"
        )
        done = {"completed": event["epoch"], "total": event["epochs"]}
        progress.update(waiting, description=words, **done)

    def _show_succeeded(self, event: dict[str, Any], progress: Progress, waiting: Any) -> None:
        task = event["task"]
        if task in STEPS:
            number, seconds = list(STEPS).index(task) + 1, event["at"] - self._started[task]
            step = f"[green]✓[/] {number:2d}/{len(STEPS)}  {STEPS[task]:<42}"
            self.console.print(f"  {step} {seconds:6.1f} s", highlight=False)

    def _show_failed(self, event: dict[str, Any], progress: Progress, waiting: Any) -> None:
        self.failure = self.failure or event
        self.console.print(f"  [red]✗[/] {STEPS.get(event['task'], event['task'])}")
