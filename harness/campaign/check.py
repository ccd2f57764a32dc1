"""``hugepfn check``: one step of ``git bisect run``.

git takes 0 as good, 125 as "cannot tell", every other status from 1 to 127 as bad, and stops at 128 and above
(git-bisect(1)). So everything that is not about the commit has to end with 128 or more: a failing tool must not call a
commit bad.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import replace

from harness.campaign.event_stream import RunEvent
from harness.campaign.kernels import RunOptions, run_kernel
from harness.campaign.wanted import choose
from harness.errors import KERNELS_FAULT, ExitCode, KernelBuildError
from harness.events import Event, Say
from harness.kernel import Kernel
from harness.kernel.build import BuiltSource
from harness.machine.vm import VM
from harness.selected import Selected
from harness.verdict import Outcome, ScenarioResult, words
from harness.verdict.table import TROUBLE


class BisectVerdict(enum.IntEnum):
    """The verdict on a commit, as the exit status that git expects."""

    GOOD = ExitCode.OK
    BAD = ExitCode.CLAIM_FAILED
    CANNOT_TELL = ExitCode.CANNOT_TELL
    BROKEN = ExitCode.STOP


def judge(results: Sequence[ScenarioResult]) -> tuple[BisectVerdict, str]:
    """The verdict on a commit from its results, and the reason.

    A known bug is bad, because whoever bisects wants to know where it came from. A skip means that a precondition is
    not met, and says nothing about the commit.
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
            return step, f"{one.scenario} {one.level or ''}".strip() + f": {outcome.value}: {words.reason(one)}"
    if not results:
        return BisectVerdict.BROKEN, "nothing was run"
    return BisectVerdict.GOOD, f"{len(results)} of {len(results)} passed"


def check(tree: str, word: Selected, options: RunOptions, say: Say) -> tuple[BisectVerdict, str]:
    """Build what is checked out in a tree, boot it, and run a test.

    :raises UsageError: no such tree or test.
    :raises MachineryError: the machinery failed, which says nothing about the commit.
    """
    spec = BuiltSource.parse(tree).spec
    choose([word], options.levels)
    try:
        image = Kernel.parse(spec).resolve(say)
    except KernelBuildError as error:
        return BisectVerdict.CANNOT_TELL, f"it does not build: {error}"
    try:
        VM(image, config=options.machine(spec), say=say).start().close()
    except KERNELS_FAULT as error:
        return BisectVerdict.CANNOT_TELL, f"it does not boot: {str(error).splitlines()[0]}"
    config = replace(options.config, modules=None)  # those of another kernel; ours has its own beside it

    def show(event: RunEvent) -> None:
        if isinstance(event, Event):
            say(event)

    run = run_kernel(str(image.image), [word], replace(options, config=config), show)
    if trouble := run.context.get(TROUBLE):
        return BisectVerdict.BROKEN, str(trouble)
    return judge(run.results)
