"""The whole daily run: once by Airflow as a user starts it, then the cases that change its course.

Oracle for the tables: the columns and rules of the data contract, written out here.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pipeline import FAST, Shop, copy_of, sample_template

COLUMNS = {
    "recommendations": """
        as_of run_id customer_id decision_id coupon_id channel treatment_group is_exploration
        propensity expected_profit baseline_profit expected_uplift expected_cost q_value
        long_run_uplift p_alive p_purchase state reason suppression_reason valid_from valid_to
        model_version config_hash code_version created_at
        next_best_coupon_id next_best_long_run_uplift next_best_expected_cost situation net_value
        next_best_behind next_best_limits
    """,
    "customer_scores": "as_of run_id customer_id p_alive p_purchase expected_purchases",
    "runs": "run_id as_of status budget expected_spend dual_price duality_gap metrics started_at "
    "finished_at",
    "policy_evaluations": "as_of run_id policy estimator value lower upper effective_sample_size "
    "max_weight alarm propensities",
    "data_checks": "as_of run_id suite expectation table_name column severity success "
    "unexpected_count unexpected_percent description",
    "decisions": "decision_id as_of run_id customer_id coupon_id propensity treatment_group "
    "is_exploration valid_from valid_to published_at",
}
READ_BY_OTHERS = {  # what the contract promises of tables that have more columns
    "q_table": "as_of run_id state coupon_id q_value visits",
    "customer_rfm": "as_of run_id customer_id frequency recency_days age_days monetary_value "
    "first_purchase_on last_purchase_on",
    "customer_snapshots": "as_of run_id snapshot_date customer_id days_since_last_purchase "
    "purchases_last_30d avg_order_value remaining_budget_pct category coupons_last_30d "
    "category_sequence coupon_id propensity order_placed order_profit coupon_cost reward",
}
SUPPRESSIONS = {
    "no_consent",
    "no_purchase_yet",
    "recent_contact",
    "holdout",
    "budget",
    "no_uplift",
    "low_support",
}
AS_OF = "2024-07-29"


@dataclass(frozen=True)
class Command:
    """A finished `winback` command and the shop that it worked on."""

    shop: Shop
    data_dir: Path
    exit_code: int
    output: str


def winback(shop: Shop, data_dir: Path, *arguments: str) -> Command:
    """Run a command as a user does, connections given by environment variables."""
    settings = {f"WINBACK_{name.upper()}": str(value) for name, value in FAST.items()}
    environment = {**os.environ, **settings, "AIRFLOW_HOME": str(data_dir / "airflow")}
    done = subprocess.run(
        [sys.executable, "-m", "winback", *arguments, "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        env=environment,
    )
    return Command(shop, data_dir, done.returncode, done.stdout + done.stderr)


@pytest.fixture(scope="module")
def finished(servers, tmp_path_factory) -> Iterator[Command]:
    """`winback run` on the generated sample."""
    with copy_of(sample_template(servers), servers) as shop:
        yield winback(shop, tmp_path_factory.mktemp("winback"), "run", "--as-of", AS_OF)


def columns(shop: Shop, table: str) -> set[str]:
    names = shop.query(
        "select column_name::text from information_schema.columns "
        "where table_schema = 'winback' and table_name = %s",
        table,
    )
    return {name for (name,) in names}


def one(shop: Shop, statement: str) -> Any:
    [(value,)] = shop.query(statement)
    return value


def test_the_command_succeeds_and_tells_what_it_did(finished):
    assert finished.exit_code == 0, finished.output
    assert "Publish to warehouse and Redis" in finished.output
    assert "Traceback" not in finished.output


def test_the_tables_have_the_columns_of_the_contract(finished):
    for table, names in COLUMNS.items():
        assert columns(finished.shop, table) == set(names.split()), table
    for table, names in READ_BY_OTHERS.items():
        assert columns(finished.shop, table) >= set(names.split()), table


def test_every_known_customer_gets_one_decision(finished):
    known = """
        select customer_id from raw.orders where ordered_at < '2024-07-29'
        union
        select customer_id from raw.customers
        where created_at < '2024-07-29' or created_at is null
        order by 1
    """
    decided = "select customer_id from winback.recommendations order by 1"
    assert finished.shop.query(decided) == finished.shop.query(known)


def test_spend_stays_within_the_budget(finished):
    """The budget by hand: what is left of July's money over the days that are left."""
    amount, spent = finished.shop.query(
        "select amount, (select sum(coupon_cost) from raw.orders "
        "where ordered_at >= '2024-07-01' and ordered_at < '2024-07-29') "
        "from raw.budgets where period_start = '2024-07-01'"
    )[0]
    [(budget, spend)] = finished.shop.query("select budget, expected_spend from winback.runs")
    assert budget == pytest.approx(float(amount - spent) / 3)
    total = one(finished.shop, "select sum(expected_cost) from winback.recommendations")
    assert spend == pytest.approx(total)
    assert 0 < total <= budget


