"""Dyna-Q against the book's maze, hand-solved and dense solutions of random processes."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse
from worlds import live_by, policy_iteration

from winback.models.errors import DataError, SettingsError
from winback.models.mdp import (
    TERMINAL,
    UNKNOWN_STATE,
    CustomerModel,
    Transitions,
    learn_model,
    transitions_of,
    value_iteration,
)
from winback.models.planner import dyna_q, dyna_q_on_environment, step_size, td_update
from winback.models.response import BASE_TERMS, SHARED_EFFECTS, ResponseModel
from winback.models.situations import COUPONS, SITUATIONS


def log_of(rows):
    """Transitions from (state, coupon, reward, next state) rows."""
    state, coupon, reward, following = np.array(rows, dtype=float).reshape(-1, 4).T
    return Transitions(state.astype(int), coupon.astype(int), reward, following.astype(int))


def random_process(states, coupons, seed=0):
    """A model with three next states per pair, some leaving, and some coupons not allowed."""
    random = np.random.default_rng(seed)
    pairs = states * coupons
    chance = random.dirichlet([1, 1, 1], pairs) * random.uniform(0.8, 1, (pairs, 1))
    to = (np.arange(pairs)[:, None] // coupons + random.integers(0, 6, (pairs, 3))) % states
    entries = (chance.ravel(), (np.repeat(np.arange(pairs), 3), to.ravel()))
    cost = random.uniform(0, 2, (states, coupons))
    cost[:, 0] = 0
    allowed = random.random((states, coupons)) < 0.7
    allowed[:, 0] = True
    return CustomerModel(
        reward=random.normal(2, 2, (states, coupons)) + np.arange(coupons),
        cost=cost,
        kernel=sparse.coo_matrix(entries, shape=(pairs, states)).tocsr(),
        allowed=allowed,
    )


def live_in(model, n, seed=0):
    """n logged decisions drawn from the process; rewards come with noise."""
    random = np.random.default_rng(seed)
    states, coupons = model.shape
    state, coupon = random.integers(0, states, n), random.integers(0, coupons, n)
    moves = np.cumsum(model.kernel.toarray()[state * coupons + coupon], axis=1)
    draw = random.random(n)
    following = (moves < draw[:, None]).sum(axis=1)
    following = np.where(draw > moves[:, -1], TERMINAL, following)
    following[random.random(n) < 0.1] = UNKNOWN_STATE
    reward = model.reward[state, coupon] + random.normal(0, 2, n)
    return Transitions(state, coupon, reward, following)


class Maze:
    """Sutton & Barto, figure 8.2: 6 × 9 cells, start left, goal in the upper right corner."""

    n_states, n_actions, start = 54, 4, 18
    walls = frozenset({(1, 2), (2, 2), (3, 2), (4, 5), (0, 7), (1, 7), (2, 7)})

    def step(self, state, action):
        row, column = divmod(state, 9)
        down, right = ((-1, 0), (1, 0), (0, -1), (0, 1))[action]
        cell = (row + down, column + right)
        if not (0 <= cell[0] < 6 and 0 <= cell[1] < 9) or cell in self.walls:
            cell = (row, column)
        done = cell == (0, 8)
        return float(done), cell[0] * 9 + cell[1], done


def test_maze_learning_curves_match_sutton_and_barto_example_8_1():
    """30 runs, α = .1, γ = .95, ε = .1: about 28, 6 and 3 episodes until 20 steps suffice."""
    first = {}
    for n, episodes in ((0, 40), (5, 12), (50, 6)):
        runs = [
            dyna_q_on_environment(Maze(), episodes=episodes, planning_updates=n, seed=seed)[1]
            for seed in range(30)
        ]
        first[n] = int(np.argmax(np.mean(runs, axis=0) <= 20)) + 1
    assert 20 <= first[0] <= 36
    assert 4 <= first[5] <= 8
    assert 2 <= first[50] <= 4


def test_maze_plan_walks_the_shortest_path_of_14_steps():
    q, _ = dyna_q_on_environment(Maze(), episodes=30, planning_updates=50, seed=0)
    state, steps, done = Maze.start, 0, False
    while not done and steps < 100:
        _, state, done = Maze().step(state, int(q[state].argmax()))
        steps += 1
    assert steps == 14


def test_worked_example_gives_88_85():
    """Regression: Q = 65, reward 78, best next 70, α = .3, γ = .95 is 88.85, not 74."""
    assert td_update(65.0, 78.0, 70.0, 0.3, 0.95) == pytest.approx(88.85)


def test_step_size_starts_at_alpha_and_falls_like_1_over_n():
    """Regression: α must decay. Robbins & Monro (1951): Σα diverges, Σα² does not."""
    assert step_size(0.3, 0) == 0.3
    assert step_size(0.3, 10**6) * 10**6 == pytest.approx(1, rel=1e-4)


def one_pair(reward, following_chance=0.0):
    """One state, one coupon: it stays with the chance given and ends otherwise."""
    kernel = sparse.csr_matrix(np.array([[following_chance]]))
    return CustomerModel(np.array([[reward]]), np.zeros((1, 1)), kernel, np.ones((1, 1), bool))


def test_the_end_of_the_process_is_worth_nothing():
    """Regression: with s' = s a reward of 10 became 10 / (1 − γ) = 200; here the process ends."""
    plan = dyna_q(one_pair(10.0), log_of([(0, 0, 10, TERMINAL)] * 20))
    assert plan.q[0, 0] == pytest.approx(10)
    assert plan.value[0] == pytest.approx(10)


