"""What a kernel did after an operation that no kernel may do: a finding of the explorer, as a value. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Oracle(enum.Enum):
    """What says that it is wrong."""

    ACCESS = "access"  # a load or store ends as the VMA and the device say
    DATA = "data"  # a load gives what was stored
    ERRNO = "errno"  # a system call answers as it is documented
    PROGRESS = "progress"  # an access ends
    UNTOUCHED = "untouched"  # an entry that the operation does not concern stays as it is
    REVOKED = "revoked"  # a device without memory is mapped nowhere
    DIRT = "dirt"  # what was written is dirty until something drops it that may
    TEARDOWN = "teardown"  # what was mapped leaves no page table behind


@dataclass(frozen=True, slots=True)
class Deviation:
    """One thing that is wrong after an operation."""

    oracle: Oracle
    cause: str
    """The operation, without its addresses: "mprotect", "smaps", "madvise dontfork"."""
    level: str
    """Of the leaf that it is about: "pte", "pmd", "pud"; "none" if there is none, "" if it is about none."""
    expected: str
    got: str
    detail: str = ""
    """Which step, where, and the entry: for people, and not part of what tells one finding from another."""

    def __str__(self) -> str:
        place = f" ({self.level})" if self.level not in ("", "none") else ""
        return f"{self.oracle.value}: {self.cause}{place}: expected {self.expected}, got {self.got}"
