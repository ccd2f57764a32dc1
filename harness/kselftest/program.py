"""A program that knows nothing of hugepfn, run to its end in the guest: the kernel's own selftests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from harness.errors import DeadlineError
from harness.guest.job import ExitStatus, Job
from harness.machine.vm import VM
from harness.observe.kernel_watch import KernelWatch
from harness.printable import printable
from harness.verdict import parse_taint

_LINE_MAX = 160
_NOTHING: Mapping[str, str] = {}
_ONE_STREAM = {"HUGEPFN_ONE_STREAM": "1"}  # guest_tests/lib/agent/spawn.c


class PlainRun:
    """A program and its output, which can be read however the program ended.

    :param path: where it is in the guest.
    """

    def __init__(self, vm: VM, path: str, args: Sequence[str] = (), environment: Mapping[str, str] = _NOTHING):
        self.vm = vm
        self.program = path.rsplit("/", 1)[-1]
        self.kernel = vm.on_loop(KernelWatch.begin(vm.qemu, vm.agent, parse_taint(vm.ready["taint"]), self.program))
        self.job: Job = vm.on_loop(vm.agent.run([path, *args], {**environment, **_ONE_STREAM}))

    @property
    def output(self) -> str:
        """What it has printed so far, on standard output and error."""
        return printable(bytes(self.job.stdout))

    def finish(self, timeout_s: float) -> ExitStatus:
        """Wait for its end, and read the kernel log up to then.

        :param timeout_s: seconds that it may take.
        :raises DeadlineError: it did not end in time; the message has its last line.
        :raises KernelDied: the kernel died first.
        """
        return self.vm.on_loop(self._finish(timeout_s))

    async def _finish(self, timeout_s: float) -> ExitStatus:
        what = f"the end of {self.program}"
        try:
            ended = await self.vm.qemu.expect(asyncio.shield(self.job.exited), timeout_s, what)
        except DeadlineError:
            last_words = await self.kernel.last_words()
            raise DeadlineError(
                f"waiting for {what}: nothing within {timeout_s:g} s; {self._heard()}; {last_words}"
            ) from None
        await self.kernel.settle()
        return ended

    def _heard(self) -> str:
        lines = self.output.strip().splitlines()
        return f"its last line was {lines[-1].strip()[:_LINE_MAX]!r}" if lines else "it printed nothing"
