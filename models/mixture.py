"""Means over hidden classes, compiled: what many customers may expect, from tables by class."""

import numpy as np
from numba import njit

from winback.models.situations import Floats, Ints


def over_classes(table: Floats, belief: Floats, situation: Ints) -> Floats:
    """(n, C) Σ_k belief[n, k] · table[k, situation[n]].

    Args:
        table: (K, SITUATIONS, C) of each class; whatever a class would cause there.
        belief: (n, K) chance of each class.
        situation: (n,).
    """
    total = np.zeros((len(situation), table.shape[2]))
    by_situation = np.ascontiguousarray(table.transpose(1, 0, 2))  # what a row needs lies together
    _add_up(by_situation, np.ascontiguousarray(belief), np.asarray(situation), total)
    return total


@njit(cache=False, nogil=True)
def _add_up(table, belief, situation, total):  # type: ignore[no-untyped-def]
    for row in range(situation.size):
        for k in range(belief.shape[1]):
            weight = belief[row, k]
            for column in range(table.shape[2]):
                total[row, column] += weight * table[situation[row], k, column]
