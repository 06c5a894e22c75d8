"""The benchmarks' table, as seen in the terminal and as kept in files, and their plot."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from winback.operators.bench_limits import LIMITS
from winback.operators.bench_measure import Measurement, Step, exponent
from winback.operators.bench_steps import STEPS

COLUMNS = ("step", "size", "winback", "peer", "", "ratio", "of limit", "peak MB", "agreement")
TABLE_WIDTH = 160  # characters
PANEL = (4.2, 3.6)  # inches of one step's plot
PANELS_PER_ROW = 3


@dataclass(frozen=True)
class Comparison:
    """winback beside one peer at one size; ``ratio`` above 1: winback is faster.

    ``share`` of the machine's limit, None where a step has none.
    """

    step: str
    title: str
    size: int
    unit: str
    seconds: float
    rate: float
    peer: str
    peer_seconds: float
    peer_rate: float
    ratio: float
    share: float | None
    peak_mb: float
    peer_peak_mb: float
    agreement: str
    is_rate: bool
    notes: Mapping[str, Any]
    peer_notes: Mapping[str, Any]


@dataclass(frozen=True)
class BenchReport:
    """One run of the benchmarks."""

    date: datetime
    command: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    limits: Mapping[str, float]
    measured: Sequence[Measurement]
    compared: Sequence[Comparison]
    failures: Mapping[str, str]

    @property
    def exponents(self) -> dict[str, dict[str, float]]:
        """By step and side: seconds grow like size to this power; needs two sizes."""
        found: dict[str, dict[str, float]] = {}
        for step, side, sizes, seconds in _curves(self.measured):
            if len(sizes) > 1:
                found.setdefault(step, {})[side] = exponent(sizes, seconds)
        return found


def compare(
    step: Step, sides: Sequence[Measurement], limits: Mapping[str, float]
) -> list[Comparison]:
    """winback beside each peer, once their answers agree; a step without peers beside itself.

    Raises:
        BenchError: they do not.
    """
    ours, *peers = sides
    return [_compare(step, ours, peer, limits) for peer in peers or [ours]]


def _compare(
    step: Step, ours: Measurement, peer: Measurement, limits: Mapping[str, float]
) -> Comparison:
    limit = limits.get(step.limit or "")
    return Comparison(
        step=step.name,
        title=step.title,
        size=ours.size,
        unit=step.unit,
        seconds=ours.median_seconds,
        rate=ours.rate,
        peer=peer.side if peer is not ours else "",
        peer_seconds=peer.median_seconds,
        peer_rate=peer.rate,
        ratio=ours.rate / peer.rate,
        share=ours.moved / ours.median_seconds / limit if limit and ours.moved else None,
        peak_mb=ours.peak_mb,
        peer_peak_mb=peer.peak_mb,
        agreement=step.agree(ours.answer, peer.answer) if peer is not ours else "",
        is_rate=step.is_rate,
        notes={**ours.notes, **_first(ours)},
        peer_notes=peer.notes if peer is not ours else {},
    )


def print_limits(console: Console, limits: Mapping[str, float]) -> None:
    """The machine's limits, one a line."""
    for line in _limit_lines(limits):
        console.print(f"  {line}", highlight=False)


def print_table(console: Console, compared: Sequence[Comparison]) -> None:
    """One line per peer; wide, since a table that wraps cannot be read."""
    table = Table(box=None, padding=(0, 1), show_edge=False)
    for title in COLUMNS:
        is_text = title in ("step", "", "agreement")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=True)
    for comparison in compared:
        table.add_row(*_cells(comparison))
    width = max(console.width, TABLE_WIDTH)
    Console(file=console.file, width=width, quiet=console.quiet).print(table)


