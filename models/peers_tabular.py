"""Planning on counts alone: a table of binned states, no forecast of a single customer.

Rewards and transitions N(s, a, s') of a state back off to the same coupon in all states where
they are few. Value iteration on the model gives Q (Sutton & Barto 2018, section 4.4).
"""

import numpy as np
from scipy import sparse

from winback.models.peers_data import Floats, Ints, PeerData

BINS = {  # right-open edges, few enough for counts of some hundreds per state
    "days_since_last_purchase": (8, 15, 29, 57),
    "purchases_last_30d": (1, 2, 4),
    "coupons_last_30d": (1, 2, 3),
    "frequency": (1, 4, 10),
}
PRIOR = 50.0  # decisions that the mean over all states counts for
GAMMA = 0.95  # per decision
TOLERANCE = 1e-6  # of the values, currency


def tabular_q(data: PeerData) -> Floats:
    """(n, A) long-run value of each coupon in each customer's state, without a budget."""
    state, now, states = encode(data)
    pair = state * data.coupons + data.coupon
    reward, count = _rewards(pair, state, data, states)
    kernel = _kernel(pair, next_state(data, state), count, states * data.coupons, states)
    q = np.zeros((states, data.coupons))
    while True:
        following = kernel @ q.max(axis=1)
        updated = reward + GAMMA * following.reshape(q.shape)
        if np.abs(updated - q).max() < TOLERANCE:
            table: Floats = updated[now]
            return table
        q = updated


def encode(data: PeerData) -> tuple[Ints, Ints, int]:
    """State numbers of the log (m,) and of now (n,), and how many states there are."""
    logged = np.zeros(len(data.coupon), np.int64)
    now = np.zeros(data.customers, np.int64)
    for name, edges in BINS.items():
        size = len(edges) + 1
        logged = logged * size + np.digitize(data.logged(name), edges)
        now = now * size + np.digitize(data.column(name), edges)
    distinct, codes = np.unique(np.concatenate([logged, now]), return_inverse=True)
    return codes[: len(logged)], codes[len(logged) :], len(distinct)


def next_state(data: PeerData, state: Ints) -> Ints:
    """(m,) the same customer's state one decision later; -1 where the log ends."""
    order = np.lexsort((data.day, data.customer))
    following = np.full(len(state), -1)
    here, there = order[:-1], order[1:]
    linked = (data.customer[here] == data.customer[there]) & (
        data.day[there] - data.day[here] == data.decision_days
    )
    following[here[linked]] = state[there[linked]]
    return following


def _rewards(pair: Ints, state: Ints, data: PeerData, states: int) -> tuple[Floats, Floats]:
    """(S, A) mean rewards, and counts: a state's level plus its coupon's effect, both shrunk."""
    shape = (states, data.coupons)
    count = np.bincount(pair, minlength=states * data.coupons).reshape(shape).astype(np.float64)
    total = np.bincount(pair, data.reward, states * data.coupons).reshape(shape)
    seen = count.sum(axis=1)
    level = (total.sum(axis=1) + PRIOR * data.reward.mean()) / (seen + PRIOR)
    surplus = total - count * level[:, None]
    effect = surplus.sum(axis=0) / np.maximum(count.sum(axis=0), 1)
    return level[:, None] + (surplus + PRIOR * effect) / (count + PRIOR), count


def _kernel(
    pair: Ints, following: Ints, count: Floats, pairs: int, states: int
) -> sparse.csr_matrix:
    """(S·A, S) chances of the next state, backed off to the state's own over all coupons."""
    known = following >= 0
    ones = np.ones(int(known.sum()))
    own = sparse.coo_matrix((ones, (pair[known], following[known])), (pairs, states)).tocsr()
    coupons = count.shape[1]
    spread = sparse.kron(sparse.identity(states), np.ones((coupons, 1)), format="csr")
    shared = _normalised(spread.T @ own)
    moves = np.asarray(own.sum(axis=1)).ravel()
    return sparse.diags(1 / (moves + PRIOR)) @ (own + PRIOR * (spread @ shared))


def _normalised(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    total = np.asarray(counts.sum(axis=1)).ravel()
    return sparse.diags(1 / np.maximum(total, 1)) @ counts
