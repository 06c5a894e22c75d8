"""What a coupon does, judged against what the same customer does without one.

Better customers get more coupons (a confounded log), so comparing customers credits the coupon with
who they are. Here every decision with a coupon is compared with the same customer's own decisions
without one, and without a recent one, in the same parent situation (a stratum), after taking off
what the finer situation and the period do to everybody. What then differs is

* the effect of an *offer* of coupon a, against no offer at the same exposure, and
* the effect of *exposure* k (coupons of the last weeks: fatigue, carry-over), against none.

Both are measured per parent situation and shrunk toward the mean over parents, that toward the mean
over exposures, and that toward zero, each as far as the spread is noise (empirical Bayes; variances
by DerSimonian & Laird 1986, the last one as in James & Stein 1961).

Strata's means are not shrunk toward zero: what shrinking leaves out would count as effect. Strata
with few own decisions weigh less instead, those with less than two not at all. What stays hidden:
offers made when a customer is about to buy more than usual, for reasons that no feature shows, and
a bias of about 1% of such customers' rewards, since own decisions in a situation end with a
purchase (seen in simulations, half a standard error).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MIN_OWN = 2  # decisions; a single one is often there only because no purchase came before
OWN_PRIOR = 5.0  # decisions that "like the average customer" counts for in a customer's level
CLUSTER_PRIOR = 10.0  # decisions that the general design effect counts for in a parent
ROUNDS = 10  # alternations between the means; they settle to far less than an effect's noise
MAX_SWEEPS = 300  # γ = .95 needs about 100
TOLERANCE = 1e-4  # of the spread of values: far below the noise of any effect
TINY = 1e-12  # relative variance of outcomes without noise


@dataclass(frozen=True)
class Grid:
    """How states are numbered: state = situation · exposures + exposure; exposure 0 is none."""

    parent: Ints  # (situations,) number of the coarser situation
    exposures: int
    coupons: int

    @property
    def situations(self) -> int:
        return int(self.parent.size)

    @property
    def parents(self) -> int:
        return int(self.parent.max(initial=-1)) + 1

    @property
    def states(self) -> int:
        return self.situations * self.exposures


@dataclass(frozen=True)
class Outcomes:
    """One outcome of logged decisions, each column (n,); numbers count from 0."""

    customer: Ints
    period: Ints
    state: Ints
    coupon: Ints
    outcome: Floats


@dataclass(frozen=True)
class Effects:
    """Shrunk effects on one outcome and their standard errors; zero for no offer, no exposure."""

    offer: Floats  # (parents, exposures, A)
    offer_error: Floats
    exposure: Floats  # (parents, exposures)
    exposure_error: Floats


@dataclass(frozen=True)
class _Residuals:
    """Decisions other than the customers' reference: outcome beyond the customer's own, (n,)."""

    parent: Ints
    exposure: Ints
    coupon: Ints
    customer: Ints
    beyond: Floats
    weight: Floats  # of one decision: a customer's m decisions against n own count mn / (m + n)

    def where(self, rows: npt.NDArray[np.bool_]) -> "_Residuals":
        return _Residuals(
            self.parent[rows],
            self.exposure[rows],
            self.coupon[rows],
            self.customer[rows],
            self.beyond[rows],
            self.weight[rows],
        )


def measure(grid: Grid, log: Outcomes, prior: float) -> Effects:
    """Effects of the decisions on their outcome.

    ``prior``: decisions that a parent's mean counts for beside a situation's own.
    """
    residuals, variance = _residuals(grid, log, prior)
    shape = (grid.parents, grid.exposures, grid.coupons)
    offer, offer_error, exposure, exposure_error = (np.zeros(shape) for _ in range(4))
    if grid.exposures > 1:
        rows = residuals.where(residuals.coupon == 0)
        found, error = _cells(grid, rows, rows.beyond, variance)
        exposure[:, 1:, 0], exposure_error[:, 1:, 0] = found[:, 1:], error[:, 1:]
    for number in range(1, grid.coupons):
        rows = residuals.where(residuals.coupon == number)
        beyond = rows.beyond - exposure[rows.parent, rows.exposure, 0]
        offer[:, :, number], offer_error[:, :, number] = _cells(grid, rows, beyond, variance)
    return Effects(offer, offer_error, exposure[:, :, 0], exposure_error[:, :, 0])


def customer_free_value(
    grid: Grid, situation: Ints, following: Ints, customer: Ints, reward: Floats,
    gamma: float, prior: float,
) -> Floats:  # fmt: skip
    """What it is worth to one and the same customer to be in a situation, (situations,).

    Solves r + γV(x′) = V(x) + c_i for V and the customers' own levels c_i (mean 0) by turns. With
    one V for all, good situations would be credited with the good customers found in them.
    ``following`` (n,) is negative where nothing follows.
    """
    value = np.full(grid.situations + 1, reward.mean() / (1 - gamma) if reward.size else 0.0)
    value[-1] = 0.0
    if not reward.size:
        return value[:-1]
    level, customers = np.zeros(int(customer.max()) + 1), np.bincount(customer)
    target = np.where(following >= 0, following, grid.situations)
    for _ in range(MAX_SWEEPS):
        outcome = reward + gamma * value[target]
        updated = situation_means(grid, situation, outcome - level[customer], prior)
        level = np.bincount(customer, outcome - updated[situation]) / (customers + OWN_PRIOR)
        level -= level[customer].mean()
        change = float(np.abs(updated - value[:-1]).max())
        value[:-1] = updated
        if change <= TOLERANCE * float(np.ptp(updated)):
            break
    return value[:-1]


def situation_means(
    grid: Grid, situation: Ints, outcome: Floats, prior: float, top: float | None = None
) -> Floats:
    """Mean outcome by situation, (situations,), shrunk to the parent's and that to the overall
    mean, each with ``prior`` pseudo-decisions. ``top``: the mean where nothing was seen."""
    n = np.bincount(situation, minlength=grid.situations).astype(np.float64)
    total = np.bincount(situation, outcome, minlength=grid.situations)
    root = float(total.sum() / n.sum()) if n.sum() else (top or 0.0)
    n_parent = np.bincount(grid.parent, n, minlength=grid.parents)
    above = np.bincount(grid.parent, total, minlength=grid.parents) + prior * root
    above = above / (n_parent + prior)
    means: Floats = (total + prior * above[grid.parent]) / (n + prior)
    return means


def _residuals(grid: Grid, log: Outcomes, prior: float) -> tuple[_Residuals, Floats]:
    """Outcomes beyond the customer's own, and the variance of the reference by parent."""
    situation, exposure = log.state // grid.exposures, log.state % grid.exposures
    parent = grid.parent[situation]
    stratum = _renumber(log.customer * grid.parents + parent)
    is_own = (log.coupon == 0) & (exposure == 0)  # windows after a coupon are no fair reference
    own = np.bincount(stratum, is_own)[stratum]
    beyond = log.outcome - _expected(grid, log, stratum, is_own, prior)
    arm = _renumber((stratum * grid.exposures + exposure) * grid.coupons + log.coupon)
    weight = own / np.maximum(own + np.bincount(arm)[arm], 1)
    variance = _variance(grid, parent[is_own], stratum[is_own], beyond[is_own], prior)
    rows = _Residuals(parent, exposure, log.coupon, log.customer, beyond, weight)
    return rows.where(~is_own & (own >= MIN_OWN)), variance


