"""Forward and backward passes against enumerating every class and every time of leaving."""

from itertools import pairwise

import numpy as np
import pytest

from winback.models.response_filter import expect, forward

CLASSES, CELLS, LEAVES = 3, 4, 2


def short_histories(seed):
    """Customers of 0 to 5 windows, some of whom buy never again; random parameters."""
    random = np.random.default_rng(seed)
    lengths = [3, 0, 5, 1, *random.integers(0, 6, 8), 0]
    first = np.append(0, np.cumsum(lengths))
    rows = int(first[-1])
    columns = {
        "cell": random.integers(0, CELLS, rows),
        "leaves": random.integers(0, LEAVES, rows),
        "purchased": random.random(rows) < 0.35,
    }
    parameters = {
        "chance": random.uniform(0.1, 0.9, (CLASSES, CELLS)),
        "hazard": random.uniform(0.05, 0.5, (CLASSES, LEAVES)),
        "share": random.dirichlet(np.full(CLASSES, 3.0)),
    }
    return random, first, columns, parameters


def ways(rows, k, columns, parameters):
    """Probability of the windows ``rows`` in class k, by how many windows the customer was there
    for: (len(rows) + 2,); the last one is who stays on."""
    probability = np.zeros(len(rows) + 2)
    for there in range(1, len(rows) + 2):  # leaves after window `there`, or later than the last
        p = 1.0
        for t, row in enumerate(rows):
            chance = parameters["chance"][k, columns["cell"][row]]
            leave = parameters["hazard"][k, columns["leaves"][row]]
            if t < there:
                p *= chance if columns["purchased"][row] else 1 - chance
                p *= leave if t == there - 1 else 1 - leave
            else:
                p *= 0.0 if columns["purchased"][row] else 1.0
        probability[there] = p
    return probability


@pytest.mark.parametrize("seed", range(5))
def test_expected_counts_equal_enumeration(seed):
    random, first, columns, parameters = short_histories(seed)
    rows = int(first[-1])
    amount = random.normal(0, 0.5, (len(first) - 1, CLASSES))
    weighing = random.uniform(0.2, 3.0, rows)
    posterior = np.zeros((len(first) - 1, CLASSES))
    counts = [np.zeros((CLASSES, size)) for size in (CELLS, CELLS, LEAVES, LEAVES)]
    found = expect(
        first, columns["cell"], columns["leaves"], columns["purchased"], amount,
        parameters["chance"], parameters["hazard"], parameters["share"], weighing,
        posterior, *counts,
    )  # fmt: skip

    likelihood, classes = 0.0, np.zeros_like(posterior)
    tries, buys, stays, exits = (np.zeros_like(table) for table in counts)
    for customer, (begin, end) in enumerate(pairwise(first)):
        own = range(begin, end)
        joint = np.array([ways(own, k, columns, parameters) for k in range(CLASSES)])
        joint *= (parameters["share"] * np.exp(amount[customer]))[:, None]
        likelihood += np.log(joint.sum())
        joint /= joint.sum()
        classes[customer] = joint.sum(axis=1)
        for k in range(CLASSES):
            for t, row in enumerate(own):
                there = joint[k, t + 1 :].sum()
                cell, leaves = columns["cell"][row], columns["leaves"][row]
                tries[k, cell] += there * weighing[row]
                buys[k, cell] += there * weighing[row] * columns["purchased"][row]
                stays[k, leaves] += there
                exits[k, leaves] += joint[k, t + 1]
    assert found == pytest.approx(likelihood, abs=1e-10)
    assert posterior == pytest.approx(classes, abs=1e-10)
    for ours, theirs in zip(counts, (tries, buys, stays, exits), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_belief_equals_enumeration_of_what_came_before(seed):
    random, first, columns, parameters = short_histories(seed)
    rows = int(first[-1])
    evidence, offer = random.normal(0, 0.5, (2, rows, CLASSES))
    closed = np.ones(rows, bool)
    closed[first[1:][np.diff(first) > 0] - 1] = False  # the decision at hand
    belief = np.full((rows, CLASSES), np.nan)
    forward(
        first, columns["cell"], columns["leaves"], columns["purchased"], closed, evidence, offer,
        parameters["chance"], parameters["hazard"], parameters["share"], belief,
    )  # fmt: skip
    for begin, end in pairwise(first):
        for row in range(begin, end):
            past = range(begin, row)
            said = offer[past].sum(axis=0)
            said += (evidence[past] * columns["purchased"][past, None]).sum(axis=0)
            joint = np.array([ways(past, k, columns, parameters) for k in range(CLASSES)])
            joint *= (parameters["share"] * np.exp(said))[:, None]
            assert belief[row] == pytest.approx(joint[:, -1] / joint.sum(), abs=1e-10)


def test_long_silence_means_that_the_customer_has_left():
    """Closed form: there after n silent windows (q stays)ⁿ against leaving in one of them."""
    rows, q, stays = 400, 0.5, 0.95
    belief = np.zeros((rows, 1))
    nothing = np.zeros(rows, int)
    forward(
        np.array([0, rows]), nothing, nothing, nothing.astype(bool), np.ones(rows, bool),
        np.zeros((rows, 1)), np.zeros((rows, 1)),
        np.array([[1 - q]]), np.array([[1 - stays]]), np.array([1.0]), belief,
    )  # fmt: skip
    before = np.arange(rows)
    there = (q * stays) ** before
    gone = q * (1 - stays) * (1 - there) / (1 - q * stays)
    assert belief[:, 0] == pytest.approx(there / (there + gone), abs=1e-10)
    assert np.isfinite(belief).all()
