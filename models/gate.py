"""May the new policy replace the current one? A rule on estimates of what the change would earn.

Against the current policy, a new one goes out only if the lower bound of the difference is not
below −tolerance. Lower bounds at a two-sided level of 0.90 are wrong in 5 % of all logs, so a
policy worse than the tolerance passes in 5 % at most. A tolerance of 0 holds nearly every policy
that is about as good as the current one, since half of the interval lies below zero: what to
tolerate is a decision of the user.

Against no coupons at all, a policy is held if it is shown to lose: the whole interval lies below
zero. A loss that is merely not ruled out does not hold it. A log without proof gets better only by
coupons that are really given, the budget limits what they may cost, and the holdout measures it.

Where there is a current policy that cannot be compared (its model is lost, the catalogue has
changed), nothing says that a new one is not worse. It is then asked for the most that can be shown
without the comparison: that it brings more than no coupons at all, by the whole interval.

An estimate with an alarm proves nothing, neither harm nor its absence. It holds a policy that
changes much of what is being done; it lets pass

* the first policy: there is nothing to be worse than, only no coupons at all;
* nothing but exploration: it is how a log without proof gets better, and its money is limited in
  advance; if the current policy is shown to be better, exploration does not replace it;
* a policy that decides as the current one in nearly all decisions and does not look worse than
  what is tolerated: a small shop retrained on one more week would otherwise be held for good.

The comparisons should leave exploration out of both policies: drawing at random costs money on
purpose, and would be held against a policy that explores more.
"""

import math
from dataclasses import asdict, dataclass

from winback.models.errors import SettingsError
from winback.models.off_policy import SAME_POLICY, Estimate

CHAMPION, NONE = "the current policy", "no coupons at all"
FIRST = "No policy is published yet, so there is none to compare with."
ANYWAY = "publish by override_gate"
SIMILAR = 0.1  # of decisions: what a week of new data changes; more is another policy

Figure = float | str | None


@dataclass(frozen=True)
class Verdict:
    """Whether to publish, and why.

    Attributes:
        passed: publish.
        rule_passed: the rule alone would publish.
        override: the user asked to publish whatever the rule says.
        is_sure: it rests on comparisons that hold: none that it needed is missing, raised an alarm
            or leaves a loss open. A verdict that is not sure deserves a warning.
        reason: in plain words, both comparisons.
        figures: what the rule read, ``versus_champion_lower`` and so on, JSON-able.
    """

    passed: bool
    rule_passed: bool
    override: bool
    is_sure: bool
    reason: str
    figures: dict[str, Figure]


@dataclass(frozen=True)
class _Finding:
    passed: bool
    words: str
    is_sure: bool = True


