"""The gate in the daily run, on real servers: who is compared, what is recorded, what stays."""

import json
import logging
import shutil
from collections.abc import Iterator
from html import unescape

import numpy as np
import pytest
from pipeline import Shop, checked_template, copy_of
from rich.console import Console

from winback.models.errors import HeldError
from winback.models.off_policy import DOUBLY_ROBUST, ESTIMATORS
from winback.models.settings import load_settings
from winback.operators.artifacts import GATE, OVERLAP, PLAN, REPORT, RESPONSE_MODEL, Artifacts
from winback.operators.console import show_failure, show_summary
from winback.operators.read_report import read_report
from winback.operators.run import Run
from winback.operators.run_report import signed

EVALUATED = "select * from winback.policy_evaluations where run_id = %s order by policy, estimator"
COPY_WORK = """
insert into winback_work.{table}
select (jsonb_populate_record(r, jsonb_build_object('run_id', 'second'))).* from winback.{table} r
"""
GREEDY = """
update winback_work.recommendations set coupon_id = 'save5', is_exploration = false
where customer_id in (
    select customer_id from winback_work.recommendations
    where suppression_reason in ('no_uplift', 'low_support') order by customer_id limit 40
)
"""
RASH = 9.0  # log odds: it believes that the largest coupon sells to everybody


@pytest.fixture
def shop(servers) -> Iterator[Shop]:
    """The run ``first`` is published; ``second`` has decided the same, by the same model."""
    with copy_of(checked_template(servers), servers) as shop:
        shop.daily_run().execute("publish")
        for table in ("customer_scores", "q_table", "recommendations"):
            shop.query(COPY_WORK.format(table=table))
        shop.query(GREEDY)
        first = artifacts(shop, "first")  # its log is too small to prove what coupons do
        first.write_json(PLAN, {**first.read_json(PLAN), "offered": [True, True, True]})
        folder = first.folder
        shutil.copytree(folder, folder.with_name("second"), dirs_exist_ok=True)
        (folder.with_name("second") / REPORT).unlink(missing_ok=True)
        yield shop


def artifacts(shop: Shop, run_id: str) -> Artifacts:
    return Artifacts(shop.artifacts.as_uri(), shop.as_of, run_id)


def believe(shop: Shop, run_id: str, log_odds: float) -> None:
    """What a run's model says of the largest coupon is changed."""
    place = artifacts(shop, run_id)
    model = place.read_arrays(RESPONSE_MODEL)
    model["coefficients"][:, -1] += log_odds
    place.write_arrays(RESPONSE_MODEL, model)
    place.write_json(PLAN, {**place.read_json(PLAN), "long_run_price": 0.0})


def recorded(shop: Shop, run_id: str = "second") -> tuple[str, dict]:
    [row] = shop.query("select status, metrics from winback.runs where run_id = %s", run_id)
    return row


def test_the_values_of_all_policies_are_recorded(shop):
    rows = shop.query(EVALUATED, "first")
    policies = {(row[2], row[3]) for row in rows}
    expected = {(p, e) for p in ("none", "challenger", "challenger_as_is") for e in ESTIMATORS}
    effects = ("save5 - none, window", "save10 - none, window")
    differences = ("challenger - none", "challenger - none, window", *effects)
    expected |= {("logged", "mean"), *((name, DOUBLY_ROBUST) for name in differences)}
    assert policies == expected, "no champion before the first publishing"
    for _, _, policy, _, value, lower, upper, size, largest, _, propensities in rows:
        assert propensities == "partly", "the sample logs none without consent"
        if policy in differences and not size:
            continue  # equal policies: no decision tells them apart
        assert lower <= value <= upper, policy
        assert size > 0
        assert largest > 0
    verdict = artifacts(shop, "first").read_json(GATE)
    said = {f"{one.pop('coupon_id')} - none, window": one for one in verdict["effects"]}
    names = ("value", "lower", "upper", "effective_sample_size", "max_weight", "alarm")
    assert {
        row[2]: dict(zip(names, row[4:10], strict=True)) for row in rows if row[2] in effects
    } == said
    assert verdict["passed"]
    assert "No policy is published yet" in verdict["reason"]


