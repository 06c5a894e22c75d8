"""Dyna-Q and the learned customer model against hand-solved, dense and simulated oracles."""

import os
import subprocess
import sys

import numpy as np
import pytest

from winback.models.errors import DataError, SettingsError
from winback.models.mdp import TERMINAL, UNKNOWN_STATE
from winback.models.planner import (
    Transitions,
    dyna_q,
    dyna_q_on_environment,
    learn_model,
    link_next_states,
    personal_values,
    step_size,
    td_update,
    value_iteration,
)

TRUST_THE_LOG = {"prior_strength": 1e-9, "min_visits": 1, "pessimism": 0.0}


def log_of(rows):
    """Transitions from (state, coupon, reward, next state) rows."""
    state, coupon, reward, following = np.array(rows, dtype=float).reshape(-1, 4).T
    return Transitions(state.astype(int), coupon.astype(int), reward, following.astype(int))


def random_log(n, n_states, n_coupons, seed=0):
    rng = np.random.default_rng(seed)
    state = rng.integers(0, n_states, n)
    coupon = np.where(rng.random(n) < 0.4, rng.integers(0, n_coupons, n), 0)
    following = (state + rng.integers(0, 3, n) + coupon) % n_states
    following[rng.random(n) < 0.1] = UNKNOWN_STATE
    following[rng.random(n) < 0.05] = TERMINAL
    return Transitions(state, coupon, rng.normal(state % 3 + coupon, 2.0), following)


def policy_iteration(model, gamma):
    """Exact Q by dense linear solves: an oracle that shares no iteration with the planner."""
    kernel = model.transition().reshape(model.n_states, model.n_coupons, model.n_states)
    rows, policy = np.arange(model.n_states), np.zeros(model.n_states, dtype=int)
    while True:
        chosen = np.eye(model.n_states) - gamma * kernel[rows, policy]
        value = np.linalg.solve(chosen, model.reward_lower[rows, policy])
        q = model.reward_lower + gamma * kernel @ value
        better = np.where(model.allowed, q, -np.inf).argmax(axis=1)
        if (better == policy).all():
            return q
        policy = better


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


def test_next_states_are_learned_so_values_are_not_inflated():
    """Regression: with s' = s a reward of 10 became 10 / (1 − γ) = 200; here the process ends."""
    log = log_of([(0, 0, 10, TERMINAL)] * 20)
    plan = dyna_q(learn_model(log, 1, 1, [0], **TRUST_THE_LOG), log)
    assert plan.q[0, 0] == pytest.approx(10)
    assert plan.future_value[0, 0] == pytest.approx(0, abs=1e-6)


def test_unvisited_coupons_never_win():
    """Regression: states without data came out as an argmax over zeros, shown as insight."""
    rows = [(s, 0, -5.0, (s + 1) % 4) for s in range(4)] * 50  # every Q of `none` is below zero
    rows += [(0, 1, -20.0, 1)] * 40 + [(2, 2, 50.0, 3)]  # coupon 1 tried, 2 once, 3 never
    log = log_of(rows)
    plan = dyna_q(learn_model(log, 4, 4, [0, 0, 1, 1], min_visits=30), log)
    assert plan.allowed[:2].tolist() == [[True, True, False, False]] * 2
    assert plan.allowed[2:].tolist() == [[True, False, False, False]] * 2
    assert plan.greedy.tolist() == [0, 0, 0, 0]
    assert plan.visits[2].tolist() == [50, 0, 1, 0]


