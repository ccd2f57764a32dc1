"""``hugepfn check``: one step of ``git bisect run``."""

from __future__ import annotations

from harness.bisection.symptom import Trait, traits_of
from harness.campaign.kernels import RunOptions
from harness.campaign.progress import Live
from harness.campaign.units.executing import executing
from harness.campaign.units.unit import Unit, Work, run_one
from harness.campaign.wanted import choose
from harness.kernel.build import BuiltSource
from harness.selection.expected import resolve
from harness.selection.selected import Selected
from harness.verdict import Outcome
from harness.verdict.bisect import BisectVerdict, judge
from harness.verdict.expected.judge import held_run
from harness.verdict.table import TROUBLE


def check(tree: str, word: Selected, options: RunOptions, sought: Trait | None = None) -> tuple[BisectVerdict, str]:
    """Build what is checked out in a tree, boot it, and run a test.

    :param sought: what makes a commit bad; None for any failure.
    :raises UsageError: there is no such tree or test.
    :raises MachineryError: the machinery failed, which says nothing about the commit.
    """
    spec = BuiltSource.parse(tree).spec
    said = resolve(options.expected, choose([word], options.levels).tests, strict=options.strict)
    with Live() as live, executing(live, options.scheduler) as executor:
        answer = run_one(executor, Unit(spec, (word,), options, spec, Work.TRY))
    if answer.run is None:
        return BisectVerdict.CANNOT_TELL, answer.unusable
    if trouble := answer.run.context.get(TROUBLE):
        return BisectVerdict.BROKEN, str(trouble)
    results = held_run(answer.run, said).results
    verdict, reason = judge(results)
    if verdict is BisectVerdict.BAD and sought is not None:
        failing = [one for one in results if one.outcome in (Outcome.FAILED, Outcome.KNOWN_BUG)]
        if not any(sought in traits_of(one) for one in failing):
            return BisectVerdict.CANNOT_TELL, f"it fails otherwise: {reason}"
    return verdict, reason