def write_bench(report: BenchReport, output: Path) -> list[Path]:
    """Write the Markdown page, and the figures as JSON and the plot as SVG beside it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    figures, plot = output.with_suffix(".json"), output.with_suffix(".svg")
    figures.write_text(json.dumps(_as_json(report), indent=1) + "\n", encoding="utf-8")
    plot.write_text(growth_svg(report), encoding="utf-8")
    output.write_text(markdown(report, plot.name, figures.name), encoding="utf-8")
    return [output, figures, plot]


def markdown(report: BenchReport, plot: str, figures: str) -> str:
    """The page: table, exponents, limits, versions, how to get it again."""
    lines = [
        "# Benchmarks",
        "",
        f"Measured on {report.date:%Y-%m-%d %H:%M} UTC by",
        "",
        f"    {report.command}",
        "",
        f"on {report.machine['cores']} cores, {report.machine['memory_gb']} GB, "
        f"{report.machine['system']}, Python {report.machine['python']}. Each side runs in a "
        "process of its own, in turns with the others; times are medians, after a first run that "
        "compiles and does not count, or one run where it takes over a minute. Peak memory is the "
        "process's, inputs and imports included (winback / peer), without the database server's. "
        "Answers were compared before the times. Figures of "
        f"every run: [{figures}]({figures}).",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---|" + "--:|" * 3 + "---|" + "--:|" * 3 + "---|",
        *("| " + " | ".join(_cells(comparison)) + " |" for comparison in report.compared),
        "",
        *_notes(report),
        "## Growth with size",
        "",
        "Seconds grow like size to the power of:",
        "",
        *_exponent_lines(report),
        "",
        f"![seconds against size]({plot})",
        "",
        "## The machine's limits",
        "",
        *(f"- {line}" for line in _limit_lines(report.limits)),
        "",
        "## Versions",
        "",
        ", ".join(f"{name} {number}" for name, number in report.versions.items()),
        "",
    ]
    failed = [f"- **{name}**: {_one_line(text)}" for name, text in report.failures.items()]
    return "\n".join([*lines, *(["## Not measured", "", *failed, ""] if failed else [])])


def _first(measured: Measurement) -> dict[str, str]:
    """The first run, where it took longer: code is compiled at its first use."""
    if measured.first_seconds < 1.5 * measured.median_seconds:
        return {}
    return {"first run": f"{measured.first_seconds:,.3g} s"}


def _notes(report: BenchReport) -> Iterator[str]:
    """What the sides say besides: winback's once per step and size, and each peer's."""
    said: dict[str, Mapping[str, Any]] = {}
    for comparison in report.compared:
        at = f"{comparison.step}, {comparison.size:,}"
        said[at] = comparison.notes
        said[f"{at}, {comparison.peer}"] = comparison.peer_notes
    said = {at: notes for at, notes in said.items() if notes}
    for at, notes in said.items():
        yield f"- {at}: " + ", ".join(f"{name} {_number(value)}" for name, value in notes.items())
    if said:
        yield ""


def _number(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{name} {_number(part)}" for name, part in value.items()) + ")"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value}"


def _exponent_lines(report: BenchReport) -> Iterator[str]:
    for step, sides in report.exponents.items():
        yield f"- {step}: " + ", ".join(f"{side} {slope:.2f}" for side, slope in sides.items())


def _limit_lines(limits: Mapping[str, float]) -> Iterator[str]:
    for name, value in limits.items():
        unit, words = LIMITS[name]
        yield f"{value / unit:,.1f} {words}"


def _cells(comparison: Comparison) -> tuple[str, ...]:
    share = "" if comparison.share is None else f"{comparison.share:.0%}"
    has_peer = bool(comparison.peer)
    peaks = f"{comparison.peak_mb:,.0f}"
    return (
        comparison.step,
        f"{comparison.size:,} {comparison.unit}" if comparison.size > 1 else "",
        _time(comparison.seconds, comparison.rate, comparison),
        _time(comparison.peer_seconds, comparison.peer_rate, comparison) if has_peer else "",
        comparison.peer,
        _times(comparison.ratio) if has_peer else "",
        share,
        f"{peaks} / {comparison.peer_peak_mb:,.0f}" if has_peer else peaks,
        comparison.agreement,
    )


def _time(seconds: float, rate: float, comparison: Comparison) -> str:
    if comparison.is_rate:
        return f"{rate:,.0f} {comparison.unit}/s"
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:,.3g} s"


def _times(ratio: float) -> str:
    return f"{ratio:.2g}×" if ratio < 10 else f"{ratio:,.0f}×"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


def _as_json(report: BenchReport) -> dict[str, Any]:
    return {
        **{name: getattr(report, name) for name in ("command", "machine", "versions", "limits")},
        "date": report.date.isoformat(timespec="seconds"),
        "failures": report.failures,
        "exponents": report.exponents,
        "comparisons": [asdict(comparison) for comparison in report.compared],
        "runs": [
            {key: value for key, value in asdict(measured).items() if key != "answer"}
            for measured in report.measured
        ],
    }


def _curves(
    measured: Sequence[Measurement],
) -> Iterator[tuple[str, str, list[int], list[float]]]:
    """Step, side, sizes and median seconds; who does a part of the size, as for all of it."""
    keys = dict.fromkeys((item.step, item.side) for item in measured)
    for step, side in keys:
        mine = [item for item in measured if (item.step, item.side) == (step, side)]
        seconds = [item.median_seconds * max(1.0, item.size / item.work) for item in mine]
        yield step, side, [item.size for item in mine], seconds


def growth_svg(report: BenchReport) -> str:
    """Seconds against size, a panel per step that was measured at several sizes."""
    from io import StringIO

    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from winback.operators.plots import COUPON_COLOURS, GRID, NO_METADATA, STYLE

    steps = list(report.exponents)
    rows = max(1, -(-len(steps) // PANELS_PER_ROW))
    columns = min(PANELS_PER_ROW, max(1, len(steps)))
    with rc_context(STYLE):
        figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
        for place, step in enumerate(steps):
            axes = figure.add_subplot(rows, columns, place + 1)
            curves = [curve for curve in _curves(report.measured) if curve[0] == step]
            for (_, side, sizes, seconds), colour in zip(curves, COUPON_COLOURS, strict=False):
                label = f"{side}: {report.exponents[step].get(side, float('nan')):.2f}"
                axes.loglog(sizes, seconds, marker="o", markersize=4, color=colour, label=label)
            _plain_ticks(axes, sorted({size for curve in curves for size in curve[2]}))
            axes.set_title(step)
            axes.set_xlabel(STEPS[step].unit)
            axes.set_ylabel("seconds")
            axes.grid(color=GRID, lw=0.8)
            axes.legend(fontsize=7)
        text = StringIO()
        figure.savefig(text, format="svg", metadata=NO_METADATA)
    return text.getvalue()


def _plain_ticks(axes: Any, sizes: Sequence[int]) -> None:
    """Sizes and seconds as plain numbers: the figures' style does not read powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
