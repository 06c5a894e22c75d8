"""The profit model against worlds whose truth is known, scikit-learn, and itself resumed."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, PoissonRegressor
from sklearn.metrics import mean_squared_error, r2_score

from winback.models.calibration import decile_table, fit_glm, logit, shrink, sigmoid
from winback.models.errors import DataError, SettingsError
from winback.models.profit import ProfitModel, ProfitNetwork, input_width, make_inputs
from winback.models.profit_baselines import baseline_design, compare_with_baselines
from winback.models.profit_calibration import estimate_redemption
from winback.models.profit_config import ProfitConfig
from winback.models.profit_data import ProfitData, ProfitSchema, split_by_date
from winback.models.profit_training import Checkpoint, train_profit

SCHEMA = ProfitSchema(
    features=("appetite", "basket", "budget"),
    categories=tuple("vwxyz"),
    coupons=("none", "A", "B"),
    face_values=(0.0, 3.0, 5.0),
)
QUICK = ProfitConfig(max_epochs=2, batch_rows=256)


@dataclass(frozen=True)
class World:
    """A shop that we made: its log, and the truth behind it."""

    data: ProfitData
    purchase: np.ndarray  # (n, A) true P(buy)
    margin: np.ndarray  # (n,) true mean margin given a purchase
    likes_a: np.ndarray  # (n,) bought category 2 in the last 10 days: coupon A works on them only


def make_world(n: int, seed: int, effect: float = 2.0, offered: float = 0.3) -> World:
    """Purchases depend on the last purchase's day, coupon A on category and day, B does nothing."""
    rng = np.random.default_rng(seed)
    is_bought = rng.random((n, 30)) < rng.beta(1, 4, (n, 1))
    sequence = np.where(is_bought, rng.integers(1, 6, (n, 30)), 0)
    features = rng.normal(size=(n, 3))
    likes_a = (sequence[:, -10:] == 2).any(axis=1)
    since = np.where(is_bought.any(axis=1), is_bought[:, ::-1].argmax(axis=1), 30)
    p_purchase = sigmoid(-0.3 + 0.5 * features[:, 0])
    base = logit(p_purchase) + 0.6 - 0.08 * since
    purchase = sigmoid(base[:, None] + np.outer(likes_a * effect, [0.0, 1.0, 0.0]))
    margin = 20 * np.exp(0.4 * features[:, 1])
    coupon = np.where(rng.random(n) < offered, rng.integers(1, 3, n), 0)
    bought = rng.random(n) < purchase[np.arange(n), coupon]
    redeemed = bought & (coupon > 0) & (rng.random(n) < 0.3)
    features[rng.random(n) < 0.1, 2] = np.nan
    data = ProfitData(
        sequence=sequence,
        features=features,
        coupon=coupon,
        p_purchase=p_purchase,
        day=rng.integers(0, 16, n) * 7,
        purchased=bought,
        margin=np.where(bought, margin * rng.lognormal(-0.5, 1.0, n), 0.0),
        cost=redeemed * np.array(SCHEMA.face_values)[coupon],
    )
    return World(data, purchase, margin, likes_a)


def forecast(model: ProfitModel, data: ProfitData):
    return model.forecast(data.sequence, data.features, data.p_purchase)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(24_000, seed=1)


@pytest.fixture(scope="module")
def model(world: World) -> ProfitModel:
    return train_profit(world.data, SCHEMA, ProfitConfig(max_epochs=6))


@pytest.fixture(scope="module")
def fresh() -> World:
    """Customers from the same world that the model has not seen."""
    return make_world(8_000, seed=2)


def test_it_recovers_the_simulated_truth(model, fresh):
    answer = forecast(model, fresh.data)
    error = answer.purchase[:, 0] - fresh.purchase[:, 0]
    assert np.sqrt(np.mean(error**2)) < 0.07  # chance alone: the truth's own spread is 0.19
    truth = fresh.purchase[:, 0] * fresh.margin
    assert answer.margin[:, 0].mean() == pytest.approx(truth.mean(), rel=0.1)  # heavy tails
    assert np.corrcoef(answer.margin[:, 0], truth)[0, 1] > 0.85


