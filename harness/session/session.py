"""What can be asked of a live machine: each public method is a verb that a command may call from its own process."""

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
from harness.machine import VM
from harness.machine.agent import UNLIMITED_S, ExitStatus, Input, Job, Stream
from harness.machine.command import finish
from harness.machine.gdbstub import GdbStub
from harness.machine.processes import ProcessAreas, ProcessRoot, RangeWalk
from harness.machine.spec import Root
from harness.outputs import Output, write_all
from harness.pagetable import Walk

if TYPE_CHECKING:
    from harness.machine.sshd import SshAddress

_READ_BYTES = 64 << 10


class Session:
    """A machine that runs, and the order in which several commands use it."""

    def __init__(self, vm: VM) -> None:
        self.vm = vm
        self._turn = threading.RLock()  # one command at a time stops the machine or asks the agent for a file

    # --- commands in the guest -------------------------------------------------------------------

    def exec(
        self,
        argv: Sequence[str],
        program: str | None,
        environment: Mapping[str, str],
        streams: Sequence[int],
        signals: queue.SimpleQueue[int | None],
    ) -> ExitStatus:
        """Runs a command in the guest on the caller's standard streams.

        :param argv: in which {bdf} and {group} stand for where the device is.
        :param program: a file of the host's that is sent over first, and takes the place of ``argv[0]``.
        :param streams: descriptors: standard input, output and error.
        :param signals: for the command; None ends the listening.
        """
        with self._turn:
            known = self.vm.ready
            words = [word.replace("{bdf}", known["vfio_bdf"]).replace("{group}", known["vfio_group"]) for word in argv]
            if program is not None:  # a guest with the host's root has it already
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
                ended = self.vm.on_loop(finish(self.vm.machine, job, UNLIMITED_S))
            finally:
                signals.put(None)
                out.put(None)
        for error in broken.values():
            if error.errno != errno.EPIPE:
                raise MachineryError(f"{words[0]}: its output cannot be written: {error.strerror}; it got SIGPIPE")
        return ended

    def _pass_on(self, job: Job, signals: queue.SimpleQueue[int | None]) -> None:
        while (number := signals.get()) is not None:
            with contextlib.suppress(Exception):  # it has just ended, or the machine has
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
        """Runs scenarios on this very machine, with what their files say now.

        :param stopping: ends it after the test at hand.
        :param width: of the caller's terminal; None where it is none.
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

    # --- people ------------------------------------------------------------------------------------

    def ssh_address(self) -> SshAddress:
        """Where SSH reaches the guest; its server is installed at the first call."""
        if self.vm.has_ssh:
            return self.vm.ssh_address()
        with self._turn:
            return self.vm.ssh_address()

    # --- looking -----------------------------------------------------------------------------------

    def look(self, pid: int, start: int, end: int | None) -> tuple[ProcessRoot, Walk | RangeWalk]:
        """The way to one address of a process, or everything in [start, end), at one stop."""
        with self._turn:
            self.vm.processes.learn()
            with self.vm.paused():
                found = self.vm.walk(pid, start) if end is None else self.vm.walk_range(pid, start, end)
                return self.vm.process_root(pid), found

    def maps(self, pid: int) -> ProcessAreas:
        """The areas of a process, with what is in them."""
        with self._turn:
            return self.vm.areas(pid)

    def gdb(self) -> GdbStub:
        """Stops the machine for gdb."""
        with self._turn:
            return self.vm.gdb()

    def wait_until_it_runs(self) -> None:
        """Returns once gdb has let the machine go."""
        self.vm.on_loop(self.vm.qemu.until_resumed(UNLIMITED_S))

    def prepare_for_people(self) -> None:
        """The scenarios' programs are in the guest, as far as they compile and the machine takes them now."""
        with self._turn, contextlib.suppress(HugepfnError):
            self.vm.push_all()

    def log(self) -> str:
        """The kernel's log."""
        return self.vm.kernel_log

    def state(self) -> str:
        """Whether it "runs" or "stands still", or how it ended."""
        if self.vm.qemu.exit_status is not None:
            return str(self.vm.qemu.end_error(""))
        return "stands still" if self.vm.qemu.stopped else "runs"


@contextlib.contextmanager
def _thread(target: Callable[..., None], *args: Any) -> Iterator[None]:
    """A thread that has ended when the block has."""
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _write_all(
    out: queue.Queue[tuple[int, bytes] | None], broken: dict[int, OSError], on_broken: Callable[[], None]
) -> None:
    """Writes what a job printed; says so once when a descriptor does not take it any more, and why."""
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
    """Feeds a job from a descriptor, which is left alone as soon as the block ends."""
    wake, waker = os.pipe()

    def feed() -> None:
        with contextlib.suppress(Exception):  # the job or the machine is gone: who waits for them knows
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
