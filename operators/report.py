"""Step: one page about the run, for the people who answer for the campaign."""

from datetime import date, timedelta
from functools import partial
from importlib.resources import files
from typing import Any

from airflow.sdk import Context

from winback.models.money import money
from winback.operators import plots
from winback.operators.artifacts import REPORT, Artifacts
from winback.operators.base import WinbackOperator
from winback.operators.read_report import read_report
from winback.operators.run import Run
from winback.operators.run_report import RunReport, day, signed

TEMPLATE = "operators/report.html.j2"
DATA_DOCS = "data_docs/{suite}/index.html"
EPOCH = date(1970, 1, 1)  # days of the profit report count from it
NO_COUPON = "no coupon"


class ReportOperator(WinbackOperator):
    """Write ``report.html``: one file with its plots, readable anywhere without a network."""

    def execute(self, context: Context) -> dict[str, Any]:
        return {"report": write_report(self.current_run())}


def write_report(run: Run) -> str:
    """Write the page beside the run's other artifacts; return its address.

    Raises:
        NotFittedError: the run is not recorded, or something that it left is gone.
    """
    report = read_report(run)
    page = render(report, _docs(run.artifacts, report))
    return run.artifacts.write_bytes(REPORT, page.encode())


def render(report: RunReport, docs: dict[str, str]) -> str:
    """The page as one string; ``docs`` maps a suite of checks to its own report's address."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        money=partial(money, currency=report.currency),
        signed=partial(signed, currency=report.currency),
        amount=money,  # where the column's head names the currency
        difference=signed,
        day=day,
        count="{:,}".format,
        percent=percent,
        coupon_colour=plots.coupon_colour,
    )
    source = files("winback").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        totals=report.totals,
        labels={line.coupon_id: line.label for line in report.coupons},
        figures=_figures(report),
        docs=docs,
        scored_from=EPOCH + timedelta(days=report.profit["from_day"]),
    )


def percent(share: float, decimals: int = 0) -> str:
    """0.254 → 25%; what is not quite nothing is not shown as nothing."""
    if 0 < share < 0.5 * 10 ** -(decimals + 2):
        return f"<{10**-decimals:g}%"
    return f"{share:.{decimals}%}"


def _docs(artifacts: Artifacts, report: RunReport) -> dict[str, str]:
    """Addresses beside the page itself, so that the folder can be moved or mailed."""
    pages = {c["suite"]: DATA_DOCS.format(suite=c["suite"]) for c in report.checks}
    return {suite: page for suite, page in pages.items() if artifacts.exists(page)}


def _figures(report: RunReport) -> dict[str, Any]:
    """Every plot as safe inline SVG, by name; None where there is nothing to show."""
    from markupsafe import Markup

    unit = report.currency or "currency units"
    training = report.profit["training"]
    drawings = {
        "spend": _spend(report, unit),
        "history": _spend_history(report, unit),
        "states": _coupons_by_state(report),
        "loss": plots.loss_svg(training["history"], training["best_epoch"]),
        "purchase": plots.calibration_svg(
            report.profit["purchase_deciles"], "Who buys", "share that buys", is_share=True
        ),
        "reward": plots.calibration_svg(
            report.profit["reward_deciles"],
            "What they bring",
            f"{unit} per customer",
            is_share=False,
        ),
    }
    return {name: svg and Markup(svg) for name, svg in drawings.items()}


def _spend(report: RunReport, unit: str) -> str | None:
    given = [line for line in report.coupons if line.customers]
    if report.budget is None or not given:
        return None
    parts = [(line.label, line.expected_cost) for line in given]
    colours = [plots.coupon_colour(line.position) for line in given]
    return plots.spend_svg(parts, colours, report.budget, unit)


def _spend_history(report: RunReport, unit: str) -> str | None:
    rows = report.published
    if len(rows) < 2:
        return None
    days, budgets, spends = zip(
        *((row["as_of"], row["budget"], row["expected_spend"] or 0.0) for row in rows), strict=True
    )
    return plots.spend_history_svg(days, budgets, spends, unit)


def _coupons_by_state(report: RunReport) -> str | None:
    if not report.states.recency:
        return None
    given = [line for line in report.coupons if line.customers]
    counts = report.states.by_recency(["none", *(line.coupon_id for line in given)])
    names = [NO_COUPON, *(line.label for line in given)]
    colours = [plots.coupon_colour(0), *(plots.coupon_colour(line.position) for line in given)]
    return plots.coupons_by_state_svg(
        [words.removeprefix("last purchase ") for words in report.states.recency],
        list(zip(names, counts.values(), strict=True)),
        colours,
    )
