"""The complaints of an x86-64 kernel: one row for each first line, with the end of the block that it opens.

Data only; :mod:`harness.verdict.log.complaints` does the work. Every expression is matched at the start of the
*message*, after printk's prefix. A program that prints "Kernel panic" in the middle of a line is not a panic, and the
kernel's own ``traps: fork[85] general protection fault`` about a user program is not an oops.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass


class ComplaintKind(enum.Enum):
    """What a complaint is about; the value is the word used in reports."""

    OOPS = "oops"
    PANIC = "panic"
    PAGE_TABLE_CHECK = "page-table-check"
    WARNING = "warning"
    BAD_PTE = "bad-pte"
    BAD_PMD = "bad-pmd"
    BAD_PUD = "bad-pud"
    BAD_P4D = "bad-p4d"
    BAD_PGD = "bad-pgd"
    BAD_PAGE_MAP = "bad-page-map"
    BAD_PAGE = "bad-page"
    BAD_RSS = "bad-rss"
    PGTABLES_BYTES = "pgtables-bytes"
    SOFT_LOCKUP = "soft-lockup"
    HARD_LOCKUP = "hard-lockup"
    HUNG_TASK = "hung-task"
    RCU_STALL = "rcu-stall"
    WORKQUEUE_STALL = "workqueue-stall"
    LOCKDEP = "lockdep"
    KASAN = "kasan"
    KCSAN = "kcsan"
    KMSAN = "kmsan"
    KFENCE = "kfence"
    UBSAN = "ubsan"
    OOM = "oom"
    BUG = "bug"
    """Any other message that starts with "BUG: " (sleeping in atomic context, bad spinlock magic, ...)."""

    @property
    def fatal(self) -> bool:
        """True if nothing more can be expected from the guest, so that nobody should wait for it any longer.

        An oops kills the task that caused it while that task may hold locks. After KASAN, WARNING and lockups the
        kernel continues; if it is configured to panic on them, a separate PANIC follows, and that one is fatal.
        """
        return self in _FATAL

    @property
    def stall(self) -> bool:
        """True if the kernel only reports that something took too long by its own clock."""
        return self in _STALLS


_STALLS = frozenset(
    {
        ComplaintKind.SOFT_LOCKUP,
        ComplaintKind.HARD_LOCKUP,
        ComplaintKind.HUNG_TASK,
        ComplaintKind.RCU_STALL,
        ComplaintKind.WORKQUEUE_STALL,
    }
)
_FATAL = frozenset({ComplaintKind.OOPS, ComplaintKind.PANIC, ComplaintKind.PAGE_TABLE_CHECK})


@dataclass(frozen=True)
class Rule:
    """The form of one first line, and where its block ends."""

    kind: ComplaintKind
    first: re.Pattern[str]
    """Matched (from its start) against the message of a line."""
    end: re.Pattern[str] | None
    """Matched against each later message; the matching line is the block's last. None: the first line says it all."""


_TRACE = re.compile(r"---\[ end trace ")
_PANIC_END = re.compile(r"---\[ end Kernel panic ")
_STACK = re.compile(r" ?</TASK>")
_RULER = re.compile(r"={20,}$|---\[ end trace ")
_KILLED = re.compile(r"(?:Memory cgroup out|Out) of memory: Killed process \d+")
_BAD_ENTRY = r"\S+\.[ch]:\d+: bad {} "  # pmd_ERROR() and others, arch/x86/include/asm/pgtable_64.h

# Exceptions whose die() line did not start with "Oops: " in older kernels (arch/x86/kernel/traps.c).
_EXCEPTIONS = (
    "general protection fault|invalid opcode|divide error|int3|bounds|double fault|stack segment|segment not present"
    "|invalid TSS|alignment check|stack guard page|kernel stack overflow|Bad pagetable"
)


def _rule(kind: ComplaintKind, first: str, end: re.Pattern[str] | None) -> Rule:
    return Rule(kind, re.compile(first), end)


