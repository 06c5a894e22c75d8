"""What past offers can tell of each coupon, as a run records it, on a real server."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from pipeline import Shop, checked_template, copy_of

from winback.models.situations import Panel
from winback.operators.artifacts import OVERLAP, Artifacts
from winback.operators.fit_response import _fill_propensities
from winback.operators.panel import PanelRows

RUN = "fitted_again"
OFFERED = """
select
    coupon_id,
    count(*),
    sum(1 / propensity) ^ 2 / sum(1 / propensity ^ 2),
    min(propensity),
    avg((propensity < 0.05)::int)
from winback.closed_windows
group by coupon_id
"""


@pytest.fixture
def shop(servers) -> Iterator[Shop]:
    """All that fit_response reads, for a run whose artifacts no other test looks at."""
    with copy_of(checked_template(servers), servers) as shop:
        folder = artifacts(shop, "first").folder
        shutil.copytree(folder, folder.with_name(RUN))
        yield shop
        shutil.rmtree(folder.with_name(RUN))


def artifacts(shop: Shop, run_id: str = RUN) -> Artifacts:
    return Artifacts(shop.artifacts.as_uri(), shop.as_of, run_id)


def test_logged_offers_are_counted_per_coupon(shop):
    """Oracle: SQL over the windows; where nothing was drawn, `none` was certain."""
    shop.query("update winback.closed_windows set propensity = 1 where propensity is null")
    found = shop.daily_run(RUN).execute("fit_response")["overlap"]
    rows = {row["coupon_id"]: row for row in found["coupons"]}
    names = dict(shop.query("select coupon_id, label from winback_staging.stg_coupons"))
    assert {name: row["label"] for name, row in rows.items()} == names
    assert found["logged_share"] == 1
    offered = shop.query(OFFERED)
    assert {name for name, *_ in offered} == set(rows)
    for name, decisions, size, smallest, below in offered:
        row = rows[name]
        assert row["decisions"] == decisions
        assert row["effective_sample_size"] == pytest.approx(size)
        assert row["smallest"] == smallest
        assert row["below_5_percent"] == pytest.approx(float(below))
        assert row["separation"] is None, "of the others nothing is on record"
    assert artifacts(shop).read_json(OVERLAP) == json.loads(json.dumps(found, allow_nan=False))


def test_a_coupon_is_complained_of_by_its_label(shop):
    """By construction: one coupon was hardly ever given; nobody wrote down how likely it was."""
    shop.query("update winback.closed_windows set propensity = null")
    shop.query("update winback.closed_windows set coupon_id = 'none' where coupon_id = 'save5'")
    found = shop.daily_run(RUN).execute("fit_response")["overlap"]
    rows = {row["coupon_id"]: row for row in found["coupons"]}
    assert f"“{rows['save5']['label']}” was never given" in found["verdict"]
    assert found["logged_share"] == 0
    assert [rows[name]["is_readable"] for name in ("none", "save5")] == [True, False]
    assert rows["save5"]["decisions"] == 0
    assert rows["save5"]["separation"] is None
    assert 0.5 <= rows["none"]["separation"] <= 1
    assert np.all(np.diff(rows["none"]["quantiles"]) >= 0)
    assert artifacts(shop).read_json(OVERLAP) == json.loads(json.dumps(found, allow_nan=False))


def test_before_the_first_offer_nothing_is_held_against_a_coupon(shop):
    shop.query("update winback.closed_windows set coupon_id = 'none', propensity = null")
    found = shop.daily_run(RUN).execute("fit_response")["overlap"]
    assert found["verdict"] == "No offers in the log yet."
    assert [row["is_readable"] for row in found["coupons"]] == [True] * len(found["coupons"])
    assert all("decisions" not in row for row in found["coupons"])


def test_decisions_of_its_own_do_not_make_the_log_unreadable():
    """A shop's log by lot, then 40 weeks of winback's own choices, of which few were explored.

    Oracle: without the mark they are a stranger's, worth too few for their number.
    """
    random = np.random.default_rng(0)
    theirs, own = 3_000, 60_000
    coupon = np.append(random.integers(0, 3, theirs), random.choice(3, own, p=[0.6, 0.39, 0.01]))
    explored = np.append(np.zeros(theirs, bool), random.random(own) < 0.03)
    chance = np.where(explored, 0.01, 0.97)
    n = theirs + own
    panel = Panel(
        first=np.arange(n + 1),
        period=np.append(np.zeros(theirs, int), np.ones(own, int)),
        situation=np.zeros(n, int),
        coupon=coupon,
        purchased=np.zeros(n, bool),
        margin=np.zeros(n),
        cost=np.zeros(n),
        propensity=np.where(np.arange(n) < theirs, 1 / 3, chance),
        own=np.arange(n) >= theirs,
        closed=np.ones(n, bool),
    )
    catalogue = SimpleNamespace(coupon_ids=["none", "a", "b"], labels=["No coupon", "A", "B"])
    readable = {}
    for marked in (True, False):
        one = replace(panel, own=panel.own & marked)
        _, report = _fill_propensities(PanelRows(one, None, None, None), catalogue, 0)
        readable[marked] = [row["is_readable"] for row in report["coupons"][1:]]
    assert readable[True] == [True, True]
    assert not all(readable[False])
