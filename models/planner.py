"""Dyna-Q: which coupon pays in the long run, from real decisions and a learned model.

Source: Sutton & Barto (2018), Reinforcement Learning, section 8.2 (Dyna-Q) and 8.4 (prioritised
sweeping). One real decision makes one temporal-difference update and K planning updates from the
model. The same loop runs on an environment (the book's maze) and on a log of past decisions; on a
log the model is known at the start and the last step is to sweep to its exact fixed point.
"""

import heapq
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from numba import njit

from winback.models.mdp import (
    TERMINAL,
    CustomerModel,
    Transitions,
    check_discount,
    value_iteration,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ROUNDS = 10  # steps in which ε falls during one pass through the log
URGENT = 1e-3  # changes below this share of the reward's scale are left to the final sweeps


@dataclass(frozen=True)
class PlanResult:
    """The plan; S states × A coupons."""

    q: Floats  # (S, A) long-run value at the price of coupon money
    value: Floats  # (S,) of the best allowed coupon
    greedy: Ints  # (S,) the allowed coupon of highest q; ties go to the first, `none` before all
    residual: float  # max|TQ − Q| / max(1, max|Q|) at the end
    residual_before_sweeps: float  # the same after the Dyna-Q pass
    td_updates: int
    planning_updates: int
    sweeps: int


class Environment(Protocol):
    """What dyna_q_on_environment needs: numbered states and actions, deterministic outcomes."""

    n_states: int
    n_actions: int
    start: int

    def step(self, state: int, action: int) -> tuple[float, int, bool]:
        """(reward, next state, whether the episode ends there)."""


class _Tables(NamedTuple):
    """The model as the compiled loop reads it. A pair is state × A + action."""

    first: Ints  # (pairs + 1,) a pair's outcomes are first[pair] … first[pair + 1]
    successor: Ints  # (outcomes,) next state; negative: nothing follows
    chance: Floats  # (outcomes,)
    reward: Floats  # (pairs,)
    first_into: Ints  # (S + 1,)
    pair_into: Ints  # pairs that lead into a state, the likeliest first
    chance_into: Floats
    visited: Ints  # pairs to draw from in random planning


@njit(cache=False)
def td_update(value, reward, best_next, alpha, gamma):  # type: ignore[no-untyped-def]
    """Q ← Q + α [r + γ max Q(s', ·) − Q]."""
    return value + alpha * (reward + gamma * best_next - value)


@njit(cache=False)
def step_size(alpha, visits):  # type: ignore[no-untyped-def]
    """α / (1 + α·n) at the n-th earlier visit: from α down like 1/n (Robbins-Monro)."""
    return alpha / (1.0 + alpha * visits)


def dyna_q(
    model: CustomerModel,
    transitions: Transitions,
    *,
    price: float = 0.0,
    gamma: float = 0.95,
    planning_updates: int = 20,
    alpha: float = 0.3,
    epsilon: tuple[float, float] = (0.30, 0.05),
    tolerance: float = 1e-6,
    seed: int = 0,
) -> PlanResult:
    """Plan on logged decisions, (n,) each, oldest first, at a price of coupon money.

    Actions were chosen by the log, so exploration concerns planning: with probability ε (falling
    linearly between the two values) a planning update looks at a random visited pair instead of
    the most urgent one. α falls with the visits of a pair (step_size). Logged rewards count as they
    came, less the price of the coupon money expected.
    Values end within ``tolerance`` (relative) of the model's exact fixed point.
    """
    states, coupons = model.shape
    check_discount(gamma)
    transitions.check(states, coupons)
    log = transitions.completed()
    payoff = model.payoff(price)
    # the mean level first: it is the slowest to spread, one factor γ per sweep
    level = float(np.mean(model.value(payoff))) if states else 0.0
    q, allowed = np.full(states * coupons, level / (1 - gamma)), model.allowed.ravel()
    pair = log.state * coupons + log.coupon
    reward = log.reward - price * model.cost.ravel()[pair]
    seen, tables = np.zeros(states * coupons, dtype=np.int64), _tables(model, payoff, pair)
    random = np.random.default_rng(seed)
    urgent = URGENT * max(float(np.abs(payoff).max(initial=0.0)), 1e-9)
    planned, parts = 0, np.array_split(np.arange(len(log)), ROUNDS)
    for index, rows in enumerate(parts):
        share = epsilon[0] + (epsilon[1] - epsilon[0]) * index / (ROUNDS - 1)
        planned += _learn(
            q, allowed, seen, tables, coupons,
            log.state[rows], log.coupon[rows], reward[rows], log.next_state[rows],
            gamma, alpha, True, 1.0, share, planning_updates, urgent, random,
        )  # fmt: skip
    return _finish(model, q.reshape(model.shape), price, gamma, tolerance, len(log), planned)


def dyna_q_on_environment(
    environment: Environment,
    *,
    episodes: int,
    planning_updates: int,
    gamma: float = 0.95,
    alpha: float = 0.1,
    epsilon: float = 0.1,
    seed: int = 0,
) -> tuple[Floats, Ints]:
    """Tabular Dyna-Q (the box in section 8.2): Q, (S, A), and the length of every episode.

    The model keeps the last outcome of each visited pair; planning draws visited pairs evenly.
    """
    n_actions = environment.n_actions
    pairs = environment.n_states * n_actions
    q, allowed = np.zeros(pairs), np.ones(pairs, dtype=np.bool_)
    random = np.random.default_rng(seed)
    memory = _Memory(environment.n_states, n_actions)
    lengths = np.zeros(episodes, dtype=np.int64)
    for episode in range(episodes):
        state, done = environment.start, False
        while not done:
            action = _epsilon_greedy(q, state, n_actions, epsilon, random)
            reward, following, done = environment.step(state, action)
            target = TERMINAL if done else following
            memory.remember(state * n_actions + action, reward, target)
            _learn(
                q, allowed, memory.seen, memory.tables, n_actions,
                np.array([state]), np.array([action]), np.array([reward]), np.array([target]),
                gamma, alpha, False, alpha, 1.0, planning_updates, np.inf, random,
            )  # fmt: skip
            state = following
            lengths[episode] += 1
    return q.reshape(environment.n_states, n_actions), lengths


class _Memory:
    """The maze's model: one outcome per pair, written in place."""

    def __init__(self, n_states: int, n_actions: int) -> None:
        pairs = n_states * n_actions
        self.seen = np.zeros(pairs, dtype=np.int64)
        self._drawn = np.zeros(pairs, dtype=np.int64)
        self._count = 0
        self._arrays = _Tables(
            first=np.arange(pairs + 1),
            successor=np.full(pairs, TERMINAL, dtype=np.int64),
            chance=np.ones(pairs),
            reward=np.zeros(pairs),
            first_into=np.zeros(n_states + 1, dtype=np.int64),
            pair_into=np.zeros(0, dtype=np.int64),
            chance_into=np.zeros(0),
            visited=self._drawn[:0],
        )

    @property
    def tables(self) -> _Tables:
        return self._arrays._replace(visited=self._drawn[: self._count])

    def remember(self, pair: int, reward: float, following: int) -> None:
        if self.seen[pair] == 0:
            self._drawn[self._count] = pair
            self._count += 1
        self._arrays.successor[pair] = following
        self._arrays.reward[pair] = reward


def _epsilon_greedy(
    q: Floats, state: int, n_actions: int, epsilon: float, random: np.random.Generator
) -> int:
    """Ties are broken by chance: the book's curves need it, an empty table is all ties."""
    if random.random() < epsilon:
        return int(random.integers(n_actions))
    own = q[state * n_actions : (state + 1) * n_actions]
    best = np.flatnonzero(own == own.max())
    return int(best[random.integers(best.size)])


def _tables(model: CustomerModel, payoff: Floats, logged: Ints) -> _Tables:
    kernel = model.kernel.tocsr()
    kernel.sum_duplicates()
    states, coupons = model.shape
    pair = np.repeat(np.arange(states * coupons), np.diff(kernel.indptr))
    into = np.lexsort((-kernel.data, kernel.indices))
    arrivals = np.bincount(kernel.indices, minlength=states)
    return _Tables(
        first=kernel.indptr.astype(np.int64),
        successor=kernel.indices.astype(np.int64),
        chance=kernel.data,
        reward=payoff.ravel(),
        first_into=np.append(0, np.cumsum(arrivals)),
        pair_into=pair[into],
        chance_into=kernel.data[into],
        visited=np.unique(logged),
    )


def _finish(
    model: CustomerModel,
    q: Floats,
    price: float,
    gamma: float,
    tolerance: float,
    learned: int,
    planned: int,
) -> PlanResult:
    """Sweep to the fixed point and read the plan off it."""
    difference = np.abs(model.backup(model.value(q), gamma, price) - q).max(initial=0.0)
    before = float(difference / max(1.0, np.abs(q).max(initial=0.0)))
    q, residual, sweeps = value_iteration(model, gamma, tolerance, price=price, start=q)
    return PlanResult(
        q=q,
        value=model.value(q),
        greedy=np.where(model.allowed, q, -np.inf).argmax(axis=1).astype(np.int64),
        residual=residual,
        residual_before_sweeps=before,
        td_updates=learned,
        planning_updates=planned,
        sweeps=sweeps,
    )


@njit(cache=False)
def _learn(  # type: ignore[no-untyped-def]
    q, allowed, seen, tables, n_actions, state, action, reward, following,
    gamma, alpha, alpha_falls, planning_alpha, random_share, planning_updates, urgent, random,
):  # fmt: skip
    """Per real transition one TD update and up to K planning updates, in place on q (pairs,)."""
    urgency = np.zeros(q.size)
    queue = [(0.0, np.int64(0))]  # (−urgency, pair); outdated entries are skipped when popped
    queue.pop()
    planned = 0
    value = _values(q, allowed, n_actions)
    for i in range(state.size):
        pair = state[i] * n_actions + action[i]
        step = step_size(alpha, seen[pair]) if alpha_falls else alpha
        following_value = value[following[i]] if following[i] >= 0 else 0.0
        q[pair] = td_update(q[pair], reward[i], following_value, step, gamma)
        seen[pair] += 1
        change = gamma * _revalue(value, q, allowed, state[i], n_actions)
        if urgent < np.inf:
            gap = abs(_target(value, tables, pair, gamma) - q[pair])
            _push(queue, urgency, pair, gap, urgent)
            _push_into(queue, urgency, tables, state[i], change, urgent)
        for _ in range(planning_updates):
            pair = _draw(queue, urgency, tables.visited, random_share, random)
            if pair < 0:
                break
            target = _target(value, tables, pair, gamma)
            q[pair] += planning_alpha * (target - q[pair])
            planned += 1
            change = gamma * _revalue(value, q, allowed, pair // n_actions, n_actions)
            if urgent < np.inf:
                _push_into(queue, urgency, tables, pair // n_actions, change, urgent)
    return planned


@njit(cache=False)
def _values(q, allowed, n_actions):  # type: ignore[no-untyped-def]
    """V(s) over allowed actions, (S,)."""
    value = np.zeros(q.size // n_actions)
    for state in range(value.size):
        _revalue(value, q, allowed, state, n_actions)
    return value


@njit(cache=False)
def _revalue(value, q, allowed, state, n_actions):  # type: ignore[no-untyped-def]
    """Bring one state's value up to date, in place; how far it moved."""
    best, before = -np.inf, value[state]
    for pair in range(state * n_actions, (state + 1) * n_actions):
        if allowed[pair] and q[pair] > best:
            best = q[pair]
    value[state] = best
    return abs(best - before)


@njit(cache=False)
def _target(value, tables, pair, gamma):  # type: ignore[no-untyped-def]
    """r̂ + γ Σ P̂ V(s'), the model's expected update of one pair."""
    mean = 0.0
    for k in range(tables.first[pair], tables.first[pair + 1]):
        if tables.successor[k] >= 0:
            mean += tables.chance[k] * value[tables.successor[k]]
    return tables.reward[pair] + gamma * mean


@njit(cache=False)
def _draw(queue, urgency, visited, random_share, random):  # type: ignore[no-untyped-def]
    """The next pair to plan: a random visited one, or the most urgent; −1 if none is left."""
    if random_share > 0.0 and visited.size > 0 and random.random() < random_share:
        return visited[int(random.random() * visited.size)]
    while len(queue) > 0:
        negative, pair = heapq.heappop(queue)
        if -negative == urgency[pair]:
            urgency[pair] = 0.0
            return pair
    return -1


@njit(cache=False)
def _push(queue, urgency, pair, amount, urgent):  # type: ignore[no-untyped-def]
    if amount > urgent and amount > urgency[pair]:
        urgency[pair] = amount
        heapq.heappush(queue, (-amount, pair))


@njit(cache=False)
def _push_into(queue, urgency, tables, state, change, urgent):  # type: ignore[no-untyped-def]
    """A state's discounted value moved by `change`: pairs leading there move by their share."""
    for k in range(tables.first_into[state], tables.first_into[state + 1]):
        amount = tables.chance_into[k] * change
        if amount <= urgent:
            break
        _push(queue, urgency, tables.pair_into[k], amount, urgent)
