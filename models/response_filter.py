"""Forward and backward passes over customers' histories, compiled.

A customer belongs to one of K classes for good and is there until they leave, which no one sees.
Given class k and being there, the window's outcome has a likelihood that only class, situation and
coupon decide; after it they leave with the class's hazard. Who is gone buys nothing. Leaving is
final, so the forward pass needs two numbers per class (there, gone) and no matrix.

Source: the forward-backward recursions of a hidden Markov model (Rabiner 1989) with an absorbing
state, mixed over static classes.
"""

import numpy as np
from numba import njit

SMALL = 1e-300  # keeps the logarithm of an impossible history finite


@njit(cache=False, nogil=True)
def forward(first, cell, leaves, purchased, closed, evidence, offer, chance, hazard, share, belief):  # type: ignore[no-untyped-def]  # fmt: skip
    """Fill ``belief`` (m, K): P(class k and still there | everything before the row).

    first (n + 1,), cell (m,) index into chance (K, cells), leaves (m,) index into hazard (K, ·),
    evidence (m, K) log-likelihood of a purchase's amount and redemption, offer (m, K) that of the
    offer itself, share (K,).
    """
    classes = share.size
    here, gone, weight = np.empty(classes), np.empty(classes), np.empty(classes)
    for customer in range(first.size - 1):
        for k in range(classes):
            here[k], gone[k], weight[k] = 1.0, 0.0, np.log(share[k])
        for row in range(first[customer], first[customer + 1]):
            top = weight.max()
            total = 0.0
            for k in range(classes):
                total += np.exp(weight[k] - top)
            for k in range(classes):
                belief[row, k] = np.exp(weight[k] - top) / total * here[k]
            if not closed[row]:
                continue
            for k in range(classes):
                weight[k] += _advance(
                    here, gone, k, chance[k, cell[row]], hazard[k, leaves[row]], purchased[row]
                )
                weight[k] += offer[row, k]
                if purchased[row]:
                    weight[k] += evidence[row, k]


@njit(cache=False)
def _advance(here, gone, k, chance, hazard, bought):  # type: ignore[no-untyped-def]
    """Move one class a window on, in place; the log-likelihood of the window's outcome."""
    seen = chance if bought else 1.0 - chance
    stays = here[k] * seen * (1.0 - hazard)
    left = here[k] * seen * hazard
    if not bought:
        left += gone[k]
    total = max(stays + left, SMALL)
    here[k], gone[k] = stays / total, left / total
    return np.log(total)


@njit(cache=False, nogil=True)
def expect(  # type: ignore[no-untyped-def]
    first, cell, leaves, purchased, amount, chance, hazard, share, weighing,
    posterior, tries, buys, stays, exits,
):  # fmt: skip
    """The E-step: fills posterior (n, K), adds expected counts, returns the log-likelihood.

    amount (n, K) log-likelihood of all that is not purchases; weighing (m,) weight of each row in
    the counts; tries and buys (K, cells): windows there, and with a purchase; stays and exits
    (K, ·): windows there, and left at the end, by ``leaves``.
    """
    classes, longest = share.size, 0
    for customer in range(first.size - 1):
        longest = max(longest, first[customer + 1] - first[customer])
    alive = np.empty((longest + 1, classes))
    scale = np.empty((longest + 1, classes))
    here, gone, weight = np.empty(classes), np.empty(classes), np.empty(classes)
    likelihood = 0.0
    for customer in range(first.size - 1):
        begin = first[customer]
        length = first[customer + 1] - begin
        for k in range(classes):
            here[k], gone[k] = 1.0, 0.0
            weight[k] = np.log(share[k]) + amount[customer, k]
            for t in range(length):
                row = begin + t
                alive[t, k] = here[k]
                seen = _advance(
                    here, gone, k, chance[k, cell[row]], hazard[k, leaves[row]], purchased[row]
                )
                scale[t, k] = np.exp(seen)
                weight[k] += seen
        top = weight.max()
        total = 0.0
        for k in range(classes):
            total += np.exp(weight[k] - top)
        likelihood += top + np.log(total)
        for k in range(classes):
            share_of_class = np.exp(weight[k] - top) / total
            posterior[customer, k] = share_of_class
            if share_of_class < 1e-6:
                continue
            after_here, after_gone = 1.0, 1.0  # likelihood of what follows, in units of scale
            for t in range(length - 1, -1, -1):
                row = begin + t
                leave = hazard[k, leaves[row]]
                bought = purchased[row]
                seen = chance[k, cell[row]] if bought else 1.0 - chance[k, cell[row]]
                staying = seen * (1.0 - leave) * after_here / scale[t, k]
                leaving = seen * leave * after_gone / scale[t, k]
                there = share_of_class * alive[t, k] * (staying + leaving)
                tries[k, cell[row]] += there * weighing[row]
                if bought:
                    buys[k, cell[row]] += there * weighing[row]
                stays[k, leaves[row]] += there
                exits[k, leaves[row]] += share_of_class * alive[t, k] * leaving
                after_here = staying + leaving
                after_gone = 0.0 if bought else after_gone / scale[t, k]
    return likelihood
