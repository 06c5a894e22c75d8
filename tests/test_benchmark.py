"""A small benchmark through the source tables, dbt and the steps of the daily run."""

import csv
import json
import os
import re
import shlex
from dataclasses import replace
from datetime import date, timedelta
from unittest.mock import patch

import numpy as np
import psycopg
import pytest

from winback.__main__ import main
from winback.dags.winback_benchmark import dag
from winback.models.errors import DataError, NotFittedError, SettingsError
from winback.operators.benchmark import (
    BenchmarkOptions,
    policies_to_run,
    run_world,
    run_worlds,
    scratch,
)
from winback.operators.benchmark_loop import run_loop
from winback.operators.benchmark_product import MEASURED, build_features
from winback.operators.benchmark_report import markdown, with_regret, write_report
from winback.operators.benchmark_steps import (
    BenchmarkReportOperator,
    ListWorldsOperator,
    RunWorldOperator,
)
from winback.operators.benchmark_table import VALUES, prepare, read_rows
from winback.operators.benchmark_value import weeks_of
from winback.operators.benchmark_worlds import BenchmarkWorld, choose_worlds
from winback.operators.evaluate_policy import GRID_START
from winback.operators.panel import read_panel
from winback.operators.snapshots import read_catalogue
from winback.operators.world_source import customer_numbers, monday, write_world

CUSTOMERS, WEEKS = 400, 12
POLICIES = ("oracle", "none", "random", "S-learner", "winback", "winback without pessimism")
PRODUCT_ROWS = [policy for policy in POLICIES if policy.startswith("winback")]
FAST = {"epochs": "1"}  # as the command line gives it


@pytest.fixture(scope="module")
def worlds() -> list[BenchmarkWorld]:
    return choose_worlds(2, CUSTOMERS, WEEKS, ("plain", "null"))


@pytest.fixture(scope="module")
def options(warehouse_url) -> BenchmarkOptions:
    return BenchmarkOptions(warehouse_url, policies=POLICIES, settings=FAST)


@pytest.fixture(scope="module")
def said(worlds, options) -> list[str]:
    """What a person who waits was told; both worlds have been run."""
    lines: list[str] = []
    run_worlds(worlds, options, lines.append)
    return lines


@pytest.fixture(scope="module")
def rows(said, worlds, options) -> list[dict]:
    return read_rows(options.url, options.schema, worlds)


def test_every_policy_has_a_row_per_world(rows, worlds):
    found = {(row["world"], row["policy"]) for row in rows}
    assert found == {(world.name, policy) for world in worlds for policy in POLICIES}
    assert len(rows) == len(found)
    assert {row["customers"] for row in rows} == {CUSTOMERS}


def test_the_oracle_is_100_and_nothing_is_0(rows):
    """Oracle: the definition of the score; in the null world nothing can be gained."""
    plain = {row["policy"]: row for row in rows if row["family"] == "plain"}
    assert plain["oracle"]["percent"] == pytest.approx(100)
    assert plain["none"]["percent"] == plain["none"]["spend"] == 0
    assert all(row["percent"] <= 100.001 for row in plain.values())
    null = {row["policy"]: row for row in rows if row["family"] == "null"}
    assert null["oracle"]["given"] == 0
    assert {row["percent"] for row in null.values()} == {None}
    assert null["random"]["uplift"] < 0
    assert null["random"]["budget"] > 0


def test_winback_keeps_to_the_budget_it_states(rows):
    """Oracle: the stated cost of its coupons is at most the budget, by its own reckoning."""
    ours = [row for row in rows if row["policy"].startswith("winback")]
    assert ours
    for row in ours:
        assert row["stated_spend"] <= row["budget"] + 1e-6
        assert row["purchase_slope"] is not None


