"""A period's money over its runs: simulations whose truth is known, cases by hand, real tables."""

from datetime import date

import numpy as np
import psycopg
import pytest

from winback.models.errors import DataError
from winback.models.pacing import (
    OpenOffers,
    Period,
    committed,
    paced_share,
    redemption_timing,
    share_of_period,
)
from winback.models.settings import load_settings
from winback.operators.budget import paced_budget, run_budget
from winback.operators.run import Run
from winback.operators.warehouse import ensure_output_tables

AMOUNT, FACE, REDEEMED = 100_000.0, 10.0, 0.2
EVEN, EARLY, LATE = (
    lambda days: np.full(days, 1 / days),
    lambda days: 0.8 ** np.arange(days) / (0.8 ** np.arange(days)).sum(),
    lambda days: np.arange(1.0, days + 1) / np.arange(1.0, days + 1).sum(),
)


def paced(period, cadence, offers, timing):
    return paced_share(period, cadence, offers, timing)


def plain(period, cadence, offers, timing):
    return share_of_period(period, cadence)


def spent_share(rule, period_days, cadence, timing, seed, periods=4, surprise=0.0):
    """Each period's spending over its amount; coupons are redeemed by chance, on later days.

    The truth: a fifth of the offers are redeemed, on the days that ``timing`` says. ``surprise``:
    relative standard deviation, run by run, of the share redeemed around that fifth.
    """
    rng, days, window = np.random.default_rng(seed), periods * period_days, len(timing)
    spending, sent = np.zeros(days + window), []
    for today in range(0, days, cadence):
        start = today // period_days * period_days
        period = Period(AMOUNT, spending[start:today].sum(), start + period_days - today)
        out = [(today - day, cost) for day, cost in sent if today - day < window]
        ages = np.array([age for age, _ in out], np.int64)
        offers = OpenOffers(ages, np.array([cost for _, cost in out], np.float64))
        count = int(rule(period, cadence, offers, timing) / (FACE * REDEEMED))
        sent.append((today, count * FACE * REDEEMED))
        luck = rng.gamma(surprise**-2, surprise**2) if surprise else 1.0
        redeemed = rng.multinomial(rng.binomial(count, min(1.0, REDEEMED * luck)), timing)
        spending[today : today + window] += redeemed * FACE
    return spending[:days].reshape(periods, period_days).sum(axis=1) / AMOUNT


@pytest.mark.parametrize("timing", [EVEN, EARLY, LATE], ids=["even", "early", "late"])
@pytest.mark.parametrize(
    ("period_days", "cadence", "window"), [(28, 1, 7), (28, 1, 14), (14, 1, 7), (28, 7, 7)]
)
def test_paced_spending_ends_at_the_amount(period_days, cadence, window, timing):
    """Oracle: a simulation whose redemptions are known; four periods, three draws."""
    ends = [spent_share(paced, period_days, cadence, timing(window), seed) for seed in range(3)]
    assert np.max(ends) <= 1.02
    assert np.min(ends) >= 0.98


def test_a_period_as_short_as_the_window_is_paced_too():
    ends = [spent_share(paced, 7, 1, EVEN(7), seed) for seed in range(3)]
    assert np.max(ends) <= 1.02
    assert np.min(ends) >= 0.98


@pytest.mark.parametrize(
    ("period_days", "window", "timing", "least"), [(7, 7, EVEN, 1.2), (28, 14, LATE, 1.04)]
)
def test_the_plain_rule_underspends_one_period_and_overspends_the_next(
    period_days, window, timing, least
):
    """The same simulations: what the last runs give away falls on the next period."""
    ends = spent_share(plain, period_days, 1, timing(window), seed=0)
    assert ends[0] < 0.96
    assert ends[1] > least


