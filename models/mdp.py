"""The customers as a Markov decision process, learned from logged decisions.

A state is a situation (recency, spending, …) together with an exposure (coupons of the last weeks);
states are numbered situation · exposures + exposure, exposure 0 = none. Coupons are 0…A−1 with
0 = ``none``. Q(s, a) = reward + effects + γ E[V(s′)], where

* situations follow each other as in the log, whatever the coupon: better customers get more
  coupons, so the next situations of decisions with a coupon say who got it, not what it did;
* exposures follow from the exposure and whether there was an offer, as in the log;
* what a coupon, and an exposure, does to the reward and to the value of the next situation is
  measured within customers (models/effects.py) and enters as a lower bound.

Everything rare is shrunk: a situation toward its parent (a coarser one), the parent toward all
customers. Kernels are kept in layers, so memory grows with the log and not with S².
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from winback.models.effects import (
    Effects,
    Grid,
    Outcomes,
    customer_free_value,
    measure,
    situation_means,
)
from winback.models.errors import DataError, SettingsError, first_rows

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

UNKNOWN_STATE = -1  # not observed yet: the reward counts, the next state does not
TERMINAL = -2  # the process ends here: nothing follows
MAX_SWEEPS = 100_000  # γ = .9999 needs about this many; more means a wrong γ


@dataclass(frozen=True)
class Transitions:
    """Logged decisions, each column (n,), oldest first: in `period`, `customer` (both numbered from
    0) was in `state`, got `coupon`, earned `reward`, and went to `next_state` (or UNKNOWN_STATE,
    TERMINAL)."""

    customer: Ints
    period: Ints
    state: Ints
    coupon: Ints
    reward: Floats
    next_state: Ints

    def __len__(self) -> int:
        return int(self.state.size)

    def completed(self) -> "Transitions":
        """The decisions whose next state is known."""
        known = self.next_state != UNKNOWN_STATE
        return Transitions(*(column[known] for column in self._columns()))

    def check(self, n_states: int, n_coupons: int) -> None:
        """Raise DataError where a number points outside the tables."""
        sizes = {column.shape for column in self._columns()}
        if sizes != {(len(self),)}:
            raise DataError(f"transitions: expected six columns of one length; got {sizes}")
        _refuse("customer must be 0 or more", self.customer < 0)
        _refuse("period must be 0 or more", self.period < 0)
        _inside("state", self.state, 0, n_states)
        _inside("coupon", self.coupon, 0, n_coupons)
        _inside("next_state", self.next_state, TERMINAL, n_states)
        _refuse("reward must be a finite number", ~np.isfinite(self.reward))

    def _columns(self) -> tuple[npt.NDArray[Any], ...]:
        return (
            *(self.customer, self.period, self.state),
            *(self.coupon, self.reward, self.next_state),
        )


@dataclass(frozen=True)
class CustomerModel:
    """What the log says about rewards and what follows; S states × A coupons."""

    grid: Grid
    visits: Ints  # (S, A) logged decisions
    support: Ints  # (S, A) logged decisions in all states of the same parent
    allowed: Bools  # (S, A) enough support to be chosen; `none` always is
    reward: Floats  # (S, A) expected reward, shrunk
    reward_lower: Floats  # (S, A) the same with lower bounds of what coupons do
    future_effect: Floats  # (S, A) lower bound of the effect on γV(next situation)
    situation_kernel: sparse.csr_matrix  # (situations, situations) shares of the next one
    parent_kernel: sparse.csr_matrix  # (parents, situations)
    root_kernel: Floats  # (situations,) all customers
    situation_weight: Floats  # (situations,) trust in its own kernel; the rest goes to the parent
    parent_weight: Floats  # (parents,) the same; the rest goes to all customers
    exposure_kernel: Floats  # (exposures, A, exposures) shares of the next exposure

    @property
    def n_states(self) -> int:
        return int(self.visits.shape[0])

    @property
    def n_coupons(self) -> int:
        return int(self.visits.shape[1])

    def by_exposure(self, following: Floats) -> Floats:
        """(S, A) expectation over the next exposure of (situations, next exposures) values."""
        mixed: Floats = np.einsum("kaj,xj->xka", self.exposure_kernel, following)
        return mixed.reshape(self.visits.shape)

    def backed_off(self, value: Floats) -> Floats:
        """(situations, exposures) mean value of the next situation, from the parents upwards."""
        table = value.reshape(-1, self.grid.exposures)
        root = self.root_kernel @ table
        coarse = _blend(self.parent_weight[:, None], self.parent_kernel @ table, root)
        rows: Floats = coarse[self.grid.parent]
        return rows

    def expected(self, value: Floats) -> Floats:
        """E[V(s') | s, a], (S, A), for state values (S,), before any effect of the coupon."""
        own = self.situation_kernel @ value.reshape(-1, self.grid.exposures)
        weight = self.situation_weight[:, None]
        return self.by_exposure(_blend(weight, own, self.backed_off(value)))

    def future(self, value: Floats, gamma: float) -> Floats:
        """What follows after the decision, discounted, (S, A)."""
        return self.future_effect + gamma * self.expected(value)

    def value(self, q: Floats) -> Floats:
        """V(s) = max over allowed coupons of Q(s, a), (S,)."""
        best: Floats = np.where(self.allowed, q, -np.inf).max(axis=1)
        return best

    def backup(self, value: Floats, gamma: float) -> Floats:
        """The Bellman operator with pessimistic effects, (S, A)."""
        return self.reward_lower + self.future(value, gamma)

    def transition(self) -> Floats:
        """All levels multiplied out, (S·A, S): rows are P(s' | s, a). For small tables only."""
        columns = [self.expected(unit).ravel() for unit in np.eye(self.n_states)]
        return np.stack(columns, axis=1)


def learn_model(
    transitions: Transitions,
    n_coupons: int,
    parent_of_situation: npt.ArrayLike,
    *,
    exposures: int = 1,
    gamma: float = 0.95,
    prior_strength: float = 50.0,
    min_visits: int = 30,
    pessimism: float = 1.0,
) -> CustomerModel:
    """Learn rewards and transitions from logged decisions.

    ``parent_of_situation`` numbers the coarser situations; ``gamma`` is the discount of the plan,
    which effects on the future are valued with; ``prior_strength`` is how many decisions the level
    above counts for; a coupon with fewer than ``min_visits`` decisions in all states of the parent
    is not allowed; ``pessimism`` is how many standard errors the lower bounds lie below the
    estimates (VI-LCB, Rashidinejad et al. 2021). An empty log gives zero rewards and allows
    ``none`` only.
    """
    check_discount(gamma)
    grid = Grid(_parents(parent_of_situation), exposures, n_coupons)
    transitions.check(grid.states, n_coupons)
    visits, support = _visits(transitions, grid)
    allowed = support >= max(min_visits, 1)  # never a coupon that nobody was given
    allowed[:, 0] = True
    base = _baseline(transitions, grid, prior_strength)
    now = _effects(transitions, grid, transitions.reward, prior_strength)
    later = _future_effects(transitions, grid, gamma, prior_strength)
    return CustomerModel(
        grid=grid,
        visits=visits,
        support=support,
        allowed=allowed,
        reward=base + _by_state(now.exposure[:, :, None] + now.offer, grid),
        reward_lower=base + _lower_now(now, grid, pessimism),
        future_effect=_lower_later(later, grid, pessimism),
        exposure_kernel=_exposure_kernel(transitions, grid),
        **_situation_kernels(transitions, grid, prior_strength),
    )


def value_iteration(
    model: CustomerModel, gamma: float, tolerance: float = 1e-6, q: Floats | None = None
) -> tuple[Floats, float, int]:
    """Q* of the model, (S, A), its relative residual max|TQ − Q| and the number of sweeps.

    Starts from ``q`` if given. Values are within tolerance × scale of the fixed point, where
    scale = max(1, max|Q|): the residual must fall below tolerance·(1 − γ).
    """
    check_discount(gamma)
    q = np.zeros(model.visits.shape) if q is None else q
    if q.size == 0:
        return q, 0.0, 0
    for sweep in range(1, MAX_SWEEPS + 1):
        updated = model.backup(model.value(q), gamma)
        residual = float(np.abs(updated - q).max() / max(1.0, np.abs(updated).max()))
        q = updated
        if residual <= tolerance * (1 - gamma):
            return q, residual, sweep
    raise SettingsError(f"planner: residual {residual:.2g} after {sweep} sweeps: lower gamma")


def check_discount(gamma: float) -> None:
    """Raise SettingsError unless the future is worth less than the present."""
    if not 0 <= gamma < 1:
        raise SettingsError(f"gamma: expected a discount of at least 0 and below 1; got {gamma!r}")


def link_next_states(customer: Ints, period: Ints, state: Ints) -> Ints:
    """The state of the same customer one period later, (n,); UNKNOWN_STATE where there is none.

    Rows come in any order; (customer, period) pairs are distinct.
    """
    order = np.lexsort((period, customer))
    here, following = order[:-1], order[1:]
    adjacent = (customer[here] == customer[following]) & (period[here] + 1 == period[following])
    linked = np.full(state.shape, UNKNOWN_STATE, dtype=np.int64)
    linked[here[adjacent]] = state[following[adjacent]]
    return linked


def _visits(log: Transitions, grid: Grid) -> tuple[Ints, Ints]:
    """Logged decisions of each state, and of all states of its parent, both (S, A)."""
    shape = (grid.states, grid.coupons)
    visits = _count(log.state * grid.coupons + log.coupon, grid.states * grid.coupons)
    parent = np.repeat(grid.parent, grid.exposures)
    row = parent[log.state] * grid.coupons + log.coupon
    by_parent = _count(row, grid.parents * grid.coupons).reshape(grid.parents, grid.coupons)
    return visits.reshape(shape), by_parent[parent]


def _baseline(log: Transitions, grid: Grid, prior: float) -> Floats:
    """Mean reward with `none` and no exposure, (S, 1): what the effects are added to."""
    situation, exposure = log.state // grid.exposures, log.state % grid.exposures
    own = (log.coupon == 0) & (exposure == 0)
    top = float(log.reward.mean()) if len(log) else 0.0
    means = situation_means(grid, situation[own], log.reward[own], prior, top)
    return np.repeat(means, grid.exposures)[:, None]


def _effects(log: Transitions, grid: Grid, outcome: Floats, prior: float) -> Effects:
    decisions = Outcomes(log.customer, log.period, log.state, log.coupon, outcome)
    return measure(grid, decisions, prior)


def _future_effects(log: Transitions, grid: Grid, gamma: float, prior: float) -> Effects:
    """Effects on γV(next situation), valued as for one and the same customer without coupons."""
    log = log.completed()
    situation = log.state // grid.exposures
    following = np.where(log.next_state < 0, TERMINAL, log.next_state // grid.exposures)
    value = customer_free_value(grid, situation, following, log.customer, log.reward, gamma, prior)
    outcome = gamma * np.append(value, 0.0)[np.where(following < 0, grid.situations, following)]
    return _effects(log, grid, outcome, prior)


def _lower_now(effects: Effects, grid: Grid, pessimism: float) -> Floats:
    """Effects on the reward, (S, A): an offer must prove itself, so its bound may be negative."""
    offer = effects.offer - pessimism * effects.offer_error
    exposure = _insisted(effects.exposure, effects.exposure_error, pessimism)
    return _by_state(exposure[:, :, None] + offer, grid)


def _lower_later(effects: Effects, grid: Grid, pessimism: float) -> Floats:
    """Effects on the future, (S, A): gains as far as the data insist, harm in full."""
    offer = _insisted(effects.offer, effects.offer_error, pessimism)
    exposure = _insisted(effects.exposure, effects.exposure_error, pessimism)
    return _by_state(exposure[:, :, None] + offer, grid)


def _insisted(effect: Floats, error: Floats, pessimism: float) -> Floats:
    return np.minimum(effect, np.maximum(effect - pessimism * error, 0.0))


def _by_state(effect: Floats, grid: Grid) -> Floats:
    """(parents, exposures, A) to (S, A)."""
    table: Floats = effect[grid.parent].reshape(grid.states, grid.coupons)
    return table


def _exposure_kernel(log: Transitions, grid: Grid) -> Floats:
    """Shares of the next exposure by exposure and coupon, (exposures, A, exposures).

    Counting coupons is the same for every coupon, so all offers are pooled. Combinations that the
    log never shows stay where they are.
    """
    seen = log.next_state >= 0
    size = grid.exposures
    here, following = log.state[seen] % size, log.next_state[seen] % size
    row = here * 2 + (log.coupon[seen] > 0)
    count = _count(row * size + following, 2 * size * size).reshape(size, 2, size)
    total = count.sum(axis=2, keepdims=True)
    stay = np.broadcast_to(np.eye(size)[:, None, :], count.shape)
    share = np.where(total > 0, count / np.maximum(total, 1), stay)
    return share[:, (np.arange(grid.coupons) > 0).astype(np.int64), :]


def _situation_kernels(log: Transitions, grid: Grid, prior: float) -> dict[str, Any]:
    """Shares of next situations at the three levels, and the weight of each against the next."""
    log = log.completed()
    situation = log.state // grid.exposures
    to = np.where(log.next_state < 0, TERMINAL, log.next_state // grid.exposures)
    own, n_own = _kernel(situation, to, grid.situations, grid.situations)
    coarse, n_coarse = _kernel(grid.parent[situation], to, grid.parents, grid.situations)
    root, _ = _kernel(np.zeros_like(to), to, 1, grid.situations)
    return {
        "situation_kernel": own,
        "parent_kernel": coarse,
        "root_kernel": root.toarray()[0],
        "situation_weight": n_own / (n_own + prior),
        "parent_weight": n_coarse / (n_coarse + prior),
    }


def _kernel(row: Ints, to: Ints, n_rows: int, n_columns: int) -> tuple[sparse.csr_matrix, Floats]:
    """Shares of what follows by row, (n_rows, n_columns), and the decisions behind each row.

    What went to TERMINAL counts in the denominator only: such rows sum to less than 1.
    """
    n = _count(row, n_rows).astype(np.float64)
    goes_on = to >= 0
    entries = (1 / n[row[goes_on]], (row[goes_on], to[goes_on]))
    return sparse.coo_matrix(entries, shape=(n_rows, n_columns)).tocsr(), n


def _blend(weight: Floats, own: Floats, above: Floats) -> Floats:
    return weight * own + (1 - weight) * above


def _parents(values: npt.ArrayLike) -> Ints:
    number = np.asarray(values, dtype=np.int64)
    if number.ndim != 1 or (number < 0).any():
        raise DataError(f"parent_of_situation: expected numbers of 0 or more; got {number}")
    return number


def _count(index: Ints, size: int) -> Ints:
    return np.bincount(index, minlength=size).astype(np.int64)


def _inside(name: str, values: Ints, low: int, high: int) -> None:
    _refuse(f"{name} must lie in {low} … {high - 1}", (values < low) | (values >= high))


def _refuse(rule: str, bad: Bools) -> None:
    if bad.any():
        rows: list[int] = np.flatnonzero(bad).tolist()
        raise DataError(f"transitions: {rule}; see rows {first_rows(rows)}")
