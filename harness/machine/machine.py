"""A machine that runs, as a value: what booted, or came back from a template or a kept machine."""

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
    KEPT = "kept"  # saved whole at a failure, and brought back


@dataclass(frozen=True)
class Machine:
    """QEMU, the agent in it, and what both said about the guest."""

    qemu: Qemu
    agent: Agent
    ready: Mapping[str, str]
    bars: tuple[Region, ...]
    origin: Origin
