"""What would another policy have earned? Estimates from the log, with intervals and alarms.

A log holds decisions: the coupon given, its propensity, the reward. A policy is a probability per
decision and coupon. Every estimator here is a mean of per-decision terms, w = π(a | x) / propensity
of the coupon given, q(x, a) a model of the reward, q_π = Σ_a π(a | x) q(x, a):

    ips                  w r                              unbiased with true propensities
    self_normalised_ips  w r, over the sum of w           Swaminathan & Joachims (2015)
    direct_method        q_π                              as good as the model, no better
    doubly_robust        q_π + w (r − q)                  Dudík et al. (2011)
    switch_doubly_robust q_π + w (r − q) where w ≤ τ      Wang et al. (2017)

Three conditions that no formula checks: neither the policy nor q may have been learned from the
outcomes of the decisions they are applied to (cross-fit by customer, or take later weeks), since a
learner picks what luck favoured; propensities must not depend on anything hidden that moves the
reward; and the value is that of single decisions in the situations of the log, so what a policy
does to later situations counts only as far as ``reward`` includes a continuation value.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from winback.models.errors import DataError, SettingsError, first_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

IPS, SELF_NORMALISED = "ips", "self_normalised_ips"
DIRECT, DOUBLY_ROBUST, SWITCH = "direct_method", "doubly_robust", "switch_doubly_robust"
ESTIMATORS = (IPS, SELF_NORMALISED, DIRECT, DOUBLY_ROBUST, SWITCH)
NEEDS_MODEL = (DIRECT, DOUBLY_ROBUST, SWITCH)

LEVEL = 0.95  # of the two-sided interval
DRAWS = 1000  # a 2.5 % tail then rests on 25 draws: its own error is a tenth of the interval
BLOCK_NUMBERS = 4_000_000  # bootstrap weights held at once, 32 MB
MIN_EFFECTIVE = 100.0  # decisions; below, the standard error itself is off by more than 7 %
MIN_EFFECTIVE_DIFFERENCE = 30.0  # in known worlds intervals of 30 to 100 erred no more than others
MAX_SHARE = 0.05  # of all weight on one decision: then twenty decisions are the sample
MAX_WEIGHT_ERRORS = 4.0  # standard errors of the mean weight from 1; chance: 1 in 16,000
MIN_WEIGHT_GAP = 0.05  # of the mean weight from 1: less moves no estimate that matters
MIN_CARRIERS = 3.0  # customers that carry the variance; below, its root is off by over a quarter
SAME_POLICY = 0.005  # of decisions: where policies differ less, no difference can matter
THRESHOLDS = 21  # candidates for τ, as many as in the paper's experiments
ROUNDING = 1 + 1e-9  # equal weights stay on one side of τ
# Poisson(1) by a table of its quantiles: drawn ten times as fast, mean and variance to 10⁻³
POISSON_CDF = np.cumsum([math.exp(-1) / math.factorial(n) for n in range(9)])
POISSON = np.searchsorted(POISSON_CDF, (np.arange(2**16) + 0.5) / 2**16) * 1.0
MAX_SUM_ERROR = 1e-6  # of a row's probabilities: far above rounding
TINY = 1e-12  # relative variance of a draw that holds none of the customers that matter


@dataclass(frozen=True)
class Log:
    """Logged decisions, each column (n,).

    Attributes:
        customer: number of the customer, any integers; decisions of one customer are a cluster.
        coupon: index of the coupon given.
        reward: what came of it, currency.
        propensity: probability with which that coupon was drawn, in (0, 1].

    Raises:
        DataError: lengths differ, a reward is not finite, a propensity outside (0, 1].
    """

    customer: Ints
    coupon: Ints
    reward: Floats
    propensity: Floats

    def __post_init__(self) -> None:
        shapes = [np.shape(getattr(self, name)) for name in Log.__dataclass_fields__]
        if len(set(shapes)) > 1 or len(shapes[0]) != 1 or not shapes[0][0]:
            raise DataError(f"expected columns of one length, 1 or more; came {shapes}")
        wrong = ~np.isfinite(self.reward)
        if wrong.any():
            raise DataError(f"expected finite rewards; wrong in rows {_rows(wrong)}")
        wrong = ~((self.propensity > 0) & (self.propensity <= 1))
        if wrong.any():
            raise DataError(
                "expected propensities above 0 and at most 1; wrong in rows "
                f"{_rows(wrong)}: estimate those that were not logged"
            )

    @cached_property
    def cluster(self) -> Ints:
        """(n,) the customers numbered from 0 on."""
        number: Ints = np.unique(self.customer, return_inverse=True)[1]
        return number

    def where(self, rows: Bools) -> "Log":
        """The decisions of ``rows``, (n,) true or false, at least one."""
        return Log(self.customer[rows], self.coupon[rows], self.reward[rows], self.propensity[rows])


@dataclass(frozen=True)
class Estimate:
    """A policy's mean value per decision, or the difference of two; currency.

    Attributes:
        value: the estimate.
        lower, upper: interval of the stated level, by customers.
        effective_sample_size: (Σw)² / Σw² (Kish 1965), decisions. Of a difference: the smaller
            of both policies', among the decisions where they differ.
        max_weight: largest weight; of a difference, likewise.
        alarm: why the figures should not be used; None where nothing speaks against them.
        disagreement: of a difference, the share of decisions in which the policies differ (mean
            total variation distance); None for a single policy.
    """

    value: float
    lower: float
    upper: float
    effective_sample_size: float
    max_weight: float
    alarm: str | None
    disagreement: float | None = None


@dataclass(frozen=True)
class _Linear:
    """An estimate and each customer's share in its error, (customers,): Σ influence² = variance."""

    value: float
    influence: Floats