def test_it_recovers_whom_the_simulated_coupon_helps(model, fresh):
    answer = forecast(model, fresh.data)
    uplift = answer.purchase - answer.purchase[:, :1]
    truth = fresh.purchase - fresh.purchase[:, :1]
    assert uplift[:, 1].mean() == pytest.approx(truth[:, 1].mean(), abs=0.03)  # error 0.01, shrunk
    assert abs(uplift[:, 2].mean()) < 0.02
    assert uplift[fresh.likes_a, 1].mean() > 1.4 * uplift[~fresh.likes_a, 1].mean()
    assert np.corrcoef(uplift[:, 1], truth[:, 1])[0, 1] > 0.4


def test_expected_cost_is_the_simulated_redemption_never_the_face_value(model, fresh):
    answer = forecast(model, fresh.data)
    truth = fresh.purchase * 0.3 * np.array(SCHEMA.face_values)
    assert (answer.cost[:, 0] == 0).all()
    # 1,200 purchases with each coupon: the redemption rate alone has an error of 4 %.
    np.testing.assert_allclose(answer.cost.mean(axis=0)[1:], truth.mean(axis=0)[1:], rtol=0.15)


def test_the_order_of_the_days_matters_as_in_the_simulation(model):
    lately, long_ago = np.zeros((2, 1, 30), dtype=int)
    lately[0, -1] = long_ago[0, 0] = 1
    inputs = np.zeros((1, 3)), np.array([0.5])
    gap = logit(model.forecast(lately, *inputs).purchase) - logit(
        model.forecast(long_ago, *inputs).purchase
    )
    assert gap[0, 0] == pytest.approx(0.08 * 29, rel=0.35)  # the world's slope per day


@pytest.mark.parametrize("offered", [0.05, 0.3])
def test_in_a_simulated_null_world_coupons_have_next_to_no_effect(offered):
    null = make_world(12_000, seed=3, effect=0.0, offered=offered)
    answer = forecast(train_profit(null.data, SCHEMA, ProfitConfig(max_epochs=4)), null.data)
    assert np.abs(answer.purchase - answer.purchase[:, :1]).mean() < 0.015
    assert np.abs(answer.margin - answer.margin[:, :1]).mean() < 0.03 * answer.margin.mean()


def test_later_deciles_come_true_through_the_product(model, world):
    """Oracle: the outcomes of dates that neither weights nor calibration have seen."""
    report = compare_with_baselines(model, world.data)
    for table in (report.purchase_deciles, report.reward_deciles):
        assert sum(row.rows for row in table) == report.rows
        z = [(row.actual - row.predicted) / row.standard_error for row in table]
        assert np.sqrt(np.mean(np.square(z))) < 2.0  # 1 if the forecast were the truth


def test_asking_once_per_coupon_equals_one_pair_at_a_time():
    """Oracle: the same untrained network (random effects) on one customer and one coupon."""
    torch.manual_seed(0)
    network = ProfitNetwork(QUICK, SCHEMA, input_width(SCHEMA)).eval()
    torch.nn.init.normal_(network.effect_head.weight)
    data = make_world(20, seed=4).data
    model = train_profit(make_world(600, seed=4).data, SCHEMA, QUICK)
    inputs = make_inputs(SCHEMA, model.scaler, data.sequence, data.features, data.p_purchase)
    with torch.no_grad():
        everyone = network.encode(*inputs.batch(torch.arange(20))[:3])
        together = network.effect(*everyone, torch.arange(3).expand(20, -1))
        for row in range(20):
            alone = network.encode(*inputs.batch(torch.tensor([row]))[:3])
            for coupon in range(3):
                effect = network.effect(*alone, torch.tensor([[coupon]]))
                torch.testing.assert_close(effect[0, 0], together[row, coupon])
    assert (together[:, 0] == 0).all()
    assert (together[:, 1] - together[:, 2]).abs().min() > 0
    assert together[:, 1].std(dim=0).min() > 0  # the coupon attends to the customer's history


def test_forecasts_do_not_depend_on_who_else_is_asked_about(model, fresh):
    few = fresh.data.take(np.arange(50))
    one_by_one = [forecast(model, fresh.data.take(np.array([i]))).margin[0] for i in range(50)]
    np.testing.assert_allclose(forecast(model, few).margin, one_by_one, rtol=1e-4)


