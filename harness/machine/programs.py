"""The guest programs of one machine: compiled, sent and started, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from harness.errors import HugepfnError, MachineryError, ProtocolError, UsageError
from harness.guest import bounds
from harness.guest.compiler import compile_program, find_source, guest_tests_dir
from harness.introspect.kvm import KvmRoots
from harness.observe.kernel_watch import KernelWatch
from harness.observe.owner import EndingRun, RunOwner
from harness.observe.run import GuestRun
from harness.observe.witness import Witness
from harness.pagetable import Region
from harness.qemu.deadline import check_runs
from harness.qemu.spec import MachineSpec
from harness.verdict import Taint

_INTERRUPTED_S = 0.5  # after Ctrl-C the user does not want to wait for a guest that cleans up


class ProgramHost(RunOwner, Protocol):
    """What programs need of their machine. :class:`harness.machine.vm.VM` has it."""

    @property
    def bars(self) -> tuple[Region, ...]:
        """Where each memory BAR of the device is."""

    @property
    def spec(self) -> MachineSpec:
        """The spec of the machine."""

    kvm_roots: KvmRoots  # finds nested tables

    @property
    def boot_taint(self) -> Taint:
        """The taint that says nothing about a program."""


class Programs:
    """The programs of a machine.

    :param search: folders in which programs are searched before those of the scenarios.
    """

    def __init__(self, host: ProgramHost, search: Sequence[Path]) -> None:
        self._host = host
        self._search = tuple(search)
        self._run: GuestRun | None = None
        self._early: bytearray | None = None
        self._pushed: dict[str, Path] = {}
        self._broken = False

    def add_search(self, folder: Path) -> None:
        """Search one more folder for programs, before the others."""
        self._search = (folder, *(other for other in self._search if other != folder))

    def push_all(self) -> None:
        """Send the programs of all scenarios to the guest, for people, who find them in PATH."""
        for source in sorted(guest_tests_dir().glob("*.c")):
            self.push(source.stem)

    def push(self, program: str | Path) -> str:
        """Send a program to the guest, unless it has this build of it, and return its path there.

        :raises CompileError: it does not compile.
        """
        built = compile_program(find_source(str(program), self._search))
        path = f"/tests/{built.name}"
        if self._pushed.get(path) != built.stripped:
            self._host.on_loop(self._host.agent.put(path, built.read()))
            self._pushed[path] = built.stripped
        return path

    def check_idle(self) -> None:
        """Check that a program can be started.

        :raises UsageError: another one still runs.
        :raises MachineryError: the guest did not survive the previous one.
        """
        if self._run is not None:
            raise UsageError(f"{self._run.program} is still running; leave its `with` block first")
        if self._broken:
            raise MachineryError("the guest did not survive the previous program; boot another VM")

    def launch(self, program: str | Path, args: Sequence[str], timeout_s: float) -> GuestRun:
        """Compile a program and send it, if that is necessary, and start it."""
        path = self.push(program)
        return self._host.on_loop(self._launch([path, *args], timeout_s))

    async def _launch(self, argv: Sequence[str], timeout_s: float) -> GuestRun:
        host = self._host
        kernel = await KernelWatch.begin(host.qemu, host.agent, host.boot_taint, argv[0].rsplit("/", 1)[-1])
        witness = Witness(host.qemu, host.bars, host.layout, host.kvm_roots if host.spec.kvm else None)
        job_started = asyncio.ensure_future(host.agent.run(argv))
        # The program may send events before the agent reports that it runs: keep them.
        self._early = early = bytearray()
        job = await job_started
        run = GuestRun(host, job, witness, timeout_s, kernel)
        run.receive(bytes(early))
        self._early = None
        self._run = run
        return run

    def receive(self, data: bytes) -> None:
        """Take what arrived on the events channel."""
        if self._run is not None:
            self._run.receive(data)
        elif self._early is not None:
            self._early += data
            if len(self._early) > bounds.EARLY_MAX_BYTES:
                raise ProtocolError(
                    f"events: a program that is being started sent {len(self._early)} bytes, expected one line "
                    f"(at most {bounds.EARLY_MAX_BYTES} bytes) until it is registered; use hp_start() to start it"
                )

    def forget(self, run: EndingRun) -> None:
        """The run is over."""
        if self._run is run:
            self._run = None

    def abandon(self, run: EndingRun, error: BaseException) -> None:
        """The run ended with an error: end its processes, or give the guest up if it no longer answers."""
        if self._broken:
            return
        interrupted = isinstance(error, KeyboardInterrupt)
        try:
            check_runs(self._host.qemu.pid)
            self._host.on_loop(asyncio.wait_for(run.end(), _INTERRUPTED_S if interrupted else None))
        except (TimeoutError, HugepfnError):
            self._broken = True
