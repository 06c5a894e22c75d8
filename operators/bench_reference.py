"""The reference system's learning, as its article describes it: entry by entry, row by row.

Its numbers are those of models/peers_reference.py.
"""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from winback.models.peers_reference import (
    ALPHA,
    BATCH,
    EPOCHS,
    EPSILON,
    GAMMA,
    HEADS,
    HIDDEN,
    LAYERS,
    LEARNING_RATE,
    WIDTH,
)


def reference_learning(
    today: Iterable[tuple[Any, Callable[[int], Any]]],
    memory: list[tuple[Any, int, Any]],
    coupons: int,
    planned: int,
) -> dict[Any, Any]:
    """The reference system's Q-learning, an entry of a dictionary at a time; s' = s throughout.

    Args:
        today: states and what a coupon brings there, one real step each.
        memory: earlier (state, coupon, reward); grows by one a step.
        coupons: number of them.
        planned: updates from memory per real one.
    """
    table: dict[Any, Any] = defaultdict(float)

    def update(state: Any, coupon: int, reward: Any) -> None:
        following = max(table[(state, other)] for other in range(coupons))
        table[(state, coupon)] += ALPHA * (reward + GAMMA * following - table[(state, coupon)])

    draw = random.Random(0)
    for state, profit in today:
        if draw.random() < EPSILON[0]:
            coupon = draw.randrange(coupons)
        else:
            coupon = best_coupon(table, state, coupons)
        memory.append((state, coupon, profit(coupon)))
        update(*memory[-1])
        for _ in range(planned):
            update(*draw.choice(memory))
    return table


def best_coupon(table: dict[Any, Any], state: Any, coupons: int) -> int:
    """The coupon of the highest value in a state."""
    return max(range(coupons), key=lambda coupon: table[(state, coupon)])


class ReferenceNetwork:
    """The reference system's Transformer and how it goes over a frame: row by row.

    Frames have a range index and the columns ``seq`` (30 categories), ``reward`` and features, the
    coupon's face value over the highest one last.
    """

    def __init__(self, categories: int) -> None:
        import torch

        torch.manual_seed(0)
        self.network = _network(categories)

    def train(self, frame: Any) -> float:
        """Seconds of all epochs."""
        import torch
        from torch.utils.data import DataLoader

        self.network.train()
        rows = DataLoader(_rows_of(frame), batch_size=BATCH, shuffle=True)
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=LEARNING_RATE)
        started = time.perf_counter()
        for _ in range(EPOCHS):
            for sequence, features, target in rows:
                loss = torch.nn.functional.mse_loss(self.network(sequence, features), target)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return time.perf_counter() - started

    def predict(self, frame: Any) -> Any:
        """(n,) rewards."""
        import torch
        from torch.utils.data import DataLoader

        self.network.eval()
        with torch.no_grad():
            loader = DataLoader(_rows_of(frame), batch_size=512)
            parts = [self.network(sequence, features) for sequence, features, _ in loader]
        return torch.cat(parts).double().numpy()

    def roll_out(self, sequence: Any, features: Any) -> float:
        """The reward of one customer with one coupon."""
        import torch

        self.network.eval()
        inputs = (
            torch.as_tensor(sequence, dtype=torch.long)[None],
            torch.as_tensor(features, dtype=torch.float32)[None],
        )
        with torch.no_grad():
            return float(self.network(*inputs).item())


def _rows_of(frame: Any) -> Any:
    """A Dataset that looks each row up in the frame when it is asked for."""
    import torch
    from torch.utils.data import Dataset

    columns = [name for name in frame.columns if name not in ("seq", "reward")]

    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return len(frame)

        def __getitem__(self, index: int) -> Any:
            row = frame.loc[index]
            features = torch.as_tensor(row[columns].to_numpy(np.float32))
            target = torch.tensor(row["reward"], dtype=torch.float32)
            return torch.as_tensor(row["seq"], dtype=torch.long), features, target

    return Rows()


def _network(categories: int) -> Any:
    """Categories of 30 days through an encoder; its first place and the features to a reward."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, 0.1, batch_first=True)
            self.embed = nn.Embedding(categories, WIDTH)
            self.encoder = nn.TransformerEncoder(layer, LAYERS)
            self.head = nn.Sequential(nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, 1))

        def forward(self, sequence: Any, features: Any) -> Any:
            summary = self.encoder(self.embed(sequence))[:, 0]
            return self.head(torch.cat([summary, features], dim=1)).squeeze(1)

    return Network()
