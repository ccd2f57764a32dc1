"""A machine that runs, for callers that are not async: its life, its channels, its memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import stat
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pexpect.fdpexpect import fdspawn

from harness.errors import HugepfnError, MachineryError, UsageError
from harness.guest.agent import UNLIMITED_S, Agent
from harness.guest.exec import Completed, Sink, execute
from harness.guest.job import Job
from harness.guest.libraries import libraries
from harness.guest.log_reader import read_log
from harness.host.event_loop import LoopThread
from harness.host.private_folder import PrivateFolder
from harness.logs import timed
from harness.machine.machine import Machine, Origin
from harness.pagetable import Region
from harness.printable import printable
from harness.qemu.process import Qemu
from harness.qemu.ram import GuestMemory
from harness.verdict import Taint, parse_taint

if TYPE_CHECKING:
    from harness.guest.ssh import Ssh
    from harness.guest.sshd import SshAddress, SshServer

T = TypeVar("T")
_LOG = logging.getLogger("hugepfn.machine")

_LOG_TIMEOUT_S = 5.0
_SSHD_END_S = 5.0


class LiveMachine:
    """A :class:`Machine` and the event loop that it lives on."""

    def __init__(self) -> None:
        self._loop: LoopThread | None = None
        self._qemu: Qemu | None = None
        self._machine: Machine | None = None
        self.sockets = PrivateFolder()  # where gdb and SSH come in
        self._shell: Job | None = None
        self._sshd: tuple[SshServer, SshAddress] | None = None
        self._sent: dict[Path, tuple[int, int]] = {}  # shared libraries: size and mtime_ns

    def _use(self, coming_up: Coroutine[Any, Any, Machine]) -> None:
        """Waits for a machine to come up, on a loop of its own; what does not come up is ended."""
        self._loop = LoopThread("hugepfn-machine")
        try:
            with timed(_LOG, "starting the machine", level=logging.INFO):
                self._machine = self.on_loop(coming_up)
        except BaseException:
            self.close()
            raise

    def _started(self, qemu: Qemu) -> None:
        self._qemu = qemu

    def close(self) -> None:
        """Ends QEMU and gives everything back. Safe to call at any time, and twice."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            if self._sshd is not None:
                with contextlib.suppress(TimeoutError):  # a guest that hangs lets no connection end
                    loop.run(asyncio.wait_for(self._sshd[0].stop(), _SSHD_END_S))
            if self._qemu is not None:
                loop.run(self._qemu.quit())
                self._qemu.ram.close()
        finally:
            loop.close()
            self.sockets.close()

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the machine's event loop."""
        if self._loop is None:
            work.close()
            raise MachineryError("this VM is not running")
        return self._loop.run(work)

    @property
    def machine(self) -> Machine:
        """What runs, for coroutines on its loop."""
        if self._machine is None:
            raise MachineryError("this VM is not running")
        return self._machine

    @property
    def running(self) -> bool:
        """Whether it came up."""
        return self._machine is not None

    @property
    def qemu(self) -> Qemu:
        """The QEMU process."""
        return self.machine.qemu

    @property
    def agent(self) -> Agent:
        """PID 1 of the guest."""
        return self.machine.agent

    @property
    def bar(self) -> Region:
        """Where BAR 2 of the device is, in guest-physical bytes."""
        return next(bar for bar in self.bars if bar.name == "bar")

    @property
    def bars(self) -> tuple[Region, ...]:
        """Where each memory BAR of the device is; BAR 2 is called "bar", another "bar0"."""
        return self.machine.bars

    def bar_word(self, offset: int) -> int:
        """The 8-byte word at a byte offset of BAR 2, read by QEMU itself (HMP ``xp``), the guest's MMU not asked.

        :raises MachineryError: QEMU cannot read it: the device's memory is off, or the offset is no part of it.
        """
        paddr = self.bar.start_paddr + offset
        said = str(self.on_loop(self.qemu.execute("human-monitor-command", {"command-line": f"xp /1gx {paddr:#x}"})))
        _, _, word = said.strip().partition(": ")
        if not 0 <= offset < self.bar.size_bytes or not word.startswith("0x"):
            raise MachineryError(f"QEMU cannot read BAR 2 at {offset:#x}: {said.strip()!r}")
        return int(word, 16)

    @property
    def ready(self) -> Mapping[str, str]:
        """What the guest said of itself when it came up."""
        return self.machine.ready

    @property
    def origin(self) -> Origin:
        """Whether it booted, or is a clone."""
        return self.machine.origin

    @property
    def kernel_log(self) -> str:
        """Everything that the kernel has logged, whatever its console shows.

        Of a machine that stands still or does not answer: what was read before, and what the console shows since.
        """
        if self.qemu.exit_status is None and not self.qemu.stopped:
            with contextlib.suppress(HugepfnError):
                self.on_loop(read_log(self.machine.agent, "log asked for", _LOG_TIMEOUT_S))
        return self.qemu.log.text

    @property
    def taint(self) -> Taint:
        """/proc/sys/kernel/tainted now."""
        return parse_taint(printable(self.get("/proc/sys/kernel/tainted")))

    @property
    def memory(self) -> GuestMemory:
        """Guest RAM. Walk it only inside :meth:`paused`, or at a checkpoint."""
        return self.qemu.ram.memory

    def get(self, path: str) -> bytes:
        """A file of the guest, /proc and /sys included."""
        return self.on_loop(self.agent.get(path))

    def put(self, path: str, data: bytes, mode: int = 0o755) -> None:
        """Writes a file of the guest, and the folders above it."""
        self.on_loop(self.agent.put(path, data, mode))

    def send(self, program: str | Path) -> str:
        """Sends a program of the host's over, with its shared libraries where it has some; its path in the guest.

        :raises UsageError: there is no such file, or a library is missing.
        """
        path = Path(program)
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        for library in libraries(path):
            status = library.stat()
            version = (status.st_size, status.st_mtime_ns)
            if self._sent.get(library) != version:
                self.put(str(library), library.read_bytes())
                self._sent[library] = version
        own = f"/sent/{path.name}"  # apart from the scenarios' programs
        self.put(own, path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        return own

    def exec(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout_s: float = UNLIMITED_S,
        sink: Sink | None = None,
    ) -> Completed:
        """Runs a command in the guest, to its end.

        :param argv: a program's path in the guest, or a name that is looked for in /tests, /bin and /sbin; and words.
        :param environment: beside PATH, HOME and where the device is (VFIO_GROUP, VFIO_BDF).
        :param timeout_s: then it is killed.
        :param sink: gets what it prints as it comes, in another thread; the result then has none of it.
        :raises DeadlineError: it took longer.
        :raises KernelDied: the kernel did not live to see its end.
        """
        work = execute(self.agent, argv, environment=environment, stdin=stdin, timeout_s=timeout_s, sink=sink)
        return self.on_loop(work)

    def ssh_address(self) -> SshAddress:
        """Where SSH reaches the guest, with the keys; its server is installed at the first call.

        :raises MachineryError: dropbear is not on this host.
        """
        if self._sshd is None:
            from harness.guest.sshd import SshServer  # paramiko takes 0.15 s, and few need it

            server = SshServer(self.agent)
            self._sshd = server, self.on_loop(server.start(self.sockets.socket("ssh")))
        return self._sshd[1]

    @property
    def has_ssh(self) -> bool:
        """Whether the SSH server is installed already."""
        return self._sshd is not None

    def ssh(self) -> Ssh:
        """A new SSH connection to the guest. Close it, or use it as a context."""
        from harness.guest.ssh import Ssh

        return Ssh(self.ssh_address())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block during which no vCPU runs."""
        was_stopped = self.on_loop(self.qemu.is_stopped())
        if not was_stopped:
            self.on_loop(self.qemu.stop())
        try:
            yield
        finally:
            if not was_stopped:
                self.on_loop(self.qemu.resume())

    def shell(self) -> tuple[socket.socket, Job]:
        """The shell on the guest's ttyS3, started if there is none: our end of that line, and its end as a job's.

        :raises MachineryError: there is no busybox in the guest (it was not on the host).
        """
        if self._shell is None or self._shell.exited.done():
            self._shell = self.on_loop(self.agent.shell())
        own = self.qemu.end("shell").dup()
        own.setblocking(True)
        return own, self._shell

    def resize_shell(self, rows: int, columns: int) -> None:
        """Tells the shell's line how large the terminal behind it is."""
        self.on_loop(self.agent.resize_shell(rows, columns))

    def console(self) -> fdspawn:
        """A shell in the guest, as a pexpect spawn, on a serial line of its own; see :meth:`shell`."""
        return fdspawn(self.shell()[0].detach(), encoding="utf-8", timeout=30)
