"""The gate's error rates, and the coverage of its intervals, on logs of known worlds.

Oracle: with γ = 0 a plan is worth the exact expected profit of its coupons in the hidden states of
the valued decisions, less the price of coupon money. Challengers learned from the whole log, the
champions from what was known one to four weeks before its end; both also in versions that trust
the response too much or too little, or believe what is not so. "Points" are percent of what the
best coupon for every hidden state brings over none on these decisions.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest
from worlds import panel_of

from winback.models import policy_value
from winback.models.cross_fitting import Plan, Rules, fit_halves, one_hot, view
from winback.models.gate import judge
from winback.models.off_policy import Estimate, Log
from winback.models.policy_value import (
    AS_IS,
    CHALLENGER,
    CHAMPION,
    NONE,
    evaluate,
    gain_over_none,
    valued_rows,
)
from winback.models.propensity import estimate_propensities, habits
from winback.models.response import EFFECT
from winback.models.response_fit import fit_response
from winback.models.settings import Settings
from winback.models.situations import COUPONS, PURCHASES, Panel
from winback.models.world import CONFOUNDED, CONTACT_COST, FACE_VALUES, WorldConfig, make_world
from winback.models.world_log import record_history
from winback.models.world_truth import worth_of_weeks

CUSTOMERS, WEEKS = 2000, 20
PERIODS = Settings.model_fields["evaluation_periods"].default
TOLERATED = Settings.model_fields["gate_tolerance"].default  # of a window's profit
PRICE = 0.3
RULES = Rules(
    face_values=np.array(FACE_VALUES),
    contact_cost=np.array([0.0, *[CONTACT_COST] * (len(FACE_VALUES) - 1)]),
    offered=np.ones(len(FACE_VALUES), bool),
    gamma=0.0,
    price=PRICE,
    pessimism=Settings.model_fields["pessimism"].default,
    min_visits=Settings.model_fields["min_visits"].default,
)


@dataclass(frozen=True)
class Lived:
    """A log, its valued decisions, and (n, A) what each coupon is truly worth there."""

    seed: int
    panel: Panel
    rows: np.ndarray
    true: np.ndarray

    @property
    def oracle(self):
        return float((self.true.max(axis=1) - self.true[:, 0]).mean())

    @cached_property
    def learned(self):
        return fit_halves(self.panel, RULES.face_values)

    def gain(self, ours, theirs):
        """Of one policy over another, per decision, exactly."""
        return float(((ours - theirs) * self.true).sum(axis=1).mean())


@dataclass(frozen=True)
class Reading:
    """What the gate reads of a log beside the two plans; against none by pessimism."""

    log: Log
    q: np.ndarray
    tolerance: float
    against_none: dict[float, Estimate]


@dataclass(frozen=True)
class Case:
    """A challenger against a champion: what it is worth more, and what the gate made of it."""

    names: tuple[str, str]
    true: float
    oracle: float
    tolerance: float
    found: Estimate
    passed: bool

    @property
    def points(self):
        return 100 * self.true / self.oracle if self.oracle else np.nan  # nothing to gain

    @property
    def tolerances(self):
        return self.true / self.tolerance

    @property
    def is_better(self):
        """By 10 points, or by twice the tolerance where the best is to give no coupon at all."""
        return self.points >= 10 if self.oracle else self.tolerances >= 2


def one_log(seed, customers=CUSTOMERS, weeks=WEEKS, **dials):
    """Each seed is another world and another log."""
    world = make_world(WorldConfig(seed=seed, **dials))
    history = record_history(world, customers, weeks, seed)
    panel = panel_of(history)
    rows = valued_rows(panel, PERIODS)
    true = worth_of_weeks(world, history, panel.customer[rows], panel.period[rows], PRICE)
    return Lived(seed, panel, rows, true)


def variants(response, seed, until=None):
    """Plans that trust the response more or less, or believe what is not so."""
    random = np.random.default_rng([seed, until or 0])
    keen, confused = response.coefficients.copy(), response.coefficients.copy()
    keen[:, -1] += random.uniform(0.3, 3.0)  # the largest coupon sells more, it believes
    confused[:, EFFECT:] += random.normal(0.0, 0.7, confused[:, EFFECT:].shape)
    usual = Plan(response, RULES, until)
    return {
        "usual": usual,
        "bold": replace(usual, rules=replace(RULES, pessimism=0.0)),
        "careful": replace(usual, rules=replace(RULES, pessimism=3.0)),
        "timid": replace(usual, rules=replace(RULES, pessimism=9.0)),
        "rash": replace(usual, response=replace(response, coefficients=keen)),
        "confused": replace(usual, response=replace(response, coefficients=confused)),
    }


def contenders(one):
    """Challengers, and champions of one to four weeks ago, one of them at another price."""
    panel = one.panel
    until = int(panel.period.max()) - 1 - one.seed % 4
    early = replace(panel, closed=panel.closed & (panel.period < until))
    old = variants(fit_response(early, RULES.face_values).model, one.seed, until)
    thrifty = replace(old["usual"], rules=replace(RULES, price=1.0))
    new = variants(fit_response(panel, RULES.face_values).model, one.seed)
    return new, {**old, "thrifty": thrifty}


def reading(one, challengers):
    """As ``policy_value.evaluate`` has it, once for all pairs: γ and the price are theirs all."""
    against_none = {}
    for pessimism in {plan.rules.pessimism for plan in challengers.values()}:
        views = one.learned.views(one.panel, replace(RULES, pessimism=pessimism))
        log, policies, profit, q = policy_value._cross_valued(views, one.rows, one.learned.half)
        against_none[pessimism] = policy_value._compare(log, policies, CHALLENGER, NONE, q)
    return Reading(log, q, TOLERATED * max(float(profit[:, 0].mean()), 0.0), against_none)


def judged(one, read, names, ours, theirs, champion, none):
    """The gate on two policies (n, A) of which the champion's is that of a plan."""
    policies, period = {AS_IS: ours, CHAMPION: theirs}, one.panel.period[one.rows]
    found = policy_value._versus_champion(read.log, policies, read.q, period, champion)
    passed = judge(found, none, read.tolerance).passed
    return Case(names, one.gain(ours, theirs), one.oracle, read.tolerance, found, passed)


