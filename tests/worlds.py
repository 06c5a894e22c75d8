"""Histories of a known world or of customers who live as a response model says, and exact plans."""

import numpy as np

from winback.models.response import ResponseModel, leaving_cell
from winback.models.situations import (
    COUPON_EDGES,
    COUPON_PERIODS,
    PURCHASE_EDGES,
    PURCHASE_PERIODS,
    RECENCY_EDGES,
    Panel,
    number,
    situations,
)


def panel_of(history, own_from=None):
    """Everybody's weeks in a world (world_log.History), and the decision after the last one.

    ``own_from``: the week from which winback decided.
    """
    n, weeks = len(history.first_week), history.weeks
    at = (history.customer, history.week)

    def grid(column, fill):
        table = np.full((n, weeks + 1), fill)
        table[at] = column
        return table

    return panel_of_grid(
        grid(history.purchased, False),
        grid(history.coupon, 0),
        grid(history.margin, 0.0),
        grid(history.cost, 0.0),
        grid(history.propensity, np.nan),
        history.first_week,
        own_from,
    )


def panel_of_grid(purchased, coupon, margin, cost, propensity, first_period, own_from=None):
    """A panel of (n, periods) tables; customers first buy in `first_period` (n,), and decisions
    follow from the next one on. The last period is the decision at hand."""
    n, periods = coupon.shape
    everybody, period = np.arange(n), np.arange(periods)
    bought = purchased.copy()
    bought[everybody, first_period] = True
    seen = np.maximum.accumulate(np.where(bought, period, -1), axis=1)
    recency = period - np.column_stack([np.full(n, -1), seen[:, :-1]]) - 1
    days = np.cumsum(bought, axis=1) - bought
    received = np.cumsum(coupon > 0, axis=1) - (coupon > 0)
    rows = period > first_period[:, None]
    first = np.append(0, np.cumsum(rows.sum(axis=1)))
    columns = (coupon, purchased, margin, cost, propensity)
    return Panel(
        first,
        np.broadcast_to(period, rows.shape)[rows],
        situations(first, recency[rows], days[rows], received[rows]),
        *(column[rows] for column in columns),
        np.broadcast_to(period >= (periods if own_from is None else own_from), rows.shape)[rows],
        np.broadcast_to(period < periods - 1, rows.shape)[rows],
    )


def live_by(model: ResponseModel, n, weeks, offer, seed):
    """n customers live as the model says for `weeks` windows: their panel and (n,) classes.

    A class is offered a coupon with chance ``offer`` (K,), each coupon alike.
    """
    random = np.random.default_rng(seed)
    kind = random.choice(model.classes, size=n, p=model.share)
    here, recency, people = np.ones(n, bool), np.zeros(n, int), np.arange(n)
    bought, coupon = np.zeros((n, weeks + 2), bool), np.zeros((n, weeks + 2), int)
    margin, cost = np.zeros((2, n, weeks + 2))
    propensity = np.full((n, weeks + 2), np.nan)
    bought[:, 0] = True
    for week in range(1, weeks + 1):
        place = number(
            np.searchsorted(RECENCY_EDGES, recency, side="right"),
            _bin(PURCHASE_EDGES, bought[:, max(0, week - PURCHASE_PERIODS) : week]),
            _bin(COUPON_EDGES, coupon[:, max(0, week - COUPON_PERIODS) : week] > 0),
        )
        offered = random.random(n) < np.asarray(offer)[kind]
        given = np.where(offered, random.integers(1, max(model.coupons, 2), n), 0)
        share = np.asarray(offer)[kind]
        propensity[:, week] = np.where(offered, share / max(model.coupons - 1, 1), 1 - share)
        buys = here & (random.random(n) < model.purchase[kind, place, given])
        amount = random.lognormal(model.log_margin[kind], model.log_margin_spread[kind])
        redeems = buys & (random.random(n) < model.redeems[kind, given])
        here &= random.random(n) >= model.hazard[kind, leaving_cell(place, given)]
        coupon[:, week], bought[:, week] = given, buys
        margin[:, week] = np.where(buys, amount, 0.0)
        cost[:, week] = np.where(redeems, model.face_values[given], 0.0)
        recency = np.where(buys, 0, recency + 1)
    first_period = np.zeros_like(people)
    bought[:, 0] = False  # the first purchase comes before the decisions
    return panel_of_grid(bought, coupon, margin, cost, propensity, first_period), kind


def policy_iteration(model, gamma, price=0.0):
    """Exact Q by dense linear solves: an oracle that shares no iteration with the product."""
    states, coupons = model.shape
    kernel = model.kernel.toarray().reshape(states, coupons, states)
    rows, policy = np.arange(states), np.zeros(states, dtype=int)
    gain = model.reward - price * model.cost
    while True:
        value = np.linalg.solve(np.eye(states) - gamma * kernel[rows, policy], gain[rows, policy])
        q = gain + gamma * kernel @ value
        better = np.where(model.allowed, q, -np.inf).argmax(axis=1)
        if (better == policy).all():
            return q
        policy = better


def _bin(edges, events):
    return np.searchsorted(edges, events.sum(axis=1), side="right")
