"""The response model on worlds that are known, and against independent solutions."""

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.optimize import minimize
from worlds import live_by, panel_of

from winback.models.errors import DataError
from winback.models.logistic import logistic
from winback.models.long_run import personal_future
from winback.models.mdp import learn_model, value_iteration
from winback.models.response import (
    BASE_TERMS,
    EFFECT,
    SHARED_EFFECTS,
    ResponseModel,
    agreeing,
    design,
    join,
    leaving_cell,
    log_odds,
    respond,
    sigmoid,
)
from winback.models.response_fit import (
    BLOCK,
    RECENT_PERIODS,
    beliefs,
    beliefs_now,
    fit_response,
    set_level,
)
from winback.models.situations import COUPONS, RECENCIES, SITUATIONS, Panel
from winback.models.world import CONTACT_COST, FACE_VALUES, WorldConfig, make_world
from winback.models.world_log import record_history

FACES = np.array([0.0, 5.0, 10.0])
OFFER = np.array([0.3, 0.5])


def two_classes(effect=1.5):
    """Classes that differ in all: seldom buyers whom a coupon moves, and regulars it does not."""
    coefficients = np.zeros((2, BASE_TERMS + SHARED_EFFECTS + len(FACES) - 1))
    coefficients[:, 0] = -1.0, 0.3
    coefficients[:, 1:RECENCIES] = -0.2
    coefficients[0, EFFECT] = effect
    spread = np.array([0.3, 0.4])
    log_margin = np.array([3.2, 2.4])
    redeems = np.array([[1e-4, 0.8, 0.9], [1e-4, 0.3, 0.5]])
    return ResponseModel(
        share=np.array([0.6, 0.4]),
        coefficients=coefficients,
        doubt=np.zeros((2, SITUATIONS, len(FACES))),
        hazard=np.repeat([[0.01], [0.04]], 2 * COUPONS, axis=1),
        margin=np.exp(log_margin + spread**2 / 2),
        redeemed=redeems * FACES,
        log_margin=log_margin,
        log_margin_spread=spread,
        redeems=redeems,
        offers=np.repeat(OFFER[:, None], SITUATIONS, axis=1),
        smallest_margin=np.array(0.1),
        level=np.array([0.0, 1.0]),
        cost_level=np.array(1.0),
        face_values=FACES,
    )


@pytest.fixture(scope="module")
def known():
    """A panel of two known classes, and who is in which."""
    return live_by(two_classes(), 3000, 30, OFFER, seed=1)


@pytest.fixture(scope="module")
def fit(known):
    """The model of `known`, classes in the order of the truth: by margin."""
    model = fit_response(known[0], FACES, classes=2).model
    order, shared = np.argsort(-model.margin), ("level", "cost_level", "face_values")
    arrays = model.to_arrays()
    by_class = {name for name, values in arrays.items() if values.ndim and name not in shared}
    return ResponseModel.from_arrays(arrays | {name: arrays[name][order] for name in by_class})


def mean_effects(model, panel):
    """(K, A − 1) effects of the coupons on the log odds, mean over the panel's situations."""
    effect = model.log_odds[:, :, 1:] - model.log_odds[:, :, :1]
    return np.average(effect, axis=1, weights=np.bincount(panel.situation, minlength=SITUATIONS))


def next_purchase(model, panel):
    """(m,) chance of a purchase in each window, from what came before it."""
    chance = model.purchase[:, panel.situation, panel.coupon].T
    return (beliefs(model, panel) * chance).sum(axis=1)


def test_known_classes_are_recovered(known, fit):
    """Simulated from the model itself, 3000 customers × 30 windows."""
    truth, found, (panel, kind) = two_classes(), fit, known
    assert found.share == pytest.approx(truth.share, abs=0.03)
    assert found.margin == pytest.approx(truth.margin, rel=0.03)
    assert found.redeemed[:, 1:] == pytest.approx(truth.redeemed[:, 1:], abs=0.35)
    assert mean_effects(found, panel) == pytest.approx(mean_effects(truth, panel), abs=0.2)
    assert found.hazard.mean(axis=1) == pytest.approx([0.01, 0.04], abs=0.008)
    said, true = (next_purchase(model, panel) for model in (found, truth))
    assert np.abs(said - true).mean() <= 0.015
    last = beliefs(found, panel)[panel.first[1:] - 1]
    assert (last.argmax(axis=1) == kind).mean() >= 0.97


