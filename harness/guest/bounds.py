"""The limits of what a guest may send. Everything is checked first, so that no guest can exhaust the host's memory.

Each function returns the value, or raises ProtocolError with what was received and what is allowed.
"""

from __future__ import annotations

import re

from harness.errors import ProtocolError

PAGE_BYTES = 4096  # not from harness.pagetable, which loads numpy: `hugepfn ssh` has to start fast
#: One line of the events channel: HP_LINE of guest_tests/lib/shared.h is 11,904.
LINE_MAX_BYTES = 16 << 10
#: Events that have not been handled yet. A program waits at each checkpoint, so there are never many.
EVENTS_MAX = 1 << 12
#: Events of a program before the agent reports that it runs. It waits to be registered, which is one line.
EARLY_MAX_BYTES = 1 << 20
#: HP_NAME of guest_tests/lib/shared.h, without its NUL.
NAME_MAX = 31
#: HP_PAGEMAP_PAGES of guest_tests/lib/shared.h.
PAGEMAP_WORDS_MAX = 512
#: Four times HP_PROCESSES, because each program that execs has its own table.
PROCESSES_MAX = 256
#: Of one process: HP_MAPPINGS.
MAPPINGS_MAX = 256
#: PID_MAX_LIMIT, include/linux/threads.h.
PID_MAX = 4 << 20
#: The end of user space with five levels, TASK_SIZE_MAX of arch/x86/include/asm/page_64.h.
USER_END = (1 << 56) - PAGE_BYTES
#: Of one run: virtual machines and watched IOMMUs, and slots of each (VMS, HP_SLOTS of guest_tests/lib/kvm.*).
MACHINES_MAX, SLOTS_MAX = 64, 16
#: The end of what a virtual machine, or a device through the IOMMU, can address with four levels.
GUEST_END = 1 << 48
#: A file descriptor, and how many leaves KVM may count.
FD_MAX, COUNT_MAX = 1 << 20, 1 << 52
#: Leaves and holes in all stops of one run: the pages of 16 GiB, which take about a gigabyte of host memory.
LEAVES_MAX = 4 << 20
#: Pagemap words of all processes of a run: the pages of 32 GiB, which take about as much.
PAGEMAP_RUN_MAX = 8 << 20
#: What is kept of each output stream of a job. A caller with a sink has no limit.
OUTPUT_MAX_BYTES = 64 << 20
#: What is kept of the kernel log, of the records and of the console each: the newest, about 300 MB of host memory.
LOG_MAX_BYTES = 64 << 20

#: Characters of a line of the kernel log in a result. A record of the kernel has at most 1,024 (LOG_LINE_MAX),
#: but a guest may write to its console without a newline.
LOG_LINE_MAX = 2000
#: Complaints of the kernel that a result has. After the first few, the others are consequences, or lies.
COMPLAINTS_MAX = 100
#: Values that a program may report with ktap_value().
VALUES_MAX = 10_000
#: Bytes of the agent's first message: init/main.c has a buffer of 4,096.
READY_MAX_BYTES = 8192
#: Functions in the stack of a process, and characters of each: KSYM_NAME_LEN is 512.
STACK_MAX, SYMBOL_MAX = 64, 512
#: Characters of the agent's reason for a refusal: the longest one has a path of PATH_MAX (4,096) in it.
REASON_MAX = 4200
#: MAX_ERRNO, include/linux/err.h.
ERRNO_MAX = 4095

#: The PCI address of a device.
BDF = r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]"

_SIGNAL_MAX = 64  # SIGRTMAX
_DIGITS = re.compile(r"[0-9]{1,20}")
_HEX = re.compile(r"[0-9a-f]{1,16}")
_NAME = re.compile(rf"[!-~]{{1,{NAME_MAX}}}")
_SHOWN_MAX = 80


def shown(text: str) -> str:
    """Received text as quoted in a message: at most 80 characters of it."""
    return repr(text) if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]!r}... ({len(text)} characters)"


def decimal(text: str, what: str, least: int, most: int) -> int:
    """A number in plain decimal digits, from ``least`` to ``most``."""
    if _DIGITS.fullmatch(text) and least <= int(text) <= most:
        return int(text)
    raise ProtocolError(f"{what} {shown(text)}, expected a decimal number from {least} to {most}")


def pid(text: str, least: int = 1) -> int:
    """A process's number."""
    return decimal(text, "pid", least, PID_MAX)


def status(text: str) -> int:
    """An exit status, as for exit(2)."""
    return decimal(text, "exit status", 0, 255)


def signal_number(text: str) -> int:
    """A signal number, including real-time signals."""
    return decimal(text, "signal", 1, _SIGNAL_MAX)


def word(text: str, what: str) -> int:
    """A 64-bit word in hexadecimal digits without a prefix."""
    if _HEX.fullmatch(text):
        return int(text, 16)
    raise ProtocolError(f"{what} {shown(text)}, expected 1 to 16 hexadecimal digits")


def name(text: str) -> str:
    """The name of a process, a checkpoint or a mapping."""
    if _NAME.fullmatch(text):
        return text
    raise ProtocolError(f"name {shown(text)}, expected 1 to {NAME_MAX} printable ASCII characters without a space")


def bdf(text: str) -> str:
    """The PCI address of a device in segment 0, to which QEMU's IOMMU belongs."""
    if re.fullmatch(BDF, text) and text.startswith("0000:"):
        return text
    raise ProtocolError(f"PCI address {shown(text)}, expected one such as 0000:00:05.0")


def user_word_vaddr(text: str) -> int:
    """The address of an aligned 8-byte word in user space."""
    vaddr = word(text, "address")
    if vaddr % 8 or not 0 < vaddr < USER_END:
        raise ProtocolError(f"address {vaddr:#x}, expected the address of an aligned 8-byte word below {USER_END:#x}")
    return vaddr


def page_multiple(text: str, what: str) -> int:
    """A number of bytes or an address that is a whole number of pages."""
    size = word(text, what)
    if size % PAGE_BYTES:
        raise ProtocolError(f"{what} {size:#x}, expected a multiple of {PAGE_BYTES:#x}")
    return size


def user_range(vaddr_text: str, size_text: str) -> tuple[int, int]:
    """Address and size in bytes of a mapping in user space."""
    vaddr, size = page_multiple(vaddr_text, "address"), page_multiple(size_text, "size")
    if not 0 < size <= USER_END - vaddr:
        raise ProtocolError(f"mapping of {size:#x} bytes at {vaddr:#x}, expected pages that end below {USER_END:#x}")
    return vaddr, size


def guest_range(gpa_text: str, size_text: str) -> tuple[int, int]:
    """Guest-physical address and size in bytes of a slot of memory."""
    gpa, size = page_multiple(gpa_text, "address"), page_multiple(size_text, "size")
    if not 0 < size <= GUEST_END - gpa:
        raise ProtocolError(f"slot of {size:#x} bytes at {gpa:#x}, expected pages that end below {GUEST_END:#x}")
    return gpa, size


def prot(text: str) -> int:
    """PROT_READ, PROT_WRITE and PROT_EXEC."""
    bits = word(text, "prot")
    if bits > 7:
        raise ProtocolError(f"prot {bits:#x}, expected PROT_READ, PROT_WRITE and PROT_EXEC, 0 to 7")
    return bits
