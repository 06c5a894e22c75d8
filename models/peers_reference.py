"""The reference system as its article describes it, faults included: a yardstick, not advice.

BG/NBD on snapshot rows, P(alive) × r̂ as reward, the face value charged whether redeemed or not, a
Transformer over category sequences drawn at random whose first token is read as the summary, and
Q-learning whose next state is the present one. The budget is only a feature.
"""

from typing import Any, TypeAlias

import numpy as np

from winback.models.peers_data import Floats, Ints, PeerData
from winback.models.survival import fit_survival, probability_alive

STATE = (
    "days_since_last_purchase",
    "purchases_last_30d",
    "avg_order_value",
    "remaining_budget_pct",
    "category_id",
)
WIDTHS = (10.0, 2.0, 20.0, 0.1, 1.0)  # of the state's buckets
SEQUENCE, WIDTH, HEADS, LAYERS, HIDDEN = 30, 32, 4, 2, 64  # the article's network
EPOCHS, BATCH, LEARNING_RATE = 3, 256, 2e-3
TRAINING_ROWS = 10_000  # a sample: random sequences teach nothing, and CPU time is dear
GAMMA, ALPHA, PLANNING = 0.95, 0.30, 20
ROUNDS, TRAFFIC, REMEMBERED = 4, 1500, 2000  # of Q-learning: passes, customers each, first buffer
EPSILON = (0.30, 0.05)

Table: TypeAlias = list[list[float]]  # Q, a row per state
Experience: TypeAlias = tuple[int, int, float]  # state, coupon, reward


def reference_q(data: PeerData) -> Floats:
    """(n, A) its Q for every customer; 0 for every coupon where it has never been."""
    random = np.random.default_rng([data.seed, 4])
    log, now = _state(data.features, data), _state(data.now, data)
    buckets, row = np.unique(np.floor(np.vstack([log, now]) / WIDTHS), axis=0, return_inverse=True)
    row = row.ravel()
    reward = data.margin - data.face_values[data.coupon]
    forecast = _train(log, data, reward, random)
    q = [[0.0] * data.coupons for _ in buckets]  # lists: a hundred thousand updates, one by one
    alive = _alive(data)
    memory = random.integers(0, len(reward), REMEMBERED)
    buffer = [(int(row[i]), int(data.coupon[i]), float(reward[i])) for i in memory]
    for number in range(1, ROUNDS + 1):
        epsilon = max(EPSILON[1], EPSILON[0] * (1 - number / ROUNDS))
        today = random.integers(0, len(reward), TRAFFIC)
        profit = alive[today][:, None] * forecast(log[today])
        _play(q, row[today], profit, epsilon, buffer, random)
    table: Floats = np.array(q)[row[len(log) :]]
    return table


def _state(features: Floats, data: PeerData) -> Floats:
    """(k, 5) the article's state; a budget share that nobody knows counts as whole."""
    columns = [features[:, data.names.index(name)] for name in STATE]
    return np.where(np.isnan(state := np.column_stack(columns)), 1.0, state)


def _alive(data: PeerData) -> Floats:
    """(m,) P(alive) of each row's customer at the end of the log, one snapshot = one purchase."""
    distinct, customer = np.unique(data.customer, return_inverse=True)
    frequency = np.bincount(customer) - 1
    first = np.full(len(distinct), data.day.max())
    np.minimum.at(first, customer, data.day)
    last = np.full(len(distinct), data.day.min())
    np.maximum.at(last, customer, data.day)
    age = data.day.max() + data.decision_days - first
    fit = fit_survival(frequency, last - first, age)
    alive: Floats = probability_alive(fit, frequency, last - first, age)[customer]
    return alive


def _play(
    q: Table,
    states: Ints,
    profit: Floats,
    epsilon: float,
    buffer: list[Experience],
    random: np.random.Generator,
) -> None:
    """One pass of Q-learning in place; s' = s, in the real updates and in the planned ones."""
    explores = random.random(len(states)) < epsilon
    drawn = random.integers(0, profit.shape[1], len(states)).tolist()
    for step, state in enumerate(states.tolist()):
        coupon = drawn[step] if explores[step] else q[state].index(max(q[state]))
        buffer.append((state, coupon, float(profit[step, coupon])))
        _update(q, buffer[-1])
        for place in random.integers(0, len(buffer), PLANNING).tolist():
            _update(q, buffer[place])


def _update(q: Table, experience: Experience) -> None:
    state, coupon, reward = experience
    values = q[state]
    values[coupon] += ALPHA * (reward + GAMMA * max(values) - values[coupon])


def _train(state: Floats, data: PeerData, reward: Floats, random: np.random.Generator) -> Any:
    """A function from states (k, 5) to forecast rewards (k, A)."""
    import torch

    torch.manual_seed(data.seed)
    categories = int(state[:, -1].max()) + 1
    network = _network(categories)
    chosen = random.permutation(len(reward))[:TRAINING_ROWS]
    face = data.face_values / data.face_values.max()
    inputs = _tensor(np.column_stack([state[chosen], face[data.coupon[chosen]]]))
    sequence = torch.from_numpy(random.integers(0, categories, (len(chosen), SEQUENCE)))
    target = _tensor(reward[chosen])
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(chosen)), BATCH):
            optimizer.zero_grad()
            error = _forward(network, sequence[rows], inputs[rows]) - target[rows]
            (error**2).mean().backward()
            optimizer.step()
    network.eval()

    def forecast(states: Floats) -> Floats:
        seen = torch.from_numpy(random.integers(0, categories, (len(states), SEQUENCE)))
        asked = (np.column_stack([states, np.full(len(states), value)]) for value in face)
        with torch.no_grad():
            columns = [_forward(network, seen, _tensor(rows)).numpy() for rows in asked]
        return np.column_stack(columns).astype(np.float64)

    return forecast


def _network(categories: int) -> Any:
    from torch import nn

    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.1, batch_first=True)
    head = nn.Sequential(nn.Linear(WIDTH + len(STATE) + 1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    encoder = nn.TransformerEncoder(layer, LAYERS)
    return nn.ModuleList([nn.Embedding(categories, WIDTH), encoder, head])


def _forward(network: Any, sequence: Any, inputs: Any) -> Any:
    import torch

    embed, encoder, head = network
    summary = encoder(embed(sequence))[:, 0]  # position 0 plays the summary token
    return head(torch.cat([summary, inputs], dim=1)).squeeze(1)


def _tensor(values: Floats) -> Any:
    import torch

    return torch.from_numpy(values.astype(np.float32))
