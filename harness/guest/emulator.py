"""What the guest's agent needs from the emulator, and nothing else. :class:`harness.qemu.process.Qemu` provides it."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from harness.guest.kernel_log import KernelLog

T = TypeVar("T")


class Emulator(Protocol):
    """A running emulator: its channels, its kernel log, and waits that end when it ends."""

    log: KernelLog

    @property
    def stopped(self) -> bool:
        """Whether we have stopped the vCPUs."""

    def end(self, channel: str) -> socket.socket:
        """The host's end of a channel."""

    def pump(self, channel: str, write: Callable[[bytes], None]) -> None:
        """Pass on everything that arrives through a channel."""

    async def expect(self, awaitable: Awaitable[T], limit: float, what: str) -> T:
        """Wait for something that the guest does.

        :param limit: seconds.
        :param what: what is expected, for the message.
        :raises DeadlineError: it did not happen in time.
        :raises KernelDied: the guest ended first.
        :raises MachineryError: the emulator did not run.
        """
