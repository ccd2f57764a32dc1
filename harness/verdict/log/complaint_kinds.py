"""What a kernel can complain about, and the form of the rules in :mod:`harness.verdict.log.first_lines`."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from harness.verdict.log.expression import Expression


class ComplaintKind(enum.Enum):
    """What a complaint is about; the value is the word used in reports."""

    OOPS = "oops"
    KERNEL_BUG = "kernel-bug"
    """BUG(): "kernel BUG at FILE:LINE!"."""
    GENERAL_PROTECTION = "general-protection"
    """A general protection or stack segment fault, non-canonical addresses included."""
    DIVIDE_ERROR = "divide-error"
    DOUBLE_FAULT = "double-fault"
    STACK_OVERFLOW = "stack-overflow"
    PANIC = "panic"
    PAGE_TABLE_CHECK = "page-table-check"
    WARNING = "warning"
    REFCOUNT = "refcount"
    ODEBUG = "odebug"
    UNWINDER = "unwinder"
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
    SUSPICIOUS_RCU = "suspicious-rcu"
    ATOMIC_CONTEXT = "atomic-context"
    """Scheduling while atomic, sleeping in atomic context, per-CPU data in preemptible code."""
    KASAN = "kasan"
    KCSAN = "kcsan"
    KMSAN = "kmsan"
    KFENCE = "kfence"
    UBSAN = "ubsan"
    KMEMLEAK = "kmemleak"
    SLAB = "slab"
    """What SLUB's debugging finds in an object or a slab."""
    FILESYSTEM = "filesystem"
    OOM = "oom"
    NETDEVICE = "netdevice"
    """unregister_netdevice waits for a reference that nobody gives back."""
    RUST_PANIC = "rust-panic"
    BUG = "bug"
    """Any other message that starts with "BUG: " (bad spinlock magic, ...)."""

    @property
    def fatal(self) -> bool:
        """True if nothing more can be expected from the guest, so that nobody should wait for it any longer.

        An oops kills the task that caused it while that task may hold locks. After KASAN, WARNING and lockups the
        kernel continues; if it is configured to panic on them, a separate PANIC follows, and that one is fatal.
        """
        return self in DYING or self is ComplaintKind.PANIC

    @property
    def stall(self) -> bool:
        """True if the kernel only reports that something took too long by its own clock."""
        return self in _STALLS


DYING = frozenset(
    {
        ComplaintKind.OOPS,
        ComplaintKind.KERNEL_BUG,
        ComplaintKind.GENERAL_PROTECTION,
        ComplaintKind.DIVIDE_ERROR,
        ComplaintKind.DOUBLE_FAULT,
        ComplaintKind.STACK_OVERFLOW,
        ComplaintKind.PAGE_TABLE_CHECK,
        ComplaintKind.RUST_PANIC,
    }
)
"""Kinds that end in die() (arch/x86/kernel/dumpstack.c)."""
_STALLS = frozenset(
    {
        ComplaintKind.SOFT_LOCKUP,
        ComplaintKind.HARD_LOCKUP,
        ComplaintKind.HUNG_TASK,
        ComplaintKind.RCU_STALL,
        ComplaintKind.WORKQUEUE_STALL,
    }
)


class FrameSource(enum.Enum):
    """Where in a block the functions are that may be to blame."""

    NAMED = "the first line"
    RIP = "the first dump of the registers"
    CALL = "the first call trace"
    BARE = "the frames that follow without a heading"
    HELD = "where lockdep says that a lock was taken"
    INTERRUPTED = "what the timer interrupted"
    ALLOCATED = "where a page or a leaked object was allocated"
    DETAIL = "a later line"


class Choice(enum.Enum):
    """Which of these functions is to blame."""

    INNERMOST = "the first one that is not passed over"
    FIRST = "the first one, whatever it is"
    LOOP = "what a dispatcher called: a stall is met anywhere below it"
    WAIT = "the first one that does more than wait"


@dataclass(frozen=True)
class Rule:
    """The form of one first line, where its block ends, and how its title is made."""

    kind: ComplaintKind
    first: Expression
    """Matched (from its start) against the message of a line; the title can have its named groups."""
    end: Expression | None
    """Matched against each later message; the matching line is the block's last. None: the first line says it all."""
    title: str
    """With ``{frame}`` for the function to blame; "" for the first line itself."""
    sources: tuple[FrameSource, ...] = ()
    """Searched in this order."""
    choice: Choice = Choice.INNERMOST
    over: Expression | None = None
    """Functions that this rule passes over, besides harness.verdict.log.passed_over.PASSED_OVER."""
    detail: Expression | None = None
    """Searched in the later lines; the title can have its named groups."""