def test_a_category_never_seen_is_read_like_any_unseen_one(model, fresh):
    data = fresh.data.take(np.arange(100))
    new = replace(data, sequence=np.where(data.sequence == 3, 6, data.sequence))
    newer = replace(data, sequence=np.where(data.sequence == 3, 999, data.sequence))
    np.testing.assert_array_equal(forecast(model, new).reward, forecast(model, newer).reward)
    known = forecast(model, data).purchase[:, 0]
    assert np.abs(forecast(model, new).purchase[:, 0] - known).mean() < 0.1


def test_a_killed_and_resumed_training_equals_an_uninterrupted_one():
    """Oracle: the uninterrupted run, weight by weight."""
    data = make_world(2_000, seed=5).data
    config = ProfitConfig(max_epochs=4, batch_rows=256)
    checkpoints: list[Checkpoint] = []
    whole = train_profit(data, SCHEMA, config, on_checkpoint=checkpoints.append)
    second = checkpoints[1]
    stored = Checkpoint(load(save(second.tensors)), json.loads(json.dumps(second.state)))
    epochs: list[int] = []
    resumed = train_profit(
        data, SCHEMA, config, checkpoint=stored, on_epoch=lambda e: epochs.append(e.epoch)
    )
    assert epochs == [3, 4]
    for name, weights in whole.to_tensors().items():
        torch.testing.assert_close(resumed.to_tensors()[name], weights, rtol=0, atol=0)


def test_a_checkpoint_of_other_data_is_not_resumed():
    checkpoints: list[Checkpoint] = []
    train_profit(make_world(600, 6).data, SCHEMA, QUICK, on_checkpoint=checkpoints.append)
    epochs: list[int] = []
    train_profit(
        make_world(600, 7).data,
        SCHEMA,
        QUICK,
        checkpoint=checkpoints[0],
        on_epoch=lambda e: epochs.append(e.epoch),
    )
    assert epochs == [1, 2]


def test_early_stopping_keeps_the_best_epoch():
    losses: list[float] = []
    config = ProfitConfig(max_epochs=30, batch_rows=64, patience=2, learning_rate=0.02)
    model = train_profit(
        make_world(800, 8).data,
        SCHEMA,
        config,
        on_epoch=lambda e: losses.append(e.validation_loss),
    )
    assert len(losses) == model.training["best_epoch"] + 2 < 30
    assert model.training["best_epoch"] == int(np.argmin(losses)) + 1


def test_a_model_survives_storage_as_safetensors_and_json(model, fresh):
    tensors, metadata = save(model.to_tensors()), json.dumps(model.to_metadata())
    again = ProfitModel.from_parts(load(tensors), json.loads(metadata))
    for name in ("purchase", "margin", "cost"):
        np.testing.assert_array_equal(
            getattr(forecast(again, fresh.data), name), getattr(forecast(model, fresh.data), name)
        )


def test_weights_of_another_model_are_refused(model):
    metadata = json.loads(json.dumps(model.to_metadata()))
    metadata["schema"]["categories"].append("new")
    with pytest.raises(DataError, match="weights do not fit"):
        ProfitModel.from_parts(model.to_tensors(), metadata)


def test_a_cold_start_forecasts_every_coupon_like_none_and_prices_it_at_face_value():
    data = make_world(1_500, seed=9, offered=0.0).data
    answer = forecast(train_profit(data, SCHEMA, QUICK), data)
    np.testing.assert_array_equal(answer.purchase, answer.purchase[:, [0, 0, 0]])
    np.testing.assert_array_equal(answer.margin, answer.margin[:, [0, 0, 0]])
    # Nothing redeemed so far: every purchase is taken to redeem, so that a budget holds.
    np.testing.assert_allclose(
        answer.cost, answer.purchase * np.array(SCHEMA.face_values), rtol=1e-3
    )


def test_a_log_with_one_coupon_for_everybody_trains_and_claims_no_effect():
    data = replace(make_world(1_500, seed=10).data, coupon=np.ones(1_500, dtype=int))
    answer = forecast(train_profit(data, SCHEMA, QUICK), data)
    np.testing.assert_array_equal(answer.purchase[:, 1], answer.purchase[:, 0])
    assert answer.purchase[:, 1].mean() == pytest.approx(data.purchased.mean(), abs=0.05)


@pytest.mark.parametrize("n", [8, 30, 120])
def test_a_handful_of_rows_gives_finite_forecasts(n):
    data = replace(make_world(n, seed=16).data, day=np.arange(n) % 2 * 7)
    answer = forecast(train_profit(data, SCHEMA, QUICK), data)
    assert np.isfinite(answer.reward).all()
    assert ((answer.purchase > 0) & (answer.purchase < 1)).all()


