"""Who runs a unit of work of a bisection: this test on this kernel, once. The answer is a value.

:class:`UnitExecutor` is all that a bisection knows of it, so that another one can run the units elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Protocol

from harness.campaign.event_stream import RunEvent
from harness.campaign.kernels import RunOptions, run_kernel
from harness.errors import KERNELS_FAULT, KernelBuildError, MachineryError
from harness.events import Event, Say
from harness.kernel import Kernel
from harness.kernel.build import BuiltSource
from harness.machine.vm import VM
from harness.selection.selected import Selected
from harness.verdict import Outcome, Run, words
from harness.verdict.table import TROUBLE


@dataclass(frozen=True)
class Unit:
    """A piece of work."""

    spec: str
    """Of the kernel."""
    test: Selected
    known: Collection[str] = ()
    """The keys of kernels that need not be run, because they have been."""


@dataclass(frozen=True)
class UnitAnswer:
    """What became of a unit."""

    key: str = ""
    """The identity of the kernel, by its content; "" if there is none."""
    unusable: str = ""
    """Why the kernel cannot be run; "" if it can."""
    run: Run | None = None
    """None if it was not run."""


class UnitExecutor(Protocol):
    """Runs units."""

    def run(self, unit: Unit) -> UnitAnswer:
        """Run a unit to its end.

        :raises MachineryError: the machinery failed, which says nothing about the kernel.
        """
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """Runs units on this host, one after the other."""

    options: RunOptions
    say: Say

    def run(self, unit: Unit) -> UnitAnswer:
        """Build or fetch the kernel, boot it, and run the test in a process of its own."""
        kernel = Kernel.parse(unit.spec)
        try:
            image = kernel.resolve(self.say)
        except KernelBuildError as error:
            return UnitAnswer(unusable=f"it does not build: {str(error).splitlines()[0]}")
        if image.key in unit.known:
            return UnitAnswer(image.key)
        try:
            VM(image, config=self.options.machine(unit.spec), say=self.say).start().close()
        except KERNELS_FAULT as error:
            return UnitAnswer(image.key, f"it does not boot: {str(error).splitlines()[0]}")
        options, spec = self.options, unit.spec
        if isinstance(kernel.source, BuiltSource):  # by its file, so that its source is not looked at again
            options, spec = replace(options, config=replace(options.config, modules=None)), str(image.image)
        return UnitAnswer(image.key, run=checked(run_kernel(spec, [unit.test], options, self._show)))

    def _show(self, event: RunEvent) -> None:
        if isinstance(event, Event):
            self.say(event)


def checked(run: Run) -> Run:
    """Return a run that says something about the kernel.

    :raises MachineryError: the machinery failed.
    """
    if trouble := run.context.get(TROUBLE):
        raise MachineryError(str(trouble))
    if error := next((one for one in run.results if one.outcome is Outcome.ERROR), None):
        raise MachineryError(words.reason(error) or words.errors(error))
    return run
