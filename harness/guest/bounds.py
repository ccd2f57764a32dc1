"""What the guest may say at most. All of it is bounded before it is believed: no guest costs the host its memory.

Each function returns the value, or raises ProtocolError with what came and what is allowed.
"""

from __future__ import annotations

import re

from harness.errors import ProtocolError

PAGE_BYTES = 4096  # not from harness.pagetable, which loads numpy: `hugepfn ssh` has to start fast
#: One line of the events channel: HP_LINE of guest_tests/lib/shared.h is 11,904.
LINE_MAX_BYTES = 16 << 10
#: Events that nobody has taken yet. A program waits at each checkpoint, so few are ever on their way.
EVENTS_MAX = 1 << 16
#: What a program says before the agent tells that it runs. It waits to be registered, which is one line.
EARLY_MAX_BYTES = 1 << 20
#: HP_NAME of guest_tests/lib/shared.h, less its NUL.
NAME_MAX = 31
#: HP_PAGEMAP_PAGES of guest_tests/lib/shared.h.
PAGEMAP_WORDS_MAX = 512
#: Four times HP_PROCESSES: each program that execs has a table of its own.
PROCESSES_MAX = 256
#: Of one process: HP_MAPPINGS.
MAPPINGS_MAX = 256
#: PID_MAX_LIMIT, include/linux/threads.h.
PID_MAX = 4 << 20
#: The end of user space with five levels, TASK_SIZE_MAX of arch/x86/include/asm/page_64.h.
USER_END = (1 << 56) - PAGE_BYTES
#: Leaves and holes that all stops of one run make values of, 16 GiB in pages: about a gigabyte of host memory.
LEAVES_MAX = 4 << 20
#: Words of pagemap that a run's processes say, 32 GiB in pages: about as much.
PAGEMAP_RUN_MAX = 8 << 20
#: What is kept of a job's output, each stream; a caller that takes it as it comes has no limit.
OUTPUT_MAX_BYTES = 64 << 20
#: What is kept of the kernel's log, the newest, each of the records and of the console: about 300 MB of host memory.
LOG_MAX_BYTES = 64 << 20

#: MAX_ERRNO, include/linux/err.h.
ERRNO_MAX = 4095

_SIGNAL_MAX = 64  # SIGRTMAX
_DIGITS = re.compile(r"[0-9]{1,20}")
_HEX = re.compile(r"[0-9a-f]{1,16}")
_NAME = re.compile(rf"[!-~]{{1,{NAME_MAX}}}")
_SHOWN_MAX = 80


def shown(text: str) -> str:
    """What came, as a message quotes it: at most 80 characters of it."""
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
    """What exit(2) takes."""
    return decimal(text, "exit status", 0, 255)


def signal_number(text: str) -> int:
    """A signal, real-time ones included."""
    return decimal(text, "signal", 1, _SIGNAL_MAX)


def word(text: str, what: str) -> int:
    """A 64-bit word in bare hexadecimal digits."""
    if _HEX.fullmatch(text):
        return int(text, 16)
    raise ProtocolError(f"{what} {shown(text)}, expected 1 to 16 hexadecimal digits")


def name(text: str) -> str:
    """Of a process, a checkpoint or a mapping."""
    if _NAME.fullmatch(text):
        return text
    raise ProtocolError(f"name {shown(text)}, expected 1 to {NAME_MAX} printable ASCII characters without a blank")


def user_word_vaddr(text: str) -> int:
    """The address of an aligned 8-byte word in user space."""
    vaddr = word(text, "address")
    if vaddr % 8 or not 0 < vaddr < USER_END:
        raise ProtocolError(f"address {vaddr:#x}, expected that of an aligned 8-byte word below {USER_END:#x}")
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


def prot(text: str) -> int:
    """PROT_READ, PROT_WRITE and PROT_EXEC."""
    bits = word(text, "prot")
    if bits > 7:
        raise ProtocolError(f"prot {bits:#x}, expected PROT_READ, PROT_WRITE and PROT_EXEC, 0 to 7")
    return bits