def test_refunds_lower_the_margin_and_are_no_purchase():
    data = make_world(2_000, seed=11).data
    refunds = np.where(data.purchased, data.margin, -2.0)
    answer = forecast(train_profit(replace(data, margin=refunds), SCHEMA, QUICK), data)
    assert answer.margin[:, 0].mean() == pytest.approx(refunds.mean(), rel=0.15)
    assert answer.margin.min() > -2.0


def test_redemption_is_shrunk_to_the_pooled_coupons_by_hand():
    """Closed form: 12 of 30 purchases with A redeemed at 2.50 each, B never offered."""
    n = 30
    data = ProfitData(
        sequence=np.zeros((n, 30), dtype=int),
        features=np.zeros((n, 3)),
        coupon=np.ones(n, dtype=int),
        p_purchase=np.full(n, 0.5),
        day=np.zeros(n, dtype=int),
        purchased=np.ones(n, dtype=bool),
        margin=np.ones(n),
        cost=np.where(np.arange(n) < 12, 2.5, 0.0),
    )
    redemption = estimate_redemption(data, SCHEMA)
    pooled = 13 / 31
    np.testing.assert_allclose(redemption.rate, [0, (12 + 20 * pooled) / 50, pooled])
    np.testing.assert_allclose(redemption.cost, [0, 2.5, 5 * 2.5 / 3])


def test_later_dates_never_overlap_earlier_windows():
    """Brute force over pairs of rows."""
    day = np.repeat(np.arange(0, 60, 3), 4)
    training, tuning, report = split_by_date(day, 0.4, 7)
    assert min(training.sum(), tuning.sum(), report.sum()) > 0
    assert all(a + 7 <= b for a in day[training] for b in day[tuning])
    assert all(a + 7 <= b for a in day[tuning] for b in day[report])


def test_reported_boosting_equals_scikit_learn_used_directly(model, world):
    report = compare_with_baselines(model, world.data, seed=3)
    later = world.data.day >= report.from_day
    design = baseline_design(world.data, SCHEMA)
    direct = HistGradientBoostingRegressor(random_state=3)
    direct.fit(design[~later], world.data.reward[~later])
    guess, truth = direct.predict(design[later]), world.data.reward[later]
    scores = report.scores["gradient_boosting"]
    assert scores.reward_rmse == pytest.approx(np.sqrt(mean_squared_error(truth, guess)))
    assert scores.reward_r2 == pytest.approx(r2_score(truth, guess))
    mean = np.full(later.sum(), world.data.reward[~later].mean())
    assert report.scores["mean"].reward_r2 == pytest.approx(r2_score(truth, mean))
    assert report.scores["transformer"].reward_rmse < report.scores["mean"].reward_rmse
    json.dumps(report.to_dict())


def test_baseline_design_summarises_a_sequence_by_hand():
    data = make_world(1, seed=12).data
    sequence = np.zeros((1, 30), dtype=int)
    sequence[0, [5, 20, 27]] = 4, 2, 4
    design = baseline_design(replace(data, sequence=sequence, coupon=np.array([2])), SCHEMA)
    assert design[0, 4:].tolist() == [1, 2, 3, 3, 4, 2, 0, 0, 1]


def test_a_transformer_that_loses_says_so(world):
    untrained = train_profit(
        world.data.take(np.arange(2_000)), SCHEMA, replace(QUICK, max_epochs=1)
    )
    report = compare_with_baselines(
        replace(untrained, calibration=replace(untrained.calibration, margin_scale=500.0)),
        world.data,
    )
    assert not report.is_transformer_best
    assert "does not beat the simpler models" in report.verdict


def test_fit_glm_equals_scikit_learn():
    rng = np.random.default_rng(13)
    x = rng.normal(size=(500, 2))
    design, zero = np.column_stack([np.ones(500), x]), np.zeros(500)
    binary = (rng.random(500) < sigmoid(0.3 + x @ [1.0, -0.5])).astype(float)
    counts = rng.poisson(np.exp(0.2 + x @ [0.4, 0.3])).astype(float)
    logistic = LogisticRegression(C=1e10, tol=1e-10).fit(x, binary)
    poisson = PoissonRegressor(alpha=0, tol=1e-10, max_iter=1000).fit(x, counts)
    for target, link, oracle in (
        (binary, "logit", [*logistic.intercept_, *logistic.coef_[0]]),
        (counts, "log", [poisson.intercept_, *poisson.coef_]),
    ):
        np.testing.assert_allclose(fit_glm(design, target, zero, link)[0], oracle, atol=1e-4)


