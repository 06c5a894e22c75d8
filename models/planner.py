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
    learn_model,
    link_next_states,
    value_iteration,
)

__all__ = [
    "CustomerModel",
    "Environment",
    "PlanResult",
    "Transitions",
    "dyna_q",
    "dyna_q_on_environment",
    "learn_model",
    "link_next_states",
    "step_size",
    "td_update",
    "value_iteration",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ROUNDS = 10  # times that the back-off values are refreshed during one pass through the log
URGENT = 1e-3  # changes below this share of the reward's scale are left to the final sweeps


@dataclass(frozen=True)
class PlanResult:
    """The plan; S states × A coupons."""

    q: Floats  # (S, A) pessimistic long-run value
    future_value: Floats  # (S, A) γ Σ P̂(s' | s, a) V(s') and the coupon's effect on it
    allowed: Bools  # (S, A)
    visits: Ints  # (S, A)
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
    """The model as the compiled loop reads it. A pair is state × A + action.

    Outcomes are next situations, listed by row; the next exposure is drawn beside them. In an
    environment every pair has a row of its own, and exposure plays no part.
    """

    row: Ints  # (pairs,) a pair's outcomes are first[row] … first[row + 1]
    first: Ints  # (rows + 1,)
    successor: Ints  # (outcomes,) next situation; negative: nothing follows
    chance: Floats  # (outcomes,)
    exposure: Floats  # (exposures, A, exposures) chances of the next one
    reward: Floats  # (pairs,) with the coupon's effect on what follows
    beyond: Floats  # (pairs,) expected value of the outcomes that are not listed (back-off)
    first_into: Ints  # (situations + 1,)
    situation_into: Ints  # situations that lead into a situation, the likeliest first
    chance_into: Floats
    is_visited: Bools  # (pairs,)
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
    gamma: float = 0.95,
    planning_updates: int = 20,
    alpha: float = 0.3,
    epsilon: tuple[float, float] = (0.30, 0.05),
    tolerance: float = 1e-6,
    seed: int = 0,
) -> PlanResult:
    """Plan on logged decisions, (n,) each, oldest first.

    Actions were chosen by the log, so exploration concerns planning: with probability ε (falling
    linearly between the two values) a planning update looks at a random visited pair instead of
    the most urgent one. α falls with the visits of a pair (step_size).
    Values end within ``tolerance`` (relative) of the model's exact fixed point.
    """
    shape = model.visits.shape
    check_discount(gamma)
    log = transitions.completed()
    # the mean level first: it is the slowest to spread, one factor γ per sweep
    gain = model.reward_lower + model.future_effect
    level = float(np.mean(model.value(gain))) if model.n_states else 0.0
    q, allowed = np.full(model.visits.size, level / (1 - gamma)), model.allowed.ravel()
    seen = np.zeros(model.visits.size, dtype=np.int64)
    tables, random = _tables(model), np.random.default_rng(seed)
    urgent = URGENT * max(float(np.abs(gain).max(initial=0.0)), 1e-9)
    planned, parts = 0, np.array_split(np.arange(len(log)), ROUNDS)
    for index, rows in enumerate(parts):
        _refresh(model, tables, q.reshape(shape), gamma)
        share = epsilon[0] + (epsilon[1] - epsilon[0]) * index / (ROUNDS - 1)
        planned += _learn(
            q, allowed, seen, tables, shape[1],
            log.state[rows], log.coupon[rows], log.reward[rows], log.next_state[rows],
            gamma, alpha, True, 1.0, share, planning_updates, urgent, random,
        )  # fmt: skip
    return _finish(model, q.reshape(shape), gamma, tolerance, len(log), planned)


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
            row=np.arange(pairs),
            first=np.arange(pairs + 1),
            successor=np.full(pairs, TERMINAL, dtype=np.int64),
            chance=np.ones(pairs),
            exposure=np.ones((1, n_actions, 1)),
            reward=np.zeros(pairs),
            beyond=np.zeros(pairs),
            first_into=np.zeros(n_states + 1, dtype=np.int64),
            situation_into=np.zeros(0, dtype=np.int64),
            chance_into=np.zeros(0),
            is_visited=np.zeros(pairs, dtype=np.bool_),
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