def test_forecasts_on_average_come_true(known, fit):
    """Against the known model's own chances at the decision at hand, given who is really where."""
    panel, _ = known
    last = panel.first[1:] - 1
    said = respond(fit, beliefs(fit, panel)[last], panel.situation[last])
    true = respond(two_classes(), beliefs(two_classes(), panel)[last], panel.situation[last])
    assert said.purchase.mean(axis=0) == pytest.approx(true.purchase.mean(axis=0), rel=0.05)
    assert said.margin.mean(axis=0) == pytest.approx(true.margin.mean(axis=0), rel=0.05)
    assert said.cost.mean(axis=0)[1:] == pytest.approx(true.cost.mean(axis=0)[1:], rel=0.08)


def test_responses_equal_the_sum_over_classes():
    """By hand from the definition, one customer after the other; level too."""
    doubt = np.full((2, SITUATIONS, 3), 0.4)
    level = {"level": np.array([0.2, 1.1]), "cost_level": np.array(0.9)}
    model = replace(two_classes(), doubt=doubt, **level)
    random = np.random.default_rng(0)
    belief = random.dirichlet([2, 2, 1], 5)[:, :2]
    situation = random.integers(0, SITUATIONS, 5)
    said = respond(model, belief, situation)
    for i in range(5):
        own = model.purchase[:, situation[i]]
        mean = belief[i] @ own
        odds = np.log(mean / (1 - mean))
        purchase = 1 / (1 + np.exp(-(0.2 + 1.1 * odds[0] + odds - odds[0])))
        by_class = belief[i][:, None] * own * purchase / mean
        assert said.purchase[i] == pytest.approx(purchase)
        assert said.margin[i] == pytest.approx(model.margin @ by_class)
        redeemed = model.redeemed * [1.0, 0.9, 0.9]
        assert said.cost[i] == pytest.approx((redeemed * by_class).sum(axis=0))
        error = (model.margin[:, None] * by_class * (1 - own) * 0.4).sum(axis=0)
        assert said.doubt[i] == pytest.approx(error)


def test_beliefs_that_agree_with_a_better_forecast_are_the_closest_ones():
    """Against scipy's constrained minimum of the Kullback-Leibler divergence, by customer."""
    model = replace(two_classes(), level=np.array([0.2, 1.1]))
    random = np.random.default_rng(1)
    belief = random.dirichlet([2, 2, 1], 4)[:, :2]
    situation = random.integers(0, SITUATIONS, 4)
    own = model.purchase[:, situation, 0].T
    raw = own.min(axis=1) * 0.4 + own.max(axis=1) * 0.4  # within what beliefs can say
    chance = sigmoid(0.2 + 1.1 * log_odds(raw))
    found = agreeing(model, belief, situation, chance)
    assert respond(model, found, situation).purchase[:, 0] == pytest.approx(chance)
    for i in range(4):
        before = np.append(belief[i], 1 - belief[i].sum())
        buys = np.append(own[i], 0.0)
        solved = minimize(
            lambda b, before=before: (b * np.log(b / before)).sum(),
            before,
            bounds=[(1e-9, 1)] * 3,
            constraints=[
                {"type": "eq", "fun": lambda b: b.sum() - 1},
                {"type": "eq", "fun": lambda b, buys=buys, i=i: b @ buys - raw[i]},
            ],
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert found[i] == pytest.approx(solved.x[:2], abs=1e-4)
    same = respond(model, belief, situation).purchase[:, 0]
    assert agreeing(model, belief, situation, same) == pytest.approx(belief, abs=1e-8)


def test_a_forecast_beyond_every_class_is_approached():
    model, belief = two_classes(), np.array([[0.5, 0.3], [0.5, 0.3], [0.0, 0.0]])
    situation = np.zeros(3, int)
    found = agreeing(model, belief, situation, np.array([0.999, 1e-6, 0.5]))
    said = respond(model, found, situation).purchase[:, 0]
    assert said[0] == pytest.approx(model.purchase[:, 0, 0].max(), rel=0.01)
    assert said[1] == pytest.approx(1e-6)  # most are gone: that every belief can say
    assert (found[2] == 0).all()


def test_log_likelihood_does_not_fall_during_the_fit(known):
    """EM's own property (Dempster, Laird & Rubin 1977), up to the priors in the M-step."""
    after = [
        fit_response(known[0], FACES, classes=2, max_iterations=n).log_likelihood
        for n in range(1, 13)
    ]
    steps = np.diff(after)
    assert (steps >= -1e-6 * abs(after[-1])).all()
    assert after[-1] - after[0] > 1e-3 * abs(after[-1])


@pytest.mark.parametrize("seed", range(3))
def test_logistic_regression_with_signs_equals_scipys_bounded_minimum(seed):
    """L-BFGS-B on the same penalised likelihood; some signs hold and some do not."""
    random = np.random.default_rng(seed)
    columns = np.column_stack([np.ones(200), random.random((200, 4))])
    tries = random.integers(0, 30, 200).astype(float)
    hits = random.binomial(tries.astype(int), sigmoid(columns @ [-1, 1.0, -1.0, 0.8, -0.6]))
    mean, precision = np.array([0.0, 0.2, 0, 0, 0]), np.array([0.5, 2, 2, 2, 2])

    def objective(x):
        odds = columns @ x
        gain = hits @ odds - tries @ np.logaddexp(0, odds)
        slope = columns.T @ (hits - tries * sigmoid(odds)) - precision * (x - mean)
        return -gain + 0.5 * precision @ (x - mean) ** 2, -slope

    bounds = [(None, None), (None, 0), (None, 0), (0, None), (0, None)]
    exact = minimize(
        objective, np.zeros(5), jac=True, bounds=bounds, method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-9},
    )  # fmt: skip
    found, curvature = logistic(
        columns, tries, hits, np.zeros(5), mean, precision, 50, np.array([1, 2]), np.array([3, 4])
    )
    assert found == pytest.approx(exact.x, abs=1e-5)
    assert found[1] == 0
    assert found[2] < 0
    chance = sigmoid(columns @ found)
    spread = columns.T @ np.diag(tries * chance * (1 - chance)) @ columns + np.diag(precision)
    assert curvature == pytest.approx(spread, rel=1e-4)