def test_robust_covariance_of_fit_glm_covers_in_simulation():
    """400 worlds with heavy-tailed margins: the standard error is the spread of the estimates."""
    rng = np.random.default_rng(14)
    design = np.column_stack([np.ones(300), rng.normal(size=300)])
    fits = [
        fit_glm(design, np.exp(0.3 * design[:, 1]) * rng.lognormal(0, 1, 300), np.zeros(300), "log")
        for _ in range(400)
    ]
    spread = np.std([coefficients[1] for coefficients, _ in fits])
    claimed = np.sqrt(np.mean([covariance[1, 1] for _, covariance in fits]))
    assert claimed == pytest.approx(spread, rel=0.15)


def test_shrinking_forgets_noise_and_keeps_what_is_clear():
    np.testing.assert_allclose(shrink(np.array([1.0, -1.0, 10.0]), 1.0), [0, 0, 9.8])


def test_decile_table_by_hand():
    table = decile_table(np.arange(20.0)[::-1], 2 * np.arange(20.0)[::-1])
    assert [(row.predicted, row.actual, row.rows) for row in table[:2]] == [
        (0.5, 1.0, 2),
        (2.5, 5.0, 2),
    ]
    assert len(decile_table(np.arange(3.0), np.arange(3.0))) == 3


def spoil(**columns):
    """The log with some rows (7, 8, …) of a column overwritten, or a column replaced."""
    data = make_world(400, seed=15).data
    changed = {}
    for name, value in columns.items():
        column = np.array(getattr(data, name), dtype=float if name != "sequence" else int)
        column[7:14] = value
        changed[name] = column.astype(int) if name == "coupon" else column
    return replace(data, **changed)


BAD_DATA = [
    (spoil(margin=np.nan), r"finite margin, but not so in rows 7, 8, 9, 10, 11, … \(7 rows\)"),
    (spoil(cost=-1.0), r"finite cost of 0 or more.*rows 7"),
    (spoil(coupon=3), r"coupon index below 3.*rows 7"),
    (spoil(features=np.inf), r"finite features \(NaN = unknown\).*rows 7"),
    (spoil(p_purchase=1.5), r"p_purchase within \[0, 1\].*rows 7"),
    (spoil(p_purchase=np.nan), r"p_purchase within \[0, 1\].*rows 7"),
    (spoil(sequence=-1), r"category ids of 0 or more.*rows 7"),
    (replace(spoil(), sequence=np.zeros((400, 29), int)), r"shape \(400, 30\), got \(400, 29\)"),
    (replace(spoil(), features=np.zeros((400, 2))), r"shape \(400, 3\), got \(400, 2\)"),
    (replace(spoil(), margin=np.zeros(399)), r"margin of shape \(400,\), got \(399,\)"),
    (replace(spoil(), margin=np.full(400, -1.0)), r"mean margin of -1\.00; check orders\.margin"),
    (replace(spoil(), purchased=np.zeros(400, bool)), r"no window with a purchase"),
    (replace(spoil(), day=np.zeros(400, int)), r"at least two past decision dates 7 days apart"),
]


@pytest.mark.parametrize(("data", "message"), BAD_DATA)
def test_bad_data_is_refused_with_the_rows(data, message):
    with pytest.raises(DataError, match=message):
        train_profit(data, SCHEMA, QUICK)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_model": 30, "heads": 4}, "multiple of heads, got 30 and 4"),
        ({"device": "tpu"}, "auto, cpu or cuda, got 'tpu'"),
        ({"validation_share": 1.0}, "between 0 and 1, got 1.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        ProfitConfig(**settings)


@pytest.mark.parametrize(
    ("coupons", "faces"), [(("A", "none"), (3.0, 0.0)), (("none", "A"), (0.0,))]
)
def test_a_schema_without_none_first_or_a_face_value_each_is_refused(coupons, faces):
    with pytest.raises(DataError, match="expected"):
        replace(SCHEMA, coupons=coupons, face_values=faces)