def test_holdout_and_suppressed_customers_get_none_for_sure(finished):
    rows = finished.shop.query(
        "select treatment_group, suppression_reason, coupon_id, propensity, is_exploration "
        "from winback.recommendations"
    )
    assert {row[0] for row in rows} == {"treatment", "holdout"}
    assert {row[1] for row in rows if row[1]} <= SUPPRESSIONS
    for group, reason, coupon_id, propensity, is_exploration in rows:
        if group == "holdout" or reason in ("no_consent", "no_purchase_yet", "recent_contact"):
            assert (coupon_id, propensity, is_exploration) == ("none", 1.0, False)
        if coupon_id != "none":
            assert reason is None
            assert 0 < propensity <= 1


def test_redis_serves_the_q_table_of_the_run(finished):
    shop = finished.shop
    version = shop.redis.get("winback:current")
    served = {s: json.loads(v) for s, v in shop.redis.hgetall(f"winback:q:{version}").items()}
    rows = shop.query("select state, coupon_id, q_value from winback.q_table where is_supported")
    assert {(s, c, q) for s, values in served.items() for c, q in values.items()} == set(rows)
    meta = json.loads(shop.redis.get(f"winback:meta:{version}"))
    assert meta["run_id"] == one(shop, "select distinct run_id from winback.recommendations")


def test_the_run_is_recorded_with_the_figures_of_its_steps(finished):
    [(status, metrics)] = finished.shop.query("select status, metrics from winback.runs")
    assert status == "published"
    assert set(metrics) >= {"survival", "profit", "plan", "allocation", "drift", "settings"}
    assert metrics["survival"]["customers"] == 300
    lift = metrics["plan"]["lift"]
    assert lift["decisions"] > 0
    allocation = metrics["allocation"]
    assert allocation["is_proven"] == lift["is_proven"]
    assert not allocation["is_cold_start"], "the sample has offers enough to judge coupons by"


def test_every_decision_is_kept(finished):
    same = "select customer_id, coupon_id, propensity, decision_id from winback.{} order by 1"
    shop = finished.shop
    assert shop.query(same.format("decisions")) == shop.query(same.format("recommendations"))


def test_every_suite_left_its_results(finished):
    suites = "select suite, bool_and(success or severity <> 'critical') from winback.data_checks"
    assert dict(finished.shop.query(suites + " group by suite")) == dict.fromkeys(
        ("sources", "features", "scores", "drift", "recommendations"), True
    )


def test_artifacts_lie_in_the_data_folder(finished):
    [folder] = (finished.data_dir / "artifacts" / f"as_of={AS_OF}").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert names >= {"survival.json", "profit.safetensors", "profit.json", "report.html"}
    assert (folder / "data_docs" / "recommendations" / "index.html").exists()
    assert "<html" in (folder / "report.html").read_text()
    assert not [name for path in folder.rglob("*") for name in [path.name] if "pickle" in name]


def test_the_reports_are_built(finished):
    current = "select count(*), min(as_of), max(as_of) from winback.current_recommendations"
    count = one(finished.shop, "select count(*) from winback.recommendations")
    assert finished.shop.query(current) == [(count, date(2024, 7, 29), date(2024, 7, 29))]
    waiting = "select count(*) from winback.campaign_performance"
    assert one(finished.shop, waiting) == 0, "no window of a recommendation is over"


