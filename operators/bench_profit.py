"""Benchmarks of the profit model: training, and scoring customers with every coupon."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from winback.operators.bench_measure import Answer, BenchError, Done, Place, Step

COUPONS, FACES = ("none", "save4", "save8", "save14"), np.array([0.0, 4.0, 8.0, 14.0])
CATEGORIES = tuple("abcdefgh")
FEATURES = ("days_since_last_purchase", "purchases_last_30d", "avg_order_value", "budget")
SOME_ROWS = 1_024  # for a model to ask, and to count its operations
DATES, LATER = 16, 4  # decision dates, the latest of them unseen in training
WORSE = 1.1  # times the peer's squared error on later rows: beyond it, speed is bought with loss
AGREE = 1e-4  # absolute, currency: two orders of float32 sums
ASKED = 50_000  # decisions that a learning curve is judged on
REPLAYED = 500  # customers that are asked about one pair at a time


def training_rows(n: int, seed: int = 0) -> Any:
    """n past decisions of customers whose purchases depend on recency, taste and coupon."""
    return rows_and_truth(n, seed)[0]


def rows_and_truth(n: int, seed: int = 0) -> tuple[Any, Any]:
    """n past decisions, and (n,) the profit that was to be expected of each."""
    from winback.models.profit_data import SEQUENCE_DAYS, ProfitData

    random = np.random.default_rng(seed)
    shape = (n, SEQUENCE_DAYS)
    is_bought = random.random(shape) < random.beta(1, 6, (n, 1))
    sequence = np.where(is_bought, random.integers(1, len(CATEGORIES) + 1, shape), 0)
    since = np.where(is_bought.any(axis=1), is_bought[:, ::-1].argmax(axis=1), SEQUENCE_DAYS)
    basket = random.gamma(6.0, 8.0, n)
    features = np.column_stack([since, is_bought.sum(axis=1), basket, random.random(n)])
    coupon = np.where(random.random(n) < 0.4, random.integers(1, len(COUPONS), n), 0)
    odds = 0.2 - 0.1 * since + 0.06 * FACES[coupon] * (sequence[:, -10:] == 2).any(axis=1)
    known = 1 / (1 + np.exp(0.1 * since - 0.2))
    chance = 1 / (1 + np.exp(-odds))
    bought = random.random(n) < chance
    spread, redeemed = 0.4, 0.6
    expected = chance * (0.35 * basket * np.exp(spread**2 / 2) - redeemed * FACES[coupon])
    rows = ProfitData(
        sequence=sequence,
        features=features.astype(np.float64),
        coupon=coupon,
        p_purchase=known,
        day=7 * random.integers(0, DATES, n),
        purchased=bought,
        margin=np.where(bought, 0.35 * basket * random.lognormal(0, spread, n), 0.0),
        cost=np.where(bought & (random.random(n) < redeemed), FACES[coupon], 0.0),
    )
    return rows, expected


def _schema() -> Any:
    from winback.models.profit_data import ProfitSchema

    return ProfitSchema(FEATURES, CATEGORIES, COUPONS, tuple(FACES.tolist()))


def _config() -> Any:
    """The reference's width, layers, heads and batch; all epochs, as it has no early stopping."""
    from winback.models.peers_reference import BATCH, EPOCHS, HEADS, LAYERS, WIDTH
    from winback.models.profit_config import ProfitConfig

    return ProfitConfig(
        d_model=WIDTH,
        layers=LAYERS,
        heads=HEADS,
        batch_rows=BATCH,
        max_epochs=EPOCHS,
        patience=EPOCHS,
        max_rows=10**9,
        device="cpu",
    )


def _train(size: int, place: Place) -> Callable[[], Done]:
    from winback.models.profit_training import train_profit

    data = training_rows(size)
    earlier, later = _split(data)
    flops = _flops_per_row(data.take(np.arange(min(size, SOME_ROWS))))

    def run() -> Done:
        model = train_profit(earlier, _schema(), _config())
        epochs = model.training["history"]
        work = model.training["rows"] * len(epochs)
        forecast = model.forecast(later.sequence, later.features, later.p_purchase)
        error = float(((forecast.of(later.coupon).reward - later.reward) ** 2).mean())
        seconds = sum(epoch["seconds"] for epoch in epochs)
        return Done({"error": error}, work, seconds, moved=work * flops, notes={"error": error})

    return run


