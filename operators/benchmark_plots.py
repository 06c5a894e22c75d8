"""The benchmark's figures: rows of ``policy_benchmark`` in, inline SVG out."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from winback.operators.benchmark_worlds import FAMILIES
from winback.operators.plots import COUPON_COLOURS, INK, MUTED, WIDE, as_svg, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]


def by_policy_svg(
    rows: Sequence[Row], policies: Sequence[str], name: str, label: str, target: float | None
) -> str:
    """One dot per world, coloured by family, and the median per policy.

    Args:
        rows: of the table; those without the figure are left out.
        policies: from top to bottom.
        name: of the figure.
        label: of the axis.
        target: where a line is drawn.
    """
    families = [family for family in FAMILIES if any(row["family"] == family for row in rows)]
    with style_axes():
        drawing, axes = new_figure((WIDE[0], 1.4 + 0.27 * len(policies)))
        for number, family in enumerate(families):
            shift = 0.5 * ((number + 0.5) / len(families) - 0.5)
            dots = [row for row in rows if row["family"] == family and row[name] is not None]
            axes.plot(
                [row[name] for row in dots],
                [policies.index(row["policy"]) + shift for row in dots],
                "o",
                ms=4,
                alpha=0.8,
                color=COUPON_COLOURS[number % len(COUPON_COLOURS)],
                label=family,
            )
        _medians(axes, rows, policies, name)
        if target is not None:
            axes.axvline(target, color=MUTED, lw=1, ls="--")
        axes.set_yticks(range(len(policies)), policies)
        axes.invert_yaxis()
        axes.set_xlabel(label)
        drawing.legend(loc="outside upper left", ncols=min(5, len(families) + 1))
        return as_svg(drawing, f"{label} by policy and world")


def _medians(axes: "Axes", rows: Sequence[Row], policies: Sequence[str], name: str) -> None:
    for place, policy in enumerate(policies):
        values = [r[name] for r in rows if r["policy"] == policy and r[name] is not None]
        if values:
            axes.plot([median(values)], [place], "|", ms=13, mew=2.5, color=INK)


def stated_svg(rows: Sequence[Row], stated: str, true: str, title: str) -> str | None:
    """What policies said against what was true, one dot per world and policy; None without any."""
    kept = [row for row in rows if row[stated] is not None]
    if not kept:
        return None
    with style_axes():
        drawing, axes = new_figure((4.4, 3.6), title)
        ends = [min(min(r[stated], r[true], 0.0) for r in kept)]
        ends.append(max(max(r[stated], r[true], 1e-9) for r in kept) * 1.05)
        axes.plot(ends, ends, color=MUTED, lw=1, ls="--", label="exactly as stated")
        for number, policy in enumerate(dict.fromkeys(row["policy"] for row in kept)):
            dots = [row for row in kept if row["policy"] == policy]
            axes.plot(
                [row[stated] for row in dots],
                [row[true] for row in dots],
                "o",
                ms=5,
                color=COUPON_COLOURS[number % len(COUPON_COLOURS)],
                label=policy,
            )
        axes.set_xlabel("stated, currency units")
        axes.set_ylabel("true")
        axes.legend(loc="best", fontsize=8)
        return as_svg(drawing, f"{title}: stated against true")


def value_svg(rows: Sequence[Row]) -> str:
    """The estimates of the plan's value with their intervals against the truth, a dot a world.

    Args:
        rows: of the table that have the figures, at least one.
    """
    families = [family for family in FAMILIES if any(row["family"] == family for row in rows)]
    with style_axes():
        drawing, axes = new_figure(WIDE)
        ends = [end(row["value_true"] for row in rows) for end in (min, max)]
        axes.plot(ends, ends, color=MUTED, lw=1, ls="--", label="exactly as estimated")
        for number, family in enumerate(families):
            dots = [row for row in rows if row["family"] == family]
            middle = [row["value_estimate"] for row in dots]
            axes.errorbar(
                [row["value_true"] for row in dots],
                middle,
                [
                    [one - row["value_lower"] for one, row in zip(middle, dots, strict=True)],
                    [row["value_upper"] - one for one, row in zip(middle, dots, strict=True)],
                ],
                fmt="o",
                ms=4,
                lw=1,
                color=COUPON_COLOURS[number % len(COUPON_COLOURS)],
                label=family,
            )
        axes.set_xlabel("true, currency units per decision")
        axes.set_ylabel("estimate and 95 % interval")
        drawing.legend(loc="outside right upper")
        return as_svg(drawing, "Value of the plan: estimate against truth")


def lives(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of closed loops by world and policy, week after week: ``plain 0: winback``."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["week"]):
        found.setdefault(f"{row['world']}: {row['policy']}", []).append(row)
    return found


def loop_svg(rows: Sequence[Row], name: str, label: str) -> str:
    """A figure week by week, one line per world and policy."""
    with style_axes():
        drawing, axes = new_figure(WIDE)
        for number, (life, own) in enumerate(lives(rows).items()):
            colour = COUPON_COLOURS[number % len(COUPON_COLOURS)]
            weeks = [row["week"] for row in own]
            axes.plot(weeks, [row[name] for row in own], "o-", ms=4, color=colour, label=life)
        axes.axhline(0, color=MUTED, lw=1)
        axes.set_xlabel("week of the closed loop")
        axes.set_ylabel(label)
        axes.legend(loc="best")
        return as_svg(drawing, f"{label} by week")
