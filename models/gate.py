"""May the new policy replace the current one? A rule on estimates of what the change would earn.

A policy goes out only if the lower bound of (new − current) and that of (new − no coupons) are not
below −tolerance. Lower bounds at a two-sided level of 0.90 are wrong in 5 % of all logs, so a
policy worse than the tolerance passes in 5 % at most. A tolerance of 0 holds nearly every policy
that is about as good as the current one, since half of the interval lies below zero: what to
tolerate is a decision of the user, in currency per decision.

An estimate with an alarm proves nothing, neither harm nor its absence, so it does not let a policy
pass. Three cases need no proof:

* no policy is published yet: there is nothing to be worse than, only no coupons at all;
* nothing but exploration is planned: it is how a log without proof gets better, and its money is
  limited in advance; if the current policy is shown to be better, exploration does not replace it;
* both policies decide alike in nearly all decisions.

The comparisons should leave exploration out of both policies: drawing at random costs money on
purpose, and would be held against a policy that explores more.
"""

import math
from dataclasses import asdict, dataclass

from winback.models.errors import SettingsError
from winback.models.off_policy import SAME_POLICY, Estimate

CHAMPION, NONE = "the current policy", "no coupons at all"

Figure = float | str | None


@dataclass(frozen=True)
class Verdict:
    """Whether to publish, and why.

    Attributes:
        passed: publish.
        rule_passed: the rule alone would publish.
        override: the user asked to publish whatever the rule says.
        reason: in plain words, both comparisons.
        figures: what the rule read, ``versus_champion_lower`` and so on, JSON-able.
    """

    passed: bool
    rule_passed: bool
    override: bool
    reason: str
    figures: dict[str, Figure]


def judge(
    versus_champion: Estimate | None,
    versus_none: Estimate | None,
    tolerance: float,
    *,
    only_exploration: bool = False,
    override: bool = False,
) -> Verdict:
    """Publish or hold.

    Args:
        versus_champion: value of the new policy minus that of the current one
            (:func:`winback.models.off_policy.difference`); None: no policy is published yet.
        versus_none: minus that of no coupons at all; None: no log to estimate it from.
        tolerance: loss that is accepted, currency per decision, 0 or more.
        only_exploration: the new policy gives no coupon but those drawn by chance.
        override: publish in any case; recorded in the verdict.

    Raises:
        SettingsError: the tolerance is negative or not finite.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise SettingsError(f"expected a tolerance of 0 or more, came {tolerance}")
    findings = [
        _against_champion(versus_champion, tolerance, only_exploration),
        _against_none(versus_none, tolerance, only_exploration),
    ]
    rule_passed = all(passed for passed, _ in findings)
    words = " ".join(words for _, words in findings)
    figures: dict[str, Figure] = {"tolerance": tolerance}
    figures |= _figures("versus_champion", versus_champion)
    figures |= _figures("versus_none", versus_none)
    reason = f"{_outcome(rule_passed, override)} {words}"
    return Verdict(rule_passed or override, rule_passed, override, reason, figures)


def _outcome(rule_passed: bool, override: bool) -> str:
    if rule_passed:
        return "Passed."
    if override:
        return "Published by override, the rule would have held it."
    return "Held; the current policy stays."


def _against_champion(
    found: Estimate | None, tolerance: float, only_exploration: bool
) -> tuple[bool, str]:
    if found is None:
        return True, "No policy is published yet, so there is none to compare with."
    if _is_worthless(found) and only_exploration:
        return True, f"{_worthless(CHAMPION, found)} Only exploration is planned, which mends that."
    return _compare(CHAMPION, found, tolerance)


def _against_none(
    found: Estimate | None, tolerance: float, only_exploration: bool
) -> tuple[bool, str]:
    if only_exploration:
        return True, "No coupon but those of exploration is given."
    if found is None:
        return False, (
            "There is no log that shows what coupons do: explore first, or publish by override."
        )
    return _compare(NONE, found, tolerance)


def _compare(name: str, found: Estimate, tolerance: float) -> tuple[bool, str]:
    if found.disagreement is not None and found.disagreement <= SAME_POLICY:
        return True, f"It decides as {name} in {1 - found.disagreement:.1%} of all decisions."
    if _is_worthless(found):
        return False, f"{_worthless(name, found)} Explore more, or publish by override."
    words = (
        f"Against {name} it brings {found.value:+.4g} per decision "
        f"(interval {found.lower:+.4g} to {found.upper:+.4g})"
    )
    if found.lower >= -tolerance:
        return True, f"{words}, at worst within the tolerated {-tolerance:.4g}."
    if found.upper < -tolerance:
        return False, f"{words}: worse than the tolerated {-tolerance:.4g}."
    return False, f"{words}: a loss beyond the tolerated {-tolerance:.4g} is not ruled out."


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