def _expected(
    grid: Grid, log: Outcomes, stratum: Ints, is_own: npt.NDArray[np.bool_], prior: float
) -> Floats:
    """Outcome expected from situation, period and stratum, (n,): means of the reference by turns.

    Periods are shrunk to no difference, strata (a customer in a parent) not at all.
    """
    situation, strata = log.state // grid.exposures, int(stratum.max(initial=-1)) + 1
    where, who = situation[is_own], stratum[is_own]
    when, outcome = log.period[is_own], log.outcome[is_own]
    periods = int(log.period.max(initial=-1)) + 1
    decisions = np.maximum(np.bincount(who, minlength=strata), 1)
    in_period = np.bincount(when, minlength=periods) + prior
    season = np.zeros(periods)
    level = np.bincount(who, outcome, strata) / decisions  # strata first: they explain the most
    for _ in range(ROUNDS):
        means = situation_means(grid, where, outcome - level[who] - season[when], prior)
        rest = outcome - means[where]
        season = np.bincount(when, rest - level[who], periods) / in_period
        level = np.bincount(who, rest - season[when], strata) / decisions
    expected: Floats = means[situation] + season[log.period] + level[stratum]
    return expected


def _renumber(key: Ints) -> Ints:
    """Equal keys, equal numbers from 0 on, (n,)."""
    number: Ints = np.unique(key, return_inverse=True)[1]
    return number


def _variance(grid: Grid, parent: Ints, stratum: Ints, beyond: Floats, prior: float) -> Floats:
    """Variance of one outcome around the stratum's mean, (parents,), shrunk to all's."""
    squares, n = float((beyond**2).sum()), max(beyond.size, 1)
    lost = n / max(n - np.unique(stratum).size, 1)  # degrees of freedom spent on strata's means
    count = np.bincount(parent, minlength=grid.parents)
    by_parent = np.bincount(parent, beyond**2, minlength=grid.parents)
    variance: Floats = lost * (by_parent + prior * squares / n) / (count + prior)
    return variance


