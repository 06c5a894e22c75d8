"""The benchmark's result: a Markdown table, and a page with plots."""

import csv
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.resources import files
from io import StringIO
from itertools import accumulate
from statistics import median
from typing import Any

from winback.models.errors import NotFittedError, SettingsError
from winback.models.peers import STATIC
from winback.operators import benchmark_plots as plots
from winback.operators.benchmark_worlds import FAMILIES

TEMPLATE = "operators/benchmark.html.j2"
MARKDOWN, PAGE, ROWS = "benchmark.md", "benchmark.html", "benchmark.csv"
FULL, GOAL = 1.0, 65.0  # the whole budget; percent of the oracle's uplift to reach
UPLIFT_CAPTION = (
    "Percent of the oracle's uplift, median over worlds (lowest to highest); where nothing can be "
    "gained, the share of customers who get a coupon:"
)
VALUE_CAPTION = (
    "winback's own estimate of what its plan brings against no coupons, per decision of the log "
    "(profit of the week less the price of coupon money), against the world's: error in percent of "
    "what the best coupon for every hidden state would bring there, and 95 % intervals that hold "
    "the truth, of those worlds where the plan gives coupons:"
)
LOOP_CAPTION = (
    "Closed loop, true uplift in currency units; regret is what the oracle would have gained more "
    "over all weeks, from the same customers as the policy's own past left them:"
)
BEST_STATIC, STATIC_BEGINS = "best coupon for all", STATIC.partition("{")[0]
ELSEWHERE_FAMILIES = ("plain", "confounded")
# Percent of the oracle's uplift in worlds of these families, by policies of the same kind.
ELSEWHERE = {
    "best observer": ("85", "93"),
    "oracle, state only": ("50", "64"),
    "oracle, this week only": ("44 to 69", "44 to 69"),
    "P(buy) x margin - cost": ("26", "41"),
    "S-learner": ("20", "37"),
    "T-learner": ("18", "31"),
    "tabular planning": ("11", "36"),
    "RFM rule": ("-4", "-12"),
    BEST_STATIC: ("-11", "-8"),
    "random": ("-11", "-12"),
    "response, logistic": ("-17", "-24"),
    "response, boosting": ("-17", "-24"),
}
ELSEWHERE_CAPTION = (
    "What is known elsewhere was measured with other code on another family of worlds of 20,000 "
    "customers × 40 weeks."
)
Row = Mapping[str, Any]

# Column heads of the table of shares: figure, head, its format, how worlds are put together.
SHARES = (
    ("spend_share", "spent / budget, median", "{:.2f}", median),
    ("spend_share", "largest", "{:.2f}", max),
    ("harm", "coupons that harm", "{:.0%}", median),
    ("wasted", "beyond help, but given one", "{:.0%}", median),
    ("cost_slope", "slope: cost", "{:.2f}", median),
    ("purchase_slope", "slope: P(buy)", "{:.2f}", median),
    ("week_slope", "slope: week's uplift", "{:.2f}", median),
    ("uplift_slope", "slope: long run", "{:.2f}", median),
)