def _split(data: Any) -> tuple[Any, Any]:
    is_late = data.day >= 7 * (DATES - LATER)
    return data.take(~is_late), data.take(is_late)


def _flops_per_row(data: Any) -> float:
    """Floating-point operations of matrix products per trained row, there and back."""
    from torch.utils.flop_counter import FlopCounterMode

    from winback.models.profit_training import train_profit

    with FlopCounterMode(display=False) as counter:
        model = train_profit(data, _schema(), replace(_config(), max_epochs=1))
    trained, tuned = model.training["rows"], model.training["tuning_rows"]
    # a tuning row goes forward once, and so does each row in calibration: a third of there and back
    rows = trained + (2 * tuned + trained) / 3
    return float(counter.get_total_flops() / rows)


def _train_reference(size: int, place: Place) -> Callable[[], Done]:
    from winback.models.peers_reference import EPOCHS
    from winback.operators.bench_reference import ReferenceNetwork

    data = training_rows(size)
    earlier, later = _split(data)
    face = FACES / FACES.max()

    def run() -> Done:
        network = ReferenceNetwork(len(CATEGORIES) + 1)
        seconds = network.train(_frame(earlier, face))
        error = float(((network.predict(_frame(later, face)) - later.reward) ** 2).mean())
        work = len(earlier.coupon) * EPOCHS
        return Done({"error": error}, work, seconds, notes={"error": error})

    return run


def _frame(data: Any, face: Any) -> Any:
    """One row per decision, as the reference keeps them."""
    import pandas as pd

    frame = pd.DataFrame(dict(zip(FEATURES, data.features.T, strict=True)))
    frame["category_idx"] = data.sequence[:, -1].astype(np.float64)
    frame["seq"] = list(data.sequence)
    frame["coupon"], frame["reward"] = face[data.coupon], data.reward
    return frame


def _same_loss(ours: Answer, theirs: Answer) -> str:
    if not ours["error"] <= WORSE * theirs["error"]:
        raise BenchError(
            f"expected a squared error on later rows as low as the peer's {theirs['error']:.4g}, "
            f"came {ours['error']:.4g}: faster at a higher loss is not faster"
        )
    return f"squared error {ours['error']:.4g} and {theirs['error']:.4g}"


def _learn(size: int, place: Place) -> Callable[[], Done]:
    """As the daily run trains, on so many decisions; asked of others whose truth is known."""
    from winback.models.profit_config import ProfitConfig
    from winback.models.profit_training import train_profit

    data = training_rows(size)
    asked, truth = rows_and_truth(ASKED, seed=1)
    config = replace(ProfitConfig(), max_rows=size, device="cpu")

    def run() -> Done:
        model = train_profit(data, _schema(), config)
        found = model.forecast(asked.sequence, asked.features, asked.p_purchase)
        return _missed(found.of(asked.coupon).reward, truth)

    return run


def _learn_by_boosting(size: int, place: Place) -> Callable[[], Done]:
    """The baseline of every run's report, from as many decisions."""
    from winback.models.profit_baselines import boosting_forecast

    data = training_rows(size)
    asked, truth = rows_and_truth(ASKED, seed=1)

    def run() -> Done:
        return _missed(boosting_forecast(data, asked, _schema(), 0)[1], truth)

    return run


def _missed(reward: Any, truth: Any) -> Done:
    """What a forecast leaves unexplained of the expected profit, which has no noise."""
    return Done({"missed": float(((reward - truth) ** 2).mean() / truth.var())})


def _say_missed(ours: Answer, theirs: Answer) -> str:
    missed = (answer["missed"] for answer in (ours, theirs))
    return "{:.2%} and {:.2%} of the expected profit unexplained".format(*missed)