def test_chain_solved_by_hand():
    """Coupon 1 costs 1 and moves right, `none` stays for 0; the end pays 10. γ = .9:
    V(3) = 10 − 1, V(s) = −1 + .9·V(s + 1), and staying is worth .9·V(s)."""
    rows = [(s, 1, -1.0, s + 1) for s in range(3)] + [(3, 1, 9.0, TERMINAL)]
    rows += [(s, 0, 0.0, s) for s in range(4)]
    log = log_of(rows * 10)
    model = learn_model(log, 4, 2, np.arange(4), **TRUST_THE_LOG)
    plan = dyna_q(model, log, gamma=0.9, tolerance=1e-9)
    values = [-1 + 0.9 * (-1 + 0.9 * (-1 + 0.9 * 9)), -1 + 0.9 * (-1 + 0.9 * 9), -1 + 0.9 * 9, 9]
    assert plan.q[:, 1] == pytest.approx(values, abs=1e-6)
    assert plan.q[:, 0] == pytest.approx(0.9 * np.array(values), abs=1e-6)
    assert plan.greedy.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("planning_updates", [0, 20])
@pytest.mark.parametrize("seed", range(3))
def test_plan_equals_the_exact_solution_of_the_model(seed, planning_updates):
    log = random_log(5000, 30, 3, seed)
    model = learn_model(log, 30, 3, np.arange(30) % 4, min_visits=200)
    plan = dyna_q(model, log, planning_updates=planning_updates, seed=seed)
    exact = policy_iteration(model, 0.95)
    scale = np.abs(exact).max()
    assert plan.residual <= 1e-6
    assert np.abs(plan.q - exact).max() <= 1e-6 * scale
    assert np.abs(value_iteration(model, 0.95)[0] - exact).max() <= 1e-6 * scale
    assert (plan.greedy == np.where(model.allowed, exact, -np.inf).argmax(axis=1)).all()
    assert plan.q == pytest.approx(model.reward_lower + plan.future_value, abs=1e-5 * scale)


def test_planning_updates_come_near_the_fixed_point_before_the_final_sweeps():
    log = random_log(20_000, 30, 3)
    model = learn_model(log, 30, 3, np.zeros(30, dtype=int))
    with_planning, without = (dyna_q(model, log, planning_updates=k) for k in (20, 0))
    assert with_planning.planning_updates > 0
    assert with_planning.td_updates == len(log.completed())
    assert with_planning.residual_before_sweeps < 0.01
    assert with_planning.residual_before_sweeps < without.residual_before_sweeps / 4


def test_same_seed_same_plan():
    log = random_log(2000, 20, 3)
    model = learn_model(log, 20, 3, np.zeros(20, dtype=int))
    first, again = (dyna_q(model, log, seed=5) for _ in range(2))
    assert (first.q == again.q).all()
    assert first.planning_updates == again.planning_updates


def test_kernel_equals_a_brute_force_reading_of_the_definition():
    """Pair → tilted state → tilted parent → everybody, counted with plain loops."""
    S, A, prior, small = 5, 2, 4.0, 5.0
    log, parent = random_log(150, S, A, seed=3), [0, 0, 1, 1, 1]
    kernel = learn_model(log, S, A, parent, prior_strength=prior).transition()
    rows = list(zip(log.state, log.coupon, log.next_state, strict=True))
    rows = [row for row in rows if row[2] != UNKNOWN_STATE]

    def shares(keep):
        chosen = [t for s, a, t in rows if keep(s, a)]
        return np.array([chosen.count(t) for t in range(S)]) / max(len(chosen), 1), len(chosen)

    by_state = [shares(lambda s, a, own=own: s == own)[0] for own in range(S)]
    observed, expected = np.zeros((2, A, 2)), np.zeros((2, A, 2))
    for s, a, t in rows:
        if t >= 0:
            observed[parent[s], a, parent[t]] += 1
        for target in range(S):
            expected[parent[s], a, parent[target]] += by_state[s][target]
    root = (observed.sum(0) + small) / (expected.sum(0) + small)
    lift = (observed + small * root) / (expected + small)

    def tilted(own, p, a):
        raised = own * [lift[p, a, parent[t]] for t in range(S)]
        return raised * own.sum() / raised.sum()

    def blend(n, own, above):
        return (n * own + prior * above) / (n + prior)

    for s in range(S):
        for a in range(A):
            coarse, n_coarse = shares(lambda t, _, p=parent[s]: parent[t] == p)
            own, n_own = shares(lambda t, _, s=s: t == s)
            pair, n_pair = shares(lambda t, b, s=s, a=a: (t, b) == (s, a))
            above = blend(n_coarse, tilted(coarse, parent[s], a), shares(lambda *_: True)[0])
            above = blend(n_own, tilted(own, parent[s], a), above)
            assert kernel[s * A + a] == pytest.approx(blend(n_pair, pair, above))


