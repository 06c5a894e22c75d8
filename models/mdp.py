"""The learned model of customers as a Markov decision process, and its exact solution.

A state is a hidden class of customers at a situation (models/situations.py). What happens there is
the response model's: a purchase with its chance, then the next situation, which depends on whether
there was a purchase (recency, purchases of late) and an offer (coupons of late) and is counted from
the log; leaving ends the process, and nothing follows.

Plans are made at a price of coupon money: they maximise Σ γ^t (profit − price · coupon money), so
the budget of the weeks to come is part of every value (Q_λ; Xiao et al. 2019).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy import sparse

from winback.models.errors import DataError, SettingsError, first_rows
from winback.models.response import ResponseModel, leaving_cell, levelled_purchase
from winback.models.situations import (
    COUPONS,
    PURCHASES,
    RECENCIES,
    SITUATIONS,
    Bools,
    Floats,
    Ints,
    Panel,
)

UNKNOWN_STATE = -1  # not observed yet: the reward counts, the next state does not
TERMINAL = -2  # the process ends here: nothing follows
MAX_SWEEPS = 100_000  # γ = .9999 needs about this many; more means a wrong γ
LANES = 4  # coupons that a sweep takes at a time
PLACES = RECENCIES * PURCHASES  # situations but for the coupons of late


@dataclass(frozen=True)
class Transitions:
    """Logged decisions, each column (n,), oldest first: in `state`, `coupon` earned `reward`, and
    led to `next_state` (or UNKNOWN_STATE, TERMINAL)."""

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
            raise DataError(f"transitions: expected four columns of one length; got {sizes}")
        _inside("state", self.state, 0, n_states)
        _inside("coupon", self.coupon, 0, n_coupons)
        _inside("next_state", self.next_state, TERMINAL, n_states)
        _refuse("reward must be a finite number", ~np.isfinite(self.reward))

    def _columns(self) -> tuple[npt.NDArray[Any], ...]:
        return (self.state, self.coupon, self.reward, self.next_state)


@dataclass(frozen=True)
class CustomerModel:
    """What is known of rewards and of what follows; S states × A coupons.

    Attributes:
        reward: (S, A) expected profit of the window: margin, less redeemed money and contact.
        cost: (S, A) expected coupon money that the budget pays; 0 for `none`.
        kernel: (S · A, S) chances of the next state; what is missing to 1 ends there.
        allowed: (S, A) coupons that may be chosen; `none` always is.
    """

    reward: Floats
    cost: Floats
    kernel: sparse.csr_matrix
    allowed: Bools

    @property
    def shape(self) -> tuple[int, int]:
        """S, A."""
        return self.reward.shape[0], self.reward.shape[1]

    def payoff(self, price: float) -> Floats:
        """(S, A) profit less the price of coupon money."""
        return self.reward - price * self.cost

    def future(self, value: Floats, gamma: float) -> Floats:
        """(S, A) γ E[V(s') | s, a] for state values (S,)."""
        expected: Floats = (self.kernel @ value).reshape(self.shape)
        return gamma * expected

    def value(self, q: Floats) -> Floats:
        """(S,) V(s) = max over allowed coupons of Q(s, a)."""
        best: Floats = np.where(self.allowed, q, -np.inf).max(axis=1, initial=-np.inf)
        return best

    def backup(self, value: Floats, gamma: float, price: float = 0.0) -> Floats:
        """(S, A) the Bellman operator."""
        return self.payoff(price) + self.future(value, gamma)


def learn_model(
    response: ResponseModel, panel: Panel, contact_cost: Floats, *, min_visits: int = 30
) -> CustomerModel:
    """Put the response model and the log's moves together.

    Args:
        response: how the classes respond.
        panel: the log that situations move in.
        contact_cost: (A,) of sending a coupon, currency.
        min_visits: a coupon offered less often at a recency and purchases of late is not allowed
            there.
    """
    chance = levelled_purchase(response)
    redeemed = response.redeemed * response.cost_levels
    reward = chance * (response.margin[:, None] - redeemed)[:, None, :] - contact_cost
    cost = chance * redeemed[:, None, :]
    cost[:, :, 0] = 0.0
    shape = (response.classes * SITUATIONS, response.coupons)
    supported = support(panel, response.coupons) >= max(min_visits, 1)
    supported[:, 0] = True
    return CustomerModel(
        reward=reward.reshape(shape),
        cost=cost.reshape(shape),
        kernel=_kernel(response, chance, _moves(panel)),
        allowed=np.tile(supported, (response.classes, 1)),
    )


def support(panel: Panel, coupons: int) -> Ints:
    """(SITUATIONS, A) logged decisions at the same recency and purchases of late."""
    place = panel.situation[panel.closed] // COUPONS
    cell = place * coupons + panel.coupon[panel.closed]
    counts = np.bincount(cell, minlength=PLACES * coupons).reshape(PLACES, coupons)
    return np.repeat(counts.astype(np.int64), COUPONS, axis=0)


def value_iteration(
    model: CustomerModel,
    gamma: float,
    tolerance: float = 1e-6,
    *,
    price: float = 0.0,
    start: Floats | None = None,
) -> tuple[Floats, float, int]:
    """Q* of the model, (S, A), its relative residual max|TQ − Q| and the number of sweeps.

    Starts from the table ``start`` if given. Values are within tolerance × scale of the fixed
    point, where scale = max(1, max|Q|): the residual must fall below tolerance·(1 − γ).
    """
    check_discount(gamma)
    q = np.zeros(model.shape) if start is None else start.copy()
    if q.size == 0:
        return q, 0.0, 0
    payoff, kernel = model.payoff(price), model.kernel
    chances, following, begins = _side_by_side(
        kernel.data, kernel.indices, kernel.indptr, *model.shape
    )
    value, expected = model.value(q), np.zeros((len(chances), len(q), LANES))
    for sweep in range(1, MAX_SWEEPS + 1):
        change, size = _sweep(
            payoff, model.allowed, chances, following, begins, gamma, q, value, expected
        )
        residual = change / max(1.0, size)
        if residual <= tolerance * (1 - gamma):
            return q, residual, sweep
    raise SettingsError(f"planner: residual {residual:.2g} after {sweep} sweeps: lower gamma")


@njit(cache=False)
def _side_by_side(data, indices, indptr, states, coupons):  # type: ignore[no-untyped-def]
    """A kernel (CSR) with the chances of a state's coupons beside each other.

    Coupons lead to the same few states, so the value of a next state is fetched once for all.

    Returns:
        (groups of four coupons, n, 4) chances, 0 where a coupon does not lead there; (n,) next
        states; (S + 1,) where a state's begin.
    """
    chances = np.zeros((1 + (coupons - 1) // LANES, indices.size, LANES))
    following = np.empty(indices.size, np.uint32)  # unsigned: no test for numbers below 0
    begins = np.zeros(states + 1, np.int64)
    place = np.full(states, -1)  # where a next state is in `following`; older if before `begins`
    n = 0
    for s in range(states):
        begins[s] = n
        for a in range(coupons):
            for j in range(indptr[s * coupons + a], indptr[s * coupons + a + 1]):
                if place[indices[j]] < begins[s]:
                    place[indices[j]] = n
                    following[n] = indices[j]
                    n += 1
                chances[a // LANES, place[indices[j]], a % LANES] += data[j]
    begins[states] = n
    return chances[:, :n].copy(), following[:n].copy(), begins


@njit(cache=False, nogil=True, fastmath={"contract"})  # a product and its sum are one instruction
def _expect(chances, following, begins, value, expected):  # type: ignore[no-untyped-def]
    """Σ P(s'|s, a) V(s') of four coupons into ``expected`` (S, 4): their sums run side by side."""
    for s in range(begins.size - 1):
        to, rows = following[begins[s] : begins[s + 1]], chances[begins[s] : begins[s + 1]]
        e0 = e1 = e2 = e3 = 0.0
        for j in range(to.size):
            v = value[to[j]]
            e0 += rows[j, 0] * v
            e1 += rows[j, 1] * v
            e2 += rows[j, 2] * v
            e3 += rows[j, 3] * v
        expected[s, 0], expected[s, 1], expected[s, 2], expected[s, 3] = e0, e1, e2, e3


@njit(cache=False, nogil=True)
def _sweep(payoff, allowed, chances, following, begins, gamma, q, value, expected):  # type: ignore[no-untyped-def]
    """Put TQ in place of Q (S, A), its values in place of V (S,); return max|TQ − Q|, max|TQ|.

    :meth:`CustomerModel.backup` on what :func:`_side_by_side` made of the kernel; ``expected``,
    (groups, S, 4), is room for it.
    """
    for group in range(chances.shape[0]):
        _expect(chances[group], following, begins, value, expected[group])
    change, size = 0.0, 0.0
    for s in range(q.shape[0]):
        best = -np.inf
        for a in range(q.shape[1]):
            updated = payoff[s, a] + gamma * expected[a // LANES, s, a % LANES]
            change = max(change, abs(updated - q[s, a]))
            size = max(size, abs(updated))
            q[s, a] = updated
            if allowed[s, a] and updated > best:
                best = updated
        value[s] = best
    return change, size


def check_discount(gamma: float) -> None:
    """Raise SettingsError unless the future is worth less than the present."""
    if not 0 <= gamma < 1:
        raise SettingsError(f"gamma: expected a discount of at least 0 and below 1; got {gamma!r}")


def transitions_of(panel: Panel, customer_class: Ints, contact_cost: Floats) -> Transitions:
    """The panel's closed decisions, every customer in their likeliest class (n,)."""
    state = customer_class[panel.customer] * SITUATIONS + panel.situation
    following = panel.following
    reached = np.where(following >= 0, state[following], UNKNOWN_STATE)
    order = np.argsort(panel.period, kind="stable")
    rows = order[panel.closed[order]]
    reward = panel.margin - panel.cost - contact_cost[panel.coupon]
    return Transitions(state[rows], panel.coupon[rows], reward[rows], reached[rows])


def _moves(panel: Panel) -> dict[tuple[bool, bool], sparse.csr_matrix]:
    """(SITUATIONS, SITUATIONS) chances of the next situation, by (purchase, offer).

    Recency and purchases move by the purchase, coupons of late by the offer. What the log never
    shows moves as counting says: one period later, one purchase or coupon more.
    """
    following = panel.following
    rows = np.flatnonzero(panel.closed & (following >= 0))
    here, there = panel.situation[rows], panel.situation[following[rows]]
    bought, offered = panel.purchased[rows], panel.coupon[rows] > 0
    recency, purchases = np.indices((RECENCIES, PURCHASES)).reshape(2, -1)
    later = np.minimum(recency + 1, RECENCIES - 1) * PURCHASES + purchases
    after = {False: later, True: np.minimum(purchases + 1, PURCHASES - 1)}
    tired = np.arange(COUPONS)
    places = {
        buy: _shares(here[bought == buy] // COUPONS, there[bought == buy] // COUPONS, after[buy])
        for buy in (False, True)
    }
    fatigue = {
        offer: _shares(
            here[offered == offer] % COUPONS,
            there[offered == offer] % COUPONS,
            np.minimum(tired + offer, COUPONS - 1),
        )
        for offer in (False, True)
    }
    return {
        (buy, offer): sparse.kron(places[buy], fatigue[offer], format="csr")
        for buy in (False, True)
        for offer in (False, True)
    }


def _shares(here: Ints, there: Ints, expected: Ints) -> sparse.csr_matrix:
    """Row shares of counts, with one thousandth of a count for the move that is expected."""
    size = len(expected)
    row = np.append(here, np.arange(size))
    weight = np.append(np.ones(len(here)), np.full(size, 1e-3))
    entries = (weight, (row, np.append(there, expected)))
    counts = sparse.coo_matrix(entries, shape=(size, size)).tocsr()
    total = np.asarray(counts.sum(axis=1)).ravel()
    return sparse.diags(1 / total) @ counts


def _kernel(
    response: ResponseModel, chance: Floats, moves: dict[tuple[bool, bool], sparse.csr_matrix]
) -> sparse.csr_matrix:
    """(K · SITUATIONS · A, K · SITUATIONS), coupon fastest."""
    situation = np.arange(SITUATIONS)
    blocks = []
    for k in range(response.classes):
        of_class = []
        for coupon in range(response.coupons):
            cell = leaving_cell(situation, np.full(SITUATIONS, coupon))
            stays, buys = 1 - response.hazard[k, cell], chance[k, :, coupon]
            move = sparse.diags(stays * buys) @ moves[True, coupon > 0]
            of_class.append(move + sparse.diags(stays * (1 - buys)) @ moves[False, coupon > 0])
        by_coupon = sparse.vstack(of_class, format="csr")
        order = np.arange(SITUATIONS * response.coupons).reshape(response.coupons, -1).T.ravel()
        blocks.append(by_coupon[order])
    return sparse.block_diag(blocks, format="csr")


def _inside(name: str, values: Ints, low: int, high: int) -> None:
    _refuse(f"{name} must lie in {low} … {high - 1}", (values < low) | (values >= high))


def _refuse(rule: str, bad: Bools) -> None:
    if bad.any():
        rows: list[int] = np.flatnonzero(bad).tolist()
        raise DataError(f"transitions: {rule}; see rows {first_rows(rows)}")
