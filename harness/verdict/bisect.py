"""The verdict on a commit, for ``git bisect run``. Pure.

git takes 0 as good, 125 as "cannot tell", every other status from 1 to 127 as bad, and stops at 128 and above
(git-bisect(1)). So everything that is not about the commit has to end with 128 or more: a failing tool must not call a
commit bad.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from harness.errors import ExitCode
from harness.verdict import words
from harness.verdict.claims import Outcome, ScenarioResult


class BisectVerdict(enum.IntEnum):
    """The verdict on a commit, as the exit status that git expects."""

    GOOD = ExitCode.OK
    BAD = ExitCode.CLAIM_FAILED
    CANNOT_TELL = ExitCode.CANNOT_TELL
    BROKEN = ExitCode.STOP


def judge(results: Sequence[ScenarioResult]) -> tuple[BisectVerdict, str]:
    """Return the verdict on a commit from its results, and the reason.

    A known bug is bad, because a bisection looks for the commit that introduced it. A skip means that a precondition is
    not met, which says nothing about the commit. What ended as it was expected to is good.
    """
    by_outcome = {outcome: [one for one in results if one.outcome is outcome] for outcome in Outcome}
    for outcome, step in (
        (Outcome.ERROR, BisectVerdict.BROKEN),
        (Outcome.FAILED, BisectVerdict.BAD),
        (Outcome.KNOWN_BUG, BisectVerdict.BAD),
        (Outcome.SKIPPED, BisectVerdict.CANNOT_TELL),
    ):
        if by_outcome[outcome]:
            one = by_outcome[outcome][0]
            case = f"{one.scenario} {one.level or ''}".strip()
            return step, f"{case}: {words.with_reason(outcome, words.of_outcome(outcome), words.reason(one))}"
    if not results:
        return BisectVerdict.BROKEN, "nothing was run"
    expected = len(by_outcome[Outcome.EXPECTED])
    also = f", {expected} as expected" if expected else ""
    return BisectVerdict.GOOD, f"{len(by_outcome[Outcome.PASSED])} of {len(results)} passed{also}"
