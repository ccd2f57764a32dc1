"""The requests to a live machine: each public method is one that a command may call from its own process."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import queue
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.campaign.session import Stopping, rerun_session
from harness.errors import ExitCode, HugepfnError, MachineryError, PremiseNotMet, UsageError
from harness.guest.agent import UNLIMITED_S
from harness.guest.exec import finish
from harness.guest.job import ExitStatus, Input, Job
from harness.introspect.address_spaces import AddressSpaces, DeviceRoot, MachineRoot
from harness.introspect.gdb import GdbStub, gdb_is_attached
from harness.introspect.processes import ProcessRoot, ProcessVmas, RangeWalk
from harness.machine.vm import VM
from harness.outputs import Output
from harness.pagetable import Walk
from harness.qemu.end_error import GAVE_UP
from harness.qemu.spec import Root
from harness.selection.selected import Selected
from harness.session.outlet import Outlet
from harness.session.state import Halt, HaltCause, MachineState, halt_words

if TYPE_CHECKING:
    from harness.guest.sshd import SshAddress
    from harness.verdict.expected.expectation import Expectation

_READ_BYTES = 64 << 10
_TURN_TIMEOUT_S = 1.0  # looking at the machine takes less


class Session:
    """A running machine, shared by several commands that take turns."""

    def __init__(self, vm: VM, name: str = "") -> None:
        """:param name: of the session, for messages; empty if the machine is only for one command."""
        self.vm = vm
        self._name = name
        self._may_stand = self._paused = False  # whether it was stopped on request, and whether by :meth:`pause`
        self._turn = threading.RLock()  # only one command at a time stops the machine or asks the agent for a file

    @functools.cached_property
    def _spaces(self) -> AddressSpaces:
        """The tables of virtual machines and devices, which few commands ask for."""
        return AddressSpaces(self.vm, self.vm.processes, self.vm.kvm_roots)

    # --- commands in the guest -------------------------------------------------------------------

    def exec(
        self,
        argv: Sequence[str],
        program: str | None,
        environment: Mapping[str, str],
        streams: Sequence[int],
        signals: queue.SimpleQueue[int | None],
    ) -> ExitStatus:
        """Run a command in the guest on the caller's standard streams.

        A reader that takes nothing stops the command, as it would on this host; see :class:`Outlet`.

        :param argv: its words; {bdf} and {group} are replaced by the device's address and group.
        :param program: a file on the host that is sent first and replaces ``argv[0]``.
        :param streams: descriptors of standard input, output and error.
        :param signals: signals for the command; None ends the queue.
        """
        broken: list[OSError] = []

        def on_broken(error: OSError) -> None:
            broken.append(error)
            signals.put(signal.SIGPIPE)

        with Outlet(streams[1], streams[2], on_broken) as outlet:
            with self._turn:
                self._check_runs()
                words = self._words(argv, program)
                running = self.vm.agent.run(
                    words, environment, reads=Input.PIPE, sink=outlet.sink, full=lambda: outlet.full
                )
                job = self.vm.on_loop(running)
            outlet.on_room(lambda: self.vm.agent.has_room(job))
            with _feeding(self.vm, job, streams[0]), _thread(self._pass_on, job, signals, outlet):
                try:
                    ended = self.vm.on_loop(finish(self.vm.agent, job, UNLIMITED_S))
                    outlet.end()
                finally:
                    signals.put(None)
        for error in broken:
            if error.errno != errno.EPIPE:
                raise MachineryError(f"{words[0]}: its output cannot be written: {error.strerror}; it was sent SIGPIPE")
        return ended

    def _words(self, argv: Sequence[str], program: str | None) -> list[str]:
        """Return the words of the command, after sending its program to the guest."""
        known = self.vm.ready
        words = [word.replace("{bdf}", known["vfio_bdf"]).replace("{group}", known["vfio_group"]) for word in argv]
        if program is not None:  # a guest with the host's root already has it
            words[0] = self.vm.send(program) if self.vm.spec.root is Root.INITRAMFS else program
        return words

    def _pass_on(self, job: Job, signals: queue.SimpleQueue[int | None], outlet: Outlet) -> None:
        while (number := signals.get()) is not None:
            outlet.hurry()
            with contextlib.suppress(Exception):  # the job or the machine has just ended
                self.vm.on_loop(self.vm.agent.kill(job, signal.Signals(number)))

    def rerun(
        self,
        words: Sequence[Selected],
        levels: Sequence[str],
        entries: bool,
        stdout: int,
        width: int | None,
        stopping: Stopping,
        expected: Sequence[Expectation] = (),
    ) -> ExitCode:
        """Run tests on this machine with their current files.

        :param stopping: ends the run after the current test.
        :param width: width of the caller's terminal; None if it has none.
        """
        import pytest
        from rich.console import Console

        from harness.campaign.reporter import RunReporter

        if self.vm.known_kernel is None:
            raise UsageError("the kernel of this kept machine was removed or rebuilt, so claims cannot be checked")
        with self._turn, Output(os.dup(stdout)) as file:
            self._check_runs()
            console = Console(file=file, highlight=False, force_terminal=width is not None, width=width)
            reporter = RunReporter(console, quiet=not entries)
            status = rerun_session(pytest, reporter, words, levels, self.vm, stopping, expected)
            if file.lost and status is not ExitCode.CLAIM_FAILED:
                raise MachineryError(f"standard output cannot be written: {file.lost}; it is not complete")
            return status

    # --- interactive use ------------------------------------------------------------------------------------

    def ssh_address(self) -> SshAddress:
        """The address at which SSH reaches the guest; the first call installs the server."""
        self.check_runs()
        if self.vm.has_ssh:
            return self.vm.ssh_address()
        with self._turn:
            return self.vm.ssh_address()

    # --- looking -----------------------------------------------------------------------------------

    def look(self, pid: int, start: int, end: int | None) -> tuple[ProcessRoot, Walk | RangeWalk]:
        """The walk to one address of a process, or everything in [start, end), at one stop."""
        with self._turn:
            try:
                self.vm.processes.learn()
            except HugepfnError:
                self._check_runs()  # the guest cannot be asked while it stands still
                raise
            with self.vm.paused():
                found = self.vm.walk(pid, start) if end is None else self.vm.walk_range(pid, start, end)
                return self.vm.process_root(pid), found

    def look_at_device(self, bdf: str, start: int, end: int | None) -> tuple[DeviceRoot, Walk | RangeWalk | None]:
        """The walk to one IO virtual address of a device, or everything in [start, end), at one stop."""
        with self._turn:
            return self._spaces.device(bdf, start, end)

    def look_at_machine(
        self, pid: int, vm_fd: int | None, start: int, end: int | None
    ) -> tuple[MachineRoot, Walk | RangeWalk | None]:
        """The walk to one guest-physical address of a virtual machine, or everything in [start, end), at one stop."""
        with self._turn:
            try:
                self._spaces.learn_machines()
            except HugepfnError:
                self._check_runs()  # the guest cannot be asked while it stands still
                raise
            return self._spaces.machine(pid, vm_fd, start, end)

    def maps(self, pid: int) -> ProcessVmas:
        """Return the VMAs of a process, with the leaves in each."""
        with self._turn:
            self._check_runs()
            return self.vm.vmas(pid)

    def gdb(self) -> GdbStub:
        """Stop the machine for gdb."""
        with self._turn:
            self._may_stand, self._paused = True, False
            return self.vm.gdb()

    def wait_until_it_runs(self) -> None:
        """Wait until gdb has resumed the machine."""
        self.vm.on_loop(self.vm.qemu.until_resumed(UNLIMITED_S))

    def prepare_for_people(self) -> None:
        """Send the scenarios' programs to the guest, as far as they compile and the machine accepts them now."""
        with self._turn, contextlib.suppress(HugepfnError):
            self.vm.programs.push_all()

    def log(self) -> str:
        """The kernel log."""
        return self.vm.kernel_log

    # --- standing still ----------------------------------------------------------------------------

    def pause(self) -> MachineState:
        """Stop the machine until :meth:`resume`; it can be walked meanwhile.

        :returns: its state before.
        """
        with self._turn:
            before = self._halt()
            if before is None:
                with contextlib.suppress(PremiseNotMet):  # then there are no walks
                    self.vm.processes.learn()
                    if self.vm.spec.kvm:
                        self._spaces.learn_machines()
                self.vm.on_loop(self.vm.qemu.follow_stops())
                self.vm.on_loop(self.vm.qemu.stop())
                self._may_stand = self._paused = True
            return MachineState(before)

    def resume(self) -> MachineState:
        """Let the machine go on, whoever stopped it.

        :returns: its state before.
        :raises UsageError: QEMU cannot go on.
        """
        with self._turn:
            before = self._halt()
            if before is not None and before.cause is HaltCause.QEMU:
                raise UsageError(halt_words(before, self._name))
            self.vm.on_loop(self.vm.qemu.resume())
            return MachineState(before)

    def check_runs(self) -> None:
        """Check that the machine was not stopped. A command that looks at it also stops it, but only for a moment.

        :raises UsageError: it stands still; the message says since when, why, and what lets it go on.
        """
        if self._may_stand:
            with self._turn:
                self._check_runs()

    def _check_runs(self) -> None:
        """Do the same. The caller must hold the turn, in which no other command stops the machine."""
        if (halt := self._halt()) is not None:
            raise UsageError(halt_words(halt, self._name))

    def _halt(self) -> Halt | None:
        """Return whether and why the machine stands still now, from QEMU. The caller must hold the turn."""
        qemu = self.vm.qemu
        if qemu.exit_status is not None or (state := self.vm.on_loop(qemu.run_state())) == "running":
            return None
        stood_s = qemu.standstill.present_s
        since = time.time() - stood_s if stood_s is not None else None
        if state in GAVE_UP:
            return Halt(HaltCause.QEMU, since if since is not None else qemu.last_stop.at)
        if not self._may_stand:
            return None
        if self.vm.on_loop(gdb_is_attached(qemu)):
            return Halt(HaltCause.GDB, since)
        return Halt(HaltCause.PAUSED if self._paused else HaltCause.NO_GDB, since)

    def state(self) -> MachineState:
        """The machine's state."""
        if self.vm.qemu.exit_status is not None:
            return MachineState(ended=str(self.vm.qemu.end_error("")))
        if not self._may_stand or not self._turn.acquire(timeout=_TURN_TIMEOUT_S):
            return MachineState()  # a command that holds the turn for so long has checked that it runs
        try:
            return MachineState(self._halt())
        finally:
            self._turn.release()


@contextlib.contextmanager
def _thread(target: Callable[..., None], *args: Any) -> Iterator[None]:
    """Run a thread that ends with the block."""
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextlib.contextmanager
def _feeding(vm: VM, job: Job, stdin: int) -> Iterator[None]:
    """Feed a job from a descriptor, until the block ends."""
    wake, waker = os.pipe()

    def feed() -> None:
        with contextlib.suppress(Exception):  # the job or the machine is gone, which its waiter will notice
            while True:
                ready, _, _ = select.select([stdin, wake], [], [])
                if wake in ready:
                    return
                data = os.read(stdin, _READ_BYTES)
                vm.on_loop(vm.agent.feed(job, data))
                if not data:
                    return

    try:
        with _thread(feed):
            try:
                yield
            finally:
                os.close(waker)
    finally:
        os.close(wake)