def judge(
    versus_champion: Estimate | None,
    versus_none: Estimate | None,
    tolerance: float,
    *,
    only_exploration: bool = False,
    override: bool = False,
    incomparable: str | None = None,
) -> Verdict:
    """Publish or hold.

    Args:
        versus_champion: value of the new policy minus that of the current one
            (:func:`winback.models.off_policy.difference`); None: nothing is published yet, or what
            is cannot be compared.
        versus_none: minus that of no coupons at all; None: no log to estimate it from.
        tolerance: loss against the current policy that is accepted, currency per decision, 0 or
            more.
        only_exploration: the new policy gives no coupon but those drawn by chance.
        override: publish in any case; recorded in the verdict.
        incomparable: a sentence on why the current policy cannot be compared; None: it is, or there
            is none.

    Raises:
        SettingsError: the tolerance is negative or not finite.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise SettingsError(f"expected a tolerance of 0 or more, came {tolerance}")
    if versus_champion is not None:
        first = _against_champion(versus_champion, tolerance, only_exploration)
    elif incomparable is not None:
        first = _unseen(incomparable, versus_none, only_exploration)
    else:
        first = _Finding(True, FIRST)
    findings = (first, _against_none(versus_none, only_exploration))
    rule_passed = all(one.passed for one in findings)
    is_sure = all(one.is_sure for one in findings)
    words = " ".join(one.words for one in findings)
    figures: dict[str, Figure] = {"tolerance": tolerance}
    figures |= _figures("versus_champion", versus_champion)
    figures |= _figures("versus_none", versus_none)
    reason = f"{_outcome(rule_passed, override)} {words}"
    return Verdict(rule_passed or override, rule_passed, override, is_sure, reason, figures)


def _outcome(rule_passed: bool, override: bool) -> str:
    if rule_passed:
        return "Passed."
    if override:
        return "Published by override, the rule would have held it."
    return "Held; the current policy stays."


def _against_champion(found: Estimate, tolerance: float, only_exploration: bool) -> _Finding:
    share = found.disagreement
    if share is not None and share <= SAME_POLICY:
        return _Finding(True, _alike(CHAMPION, share))
    if _is_worthless(found):
        words = _worthless(CHAMPION, found)
        if only_exploration:
            return _unsure(True, f"{words} Only exploration is planned, which mends that.")
        if share is not None and share <= SIMILAR and not found.value < -tolerance:
            return _unsure(True, f"{words} {_alike(CHAMPION, share)}")
        return _unsure(False, f"{words} Explore more, or {ANYWAY}.")
    words = _brings(CHAMPION, found)
    if found.lower >= -tolerance:
        return _Finding(True, f"{words}, at worst within the tolerated {-tolerance:.4g}.")
    if found.upper < -tolerance:
        return _Finding(False, f"{words}: worse than the tolerated {-tolerance:.4g}.")
    loss = f"a loss beyond the tolerated {-tolerance:.4g} is not ruled out."
    return _unsure(False, f"{words}: {loss}")


def _unseen(why_not: str, versus_none: Estimate | None, only_exploration: bool) -> _Finding:
    """In place of a comparison with the current policy where there can be none."""
    if only_exploration:
        return _unsure(True, f"{why_not} Only exploration is planned, whose money is limited.")
    needed = "A plan that replaces it unseen must be shown to earn more than no coupons at all"
    if versus_none is not None and not _is_worthless(versus_none) and versus_none.lower > 0:
        return _unsure(True, f"{why_not} {needed}, and this one is.")
    return _unsure(
        False, f"{why_not} {needed}, and this one is not. To replace it all the same, {ANYWAY}."
    )


def _against_none(found: Estimate | None, only_exploration: bool) -> _Finding:
    if only_exploration:
        words = "No coupon but those of exploration is given."
        if found is not None and _is_worthless(found):
            return _unsure(True, f"{words} {_worthless(NONE, found)}")
        return _Finding(True, words)
    if found is None:
        return _unsure(True, "No log shows yet what coupons do; the holdout will.")
    if found.disagreement is not None and found.disagreement <= SAME_POLICY:
        return _Finding(True, _alike(NONE, found.disagreement))
    if _is_worthless(found):
        return _unsure(True, f"{_worthless(NONE, found)} The holdout will tell.")
    words = _brings(NONE, found)
    if found.upper < 0:
        return _Finding(False, f"{words}: it loses money.")
    if found.lower < 0:
        return _unsure(True, f"{words}: a loss is not ruled out, the holdout will tell.")
    return _Finding(True, f"{words}: it earns money.")


def _unsure(passed: bool, words: str) -> _Finding:
    return _Finding(passed, words, is_sure=False)


def _alike(name: str, disagreement: float) -> str:
    return f"It decides as {name} in {1 - disagreement:.1%} of all decisions."


def _brings(name: str, found: Estimate) -> str:
    return (
        f"Against {name} it brings {found.value:+.4g} per decision "
        f"(interval {found.lower:+.4g} to {found.upper:+.4g})"
    )


def _is_worthless(found: Estimate) -> bool:
    return found.alarm is not None or not math.isfinite(found.lower)


def _worthless(name: str, found: Estimate) -> str:
    return f"The comparison with {name} is worthless: {found.alarm or 'no interval'}."


def _figures(prefix: str, found: Estimate | None) -> dict[str, Figure]:
    if found is None:
        return {}
    return {
        f"{prefix}_{name}": None if isinstance(figure, float) and math.isnan(figure) else figure
        for name, figure in asdict(found).items()
    }
