"""The report's figures: numbers in, matplotlib figures or inline SVG out, no files."""

import re
from collections.abc import Mapping, Sequence
from datetime import date
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, NONE_COLOUR = "#1f2933", "#616e7c", "#e4e7eb", "#cbd2d9"
TRAINING_COLOUR, VALIDATION_COLOUR = "#9aa5b1", "#0b6e99"
# Okabe & Ito (2008): told apart by colour-blind readers and in grey print.
COUPON_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b5a800")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font
    "svg.hashsalt": "winback",  # equal figures are equal bytes
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a coupon may be called "$5 off"
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": NONE_COLOUR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
STANDARD_ERRORS = 2.0  # an interval that holds the truth in about 95 of 100 cases
WIDE, SQUARE = (9.2, 3.0), (3.6, 3.2)  # inches; the page is 9.2 wide, a phone 3.6
POINTS_PER_INCH = 72
LONGEST_LABEL, LEGEND_CHARACTERS = 28, 100  # of text that fits into the wide figures


def coupon_colour(position: int) -> str:
    """Colour of the coupon at a position of the catalogue; 0 is `none`."""
    if position == 0:
        return NONE_COLOUR
    return COUPON_COLOURS[(position - 1) % len(COUPON_COLOURS)]


def loss_svg(history: Sequence[Mapping[str, Any]], best_epoch: int) -> str:
    """Loss per epoch on the training and on later rows (``EpochReport`` as mappings)."""
    from matplotlib.ticker import MaxNLocator

    with style_axes():
        figure, axes = new_figure(SQUARE, "Learning curve")
        epochs = [epoch["epoch"] for epoch in history]
        for name, colour, label in (
            ("train_loss", TRAINING_COLOUR, "rows it learns from"),
            ("validation_loss", VALIDATION_COLOUR, "later rows"),
        ):
            losses = [epoch[name] for epoch in history]
            axes.plot(epochs, losses, color=colour, marker="o", markersize=4, label=label)
        best = next(e["validation_loss"] for e in history if e["epoch"] == best_epoch)
        axes.plot([best_epoch], [best], "o", ms=10, mfc="none", mec=INK, label="kept")
        axes.set_xlabel("epoch (pass over the rows)")
        axes.set_ylabel("loss (lower is better)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper right")
        return as_svg(figure, "Loss per epoch on training and on later rows")


def calibration_svg(
    deciles: Sequence[Mapping[str, float]], title: str, unit: str, *, is_share: bool
) -> str:
    """Forecast against outcome per tenth of the customers (``CalibrationBin`` as mappings)."""
    from matplotlib.ticker import PercentFormatter

    with style_axes():
        figure, axes = new_figure(SQUARE, title)
        predicted = [decile["predicted"] for decile in deciles]
        actual = [decile["actual"] for decile in deciles]
        error = [STANDARD_ERRORS * decile["standard_error"] for decile in deciles]
        ends = [min(*predicted, *actual, 0.0), max(*predicted, *actual, 1e-9) * 1.05]
        axes.plot(ends, ends, color=TRAINING_COLOUR, lw=1, ls="--", label="exactly as forecast")
        axes.errorbar(
            predicted,
            actual,
            yerr=error,
            fmt="o",
            ms=5,
            color=VALIDATION_COLOUR,
            ecolor=VALIDATION_COLOUR,
            elinewidth=1,
            label="a tenth of the customers",
        )
        axes.set_xlabel(f"forecast ({unit})")
        axes.set_ylabel("what happened")
        if is_share:
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.legend(loc="lower right")
        return as_svg(figure, f"{title}: forecast against outcome")