def test_coupons_that_are_not_allowed_never_win_and_add_no_value():
    """By hand: coupon 1 earns 50 a period but is not allowed; `none` earns 1 for ever."""
    kernel = sparse.csr_matrix(np.ones((2, 1)))
    allowed = np.array([[True, False]])
    model = CustomerModel(np.array([[1.0, 50.0]]), np.zeros((1, 2)), kernel, allowed)
    plan = dyna_q(model, log_of([(0, 1, 50, 0)] * 100))
    assert plan.greedy.tolist() == [0]
    assert plan.value[0] == pytest.approx(1 / (1 - 0.95))
    assert plan.q[0, 1] == pytest.approx(50 + 0.95 * 20)


def test_ties_go_to_none():
    kernel = sparse.csr_matrix(np.ones((3, 1)))
    model = CustomerModel(np.ones((1, 3)), np.zeros((1, 3)), kernel, np.ones((1, 3), bool))
    assert dyna_q(model, log_of([])).greedy.tolist() == [0]


@pytest.mark.parametrize("planning_updates", [0, 20])
@pytest.mark.parametrize(("seed", "price"), [(0, 0.0), (1, 0.7), (2, 3.0)])
def test_plan_equals_the_exact_solution_of_the_model(seed, price, planning_updates):
    model = random_process(40, 3, seed)
    log = live_in(model, 3000, seed)
    plan = dyna_q(model, log, price=price, planning_updates=planning_updates, seed=seed)
    exact = policy_iteration(model, 0.95, price)
    scale = np.abs(exact).max()
    assert plan.residual <= 1e-6
    assert np.abs(plan.q - exact).max() <= 1e-6 * scale
    assert np.abs(value_iteration(model, 0.95, price=price)[0] - exact).max() <= 1e-6 * scale
    assert (plan.greedy == np.where(model.allowed, exact, -np.inf).argmax(axis=1)).all()
    assert plan.value == pytest.approx(np.where(model.allowed, plan.q, -np.inf).max(axis=1))


def test_a_higher_price_buys_less():
    """Coupon money of the greedy coupons, by hand from the table of costs."""
    model = random_process(60, 4, seed=4)
    log, rows = live_in(model, 500), np.arange(60)
    spent = [model.cost[rows, dyna_q(model, log, price=p).greedy].sum() for p in (0.0, 1.0, 1e6)]
    assert spent[0] > spent[1] > spent[2]
    assert spent[2] == 0


def test_planning_updates_come_near_the_fixed_point_before_the_final_sweeps():
    """Measured by the planner's residual, checked here against the definition max|TQ − Q|."""
    model = random_process(40, 3, seed=5)
    log = live_in(model, 10_000)
    with_planning, without = (dyna_q(model, log, planning_updates=k) for k in (20, 0))
    assert with_planning.planning_updates > 0
    assert without.planning_updates == 0
    assert with_planning.td_updates == len(log.completed()) < len(log)
    assert with_planning.residual_before_sweeps < 0.01
    assert with_planning.residual_before_sweeps < without.residual_before_sweeps / 4
    assert with_planning.sweeps < without.sweeps
    best = np.where(model.allowed, without.q, -np.inf).max(axis=1)
    updated = model.reward + 0.95 * (model.kernel @ best).reshape(model.shape)
    residual = np.abs(updated - without.q).max() / max(1, np.abs(without.q).max())
    assert residual <= without.residual * 1.01 + 1e-12