@pytest.mark.parametrize("periods", [1, 12])
def test_the_differences_that_the_gate_used_are_recorded(shop, periods):
    """Oracle: the figures of the verdict itself, alarm included; every other alarm likewise."""
    believe(shop, "second", RASH)
    found = shop.daily_run("second", evaluation_periods=periods).execute("evaluate_policy")
    rows = {(row[2], row[3]): row[4:10] for row in shop.query(EVALUATED, "second")}
    names = ("value", "lower", "upper", "effective_sample_size", "max_weight", "alarm")
    for policy, prefix in (
        ("challenger - none", "versus_none"),
        ("challenger_as_is - champion", "versus_champion"),
    ):
        used = tuple(found["figures"][f"{prefix}_{name}"] for name in names)
        assert rows[policy, DOUBLY_ROBUST] == used
    for policy, figures in found["policies"].items():
        estimator = "mean" if policy == "logged" else DOUBLY_ROBUST
        assert rows[policy, estimator] == tuple(figures[name] for name in names)
    alarms = [policy for (policy, _), row in rows.items() if row[-1]]
    assert ("challenger_as_is - champion" in alarms) == (periods == 1), "one week is too little"


@pytest.mark.parametrize(("share", "word"), [(0.0, "estimated"), (0.4, "partly"), (1.0, "logged")])
def test_where_the_propensities_come_from_is_recorded(shop, share, word):
    place = artifacts(shop, "second")
    place.write_json(OVERLAP, {**place.read_json(OVERLAP), "logged_share": share})
    shop.daily_run("second").execute("evaluate_policy")
    found = "select distinct propensities from winback.policy_evaluations where run_id = 'second'"
    assert shop.query(found) == [(word,)]


def test_another_try_replaces_the_rows_of_the_run_alone(shop):
    first = shop.query(EVALUATED, "first")
    run = shop.daily_run("second")
    run.execute("evaluate_policy")
    second = shop.query(EVALUATED, "second")
    run.execute("evaluate_policy")
    assert shop.query(EVALUATED, "second") == second
    assert shop.query(EVALUATED, "first") == first
    new = {"champion", "challenger_as_is - champion"}
    assert {row[2] for row in second} == {row[2] for row in first} | new


def test_the_same_model_again_may_be_published(shop):
    """Oracle: equal models give equal decisions, so their difference is 0."""
    run = shop.daily_run("second")
    found = run.execute("evaluate_policy")
    assert found["champion"] == f"run first of {shop.as_of}"
    assert found["figures"]["versus_champion_disagreement"] == 0
    assert "It decides as the current policy in 100.0%" in found["reason"]
    assert run.execute("publish")["status"] == "published"
    status, metrics = recorded(shop)
    assert status == "published"
    assert metrics["evaluation"] == json.loads(json.dumps(found))


def test_a_worse_plan_is_held_and_nothing_changes_for_readers(shop):
    believe(shop, "second", RASH)
    before = shop.published()
    run = shop.daily_run("second")
    found = run.execute("evaluate_policy")
    assert not found["passed"]
    with pytest.raises(HeldError, match="run it again with override_gate") as held:
        run.execute("publish")
    assert found["reason"] in str(held.value)
    assert found["reason"].startswith("Held; the current policy stays.")
    assert shop.published() == before
    assert run.execute("finish_run") == {"status": "held"}
    status, metrics = recorded(shop)
    assert status == "held"
    assert metrics["evaluation"]["figures"]["versus_champion_disagreement"] > 0.1
    assert metrics["settings"]["override_gate"] is False


def test_a_held_run_says_why_on_its_page_and_in_the_terminal(shop):
    believe(shop, "second", RASH)
    run = shop.daily_run("second")
    found = run.execute("evaluate_policy")
    with pytest.raises(HeldError):
        run.execute("publish")
    page = artifacts(shop, "second").read_bytes(REPORT).decode()
    assert "held: nothing was published" in page
    assert "Is the new plan better?" in page
    assert "The current policy" in page
    assert "What each coupon would add if everybody got it" in page
    assert [signed(one["value"]) in page for one in found["effects"]] == [True, True]
    assert found["reason"] in unescape(page)
    console = Console(width=10_000, record=True)
    show_failure(console, run.failures[0], "run.log")
    settings = load_settings(run.results["start_run"]["settings"])
    done = Run(shop.url, shop.as_of, "second", settings)
    show_summary(console, read_report(done))
    text = console.export_text()
    assert f"Nothing was published. {found['reason']}" in text
    assert text.count(found["reason"]) == 2
    assert run.failures[0]["kind"] == "HeldError"


def test_an_override_publishes_and_is_recorded(shop):
    believe(shop, "second", RASH)
    run = shop.daily_run("second", override_gate=True)
    run.execute("evaluate_policy")
    assert run.execute("publish")["status"] == "published"
    assert shop.query("select distinct run_id from winback.recommendations") == [("second",)]
    status, metrics = recorded(shop)
    evaluation = metrics["evaluation"]
    assert status == "published"
    assert (evaluation["rule_passed"], evaluation["override"]) == (False, True)
    assert metrics["settings"]["override_gate"] is True
    assert "Published by override" in evaluation["reason"]


