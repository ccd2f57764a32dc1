"""One QEMU process and the ends of its channels. Everything here runs on the machine's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from qemu.qmp import Message, QMPClient, QMPError
from qemu.qmp.qmp_client import ExecuteError

from harness.errors import DeadlineError, KernelDied, MachineryError, QemuRefused
from harness.guest.kernel_log import KernelLog, LogMark
from harness.logs import timed
from harness.printable import printable
from harness.qemu.binary import QemuBinary
from harness.qemu.deadline import Deadline, first_of
from harness.qemu.end_error import QemuEnd, end_error, stop_error
from harness.qemu.hostroot import FileServer
from harness.qemu.launch import connect, launch
from harness.qemu.ram import GuestRam
from harness.qemu.spec import MachineSpec, Root
from harness.qemu.speed import slowness
from harness.qemu.standstill import LastStop, Standstill
from harness.qemu.stderr import LastWords
from harness.verdict import Complaint, scan
from harness.verdict.log.troubles import KernelComplaint

T = TypeVar("T")

_QUIT_TIMEOUT_S = 5.0
QMP_TIMEOUT_S = 30.0  # QEMU itself answers within milliseconds, whatever its guest does
_GOING_S = 0.5

# When a guest dies, its QMP session ends as well. This is expected, and reported as KernelDied.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
_LOG = logging.getLogger("hugepfn.qemu")


async def _end_task(task: asyncio.Future[Any]) -> None:
    """Cancel a task that still waits; a task that cannot be cancelled is left behind."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_GOING_S)


