"""The rival policies, on logs whose right answer is known."""

from dataclasses import replace

import numpy as np
import pytest

from winback.models import peers_reference
from winback.models.allocation import pick
from winback.models.errors import DataError, SettingsError
from winback.models.peers import decide, fifth, policies
from winback.models.peers_data import PeerData
from winback.models.peers_judgement import Stated, bounds, decile_slope, judge
from winback.models.peers_learners import Learners
from winback.models.peers_tabular import GAMMA, tabular_q
from winback.models.world import WorldConfig, make_world
from winback.models.world_log import record_history
from winback.models.world_truth import week_problem

NAMES = (
    *("days_since_last_purchase", "purchases_last_30d", "avg_order_value", "remaining_budget_pct"),
    *("coupons_last_30d", "frequency", "monetary_value", "category_id"),
)
FACES = np.array([0.0, 4.0, 8.0])
CONTACT = np.array([0.0, 0.05, 0.05])
MARGIN = 30.0
LOYAL, PERSUADABLE = 20.0, 80.0  # average order value: the only feature that tells them apart
CHANCE = {LOYAL: (0.5, 0.5, 0.5), PERSUADABLE: (0.05, 0.35, 0.6)}  # P(buy) per coupon
BUDGET = 500.0


@pytest.fixture(scope="module", autouse=True)
def _quick_reference():
    """Its network reads random sequences: fewer rows of them change nothing that is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers_reference, "TRAINING_ROWS", 500)
        yield


def shop(seed: int = 0, chance: dict[float, tuple[float, ...]] = CHANCE) -> PeerData:
    """1,000 customers × 12 weeks: half buy anyway, half only with a coupon; offers by chance."""
    rng = np.random.default_rng(seed)
    n, weeks = 1000, 12
    customer, day = np.tile(np.arange(n), weeks), np.repeat(np.arange(weeks) * 7, n)
    kind = np.where(np.arange(n) % 2, PERSUADABLE, LOYAL)
    coupon = rng.choice(3, n * weeks, p=[0.5, 0.25, 0.25])
    table = np.where(kind[:, None] == LOYAL, chance[LOYAL], chance[PERSUADABLE])
    purchased = rng.random(n * weeks) < table[customer, coupon]
    redeemed = purchased & (rng.random(n * weeks) < 0.8)
    return PeerData(
        names=NAMES,
        features=_features(kind[customer], rng),
        coupon=coupon,
        propensity=np.array([0.5, 0.25, 0.25])[coupon],
        purchased=purchased,
        margin=np.where(purchased, MARGIN, 0.0),
        cost=np.where(redeemed, FACES[coupon], 0.0),
        customer=customer,
        day=day,
        now=_features(kind, rng),
        face_values=FACES,
        contact_costs=CONTACT,
        budget=BUDGET,
    )


def _features(kind: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The order value is the kind; everything else is noise that means nothing."""
    rows = len(kind)
    days, orders = rng.integers(1, 60, rows), rng.integers(0, 5, rows)
    whole, offers = np.ones(rows), rng.integers(0, 4, rows)
    frequency, category = rng.integers(0, 12, rows), rng.integers(1, 4, rows)
    money = rng.uniform(10, 40, rows)
    columns = [days, orders, kind, whole, offers, frequency, money, category]
    return np.column_stack(columns).astype(np.float64)


@pytest.fixture(scope="module")
def data() -> PeerData:
    return shop()


@pytest.fixture(scope="module")
def learners(data) -> Learners:
    return Learners(data)


@pytest.mark.parametrize("name", list(policies(FACES)))
def test_no_policy_exceeds_the_budget(name, data, learners):
    """Oracle: the sum of the forecast costs that all policies are given."""
    decision = decide(name, data, learners)
    assert decision.coupon.shape == (1000,)
    assert pick(learners.cost, decision.coupon).sum() <= BUDGET
    assert decision.coupon.any() or name in ("none", "reference system")


def test_the_cost_is_what_redeemed_coupons_cost(data, learners):
    """Oracle: face value × P(buy) × P(redeem) of the simulation."""
    loyal = data.column("avg_order_value") == LOYAL
    for coupon, face in enumerate(FACES):
        for kind, rows in ((LOYAL, loyal), (PERSUADABLE, ~loyal)):
            expected = face * CHANCE[kind][coupon] * 0.8
            assert learners.cost[rows, coupon].mean() == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize("name", ["S-learner", "T-learner", "DR-learner", "P(buy) x margin - cost"])
def test_uplift_learners_find_the_persuadable(name, data, learners):
    """Oracle: nobody else's purchases depend on a coupon."""
    served = decide(name, data, learners).coupon > 0
    assert (data.column("avg_order_value")[served] == PERSUADABLE).mean() > 0.95


@pytest.mark.parametrize("name", ["response, logistic", "response, boosting"])
def test_response_models_serve_those_who_buy_anyway(name, data, learners):
    """Oracle: half of the loyal buy, of the persuadable about a quarter."""
    served = decide(name, data, learners).coupon > 0
    assert (data.column("avg_order_value")[served] == LOYAL).mean() > 0.95


@pytest.mark.parametrize("kind", ["T", "DR", "split"])
def test_effects_are_those_of_the_simulation(kind, data, learners):
    """Oracle: (change of P(buy)) × margin − redeemed money − contact, per kind of customer."""
    uplift = learners.uplift(kind)
    loyal = data.column("avg_order_value") == LOYAL
    for customer, rows in ((LOYAL, loyal), (PERSUADABLE, ~loyal)):
        for coupon in (1, 2):
            chance = CHANCE[customer][coupon]
            gain = (chance - CHANCE[customer][0]) * MARGIN - FACES[coupon] * chance * 0.8
            expected = gain - CONTACT[coupon]
            assert uplift[rows, coupon].mean() == pytest.approx(expected, abs=1.0)