def test_what_a_coupon_does_to_the_next_state_carries_over_to_states_where_it_is_rare():
    """Truth: a coupon always leads to the odd state of a pair (coupons received), `none` to the
    even one. In states 8 and 9 the coupon was never tried."""
    rng = np.random.default_rng(0)
    state = rng.integers(0, 10, 4000)
    coupon = np.where(state >= 8, 0, rng.integers(0, 2, 4000))
    place = rng.integers(0, 5, 4000)
    received = np.where(rng.random(4000) < 0.1, 1 - coupon, coupon)  # 10% are mislaid
    log = Transitions(state, coupon, np.zeros(4000), 2 * place + received)
    kernel = learn_model(
        log, 10, 2, np.zeros(10, dtype=int), outcome_class=np.arange(10) % 2
    ).transition()
    odd = kernel[:, 1::2].sum(axis=1).reshape(10, 2)
    assert odd[9, 1] > 0.25  # the state alone, with `none` only, says 0.1
    assert odd[0, 1] == pytest.approx(0.9, abs=0.06)
    assert kernel.sum(axis=1) == pytest.approx(np.ones(20))


def test_coupons_without_effect_get_none_although_better_customers_got_them():
    """Simulated truth: no effect. State 1 spends 10 more and gets most of the coupons, so the
    raw means differ by about 6; compared within states the difference is noise."""
    rng = np.random.default_rng(1)
    state = rng.integers(0, 2, 20_000)
    coupon = (rng.random(20_000) < np.where(state == 1, 0.7, 0.1)).astype(int)
    reward = 10.0 * state + rng.normal(0, 3, 20_000)
    assert reward[coupon == 1].mean() - reward[coupon == 0].mean() > 5
    model = learn_model(Transitions(state, coupon, reward, state), 2, 2, [0, 0])
    assert model.reward[:, 1] - model.reward[:, 0] == pytest.approx([0, 0], abs=0.2)
    assert (model.reward_lower[:, 1] < model.reward_lower[:, 0]).all()


def test_rewards_are_recovered_and_better_with_more_decisions():
    """Simulated truth: reward = state + 2·coupon; the bound closes in on it from below."""
    gaps = []
    for n in (1000, 100_000):
        rng = np.random.default_rng(2)
        state, coupon = rng.integers(0, 5, n), rng.integers(0, 2, n)
        reward = state + 2.0 * coupon + rng.normal(0, 3, n)
        model = learn_model(Transitions(state, coupon, reward, state), 5, 2, np.zeros(5, dtype=int))
        truth = np.arange(5)[:, None] + [0.0, 2.0]
        gaps.append(np.abs(model.reward - truth).max())
        assert (model.reward_lower[:, 1] < model.reward[:, 1]).all()
        assert (model.reward_lower[:, 0] == model.reward[:, 0]).all()
    assert gaps[0] < 1.5
    assert gaps[1] < 0.15


def test_rewards_of_unseen_pairs_come_from_the_parent():
    """By hand: parent 0 was measured at state 0 only: with none 4, with the coupon 7."""
    log = log_of([(0, 0, 4, 0), (0, 1, 7, 0)] * 10_000 + [(2, 0, 100, 2)] * 10_000)
    model = learn_model(log, 3, 2, [0, 0, 1])
    assert model.reward[1] == pytest.approx([4, 7], abs=0.3)
    assert model.support.tolist() == [[10_000, 10_000], [10_000, 10_000], [10_000, 0]]
    assert model.allowed.tolist() == [[True, True], [True, True], [True, False]]


