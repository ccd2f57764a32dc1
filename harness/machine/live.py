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
    from pexpect.fdpexpect import fdspawn

    from harness.guest.ssh import Ssh
    from harness.guest.sshd import SshAddress, SshServer

T = TypeVar("T")
_LOG = logging.getLogger("hugepfn.machine")

_LOG_TIMEOUT_S = 5.0
_SSHD_END_S = 5.0
_NOT_RUNNING = "this VM is not running; call start(), or use it in a with statement"


class LiveMachine:
    """A :class:`Machine` and the event loop on which it runs."""

    def __init__(self) -> None:
        self._loop: LoopThread | None = None
        self._qemu: Qemu | None = None
        self._machine: Machine | None = None
        self.sockets = PrivateFolder()  # for gdb's and SSH's sockets
        self._shell: Job | None = None
        self._sshd: tuple[SshServer, SshAddress] | None = None
        self._sent: dict[Path, tuple[int, int]] = {}  # shared libraries: size and mtime_ns

    def _use(self, coming_up: Coroutine[Any, Any, Machine]) -> None:
        """Wait until a machine is up, on a loop of its own; end what does not come up."""
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
        """End QEMU and free everything. Safe to call at any time, and twice."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            if self._sshd is not None:
                with contextlib.suppress(TimeoutError):  # in a guest that hangs, no connection ends
                    loop.run(asyncio.wait_for(self._sshd[0].stop(), _SSHD_END_S))
            if self._qemu is not None:
                loop.run(self._qemu.quit())
                self._qemu.ram.close()
        finally:
            loop.close()
            self.sockets.close()

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the machine's event loop.

        :raises MachineryError: the VM is not running.
        """
        if self._loop is None:
            work.close()
            raise MachineryError(_NOT_RUNNING)
        return self._loop.run(work)

    @property
    def machine(self) -> Machine:
        """The machine, for coroutines on its loop.

        :raises MachineryError: the VM is not running.
        """
        if self._machine is None:
            raise MachineryError(_NOT_RUNNING)
        return self._machine

    @property
    def running(self) -> bool:
        """Whether it has come up."""
        return self._machine is not None

    @property
    def qemu(self) -> Qemu:
        """The QEMU process."""
        return self.machine.qemu

    @property
    def emulator(self) -> Qemu | None:
        """The QEMU process, even of a machine that did not come up or has ended; None if none was started."""
        return self._qemu

    @property
    def agent(self) -> Agent:
        """The agent, which is PID 1 of the guest."""
        return self.machine.agent

    @property
    def bar(self) -> Region:
        """Where BAR 2 of the device is in guest-physical memory."""
        return next(bar for bar in self.bars if bar.name == "bar")

    @property
    def bars(self) -> tuple[Region, ...]:
        """Where each memory BAR of the device is; BAR 2 has the name "bar", BAR 0 "bar0"."""
        return self.machine.bars

    def bar_word(self, offset: int) -> int:
        """Return the 8-byte word at an offset (in bytes) of BAR 2, read by QEMU itself (HMP ``xp``), not by the guest.

        :raises MachineryError: QEMU cannot read it: the device's memory is off, or the offset is outside the BAR.
        """
        paddr = self.bar.start_paddr + offset
        said = str(self.on_loop(self.qemu.execute("human-monitor-command", {"command-line": f"xp /1gx {paddr:#x}"})))
        _, _, word = said.strip().partition(": ")
        if not 0 <= offset < self.bar.size_bytes or not word.startswith("0x"):
            raise MachineryError(f"QEMU cannot read BAR 2 at offset {offset:#x}: {said.strip()!r}")
        return int(word, 16)

    @property
    def ready(self) -> Mapping[str, str]:
        """What the guest reported when it came up, by name: ``ready["release"]``."""
        return self.machine.ready

    @property
    def origin(self) -> Origin:
        """Whether it booted, is a clone of a template, or was kept at a failure."""
        return self.machine.origin

    @property
    def kernel_log(self) -> str:
        """Everything that the kernel has logged (/dev/kmsg), whatever its console shows.

        If the machine stands still or does not answer: what was read before, and what the console has shown since.
        """
        if self.qemu.exit_status is None and not self.qemu.stopped:
            with contextlib.suppress(HugepfnError):
                self.on_loop(read_log(self.machine.agent, "log asked for", _LOG_TIMEOUT_S))
        return self.qemu.log.text

    @property
    def taint(self) -> Taint:
        """The taint of the kernel now (/proc/sys/kernel/tainted)."""
        return parse_taint(printable(self.get("/proc/sys/kernel/tainted")))

    @property
    def memory(self) -> GuestMemory:
        """Guest RAM. Walk page tables in it only inside :meth:`paused`, or at a checkpoint."""
        return self.qemu.ram.memory

    def get(self, path: str) -> bytes:
        """Return the contents of a file of the guest, /proc and /sys included.

        :raises AgentRefused: the guest cannot read it; has its errno.
        """
        return self.on_loop(self.agent.get(path))

    def put(self, path: str, data: bytes, mode: int = 0o755) -> None:
        """Write a file of the guest; folders on its path are created.

        :param mode: the file's permission bits.
        :raises AgentRefused: the guest cannot write it; has its errno.
        """
        self.on_loop(self.agent.put(path, data, mode))

    def send(self, program: str | Path) -> str:
        """Send a program of this host to the guest, with its shared libraries, and return its path in the guest.

        :raises UsageError: there is no such file, or a library is missing.
        """
        path = Path(program)
        if not path.is_file():
            raise UsageError(f"{path}: no such file; expected a program on this host")
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
        """Run a command in the guest, and wait for its end.

        :param argv: the path of a program in the guest, or a name that is searched in /tests, /bin and /sbin; then its
            arguments.
        :param environment: variables besides PATH, HOME, VFIO_GROUP and VFIO_BDF (the device's group and address).
        :param stdin: its standard input.
        :param timeout_s: seconds after which it is killed; none by default.
        :param sink: called with its output as it arrives, in another thread; the result then has no output.
        :returns: its exit status and output. An exit status other than 0 is not an error.
        :raises DeadlineError: it took longer than timeout_s.
        :raises KernelDied: the kernel died first.
        """
        work = execute(self.agent, argv, environment=environment, stdin=stdin, timeout_s=timeout_s, sink=sink)
        return self.on_loop(work)

    def ssh_address(self) -> SshAddress:
        """Return how SSH reaches the guest: the socket and the keys. The first call starts the server in the guest.

        :raises MachineryError: dropbear is not installed on this host.
        """
        if self._sshd is None:
            from harness.guest.sshd import SshServer  # paramiko takes 0.15 s, and few need it

            server = SshServer(self.agent)
            self._sshd = server, self.on_loop(server.start(self.sockets.socket("ssh")))
        return self._sshd[1]

    @property
    def has_ssh(self) -> bool:
        """Whether the SSH server was started."""
        return self._sshd is not None

    def ssh(self) -> Ssh:
        """Return a new SSH connection to the guest. Close it, or use it in a ``with`` statement."""
        from harness.guest.ssh import Ssh

        return Ssh(self.ssh_address())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block in which no vCPU runs, so that page tables do not change."""
        was_stopped = self.on_loop(self.qemu.is_stopped())
        if not was_stopped:
            self.on_loop(self.qemu.stop())
        try:
            yield
        finally:
            if not was_stopped:
                self.on_loop(self.qemu.resume())

    def shell(self) -> tuple[socket.socket, Job]:
        """Return our end of the guest's ttyS3, and the job of the shell on it, which is started if there is none.

        :raises MachineryError: the guest has no busybox, because this host has none.
        """
        if self._shell is None or self._shell.exited.done():
            self._shell = self.on_loop(self.agent.shell())
        own = self.qemu.end("shell").dup()
        own.setblocking(True)
        return own, self._shell

    def resize_shell(self, rows: int, columns: int) -> None:
        """Set the size of the shell's terminal."""
        self.on_loop(self.agent.resize_shell(rows, columns))

    def console(self) -> fdspawn:
        """Return a shell in the guest as a pexpect spawn, on a serial line of its own.

        :raises MachineryError: the guest has no busybox, because this host has none.
        """
        from pexpect.fdpexpect import fdspawn

        return fdspawn(self.shell()[0].detach(), encoding="utf-8", timeout=30)
