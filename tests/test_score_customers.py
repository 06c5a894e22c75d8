"""Scoring in parts, on a real server. Oracle: the same customers scored in one pass."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from pipeline import checked_template, copy_of

from winback.models.errors import NotFittedError
from winback.models.settings import load_settings
from winback.operators import score_customers
from winback.operators.allocate_coupons import allocate
from winback.operators.artifacts import SCORES
from winback.operators.progress import EVENTS_FILE
from winback.operators.run import Run
from winback.operators.score_customers import list_shards, read_scored, score_shard

DECIDED = """
select customer_id, decision_id, coupon_id, treatment_group, suppression_reason, state
from winback_work.recommendations order by customer_id
"""
MONEY = """
select expected_profit, expected_cost, expected_uplift, q_value, long_run_uplift, propensity
from winback_work.recommendations order by customer_id
"""


@pytest.fixture
def shop(servers):
    with copy_of(checked_template(servers), servers) as shop:
        yield shop


def run_of(shop, **settings):
    chosen = load_settings({"artifacts_uri": shop.artifacts.as_uri(), **settings})
    return Run(shop.url, shop.as_of, "first", chosen)


def test_parts_give_the_same_recommendations_as_one_pass(shop):
    one_pass, money = shop.query(DECIDED), np.array(shop.query(MONEY), dtype=float)
    run = run_of(shop, shard_customers=45)
    parts = list_shards(run)
    assert len(parts) == 7  # of 315 customers
    sizes = [score_shard(run, **part) for part in parts]
    assert sum(sizes) == len(one_pass)
    assert min(sizes) > 20
    allocate(run)
    assert shop.query(DECIDED) == one_pass
    in_parts = np.array(shop.query(MONEY), dtype=float)
    assert in_parts == pytest.approx(
        money, rel=1e-5, abs=1e-6
    )  # the Transformer's sums are float32


def test_a_part_that_is_missing_is_named_and_scored_alone(shop):
    run = run_of(shop, shard_customers=120)
    parts = list_shards(run)
    for part in parts[:-1]:
        score_shard(run, **part)
    with pytest.raises(NotFittedError, match=r"scores_2_of_3\.parquet, found nothing"):
        read_scored(run, [0, 1])
    score_shard(run, **parts[-1])
    scored = read_scored(run, [0, 2])
    assert scored.margin.shape == (len(shop.query(DECIDED)), 2)
    assert list(scored.customer_id) == sorted(scored.customer_id)


KILLED = """
import json, os, signal, sys
from winback.models.settings import load_settings
from winback.operators import score_customers
from winback.operators.run import Run
url, as_of, settings, part = json.loads(sys.stdin.read())
score_customers._to_table = lambda scored: os.kill(os.getpid(), signal.SIGKILL)
score_customers.score_shard(Run(url, as_of, "first", load_settings(settings)), **part)
"""


def test_a_part_that_is_killed_is_scored_again_and_the_others_stay(shop):
    """Oracle: the same parts, nobody killed; the others' files are not written again."""
    run = run_of(shop, shard_customers=120)
    parts = list_shards(run)
    for part in parts:
        score_shard(run, **part)
    undisturbed = read_scored(run, [0, 1])
    files = [run.artifacts.folder / SCORES.format(**part) for part in parts]
    files[1].unlink()
    written = [file.stat().st_mtime for file in (files[0], files[2])]
    order = [run.url, run.as_of, run.settings.model_dump(mode="json"), parts[1]]
    killed = subprocess.run([sys.executable, "-c", KILLED], input=json.dumps(order), text=True)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(NotFittedError, match=r"scores_1_of_3\.parquet, found nothing"):
        read_scored(run, [0, 1])
    score_shard(run, **parts[1])
    again = read_scored(run, [0, 1])
    assert [file.stat().st_mtime for file in (files[0], files[2])] == written
    assert (again.customer_id == undisturbed.customer_id).all()
    assert (again.margin == undisturbed.margin).all()


def test_rates_are_in_the_log_and_in_the_progress_of_a_waiting_command(
    shop, caplog, tmp_path, monkeypatch
):
    events = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_FILE, str(events))
    run = run_of(shop, shard_customers=200)
    with caplog.at_level("INFO", logger="winback"):
        customers = score_shard(run, **list_shards(run)[1])
    assert f"part 2 of 2: {customers} customers scored, " in caplog.text
    (event,) = map(json.loads, events.read_text().splitlines())
    assert (event["part"], event["parts"], event["customers"]) == (2, 2, customers)
    assert event["rate"] > 0


def test_a_part_without_customers_changes_nothing(shop, monkeypatch):
    """Parts are drawn by hash, so one may be empty."""
    run = run_of(shop)
    whole, empty = {"shard": 0, "shards": 1}, {"shard": 5, "shards": 1_000_000}
    assert score_shard(run, **whole) > 0
    assert score_shard(run, **empty) == 0
    before = read_scored(run, [0, 1])
    monkeypatch.setattr(score_customers, "list_shards", lambda _: [empty, whole])
    after = read_scored(run, [0, 1])
    assert list(after.customer_id) == list(before.customer_id)
    assert (after.margin == before.margin).all()