def test_same_seed_same_plan():
    model = random_process(30, 3)
    log = live_in(model, 2000)
    first, again, other = (dyna_q(model, log, seed=seed) for seed in (5, 5, 6))
    assert (first.q == again.q).all()
    assert first.residual_before_sweeps == again.residual_before_sweeps
    assert first.residual_before_sweeps != other.residual_before_sweeps


def response_of(coupons):
    """Two classes without any effect of coupons."""
    terms = BASE_TERMS + SHARED_EFFECTS + coupons - 1
    coefficients = np.zeros((2, terms))
    coefficients[:, 0] = -1.5, 0.0
    return ResponseModel(
        share=np.array([0.5, 0.5]),
        coefficients=coefficients,
        doubt=np.zeros((2, SITUATIONS, coupons)),
        hazard=np.full((2, 2 * COUPONS), 0.02),
        margin=np.array([20.0, 30.0]),
        redeemed=np.zeros((2, coupons)),
        log_margin=np.array([3.0, 3.4]),
        log_margin_spread=np.array([0.3, 0.3]),
        redeems=np.full((2, coupons), 0.01),
        offers=np.full((2, SITUATIONS), 0.3),
        smallest_margin=np.array(0.1),
        level=np.array([0.0, 1.0]),
        cost_level=np.array(1.0),
        face_values=5.0 * np.arange(coupons),
    )


def test_cold_start_plans_none_everywhere_at_the_value_of_the_dense_solution():
    """A log without a single offer: no coupon is allowed, whatever it is believed to earn."""
    response = response_of(3)
    panel, kind = live_by(response, 200, 15, [0.0, 0.0], seed=0)
    model = learn_model(response, panel, np.array([0.0, -5.0, -5.0]))  # coupons look profitable
    plan = dyna_q(model, transitions_of(panel, kind, np.zeros(3)))
    assert (plan.greedy == 0).all()
    assert plan.value == pytest.approx(plan.q[:, 0])
    exact = policy_iteration(model, 0.95)
    assert np.abs(plan.q - exact).max() <= 1e-6 * np.abs(exact).max()


def test_an_empty_log_is_planned_from_the_model_alone():
    model = random_process(20, 3, seed=6)
    plan = dyna_q(model, log_of([]))
    assert (plan.td_updates, plan.planning_updates) == (0, 0)
    assert plan.q == pytest.approx(policy_iteration(model, 0.95), rel=1e-5, abs=1e-4)


def test_no_state_at_all_is_an_empty_plan():
    nothing = np.zeros((0, 4))
    kernel = sparse.csr_matrix((0, 0))
    plan = dyna_q(CustomerModel(nothing, nothing, kernel, nothing.astype(bool)), log_of([]))
    assert plan.q.shape == (0, 4)


def test_unknown_next_states_teach_nothing():
    log = log_of([(0, 0, 2, 0)] * 100 + [(0, 0, 4, UNKNOWN_STATE)] * 50)
    assert dyna_q(one_pair(2.0, 1.0), log).td_updates == 100


def test_works_without_home_or_a_writable_cache():
    code = "from winback.models.planner import td_update; print(td_update(65, 78, 70, .3, .95))"
    clean = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    clean |= {"HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True)
    assert done.stdout.startswith("88.85"), done.stderr


BAD_LOGS = [
    ([(5, 0, 1, 0)], "state must lie in 0 … 1; see rows 0 (1 row)"),
    ([(0, 0, 1, 0), (0, 7, 1, 0)], "coupon must lie in 0 … 2; see rows 1 (1 row)"),
    ([(0, 0, 1, 9)], "next_state must lie in -2 … 1"),
    ([(0, 0, np.nan, 0)], "reward must be a finite number"),
]


@pytest.mark.parametrize(("rows", "message"), BAD_LOGS)
def test_bad_logs_are_refused(rows, message):
    with pytest.raises(DataError) as caught:
        dyna_q(random_process(2, 3), log_of(rows))
    assert message in str(caught.value)


def test_columns_of_different_lengths_are_refused():
    log = Transitions(np.zeros(2, int), np.zeros(1, int), np.zeros(2), np.zeros(2, int))
    with pytest.raises(DataError, match="four columns of one length"):
        dyna_q(random_process(2, 3), log)


def test_a_discount_of_1_is_refused():
    with pytest.raises(SettingsError, match="below 1"):
        dyna_q(random_process(2, 3), log_of([(0, 0, 1, 0)]), gamma=1.0)
