"""``hugepfn check``: one step of ``git bisect run``.

git takes 0 for good, 125 for "cannot tell", 1 to 127 else for bad, and stops at 128 and above (git-bisect(1)). So
whatever is not about the commit has to end with 128 or more: a tool that fails must not call a commit bad.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.campaign.kernels import RunOptions, run_kernel
from harness.errors import BootError, KernelBuildError, UsageError
from harness.kernel import Kernel
from harness.settings import Settings
from harness.verdict import Outcome, ScenarioResult
from harness.verdict.table import TROUBLE


class Step(enum.IntEnum):
    """What a commit is, as the exit status that git understands."""

    GOOD = 0
    BAD = 1
    CANNOT_TELL = 125
    BROKEN = 128


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
    if level and level not in ("pte", "pmd", "pud"):
        raise UsageError(f"{case!r}: valid levels are pte, pmd, pud")
    levels = (level,) if level else options.levels
    spec = tree if ":" in tree else f"tree:{Path(tree).resolve()}"
    try:
        image = Kernel.parse(spec).resolve(say)
    except KernelBuildError as error:
        return Step.CANNOT_TELL, f"it does not build: {error}"
    settings = Settings(
        kernel=spec,
        accel=options.accel,
        smp=options.smp,
        memory_mib=options.memory_mib,
        cpu=options.cpu,
        append=tuple(options.append.split()),
        ram_dir=options.ram_dir,
        boot_timeout_s=options.boot_timeout_s,
        clone=not options.no_clone,
    )
    try:
        settings.vm(image, (), say).start().close()
    except BootError as error:
        return Step.CANNOT_TELL, f"it does not boot: {str(error).splitlines()[0]}"
    run = run_kernel(str(image.image), [scenario], RunOptions(**{**vars(options), "levels": levels}), say)
    if trouble := run.context.get(TROUBLE):
        return Step.BROKEN, str(trouble)
    return judge(run.results)
