"""Compiled loops of the allocation: customers row by row, one pass over the tables each.

Tables are (n, A), C-contiguous; ``eligible`` says which coupons a customer may get.
"""

import numpy as np
from numba import njit


@njit(cache=False)
def exact_sum(values):  # type: ignore[no-untyped-def]
    """Σ values, (n,), in twice the precision (Neumaier 1974): n could be 10¹⁵ before it rounds."""
    high, low = 0.0, 0.0
    for value in values:
        high, low = _add(high, low, value)
    return high + low


@njit(cache=False)
def total_of(table, coupon):  # type: ignore[no-untyped-def]
    """Σ_i table[i, coupon_i] as :func:`exact_sum` adds it up."""
    high, low = 0.0, 0.0
    for i in range(len(coupon)):
        high, low = _add(high, low, table[i, coupon[i]])
    return high + low


@njit(cache=False)
def _add(high, low, value):  # type: ignore[no-untyped-def]
    total = high + value
    low += (high - total) + value if abs(high) >= abs(value) else (value - total) + high
    return total, low


@njit(cache=False)
def copy_eligible(value, cost, eligible, values, costs):  # type: ignore[no-untyped-def]
    """Copy both tables with 0 where not eligible; rows without a coupon, and with wrong numbers.

    Returns:
        Counts of customers with no eligible coupon, a value that is not finite, and a cost that is
        not finite or negative.
    """
    none, odd_value, odd_cost = 0, 0, 0
    for i in range(value.shape[0]):
        has_any, fine_value, fine_cost = False, True, True
        for a in range(value.shape[1]):
            if eligible[i, a]:
                has_any = True
                values[i, a], costs[i, a] = value[i, a], cost[i, a]
                fine_value &= np.isfinite(value[i, a])
                fine_cost &= np.isfinite(cost[i, a]) and cost[i, a] >= 0
            else:
                values[i, a], costs[i, a] = 0.0, 0.0
        none += not has_any
        odd_value += not fine_value
        odd_cost += not fine_cost
    return none, odd_value, odd_cost


@njit(cache=False)
def most_net(value, cost, eligible, price, coupon):  # type: ignore[no-untyped-def]
    """Fill coupon (n,): highest value − price · cost; ties: lowest cost, then index."""
    for i in range(len(coupon)):
        best, least = -np.inf, np.inf
        for a in range(value.shape[1]):
            net = value[i, a] - price * cost[i, a]
            if eligible[i, a] and (net > best or (net == best and cost[i, a] < least)):
                coupon[i], best, least = a, net, cost[i, a]


@njit(cache=False)
def least_cost(value, cost, eligible, coupon):  # type: ignore[no-untyped-def]
    """Fill coupon (n,): the best of each customer's cheapest coupons."""
    for i in range(len(coupon)):
        least, best = np.inf, -np.inf
        for a in range(value.shape[1]):
            if eligible[i, a] and (
                cost[i, a] < least or (cost[i, a] == least and value[i, a] > best)
            ):
                coupon[i], least, best = a, cost[i, a], value[i, a]


@njit(cache=False)
def _best_upgrade(value, cost, eligible, i, own, room):  # type: ignore[no-untyped-def]
    """Of customer i with coupon ``own``: target, rate (0: none) and extra cost, at most room."""
    target, rate, extra = 0, 0.0, 0.0
    for a in range(value.shape[1]):
        more, gain = cost[i, a] - cost[i, own], value[i, a] - value[i, own]
        if eligible[i, a] and 0 < more <= room and gain > 0:
            worth = gain / more
            if worth > rate or (worth == rate and more < extra):
                target, rate, extra = a, worth, more
    return target, rate, extra


@njit(cache=False)
def upgrades_within(value, cost, eligible, coupon, rows, room):  # type: ignore[no-untyped-def]
    """The best upgrade of each of ``rows`` that costs at most room more.

    Returns:
        (m,) each, m ≤ len(rows): row, target, rate and extra cost of those who have one.
    """
    row, target = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    rate, extra = np.empty(len(rows)), np.empty(len(rows))
    count = 0
    for i in rows:
        to, worth, more = _best_upgrade(value, cost, eligible, i, coupon[i], room)
        if worth > 0:
            row[count], target[count], rate[count], extra[count] = i, to, worth, more
            count += 1
    return row[:count], target[:count], rate[:count], extra[:count]


@njit(cache=False)
def hulls(value, cost, eligible, cheapest):  # type: ignore[no-untyped-def]
    """All upgrades of these customers along their upper hulls, customer by customer.

    Returns:
        (m,) each, m ≤ n (A − 1): customer, target, rate and extra cost.
    """
    most = value.shape[0] * (value.shape[1] - 1)
    customer, target = np.empty(most, np.int64), np.empty(most, np.int64)
    rate, extra = np.empty(most), np.empty(most)
    count = 0
    for i in range(value.shape[0]):
        own, falling = cheapest[i], np.inf
        for _ in range(value.shape[1] - 1):
            to, worth, more = _best_upgrade(value, cost, eligible, i, own, np.inf)
            if worth <= 0:
                break
            falling = min(falling, worth)  # rounding must not put a second upgrade first
            customer[count], target[count], rate[count], extra[count] = i, to, falling, more
            own = to
            count += 1
    return customer[:count], target[:count], rate[:count], extra[:count]
