"""Decode /proc/sys/kernel/tainted (Documentation/admin-guide/tainted-kernels.rst, kernel/panic.c taint_flags[]).

The kernel sets these bits and never clears them. What a program did is the difference between two readings.
"""

from __future__ import annotations

import enum
import re

from harness.errors import ProtocolError


class Taint(enum.IntFlag, boundary=enum.KEEP):
    """The reasons for which a kernel is tainted; bits that are unknown here are kept."""

    PROPRIETARY_MODULE = 1 << 0
    FORCED_MODULE = 1 << 1
    CPU_OUT_OF_SPEC = 1 << 2
    FORCED_RMMOD = 1 << 3
    MACHINE_CHECK = 1 << 4
    BAD_PAGE = 1 << 5
    USER = 1 << 6
    DIE = 1 << 7
    OVERRIDDEN_ACPI_TABLE = 1 << 8
    WARN = 1 << 9
    CRAP = 1 << 10
    FIRMWARE_WORKAROUND = 1 << 11
    OOT_MODULE = 1 << 12
    UNSIGNED_MODULE = 1 << 13
    SOFTLOCKUP = 1 << 14
    LIVEPATCH = 1 << 15
    AUX = 1 << 16
    RANDSTRUCT = 1 << 17
    TEST = 1 << 18
    FWCTL = 1 << 19


HARMLESS = Taint.OOT_MODULE | Taint.UNSIGNED_MODULE | Taint.RANDSTRUCT | Taint.TEST
"""Taints that say how the kernel was built or what was loaded, and nothing about its health.

Modules of a kernel built here are unsigned (E), a module of the user's own is out of tree (O), randstruct (T) is chosen
at build time, and a run of kunit or a test module sets N.
"""

_MEANINGS: dict[Taint, tuple[str, str]] = {
    Taint.PROPRIETARY_MODULE: ("P", "a proprietary module was loaded"),
    Taint.FORCED_MODULE: ("F", "a module was loaded by force"),
    Taint.CPU_OUT_OF_SPEC: ("S", "the machine runs out of its specification"),
    Taint.FORCED_RMMOD: ("R", "a module was removed by force"),
    Taint.MACHINE_CHECK: ("M", "a processor reported a machine check"),
    Taint.BAD_PAGE: ("B", "a bad page or page-table entry was met"),
    Taint.USER: ("U", "a user program asked for it"),
    Taint.DIE: ("D", "the kernel died: an oops or BUG"),
    Taint.OVERRIDDEN_ACPI_TABLE: ("A", "an ACPI table was overridden"),
    Taint.WARN: ("W", "the kernel issued a warning"),
    Taint.CRAP: ("C", "a staging driver was loaded"),
    Taint.FIRMWARE_WORKAROUND: ("I", "a bug of the firmware is worked around"),
    Taint.OOT_MODULE: ("O", "an out-of-tree module was loaded"),
    Taint.UNSIGNED_MODULE: ("E", "an unsigned module was loaded"),
    Taint.SOFTLOCKUP: ("L", "a soft lockup occurred"),
    Taint.LIVEPATCH: ("K", "the kernel was live-patched"),
    Taint.AUX: ("X", "something the distribution defines"),
    Taint.RANDSTRUCT: ("T", "the kernel was built with randomised structures"),
    Taint.TEST: ("N", "an in-kernel test was run"),
    Taint.FWCTL: ("J", "user space changed a device through fwctl"),
}

_NUMBER = re.compile(r"\d{1,20}")  # proc_taint() prints an unsigned long, in decimal


def parse(text: str) -> Taint:
    """Decode the contents of /proc/sys/kernel/tainted.

    :param text: a decimal number; blanks and newlines around it are ignored.
    :raises ProtocolError: text is not such a number.
    """
    number = text.strip()
    if not _NUMBER.fullmatch(number):
        raise ProtocolError(
            f"the guest's /proc/sys/kernel/tainted reads {text[:40]!r}, a decimal number was expected; "
            "look at what the guest's agent sent"
        )
    return Taint(int(number))


def of_letters(letters: str) -> Taint:
    """The taints that an oops shows as letters ("G        W"); letters that are unknown here are left out."""
    taint = Taint(0)
    for one, (letter, _) in _MEANINGS.items():
        if letter in letters:
            taint |= one
    return taint


def letters(taint: Taint) -> str:
    """The letters that stand for these taints, as the kernel prints them."""
    return "".join(letter for one, (letter, _) in _MEANINGS.items() if one in taint)


def added(before: Taint, after: Taint) -> Taint:
    """The taints that are in `after` but not in `before`."""
    return Taint(int(after) & ~int(before))


def alarming(taint: Taint) -> Taint:
    """The taints that are not :data:`HARMLESS`, unknown ones included."""
    return added(HARMLESS, taint)


def describe(taint: Taint) -> tuple[str, ...]:
    """One line for each bit that is set: ``W (512): the kernel issued a warning``."""
    unknown = "?", "a reason that hugepfn does not know: see tainted-kernels.rst of this kernel"
    found = [Taint(1 << bit) for bit in range(int(taint).bit_length()) if int(taint) >> bit & 1]
    return tuple(
        f"{letter} ({int(one)}): {meaning}" for one in found for letter, meaning in [_MEANINGS.get(one, unknown)]
    )
