"""``hugepfn check``: one step of ``git bisect run``.

git takes 0 for good, 125 for "cannot tell", 1 to 127 else for bad, and stops at 128 and above (git-bisect(1)). So
whatever is not about the commit has to end with 128 or more: a tool that fails must not call a commit bad.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import replace

from harness.campaign.kernels import RunOptions, run_kernel
from harness.errors import ClaimFailed, ExitCode, KernelBuildError, KernelError
from harness.kernel import Kernel
from harness.kernel.build import BuiltSource
from harness.pagetable import Level
from harness.verdict import Outcome, ScenarioResult
from harness.verdict.table import TROUBLE


class Step(enum.IntEnum):
    """What a commit is, as the exit status that git understands."""

    GOOD = ExitCode.OK
    BAD = ExitCode.CLAIM_FAILED
    CANNOT_TELL = ExitCode.CANNOT_TELL
    BROKEN = ExitCode.STOP


def judge(results: Sequence[ScenarioResult]) -> tuple[Step, str]:
    """What the results of a commit say of it, and why.

    A known bug is bad: whoever bisects wants to know where it came from. A skip says that the premise is not met, and
    nothing about the commit.
    """
    by_outcome = {outcome: [one for one in results if one.outcome is outcome] for outcome in Outcome}
    for outcome, step in (
        (Outcome.ERROR, Step.BROKEN),
        (Outcome.FAILED, Step.BAD),
        (Outcome.KNOWN_BUG, Step.BAD),
        (Outcome.SKIPPED, Step.CANNOT_TELL),
    ):
        if by_outcome[outcome]:
            one = by_outcome[outcome][0]
            return step, f"{one.scenario} {one.level or ''}".strip() + f": {outcome.value}: {one.reason}"
    if not results:
        return Step.BROKEN, "nothing was run"
    return Step.GOOD, f"{len(results)} of {len(results)} passed"


def check(tree: str, case: str, options: RunOptions, say: Callable[[str], None]) -> tuple[Step, str]:
    """Builds what is checked out in a tree, boots it, runs one scenario.

    :param case: ``SCENARIO`` or ``SCENARIO:LEVEL``.
    :raises UsageError: no such tree or scenario.
    :raises MachineryError: the tools are broken; it says nothing about the commit.
    """
    scenario, _, level = case.partition(":")
    levels = (Level.from_label(level).label,) if level else options.levels
    spec = BuiltSource.parse(tree).spec
    try:
        image = Kernel.parse(spec).resolve(say)
    except KernelBuildError as error:
        return Step.CANNOT_TELL, f"it does not build: {error}"
    try:
        options.settings(spec).vm(image, (), say).start().close()
    except (KernelError, ClaimFailed) as error:  # ClaimFailed: of the probe
        return Step.CANNOT_TELL, f"it does not boot: {str(error).splitlines()[0]}"
    run = run_kernel(str(image.image), [scenario], replace(options, levels=levels), say)
    if trouble := run.context.get(TROUBLE):
        return Step.BROKEN, str(trouble)
    return judge(run.results)