def test_beliefs_never_look_ahead(known):
    """Whatever happens from a row on, nothing before and at it changes; what follows does."""
    panel, _ = known
    model, random = two_classes(), np.random.default_rng(3)
    before = beliefs(model, panel)
    length = np.diff(panel.first)
    cut = np.repeat(panel.first[:-1] + random.integers(0, length), length)
    row = np.arange(len(panel.period))
    later = row >= cut
    changed = replace(
        panel,
        situation=np.where(row > cut, random.permutation(panel.situation), panel.situation),
        coupon=np.where(later, random.integers(0, 3, len(row)), panel.coupon),
        purchased=panel.purchased ^ later,
        margin=np.where(later, 7.0, panel.margin),
        cost=np.where(later, 1.0, panel.cost),
    )
    after = beliefs(model, changed)
    assert (after[row <= cut] == before[row <= cut]).all()
    assert np.abs(after - before)[row > cut].mean() > 0.1


def test_beliefs_at_hand_are_the_last_of_all_and_customers_do_not_mix(known):
    """Oracle: each customer's history by itself; blocks of customers end anywhere."""
    panel, _ = known
    model = two_classes()
    assert panel.customers > BLOCK
    every, last = beliefs(model, panel), panel.first[1:] - 1
    assert (beliefs_now(model, panel) == every[last]).all()
    for customer in (0, BLOCK - 1, BLOCK, panel.customers - 1):
        alone = beliefs(model, panel.take(np.array([customer])))
        rows = slice(panel.first[customer], panel.first[customer + 1])
        assert alone == pytest.approx(every[rows], rel=1e-12)


def test_own_decisions_say_nothing_of_the_customer(known):
    """Equal to beliefs of a shop that offers to all classes alike."""
    panel, _ = known
    model = two_classes()
    own = replace(panel, own=np.ones(len(panel.period), bool))
    alike = replace(model, offers=np.full_like(model.offers, 0.3))
    assert beliefs(model, own) == pytest.approx(beliefs(alike, panel))
    assert np.abs(beliefs(model, own) - beliefs(model, panel)).max() > 0.1