def test_a_dry_run_stays_a_dry_run(shop):
    believe(shop, "second", RASH)
    run = shop.daily_run("second", publish=False)
    assert not run.execute("evaluate_policy")["passed"]
    assert run.execute("publish") == {"status": "dry_run"}
    assert recorded(shop)[0] == "dry_run"


def test_the_champion_decides_by_its_own_settings(shop):
    """Only the caution differs, so models are equal and decisions are not."""
    run = shop.daily_run("second", pessimism=0.0)
    found = run.execute("evaluate_policy")
    assert found["policies"]["champion"]["given"] < found["policies"]["challenger_as_is"]["given"]
    assert found["figures"]["versus_champion_disagreement"] > 0


DECIDED_FOR = (
    "update winback.runs set metrics = jsonb_set(metrics, '{{settings,decision_days}}', '{days}') "
    "where run_id = 'first'"
)
LOST = {
    "gone": "(run first of {as_of}) cannot be compared: its model is gone. To compare, bring back",
    "another catalogue": "it knew coupons worth 6, 11, the catalogue has 5, 10",
    "another window": "it decided for 14 days, this run decides for 7",
}


@pytest.fixture(params=LOST)
def lost(request, shop) -> Iterator[str]:
    """The champion cannot be compared; yields the words that say why."""
    place = artifacts(shop, "first")
    model = place.read_arrays(RESPONSE_MODEL)
    if request.param == "gone":
        (place.folder / RESPONSE_MODEL).unlink()
    elif request.param == "another window":
        shop.query(DECIDED_FOR.format(days=14))
    else:
        changed = {**model, "face_values": model["face_values"] + np.array([0, 1, 1])}
        place.write_arrays(RESPONSE_MODEL, changed)
    yield LOST[request.param].format(as_of=shop.as_of)
    place.write_arrays(RESPONSE_MODEL, model)
    shop.query(DECIDED_FOR.format(days=7))


def test_a_champion_that_cannot_be_compared_is_not_replaced_unseen(shop, lost, caplog):
    """The log is too small to show that the second plan earns more than no coupons."""
    run, before = shop.daily_run("second"), shop.published()
    found = run.execute("evaluate_policy")
    assert not found["figures"]["versus_none_lower"] > 0 or found["figures"]["versus_none_alarm"]
    assert not found["passed"]
    assert lost in found["reason"]
    assert "this one is not. To replace it all the same, publish by override" in found["reason"]
    assert "Against no coupons at all it brings" in found["reason"]
    assert "champion" not in found["policies"]
    assert found["champion"] == f"run first of {shop.as_of}"
    assert found["reason"] in [record.message for record in warnings(caplog)]
    with pytest.raises(HeldError):
        run.execute("publish")
    assert shop.published() == before


def test_a_champion_that_cannot_be_compared_gives_way_to_an_override(shop, lost):
    run = shop.daily_run("second", override_gate=True)
    found = run.execute("evaluate_policy")
    assert (found["passed"], found["rule_passed"]) == (True, False)
    assert lost in found["reason"]
    assert run.execute("publish")["status"] == "published"


def test_a_champion_that_cannot_be_compared_gives_way_to_exploration(shop, lost, caplog):
    shop.query("update winback_work.recommendations set is_exploration = coupon_id <> 'none'")
    found = shop.daily_run("second").execute("evaluate_policy")
    assert found["passed"]
    assert f"{lost}" in found["reason"]
    assert "Only exploration is planned" in found["reason"]
    assert found["reason"] in [record.message for record in warnings(caplog)]


def test_without_any_published_run_there_is_no_champion(shop):
    shop.query("update winback.runs set as_of = as_of + 1")
    found = shop.daily_run("second").execute("evaluate_policy")
    assert "No policy is published yet" in found["reason"]
    assert found["passed"]
    assert found["champion"] is None
    assert "champion" not in found["policies"]


def warnings(caplog) -> list[logging.LogRecord]:
    """What the step warned of."""
    name = "winback.operators.evaluate_policy"
    records = (record for record in caplog.records if record.name == name)
    return [record for record in records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("tolerance", [0.0, 1e6])
def test_a_verdict_with_an_alarm_or_held_is_warned_of_and_no_other(shop, tolerance, caplog):
    """Oracle: the alarms and bounds among the figures themselves."""
    believe(shop, "second", RASH)
    found = shop.daily_run("second", gate_tolerance=tolerance).execute("evaluate_policy")
    figures = found["figures"]
    doubts = (
        not found["rule_passed"],
        figures["versus_champion_alarm"] is not None,
        figures["versus_none_alarm"] is not None,
        figures["versus_none_lower"] < 0 <= figures["versus_none_upper"],
    )
    assert [record.message for record in warnings(caplog)] == [found["reason"]] * any(doubts)