@pytest.mark.parametrize("timing", [EVEN, EARLY, LATE], ids=["even", "early", "late"])
def test_noisy_spending_of_daily_runs_ends_near_the_amount(timing):
    """Oracle: the simulation's own redemptions, which differ from the forecast by 20 % run by run.

    Four weeks of daily runs, redeemed over two weeks, period after period, ten draws: the paced
    rule keeps every period's total, and errs less than half as much as the plain one, which
    exceeds it wherever most redemptions come late.
    """
    ends = {
        rule: np.array([spent_share(rule, 28, 1, timing(14), i, surprise=0.2) for i in range(10)])
        for rule in (paced, plain)
    }
    assert ends[paced].max() <= 1.02
    assert ends[paced].min() >= 0.9
    error = {rule: np.sqrt(((end - 1) ** 2).mean()) for rule, end in ends.items()}
    assert error[paced] < 0.5 * error[plain]
    if timing is LATE:
        assert (ends[plain][:, 1:].max(axis=1) > 1.02).all()  # in each draw of four periods


def test_luck_in_the_last_days_does_not_make_a_run_of_several_days_money():
    """By hand: 1,000 left on the last day; a seventh of its cost would fall into the period."""
    offers = OpenOffers(np.zeros(0, np.int64), np.zeros(0))
    assert paced_share(Period(28_000, 27_000, 1), 1, offers, EVEN(7)) == pytest.approx(2_000)


def test_open_offers_are_taken_off_by_hand():
    """700 sent yesterday and 700 six days ago, even timing: 6/7 and 1/7 are still to come."""
    offers = OpenOffers(np.array([1, 6]), np.array([700.0, 700.0]))
    assert committed(offers, EVEN(7), days_left=20) == pytest.approx(700)
    assert committed(offers, EVEN(7), days_left=2) == pytest.approx(300)  # two days, and one
    period = Period(10_000, 3_000, 20)
    runs = 14 + (1 + 2 + 3 + 4 + 5 + 6) / 7  # what falls into the period of 20 runs' cost
    assert paced_share(period, 1, offers, EVEN(7)) == pytest.approx((7_000 - 700) / runs)


def test_without_offers_and_delay_the_paced_rule_is_the_plain_one():
    nothing = OpenOffers(np.zeros(0, np.int64), np.zeros(0))
    for days_left in (1, 3, 28):
        period = Period(1_000, 100, days_left)
        at_once = paced_share(period, 1, nothing, np.array([1.0]))
        assert at_once == pytest.approx(share_of_period(period, 1))


def test_nothing_is_left_to_share_where_more_is_out_than_left():
    offers = OpenOffers(np.array([1]), np.array([5_000.0]))
    assert paced_share(Period(1_000, 500, 10), 1, offers, EVEN(7)) == 0
    assert paced_share(Period(1_000, 2_000, 10), 1, offers, EVEN(7)) == 0


def test_timing_is_measured_where_enough_is_known():
    cost = np.array([600.0, 300.0, 100.0])
    assert redemption_timing(cost, 100).tolist() == [0.6, 0.3, 0.1]
    assert redemption_timing(cost, 99).tolist() == pytest.approx([1 / 3] * 3)
    assert redemption_timing(np.zeros(2), 0).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("offers", "timing", "message"),
    [
        (OpenOffers(np.array([0]), np.array([1.0])), EVEN(7), "an age of 1 day or more"),
        (OpenOffers(np.array([1]), np.array([np.nan])), EVEN(7), "expected cost of 0 or more"),
        (OpenOffers(np.array([1]), np.array([1.0])), np.ones(7), "that sum to 1, came"),
        (OpenOffers(np.array([1]), np.array([1.0])), np.zeros(0), "that sum to 1, came"),
    ],
)
def test_bad_input(offers, timing, message):
    with pytest.raises(DataError) as error:
        paced_share(Period(100, 0, 10), 1, offers, timing)
    assert message in str(error.value)


STAGING = """
create schema winback_staging;
create table winback_staging.stg_orders (
    customer_id text, ordered_on date, coupon_cost numeric, coupon_offer_id text
);
create table winback_staging.stg_budgets (period_start date, period_end date, amount numeric);
create table winback_staging.stg_coupon_offers (
    offer_id text, customer_id text, coupon_id text, offered_on date
);
insert into winback_staging.stg_budgets values ('2024-06-01', '2024-06-29', 2800);
"""
DECISION = """
insert into winback.decisions values (
    %(id)s, %(day)s, 'r', %(id)s, %(coupon)s, 1, 'treatment', false, %(day)s, %(end)s, now()
);
"""
RECOMMENDATION = """
insert into winback.recommendations (
    as_of, run_id, customer_id, decision_id, coupon_id, treatment_group, is_exploration,
    propensity, expected_profit, baseline_profit, expected_uplift, expected_cost, q_value,
    long_run_uplift, reason, valid_from, valid_to, model_version, config_hash, code_version,
    created_at
) values (
    %(day)s, 'r', %(id)s, %(id)s, %(coupon)s, 'treatment', false, 1, 0, 0, 0, %(cost)s, 0, 0, '',
    %(day)s, %(end)s, '', '', '', now()
);
"""