def estimate(
    log: Log,
    policy: Floats,
    estimator: str = DOUBLY_ROBUST,
    model: Floats | None = None,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Mean value per decision of ``policy`` in the situations of the log.

    Each bound of the interval is the outer one of two, both over customers: the studentised
    bootstrap (Hall 1992, §3.5; Poisson weights on customers' sums), which follows skewed rewards,
    and the normal one with the cluster-robust error, which is safer under heavy symmetric tails,
    as differences have. It is a function of the arguments alone.

    It holds sampling error only. That of the direct method ignores the bias of the model, so it is
    narrow and, with a wrong model, wrong; that of switch-DR ignores the bias of the model in what
    is switched off; all ignore the error of estimated propensities.

    Args:
        policy: (n, A) probability of each coupon, rows sum to 1.
        estimator: one of ``ESTIMATORS``.
        model: (n, A) expected reward q(x, a), currency; needed by the last three.
        level: two-sided. The lower bound alone is wrong in (1 − level) / 2 of all logs.
        draws: bootstrap draws.
        seed: of the draws.

    Raises:
        DataError: a shape differs, probabilities are none, the model is missing or not finite.
        SettingsError: no such estimator or level.
    """
    _check_settings(estimator, level)
    _check_policy(log, policy)
    _check_model(policy, model, estimator)
    weight = weights(log, policy)
    linear = _linear(log, policy, weight, estimator, model)
    lower, upper = _interval(linear, level, draws, seed)
    alarm = _weight_alarm(log, weight) or _carrier_alarm(linear)
    size, largest = effective_sample_size(weight), float(weight.max())
    return Estimate(linear.value, lower, upper, size, largest, alarm)


def difference(
    log: Log,
    policy: Floats,
    other: Floats,
    estimator: str = DOUBLY_ROBUST,
    model: Floats | None = None,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Value of ``policy`` minus that of ``other``, on the same decisions and bootstrap draws.

    What both do alike cancels, so the interval is far narrower than that of either value. Equal
    policies give exactly 0. Arguments, errors and cautions as in :func:`estimate`.
    """
    _check_settings(estimator, level)
    for one in (policy, other):
        _check_policy(log, one)
        _check_model(one, model, estimator)
    if policy.shape != other.shape:
        raise DataError(f"expected two policies of one shape, came {policy.shape}, {other.shape}")
    both = weights(log, policy), weights(log, other)
    ours, theirs = (
        _linear(log, one, weight, estimator, model)
        for one, weight in zip((policy, other), both, strict=True)
    )
    linear = _Linear(ours.value - theirs.value, ours.influence - theirs.influence)
    lower, upper = _interval(linear, level, draws, seed)
    distance = 0.5 * np.abs(policy - other).sum(axis=1)
    differs = distance > 0
    size, largest, alarm = _difference_alarm(log, both, differs, linear, float(distance.mean()))
    return Estimate(linear.value, lower, upper, size, largest, alarm, float(distance.mean()))


def weights(log: Log, policy: Floats) -> Floats:
    """(n,) probability of the coupon given, under the policy over under the log."""
    given: Floats = np.take_along_axis(policy, log.coupon[:, None], axis=1)[:, 0]
    return given / log.propensity


def effective_sample_size(weight: Floats) -> float:
    """(Σw)² / Σw²: as many equally weighted decisions know as much (Kish 1965); 0 for no weight."""
    squares = float(weight @ weight)
    return float(weight.sum()) ** 2 / squares if squares else 0.0


def switch_threshold(log: Log, policy: Floats, model: Floats) -> float:
    """τ of switch-DR: least estimated variance + squared bound of the bias (Wang et al. 2017, §4).

    The bias is at most the policy's share of decisions with w > τ, here Σ w·1[w > τ] / Σ w, times
    the model's error. The paper bounds that error by the largest reward, so loosely for
    margins that nothing would ever be switched off; here by the root mean square of r − q, which
    holds the noise too. Candidates are even in log w from the smallest to the largest weight.
    """
    weight = weights(log, policy)
    if not weight.any():
        return math.inf
    residual = log.reward - _given(log, model)
    scale = math.sqrt(float(np.mean(residual**2)))
    expected = (policy * model).sum(axis=1)
    risks = {}
    for tau in np.geomspace(weight[weight > 0].min(), weight.max(), THRESHOLDS).tolist():
        kept = np.where(weight <= tau * ROUNDING, weight, 0.0)
        influence = _ratio(log, expected + kept * residual, np.ones(len(weight))).influence
        bias = scale * float((weight - kept).sum() / weight.sum())
        risks[tau * ROUNDING] = float(influence @ influence) + bias**2
    best: float = min(risks, key=lambda tau: risks[tau])
    return best


def _linear(
    log: Log, policy: Floats, weight: Floats, estimator: str, model: Floats | None
) -> _Linear:
    one = np.ones(len(weight))
    if estimator not in NEEDS_MODEL:
        return _ratio(log, weight * log.reward, one if estimator == IPS else weight)
    assert model is not None  # checked by the callers
    expected: Floats = (policy * model).sum(axis=1)
    if estimator == DIRECT:
        return _ratio(log, expected, one)
    if estimator == SWITCH:
        weight = np.where(weight <= switch_threshold(log, policy, model), weight, 0.0)
    return _ratio(log, expected + weight * (log.reward - _given(log, model)), one)


def _ratio(log: Log, numerator: Floats, denominator: Floats) -> _Linear:
    """Σ numerator / Σ denominator and its influence by customer (delta method)."""
    total = float(denominator.sum())
    if not total:  # the policy gives nothing that the log gave; the alarm says so
        return _Linear(math.nan, np.zeros(1))
    value = float(numerator.sum()) / total
    influence = np.bincount(log.cluster, (numerator - value * denominator) / total)
    return _Linear(value, influence.astype(np.float64))


def _interval(linear: _Linear, level: float, draws: int, seed: int) -> tuple[float, float]:
    """The outer bounds of the bootstrap-t and of the cluster-robust normal interval."""
    u = linear.influence
    error = math.sqrt(float(u @ u))
    if not error:
        return linear.value, linear.value
    statistic = _bootstrap_t(u, draws, seed)
    low, high = np.quantile(statistic, [(1 - level) / 2, (1 + level) / 2]).tolist()
    z = NormalDist().inv_cdf((1 + level) / 2)
    return linear.value - max(high, z) * error, linear.value - min(low, -z) * error


def _bootstrap_t(influence: Floats, draws: int, seed: int) -> Floats:
    """(draws,) t* = Σ(W − 1)u / √ΣWu², W ~ Poisson(1) per customer."""
    columns = np.column_stack([influence, influence**2])
    tiny = TINY * columns[:, 1].sum()
    rng, rows = np.random.default_rng(seed), max(1, BLOCK_NUMBERS // len(influence))
    statistic = np.empty(draws)
    for start in range(0, draws, rows):
        block = slice(start, min(start + rows, draws))
        drawn = rng.integers(0, 2**16, (block.stop - start, len(influence)), dtype=np.uint16)
        moved, squares = (POISSON[drawn] @ columns).T
        statistic[block] = (moved - influence.sum()) / np.sqrt(np.maximum(squares, tiny))
    return statistic


def _weight_alarm(log: Log, weight: Floats, minimum: float = MIN_EFFECTIVE) -> str | None:
    """What is wrong with the weights of these decisions, in words."""
    total = float(weight.sum())
    if not total:
        return "the log holds none of the coupons that this policy gives in these situations"
    mean = _ratio(log, weight, np.ones(len(weight)))
    error, gap = math.sqrt(float(mean.influence @ mean.influence)), abs(mean.value - 1)
    if gap > max(MAX_WEIGHT_ERRORS * error, MIN_WEIGHT_GAP):
        return (
            f"the weights average {mean.value:.2f} instead of 1: the log lacks decisions that this "
            "policy makes, or the propensities are wrong"
        )
    size = effective_sample_size(weight)
    if size < minimum:
        return (
            f"{len(weight):,} decisions are worth only {size:.0f} of this policy's own; "
            f"fewer than {minimum:.0f} say nothing"
        )
    share = float(weight.max()) / total
    if share > MAX_SHARE:
        return f"one decision carries {share:.0%} of all weight (largest weight {weight.max():.0f})"
    return None


def _carrier_alarm(linear: _Linear) -> str | None:
    """Too few customers behind the variance: (Σu²)² / Σu⁴ of them (participation ratio)."""
    squares = linear.influence**2
    carriers = effective_sample_size(squares)
    if 0 < carriers < MIN_CARRIERS:
        return f"{carriers:.0f} customers decide the estimate: too few for an interval"
    return None


def _difference_alarm(
    log: Log, both: tuple[Floats, Floats], differs: Bools, linear: _Linear, share: float
) -> tuple[float, float, str | None]:
    """Effective sample size, largest weight and alarm where two policies differ."""
    if not differs.any():
        return effective_sample_size(both[0]), float(both[0].max()), None
    part = log.where(differs)
    kept = [weight[differs] for weight in both]
    size = min(effective_sample_size(weight) for weight in kept)
    largest = max(float(weight.max()) for weight in kept)
    if share <= SAME_POLICY:
        return size, largest, None
    alarms = [_weight_alarm(part, weight, MIN_EFFECTIVE_DIFFERENCE) for weight in kept]
    alarm = alarms[0] or alarms[1] or _carrier_alarm(linear)
    return size, largest, alarm


def _given(log: Log, table: Floats) -> Floats:
    """(n,) each decision's entry of ``table`` (n, A) at the coupon given."""
    entries: Floats = np.take_along_axis(table, log.coupon[:, None], axis=1)[:, 0]
    return entries


def _check_settings(estimator: str, level: float) -> None:
    if estimator not in ESTIMATORS:
        raise SettingsError(f"expected an estimator of {list(ESTIMATORS)}, came {estimator!r}")
    if not 0 < level < 1:
        raise SettingsError(f"expected a level between 0 and 1, came {level}")


def _check_policy(log: Log, policy: Floats) -> None:
    if policy.ndim != 2 or len(policy) != len(log.coupon):
        raise DataError(
            f"expected probabilities per decision and coupon, ({len(log.coupon)}, coupons); "
            f"came {policy.shape}"
        )
    wrong = (log.coupon < 0) | (log.coupon >= policy.shape[1])
    if wrong.any():
        raise DataError(
            f"expected coupons from 0 to {policy.shape[1] - 1}; wrong in rows {_rows(wrong)}"
        )
    good = (policy >= 0).all(axis=1) & (np.abs(policy.sum(axis=1) - 1) < MAX_SUM_ERROR)
    if not good.all():
        raise DataError(f"expected probabilities that sum to 1; wrong in rows {_rows(~good)}")


def _check_model(policy: Floats, model: Floats | None, estimator: str) -> None:
    if estimator not in NEEDS_MODEL:
        return
    if model is None or model.shape != policy.shape:
        came = "none" if model is None else model.shape
        raise DataError(f"{estimator} needs expected rewards of shape {policy.shape}, came {came}")
    finite = np.asarray(np.isfinite(model).all(axis=1))
    if not finite.all():
        raise DataError(f"expected finite expected rewards; wrong in rows {_rows(~finite)}")


def _rows(wrong: Bools) -> str:
    return first_rows(np.nonzero(wrong)[0].tolist())