def cases(one, challengers, champions):
    """Every challenger against every champion; and just too bad ones made of the worse ones."""
    read = reading(one, challengers)
    new, old = (
        {name: view(plan, one.panel, one.panel).greedy(one.rows) for name, plan in plans.items()}
        for plans in (challengers, champions)
    )
    pairs, edge = [], []
    for mine, plan in challengers.items():
        none = read.against_none[plan.rules.pessimism]
        for its, champion in champions.items():
            names, ours, theirs = (mine, its), new[mine], old[its]
            pairs.append(judged(one, read, names, ours, theirs, champion, none))
            if pairs[-1].tolerances < -1.2:
                ours = just_too_bad(one, ours, theirs, 1.1 * read.tolerance)
                edge.append(judged(one, read, names, ours, theirs, champion, None))
    return pairs, edge


def just_too_bad(one, ours, theirs, loss):
    """Our coupons for as many customers, by lot, as lose ``loss`` per decision; theirs for others.

    Who they are follows from the truth alone, so luck in the log has no say.
    """
    order = np.random.default_rng([one.seed, 9]).permutation(one.panel.customers)
    order = order[one.panel.customer[one.rows]]
    gain = ((ours - theirs) * one.true).sum(axis=1)
    total = np.cumsum(np.bincount(order, gain)) / len(gain)
    return np.where((order <= np.argmax(total <= -loss))[:, None], ours, theirs)


