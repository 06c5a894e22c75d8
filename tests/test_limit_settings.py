"""Limits from the settings to the decisions: what an analyst writes, and what comes of it."""

from datetime import date

import numpy as np
import pytest
from pipeline import copy_of, sample_template
from test_decision import EXPERIMENT, world

from winback.models.allocation import pick
from winback.models.decision import decide
from winback.models.errors import DataError, SettingsError
from winback.models.limits import Limit
from winback.models.settings import load_settings

MONDAY = date(2024, 1, 1)
SLIPPING = {"name": "slipping", "segment": {"days_since_last_purchase": [28, 56]}, "floor": 200}
TEN_OFF = {"name": "ten off", "coupons": ["c10"], "unit": "contacts", "ceiling": 500}


def test_limits_are_read_from_json_text():
    text = (
        '[{"name": "slipping", "segment": {"days_since_last_purchase": [28, 56]}, "floor": 200},'
        ' {"name": "ten off", "coupons": ["c10"], "unit": "contacts", "ceiling": 500}]'
    )
    settings = load_settings({}, {"WINBACK_LIMITS": text})
    assert settings == load_settings({"limits": [SLIPPING, TEN_OFF]}, {})
    slipping, ten_off = settings.limits
    assert slipping.segment == {"days_since_last_purchase": (28, 56)}
    assert (slipping.unit, slipping.ceiling) == ("spend", None)
    assert (ten_off.coupons, ten_off.ceiling) == (("c10",), 500)
    assert settings.config_hash != load_settings({}, {}).config_hash


WRONG = [
    ([SLIPPING, SLIPPING], "different names, came ['slipping'] repeatedly"),
    ([{**SLIPPING, "name": "budget"}], "another name than budget"),
    ([{"name": "x", "coupons": ["c10"]}], "a floor or a ceiling in the limit x"),
    ([{**SLIPPING, "ceiling": 100}], "in the limit slipping, came 200 and 100"),
    ([{**SLIPPING, "segment": {"age": [1, 2]}}], "state feature in the limit slipping: ['age']"),
    (
        [{**SLIPPING, "segment": {"p_alive": [0.9, 0.1]}}],
        "to rise in the limit slipping, came [0.9",
    ),
    ([{**SLIPPING, "floor": -1}], "limits.0.floor: Input should be greater than or equal to 0"),
    ([{**TEN_OFF, "unit": "clicks"}], "limits.0.unit: Input should be 'spend' or 'contacts'"),
    ([{**TEN_OFF, "segments": {}}], "limits.0.segments: Extra inputs are not permitted"),
    ("a day: 500", "limits"),
]


@pytest.mark.parametrize(("limits", "message"), WRONG)
def test_wrong_limits_say_what_is_wrong(limits, message):
    with pytest.raises(SettingsError) as error:
        load_settings({"limits": limits}, {})
    assert message in str(error.value)


def some_limits(n=1000):
    even, every = np.arange(n) % 2 == 0, np.ones(3, bool)
    return [
        Limit("even", even, every, "spend", ceiling=30.0),
        Limit("odd", ~even, every, "spend", floor=60.0),
        Limit("large", np.ones(n, bool), np.arange(3) == 2, "contacts", ceiling=20),
        Limit("closed", np.arange(n) < 100, every, "contacts", ceiling=0),
    ]


@pytest.mark.parametrize("supported", [0.0, 0.9])
def test_decisions_keep_every_limit_explorers_included(supported):
    """Oracle: the limits' own sums; exploration takes its share of a ceiling, no more."""
    customers, outlook = world(supported=supported)
    limits = some_limits()
    if supported == 0:  # a cold start has nothing to keep a floor with
        limits[1] = Limit("odd", limits[1].customers, limits[1].coupons, "spend", ceiling=60.0)
    decisions = decide(customers, outlook, EXPERIMENT, 200.0, MONDAY, limits)
    share = 1.0 if decisions.is_cold_start else EXPERIMENT.exploration_budget_share
    assert decisions.is_exploration.any()
    for limit in limits:
        used = pick(limit.weight(outlook.cost), decisions.coupon)
        assert limit.floor <= used.sum() <= limit.ceiling, limit.name
        assert used[decisions.is_exploration].sum() <= share * limit.ceiling
    assert decisions.expected_cost.sum() <= 200
    assert set(decisions.allocation.limit_prices) == {limit.name for limit in limits}