def test_empty_log_plans_none_everywhere():
    log = log_of([])
    plan = dyna_q(learn_model(log, 3, 4, [0, 0, 1]), log)
    assert (plan.q == 0).all()
    assert plan.greedy.tolist() == [0, 0, 0]
    assert plan.allowed.sum() == 3
    assert dyna_q(learn_model(log, 0, 4, []), log).q.shape == (0, 4)


@pytest.mark.parametrize("coupon", [0, 1])
def test_cold_start_with_one_action_only(coupon):
    rng = np.random.default_rng(0)
    state = rng.integers(0, 3, 500)
    log = Transitions(state, np.full(500, coupon), rng.normal(5, 1, 500), rng.integers(0, 3, 500))
    plan = dyna_q(learn_model(log, 3, 2, [0, 0, 0]), log)
    assert plan.greedy.tolist() == [0, 0, 0]
    assert plan.allowed[:, 1].tolist() == [coupon == 1] * 3
    assert plan.q[:, 0] == pytest.approx([100] * 3, rel=0.1)  # 5 / (1 − γ)


def test_states_seen_only_as_next_state_are_valued_by_their_parent():
    log = log_of([(0, 0, 2, 1)] * 1000)
    plan = dyna_q(learn_model(log, 2, 1, [0, 0]), log)
    assert plan.visits.tolist() == [[1000], [0]]
    assert plan.q == pytest.approx(np.full((2, 1), 40.0), rel=0.02)  # 2 / (1 − γ)


def test_unknown_next_states_teach_rewards_but_no_transitions():
    log = log_of([(0, 0, 2, 1)] * 100 + [(0, 0, 4, UNKNOWN_STATE)] * 100)
    model = learn_model(log, 2, 1, [0, 1], **TRUST_THE_LOG)
    assert model.reward[0, 0] == pytest.approx(3)
    assert model.transition()[0] == pytest.approx([0, 1])
    assert dyna_q(model, log).td_updates == 100


def test_memory_grows_with_the_log_not_with_the_square_of_states():
    log = random_log(60_000, 200_000, 4)
    model = learn_model(log, 200_000, 4, np.arange(200_000) % 40)
    stored = model.pair_kernel.nnz + model.state_kernel.nnz + model.parent_kernel.nnz
    assert stored <= 9 * len(log)  # 1 + A + A entries per decision at most


def test_next_states_are_linked_like_a_dictionary_would():
    rng = np.random.default_rng(0)
    cells = rng.permutation(200)[:120]
    customer, period, state = cells // 10, cells % 10, rng.integers(0, 9, 120)
    at = {(c, p): s for c, p, s in zip(customer, period, state, strict=True)}
    expected = [at.get((c, p + 1), UNKNOWN_STATE) for c, p in zip(customer, period, strict=True)]
    assert link_next_states(customer, period, state).tolist() == expected


def test_personal_values_add_the_tables_future_to_the_personal_forecast():
    values = personal_values([[1, 2], [3, 4], [5, 6]], [[10, 20], [30, 40]], [1, -1, 0])
    assert values.tolist() == [[31, 42], [3, 4], [15, 26]]


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
        learn_model(log_of(rows), 2, 3, [0, 0])
    assert message in str(caught.value)


def test_bad_arguments_are_refused():
    log = log_of([(0, 0, 1, 0)])
    with pytest.raises(DataError, match="parent_of_state: expected 2 numbers"):
        learn_model(log, 2, 1, [0])
    with pytest.raises(SettingsError, match="below 1"):
        dyna_q(learn_model(log, 1, 1, [0]), log, gamma=1.0)
    with pytest.raises(DataError, match=r"expected profit \(n, A\)"):
        personal_values([[1.0]], [[1.0, 2.0]], [0])