class _Client(QMPClient):
    """QMP, without a readable text of every message for a log that nobody reads."""

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class Qemu:
    """A running machine: its process, its QMP session, its channels, and the moment it ends."""

    def __init__(self, spec: MachineSpec, binary: QemuBinary, ram: GuestRam) -> None:
        self.spec = spec
        self.binary = binary
        self.ram = ram
        self.log = KernelLog()
        self.log_from = LogMark()  # where the current run begins in the log; earlier complaints belong to others
        self.stood_from_s = 0.0  # how long the machine had been stopped by then
        self.stopped = False
        self.standstill = Standstill()
        self.boot_s = 0.0  # the CPU time of the machine's boot, once it is known (speed.py)
        self.last_stop = LastStop()
        self.qmp = _Client("hugepfn")
        self._ends: dict[str, socket.socket] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._resumed = asyncio.Event()
        self._followed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._readers: list[asyncio.Task[None]] = []
        self._words: LastWords | None = None
        self._files: FileServer | None = None
        self.argv: tuple[str, ...] = ()

    async def start(self, *, incoming: bool = False) -> None:
        """Start QEMU with every channel connected.

        :param incoming: it waits for a saved machine's state, see :func:`harness.qemu.migration.restore_state`.
        :raises MachineryError: QEMU does not start; its own message is included.
        """
        if self.spec.root is Root.HOST_VIRTIOFS:
            self._files = await FileServer.start()
        self._ends, theirs = connect()
        launched = await launch(self.spec, self.binary, self.ram, theirs, self._files, incoming=incoming)
        self._process, self._words, self.argv = launched.process, launched.words, launched.argv
        self._tasks.append(asyncio.create_task(self._watch(self._process, self._words)))
        self.pump("console", self.log.write)
        try:
            await self.of_qemu(self.qmp.connect(self._ends["qmp"]), "greeting on QMP")
        except (QMPError, OSError, EOFError) as error:
            await asyncio.wait({self._ended}, timeout=_QUIT_TIMEOUT_S)
            if self.exit_status is not None and self.exit_status < 0:
                raise self.end_error("while QEMU started: ") from error
            served = f"; virtiofsd: {self._files.words}" if self._files is not None and self._files.words else ""
            how = "it is still running" if self.exit_status is None else f"status {self.exit_status}"
            raise MachineryError(f"QEMU does not start ({how}): {self.stderr or error}{served}") from error
        self._tasks.append(asyncio.create_task(self.last_stop.follow(self.qmp)))
        self.ram.attach(self._process.pid)

    def end(self, channel: str) -> socket.socket:
        """Our end of a channel: ``agent``, ``agent_uart`` or ``shell``."""
        return self._ends[channel]

    @property
    def stderr(self) -> str:
        """What QEMU itself has printed on stderr."""
        return printable(self._words.data).strip() if self._words is not None else ""

    @property
    def pid(self) -> int:
        """The pid of the QEMU process.

        :raises MachineryError: it was never started.
        """
        if self._process is None:
            raise MachineryError("QEMU was not started")
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._ended.result() if self._ended.done() else None

    async def _watch(self, process: asyncio.subprocess.Process, words: LastWords) -> None:
        status = await process.wait()
        await words.end()
        self._ended.set_result(status)

    async def _read(self, end: socket.socket, write: Callable[[bytes], None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(end, 65536):
                write(data)
        except OSError:
            pass  # QEMU's end is closed; _watch() handles it
        except Exception as error:  # wakes everything that waits
            if not self._failure.done():
                self._failure.set_exception(error)

    def pump(self, channel: str, write: Callable[[bytes], None]) -> None:
        """Call ``write`` with everything that arrives through a channel, until one side closes it."""
        self._readers.append(asyncio.create_task(self._read(self._ends[channel], write)))

    def begin_run(self) -> tuple[LogMark, float]:
        """Start a new run, to which the log and the times of standstill from now on belong.

        :returns: its beginning in the log, and for how many seconds the machine had been stopped by then.
        """
        self.log_from, self.stood_from_s = self.log.begin_run(), self.standstill.total_s
        return self.log_from, self.stood_from_s

    def deadline(self, timeout_s: float) -> Deadline:
        """A deadline for a wait for the guest that begins now; later if the guest runs slower than usual."""
        pid = self._process.pid if self._process is not None else None
        return Deadline(timeout_s, pid, slowness(self.spec.accel, self.boot_s))

    async def expect(self, awaitable: Awaitable[T], limit: float | Deadline, what: str) -> T:
        """Wait for something that the guest does.

        :param limit: the timeout in seconds, or a deadline that began earlier.
        :raises MachineryError: QEMU is stopped, did not get a CPU, or has stopped the machine itself.
        :raises KernelDied: QEMU ended first; has the kernel's last messages.
        :raises ProtocolError: malformed data arrived through a channel.
        :raises DeadlineError: the time is over; ``what`` says what was expected.
        """
        task = asyncio.ensure_future(awaitable)
        deadline = limit if isinstance(limit, Deadline) else self.deadline(limit)
        try:
            either: set[asyncio.Future[Any]] = {task, self._ended, self._failure}
            await first_of(either, deadline)
            if task.done() and not isinstance(task.exception(), OSError):
                return task.result()
            if self._failure.done():
                self._failure.result()
            if task.done():  # a channel broke, which happens only when QEMU ends
                await asyncio.wait({self._ended}, timeout=_QUIT_TIMEOUT_S)
            if self._ended.done():
                await asyncio.wait(self._readers, timeout=_QUIT_TIMEOUT_S)  # until everything it printed has arrived
                raise self.end_error(f"waiting for {what}: ")
            await self._check_runs(f"waiting for {what}: ")
            raise DeadlineError(f"waiting for {what}: nothing within {deadline.timeout_s:g} s; {self.complaint()}")
        finally:
            await _end_task(task)

    async def _check_runs(self, when: str) -> None:
        """Ask QEMU, after a deadline has passed, whether it runs the machine.

        :raises MachineryError: it does not, and that is not what we asked for.
        """
        state = await self.run_state()
        if error := stop_error(when, state, self.stderr, self.spec.accel, wanted=self.stopped):
            raise error

    async def of_qemu(self, awaitable: Awaitable[T], what: str, timeout_s: float | None = None) -> T:
        """Wait for something that QEMU itself does, whatever the guest does.

        :raises MachineryError: it did not happen in time.
        """
        task = asyncio.ensure_future(awaitable)
        deadline = self.deadline(timeout_s or QMP_TIMEOUT_S)
        try:
            if await first_of({task, self._ended}, deadline) and not task.done():
                # It fails when QEMU ends, unless another process has its socket open.
                await asyncio.wait({task}, timeout=_GOING_S)
            if task.done():
                return task.result()
            if self._ended.done():
                raise self.end_error(f"waiting for QEMU's {what}: ")
            raise MachineryError(
                f"QEMU (pid {self.pid}) is running, but there was no {what} within {deadline.timeout_s:g} s; "
                f"it printed: {self.stderr or 'nothing'}"
            )
        finally:
            await _end_task(task)

    def _complaints(self) -> tuple[Complaint, ...]:
        return scan(self.log.since(self.log_from))

    def complaint(self) -> str:
        """The last complaint in the part of the kernel log that has arrived, in words."""
        complaints = self._complaints()
        if not complaints:
            return "the console shows no complaint"
        return f"the kernel log says: {KernelComplaint.of(complaints[-1]).words}"

    async def has_ended(self) -> bool:
        """Whether QEMU has ended or is ending."""
        await asyncio.wait({self._ended}, timeout=_GOING_S)
        return self._ended.done()

    def end_error(self, when: str) -> KernelDied | MachineryError:
        """Why the machine ended, see :func:`harness.qemu.end_error.end_error`."""
        how = self.pid, self.exit_status, self.stderr, self._complaints(), self.spec.accel, self.binary.version
        return end_error(when, QemuEnd(*how, lambda complaint: self.standstill.excuse(complaint, self.stood_from_s)))

    async def stop(self) -> None:
        """Stop every vCPU."""
        await self.execute("stop")
        self.stopped = True
        self.standstill.begin()

    async def resume(self) -> None:
        """Let every vCPU run; does nothing if they run already."""
        if await self.is_stopped():
            await self.execute("cont")
            self.stopped = False
            self.standstill.end()

    async def follow_stops(self) -> None:
        """Keep ``stopped`` up to date from now on, even if another program (gdb) stops and resumes the machine."""
        if not self._followed:
            self._followed = True
            self._tasks.append(asyncio.create_task(self._follow()))

    async def _follow(self) -> None:
        # The event of our own stop() or resume() is queued before its answer, and agrees with what they set.
        with self.qmp.listener(("STOP", "RESUME")) as events:
            async for event in events:
                self.stopped = event["event"] == "STOP"
                if self.stopped:
                    self.standstill.begin()
                    self._resumed.clear()
                else:
                    self.standstill.end()
                    self._resumed.set()

    async def is_stopped(self) -> bool:
        """Whether the machine is stopped now, whoever stopped it."""
        if self._followed:  # the event may not have arrived yet
            self.stopped = await self.run_state() != "running"
        return self.stopped

    async def run_state(self) -> str:
        """The state of the machine according to QEMU (qapi/run-state.json, RunState)."""
        status = await self.execute("query-status")
        return str(status["status"]) if isinstance(status, dict) else ""

    async def until_resumed(self, timeout_s: float) -> None:
        """Wait until the machine runs; see :meth:`follow_stops`.

        :raises DeadlineError: it did not within the time.
        """
        if self.stopped:
            await self.expect(self._resumed.wait(), timeout_s, "gdb to let the guest run")

    async def execute(self, command: str, arguments: dict[str, object] | None = None) -> object:
        """Execute one QMP command.

        :raises KernelDied: QEMU ended in the meantime.
        :raises QemuRefused: QEMU refuses it.
        """
        try:
            with timed(_LOG, "QMP %s %s", command, arguments or ""):
                try:
                    return await self.of_qemu(self.qmp.execute(command, arguments), f"answer to {command}")
                except ExecuteError as error:  # an answer like any other, which the caller may expect
                    refusal = error
            raise QemuRefused(f"QEMU refuses {command}: {refusal}") from refusal
        except QMPError as error:
            await asyncio.wait({self._ended}, timeout=_QUIT_TIMEOUT_S)
            raise self.end_error(f"during {command}: ") from error

    async def quit(self) -> None:
        """End QEMU, reap it and close every channel, whatever state it is in.

        :raises MachineryError: the host's kernel does not let it end.
        """
        if self._process is not None and not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # it leads a process group, so its children end as well
            await asyncio.wait({self._ended}, timeout=_QUIT_TIMEOUT_S)
        with contextlib.suppress(QMPError, OSError, EOFError, asyncio.TimeoutError):
            await asyncio.wait_for(self.qmp.disconnect(), _QUIT_TIMEOUT_S)
        for task in (*self._tasks, *self._readers):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._readers, return_exceptions=True)
        if self._files is not None:
            await self._files.end()
        for end in self._ends.values():
            end.close()
        if self._words is not None:
            self._words.close()
        self._failure.cancel()
        if self._process is not None and not self._ended.done():
            raise MachineryError(f"QEMU (pid {self.pid}) is still there {_QUIT_TIMEOUT_S:g} s after SIGKILL")
