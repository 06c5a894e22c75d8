"""Benchmarks of the planner: Dyna-Q on a log of decisions, and sweeps to the exact fixed point."""

from collections.abc import Callable
from typing import Any

import numpy as np

from winback.operators.bench_measure import Answer, BenchError, Done, Place, Step

FACES = np.array([0.0, 4.0, 8.0, 14.0])
CONTACT = np.array([0.0, 0.05, 0.05, 0.05])
CLASSES = 19  # as many as a fit joins at most
PERIODS = 25  # decisions per customer: half a year of weeks
GAMMA, RESIDUAL = 0.95, 1e-6


def planning_problem(decisions: int, seed: int = 0) -> tuple[Any, Any]:
    """A model learned from a log of so many decisions, and the log's transitions."""
    from winback.models.mdp import learn_model, transitions_of

    response, panel = _response(seed), _panel(max(decisions // PERIODS, 1), seed)
    kind = np.random.default_rng(seed).integers(0, CLASSES, panel.customers)
    return learn_model(response, panel, CONTACT), transitions_of(panel, kind, CONTACT)


def _response(seed: int) -> Any:
    """Classes drawn at random."""
    from winback.models.response import BASE_TERMS, EFFECT, SHARED_EFFECTS, ResponseModel
    from winback.models.situations import COUPONS, SITUATIONS

    random = np.random.default_rng(seed)
    terms = BASE_TERMS + SHARED_EFFECTS + len(FACES) - 1
    falling = -0.2 * random.random((CLASSES, terms - 1))
    coefficients = np.column_stack([random.normal(-1, 0.5, CLASSES), falling])
    coefficients[:, EFFECT] = random.uniform(0.5, 1.5, CLASSES)
    redeems = np.column_stack([np.zeros(CLASSES), random.uniform(0.3, 0.9, (CLASSES, 3))])
    return ResponseModel(
        share=np.full(CLASSES, 1 / CLASSES),
        coefficients=coefficients,
        doubt=np.zeros((CLASSES, SITUATIONS, len(FACES))),
        hazard=random.uniform(0.0, 0.05, (CLASSES, 2 * COUPONS)),
        margin=random.uniform(5, 30, CLASSES),
        redeemed=redeems * FACES,
        log_margin=np.full(CLASSES, 2.5),
        log_margin_spread=np.full(CLASSES, 0.4),
        redeems=redeems,
        offers=np.full((CLASSES, SITUATIONS), 0.3),
        smallest_margin=np.array(0.1),
        level=np.array([0.0, 1.0]),
        cost_level=np.array(1.0),
        face_values=FACES,
    )


def _panel(n: int, seed: int) -> Any:
    """n customers who buy at rates of their own and get a coupon in three weeks of ten."""
    from winback.models.situations import Panel, situations

    random = np.random.default_rng(seed)
    shape = (n, PERIODS + 1)
    bought = random.random(shape) < random.beta(1, 5, (n, 1))
    coupon = np.where(random.random(shape) < 0.3, random.integers(1, len(FACES), shape), 0)
    week = np.broadcast_to(np.arange(PERIODS + 1), shape)
    last = np.maximum.accumulate(np.where(bought, week, 0), axis=1)
    recency = week - np.column_stack([np.zeros(n, np.int64), last[:, :-1]])
    first = np.arange(n + 1) * (PERIODS + 1)
    situation = situations(first, recency.ravel(), _before(bought), _before(coupon > 0))
    return Panel(
        first=first,
        period=week.ravel().copy(),
        situation=situation,
        coupon=coupon.ravel(),
        purchased=bought.ravel(),
        margin=np.where(bought, random.lognormal(2.5, 0.4, shape), 0.0).ravel(),
        cost=np.where(bought, 0.5 * FACES[coupon], 0.0).ravel(),
        propensity=np.full(n * (PERIODS + 1), np.nan),
        own=np.zeros(n * (PERIODS + 1), np.bool_),
        closed=(week < PERIODS).ravel(),
    )


def _before(events: Any) -> Any:
    """How many events of a row's customer came before it, flattened."""
    return (np.cumsum(events, axis=1) - events).ravel()


def _dyna_q(size: int, place: Place) -> Callable[[], Done]:
    """The daily run's planner as it is called: the pass over the log, then the sweeps."""
    from winback.models.planner import dyna_q

    dyna_q(*planning_problem(PERIODS * 4))  # numba compiles once per process
    model, log = planning_problem(size)

    def run() -> Done:
        result = dyna_q(model, log, gamma=GAMMA, tolerance=RESIDUAL)
        updates = result.td_updates + result.planning_updates + model.reward.size * result.sweeps
        counts = {
            "real": result.td_updates,
            "planned": result.planning_updates,
            "sweeps": result.sweeps,
        }
        return Done({"residual": result.residual}, work=updates, notes=counts)

    return run


def _sweeps(size: int, place: Place) -> Callable[[], Done]:
    from winback.models.mdp import value_iteration

    model, _ = planning_problem(size)

    def run() -> Done:
        _, residual, sweeps = value_iteration(model, GAMMA, RESIDUAL)
        notes = {"sweeps": sweeps, "pairs": model.reward.size, "outcomes": model.kernel.nnz}
        moved = float(sweeps * bytes_per_sweep(model))
        return Done({"residual": residual}, model.reward.size * sweeps, moved=moved, notes=notes)

    return run


def bytes_per_sweep(model: Any) -> int:
    """What a sweep must read and write at least: the kernel, V, the rewards, Q before and after."""
    kernel = model.kernel
    outcomes = kernel.data.nbytes + kernel.indices.nbytes + kernel.indptr.nbytes
    tables = 3 * model.reward.nbytes + model.allowed.nbytes + 2 * 8 * kernel.shape[1]
    return int(outcomes + tables)


def _reference(size: int, place: Place) -> Callable[[], Done]:
    """The reference system's loop on the same states, coupons and rewards, as long as it plays.

    What it plays for is P(alive) × forecast, and lifetimes gives P(alive) of one customer as an
    array of one: so its rewards are arrays, and every value that one has updated becomes an array.
    """
    from winback.models.peers_reference import PLANNING, REMEMBERED, ROUNDS, TRAFFIC
    from winback.models.situations import COUPONS, PURCHASES, RECENCIES
    from winback.operators.bench_reference import reference_learning

    model, log = planning_problem(size)
    parts = np.unravel_index(log.state, (CLASSES, RECENCIES, PURCHASES, COUPONS))
    states = list(zip(*(part.tolist() for part in parts), strict=True))
    visits = list(zip(states, log.coupon.tolist(), log.reward, strict=True))
    memory = visits[:REMEMBERED]
    rows = np.random.default_rng(0).integers(0, len(log), ROUNDS * TRAFFIC).tolist()
    reward = model.reward[:, :, None]
    today = [(states[row], reward[log.state[row]].__getitem__) for row in rows]

    def run() -> Done:
        reference_learning(today, list(memory), len(FACES), PLANNING)
        return Done({}, work=len(today) * (1 + PLANNING))

    return run


def _at_fixed_point(ours: Answer, theirs: Answer) -> str:
    """The peer learns other values (its next state is the present one): only rates compare."""
    if not ours["residual"] <= RESIDUAL:
        raise BenchError(f"expected a residual of at most {RESIDUAL:g}, came {ours['residual']:g}")
    return f"residual {ours['residual']:.1g}"


PLANNER_STEPS = (
    Step(
        name="planner",
        title="Dyna-Q over a log, to its fixed point",
        unit="updates",
        sizes=(10_000, 100_000, 1_000_000),
        quick=(2_000, 10_000),
        sides={"winback": _dyna_q, "reference's loop": _reference},
        agree=_at_fixed_point,
        is_rate=True,
    ),
    Step(
        name="fixed-point",
        title="exact fixed point of the learned model",
        unit="updates",
        sizes=(10_000, 100_000, 1_000_000),
        quick=(2_000, 10_000),
        sides={"winback": _sweeps, "reference's loop": _reference},
        agree=_at_fixed_point,
        limit="triad",
        is_rate=True,
    ),
)
