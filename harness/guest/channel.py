"""The device that carries the agent's frames and the events between host and guest."""

from __future__ import annotations

import enum


class Channel(enum.Enum):
    """The device that carries agent frames and events. The value is the agent's name for it."""

    VIRTIO = "virtio"
    SERIAL = "serial"  # UARTs, for a kernel without a driver for virtio-serial

    @property
    def agent(self) -> str:
        """The name of the end that carries frames; see :meth:`harness.qemu.process.Qemu.end`."""
        return "agent" if self is Channel.VIRTIO else "agent_uart"

    @property
    def events(self) -> str:
        """The name of the end that carries events."""
        return "events" if self is Channel.VIRTIO else "events_uart"
