"""The customers' decision process against plain loops, dense linear solves and a grid."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse
from worlds import live_by, policy_iteration

from winback.models.errors import SettingsError
from winback.models.long_run import (
    CERTAINTY,
    CHECKED_PERIODS,
    MOST_OFTEN,
    PRIOR_REDEMPTIONS,
    Today,
    cost_of_the_chosen,
    personal_future,
    price_of_budget,
)
from winback.models.mdp import (
    UNKNOWN_STATE,
    CustomerModel,
    learn_model,
    support,
    transitions_of,
    value_iteration,
)
from winback.models.response import (
    BASE_TERMS,
    EFFECT,
    SHARED_EFFECTS,
    ResponseModel,
    levelled_purchase,
)
from winback.models.situations import (
    COUPONS,
    PURCHASES,
    RECENCIES,
    SITUATIONS,
    Panel,
    bins,
    number,
)

FACES = np.array([0.0, 5.0, 10.0])
CONTACT = np.array([0.0, 0.05, 0.1])
GAMMA = 0.9


def response_of(seed=0, classes=2):
    """Two classes drawn at random."""
    random = np.random.default_rng(seed)
    terms = BASE_TERMS + SHARED_EFFECTS + len(FACES) - 1
    coefficients = np.column_stack(
        [random.normal(-1, 0.5, classes), -0.2 * random.random((classes, terms - 1))]
    )
    coefficients[:, EFFECT] = random.uniform(0.5, 1.5, classes)
    redeems = np.column_stack([np.full(classes, 0.01), random.uniform(0.3, 0.9, (classes, 2))])
    return ResponseModel(
        share=np.full(classes, 1 / classes),
        coefficients=coefficients,
        doubt=np.zeros((classes, SITUATIONS, 3)),
        hazard=random.uniform(0.01, 0.2, (classes, 2 * COUPONS)),
        margin=random.uniform(10, 40, classes),
        redeemed=redeems * np.array([2.0, 5.0, 10.0]),  # a few redeem without an offer
        log_margin=np.full(classes, 3.0),
        log_margin_spread=np.full(classes, 0.4),
        redeems=redeems,
        offers=np.full((classes, SITUATIONS), 0.4),
        smallest_margin=np.array(0.1),
        level=np.array([0.1, 0.9]),
        cost_level=np.array(1.2),
        face_values=FACES,
    )


@pytest.fixture(scope="module")
def response():
    return response_of()


@pytest.fixture(scope="module")
def panel(response):
    return live_by(response, 300, 25, [0.4, 0.4], seed=1)[0]


@pytest.fixture(scope="module")
def model(response, panel):
    return learn_model(response, panel, CONTACT)


@pytest.fixture(scope="module")
def today(response, model):
    """Sixty customers who differ in class, presence, situation and in what they may get."""
    random = np.random.default_rng(2)
    belief = random.dirichlet([1, 1, 0.3], 60)[:, :2]
    situation = random.integers(0, SITUATIONS, 60)
    profit, cost = (
        np.einsum("nk,kna->na", belief, table.reshape(2, SITUATIONS, 3)[:, situation])
        for table in (model.reward, model.cost)
    )
    return Today(belief, situation, profit, cost, random.random(60) < 0.8)


def counted_moves(panel):
    """Shares of next places by purchase and of next fatigue by offer, and the log's own pairs."""
    places, fatigue = {}, {}
    for row, following in enumerate(panel.following.tolist()):
        if following < 0 or not panel.closed[row]:
            continue
        here, there = int(panel.situation[row]), int(panel.situation[following])
        bought, offered = bool(panel.purchased[row]), bool(panel.coupon[row] > 0)
        places.setdefault((bought, here // COUPONS), []).append(there // COUPONS)
        fatigue.setdefault((offered, here % COUPONS), []).append(there % COUPONS)
    return places, fatigue


def shares(seen, expected, size):
    counts = np.bincount(seen, minlength=size).astype(float)
    counts[expected] += 1e-3
    return counts / counts.sum()


def test_kernel_equals_a_brute_force_reading_of_the_definition(response, panel, model):
    """Every class, situation and coupon: counted in dictionaries, put together term by term."""
    places, fatigue = counted_moves(panel)
    chance = levelled_purchase(response)
    recency, purchases, tired = (axis.tolist() for axis in bins())
    random = np.random.default_rng(3)
    for _ in range(300):
        k, s, a = random.integers(2), random.integers(SITUATIONS), random.integers(3)
        later = min(recency[s] + 1, RECENCIES - 1) * PURCHASES + purchases[s]
        more = min(purchases[s] + 1, PURCHASES - 1)
        offered = bool(a > 0)
        of_fatigue = shares(
            fatigue.get((offered, tired[s]), []), min(tired[s] + offered, COUPONS - 1), COUPONS
        )
        expected = np.zeros(SITUATIONS)
        for bought, place in ((False, later), (True, more)):
            p = chance[k, s, a] if bought else 1 - chance[k, s, a]
            seen = places.get((bought, s // COUPONS), [])
            of_place = shares(seen, place, RECENCIES * PURCHASES)
            expected += p * np.outer(of_place, of_fatigue).ravel()
        expected *= 1 - response.hazard[k, offered * COUPONS + tired[s]]
        row = model.kernel[(k * SITUATIONS + s) * 3 + a].toarray().reshape(2, SITUATIONS)
        assert row[k] == pytest.approx(expected, abs=1e-12)
        assert not row[1 - k].any()  # a class is for good


def test_kernel_rows_sum_to_the_chance_of_staying(response, model):
    """Closed form: 1 − hazard of class, coupons of late and offer."""
    total = np.asarray(model.kernel.sum(axis=1)).reshape(2, SITUATIONS, 3)
    tired = bins()[2]
    for coupon in range(3):
        stays = 1 - response.hazard[:, (coupon > 0) * COUPONS + tired]
        assert total[:, :, coupon] == pytest.approx(stays)
    assert model.kernel.data.min() >= 0


def test_rewards_are_margin_less_coupon_money_less_contact(response, model):
    """By hand; money redeemed without an offer lowers profit but is not the budget's."""
    chance = levelled_purchase(response)
    for k, s, a in [(0, 0, 0), (1, 7, 1), (0, 100, 2)]:
        money = response.redeemed[k, a] * (1.2 if a else 1.0)
        profit = chance[k, s, a] * (response.margin[k] - money) - CONTACT[a]
        assert model.reward[k * SITUATIONS + s, a] == pytest.approx(profit)
        cost = chance[k, s, a] * money if a else 0.0
        assert model.cost[k * SITUATIONS + s, a] == pytest.approx(cost)
    assert model.payoff(2.0) == pytest.approx(model.reward - 2 * model.cost)


@pytest.mark.parametrize("min_visits", [0, 1, 30, 10**9])
def test_coupons_seldom_offered_are_not_allowed(response, panel, min_visits):
    """Counted by a loop over the log: at the same recency and purchases of late."""
    counts = {}
    for row in np.flatnonzero(panel.closed):
        key = (panel.situation[row] // COUPONS, panel.coupon[row])
        counts[key] = counts.get(key, 0) + 1
    found = support(panel, 3)
    expected = [[counts.get((s // COUPONS, a), 0) for a in range(3)] for s in range(SITUATIONS)]
    assert found.tolist() == expected
    allowed = learn_model(response, panel, CONTACT, min_visits=min_visits).allowed
    assert allowed.shape == (2 * SITUATIONS, 3)
    assert allowed[:, 0].all()
    enough = np.array(expected) >= max(min_visits, 1)
    assert (allowed.reshape(2, SITUATIONS, 3)[:, :, 1:] == enough[:, 1:]).all()


def test_logged_decisions_become_transitions_as_a_loop_would_make_them(panel):
    """With gaps: what follows an uncounted period is not known."""
    kind, row = np.arange(panel.customers) % 2, np.arange(len(panel.period))
    since_first = row - panel.first[panel.customer]
    panel = replace(panel, period=panel.period + since_first // 7)
    log = transitions_of(panel, kind, CONTACT)
    rows = []
    for i in range(panel.customers):
        own = range(panel.first[i], panel.first[i + 1])
        state = {int(panel.period[r]): int(kind[i] * SITUATIONS + panel.situation[r]) for r in own}
        for r in own:
            if panel.closed[r]:
                period, coupon = int(panel.period[r]), int(panel.coupon[r])
                profit = panel.margin[r] - panel.cost[r] - CONTACT[coupon]
                following = state.get(period + 1, UNKNOWN_STATE)
                rows.append((period, i, state[period], coupon, profit, following))
    rows.sort()  # oldest first, then customer by customer
    _, _, *expected = zip(*rows, strict=True)
    for found, wanted in zip(
        (log.state, log.coupon, log.reward, log.next_state), expected, strict=True
    ):
        assert found.tolist() == list(wanted)
    log.check(2 * SITUATIONS, 3)
    gaps = 25 // 7 * panel.customers  # the decision at hand is a next state
    assert len(log.completed()) == len(log) - gaps


@pytest.mark.parametrize(("price", "gamma"), [(0.0, 0.9), (1.5, 0.95), (0.0, 0.0)])
def test_value_iteration_equals_policy_iteration(model, price, gamma):
    exact = policy_iteration(model, gamma, price)
    q, residual, _ = value_iteration(model, gamma, price=price)
    assert residual <= 1e-6 * (1 - gamma)
    assert np.abs(q - exact).max() <= 1e-6 * max(1, np.abs(exact).max())
    again, _, sweeps = value_iteration(model, gamma, price=price, start=exact)
    assert sweeps == 1
    assert np.abs(again - exact).max() <= 1e-6 * max(1, np.abs(exact).max())


@pytest.mark.parametrize("coupons", [1, 3, 4, 5, 9])
def test_any_number_of_coupons_equals_policy_iteration(coupons):
    """A sweep takes four at a time; next states repeat among coupons, and some lead nowhere."""
    random = np.random.default_rng(coupons)
    states = 30
    chances = random.random((states * coupons, states)) * (random.random(states) < 0.3)
    chances[random.random(len(chances)) < 0.2] = 0.0
    chances /= np.maximum(chances.sum(axis=1, keepdims=True), 1.0)
    allowed = random.random((states, coupons)) < 0.7
    allowed[:, 0] = True
    shape = (states, coupons)
    model = CustomerModel(
        random.normal(5, 3, shape), random.random(shape), sparse.csr_matrix(chances), allowed
    )
    exact = policy_iteration(model, 0.9, 1.5)
    q, _, _ = value_iteration(model, 0.9, price=1.5)
    assert np.abs(q - exact).max() <= 1e-6 * max(1, np.abs(exact).max())


def test_fatigue_is_foreseen_as_solved_by_hand():
    """Two states; an offer earns 3 and tires for the next period, which earns 5 less."""
    kernel = sparse.csr_matrix(np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]]))
    model = CustomerModel(
        reward=np.array([[10.0, 13], [5, 8]]),
        cost=np.zeros((2, 2)),
        kernel=kernel,
        allowed=np.ones((2, 2), bool),
    )
    value = 10 / (1 - 0.9)
    by_hand = [[value, 13 + 0.9 * (value - 5)], [value - 5, 8 + 0.9 * (value - 5)]]
    assert value_iteration(model, 0.9)[0] == pytest.approx(np.array(by_hand), abs=1e-3)


def test_leaving_ends_the_value_as_a_geometric_series():
    """Closed form: 10 a period, with chance .2 of leaving after each: 10 / (1 − γ · .8)."""
    one = np.ones((1, 1))
    model = CustomerModel(10 * one, 0 * one, sparse.csr_matrix(0.8 * one), one.astype(bool))
    assert value_iteration(model, 0.95)[0][0, 0] == pytest.approx(10 / (1 - 0.95 * 0.8), rel=1e-5)


@pytest.mark.parametrize("gamma", [1.0, -0.1, np.nan])
def test_discounts_that_value_the_future_like_the_present_are_refused(model, gamma):
    with pytest.raises(SettingsError, match="below 1"):
        value_iteration(model, gamma)


def test_personal_future_equals_a_loop_over_customers_classes_and_next_situations(model, today):
    value = np.random.default_rng(4).normal(100, 20, 2 * SITUATIONS)
    kernel = model.kernel.toarray().reshape(2, SITUATIONS, 3, 2 * SITUATIONS)
    found = personal_future(model, value, today.belief, today.situation, GAMMA)
    for i in range(0, 60, 7):
        for a in range(3):
            total = 0.0
            for k in range(2):
                moves = kernel[k, today.situation[i], a]
                total += today.belief[i, k] * sum(p * v for p, v in zip(moves, value, strict=True))
            assert found[i, a] == pytest.approx(GAMMA * total)


def spend_at(model, today, price):
    """Coupon money of today's best choices at a price; planned anew by dense solves."""
    q = policy_iteration(model, GAMMA, price)
    value = np.where(model.allowed, q, -np.inf).max(axis=1)
    net = today.profit - price * today.cost
    net = net + personal_future(model, value, today.belief, today.situation, GAMMA)
    spent = 0.0
    for i, situation in enumerate(today.situation):
        may = [0, *(a for a in (1, 2) if today.free[i] and model.allowed[situation, a])]
        spent += today.cost[i, max(may, key=lambda a, i=i: net[i, a])]
    return spent


def test_price_is_where_todays_customers_spend_the_budget(model, today):
    """Brute force: at the price the budget holds, a thousandth below it does not; on a grid of
    prices every one above holds it and every one below breaks it."""
    free = spend_at(model, today, 0.0)
    for share in (0.3, 0.7):
        budget = share * free
        price = price_of_budget(model, today, budget, GAMMA)
        assert price > 0
        assert spend_at(model, today, price + 1e-3) <= budget
        assert spend_at(model, today, price - 1e-3) > budget
        grid = price * np.array([0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 3.0])
        holds = [spend_at(model, today, at) <= budget for at in grid]
        assert holds == [at > price for at in grid]


def test_a_budget_that_does_not_bind_costs_nothing(model, today):
    free = spend_at(model, today, 0.0)
    assert price_of_budget(model, today, free * 1.0001, GAMMA) == 0
    assert price_of_budget(model, today, 1e9, GAMMA) == 0
    assert price_of_budget(model, today, free * 0.99, GAMMA) > 0


def test_no_budget_or_nobody_to_decide_on(model, today):
    price = price_of_budget(model, today, 0.0, GAMMA)
    assert spend_at(model, today, price + 1e-3) == 0  # a tie at the price itself
    nobody = Today(*(getattr(today, name)[:0] for name in Today.__annotations__))
    assert price_of_budget(model, nobody, 0.0, GAMMA) == 0
    held = replace(today, free=np.zeros(60, bool))
    assert price_of_budget(model, held, 0.0, GAMMA) == 0


def test_unseen_moves_go_one_period_on_and_one_purchase_or_coupon_up(response, panel):
    """By hand: from a log without a single decision."""
    nothing = replace(panel, closed=np.zeros(len(panel.period), bool))
    kernel = learn_model(response, nothing, CONTACT).kernel
    chance = levelled_purchase(response)
    situation = number(2, 1, 1)
    stays = 1 - response.hazard[0, COUPONS + 1]
    row = kernel[int(situation) * 3 + 1].toarray().ravel()
    bought, silent = number(0, 2, 2), number(3, 1, 2)
    assert row[bought] == pytest.approx(stays * chance[0, situation, 1])
    assert row[silent] == pytest.approx(stays * (1 - chance[0, situation, 1]))
    assert row.sum() == pytest.approx(stays)


def test_cost_of_the_chosen_equals_a_loop_over_the_latest_windows(panel):
    random = np.random.default_rng(5)
    m = len(panel.period)
    cost, chosen = random.uniform(1, 4, (m, 3)), random.integers(0, 3, m)
    mixed = replace(
        panel,
        propensity=np.where(random.random(m) < 0.1, np.nan, panel.propensity),
        own=random.random(m) < 0.2,
    )
    checked, weights = [], {}
    for row in range(m):
        latest = panel.period[row] > panel.period[panel.closed].max() - CHECKED_PERIODS
        if panel.closed[row] and latest and chosen[row] and panel.coupon[row]:
            known = mixed.propensity[row] == mixed.propensity[row] and not mixed.own[row]
            weights[row] = min(1 / mixed.propensity[row], MOST_OFTEN) if known else 1.0
            checked.append(row)
    theirs = [weights[row] for row in checked if not mixed.own[row]]
    usual, rows = sum(theirs) / len(theirs), []
    for row in checked:
        weight = 1.0 if mixed.own[row] else weights[row] / usual
        said = weight * cost[row, panel.coupon[row]]
        rows.append((row, said, weight * panel.cost[row]))
    ratio = sum(came for _, _, came in rows) / sum(said for _, said, _ in rows)
    by_customer = {}
    for row, said, came in rows:
        customer = panel.customer[row]
        by_customer[customer] = by_customer.get(customer, 0.0) + came - ratio * said
    error = sum(off**2 for off in by_customer.values()) ** 0.5 / sum(came for _, _, came in rows)
    redeemed = [came for _, _, came in rows if came > 0]
    prior = PRIOR_REDEMPTIONS * sum(redeemed) / len(redeemed) / ratio
    found = cost_of_the_chosen(mixed, cost, chosen)
    assert found.ratio[0] == 1
    for coupon in (1, 2):
        own = [one for one in rows if chosen[one[0]] == panel.coupon[one[0]] == coupon]
        came, said = sum(came for _, _, came in own), sum(said for _, said, _ in own)
        assert found.ratio[coupon] == pytest.approx((came + prior * ratio) / (said + prior))
    assert found.relative_error == pytest.approx(error)
    assert found.spendable(propensities_logged=True) == pytest.approx(1 / (1 + CERTAINTY * error))


def test_what_is_kept_back_holds_the_budget_in_19_logs_of_20():
    """Simulation with known truth: 200 logs in which coupons cost 1.3 times what was said."""
    spent = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        coupon = random.integers(0, 2, 4000)
        bought = random.random(4000) < 0.3
        log = Panel(
            first=np.arange(0, 4001, 10),
            period=np.tile(np.arange(10), 400),
            situation=np.zeros(4000, int),
            coupon=coupon,
            purchased=bought,
            margin=10.0 * bought,
            cost=2.6 * (bought & (coupon > 0)),
            propensity=np.full(4000, 0.5),
            own=np.zeros(4000, bool),
            closed=np.ones(4000, bool),
        )
        said = np.tile([0.0, 0.6], (4000, 1))  # 2 a redemption: the truth is 0.78
        found = cost_of_the_chosen(log, said, np.ones(4000, int))
        spent.append(0.78 / 0.6 / found.ratio[1] * found.spendable(propensities_logged=True))
    assert 0.02 <= np.mean(np.array(spent) > 1) <= 0.09  # 5 % ± 2.6 standard errors
    assert np.mean(spent) > 0.93


def test_cost_of_the_chosen_needs_more_than_a_handful_of_redemptions(panel):
    everybody, said = np.ones(len(panel.period), int), np.full((len(panel.period), 3), 0.01)
    assert cost_of_the_chosen(panel, said, everybody).ratio[1] > 2
    for nothing in (
        cost_of_the_chosen(panel, said, 0 * everybody),
        cost_of_the_chosen(replace(panel, cost=panel.cost * (panel.customer < 9)), said, everybody),
    ):
        assert (nothing.ratio == 1).all()
        assert nothing.spendable(propensities_logged=False) == 1