def test_beliefs_are_right_on_average(known):
    """Calibration under the model that made the data: of rows said 30 % likely, 30 % are so.

    The chance of class and presence is read off the next window: Σ belief · chance is the share
    of purchases, within four standard errors in each fifth.
    """
    panel, _ = known
    said = next_purchase(two_classes(), panel)[panel.closed]
    came = panel.purchased[panel.closed]
    for part in np.array_split(np.argsort(said), 5):
        error = np.sqrt((said[part] * (1 - said[part])).sum())
        assert abs(came[part].sum() - said[part].sum()) <= 4 * error


def confounded(seed):
    """Coupons without effect, offered to good customers six times as often."""
    offer = np.array([0.1, 0.6])
    return live_by(two_classes(effect=0.0), 3000, 25, offer, seed)[0]


def unlogged(panel):
    return replace(panel, propensity=np.full(len(panel.period), np.nan))


def test_hidden_confounding_is_undone_by_logged_propensities_and_not_without():
    """Simulated truth: no effect. One class, so that nothing else can tell customers apart."""
    panel = confounded(seed=2)
    weighed = fit_response(panel, FACES, classes=1)
    blind = fit_response(unlogged(panel), FACES, classes=1)
    assert np.abs(mean_effects(weighed.model, panel)).max() <= 0.1
    assert mean_effects(blind.model, panel).min() >= 0.25
    assert weighed.largest_weight > 2
    assert weighed.effective_share < 0.9
    assert (blind.largest_weight, blind.effective_share) == (1, 1)


def test_classes_explain_what_confounds_where_no_propensity_is_logged():
    """Simulated truth: no effect; with its two classes the model needs no weights."""
    panel = confounded(seed=3)
    model = fit_response(unlogged(panel), FACES, classes=2).model
    assert np.abs(mean_effects(model, panel)).max() <= 0.15


@pytest.mark.parametrize("seed", [4, 5, 6])
def test_null_world_shows_a_good_coupon_to_few(seed):
    """Simulated truth: coupons move nobody. Two standard errors off, without any budget.

    By a normal tail 2.3 % would look good with one coupon, and up to thrice that with three. A run
    takes off less (`pessimism`): there the proof of lift keeps coupons from everybody.
    """
    world = make_world(WorldConfig(seed=seed, effect=0.0))
    panel = panel_of(record_history(world, 4000, 30, seed=seed))
    model = fit_response(panel, np.array(FACE_VALUES)).model
    contact = np.append(0.0, np.full(len(FACE_VALUES) - 1, CONTACT_COST))
    plan = learn_model(model, panel, contact)
    last = panel.first[1:] - 1
    belief, situation = beliefs(model, panel)[last], panel.situation[last]
    value = plan.value(value_iteration(plan, 0.95)[0])
    now = respond(model, belief, situation)
    profit = now.margin - now.cost - contact + personal_future(plan, value, belief, situation, 0.95)
    uplift = profit - profit[:, :1] - 2 * now.doubt
    good = (uplift[:, 1:] > 0) & plan.allowed[situation, 1:]
    assert good.any(axis=1).mean() <= 0.03


def without_offers(panel):
    return replace(
        panel,
        situation=panel.situation - panel.situation % COUPONS,
        coupon=np.zeros_like(panel.coupon),
        propensity=np.ones(len(panel.period)),
    )


@pytest.mark.parametrize("classes", [1, 2, 6])
def test_without_offers_no_effect_is_invented(known, classes):
    panel = without_offers(live_by(two_classes(), 2000, 20, [0.0, 0.0], seed=5)[0])
    found = fit_response(panel, FACES, classes=classes)
    assert np.abs(mean_effects(found.model, panel)).max() <= 0.01
    assert found.effective_share == 0
    assert found.model.cost_level == 1
    last = panel.first[1:] - 1
    said = respond(found.model, beliefs(found.model, panel)[last], panel.situation[last])
    assert said.purchase[:, 1:] == pytest.approx(said.purchase[:, [0, 0]], rel=0.01)
    assert (said.doubt[:, 1:] > 0.02 * said.margin[:, 1:]).all()
    plan = learn_model(found.model, panel, np.zeros(3))
    assert plan.allowed.sum() == len(plan.allowed)  # `none` alone


def test_a_shop_with_no_coupon_at_all():
    panel = without_offers(live_by(two_classes(), 500, 10, [0.0, 0.0], seed=6)[0])
    model = fit_response(panel, np.zeros(1)).model
    assert respond(model, beliefs(model, panel), panel.situation).purchase.shape[1] == 1