# The first rule that matches wins, so specific rules stand before general ones.
RULES: tuple[Rule, ...] = (
    _rule(ComplaintKind.PANIC, r"Kernel panic - not syncing\b", _PANIC_END),
    _rule(ComplaintKind.PAGE_TABLE_CHECK, r"kernel BUG at (?:\S*/)?mm/page_table_check\.c:\d+!", _TRACE),
    _rule(ComplaintKind.OOPS, r"kernel BUG at \S.*:\d+!", _TRACE),
    _rule(ComplaintKind.OOPS, r"BUG: unable to handle ", _TRACE),  # mm/fault.c, show_fault_oops()
    _rule(ComplaintKind.OOPS, r"BUG: kernel NULL pointer dereference, address: ", _TRACE),
    _rule(ComplaintKind.OOPS, r"BUG: (?:\S+ )?stack guard page was hit at ", _TRACE),
    _rule(ComplaintKind.OOPS, r"Oops: ", _TRACE),
    _rule(ComplaintKind.OOPS, rf"(?:{_EXCEPTIONS})(?:, [^\[]*)?: [0-9a-f]{{4}} \[#\d+\]", _TRACE),
    _rule(ComplaintKind.OOPS, r"general protection fault[,:] ", _TRACE),
    _rule(ComplaintKind.OOPS, r"(?:traps: )?PANIC: double fault\b", _TRACE),
    # A reserved bit is set in a user mapping; the CPU's page-table walker reports it (mm/fault.c, pgtable_bad()).
    _rule(ComplaintKind.OOPS, r".{1,15}: Corrupted page table at address [0-9a-f]+$", _TRACE),
    _rule(ComplaintKind.WARNING, r"WARNING: CPU: \d+ PID: \d+ at \S", _TRACE),
    # 28ea295f941e ("bugs/core: Reorganize fields in the first line of WARNING output, add ->comm[] output") (in v6.19);
    # the file may have the failed condition in brackets before it, and is absent if the kernel does not know it.
    # Each lookahead reads the line once: with all of it in one expression, matching takes cubic time.
    _rule(ComplaintKind.WARNING, r"WARNING: (?=at \S|.*?:\d+ at \S)(?=.*/\d+\s*$).*, CPU#\d+: ", _TRACE),
    _rule(ComplaintKind.LOCKDEP, r"WARNING: possible (?:circular|recursive) locking\b", _STACK),
    _rule(ComplaintKind.LOCKDEP, r"WARNING: possible irq lock inversion dependency detected", _STACK),
    _rule(ComplaintKind.LOCKDEP, r"WARNING: \S+-safe -> \S+-unsafe lock order detected", _STACK),
    _rule(ComplaintKind.LOCKDEP, r"WARNING: inconsistent lock state", _STACK),
    _rule(ComplaintKind.LOCKDEP, r"WARNING: suspicious RCU usage", _STACK),
    _rule(ComplaintKind.LOCKDEP, r"WARNING: bad unlock balance detected!", _STACK),
    _rule(ComplaintKind.LOCKDEP, r"WARNING: held lock freed!", _STACK),
    _rule(ComplaintKind.LOCKDEP, r"WARNING: lock held when returning to user space!", _STACK),
    _rule(ComplaintKind.LOCKDEP, r"\[ BUG: Invalid wait context \]", _STACK),
    _rule(ComplaintKind.BAD_PTE, _BAD_ENTRY.format("pte"), None),
    _rule(ComplaintKind.BAD_PMD, _BAD_ENTRY.format("pmd"), None),
    _rule(ComplaintKind.BAD_PUD, _BAD_ENTRY.format("pud"), None),
    _rule(ComplaintKind.BAD_P4D, _BAD_ENTRY.format("p4d"), None),
    _rule(ComplaintKind.BAD_PGD, _BAD_ENTRY.format("pgd"), None),
    _rule(ComplaintKind.BAD_PAGE_MAP, r"BUG: Bad page map in process ", _STACK),
    _rule(ComplaintKind.BAD_PAGE_MAP, r"BUG: Bad page map: \d+ messages suppressed", None),
    _rule(ComplaintKind.BAD_PAGE, r"BUG: Bad page (?:state|cache) in process ", _STACK),
    _rule(ComplaintKind.BAD_PAGE, r"BUG: Bad page state: \d+ messages suppressed", None),
    _rule(ComplaintKind.BAD_RSS, r"BUG: Bad rss-counter state mm:", None),
    _rule(ComplaintKind.PGTABLES_BYTES, r"BUG: non-zero pgtables_bytes on freeing mm: ", None),
    _rule(ComplaintKind.SOFT_LOCKUP, r"(?:NMI )?watchdog: BUG: soft lockup - CPU#\d+ stuck for ", _STACK),
    _rule(
        ComplaintKind.HARD_LOCKUP, r"(?:NMI )?watchdog: (?:CPU\d+: )?Watchdog detected hard LOCKUP on cpu \d+", _STACK
    ),
    _rule(ComplaintKind.HUNG_TASK, r"INFO: task .+:\d+ blocked (?:in I/O wait )?for more than \d+ seconds", _STACK),
    _rule(ComplaintKind.RCU_STALL, r"(?:rcu: )?INFO: rcu_\w+ (?:self-)?detected (?:expedited )?stalls? on ", _STACK),
    _rule(ComplaintKind.WORKQUEUE_STALL, r"BUG: workqueue lockup - pool ", None),  # kernel/workqueue.c wq_watchdog
    _rule(ComplaintKind.KASAN, r"BUG: KASAN: ", _RULER),
    _rule(ComplaintKind.KCSAN, r"BUG: KCSAN: ", _RULER),
    _rule(ComplaintKind.KMSAN, r"BUG: KMSAN: ", _RULER),
    _rule(ComplaintKind.KFENCE, r"BUG: KFENCE: ", _RULER),
    _rule(ComplaintKind.UBSAN, r"UBSAN: .+ in \S", _RULER),
    _rule(ComplaintKind.OOM, r".{1,15} invoked oom-killer: ", _KILLED),
    _rule(ComplaintKind.OOM, _KILLED.pattern, None),
    _rule(ComplaintKind.BUG, r"BUG: ", _STACK),
)

# Literals, because str.find() reads a log a hundred times as fast as a regular expression does.
TRIGGERS = (
    "BUG", "WARNING", "INFO: ", "Oops: ", "Kernel panic - ", " [#", "general protection fault", "PANIC: double fault",
    ": Corrupted page table at ", ": bad p", "hard LOCKUP", "UBSAN: ", " invoked oom-killer: ", ": Killed process ",
)  # fmt: skip
"""Every line that a rule matches contains one of these strings."""


def classify(text: str) -> Rule | None:
    """The rule that this message matches as a first line, or None.

    :param text: a message without printk's prefix.
    """
    return next((rule for rule in RULES if rule.first.match(text)), None)