def with_estimated_propensities(one):
    """The log without its propensities, estimated from what an offer may have gone by."""
    panel, closed = one.panel, one.panel.closed
    start = np.repeat(panel.first[:-1], np.diff(panel.first))

    def so_far(values):
        total = np.append(0, np.cumsum(np.where(closed, values, 0)))
        return total[:-1] - total[start]

    place, bought = panel.situation // COUPONS, so_far(panel.purchased)
    spent = np.where(bought > 0, so_far(panel.margin) / np.maximum(bought, 1), np.nan)
    since = np.arange(len(start)) - start
    seen = (place // PURCHASES, place % PURCHASES, panel.situation % COUPONS, since)
    looks = np.column_stack([*seen, bought, spent, so_far(panel.coupon > 0), habits(panel)])[closed]
    coupon, customer = panel.coupon[closed], panel.customer[closed]
    chances = estimate_propensities(looks, coupon, customer, len(FACE_VALUES), seed=one.seed)
    propensity = panel.propensity.copy()
    propensity[closed] = np.take_along_axis(chances, coupon[:, None], axis=1)[:, 0]
    return replace(one, panel=replace(panel, propensity=propensity))


def interval_and_truth(one):
    """The 95 % interval of challenger − none, and the truth."""
    found = gain_over_none(one.panel, one.learned, RULES, periods=PERIODS)
    none = one_hot(np.zeros(len(found.rows), int), len(FACE_VALUES))
    return found.estimate, one.gain(found.policy, none)


def joined(lists):
    return [case for one in lists for case in one]


def share(found):
    return float(np.mean(found)) if found else float("nan")


# -- a few logs, always


@pytest.fixture(scope="module")
def few():
    """Two logs of offers by lot, one of offers to likely buyers; with all who contend there."""
    dials = ({}, {}, {"confounding": CONFOUNDED})
    logs = [one_log(seed, **more) for seed, more in enumerate(dials)]
    return [(one, *contenders(one)) for one in logs]


@pytest.fixture(scope="module")
def few_cases(few):
    return [joined(part) for part in zip(*(cases(*one) for one in few), strict=True)]


def test_much_worse_plans_never_pass_and_much_better_ones_mostly_do(few_cases):
    """Simulation of three short logs: twice the tolerance worse; 40 points better, and 60."""
    pairs, _ = few_cases
    worse = [case for case in pairs if case.tolerances < -2]
    better = [case for case in pairs if case.points >= 40]
    assert len(worse) >= 20
    assert len(better) >= 10
    assert [case.names for case in worse if case.passed] == []
    held = [case.points for case in better if not case.passed]
    assert len(held) <= len(better) / 3
    assert max(held, default=0) < 60


def test_just_too_bad_plans_hardly_pass(few_cases):
    """Simulation: 5 % at most, of those without an alarm; those of one log pass together."""
    _, edge = few_cases
    told = [case for case in edge if case.found.alarm is None]
    assert len(told) >= 20
    assert all(-1.3 < case.tolerances <= -1.1 for case in edge)
    assert share([case.passed for case in told]) <= 0.15


def test_differences_are_what_they_truly_are(few_cases):
    """Simulation: nothing is further off than four standard errors."""
    pairs, edge = few_cases
    for case in pairs + edge:
        error = (case.found.upper - case.found.lower) / (2 * 1.645)
        assert abs(case.found.value - case.true) <= 4 * error


def test_the_gate_reads_here_what_it_reads_in_a_run(few):
    """Oracle: the product's own evaluation of one pair."""
    one, challengers, champions = few[0]
    pair = {"bold": challengers["bold"]}, {"rash": champions["rash"]}
    (case,), _ = cases(one, *pair)
    read = reading(one, pair[0])
    found = evaluate(one.panel, one.learned, pair[0]["bold"], pair[1]["rash"], periods=PERIODS)
    assert found.versus_champion == case.found
    assert found.versus_none == read.against_none[0.0]
    assert TOLERATED * found.profit_without == read.tolerance


# -- the study


@dataclass(frozen=True)
class Kind:
    """Logs of one kind, and the rates that they have been found to keep."""

    seeds: range
    dials: dict
    held: float = 1.0  # of what is better
    edge: float = 0.07  # passed, of what is just too bad and raises no alarm
    covered: tuple[float, float] = (20 / 24, 1.0)  # fewer come in 1 of 100 if 95 % is true
    estimated: bool = False


TARGET = {"customers": 20_000, "weeks": 40}
TWO_OF_THREE = (2 / 3, 1.0)  # logs: fewer come in 1 of 100 if 95 % is true
STUDY = {
    "by lot": Kind(range(100), {}, held=0.32, covered=(0.92, 0.98)),
    "confounded": Kind(range(100), {"confounding": CONFOUNDED}, held=0.37, covered=(0.92, 0.98)),
    "no effect": Kind(range(200, 224), {"effect": 0.0}, held=0.2),
    "twice the customers": Kind(range(300, 324), {"customers": 2 * CUSTOMERS}, held=0.2),
    "full size": Kind(range(400, 403), TARGET, held=0.2, covered=TWO_OF_THREE),
    "full size, confounded": Kind(
        range(400, 403), {**TARGET, "confounding": CONFOUNDED}, held=0.2, covered=TWO_OF_THREE
    ),
    "by lot, estimated": Kind(range(20), {}, covered=(0.8, 1.0), edge=0.2, estimated=True),
    "confounded, estimated": Kind(
        range(20), {"confounding": CONFOUNDED}, covered=(0.8, 1.0), edge=0.2, estimated=True
    ),
}


@pytest.fixture(scope="module", params=STUDY)
def studied(request):
    """A kind of logs with all pairs, all just too bad ones, and a gain over none per log."""
    kind = STUDY[request.param]
    pairs, edge, gains = [], [], []
    for seed in kind.seeds:
        one = one_log(seed, **kind.dials)
        one = with_estimated_propensities(one) if kind.estimated else one
        found = cases(one, *contenders(one))
        pairs += found[0]
        edge += found[1]
        gains.append(interval_and_truth(one))
    print(f"\n{request.param}: {len(gains)} logs")
    return kind, pairs, edge, gains


def rates(pairs, edge):
    """By name: what share of cases the gate got wrong, printed."""
    worse = [case for case in pairs if case.tolerances < -1]
    better = [case for case in pairs if case.is_better]
    wrong = {
        "worse than tolerated, passed": [case.passed for case in worse],
        "... by up to half": [case.passed for case in worse if case.tolerances >= -1.5],
        "worse by 10 points, passed": [case.passed for case in pairs if case.points <= -10],
        "just too bad, passed": [case.passed for case in edge],
        "... and no alarm": [case.passed for case in edge if case.found.alarm is None],
        "better, held": [not case.passed for case in better],
        "... by less than 20": [not case.passed for case in better if case.points < 20],
        "... by 40 or more": [not case.passed for case in better if case.points >= 40],
    }
    for name, found in wrong.items():
        print(f"  {name:30s}{share(found):7.1%} of {len(found):5,d}")
    return {name: share(found) for name, found in wrong.items()}


@pytest.mark.slow
def test_error_rates_of_the_gate(studied):
    """Simulation. ``pytest -m slow tests/test_gate_in_worlds.py -s`` prints all rates.

    The goals: what is worse than tolerated passes in 5 % at most, what is better is held in 20 % at
    most. Logs of 2,000 customers and 20 weeks are too short for the second: half of the interval is
    2.6 times the tolerance. Just too bad plans that pass nearly all raise an alarm: who decides as
    the champion in nine of ten cases passes then.
    """
    kind, pairs, edge, _ = studied
    wrong = rates(pairs, edge)
    assert wrong["worse than tolerated, passed"] <= 0.05
    assert wrong["... and no alarm"] <= kind.edge
    assert wrong["better, held"] <= kind.held


@pytest.mark.slow
def test_coverage_of_the_gain_over_none(studied):
    """Simulation with exact truth."""
    kind, _, _, gains = studied
    covered = share([one.lower <= true <= one.upper for one, true in gains])
    print(f"  95 % intervals held the truth in {covered:.1%} of {len(gains)}")
    assert kind.covered[0] <= covered <= kind.covered[1]