@pytest.mark.parametrize(("customers", "classes"), [(1, None), (1, 4), (3, 8), (40, 2)])
def test_few_customers_are_enough(customers, classes):
    few, _ = live_by(two_classes(), customers, 20, OFFER, seed=7)
    assert few.purchased.any()
    model = fit_response(few, FACES, classes=classes).model
    assert model.share.sum() == pytest.approx(1)
    assert all(np.isfinite(value).all() for value in model.to_arrays().values())
    said = respond(model, beliefs(model, few), few.situation)
    assert ((said.purchase > 0) & (said.purchase < 1)).all()


def test_nothing_bought_or_nothing_closed_is_refused(known):
    panel, _ = known
    for column in ("purchased", "closed"):
        with pytest.raises(DataError, match="past windows with a purchase"):
            fit_response(replace(panel, **{column: np.zeros(len(panel.period), bool)}), FACES)
    columns = [getattr(panel, field.name)[:0] for field in fields(panel)[1:]]
    nobody = Panel(np.zeros(1, int), *columns)
    with pytest.raises(DataError, match="past windows with a purchase"):
        fit_response(nobody, FACES)


def test_customers_without_a_closed_window_are_believed_to_be_like_everybody(known, fit):
    panel, _ = known
    assert beliefs(fit, panel)[panel.first[:-1]] == pytest.approx(
        np.tile(fit.share, (panel.customers, 1))
    )


def test_same_seed_same_model(known):
    first, again = (
        fit_response(known[0], FACES, classes=4, seed=3, max_iterations=5).model for _ in range(2)
    )
    for name, values in first.to_arrays().items():
        assert (values == again.to_arrays()[name]).all(), name


def test_arrays_bring_the_model_back(known, fit):
    arrays = fit.to_arrays()
    assert set(arrays) == {field.name for field in fields(ResponseModel)}
    again = ResponseModel.from_arrays(arrays)
    panel, _ = known
    assert (beliefs(again, panel) == beliefs(fit, panel)).all()
    said, same = (respond(m, np.ones((4, 2)) / 2, np.arange(4)) for m in (fit, again))
    assert (said.cost == same.cost).all()


def test_refunds_lower_the_margin_and_break_nothing(known):
    """Closed form: with one class the margin is the mean over windows with a purchase."""
    panel, _ = known
    refunds = np.random.default_rng(8).random(len(panel.period)) < 0.2
    margin = np.where(panel.purchased & refunds, -panel.margin, panel.margin)
    model = fit_response(replace(panel, margin=margin), FACES, classes=1).model
    assert model.margin[0] == pytest.approx(margin[panel.purchased].mean())
    every = replace(panel, margin=-panel.margin)
    model = fit_response(every, FACES, classes=2).model
    assert (model.margin < 0).all()
    assert np.isfinite(beliefs(model, every)).all()


def test_level_solves_its_equations_on_the_latest_windows(known):
    """Closed form: at the optimum Σ w (came − said) x = precision · (level − prior), and said
    coupon money is what came, each with its pseudo-counts."""
    panel, _ = known
    model, weight = two_classes(), np.random.default_rng(9).uniform(0.5, 2, panel.closed.sum())
    off = replace(model, coefficients=model.coefficients * 0.7, redeemed=model.redeemed * 1.3)
    levelled = set_level(off, panel, weight)
    closed = np.flatnonzero(panel.closed)
    latest = panel.period[closed] > panel.period[closed].max() - RECENT_PERIODS
    rows, weight = closed[latest], weight[latest]
    who = beliefs(off, panel)[rows]
    before, after = (respond(m, who, panel.situation[rows]) for m in (off, levelled))
    at = (np.arange(len(rows)), panel.coupon[rows])
    missing = weight * (panel.purchased[rows] - after.purchase[at])
    assert missing.sum() == pytest.approx(levelled.level[0], abs=1e-3)
    base = log_odds(before.purchase[:, 0])
    assert missing @ base == pytest.approx(10 * (levelled.level[1] - 1), abs=1e-3)
    offered = panel.coupon[rows] > 0
    said = (weight * after.cost[at])[offered].sum()
    came = (weight * panel.cost[rows])[offered].sum()
    assert said == pytest.approx(came, rel=0.01)
    assert abs(levelled.level[0]) > 0.1
    assert levelled.cost_level < 0.95
    assert set_level(levelled, panel, np.ones(len(closed))).level == pytest.approx(
        set_level(off, panel, np.ones(len(closed))).level
    )


