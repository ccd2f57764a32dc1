"""Runs units on this host, one after the other, each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.campaign.event_stream import RunEvent
from harness.campaign.kernels import run_kernel
from harness.campaign.units.unit import Answers, Show, Unit, UnitAnswer, UnitStarted, Work, unbuilt
from harness.errors import KERNELS_FAULT, KernelBuildError
from harness.events import Event
from harness.kernel import Kernel
from harness.kernel.build import BuiltSource
from harness.machine.vm import VM
from harness.verdict import Run


@dataclass(frozen=True)
class LocalExecutor:
    """Runs units on this host.

    :ivar show: called with everything that happens.
    """

    show: Show

    def run(self, units: Sequence[Unit]) -> Answers:
        """Run units in their order."""
        for number, unit in enumerate(units):
            self.show(unit, UnitStarted())
            yield number, UnitAnswer(run=self._run(unit)) if unit.work is Work.RUN else self._tried(unit)

    def _run(self, unit: Unit) -> Run:
        def say(event: RunEvent) -> None:
            self.show(unit, event)

        return run_kernel(unit.spec, unit.tests, unit.options, say)

    def _tried(self, unit: Unit) -> UnitAnswer:
        """Build or fetch the kernel, boot it, and run the tests, as far as that is wanted.

        :raises MachineryError: the kernel cannot be fetched or built, or no machine can be started here.
        """

        def say(event: Event) -> None:
            self.show(unit, event)

        kernel = Kernel.parse(unit.spec)
        try:
            image = kernel.resolve(say)
        except KernelBuildError as error:
            return unbuilt(unit, str(error))
        if unit.work is Work.BUILD or image.key in unit.known:
            return UnitAnswer(image.key)
        try:
            if not unit.boots:
                VM(image, config=unit.options.machine(unit.spec), say=say).start().close()
        except KERNELS_FAULT as error:
            return UnitAnswer(image.key, f"it does not boot: {str(error).splitlines()[0]}")
        if isinstance(kernel.source, BuiltSource):  # by its file, so that its source is not looked at again
            config = replace(unit.options.config, modules=None)  # they belong to another kernel
            unit = replace(unit, spec=str(image.image), options=replace(unit.options, config=config))
        return UnitAnswer(image.key, run=self._run(unit))
