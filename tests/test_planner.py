"""Dyna-Q and the learned customer model against hand-solved, dense and simulated oracles."""

import os
import subprocess
import sys

import numpy as np
import pytest

from winback.models.effects import Grid, between_variance, customer_free_value
from winback.models.errors import DataError, SettingsError
from winback.models.mdp import TERMINAL, UNKNOWN_STATE
from winback.models.planner import (
    Transitions,
    dyna_q,
    dyna_q_on_environment,
    learn_model,
    link_next_states,
    step_size,
    td_update,
    value_iteration,
)

TRUST_THE_LOG = {"prior_strength": 1e-9, "min_visits": 1, "pessimism": 0.0}


def log_of(rows):
    """Transitions from (state, coupon, reward, next state) rows."""
    state, coupon, reward, following = np.array(rows, dtype=float).reshape(-1, 4).T
    return logged(state.astype(int), coupon.astype(int), reward, following.astype(int))


def logged(state, coupon, reward, following, customer=None, period=None):
    """Transitions of a single customer in a single period unless told otherwise."""
    same = np.zeros(len(state), dtype=int)
    customer, period = (same if column is None else column for column in (customer, period))
    return Transitions(customer, period, state, coupon, reward, following)


def random_log(n, n_states, n_coupons, seed=0):
    rng = np.random.default_rng(seed)
    state = rng.integers(0, n_states, n)
    coupon = np.where(rng.random(n) < 0.4, rng.integers(0, n_coupons, n), 0)
    following = (state + rng.integers(0, 3, n) + coupon) % n_states
    following[rng.random(n) < 0.1] = UNKNOWN_STATE
    following[rng.random(n) < 0.05] = TERMINAL
    customer = rng.integers(0, n // 20, n)
    return logged(state, coupon, rng.normal(state % 3 + coupon, 2.0), following, customer)


def policy_iteration(model, gamma):
    """Exact Q by dense linear solves: an oracle that shares no iteration with the planner."""
    kernel = model.transition().reshape(model.n_states, model.n_coupons, model.n_states)
    rows, policy = np.arange(model.n_states), np.zeros(model.n_states, dtype=int)
    while True:
        chosen = np.eye(model.n_states) - gamma * kernel[rows, policy]
        gain = model.reward_lower + model.future_effect
        value = np.linalg.solve(chosen, gain[rows, policy])
        q = gain + gamma * kernel @ value
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
    plan = dyna_q(learn_model(log, 1, [0], **TRUST_THE_LOG), log)
    assert plan.q[0, 0] == pytest.approx(10)
    assert plan.future_value[0, 0] == pytest.approx(0, abs=1e-6)


def test_unvisited_coupons_never_win():
    """Regression: states without data came out as an argmax over zeros, shown as insight."""
    rows = [(s, 0, -5.0, (s + 1) % 4) for s in range(4)] * 50  # every Q of `none` is below zero
    rows += [(0, 1, -20.0, 1)] * 40 + [(2, 2, 50.0, 3)]  # coupon 1 tried, 2 once, 3 never
    log = log_of(rows)
    plan = dyna_q(learn_model(log, 4, [0, 0, 1, 1], min_visits=30), log)
    assert plan.allowed[:2].tolist() == [[True, True, False, False]] * 2
    assert plan.allowed[2:].tolist() == [[True, False, False, False]] * 2
    assert plan.greedy.tolist() == [0, 0, 0, 0]
    assert plan.visits[2].tolist() == [50, 0, 1, 0]


@pytest.mark.parametrize("planning_updates", [0, 20])
@pytest.mark.parametrize("seed", range(3))
def test_plan_equals_the_exact_solution_of_the_model(seed, planning_updates):
    log = random_log(5000, 30, 3, seed)
    model = learn_model(log, 3, np.arange(10) % 4, exposures=3, min_visits=200)
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
    model = learn_model(log, 3, np.zeros(30, dtype=int))
    with_planning, without = (dyna_q(model, log, planning_updates=k) for k in (20, 0))
    assert with_planning.planning_updates > 0
    assert with_planning.td_updates == len(log.completed())
    assert with_planning.residual_before_sweeps < 0.01
    assert with_planning.residual_before_sweeps < without.residual_before_sweeps / 4


def test_same_seed_same_plan():
    log = random_log(2000, 20, 3)
    model = learn_model(log, 3, np.zeros(20, dtype=int))
    first, again = (dyna_q(model, log, seed=5) for _ in range(2))
    assert (first.q == again.q).all()
    assert first.planning_updates == again.planning_updates


@pytest.mark.parametrize("exposures", [1, 2])
def test_kernel_equals_a_brute_force_reading_of_the_definition(exposures):
    """Situation → parent → everybody, times the next exposure, counted with plain loops."""
    S, K, A, prior = 6, exposures, 2, 4.0
    log, parent = random_log(150, S, A, seed=3), [0, 0, 1, 1, 1, 1][: S // K]
    kernel = learn_model(log, A, parent, exposures=K, prior_strength=prior).transition()
    rows = list(zip(log.state, log.coupon, log.next_state, strict=True))
    rows = [row for row in rows if row[2] != UNKNOWN_STATE]

    def shares(keep, part, size):
        chosen = [part(t) if t >= 0 else None for s, a, t in rows if keep(s, a)]
        return np.array([chosen.count(x) for x in range(size)]) / len(chosen), len(chosen)

    for s in range(S):
        for a in range(A):
            levels = [
                shares(keep, lambda t: t // K, S // K)
                for keep in (
                    lambda *_: True,
                    lambda t, _, p=parent[s // K]: parent[t // K] == p,
                    lambda t, _, s=s: t // K == s // K,
                )
            ]
            expected = levels[0][0]
            for own, n in levels[1:]:
                expected = (n * own + prior * expected) / (n + prior)
            offered = [(t, b, to) for t, b, to in rows if to >= 0]
            drawn = [to % K for t, b, to in offered if (t % K, b > 0) == (s % K, a > 0)]
            exposure = np.array([drawn.count(k) / len(drawn) for k in range(K)])
            assert kernel[s * A + a] == pytest.approx(np.outer(expected, exposure).ravel())


def test_fatigue_is_foreseen_as_solved_by_hand():
    """One situation; an offer earns 3 and exposes for the next period, which earns 5 less."""
    rows = [(0, 0, 10, 0), (0, 1, 13, 1), (1, 0, 5, 0), (1, 1, 8, 1)] * 5000
    model = learn_model(log_of(rows), 2, [0], exposures=2, gamma=0.9, **TRUST_THE_LOG)
    q = value_iteration(model, 0.9)[0]
    value = 10 / (1 - 0.9)
    by_hand = [[value, 13 + 0.9 * (value - 5)], [value - 5, 8 + 0.9 * (value - 5)]]
    assert q == pytest.approx(np.array(by_hand), abs=0.01)


def shop(effect, seed, *, cost=0.0, customers=1500, weeks=52, before=20):
    """A simulated shop with hidden types: 40% good customers, who get 12 times the coupons. It is
    logged after `before` weeks, when the start is forgotten.

    `effect` (offered, recency, exposure) adds to the chance of buying this week and multiplies it.
    """
    rng = np.random.default_rng(seed)
    good, recency = rng.random(customers) < 0.4, rng.integers(0, 4, customers)
    bought, offers, columns = [np.zeros(customers, dtype=int)] * 4, [recency * 0] * 4, []
    for week in range(-before, weeks):
        frequency, exposure = np.minimum(sum(bought), 3), np.minimum(sum(offers), 2)
        offered = rng.random(customers) < np.where(good, 0.25, 0.02)
        added, factor = effect(offered, recency, exposure)
        chance = np.where(good, 0.55, 0.12) * np.array([1.2, 1.0, 0.8, 0.6])[recency] * factor
        buys = rng.random(customers) < np.clip(chance + added, 0, 0.97)
        spent = np.where(good, 30, 12) * rng.gamma(4, 0.25, customers)
        state = (recency * 4 + frequency) * 3 + exposure
        reward = np.where(buys, spent, 0) - cost * offered
        columns.append((np.full(customers, week), state, offered.astype(int), reward))
        recency = np.where(buys, 0, np.minimum(recency + 1, 3))
        bought, offers = [buys, *bought[:3]], [offered, *offers[:3]]
    period, state, coupon, reward = (np.concatenate(c) for c in zip(*columns[before:], strict=True))
    customer = np.tile(np.arange(customers), weeks)
    following = link_next_states(customer, period, state)
    return logged(state, coupon, reward, following, customer, period)


def shop_plan(log):
    model = learn_model(log, 2, np.arange(16), exposures=3)
    q = value_iteration(model, 0.95)[0]
    weight = np.bincount(log.state, minlength=48)
    return model, q, weight


def test_useless_coupons_are_not_given_although_hidden_good_customers_got_them():
    """Simulated truth: coupons cost 0.5 and do nothing. Medians over worlds, since one in six
    useless coupons looks a standard error better than it is."""
    share, claim = [], []
    for seed in range(8):
        model, q, weight = shop_plan(shop(lambda *_: (0.0, 1.0), seed, cost=0.5))
        best = np.where(model.allowed, q, -np.inf)
        share.append(np.average(best.argmax(axis=1) == 0, weights=weight))
        claim.append(np.average(best.max(axis=1) - q[:, 0], weights=weight))
    assert np.median(share) >= 0.95
    assert np.median(claim) <= 0.02
    assert np.mean(claim) <= 0.2  # the mean reward of a week is 6


@pytest.mark.parametrize("seed", range(3))
def test_coupons_that_bring_customers_back_are_found(seed):
    """Simulated truth: an offer adds .25 to the chance of buying of who stayed away 2 weeks or
    more. By hidden type it gains .25 · (spend + γ (V(just bought) − V(a week more away)))."""
    log = shop(lambda offered, recency, _: (0.25 * (offered & (recency >= 2)), 1.0), seed)
    model, q, weight = shop_plan(log)
    best = np.where(model.allowed, q, -np.inf).argmax(axis=1)
    now, later = model.reward, model.future_effect
    gain = now[:, 1] - now[:, 0] + later[:, 1] - later[:, 0]
    away = (np.arange(48) // 12 >= 2) & model.allowed[:, 1] & (np.arange(48) % 3 == 0)
    assert np.average(best[away] == 1, weights=weight[away]) >= 0.8
    assert np.average(later[away, 1] - later[away, 0], weights=weight[away]) > 0
    good = np.random.default_rng(seed).random(1500) < 0.4  # as the shop drew them
    offered = away[log.state] & (log.coupon == 1)
    truth = true_gain()[good[log.customer[offered]].astype(int)].mean()
    assert 0.5 <= np.average(gain[away], weights=model.visits[away, 1]) / truth <= 1.25


def true_gain(chance=(0.12, 0.55), spend=(12, 30), gamma=0.95):
    """Long-run gain of one offer to a customer away for 3 weeks, by type, dense solves."""
    gains = []
    for base, amount in zip(chance, spend, strict=True):
        buys = base * np.array([1.2, 1.0, 0.8, 0.6])
        kernel = np.zeros((4, 4))
        kernel[:, 0] = buys
        kernel[range(4), [1, 2, 3, 3]] += 1 - buys
        value = np.linalg.solve(np.eye(4) - gamma * kernel, buys * amount)
        gains.append(0.25 * (amount + gamma * (value[0] - value[3])))
    return np.array(gains)


@pytest.mark.parametrize("seed", range(3))
def test_offers_are_not_repeated_where_repeating_does_harm(seed):
    """Simulated truth: the first offer adds .25 to the chance of buying; a second one within four
    weeks adds nothing and halves purchases."""

    def effect(offered, recency, exposure):
        return 0.25 * (offered & (exposure == 0)), np.where(exposure == 2, 0.5, 1.0)

    model, q, weight = shop_plan(shop(effect, seed, cost=1.0))
    best, exposure = np.where(model.allowed, q, -np.inf).argmax(axis=1), np.arange(48) % 3
    given = [np.average(best[exposure == k] == 1, weights=weight[exposure == k]) for k in range(3)]
    assert given[0] >= 0.7
    assert given[1] <= 0.05
    assert given[2] <= 0.05


def test_customer_free_value_equals_the_dense_solution_when_customers_are_alike():
    """Oracle: (I − γP)⁻¹ r on the shares that were drawn; nobody's level differs from 0."""
    rng = np.random.default_rng(0)
    situation, customer = rng.integers(0, 4, 80_000), rng.integers(0, 500, 80_000)
    following = (situation + rng.integers(0, 2, 80_000)) % 4
    reward = situation + rng.normal(0, 0.1, 80_000)
    grid = Grid(np.zeros(4, dtype=int), 1, 1)
    value = customer_free_value(grid, situation, following, customer, reward, 0.9, 1e-9)
    kernel = 0.5 * (np.eye(4) + np.roll(np.eye(4), 1, axis=1))
    exact = np.linalg.solve(np.eye(4) - 0.9 * kernel, np.arange(4.0))
    assert value == pytest.approx(exact, abs=0.15)


def test_between_variance_equals_dersimonian_and_lairds_formula():
    """Computed term by term: Q = Σw(y − ȳ)², τ² = (Q − (k − 1)) / (Σw − Σw²/Σw)."""
    effect, precision = np.array([0.1, 0.5, 0.9, 0.3]), np.array([10.0, 20.0, 5.0, 40.0])
    mean = sum(precision * effect) / sum(precision)
    q = sum(precision * (effect - mean) ** 2)
    scale = sum(precision) - sum(precision**2) / sum(precision)
    expected = max(0.0, (q - 3) / scale)
    assert between_variance(effect[:, None], precision[:, None]) == pytest.approx(expected)
    apart = between_variance(np.array([[0.0], [4.0]]), np.array([[1.0], [1.0]]))
    assert apart == pytest.approx((8 - 1) / (2 - 1))


def test_coupons_without_effect_get_none_although_better_customers_got_them():
    """Simulated truth: no effect. State 1 spends 10 more and gets most of the coupons, so the
    raw means differ by about 6; compared within states the difference is noise."""
    rng = np.random.default_rng(1)
    state = rng.integers(0, 2, 20_000)
    coupon = (rng.random(20_000) < np.where(state == 1, 0.7, 0.1)).astype(int)
    reward = 10.0 * state + rng.normal(0, 3, 20_000)
    assert reward[coupon == 1].mean() - reward[coupon == 0].mean() > 5
    model = learn_model(logged(state, coupon, reward, state), 2, [0, 0])
    assert model.reward[:, 1] - model.reward[:, 0] == pytest.approx([0, 0], abs=0.2)
    assert (model.reward_lower[:, 1] < model.reward_lower[:, 0] + 0.1).all()


def test_rewards_are_recovered_and_better_with_more_decisions():
    """Simulated truth: reward = state + 2·coupon; the bound closes in on it from below."""
    gaps = []
    for n in (1000, 100_000):
        rng = np.random.default_rng(2)
        state, coupon = rng.integers(0, 5, n), rng.integers(0, 2, n)
        reward = state + 2.0 * coupon + rng.normal(0, 3, n)
        model = learn_model(logged(state, coupon, reward, state), 2, np.zeros(5, dtype=int))
        truth = np.arange(5)[:, None] + [0.0, 2.0]
        gaps.append(np.abs(model.reward - truth).max())
        assert (model.reward_lower[:, 1] < model.reward[:, 1]).all()
        assert (model.reward_lower[:, 0] == model.reward[:, 0]).all()
    assert gaps[0] < 1.5
    assert gaps[1] < 0.15


def test_rewards_of_unseen_pairs_come_from_the_parent():
    """By hand: parent 0 was measured at state 0 only: with none 4, with the coupon 7."""
    log = log_of([(0, 0, 4, 0), (0, 1, 7, 0)] * 10_000 + [(2, 0, 100, 2)] * 10_000)
    model = learn_model(log, 2, [0, 0, 1])
    assert model.reward[1] == pytest.approx([4, 7], abs=0.3)
    assert model.support.tolist() == [[10_000, 10_000], [10_000, 10_000], [10_000, 0]]
    assert model.allowed.tolist() == [[True, True], [True, True], [True, False]]


def test_empty_log_plans_none_everywhere():
    log = log_of([])
    plan = dyna_q(learn_model(log, 4, [0, 0, 1]), log)
    assert (plan.q == 0).all()
    assert plan.greedy.tolist() == [0, 0, 0]
    assert plan.allowed.sum() == 3
    assert dyna_q(learn_model(log, 4, []), log).q.shape == (0, 4)


@pytest.mark.parametrize("coupon", [0, 1])
def test_cold_start_with_one_action_only(coupon):
    rng = np.random.default_rng(0)
    state = rng.integers(0, 3, 500)
    log = logged(state, np.full(500, coupon), rng.normal(5, 1, 500), rng.integers(0, 3, 500))
    plan = dyna_q(learn_model(log, 2, [0, 0, 0]), log)
    assert plan.greedy.tolist() == [0, 0, 0]
    assert plan.allowed[:, 1].tolist() == [coupon == 1] * 3
    assert plan.q[:, 0] == pytest.approx([100] * 3, rel=0.1)  # 5 / (1 − γ)


def test_states_seen_only_as_next_state_are_valued_by_their_parent():
    log = log_of([(0, 0, 2, 1)] * 1000)
    plan = dyna_q(learn_model(log, 1, [0, 0]), log)
    assert plan.visits.tolist() == [[1000], [0]]
    assert plan.q == pytest.approx(np.full((2, 1), 40.0), rel=0.02)  # 2 / (1 − γ)


def test_unknown_next_states_teach_rewards_but_no_transitions():
    log = log_of([(0, 0, 2, 1)] * 100 + [(0, 0, 4, UNKNOWN_STATE)] * 100)
    model = learn_model(log, 1, [0, 1], **TRUST_THE_LOG)
    assert model.reward[0, 0] == pytest.approx(3)
    assert model.transition()[0] == pytest.approx([0, 1])
    assert dyna_q(model, log).td_updates == 100


def test_memory_grows_with_the_log_not_with_the_square_of_states():
    log = random_log(60_000, 200_000, 4)
    model = learn_model(log, 4, np.arange(200_000) % 40)
    assert model.situation_kernel.nnz + model.parent_kernel.nnz <= 2 * len(log)


def test_next_states_are_linked_like_a_dictionary_would():
    rng = np.random.default_rng(0)
    cells = rng.permutation(200)[:120]
    customer, period, state = cells // 10, cells % 10, rng.integers(0, 9, 120)
    at = {(c, p): s for c, p, s in zip(customer, period, state, strict=True)}
    expected = [at.get((c, p + 1), UNKNOWN_STATE) for c, p in zip(customer, period, strict=True)]
    assert link_next_states(customer, period, state).tolist() == expected


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
        learn_model(log_of(rows), 3, [0, 0])
    assert message in str(caught.value)


def test_bad_arguments_are_refused():
    log = log_of([(0, 0, 1, 0)])
    with pytest.raises(DataError, match="parent_of_situation: expected numbers of 0 or more"):
        learn_model(log, 1, [-1])
    with pytest.raises(SettingsError, match="below 1"):
        dyna_q(learn_model(log, 1, [0]), log, gamma=1.0)