def test_response_is_concave_in_the_face_value_and_none_has_no_effect():
    """Read off the design: columns of effects are 0 for `none`, 1 for the largest coupon."""
    table = design(np.array([0.0, 4.0, 8.0, 14.0])).reshape(SITUATIONS, 4, -1)
    size = table[0, :, EFFECT]
    assert size[[0, 3]].tolist() == [0, 1]
    assert (np.diff(size / np.array([1e-9, 4, 8, 14]))[1:] < 0).all()
    assert (table[:, 0, BASE_TERMS:] == 0).all()
    gift = design(np.array([0.0, 0.0, 5.0])).reshape(SITUATIONS, 3, -1)
    assert gift[0, 1, EFFECT] > 0  # a coupon of unknown value, such as a free gift


def test_joined_models_are_weighed_by_what_each_makes_of_a_history(known):
    """Bayes' rule by hand: each model's own belief times the chance it gave what came before."""
    panel = known[0].take(np.arange(5))
    models = [two_classes(), replace(two_classes(0.2), share=np.array([0.3, 0.7]))]
    joined = join(models)
    apart = np.array([beliefs(model, panel) for model in models])
    told = [np.zeros(len(panel.period)) for _ in models]  # log-likelihood of the rows before
    for i, model in enumerate(models):
        arrays = model.to_arrays() | {"share": np.array([0.5, 0.5])}
        alone = [  # one class at a time, so that the classes' own likelihoods are needed too
            history_log_likelihood(ResponseModel.from_arrays(arrays), k, panel) for k in (0, 1)
        ]
        told[i] = np.logaddexp(*(np.log(model.share[k]) + alone[k] for k in (0, 1)))
    weight = np.exp(np.array(told) - np.logaddexp(*told))
    assert beliefs(joined, panel) == pytest.approx(
        np.concatenate([weight[i][:, None] * apart[i] for i in (0, 1)], axis=1), abs=1e-9
    )


def history_log_likelihood(model, k, panel):
    """(m,) of all that came before each row, for a customer of class k; a plain recursion."""
    found = np.zeros(len(panel.period))
    for customer in range(panel.customers):
        here, gone, total = 1.0, 0.0, 0.0
        for row in range(panel.first[customer], panel.first[customer + 1]):
            found[row] = total
            if not panel.closed[row]:
                continue
            place, coupon = panel.situation[row], panel.coupon[row]
            chance = model.purchase[k, place, coupon]
            hazard = model.hazard[k, leaving_cell(np.array([place]), np.array([coupon]))[0]]
            offered = model.offers[k, place]
            total += np.log(offered if coupon else 1 - offered)
            if panel.purchased[row]:
                seen, gone = here * chance, 0.0
                away = np.log(max(panel.margin[row], float(model.smallest_margin)))
                away = (away - model.log_margin[k]) / model.log_margin_spread[k]
                total += -0.5 * away**2 - np.log(model.log_margin_spread[k])
                redeems = model.redeems[k, coupon]
                total += np.log(redeems if panel.cost[row] > 0 else 1 - redeems)
            else:
                seen = here * (1 - chance)
            total += np.log(seen + gone)
            here, gone = seen * (1 - hazard), gone + seen * hazard
            here, gone = here / (here + gone), gone / (here + gone)
    return found


def test_a_model_joined_with_itself_forecasts_the_same(known):
    panel, model = known[0].take(np.arange(50)), two_classes()
    once, twice = (
        respond(one, beliefs(one, panel), panel.situation) for one in (model, join([model, model]))
    )
    for name in ("purchase", "margin", "cost"):
        assert getattr(twice, name) == pytest.approx(getattr(once, name)), name


@pytest.mark.parametrize(("customers", "sizes"), [(250, (1,)), (600, (2, 1)), (2400, (8, 6, 5))])
def test_without_a_wish_models_of_several_sizes_are_joined(known, customers, sizes):
    panel = known[0].take(np.arange(customers))
    fitted = fit_response(panel, FACES, max_iterations=2)
    assert fitted.model.classes == sum(sizes)
    shares = np.split(fitted.model.share, np.cumsum(sizes)[:-1])
    assert [part.sum() for part in shares] == pytest.approx([1 / len(sizes)] * len(sizes))
