"""A running machine as a value: it booted, or was restored from a template or a kept machine."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from harness.guest.agent import Agent
from harness.pagetable import Region
from harness.qemu.process import Qemu


class Origin(enum.Enum):
    """How a machine came to be."""

    BOOT = "boot"
    CLONE = "clone"
    KEPT = "kept"  # saved with its RAM at a failure, and restored


@dataclass(frozen=True)
class Machine:
    """QEMU, the agent in it, and what both reported about the guest."""

    qemu: Qemu
    agent: Agent
    ready: Mapping[str, str]
    bars: tuple[Region, ...]
    origin: Origin