def _cells(grid: Grid, rows: _Residuals, beyond: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """Shrunk effect and standard error by parent and exposure, (parents, exposures)."""
    shape = (grid.parents, grid.exposures)
    if not beyond.size:  # nothing measured: as uncertain as a single decision
        return np.zeros(shape), np.sqrt(np.repeat(variance[:, None], grid.exposures, axis=1))
    cell = rows.parent * grid.exposures + rows.exposure
    weight = np.bincount(cell, rows.weight, minlength=shape[0] * shape[1]).reshape(shape)
    total = np.bincount(cell, rows.weight * beyond, minlength=shape[0] * shape[1]).reshape(shape)
    effect = np.divide(total, weight, out=np.zeros(shape), where=weight > 0)
    floor = TINY * max(1.0, float(np.square(beyond).max()))
    noise = np.maximum(variance * _clustering(rows, beyond, variance), floor)[:, None]
    mean, posterior = shrink_tree(effect, weight / noise, float(noise.max()))
    return mean, np.sqrt(posterior)


def _clustering(rows: _Residuals, beyond: Floats, variance: Floats) -> Floats:
    """How much more sums by customer vary than independent decisions of the reference would,
    (parents,), shrunk to all parents'; at least 1.

    The design effect of cluster-robust errors: customers who get coupons vary more than others in
    their situation, and a customer's weeks resemble each other.
    """
    weight = np.bincount(rows.parent, rows.weight, variance.size)
    total = np.bincount(rows.parent, rows.weight * beyond, variance.size)
    mean = total / np.maximum(weight, TINY)
    stratum = _renumber(rows.customer * variance.size + rows.parent)
    sums = np.bincount(stratum, rows.weight * (beyond - mean[rows.parent]))
    parent = np.zeros(sums.size, dtype=np.int64)
    parent[stratum] = rows.parent
    found = np.bincount(parent, np.square(sums), variance.size)
    pooled = float(found.sum()) / max(float((weight * variance).sum()), TINY)
    prior = CLUSTER_PRIOR * variance
    ratio = (found + prior * pooled) / np.maximum(weight * variance + prior, TINY)
    at_least: Floats = np.maximum(ratio, 1.0)
    return at_least


def shrink_tree(effect: Floats, precision: Floats, unknown: float) -> tuple[Floats, Floats]:
    """Shrunk effects (P, K) of known precisions (0: not measured) and their variances.

    Three levels of normal effects: rows around their column's mean, columns around a common mean,
    that around zero. Each level's spread is what shows beyond noise, at least 0. The common mean
    keeps the variance of its measurement, ``unknown`` at most: a single number cannot tell how far
    from zero such effects tend to be, so shrinking it proves nothing.
    """
    spread = between_variance(effect, precision)
    column, column_precision = (part[:, None] for part in _pooled(effect, precision, spread))
    column_spread = between_variance(column, column_precision)
    top, top_precision = _pooled(column, column_precision, column_spread)
    noise = 1 / np.maximum(top_precision, 1 / unknown)
    top = top * np.maximum(0.0, 1 - noise / np.maximum(np.square(top), TINY))
    mean, variance = _posterior(column, column_precision, column_spread, top, noise)
    return _posterior(effect, precision, spread, mean.T, variance.T)


def between_variance(effect: Floats, precision: Floats) -> float:
    """Variance of true effects within the columns of (P, K), DerSimonian & Laird's moments."""
    total = precision.sum(axis=0)
    safe = np.maximum(total, TINY)
    mean = (precision * effect).sum(axis=0) / safe
    q = float((precision * np.square(effect - mean)).sum())
    freedom = float(np.maximum((precision > 0).sum(axis=0) - 1, 0).sum())
    scale = float((total - np.square(precision).sum(axis=0) / safe).sum())
    return max(0.0, (q - freedom) / scale) if scale > 0 else 0.0


def _pooled(effect: Floats, precision: Floats, spread: float) -> tuple[Floats, Floats]:
    """Mean effect of each column and its precision, (K,)."""
    weight = precision / (1 + spread * precision)
    total = weight.sum(axis=0)
    return (weight * effect).sum(axis=0) / np.maximum(total, TINY), total


def _posterior(
    effect: Floats, precision: Floats, spread: float, above: Floats, above_variance: Floats
) -> tuple[Floats, Floats]:
    """Normal posterior of effects around the level above, whose own doubt is passed on."""
    trust = spread * precision / (1 + spread * precision)
    mean = trust * effect + (1 - trust) * above
    return mean, (1 - trust) * spread + np.square(1 - trust) * above_variance