@pytest.fixture
def run(warehouse_url):
    with psycopg.connect(warehouse_url, autocommit=True) as connection:
        connection.execute(
            "drop schema if exists winback, winback_work, winback_staging cascade"
            if _has(connection, "winback")
            else "select 1"
        )
        connection.execute(STAGING)
    ensure_output_tables(warehouse_url, "winback", "winback_work")
    return Run(warehouse_url, "2024-06-11", "r", load_settings({}, {}))


def _has(connection, schema):
    query = "select 1 from information_schema.schemata where schema_name = %s"
    return connection.execute(query, [schema]).fetchone()


def decide(run, name, day, cost, coupon="c10"):
    start = date.fromisoformat(day)
    values = {"id": name, "day": start, "coupon": coupon, "cost": cost}
    values["end"] = date.fromordinal(start.toordinal() + 7)
    with psycopg.connect(run.url, autocommit=True) as connection:
        connection.execute(DECISION, values)
        connection.execute(RECOMMENDATION, values)


def execute(run, statement):
    with psycopg.connect(run.url, autocommit=True) as connection:
        connection.execute(statement)


PERIOD = Period(2_800, 0, 18)


def test_a_shop_without_decisions_has_its_whole_period(run):
    """By hand: 18 days left, of which the last six take (1 + … + 6)/7 of their runs' cost."""
    assert run_budget(run).amount == pytest.approx(2_800 / 18)
    budget = paced_budget(run, PERIOD, "all left")
    assert budget.amount == pytest.approx(2_800 / (12 + 21 / 7))
    assert budget.source == "all left, 0.00 of it expected by offers already out"


def test_open_decisions_of_the_warehouse_are_taken_off(run):
    """Of five decisions two are open coupons: 6/7 of 70 and 1/7 of 140 are to come."""
    decide(run, "yesterday", "2024-06-10", 70)
    decide(run, "six days ago", "2024-06-05", 140)
    decide(run, "over", "2024-06-04", 1_000)
    decide(run, "of this run", "2024-06-11", 1_000)
    decide(run, "nothing sent", "2024-06-10", 0, coupon="none")
    budget = paced_budget(run, PERIOD, "all left")
    assert "80.00 of it expected" in budget.source
    assert budget.amount == pytest.approx((2_800 - 80) / 15)


def test_timing_comes_from_redemptions_of_past_offers(run):
    """Two hundred of 210 orders come on the first day: nothing is to come of a week-old offer.

    An order of another customer, one that names another offer, one after the window and one of
    an offer of long ago do not count.
    """
    execute(
        run,
        """
        insert into winback_staging.stg_coupon_offers
            select 'o' || i, 'c' || i, 'c10', '2024-06-01' from generate_series(1, 210) as i;
        insert into winback_staging.stg_coupon_offers
            values ('old', 'ancient', 'c10', '2023-01-01');
        insert into winback_staging.stg_orders
            select 'c' || i, '2024-06-01', 2, null from generate_series(1, 200) as i;
        insert into winback_staging.stg_orders
            select 'c' || i, '2024-06-03', 2, 'o' || i from generate_series(201, 210) as i;
        insert into winback_staging.stg_orders values
            ('stranger', '2024-06-07', 99, null), ('c1', '2024-06-07', 99, 'another'),
            ('c1', '2024-06-08', 99, null), ('ancient', '2023-01-07', 99, null)
        """,
    )
    decide(run, "yesterday", "2024-06-10", 210)
    budget = paced_budget(run, PERIOD, "all left")
    assert "10.00 of it expected" in budget.source  # 10 of 210 orders come after the first day
