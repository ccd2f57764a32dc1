"""The requests to a live machine: each public method is one that a command may call from its own process."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.campaign.session import Stopping, rerun_session
from harness.errors import ExitCode, HugepfnError, MachineryError, UsageError
from harness.guest.agent import UNLIMITED_S, ExitStatus, Input, Job, Stream
from harness.guest.exec import finish
from harness.introspect.gdb import GdbStub
from harness.introspect.processes import ProcessAreas, ProcessRoot, RangeWalk
from harness.machine.vm import VM
from harness.outputs import Output, write_all
from harness.pagetable import Walk
from harness.qemu.spec import Root

if TYPE_CHECKING:
    from harness.guest.sshd import SshAddress

_READ_BYTES = 64 << 10


class Session:
    """A running machine, shared by several commands that take turns."""

    def __init__(self, vm: VM) -> None:
        self.vm = vm
        self._turn = threading.RLock()  # only one command at a time stops the machine or asks the agent for a file

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

        :param argv: its words; {bdf} and {group} are replaced by the device's address and group.
        :param program: a file on the host that is sent first and replaces ``argv[0]``.
        :param streams: descriptors of standard input, output and error.
        :param signals: signals for the command; None ends the queue.
        """
        with self._turn:
            known = self.vm.ready
            words = [word.replace("{bdf}", known["vfio_bdf"]).replace("{group}", known["vfio_group"]) for word in argv]
            if program is not None:  # a guest with the host's root already has it
                words[0] = self.vm.send(program) if self.vm.spec.root is Root.INITRAMFS else program
            out: queue.Queue[tuple[int, bytes] | None] = queue.Queue()

            def sink(stream: Stream, data: bytes) -> None:
                out.put((streams[1] if stream is Stream.OUT else streams[2], data))

            job = self.vm.on_loop(self.vm.agent.run(words, environment, reads=Input.PIPE, sink=sink))
        broken: dict[int, OSError] = {}
        with (
            _thread(_write_all, out, broken, lambda: signals.put(signal.SIGPIPE)),
            _feeding(self.vm, job, streams[0]),
            _thread(self._pass_on, job, signals),
        ):
            try:
                ended = self.vm.on_loop(finish(self.vm.agent, job, UNLIMITED_S))
            finally:
                signals.put(None)
                out.put(None)
        for error in broken.values():
            if error.errno != errno.EPIPE:
                raise MachineryError(f"{words[0]}: its output cannot be written: {error.strerror}; it got SIGPIPE")
        return ended

    def _pass_on(self, job: Job, signals: queue.SimpleQueue[int | None]) -> None:
        while (number := signals.get()) is not None:
            with contextlib.suppress(Exception):  # the job or the machine has just ended
                self.vm.on_loop(self.vm.agent.kill(job, signal.Signals(number)))

    def rerun(
        self,
        scenarios: Sequence[str],
        levels: Sequence[str],
        entries: bool,
        stdout: int,
        width: int | None,
        stopping: Stopping,
    ) -> ExitCode:
        """Run scenarios on this machine with their current files.

        :param stopping: ends the run after the current test.
        :param width: width of the caller's terminal; None if it has none.
        """
        import pytest
        from rich.console import Console

        from harness.campaign.reporter import RunReporter

        if not hasattr(self.vm, "kernel"):
            raise UsageError("the kernel of this kept machine is no longer here, so nothing can be claimed of it")
        with self._turn, Output(os.dup(stdout)) as file:
            console = Console(file=file, highlight=False, force_terminal=width is not None, width=width)
            status = rerun_session(pytest, RunReporter(console, entries), scenarios, levels, self.vm, stopping)
            if file.lost and status is not ExitCode.CLAIM_FAILED:
                raise MachineryError(f"standard output cannot be written: {file.lost}; it is not complete")
            return status

    # --- interactive use ------------------------------------------------------------------------------------

    def ssh_address(self) -> SshAddress:
        """The address at which SSH reaches the guest; the first call installs the server."""
        if self.vm.has_ssh:
            return self.vm.ssh_address()
        with self._turn:
            return self.vm.ssh_address()

    # --- looking -----------------------------------------------------------------------------------

    def look(self, pid: int, start: int, end: int | None) -> tuple[ProcessRoot, Walk | RangeWalk]:
        """The walk to one address of a process, or everything in [start, end), at one stop."""
        with self._turn:
            self.vm.processes.learn()
            with self.vm.paused():
                found = self.vm.walk(pid, start) if end is None else self.vm.walk_range(pid, start, end)
                return self.vm.process_root(pid), found

    def maps(self, pid: int) -> ProcessAreas:
        """The VMAs of a process, with the leaves in each."""
        with self._turn:
            return self.vm.areas(pid)

    def gdb(self) -> GdbStub:
        """Stop the machine for gdb."""
        with self._turn:
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

    def state(self) -> str:
        """The machine's state: "runs", "stands still", or how it ended."""
        if self.vm.qemu.exit_status is not None:
            return str(self.vm.qemu.end_error(""))
        return "stands still" if self.vm.qemu.stopped else "runs"


@contextlib.contextmanager
def _thread(target: Callable[..., None], *args: Any) -> Iterator[None]:
    """Run a thread that ends with the block."""
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _write_all(
    out: queue.Queue[tuple[int, bytes] | None], broken: dict[int, OSError], on_broken: Callable[[], None]
) -> None:
    """Write a job's output; report once, with the reason, if a descriptor no longer accepts it."""
    while (item := out.get()) is not None:
        descriptor, data = item
        if descriptor not in broken:
            try:
                write_all(descriptor, data)
            except OSError as error:
                broken[descriptor] = error
                on_broken()


@contextlib.contextmanager
def _feeding(vm: VM, job: Job, stdin: int) -> Iterator[None]:
    """Feed a job from a descriptor, until the block ends."""
    wake, waker = os.pipe()

    def feed() -> None:
        with contextlib.suppress(Exception):  # the job or the machine is gone, which whoever waits for it will notice
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