def _model_and_rows(size: int) -> tuple[Any, Any]:
    from winback.models.profit_training import train_profit

    model = train_profit(training_rows(SOME_ROWS), _schema(), replace(_config(), max_epochs=1))
    return model, training_rows(size, seed=1)


def _score(size: int, place: Place) -> Callable[[], Done]:
    model, rows = _model_and_rows(size)

    def run() -> Done:
        found = model.forecast(rows.sequence, rows.features, rows.p_purchase)
        return Done({"reward": found.reward[:REPLAYED].tolist()})

    return run


def _score_pairs(size: int, place: Place) -> Callable[[], Done]:
    """Each customer encoded anew for every coupon, in the same batches."""
    model, rows = _model_and_rows(size)

    def run() -> Done:
        reward = forecast_pairs(model, rows, 4096)
        return Done({"reward": reward[:REPLAYED].tolist()})

    return run


def _score_one_by_one(size: int, place: Place) -> Callable[[], Done]:
    """One customer and coupon at a time, as the reference's roll-outs."""
    model, rows = _model_and_rows(size)
    asked = rows.take(np.arange(min(size, REPLAYED)))

    def run() -> Done:
        reward = forecast_pairs(model, asked, 1)
        return Done({"reward": reward.tolist()}, work=len(reward))

    return run


def forecast_pairs(model: Any, rows: Any, batch: int) -> Any:
    """(n, A) forecasts by one pass of the network per customer and coupon, all 30 days read."""
    import torch

    from winback.models.profit import make_inputs, torch_threads

    arrays = (rows.sequence, rows.features, rows.p_purchase)
    inputs = make_inputs(model.schema, model.scaler, *arrays)
    n, coupons = len(rows.coupon), len(COUPONS)
    base, effect = torch.empty(n, coupons, 2), torch.empty(n, coupons, 3)
    with torch.no_grad(), torch_threads(model.config.threads):
        for at in torch.split(torch.arange(n), batch):
            for coupon in range(coupons):
                tokens, days = inputs.tokens[at], inputs.days[at]
                memory, visible = model.network.encode(tokens, days, inputs.features[at])
                base[at, coupon] = model.network.base(memory, visible, inputs.survival[at])
                asked = torch.full((len(at), 1), coupon)
                effect[at, coupon] = model.network.effect(memory, visible, asked)[:, 0]
    calibrated = model.calibration.base(base[:, 0].double().numpy())
    priced = model.price(calibrated, model.calibration.effect(effect.double().numpy()))
    return priced.reward


def _same_forecast(ours: Answer, theirs: Answer) -> str:
    common = min(len(ours["reward"]), len(theirs["reward"]))
    pair = (np.array(answer["reward"][:common]) for answer in (ours, theirs))
    worst = float(np.abs(np.subtract(*pair)).max())
    if not worst <= AGREE:
        raise BenchError(f"forecasts differ by up to {worst:g}, expected {AGREE:g}")
    return f"forecasts {worst:.1g} apart"


PROFIT_STEPS = (
    Step(
        name="training",
        title="profit model, training",
        unit="rows",
        sizes=(5_000, 10_000, 20_000),
        quick=(1_000, 2_000),
        sides={"winback": _train, "Dataset and DataLoader": _train_reference},
        agree=_same_loss,
        limit="matmul",
        is_rate=True,
    ),
    Step(
        name="learning-curve",
        title="profit model, learned from so many decisions",
        unit="rows",
        sizes=(12_500, 25_000, 50_000, 100_000, 200_000, 400_000),
        quick=(1_000, 2_000),
        sides={"winback": _learn, "gradient boosting": _learn_by_boosting},
        agree=_say_missed,
    ),
    Step(
        name="scoring",
        title=f"profit model, scoring × {len(COUPONS)} coupons",
        unit="customers",
        sizes=(10_000, 50_000, 200_000),
        quick=(1_000, 2_000),
        sides={
            "winback": _score,
            "a pass per pair": _score_pairs,
            "one pair at a time": _score_one_by_one,
        },
        agree=_same_forecast,
        is_rate=True,
    ),
)