def coupons_by_state_svg(
    groups: Sequence[str],
    customers: Sequence[tuple[str, Sequence[int]]],
    colours: Sequence[str],
) -> str:
    """Stacked shares of customers per recency group: (coupon label, counts), `none` first."""
    from matplotlib.ticker import PercentFormatter

    with style_axes():
        figure, axes = new_figure((WIDE[0], 1.5 + 0.42 * len(groups)))
        columns = zip(*(counts for _, counts in customers), strict=True)
        totals = [max(1, sum(column)) for column in columns]
        start = [0.0] * len(groups)
        for (label, counts), colour in zip(customers, colours, strict=True):
            shares = [count / total for count, total in zip(counts, totals, strict=True)]
            name = _shown(label)
            axes.barh(range(len(groups)), shares, left=start, height=0.7, color=colour, label=name)
            start = [left + share for left, share in zip(start, shares, strict=True)]
        axes.set_yticks(range(len(groups)), groups)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("share of the customers in this group")
        axes.set_ylabel("last purchase")
        _legend_above(figure, axes)
        return as_svg(figure, "Coupons by time since the last purchase")


def spend_svg(
    parts: Sequence[tuple[str, float]], colours: Sequence[str], budget: float, unit: str
) -> str:
    """Expected spend by coupon, stacked in one bar, against the budget."""
    with style_axes():
        figure, axes = new_figure((WIDE[0], 1.75))
        start = 0.0
        for (label, cost), colour in zip(parts, colours, strict=True):
            axes.barh([0], [cost], left=start, color=colour, label=_shown(label), height=0.6)
            start += cost
        axes.axvline(budget, color=INK, lw=2, label="budget")
        axes.set_xlim(0, max(budget, start, 1e-9) * 1.06)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"expected cost of redeemed coupons ({unit})")
        _legend_above(figure, axes)
        return as_svg(figure, "Expected spend against the budget")


def spend_history_svg(
    days: Sequence[date], budgets: Sequence[float], spends: Sequence[float], unit: str
) -> str:
    """Budget and expected spend of the latest published decision dates, oldest first."""
    with style_axes():
        figure, axes = new_figure(WIDE, "Spend and budget of the latest runs")
        places = range(len(days))
        axes.bar(places, spends, color=COUPON_COLOURS[0], width=0.6, label="expected spend")
        axes.hlines(
            budgets,
            [place - 0.4 for place in places],
            [place + 0.4 for place in places],
            color=INK,
            lw=2,
            label="budget",
        )
        axes.set_xticks(places, [f"{day.day} {day:%b}" for day in days], rotation=45)
        axes.set_ylabel(unit)
        axes.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1))
        return as_svg(figure, "Expected spend and budget of the latest runs")


def new_figure(size: tuple[float, float], title: str = "") -> "tuple[Figure, Axes]":
    """An empty figure with one pair of axes; size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.grid(color=GRID, lw=0.8)
    return figure, axes


def _legend_above(figure: "Figure", axes: "Axes") -> None:
    """One legend over the plot, in as many columns as its labels leave room for."""
    handles, labels = axes.get_legend_handles_labels()
    widest = max(len(label) for label in labels)
    columns = max(1, LEGEND_CHARACTERS // (widest + 6))  # 6: swatch and gap
    figure.legend(handles, labels, loc="outside upper left", ncols=min(columns, len(labels)))


def _shown(label: str) -> str:
    """A coupon's name in a legend, which drops names that begin with an underscore."""
    short = label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"
    return f"\u200b{short}" if short.startswith("_") else short


def as_svg(figure: "Figure", description: str) -> str:
    """The figure as an element of an HTML page: no XML prologue, no metadata, no fixed size."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata=NO_METADATA, transparent=True)
    text = buffer.getvalue()
    element = text[text.index("<svg") :]
    element = re.sub(r' xmlns(:\w+)?="[^"]*"', "", element)  # an HTML page needs no namespaces
    element = element.replace("<g id=", "<g data-part=")  # ids repeat from figure to figure
    width = figure.get_figwidth() * POINTS_PER_INCH
    described = f'<svg role="img" aria-label="{description}" style="max-width:{width:.0f}pt"'
    return re.sub(r'<svg width="\S+" height="\S+"', described, element, count=1)


def style_axes() -> Any:
    """The look of all plots, as a context."""
    from matplotlib import rc_context

    return rc_context(STYLE)
