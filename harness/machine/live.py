"""A machine that runs, for callers that are not async: its life, its channels, its memory."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, TypeVar

from pexpect.fdpexpect import fdspawn

from harness.errors import MachineryError
from harness.machine.agent import Agent
from harness.machine.loop import LoopThread
from harness.machine.machine import Machine, Origin
from harness.machine.qemu import Qemu
from harness.machine.ram import GuestMemory
from harness.pagetable import Region
from harness.verdict import Taint, parse_taint

T = TypeVar("T")


class LiveMachine:
    """A :class:`Machine` and the event loop that it lives on."""

    def __init__(self) -> None:
        self._loop: LoopThread | None = None
        self._qemu: Qemu | None = None
        self._machine: Machine | None = None

    def _use(self, coming_up: Coroutine[Any, Any, Machine]) -> None:
        """Waits for a machine to come up, on a loop of its own; what does not come up is ended."""
        self._loop = LoopThread("hugepfn-machine")
        try:
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
            if self._qemu is not None:
                loop.run(self._qemu.quit())
                self._qemu.ram.close()
        finally:
            loop.close()

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the machine's event loop."""
        if self._loop is None:
            work.close()
            raise MachineryError("this VM is not running")
        return self._loop.run(work)

    @property
    def _running(self) -> Machine:
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
        return self._running.qemu

    @property
    def agent(self) -> Agent:
        """PID 1 of the guest."""
        return self._running.agent

    @property
    def bar(self) -> Region:
        """Where BAR 2 of the device is, in guest-physical bytes."""
        return next(bar for bar in self.bars if bar.name == "bar")

    @property
    def bars(self) -> tuple[Region, ...]:
        """Where each memory BAR of the device is; BAR 2 is called "bar", another "bar0"."""
        return self._running.bars

    def bar_word(self, offset: int) -> int:
        """The 8-byte word at a byte offset of BAR 2, read by QEMU itself (HMP ``xp``), the guest's MMU not asked.

        :raises MachineryError: QEMU cannot read it: the device's memory is off, or the offset is no part of it.
        """
        paddr = self.bar.start_paddr + offset
        said = str(self.on_loop(self.qemu.execute("human-monitor-command", {"command-line": f"xp /1gx {paddr:#x}"})))
        _, _, word = said.strip().partition(": ")
        if not 0 <= offset < self.bar.size_bytes or not word.startswith("0x"):
            raise MachineryError(f"QEMU does not read BAR 2 at {offset:#x}: {said.strip()!r}")
        return int(word, 16)

    @property
    def ready(self) -> Mapping[str, str]:
        """What the guest said of itself when it came up."""
        return self._running.ready

    @property
    def origin(self) -> Origin:
        """Whether it booted, or is a clone."""
        return self._running.origin

    @property
    def kernel_log(self) -> str:
        """The whole console so far."""
        return self.qemu.log.text

    @property
    def taint(self) -> Taint:
        """/proc/sys/kernel/tainted now."""
        return parse_taint(self.get("/proc/sys/kernel/tainted").decode())

    @property
    def memory(self) -> GuestMemory:
        """Guest RAM. Walk it only inside :meth:`paused`, or at a checkpoint."""
        return self.qemu.ram.memory

    def get(self, path: str) -> bytes:
        """A file of the guest, /proc and /sys included."""
        return self.on_loop(self.agent.get(path))

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

    def shell(self) -> socket.socket:
        """Starts a shell in the guest; our end of its serial line.

        :raises MachineryError: there is no busybox in the guest (it was not on the host).
        """
        self.on_loop(self.agent.request("shell"))
        own = self.qemu.end("shell").dup()
        own.setblocking(True)
        return own

    def console(self) -> fdspawn:
        """A shell in the guest, as a pexpect spawn, on a serial line of its own; see :meth:`shell`."""
        return fdspawn(self.shell().detach(), encoding="utf-8", timeout=30)