def test_another_run_by_hand_gives_the_same_rows(finished):
    """Another process, another run id, the tasks called one by one: what Airflow published stays.

    Runs after the tests above, which look at the first run.
    """
    shop = finished.shop
    tables = ("recommendations", "q_table", "customer_scores", "customer_rfm", "customer_snapshots")
    rows = "select to_jsonb(t) - 'run_id' - 'created_at' from winback.{} t order by 1"
    first = {table: shop.query(rows.format(table)) for table in tables}
    decisions = shop.query("select * from winback.decisions order by 1")
    shop.daily_run("by hand").go(until="publish")
    for table in tables:
        assert shop.query(rows.format(table)) == first[table], table
    assert shop.query("select * from winback.decisions order by 1") == decisions
    assert shop.query("select distinct run_id from winback.recommendations") == [("by hand",)]
    assert shop.query("select count(*) from winback.runs") == [(2,)]


def test_a_run_that_fails_says_why_and_publishes_nothing(servers, tmp_path):
    with copy_of(sample_template(servers), servers) as shop:
        shop.query("delete from raw.budgets")
        command = winback(shop, tmp_path, "run", "--as-of", AS_OF)
        assert command.exit_code == 1
        assert "Nothing was published" in command.output
        assert "A budget covers as_of 2024-07-29" in " ".join(command.output.split())
        assert "Full log:" in command.output
        [(status, failures)] = shop.query("select status, metrics -> 'failures' from winback.runs")
        assert status == "failed"
        assert failures[0]["task"] == "check_sources"
        assert "A budget covers as_of" in failures[0]["error"]
        assert shop.query("select * from winback.recommendations") == []
        assert shop.redis.get("winback:current") is None


def test_a_cold_start_explores_within_the_budget_and_says_so(servers):
    """No offer was ever made; only one of the two coupons may be given."""
    with copy_of(sample_template(servers), servers) as shop:
        shop.query("truncate raw.coupon_offers; update raw.orders set coupon_cost = 0")
        run = shop.daily_run("cold", allowed_coupons=["save5"]).go(until="publish")
        allocation = run.results["allocate_coupons"]
        assert allocation["is_cold_start"]
        assert "No coupon can be judged from the past offers" in allocation["in_words"]
        given = shop.query(
            "select coupon_id, is_exploration, count(*)::int, sum(expected_cost) "
            "from winback.recommendations where coupon_id <> 'none' group by 1, 2"
        )
        assert [row[:2] for row in given] == [("save5", True)]
        assert 0 < given[0][3] <= allocation["budget"]


ODD = """
-- only one coupon was ever offered, and never to nobody
delete from raw.coupon_offers where coupon_id <> 'save5';
-- the last purchase of everybody is of a category that no closed window has seen
update raw.order_items set category = 'submarines' where order_id in (
    select order_id from raw.orders where ordered_at >= '2024-07-28'
);
-- contacts on either side of the gap of a week
delete from raw.coupon_offers where offered_at >= '2024-07-22';
insert into raw.coupon_offers values
    ('a week ago', 'c00001', 'save5', '2024-07-22 23:59+00', null),
    ('six days ago', 'c00002', 'save5', '2024-07-23 00:00+00', null),
    ('not a contact', 'c00003', 'none', '2024-07-28 12:00+00', null),
    ('in the future', 'c00004', 'save5', '2024-07-29 00:00+00', null);
update raw.customers set can_contact = customer_id <> 'c00005';
-- somebody who only ever gave something back
insert into raw.orders values ('back', 'returner', '2024-07-01', -20, -5, 0, null);
"""


def test_odd_data_are_decided_upon_by_the_contracts_rules(servers):
    with copy_of(sample_template(servers), servers) as shop:
        shop.query(ODD)
        run = shop.daily_run("odd").go(until="publish")
        reasons = dict(
            shop.query("select customer_id, suppression_reason from winback.recommendations")
        )
        assert run.results["plan"]["decisions"] > 0
        assert shop.query("select * from winback.categories where category = 'submarines'")
        contacted = [name for name, reason in reasons.items() if reason == "recent_contact"]
        assert contacted == ["c00002"]
        assert reasons["c00005"] == "no_consent"
        assert reasons["returner"] == "no_purchase_yet"
        without_order = "select customer_id from raw.customers where customer_id >= 'c00300'"
        for (customer_id,) in shop.query(without_order):
            assert reasons[customer_id] == "no_purchase_yet"
        given = shop.query(
            "select distinct coupon_id from winback.recommendations "
            "where coupon_id <> 'none' and not is_exploration"
        )
        assert {coupon_id for (coupon_id,) in given} <= {"save5"}, "the others have no record"
