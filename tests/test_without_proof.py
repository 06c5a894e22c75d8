"""A log with many offers that do not prove that coupons sell: what the daily run makes of it.

Oracles: counts of the log in SQL, the settings' share of the budget, and the same run as if proven.
"""

import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from pipeline import Shop, checked_template, copy_of

from winback.models.settings import load_settings
from winback.operators.allocate_coupons import allocate
from winback.operators.artifacts import PLAN, SCORES
from winback.operators.q_store import CouponReader, connect
from winback.operators.run import Run

MIN_VISITS = load_settings().min_visits
ONE_SHARD = SCORES.format(shard=0, shards=1)
DECIDED = """
select coupon_id, is_exploration, suppression_reason, reason, count(*)::int, sum(expected_cost)
from winback_work.recommendations group by 1, 2, 3, 4
"""


@pytest.fixture(scope="module")
def shop(servers) -> Iterator[Shop]:
    """The run ``first`` is ready to be published."""
    with copy_of(checked_template(servers), servers) as shop:
        assert not plan_of(shop)["lift"]["is_proven"], "300 customers are too few"
        yield shop


def first(shop: Shop, **chosen: float) -> Run:
    settings = load_settings({"artifacts_uri": shop.artifacts.as_uri(), **chosen})
    return Run(shop.url, shop.as_of, "first", settings)


def plan_of(shop: Shop) -> dict:
    return first(shop).artifacts.read_json(PLAN)


def test_the_log_has_offers_enough(shop):
    offers = "select coupon_id, count(*) from raw.coupon_offers group by 1"
    assert min(count for _, count in shop.query(offers)) > 10 * MIN_VISITS


def test_coupons_go_out_by_chance_only_and_for_the_usual_share_of_the_budget(shop):
    figures = allocate(first(shop))
    rows = shop.query(DECIDED)
    assert {row[1] for row in rows if row[0] != "none"} == {True}
    assert not figures["is_cold_start"]
    assert not figures["is_proven"]
    spent = sum(row[5] for row in rows)
    share = load_settings().exploration_budget_share
    assert 0 < spent == pytest.approx(figures["expected_spend"])
    assert spent <= share * figures["budget"] * figures["spendable"] + 1e-9
    assert "do not show yet that coupons make customers buy" in figures["in_words"]


def test_customers_are_told_that_it_is_the_proof_that_is_missing(shop):
    allocate(first(shop))
    rows = shop.query(DECIDED)
    no_uplift = {row[3] for row in rows if row[2] == "no_uplift"}
    words = (
        r"No coupon: past offers do not show yet that coupons make customers buy "
        r"\(last purchase .+; (under |over )?\d+ % likely to buy within 7 days\)\."
    )
    assert no_uplift
    assert all(re.fullmatch(words, reason) for reason in no_uplift)
    told = {reason: sum(row[4] for row in rows if row[2] == reason) for _, _, reason, *_ in rows}
    assert told["no_uplift"] > told.get("low_support", 0), "most customers are in usual situations"
    assert "budget" not in told


def test_the_verdict_of_the_plan_is_what_decides(shop):
    """Scores that promise a profit, the flag as it is and turned: then coupons are chosen."""
    place, plan = first(shop).artifacts, plan_of(shop)
    scored = place.read_table(ONE_SHARD)
    place.write_table(ONE_SHARD, with_coupons_that_sell(scored, 100.0))
    try:
        assert allocate(first(shop))["chosen"] == 0
        place.write_json(PLAN, {**plan, "lift": {**plan["lift"], "is_proven": True}})
        figures = allocate(first(shop))
        assert figures["is_proven"]
        assert figures["chosen"] > 0
        chosen = [row for row in shop.query(DECIDED) if row[0] != "none" and not row[1]]
        assert sum(row[4] for row in chosen) == figures["chosen"]
    finally:
        place.write_table(ONE_SHARD, scored)
        place.write_json(PLAN, plan)
        allocate(first(shop))


def with_coupons_that_sell(scored: pa.Table, more: float) -> pa.Table:
    """A coupon of any kind adds ``more`` to a customer's margin."""
    margin = scored["margin"].combine_chunks()
    width = margin.type.list_size
    raised = margin.flatten().to_numpy().reshape(-1, width) + np.where(np.arange(width), more, 0.0)
    column = pa.FixedSizeListArray.from_arrays(pa.array(raised.ravel()), width)
    return scored.set_column(scored.column_names.index("margin"), "margin", column)


def test_the_q_table_counts_offers_and_serves_none_alone(shop):
    """In Redis every state of the table holds `none` alone, which readers answer."""
    [(offers, most)] = shop.query(
        "select sum(visits)::int, max(support)::int from winback_work.q_table "
        "where coupon_id <> 'none'"
    )
    assert offers > MIN_VISITS
    assert most > MIN_VISITS
    supported = "select distinct coupon_id from winback_work.q_table where is_supported"
    assert shop.query(supported) == [("none",)]
    shop.daily_run().execute("publish")
    reader = CouponReader(connect(shop.redis_url))
    rows = shop.query(
        "select to_jsonb(scores) || to_jsonb(snapshots) from winback.customer_snapshots snapshots "
        "join winback.customer_scores scores using (customer_id) where snapshot_date = %s",
        shop.as_of,
    )
    assert rows
    for (customer,) in rows:
        assert set(reader.values(customer)) == {"none"}
        assert reader.coupon(customer) == "none"