def test_only_winback_says_what_its_plan_is_worth(rows):
    """The plan that the estimate is of can bring no more than the best coupons there."""
    ours = [row for row in rows if row["policy"] == "winback"]
    assert {row["family"] for row in ours} == {"plain", "null"}
    for row in ours:
        assert row["value_lower"] <= row["value_estimate"] <= row["value_upper"]
        assert row["value_true"] <= row["value_oracle"]
        assert (row["value_oracle"] > 0) == (row["family"] == "plain")
    others = [[row[name] for name in VALUES] for row in rows if row["policy"] != "winback"]
    assert others == [[None] * len(VALUES)] * len(others)


def test_a_person_who_waits_hears_of_every_policy(said):
    for policy in POLICIES:
        assert any(line.startswith(f"plain 0: {policy} ") for line in said)
    assert said[-1].startswith("2 of 2 worlds")


def test_worlds_that_the_table_has_are_not_run_again(rows, worlds, options):
    lines: list[str] = []
    assert run_world(worlds[0], options, lines.append) == []
    assert lines == ["plain 0: in the table already"]
    assert read_rows(options.url, options.schema, worlds) == rows


@pytest.mark.parametrize(
    ("settings", "again"),
    [
        (FAST, set()),
        ({**FAST, "pessimism": "3"}, set(PRODUCT_ROWS)),
        ({**FAST, "default_margin_rate": "0.2"}, set(POLICIES)),
    ],
)
def test_what_a_setting_changes_is_run_again(rows, worlds, options, settings, again):
    """By what reads it: the features reach everybody, winback's own settings only winback."""
    assert set(policies_to_run(worlds[0], replace(options, settings=settings))) == again


def test_a_world_that_fails_does_not_hide_the_others(worlds, options):
    lines: list[str] = []

    def run(world, options, say):
        if world.family == "plain":
            raise DataError("no orders")
        say("ran")

    assert run_worlds(worlds, options, lines.append, run) == ["plain 0"]
    assert lines[0] == "plain 0: failed. no orders"
    assert "ran" in lines


def test_nothing_is_left_of_the_worlds_own_tables(rows, options):
    query = "select nspname from pg_namespace where nspname like '%benchmark%'"
    with psycopg.connect(options.url) as connection:
        assert connection.execute(query).fetchall() == []


def test_the_report_has_a_line_per_policy(rows, tmp_path):
    places = write_report(rows, tmp_path / "new", "winback benchmark -o DIR")
    text = (tmp_path / "new" / "benchmark.md").read_text()
    assert text.startswith(f"{date.today()}: `winback benchmark -o DIR`. 2 worlds of 400 customers")
    assert text.count("| oracle | ") == 2
    assert "| oracle | 100 | 0.0% get one |" in text
    assert "| none | 0 | 0.0% get one |" in text
    page = (tmp_path / "new" / "benchmark.html").read_text()
    assert page.count("<svg") == 7
    assert "| plain (1) | " in text
    assert "| all (2) | " in text
    assert all(policy in page for policy in POLICIES)
    assert "http" not in page.replace("http-equiv", "")
    with open(places["benchmark.csv"], newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def test_a_report_without_rows_or_folder_says_so(rows, tmp_path):
    with pytest.raises(NotFittedError, match="Run the worlds first"):
        write_report([], tmp_path, "")
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be written"):
        write_report(rows, tmp_path / "file", "")


def test_the_command_reports_what_is_there(rows, warehouse_url, tmp_path, capsys):
    """Both worlds are in the table, so nothing is run."""
    call = ["benchmark", "--worlds", "2", "--families", "plain", "null", "-o", str(tmp_path)]
    call += ["--customers", str(CUSTOMERS), "--weeks", str(WEEKS), "--policies", *POLICIES]
    call += ["--set", "epochs=1"]
    with patch.dict(os.environ, {"AIRFLOW_CONN_WINBACK_WAREHOUSE": warehouse_url}):
        assert main(call) == 0
    assert "in the table already" in capsys.readouterr().out
    again = f"winback benchmark --worlds 2 --customers {CUSTOMERS} --weeks {WEEKS} --families plain"
    assert again in (tmp_path / "benchmark.md").read_text()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--families", "odd"], "expected 1 world or more of plain, confounded"),
        (["--worlds", "0"], "came 0 of plain"),
        (["--policies", "best"], "expected some of oracle"),
        (["--set", "pesimism=1"], "no such settings: pesimism"),
        (["--set", "gamma=2"], "gamma"),
    ],
)
def test_a_wrong_call_ends_with_2(option, words, warehouse_url, tmp_path, capsys):
    with patch.dict(os.environ, {"AIRFLOW_CONN_WINBACK_WAREHOUSE": warehouse_url}):
        assert main(["benchmark", "-o", str(tmp_path), *option]) == 2
    assert words in capsys.readouterr().err


