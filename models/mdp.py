"""The customers as a Markov decision process, learned from logged decisions.

States are numbered 0…S−1, coupons 0…A−1 with 0 = ``none``. Everything rare is shrunk: a state
toward its parent (a coarser state), the parent toward all customers. The transition kernel is
kept in layers, one sparse matrix per level, so memory grows with the log and not with S².

What a coupon does to the next state (fewer days since the last purchase, one coupon more in 30
days) is seldom visible in a single state. It is measured over many states as observed ÷ expected
shares of next-state classes (indirect standardisation), and tilts the kernels of the states where
the coupon was hardly ever tried.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from winback.models.errors import DataError, SettingsError, first_rows

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Number = TypeVar("Number", np.int64, np.float64)

UNKNOWN_STATE = -1  # not observed yet: the reward counts, the next state does not
TERMINAL = -2  # the process ends here: nothing follows
LIFT_PRIOR = 5.0  # expected events that "no effect" counts for: a ratio of 1 vs 3 proves little
MAX_SWEEPS = 100_000  # γ = .9999 needs about this many; more means a wrong γ


@dataclass(frozen=True)
class Transitions:
    """Logged decisions, each column (n,), oldest first: in `state`, with `coupon`, earned `reward`,
    and went to `next_state` (or UNKNOWN_STATE, TERMINAL)."""

    state: Ints
    coupon: Ints
    reward: Floats
    next_state: Ints

    def __len__(self) -> int:
        return int(self.state.size)

    def completed(self) -> "Transitions":
        """The decisions whose next state is known."""
        known = self.next_state != UNKNOWN_STATE
        columns = (self.state, self.coupon, self.reward, self.next_state)
        return Transitions(*(column[known] for column in columns))

    def check(self, n_states: int, n_coupons: int) -> None:
        """Raise DataError where a number points outside the tables."""
        sizes = {c.shape for c in (self.state, self.coupon, self.reward, self.next_state)}
        if sizes != {(len(self),)}:
            raise DataError(f"transitions: expected four columns of one length; got {sizes}")
        _inside("state", self.state, 0, n_states)
        _inside("coupon", self.coupon, 0, n_coupons)
        _inside("next_state", self.next_state, TERMINAL, n_states)
        _refuse("reward must be a finite number", ~np.isfinite(self.reward))


@dataclass(frozen=True)
class CustomerModel:
    """What the log says about rewards and next states; S states × A coupons."""

    visits: Ints  # (S, A) logged decisions
    support: Ints  # (S, A) logged decisions in all states of the same parent
    allowed: Bools  # (S, A) enough support to be chosen; `none` always is
    reward: Floats  # (S, A) expected reward, shrunk
    reward_lower: Floats  # (S, A) lower confidence bound for coupons; `none`: the same as reward
    parent: Ints  # (S,)
    pair_kernel: sparse.csr_matrix  # (S·A, S) observed shares of next states
    state_kernel: sparse.csr_matrix  # (S·A, S) the state's with any coupon, tilted to this one
    parent_kernel: sparse.csr_matrix  # (parents·A, S) the same of the parent
    root_kernel: Floats  # (S,) all customers
    pair_weight: Floats  # (S, A) trust in pair_kernel; the rest goes to the level above
    state_weight: Floats  # (S,)
    parent_weight: Floats  # (parents,)

    @property
    def n_states(self) -> int:
        return int(self.visits.shape[0])

    @property
    def n_coupons(self) -> int:
        return int(self.visits.shape[1])

    def backed_off(self, value: Floats) -> Floats:
        """E[V(s') | s, a], (S, A), from the levels above the pair."""
        coarse = (self.parent_kernel @ value).reshape(-1, self.n_coupons)
        coarse = _blend(self.parent_weight[:, None], coarse, self.root_kernel @ value)
        own = (self.state_kernel @ value).reshape(self.visits.shape)
        return _blend(self.state_weight[:, None], own, coarse[self.parent])

    def expected(self, value: Floats) -> Floats:
        """E[V(s') | s, a], (S, A), for state values (S,)."""
        own = (self.pair_kernel @ value).reshape(self.visits.shape)
        return _blend(self.pair_weight, own, self.backed_off(value))

    def value(self, q: Floats) -> Floats:
        """V(s) = max over allowed coupons of Q(s, a), (S,)."""
        best: Floats = np.where(self.allowed, q, -np.inf).max(axis=1)
        return best

    def backup(self, value: Floats, gamma: float) -> Floats:
        """The Bellman operator with pessimistic rewards, (S, A)."""
        return self.reward_lower + gamma * self.expected(value)

    def transition(self) -> Floats:
        """All levels multiplied out, (S·A, S): rows are P(s' | s, a). For small tables only."""
        columns = [self.expected(unit).ravel() for unit in np.eye(self.n_states)]
        return np.stack(columns, axis=1)


def learn_model(
    transitions: Transitions,
    n_states: int,
    n_coupons: int,
    parent_of_state: npt.ArrayLike,
    *,
    prior_strength: float = 50.0,
    min_visits: int = 30,
    pessimism: float = 1.0,
    outcome_class: npt.ArrayLike | None = None,
) -> CustomerModel:
    """Learn rewards and transitions from logged decisions.

    ``parent_of_state`` (S,) numbers the coarser states; ``prior_strength`` is how many decisions
    the level above counts for; a coupon with fewer than ``min_visits`` decisions in all states of
    the parent is not allowed; ``pessimism`` is how many standard errors the lower bound lies
    below the estimate (VI-LCB, Rashidinejad et al. 2021); ``outcome_class`` (S,) numbers what a
    coupon may change about the next state (default: the parent). An empty log gives zero rewards
    and allows ``none`` only.
    """
    transitions.check(n_states, n_coupons)
    parent = _numbering("parent_of_state", parent_of_state, n_states)
    classes = parent if outcome_class is None else outcome_class
    outcome = _numbering("outcome_class", classes, n_states)
    visits = _count(transitions.state * n_coupons + transitions.coupon, n_states * n_coupons)
    visits = visits.reshape(n_states, n_coupons)
    support = _by_parent(visits, parent)[parent]
    allowed = support >= max(min_visits, 1)  # never a coupon that nobody was given
    allowed[:, 0] = True
    reward, error = _rewards(transitions, visits, parent, prior_strength)
    return CustomerModel(
        visits=visits,
        support=support,
        allowed=allowed,
        reward=reward,
        reward_lower=reward - pessimism * error,
        parent=parent,
        **_kernels(transitions, n_coupons, parent, outcome, prior_strength),
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


def _rewards(log: Transitions, visits: Ints, parent: Ints, prior: float) -> tuple[Floats, Floats]:
    """Expected reward and the standard error of each coupon's effect, both (S, A).

    reward(s, a) = baseline(s) + effect(s, a). The baseline is the mean reward with `none`. An
    effect compares decisions *within* a state, weighted by overlap n·n₀/(n + n₀): customers who
    got coupons were better before (a confounded log), so states where only one of the two was
    tried say nothing about the other.
    """
    n = visits.astype(np.float64)
    pair = log.state * n.shape[1] + log.coupon
    total = _sums(pair, log.reward, n.size).reshape(n.shape)
    mean = _ratio(total, n)
    baseline = _shrink_levels(n[:, :1], total[:, :1], parent, prior, _root_baseline(log))
    overlap = _ratio(n * n[:, :1], n + n[:, :1])
    overlap[:, 0] = 0.0
    contrast = overlap * (mean - mean[:, :1])
    effect = _shrink_levels(overlap, contrast, parent, prior, 0.0)
    squares = _sums(log.state, (log.reward - mean.ravel()[pair]) ** 2, n.shape[0])
    variance = _variance(squares, n, parent, prior)
    error = np.sqrt(variance[:, None] * _error_levels(overlap, parent, prior))
    error[:, 0] = 0.0  # the decision not to offer needs no proof
    return baseline + effect, error


def _root_baseline(log: Transitions) -> float:
    """Mean reward with `none`, else of all decisions, else 0."""
    rewards = log.reward[log.coupon == 0] if (log.coupon == 0).any() else log.reward
    return float(rewards.mean()) if rewards.size else 0.0


def _shrink_levels(n: Floats, total: Floats, parent: Ints, prior: float, top: float) -> Floats:
    """Weighted means (S, K) shrunk toward the parent's, the parent's toward the root's, the root's
    toward ``top``, each with ``prior`` pseudo-decisions."""
    root = (total.sum(axis=0) + prior * top) / (n.sum(axis=0) + prior)
    n_parent, total_parent = _by_parent(n, parent), _by_parent(total, parent)
    above = (total_parent + prior * root) / (n_parent + prior)
    result: Floats = (total + prior * above[parent]) / (n + prior)
    return result


def _error_levels(n: Floats, parent: Ints, prior: float) -> Floats:
    """Posterior variance of _shrink_levels in units of one decision's variance, (S, K).

    Each level varies around the one above with variance 1/prior, and inherits its error.
    """
    error = 1 / (n.sum(axis=0) + prior)
    n_parent = _by_parent(n, parent)
    above = 1 / (n_parent + prior) + (prior / (n_parent + prior)) ** 2 * error
    result: Floats = 1 / (n + prior) + (prior / (n + prior)) ** 2 * above[parent]
    return result


def _variance(squares: Floats, n: Floats, parent: Ints, prior: float) -> Floats:
    """Variance of one reward around its cell's mean, (S,), by parent: big spenders vary more."""
    freedom = np.maximum(n - 1, 0).sum(axis=1)
    pooled = float(squares.sum() / max(freedom.sum(), 1.0))
    by_parent = _by_parent(np.stack([squares, freedom], axis=1), parent)
    shrunk: Floats = (by_parent[:, 0] + prior * pooled) / (by_parent[:, 1] + prior)
    return shrunk[parent]


def _kernels(
    log: Transitions, n_coupons: int, parent: Ints, outcome: Ints, prior: float
) -> dict[str, Any]:
    """Observed next states at the four levels, and the weight of each level against the next."""
    seen = log.next_state != UNKNOWN_STATE
    state, coupon, to = log.state[seen], log.coupon[seen], log.next_state[seen]
    n_states, n_parents = parent.size, _size(parent)
    pair, n_pair = _kernel(state * n_coupons + coupon, to, n_states * n_coupons, n_states)
    own, n_own = _kernel(state, to, n_states, n_states)
    coarse, n_coarse = _kernel(parent[state], to, n_parents, n_states)
    root, _ = _kernel(np.zeros_like(state), to, 1, n_states)
    by_pair = n_pair.reshape(n_states, n_coupons)
    lifts = _lifts(pair, own, by_pair, parent, outcome)
    return {
        "pair_kernel": pair,
        "state_kernel": _tilt(own, lifts, parent, outcome),
        "parent_kernel": _tilt(coarse, lifts, np.arange(n_parents), outcome),
        "root_kernel": root.toarray()[0],
        "pair_weight": by_pair / (by_pair + prior),
        "state_weight": n_own / (n_own + prior),
        "parent_weight": n_coarse / (n_coarse + prior),
    }


def _lifts(
    pair: sparse.csr_matrix, own: sparse.csr_matrix, n: Floats, parent: Ints, outcome: Ints
) -> Floats:
    """How much more often a coupon leads to each class of next states, (parents, A, classes).

    Observed ÷ expected, where the expectation is each state's own with any coupon, so better
    customers getting more coupons is no effect. Shrunk toward the ratio of all parents, that
    toward 1.
    """
    n_coupons = n.shape[1]
    members = _indicator(parent).T
    classes = _indicator(outcome)
    observed = np.zeros((_size(parent), n_coupons, _size(outcome)))
    expected = np.zeros_like(observed)
    for coupon in range(n_coupons):
        counts = members @ sparse.diags_array(n[:, coupon])
        observed[:, coupon] = (counts @ pair[coupon::n_coupons] @ classes).toarray()
        expected[:, coupon] = (counts @ own @ classes).toarray()
    root = (observed.sum(axis=0) + LIFT_PRIOR) / (expected.sum(axis=0) + LIFT_PRIOR)
    lifts: Floats = (observed + LIFT_PRIOR * root) / (expected + LIFT_PRIOR)
    return lifts


def _tilt(
    kernel: sparse.csr_matrix, lifts: Floats, parent: Ints, outcome: Ints
) -> sparse.csr_matrix:
    """Rows (K, S) times the lifts of their parent, (K·A, S); every row keeps its sum."""
    n_coupons = lifts.shape[1]
    entries = kernel.tocoo()
    row, to = np.repeat(entries.row, n_coupons), np.repeat(entries.col, n_coupons)
    coupon = np.tile(np.arange(n_coupons), entries.nnz)
    weight = np.repeat(entries.data, n_coupons)
    tilted = weight * lifts[parent[row], coupon, outcome[to]]
    pair = row * np.int64(n_coupons) + coupon
    size = kernel.shape[0] * n_coupons
    rescale = _ratio(_sums(pair, weight, size), _sums(pair, tilted, size))
    shape = (size, kernel.shape[1])
    return sparse.coo_matrix((tilted * rescale[pair], (pair, to)), shape=shape).tocsr()


def _kernel(row: Ints, to: Ints, n_rows: int, n_states: int) -> tuple[sparse.csr_matrix, Floats]:
    """Shares of next states by row, (n_rows, S), and the decisions behind each row, (n_rows,).

    What went to TERMINAL counts in the denominator only: such rows sum to less than 1.
    """
    n = _count(row, n_rows).astype(np.float64)
    goes_on = to >= 0
    entries = (1 / n[row[goes_on]], (row[goes_on], to[goes_on]))
    return sparse.coo_matrix(entries, shape=(n_rows, n_states)).tocsr(), n


def _blend(weight: Floats, own: Floats, above: Floats | float) -> Floats:
    return weight * own + (1 - weight) * above


def _by_parent(table: npt.NDArray[Number], parent: Ints) -> npt.NDArray[Number]:
    """Sums of the rows (S, K) by parent, (parents, K)."""
    sums = np.zeros((_size(parent), table.shape[1]), table.dtype)
    np.add.at(sums, parent, table)
    return sums


def _indicator(number: Ints) -> sparse.csr_matrix:
    """One-hot rows, (S, numbers)."""
    entries = (np.ones(number.size), (np.arange(number.size), number))
    return sparse.coo_matrix(entries, shape=(number.size, _size(number))).tocsr()


def _size(number: Ints) -> int:
    return int(number.max(initial=-1)) + 1


def _numbering(name: str, values: npt.ArrayLike, n_states: int) -> Ints:
    number = np.asarray(values, dtype=np.int64)
    if number.shape != (n_states,) or (number < 0).any():
        raise DataError(f"{name}: expected {n_states} numbers of 0 or more; got {number}")
    return number


def _count(index: Ints, size: int) -> Ints:
    return np.bincount(index, minlength=size).astype(np.int64)


def _sums(index: Ints, values: Floats, size: int) -> Floats:
    return np.bincount(index, values, minlength=size).astype(np.float64)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, 0 where nothing was counted."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _inside(name: str, values: Ints, low: int, high: int) -> None:
    _refuse(f"{name} must lie in {low} … {high - 1}", (values < low) | (values >= high))


def _refuse(rule: str, bad: Bools) -> None:
    if bad.any():
        rows: list[int] = np.flatnonzero(bad).tolist()
        raise DataError(f"transitions: {rule}; see rows {first_rows(rows)}")
