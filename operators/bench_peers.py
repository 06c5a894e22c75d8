"""What people use today, in the way its own documentation shows."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from winback.models.errors import SettingsError

PDLP_TOLERANCE = 1e-6  # relative, its documented default


@dataclass(frozen=True)
class CouponProgram:
    """The allocation's linear program: max value · x, low ≤ rows · x ≤ high, 0 ≤ x ≤ most.

    The first rows are one per customer (Σ x = 1), then the budget and the limits.
    """

    value: Any  # (variables,)
    rows: Any  # sparse (constraints, variables)
    low: Any
    high: Any
    most: Any  # (variables,) 0 where a coupon is not eligible


def coupon_program(
    value: Any, cost: Any, budget: float, eligible: Any, limits: Sequence[Any]
) -> CouponProgram:
    """The program of :func:`winback.models.limited_allocation.solve_with_limits`."""
    from scipy import sparse

    n, coupons = value.shape
    customer = np.repeat(np.arange(n), coupons)
    one_each = sparse.csr_matrix(
        (np.ones(n * coupons), (customer, np.arange(n * coupons))), shape=(n, n * coupons)
    )
    weights = [cost, *(limit.weight(cost) for limit in limits)]
    capped = sparse.csr_matrix(np.stack([weight.ravel() for weight in weights]))
    return CouponProgram(
        value=np.where(eligible, value, 0.0).ravel(),
        rows=sparse.vstack([one_each, capped], format="csc"),
        low=np.concatenate([np.ones(n), [-np.inf], [limit.floor for limit in limits]]),
        high=np.concatenate([np.ones(n), [budget], [limit.ceiling for limit in limits]]),
        most=eligible.astype(np.float64).ravel(),
    )


def solve_by_highs(program: CouponProgram) -> float:
    """The optimum by HiGHS' interior point method, through SciPy."""
    from scipy import sparse
    from scipy.optimize import linprog

    rows, equal = program.rows.tocsr(), program.low == program.high
    above = ~equal & np.isfinite(program.high)
    below = ~equal & np.isfinite(program.low)
    answer = linprog(
        -program.value,
        A_ub=sparse.vstack([rows[above], -rows[below]], format="csr"),
        b_ub=np.concatenate([program.high[above], -program.low[below]]),
        A_eq=rows[equal],
        b_eq=program.low[equal],
        bounds=np.column_stack([np.zeros(len(program.most)), program.most]),
        method="highs-ipm",
    )
    return -float(answer.fun)


def solve_by_pdlp(program: CouponProgram) -> float:
    """The optimum by PDLP, to its default tolerance."""
    try:
        from ortools.pdlp import solvers_pb2
        from ortools.pdlp.python import pdlp
    except ImportError as error:
        raise SettingsError(
            "OR-tools is not installed. Run: pip install 'winback[bench]'"
        ) from error
    quadratic = pdlp.QuadraticProgram()
    quadratic.resize_and_initialize(len(program.value), len(program.low))
    quadratic.objective_vector = -program.value
    quadratic.constraint_matrix = program.rows
    quadratic.constraint_lower_bounds = program.low
    quadratic.constraint_upper_bounds = program.high
    quadratic.variable_lower_bounds = np.zeros(len(program.value))
    quadratic.variable_upper_bounds = program.most
    parameters = solvers_pb2.PrimalDualHybridGradientParams()
    accuracy = parameters.termination_criteria.simple_optimality_criteria
    accuracy.eps_optimal_relative = accuracy.eps_optimal_absolute = PDLP_TOLERANCE
    result = pdlp.primal_dual_hybrid_gradient(quadratic, parameters)
    return float(program.value @ result.primal_solution)


def reference_learning(
    today: Sequence[tuple[Any, Sequence[float]]],
    memory: list[tuple[Any, int, float]],
    coupons: int,
    planned: int,
) -> dict[Any, float]:
    """The reference system's Q-learning, an entry of a dictionary at a time; s' = s throughout.

    Args:
        today: states and what each coupon brings there, one real step each.
        memory: earlier (state, coupon, reward); grows by one a step.
        coupons: number of them.
        planned: updates from memory per real one.
    """
    from winback.models.peers_reference import ALPHA, EPSILON, GAMMA

    table: dict[Any, float] = defaultdict(float)

    def update(state: Any, coupon: int, reward: float) -> None:
        following = max(table[(state, other)] for other in range(coupons))
        table[(state, coupon)] += ALPHA * (reward + GAMMA * following - table[(state, coupon)])

    draw = random.Random(0)
    for state, profit in today:
        if draw.random() < EPSILON[0]:
            coupon = draw.randrange(coupons)
        else:
            coupon = max(range(coupons), key=lambda other, at=state: table[(at, other)])  # type: ignore[misc]
        memory.append((state, coupon, profit[coupon]))
        update(*memory[-1])
        for _ in range(planned):
            update(*draw.choice(memory))
    return table


def reference_training(categories: int, width: int, heads: int, layers: int) -> tuple[Any, Any]:
    """The reference system's training loop: rows of a frame, one by one, through a DataLoader.

    Returns:
        train(frame, epochs, batch) -> seconds, and predict(frame) -> (n,) rewards.
    """
    import time

    import torch
    from torch.utils.data import DataLoader

    torch.manual_seed(0)
    network = _reference_network(categories, width, heads, layers)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)

    def train(frame: Any, epochs: int, batch: int) -> float:
        rows = DataLoader(_rows_of(frame), batch_size=batch, shuffle=True)
        started = time.perf_counter()
        for _ in range(epochs):
            for sequence, features, target in rows:
                loss = torch.nn.functional.mse_loss(network(sequence, features), target)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return time.perf_counter() - started

    def predict(frame: Any) -> Any:
        network.eval()
        with torch.no_grad():
            parts = [network(s, x) for s, x, _ in DataLoader(_rows_of(frame), batch_size=512)]
        return torch.cat(parts).double().numpy()

    return train, predict


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


def _reference_network(categories: int, width: int, heads: int, layers: int) -> Any:
    """Categories of 30 days through an encoder; its first place and the features to a reward."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.1, batch_first=True)
            self.embed = nn.Embedding(categories, width)
            self.encoder = nn.TransformerEncoder(layer, layers)
            self.head = nn.Sequential(nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, 1))

        def forward(self, sequence: Any, features: Any) -> Any:
            summary = self.encoder(self.embed(sequence))[:, 0]
            return self.head(torch.cat([summary, features], dim=1)).squeeze(1)

    return Network()
