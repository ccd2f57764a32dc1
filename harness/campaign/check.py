"""``hugepfn check``: one step of ``git bisect run``."""

from __future__ import annotations

from dataclasses import replace

from harness.campaign.event_stream import RunEvent
from harness.campaign.kernels import RunOptions, run_kernel
from harness.campaign.wanted import choose
from harness.errors import KERNELS_FAULT, KernelBuildError
from harness.events import Event, Say
from harness.kernel import Kernel
from harness.kernel.build import BuiltSource
from harness.machine.vm import VM
from harness.selection.expected import resolve
from harness.selection.selected import Selected
from harness.verdict.bisect import BisectVerdict, judge
from harness.verdict.expected.judge import held_run
from harness.verdict.table import TROUBLE


def check(tree: str, word: Selected, options: RunOptions, say: Say) -> tuple[BisectVerdict, str]:
    """Build what is checked out in a tree, boot it, and run a test.

    :raises UsageError: there is no such tree or test.
    :raises MachineryError: the machinery failed, which says nothing about the commit.
    """
    spec = BuiltSource.parse(tree).spec
    said = resolve(options.expected, choose([word], options.levels).tests, strict=options.strict)
    try:
        image = Kernel.parse(spec).resolve(say)
    except KernelBuildError as error:
        return BisectVerdict.CANNOT_TELL, f"it does not build: {error}"
    try:
        VM(image, config=options.machine(spec), say=say).start().close()
    except KERNELS_FAULT as error:
        return BisectVerdict.CANNOT_TELL, f"it does not boot: {str(error).splitlines()[0]}"
    config = replace(options.config, modules=None)  # they belong to another kernel; the built one has its own

    def show(event: RunEvent) -> None:
        if isinstance(event, Event):
            say(event)

    run = run_kernel(str(image.image), [word], replace(options, config=config), show)
    if trouble := run.context.get(TROUBLE):
        return BisectVerdict.BROKEN, str(trouble)
    return judge(held_run(run, said).results)
