"""The gate in the daily run, on real servers: who is compared, what is recorded, what stays."""

import json
import shutil
from collections.abc import Iterator
from html import unescape

import numpy as np
import pytest
from pipeline import Shop, checked_template, copy_of
from rich.console import Console

from winback.models.errors import HeldError
from winback.models.off_policy import ESTIMATORS
from winback.models.settings import load_settings
from winback.operators.artifacts import GATE, PLAN, REPORT, RESPONSE_MODEL, Artifacts
from winback.operators.console import show_failure, show_summary
from winback.operators.read_report import read_report
from winback.operators.run import Run

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
        shutil.rmtree(folder.with_name("second"))


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
    assert policies == expected | {("logged", "mean")}, "no champion before the first publishing"
    for _, _, policy, _, value, lower, upper, size, largest in rows:
        assert lower <= value <= upper, policy
        assert size > 0
        assert largest > 0
    verdict = artifacts(shop, "first").read_json(GATE)
    assert verdict["passed"]
    assert "No policy is published yet" in verdict["reason"]


def test_another_try_replaces_the_rows_of_the_run_alone(shop):
    first = shop.query(EVALUATED, "first")
    run = shop.daily_run("second")
    run.execute("evaluate_policy")
    second = shop.query(EVALUATED, "second")
    run.execute("evaluate_policy")
    assert shop.query(EVALUATED, "second") == second
    assert shop.query(EVALUATED, "first") == first
    assert {row[2] for row in second} == {row[2] for row in first} | {"champion"}


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


@pytest.mark.parametrize("what", ["gone", "another catalogue", "only later runs"])
def test_without_a_champion_the_reason_says_why(shop, what):
    place = artifacts(shop, "first")
    model, words = place.read_arrays(RESPONSE_MODEL), "No policy is published yet"
    if what == "gone":
        (place.folder / RESPONSE_MODEL).unlink()
        words = f"The model of the current policy (run first of {shop.as_of}) is gone"
    elif what == "another catalogue":
        changed = {**model, "face_values": model["face_values"] + np.array([0, 1, 1])}
        place.write_arrays(RESPONSE_MODEL, changed)
        words = "The catalogue has changed since the current policy (run first"
    else:
        shop.query("update winback.runs set as_of = as_of + 1")
    try:
        found = shop.daily_run("second").execute("evaluate_policy")
    finally:
        place.write_arrays(RESPONSE_MODEL, model)
    assert words in found["reason"]
    assert found["passed"]
    assert "champion" not in found["policies"]
