"""Tables of the benchmark's report, from rows worked out by hand."""

import re

import pytest

from winback.operators.benchmark import all_policies
from winback.operators.benchmark_plots import loop_svg
from winback.operators.benchmark_report import (
    BEST_STATIC,
    ELSEWHERE,
    loop_table,
    uplift_table,
    value_table,
    with_regret,
)
from winback.operators.benchmark_table import VALUES


def worth(world: str, estimate: float, half: float, true: float, oracle: float) -> dict:
    ends = {"value_lower": estimate - half, "value_upper": estimate + half}
    value = {"value_estimate": estimate, "value_true": true, "value_oracle": oracle}
    return {"world": world, "family": world.split()[0], **ends, **value}


def test_errors_and_coverage_by_hand():
    rows = [
        worth("plain 0", 0.50, 0.2, true=0.60, oracle=1.0),  # 10 % off, held
        worth("plain 1", 0.50, 0.1, true=0.80, oracle=2.0),  # 15 %, not held
        worth("null 0", 0.00, 0.0, true=0.0, oracle=0.0),  # no coupons: nothing to tell
        worth("null 1", 0.01, 0.05, true=-0.02, oracle=0.0),  # held
        {**dict.fromkeys(VALUES), "world": "sparse 0", "family": "sparse"},
    ]
    assert value_table(rows)[1] == [
        ["plain (2)", "12.5 %", "15.0 %", "1 of 2"],
        ["null (2)", "", "", "1 of 1"],
        ["all (4)", "12.5 %", "15.0 %", "2 of 3"],
    ]


def test_regret_is_what_the_oracle_gains_more_by_hand():
    """Two worlds and in one of them two policies, their weeks in any order."""
    gains = {
        ("a", "winback", 2): (9, 5),
        ("b", "winback", 1): (4, 4),
        ("a", "random", 2): (8, 6),
        ("a", "winback", 1): (10, 7),
        ("b", "winback", 2): (6, 8),
        ("a", "random", 1): (10, -1),
    }
    names = ("world", "policy", "week")
    rows = [
        {**dict(zip(names, at, strict=True)), "oracle_uplift": best, "uplift": ours, "percent": 50}
        for at, (best, ours) in gains.items()
    ]
    last = {line[0]: line[-1] for line in loop_table(rows)[1]}
    assert last == {"a: winback": "7", "b: winback": "-2", "a: random": "13"}
    found = {tuple(row[name] for name in names): row["regret"] for row in with_regret(rows)}
    assert found == {
        **{("a", "winback", 1): 3, ("a", "winback", 2): 7},
        **{("b", "winback", 1): 0, ("b", "winback", 2): -2},
        **{("a", "random", 1): 11, ("a", "random", 2): 13},
    }
    drawn = loop_svg(with_regret(rows), "regret", "regret")
    assert all(drawn.count(f">{life}<") == 1 for life in last)


def brought(policy: str, family: str, percent: float | None) -> dict:
    gains = {"percent": percent, "given": 0.1}
    return {"policy": policy, "family": family, "world_id": family, **gains}


FOUND = {"winback": 70.0, "T-learner": 20.0, "coupon 4 for all": -30.0, "coupon 8 for all": -9.0}


@pytest.mark.parametrize(
    ("families", "head", "learner", "static"),
    [
        (("plain", "confounded", "null"), "plain / confounded", "18 / 31", "-11 / -8"),
        (("confounded",), "confounded", "31", "-8"),
        (("null", "drift"), None, "", ""),
    ],
)
def test_what_is_known_elsewhere_stands_beside_what_was_found(families, head, learner, static):
    """Oracle: the published figures; of one coupon for all there is only that of the best."""
    rows = [
        brought(name, family, None if family == "null" else percent)
        for name, percent in FOUND.items()
        for family in families
    ]
    heads, body = uplift_table(rows)
    assert {len(line) for line in body} == {len(heads)}
    assert (heads[-1] == f"known elsewhere: {head}") == (head is not None)
    assert len(heads) == 1 + len(families) + (head is not None)
    if head is not None:
        assert [line[-1] for line in body] == ["", learner, static, ""]


def test_all_that_is_known_elsewhere_is_of_policies_that_there_are():
    """Oracle: the benchmark's own list, so no figure is lost by a misspelt name."""
    assert set(ELSEWHERE) - {BEST_STATIC} <= set(all_policies())
    assert all(
        re.fullmatch(r"-?\d+( to \d+)?", text) for pair in ELSEWHERE.values() for text in pair
    )