@pytest.fixture(scope="module")
def own_loop(options) -> tuple[BenchmarkWorld, list[dict]]:
    """A world that lived on for two weeks with nobody named, and its rows."""
    world = BenchmarkWorld("plain", 5, CUSTOMERS, WEEKS)
    return world, run_loop(world, replace(options, policies=()), print, 2)


def test_a_loop_learns_from_its_own_decisions(own_loop):
    """Two weeks: both are judged, by the same budget."""
    _, rows = own_loop
    assert [(row["policy"], row["week"]) for row in rows] == [("winback", 1), ("winback", 2)]
    assert len({row["budget"] for row in rows}) == 1
    assert len({row["oracle_uplift"] for row in rows}) == 2  # the customers have moved on


def test_policies_live_side_by_side_each_with_its_own_history(own_loop, options):
    """Oracle: with one log and one budget the first week is the same for all, the second is not.

    And who knows everything has no regret. winback's weeks are not run again.
    """
    world, ours = own_loop
    several = replace(options, policies=("winback", "oracle", "random"))
    lines: list[str] = []
    rows = run_loop(world, several, lines.append, 2)
    others = [("oracle", 1), ("oracle", 2), ("random", 1), ("random", 2)]
    assert [(row["policy"], row["week"]) for row in rows] == others
    assert lines[0] == "plain 5: the loop of winback is in the table already"
    assert len({row["budget"] for row in [*ours, *rows]}) == 1
    attainable = {
        week: {row["oracle_uplift"] for row in [*ours, *rows] if row["week"] == week}
        for week in (1, 2)
    }
    assert [len(attainable[week]) for week in (1, 2)] == [1, 3]
    regret = {row["policy"]: row["regret"] for row in with_regret(rows)}  # the last week's
    assert regret["oracle"] == pytest.approx(0)
    assert regret["random"] > 0
    text = markdown(read_rows(options.url, options.schema, [world]), "")
    assert all(f"| plain 5: {policy} |" in text for policy in several.policies)


def test_the_best_observer_cannot_live_in_a_loop(options, worlds):
    with pytest.raises(SettingsError, match="can live in a loop; came best observer"):
        run_loop(worlds[0], replace(options, policies=("best observer",)), print, 2)


