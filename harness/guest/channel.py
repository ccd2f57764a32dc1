"""What carries the agent's frames and the events between host and guest."""

from __future__ import annotations

import enum


class Channel(enum.Enum):
    """What carries agent frames and events; the value is the agent's word for it."""

    VIRTIO = "virtio"
    SERIAL = "serial"  # UARTs, where the kernel has no driver for virtio-serial

    @property
    def agent(self) -> str:
        """QEMU's end of the frames, see :meth:`harness.qemu.process.Qemu.end`."""
        return "agent" if self is Channel.VIRTIO else "agent_uart"

    @property
    def events(self) -> str:
        """Of the events."""
        return "events" if self is Channel.VIRTIO else "events_uart"
