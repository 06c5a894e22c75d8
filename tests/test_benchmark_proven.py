"""Worlds large enough for proof, from their source tables to winback's coupons.

In a log of 8,000 customers and 20 weeks the lift is over ten standard errors; three are proof.
What coupons cost is seen to a fifth there (to some percent in 20,000 × 40), so much of the budget
is kept back; in half of that log the plan's worth is seen too dimly to be held to account.
Both worlds are the first of their families. The Transformer's forecast is left out, for time.
"""

import pytest

from winback.operators.benchmark import BenchmarkOptions, run_world
from winback.operators.benchmark_worlds import BenchmarkWorld

CUSTOMERS, WEEKS = 8000, 20
LEARNERS = ("S-learner", "T-learner", "DR-learner")
FAST = {"epochs": 1, "use_transformer": False}


def run(family: str, url: str, *policies: str) -> dict[str, dict]:
    """Rows by policy."""
    options = BenchmarkOptions(url, policies=policies, settings=FAST)
    rows = run_world(BenchmarkWorld(family, 0, CUSTOMERS, WEEKS), options, print)
    return {row["policy"]: row for row in rows}


@pytest.fixture(scope="module")
def confounded(warehouse_url) -> dict[str, dict]:
    return run("confounded", warehouse_url, "random", *LEARNERS, "winback")


@pytest.fixture
def ours(confounded) -> dict:
    return confounded["winback"]


def test_a_proven_plan_gives_coupons_and_beats_every_learner(confounded, ours):
    """Oracle: the known world, whose best coupons bring 100 percent."""
    assert ours["given"] > 0
    assert ours["percent"] > 20
    assert ours["percent"] > max(confounded[name]["percent"] for name in LEARNERS)


def test_it_leaves_sleeping_dogs_alone(confounded, ours):
    """Oracle: whom a coupon harms in the known world, and a lottery for the same budget."""
    assert ours["harm"] < confounded["random"]["harm"] - 0.1


def test_it_keeps_to_the_budget_and_knows_about_what_it_spends(ours):
    """Oracle: the known world's expected cost of the coupons given. Measured here and in the next
    two worlds: 0.94, 0.97 and 0.96 of it stated; 0.75, 0.73 and 1.00 of the budget spent."""
    assert 0 < ours["stated_spend"] <= ours["budget"] + 1e-6
    assert ours["stated_spend"] == pytest.approx(ours["spend"], rel=0.15)
    assert 0.5 <= ours["spend_share"] <= 1.02


def test_its_chances_of_a_purchase_are_those_of_the_world(ours):
    """Oracle: slope 1 of the true chances on the stated ones, over tenths of the customers."""
    assert ours["purchase_slope"] == pytest.approx(1, abs=0.2)


def test_the_interval_of_its_worth_holds_the_truth(ours):
    """Oracle: the exact worth of the plan's coupons in the hidden states of the log."""
    assert ours["value_true"] > 0
    assert ours["value_lower"] < ours["value_true"] < ours["value_upper"]


def test_where_coupons_do_nothing_a_log_as_large_proves_nothing(warehouse_url):
    """Oracle: a null world. No coupon is drawn by chance, so that all that are given are chosen."""
    found = run("null", warehouse_url, "winback")["winback"]
    assert found["budget"] > 0
    assert found["given"] <= 0.01