def write_report(rows: Sequence[Row], folder: Any, command: str) -> dict[str, str]:
    """Write the table, the page and the rows; return their addresses.

    Args:
        rows: of ``policy_benchmark``, one-shot weeks and closed loops together.
        folder: a ``pathlib.Path`` or ``upath.UPath``; made when missing.
        command: how to get the same again.

    Raises:
        NotFittedError: there are no rows.
        SettingsError: the folder cannot be written.
    """
    if not rows:
        raise NotFittedError("the benchmark has no rows for these worlds. Run the worlds first.")
    pages = {MARKDOWN: markdown(rows, command), PAGE: page(rows, command), ROWS: _as_csv(rows)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in pages.items():
            (folder / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return {name: str(folder / name) for name in pages}


def markdown(rows: Sequence[Row], command: str) -> str:
    """Both tables as Markdown, with the date, the command and the sizes."""
    once, loop = _split(rows)
    parts = [f"{_when(rows)}: `{command}`. {_sizes(rows)}"]
    if once:
        head, body = uplift_table(once)
        parts += [UPLIFT_CAPTION]
        parts += [_table(head, body)]
        parts += [ELSEWHERE_CAPTION] if _calibrating(once) else []
        head, body = shares_table(once)
        parts += ["Money, harm, and stated against true, over all worlds:", _table(head, body)]
    if _valued(once):
        parts += [VALUE_CAPTION, _table(*value_table(once))]
    if loop:
        parts += [LOOP_CAPTION, _table(*loop_table(loop))]
    return "\n\n".join(parts) + "\n"


def page(rows: Sequence[Row], command: str) -> str:
    """One file with its plots, readable anywhere without a network."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    once, loop = _split(rows)
    tables = {"uplift": uplift_table(once), "shares": shares_table(once)} if once else {}
    figures = {**_once_figures(once), **_loop_figures(loop)}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    source = files("winback").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        when=_when(rows),
        command=command,
        sizes=_sizes(rows),
        tables=tables,
        elsewhere=ELSEWHERE_CAPTION if _calibrating(once) else None,
        value=value_table(once) if _valued(once) else None,
        value_caption=VALUE_CAPTION,
        loop=loop_table(loop) if loop else None,
        figures={name: Markup(drawing) for name, drawing in figures.items() if drawing},
    )


def uplift_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and body: a line per policy, best first, a column per family of worlds.

    The last column has what is known elsewhere, of those families of which it is.
    """
    families = [family for family in FAMILIES if any(row["family"] == family for row in rows)]
    counts = {f: len({row["world_id"] for row in rows if row["family"] == f}) for f in families}
    head = ["policy", *(f"{family} ({counts[family]})" for family in families)]
    order = ranked(rows)
    body = [[policy, *(_uplift(rows, policy, family) for family in families)] for policy in order]
    if calibrating := _calibrating(rows):
        head.append(f"known elsewhere: {' / '.join(calibrating)}")
        for line in body:
            line.append(_elsewhere(line[0], order, calibrating))
    return head, body


def shares_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and body: what a policy spends and wastes, and how true its statements are."""
    head = ["policy", *(title for _, title, _, _ in SHARES)]
    body = []
    for policy in ranked(rows):
        cells = [
            _cell(_values(rows, policy, name), form, together) for name, _, form, together in SHARES
        ]
        body.append([policy, *cells])
    return head, body


def value_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and body: how right the plan's value was estimated, by family of worlds and in all."""
    head = ["worlds", "error, median", "largest", "intervals that hold the truth"]
    kept = _valued(rows)
    parts = {family: [row for row in kept if row["family"] == family] for family in FAMILIES}
    body = [
        [f"{name} ({len(part)})", *_value_cells(part)]
        for name, part in {**parts, "all": kept}.items()
        if part
    ]
    return head, body


def loop_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and body: the mean of the first and of the last five weeks, their ratio, the regret."""
    head = ["world: policy", "first 5 weeks", "last 5 weeks", "ratio"]
    head += ["percent of the oracle's", "regret"]
    body = []
    for life, own in plots.lives(with_regret(rows)).items():
        early, late = own[:5], own[-5:]
        before, after = _mean(early, "uplift"), _mean(late, "uplift")
        ratio = f"{after / before:.2f}" if before > 0 else ""
        shares = [f"{_mean(part, 'percent'):.0f}" for part in (early, late) if _known(part)]
        regret = f"{own[-1]['regret']:,.0f}"
        body.append([life, f"{before:,.0f}", f"{after:,.0f}", ratio, " → ".join(shares), regret])
    return head, body


def with_regret(rows: Sequence[Row]) -> list[Row]:
    """A loop's rows with ``regret``: what the oracle would have gained more, up to that week."""
    found: list[Row] = []
    for own in plots.lives(rows).values():
        regret = accumulate(row["oracle_uplift"] - row["uplift"] for row in own)
        found += [{**row, "regret": lost} for row, lost in zip(own, regret, strict=True)]
    return found


def ranked(rows: Sequence[Row]) -> list[str]:
    """Policies by their median percent over all worlds, best first."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    return sorted(policies, key=lambda policy: -median(_values(rows, policy, "percent") or [0.0]))


def _once_figures(rows: Sequence[Row]) -> dict[str, str | None]:
    if not rows:
        return {}
    order = ranked(rows)
    share = [{**row, "harm": 100 * row["harm"], "wasted": 100 * row["wasted"]} for row in rows]
    draw = plots.by_policy_svg
    return {
        "uplift": draw(rows, order, "percent", "percent of the oracle's uplift", GOAL),
        "spend": draw(rows, order, "spend_share", "true expected cost / budget", FULL),
        "harm": draw(share, order, "harm", "percent of the coupons that harm", None),
        "wasted": draw(
            share, order, "wasted", "percent of those beyond help who get a coupon", None
        ),
        "stated_uplift": plots.stated_svg(rows, "stated_uplift", "uplift", "Long-run uplift"),
        "stated_spend": plots.stated_svg(
            [row for row in rows if row["stated_uplift"] is not None],
            "stated_spend",
            "spend",
            "Coupon money",
        ),
        "value": plots.value_svg(valued) if (valued := _valued(rows)) else None,
    }


def _loop_figures(rows: Sequence[Row]) -> dict[str, str | None]:
    if not rows:
        return {}
    return {
        "loop_uplift": plots.loop_svg(rows, "uplift", "true uplift, currency units"),
        "loop_percent": plots.loop_svg(rows, "percent", "percent of the oracle's uplift"),
        "loop_regret": plots.loop_svg(with_regret(rows), "regret", "regret so far, currency units"),
    }


def _split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    return [r for r in rows if r["week"] == 0], [r for r in rows if r["week"] > 0]


def _valued(rows: Sequence[Row]) -> list[Row]:
    """Rows that say what the plan is worth."""
    return [row for row in rows if row["value_lower"] is not None]


def _value_cells(rows: Sequence[Row]) -> list[str]:
    """Error in percent of the oracle's, where it gains something, and coverage."""
    errors = [
        100 * abs(row["value_estimate"] - row["value_true"]) / row["value_oracle"]
        for row in rows
        if row["value_oracle"] > 0
    ]
    told = [row for row in rows if row["value_lower"] < row["value_upper"]]
    held = sum(row["value_lower"] <= row["value_true"] <= row["value_upper"] for row in told)
    form = "{:.1f} %"
    return [_cell(errors, form, median), _cell(errors, form, max), f"{held} of {len(told)}"]


def _values(rows: Sequence[Row], policy: str, name: str, family: str | None = None) -> list[float]:
    return [
        row[name]
        for row in rows
        if row["policy"] == policy
        and row[name] is not None
        and (family is None or row["family"] == family)
    ]


def _uplift(rows: Sequence[Row], policy: str, family: str) -> str:
    """Percent of the oracle's; where it gains nothing, how many customers get a coupon."""
    percent = _values(rows, policy, "percent", family)
    given = _values(rows, policy, "given", family)
    return _spread(percent) if percent or not given else f"{median(given):.1%} get one"


def _calibrating(rows: Sequence[Row]) -> list[str]:
    """The families among the rows of which something is known elsewhere."""
    return [f for f in ELSEWHERE_FAMILIES if any(row["family"] == f for row in rows)]


def _elsewhere(policy: str, order: Sequence[str], families: Sequence[str]) -> str:
    """What is known of such a policy, of one coupon for all only if it is the best such."""
    best = next((name for name in order if name.startswith(STATIC_BEGINS)), None)
    known = ELSEWHERE.get(BEST_STATIC if policy == best else policy)
    if known is None:
        return ""
    return " / ".join(known[ELSEWHERE_FAMILIES.index(family)] for family in families)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = f"{median(values):.0f}"
    return f"{middle} ({min(values):.0f} to {max(values):.0f})" if len(values) > 1 else middle


def _cell(values: Sequence[float], form: str, together: Any) -> str:
    return form.format(together(values)) if values else ""


def _mean(rows: Sequence[Row], name: str) -> float:
    values = [row[name] for row in rows if row[name] is not None]
    return float(sum(values) / max(len(values), 1))


def _known(rows: Sequence[Row]) -> bool:
    return any(row["percent"] is not None for row in rows)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _when(rows: Sequence[Row]) -> str:
    latest: datetime = max(row["measured_at"] for row in rows)
    return f"{latest.astimezone(timezone.utc):%Y-%m-%d}"


def _sizes(rows: Sequence[Row]) -> str:
    worlds = len({row["world_id"] for row in rows})
    sizes = sorted({(row["customers"], row["weeks"]) for row in rows})
    each = ", ".join(f"{customers:,} customers × {weeks} weeks" for customers, weeks in sizes)
    versions = ", ".join(sorted({row["code_version"] for row in rows}))
    return f"{worlds} worlds of {each}; code {versions}."


def _as_csv(rows: Sequence[Row]) -> str:
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