def test_a_null_world_has_no_effects_for_the_dr_learner():
    """Oracle: purchases drawn without a look at the coupon; only its cost remains."""
    null = {LOYAL: (0.3,) * 3, PERSUADABLE: (0.3,) * 3}
    means = []
    for seed in range(3):
        log = replace(shop(seed, null), cost=np.zeros(12_000), contact_costs=np.zeros(3))
        means.append(Learners(log).uplift("DR")[:, 1:].mean())
    standard_error = MARGIN * np.sqrt(0.3 * 0.7 * (1 / 3000 + 1 / 6000) / 3)
    assert abs(np.mean(means)) < 4 * standard_error


def test_estimated_propensities_replace_missing_ones(data):
    """Oracle: offers were drawn by chance, so nothing may change much without their log."""
    missing = replace(data, propensity=np.full(len(data.coupon), np.nan))
    with_log, without = Learners(data).uplift("DR"), Learners(missing).uplift("DR")
    assert without[:, 1:].mean() == pytest.approx(with_log[:, 1:].mean(), abs=0.3)


def test_tabular_planning_in_one_state_has_a_closed_form(data):
    """Q(a) = r̄(a) + γ max r̄ / (1 − γ), where every customer is in the same state for ever."""
    names = ("days_since_last_purchase", "purchases_last_30d", "coupons_last_30d", "frequency")
    columns = [NAMES.index(name) for name in names]
    features, now = data.features.copy(), data.now.copy()
    features[:, columns], now[:, columns] = 1.0, 1.0
    means = np.array([data.reward[data.coupon == a].mean() for a in range(3)])
    q = tabular_q(replace(data, features=features, now=now))
    expected = means + GAMMA * means.max() / (1 - GAMMA)
    np.testing.assert_allclose(q, np.tile(expected, (1000, 1)), atol=1e-3)


def test_the_reference_system_ignores_the_budget_and_abstains_where_it_has_never_been(data):
    """Two of its known faults: the budget is only a feature, and an unvisited state is all 0."""
    log = replace(data, budget=10.0)
    decision = decide("reference system", log, Learners(log))
    assert decision.wanted_spend > 10 * log.budget
    elsewhere = data.now.copy()
    elsewhere[:, NAMES.index("avg_order_value")] = 1000.0
    strangers = replace(data, now=elsewhere)
    assert not decide("reference system", strangers, Learners(strangers)).coupon.any()


def test_random_and_static_use_the_budget_up(data, learners):
    """Oracle: the next customer's coupon would not have fitted, and costs at most 4."""
    for name in ("random", "coupon 4 for all", "coupon 8 for all"):
        spend = pick(learners.cost, decide(name, data, learners).coupon).sum()
        assert spend > BUDGET - 8.0


def test_fifths_by_hand():
    assert fifth(np.arange(10.0)).tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert fifth(np.array([7.0, 7.0, 9.0])).tolist() == [1, 1, 4]


def test_the_same_data_give_the_same_decisions(data):
    for name in policies(FACES):
        one, other = (decide(name, data, Learners(data)).coupon for _ in range(2))
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_an_unknown_policy_or_learner_is_named(data, learners):
    with pytest.raises(SettingsError, match=r"expected one of none, random.*came 'best'"):
        decide("best", data, learners)
    with pytest.raises(SettingsError, match=r"expected one of S, T, DR, split; came 'X'"):
        learners.uplift("X")


def test_a_log_that_does_not_fit_is_refused(data):
    with pytest.raises(DataError, match="expected 8 features per row"):
        replace(data, features=data.features[:, :3])
    with pytest.raises(DataError, match="found none"):
        replace(data, features=data.features[:0])


@pytest.fixture(scope="module")
def known():
    world = make_world(WorldConfig(seed=1))
    people = record_history(world, 2000, 20).people
    return world, people, week_problem(world, people)


def test_the_oracle_is_100_and_nothing_is_0(known):
    """Oracle: the definition of the score; less knowledge cannot bring more."""
    world, people, truth = known
    figures = {
        name: judge(world, people, truth, best(), Stated())
        for name, best in bounds(truth, people).items()
    }
    assert figures["oracle"]["percent"] == pytest.approx(100)
    assert figures["oracle"]["spend_share"] == pytest.approx(1, abs=0.01)
    assert all(figure["percent"] <= 100.001 for figure in figures.values())
    nothing = judge(world, people, truth, np.zeros(2000, np.int64), Stated())
    assert (nothing["percent"], nothing["spend"], nothing["harm"]) == (0, 0, 0)


def test_a_policy_that_states_the_truth_is_calibrated(known):
    """Oracle: true values given as stated ones; their slope is 1 and their totals agree."""
    world, people, truth = known
    coupon = truth.oracle
    week = pick(truth.profit, coupon) - truth.profit[:, 0]
    stated = Stated(pick(truth.cost, coupon), week, pick(truth.uplift, coupon))
    figures = judge(world, people, truth, coupon, stated)
    for name in ("cost_slope", "week_slope", "uplift_slope"):
        assert figures[name] == pytest.approx(1)
    assert figures["stated_spend"] == pytest.approx(figures["spend"])
    assert figures["stated_uplift"] == pytest.approx(figures["uplift"])
    assert figures["purchase_slope"] is None


def test_a_slope_by_hand():
    stated = np.linspace(0, 1, 50)
    everybody = np.ones(50, np.bool_)
    assert decile_slope(stated, 2 * stated + 1, everybody) == pytest.approx(2)
    assert decile_slope(np.ones(50), stated, everybody) is None
    assert decile_slope(stated, stated, np.zeros(50, np.bool_)) is None