def test_propensities_are_those_of_the_limited_policy():
    """Nobody draws a coupon that they may not get: the closed customers get none for sure."""
    customers, outlook = world()
    decisions = decide(customers, outlook, EXPERIMENT, 200.0, MONDAY, some_limits())
    assert (decisions.propensity[:100] == 1).all()
    assert (decisions.propensity > 0).all()


def test_floors_beyond_reach_stop_the_run():
    customers, outlook = world()
    limits = [Limit("odd", np.arange(1000) % 2 == 1, np.ones(3, bool), "spend", floor=1e6)]
    with pytest.raises(DataError, match="limit odd to reach its floor"):
        decide(customers, outlook, EXPERIMENT, 200.0, MONDAY, limits)


def check_what_speaks_against_the_next_best(shop):
    """Oracle: `worth` means that the next best brings no more than the coupon chosen."""
    rows = shop.query(
        """
        select
            next_best_behind, next_best_limits,
            next_best_long_run_uplift <= long_run_uplift, next_best_coupon_id
        from winback_work.recommendations
        """
    )
    compared = [row[:3] for row in rows if row[3] is not None]
    assert {row[:2] for row in rows if row[3] is None} == {(None, None)}
    assert compared
    for behind, limits, is_no_better in compared:
        assert (behind == "worth") == is_no_better
        assert limits in (None, "lapsed", "a day", "lapsed, a day")
        assert limits or behind not in ("limits", "budget_and_limits")


def test_a_daily_run_keeps_them(servers):
    """Oracle: SQL over the recommendations, and the contacts that the shop's offers show."""
    limits = [
        {"name": "lapsed", "segment": {"days_since_last_purchase": [14, None]}, "ceiling": 3.0},
        {"name": "a day", "unit": "contacts", "ceiling": 12},
    ]
    with copy_of(sample_template(servers), servers) as shop:
        # many explorers, since 300 customers prove no coupon
        bold = {"exploration_rate": 0.5, "exploration_budget_share": 1.0}
        run = shop.daily_run(limits=limits, max_contacts=1, contact_gap_days=0, pacing=True, **bold)
        run.go(until="allocate_coupons")
        [(lapsed, given)] = shop.query(
            """
            select
                sum(r.expected_cost) filter (where s.days_since_last_purchase >= 14),
                count(*) filter (where r.coupon_id <> 'none')
            from winback_work.recommendations r
            left join winback.customer_snapshots s
                on s.customer_id = r.customer_id and s.snapshot_date = r.as_of
            """
        )
        assert 0 < given <= 12
        assert lapsed <= 3.0 + 1e-9
        wrong = """
            select count(*) filter (where (contacts_in_window >= 1) <> (
                suppression_reason is not null and suppression_reason = 'recent_contact'
            )), count(*) filter (where contacts_in_window >= 1)
            from winback_work.recommendations
            inner join winback.customers_known using (as_of, customer_id)
            where can_contact and has_purchased
        """
        [(differing, contacted)] = shop.query(wrong)
        assert (differing, contacted > 0) == (0, True)
        assert set(run.results["allocate_coupons"]["limit_prices"]) == {"lapsed", "a day"}
        used = run.results["allocate_coupons"]["limits_used"]
        assert used == {"lapsed": pytest.approx(lapsed), "a day": given}
        check_what_speaks_against_the_next_best(shop)
        assert "by offers already out" in run.results["allocate_coupons"]["budget_source"]