def test_the_dags_steps_run_what_is_missing_and_report_it(options, tmp_path):
    """Oracles: the command, which has nothing left to do with the same settings; its own words."""
    world = BenchmarkWorld("plain", 8, CUSTOMERS, WEEKS)
    chosen = {"policies": ["oracle", "none"], "settings": {"default_margin_rate": 0.2}}
    params = {**dag.params.dump(), **chosen}
    environment = {
        "AIRFLOW_CONN_WINBACK_WAREHOUSE": options.url,
        "WINBACK_ARTIFACTS_URI": tmp_path.as_uri(),
    }
    with patch.dict(os.environ, environment):
        step = RunWorldOperator(task_id="run_world", world=world.to_dict())
        assert [step.execute({"params": params}) for _ in range(2)] == [2, 0]
        report = BenchmarkReportOperator(task_id="report", worlds=[world.to_dict()])
        report.execute({"dag": dag, "params": params})
    (oracle,) = (
        row for row in read_rows(options.url, options.schema, [world]) if row["policy"] == "oracle"
    )
    assert oracle["percent"] == pytest.approx(100)
    asked = replace(options, policies=("oracle", "none"), settings={"default_margin_rate": "0.2"})
    assert policies_to_run(world, asked) == []
    assert policies_to_run(world, replace(asked, settings={})) == ["oracle", "none"]
    written = (tmp_path / "benchmark" / "benchmark.md").read_text()
    command = shlex.split(re.findall("`(.+?)`", written)[0])
    assert command[:5] == ["airflow", "dags", "trigger", "winback_benchmark", "--conf"]
    assert json.loads(command[5]) == params


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"settings": {"pesimism": 1}}, "pesimism"),
        ({"settings": {"gamma": 2}}, "gamma"),
        ({"policies": ["best"]}, "expected some of oracle"),
    ],
)
def test_the_dag_refuses_a_wrong_param_before_any_world(wrong, words):
    with pytest.raises(SettingsError, match=words):
        ListWorldsOperator(task_id="x").execute({"params": {**dag.params.dump(), **wrong}})


def test_the_dag_lists_the_worlds_of_its_params():
    params = {**dag.params.dump(), "worlds": 2, "families": ["sparse"], "dials": {"confounding": 1}}
    listed = ListWorldsOperator(task_id="x").execute({"params": params})
    worlds = [BenchmarkWorld(**world) for world in listed]
    assert [world.name for world in worlds] == ["sparse 0", "sparse 1"]
    assert {world.config.confounding for world in worlds} == {1.0}
    assert worlds[0].customers == 20_000


def test_periods_of_the_grid_are_weeks_of_the_world():
    """Oracle: the calendar. The nightly run counts from Monday 1970-01-05."""
    weeks = list(range(0, 60, 7))
    periods = [(monday(week) - GRID_START).days // 7 for week in weeks]
    assert all(
        GRID_START + timedelta(weeks=p) == monday(w) for p, w in zip(periods, weeks, strict=True)
    )
    assert weeks_of(periods).tolist() == weeks


def test_an_older_warehouse_gets_the_later_columns(rows, options):
    """Oracle: the table as it was before there were values; its rows stay."""
    with psycopg.connect(options.url) as connection:
        connection.execute("create schema older")
        connection.execute("create table older.policy_benchmark (like winback.policy_benchmark)")
        connection.execute(
            "insert into older.policy_benchmark select * from winback.policy_benchmark"
        )
        for name in VALUES:
            connection.execute(f"alter table older.policy_benchmark drop column {name}")
    prepare(options.url, "older")
    prepare(options.url, "older")
    with psycopg.connect(options.url) as connection:
        found = connection.execute("select * from older.policy_benchmark")
        assert {column.name for column in found.description or ()} == set(rows[0])
        assert len(found.fetchall()) >= len(rows)


def test_the_panels_decisions_are_those_of_the_world(options):
    """Oracle: the history that was written; so states are looked up for the right decisions."""
    world = BenchmarkWorld("plain", 7, 150, WEEKS)
    known = world.make()
    history, budget = known.history, known.truth.budget
    with scratch(world, options) as place:
        at = write_world(place.url, known.world, history, budget=budget, schema=place.sources)
        run = place.run(at.isoformat(), **{**MEASURED, "budget": budget})
        build_features(run)
        read = read_panel(run, read_catalogue(run))
    panel = read.panel
    customer = customer_numbers(read.customer_id)[panel.customer[panel.closed]]
    week = weeks_of(panel.period[panel.closed])
    order = np.lexsort((customer, week))
    assert np.array_equal(customer[order], history.customer)
    assert np.array_equal(week[order], history.week)
    for name in ("coupon", "purchased", "cost"):
        assert np.array_equal(getattr(panel, name)[panel.closed][order], getattr(history, name))