def _tables(model: CustomerModel) -> _Tables:
    kernel = model.situation_kernel.tocsr()
    kernel.sum_duplicates()
    chance = kernel.data * np.repeat(model.situation_weight, np.diff(kernel.indptr))
    situation = np.repeat(np.arange(model.grid.situations), np.diff(kernel.indptr))
    into = np.lexsort((-chance, kernel.indices))
    arrivals = np.bincount(kernel.indices, minlength=model.grid.situations)
    pairs_per_situation = model.grid.exposures * model.n_coupons
    return _Tables(
        row=np.repeat(np.arange(model.grid.situations), pairs_per_situation),
        first=kernel.indptr.astype(np.int64),
        successor=kernel.indices.astype(np.int64),
        chance=chance,
        exposure=model.exposure_kernel,
        reward=(model.reward_lower + model.future_effect).ravel(),
        beyond=np.zeros(model.visits.size),
        first_into=np.append(0, np.cumsum(arrivals)),
        situation_into=situation[into],
        chance_into=chance[into],
        is_visited=model.visits.ravel() > 0,
        visited=np.flatnonzero(model.visits.ravel()),
    )


def _refresh(model: CustomerModel, tables: _Tables, q: Floats, gamma: float) -> None:
    """Recompute, in place, what the compiled loop takes as given: back-off and unvisited pairs."""
    value = model.value(q)
    rest = (1 - model.situation_weight)[:, None] * model.backed_off(value)
    tables.beyond[:] = model.by_exposure(rest).ravel()
    unvisited = model.visits == 0
    q[unvisited] = model.backup(value, gamma)[unvisited]


def _finish(
    model: CustomerModel, q: Floats, gamma: float, tolerance: float, learned: int, planned: int
) -> PlanResult:
    """Sweep to the fixed point and read the plan off it."""
    difference = np.abs(model.backup(model.value(q), gamma) - q).max(initial=0.0)
    before = float(difference / max(1.0, np.abs(q).max(initial=0.0)))
    q, residual, sweeps = value_iteration(model, gamma, tolerance, q)
    greedy = np.where(model.allowed, q, -np.inf).argmax(axis=1).astype(np.int64)
    return PlanResult(
        q=q,
        future_value=model.future(model.value(q), gamma),
        allowed=model.allowed,
        visits=model.visits,
        greedy=greedy,
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
            gap = abs(_target(value, tables, pair, n_actions, gamma) - q[pair])
            _push(queue, urgency, pair, gap, urgent)
            _push_into(queue, urgency, tables, state[i], change, urgent)
        for _ in range(planning_updates):
            pair = _draw(queue, urgency, tables.visited, random_share, random)
            if pair < 0:
                break
            target = _target(value, tables, pair, n_actions, gamma)
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
def _target(value, tables, pair, n_actions, gamma):  # type: ignore[no-untyped-def]
    """r̂ + γ Σ P̂ V(s'), the model's expected update of one pair."""
    total, row, exposures = tables.beyond[pair], tables.row[pair], tables.exposure.shape[0]
    share = tables.exposure[(pair // n_actions) % exposures, pair % n_actions]
    for j in range(exposures):
        if share[j] > 0.0:
            mean = 0.0
            for k in range(tables.first[row], tables.first[row + 1]):
                if tables.successor[k] >= 0:
                    mean += tables.chance[k] * value[tables.successor[k] * exposures + j]
            total += share[j] * mean
    return tables.reward[pair] + gamma * total


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
    exposures, n_actions = tables.exposure.shape[0], tables.exposure.shape[1]
    situation, exposure = state // exposures, state % exposures
    for k in range(tables.first_into[situation], tables.first_into[situation + 1]):
        if tables.chance_into[k] * change <= urgent:
            break
        for j in range(exposures * n_actions):
            pair = tables.situation_into[k] * exposures * n_actions + j
            if tables.is_visited[pair]:
                share = tables.exposure[j // n_actions, j % n_actions, exposure]
                amount = tables.chance_into[k] * share * change
                _push(queue, urgency, pair, amount, urgent)
