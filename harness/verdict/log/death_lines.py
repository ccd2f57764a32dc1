"""The first lines of panics, of whatever kills a kernel, and of WARN(): see :mod:`harness.verdict.log.first_lines`."""

from __future__ import annotations

from harness.verdict.log.complaint_kinds import Choice, FrameSource, Rule
from harness.verdict.log.complaint_kinds import ComplaintKind as K
from harness.verdict.log.expression import Expression

TRACE = r"---\[ end trace "
_PANIC_END = r"---\[ end Kernel panic "
STACK = r" ?</TASK>"
RULER = r"={20,}$|---\[ end trace "

# Exceptions whose die() line did not start with "Oops: " in older kernels (arch/x86/kernel/traps.c).
_EXCEPTIONS = (
    "invalid opcode|int3|bounds|segment not present|invalid TSS|alignment check|stack guard page|Bad pagetable"
    "|unexpected machine check|coprocessor segment overrun|spurious interrupt|exception|control protection"
)
_DIED = r"(?:, [^\[]*)?: [0-9a-f]{4} \[#\d+\]"
RIP_CALL = (FrameSource.RIP, FrameSource.CALL)
CALL = (FrameSource.CALL,)


def rule(
    kind: K,
    first: str,
    end: str | None,
    title: str = "",
    sources: tuple[FrameSource, ...] = (),
    choice: Choice = Choice.INNERMOST,
    *,
    over: str = "",
    detail: str = "",
) -> Rule:
    return Rule(
        kind,
        Expression(first),
        Expression(end) if end else None,
        title,
        sources,
        choice,
        Expression(over) if over else None,
        Expression(detail) if detail else None,
    )


def _warning(kind: K, file: str, function: str, title: str, over: str = "") -> tuple[Rule, Rule]:
    """The two forms of a WARNING that is raised in one place, on behalf of its caller.

    28ea295f941e ("bugs/core: Reorganize fields in the first line of WARNING output, add ->comm[] output") (in v6.19)
    changed the form; the file may have the failed condition in brackets before it, and is absent if the kernel does
    not know it. Each lookahead reads the line once: with all of it in one expression, matching takes cubic time.
    """
    over = over or "^$"
    old = rf"WARNING: CPU: \d+ PID: \d+ at (?:\S*/)?{file}:\d+ (?:{function})"
    new = rf"WARNING: (?=(?:.*[\s/])?{file}:\d+ at (?:{function}))(?=.*/\d+\s*$).*, CPU#\d+: "
    return (
        rule(kind, old, TRACE, title, RIP_CALL, over=over),
        rule(kind, new, TRACE, title, RIP_CALL, over=over),
    )


# fmt: off
DEATHS_AND_WARNINGS: tuple[Rule, ...] = (
    # Panics
    rule(
        K.STACK_OVERFLOW,
        r"Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: (?P<frame>[A-Za-z_]\w*)[+.]",
        _PANIC_END,
        "kernel panic: stack is corrupted in {frame}",
    ),
    rule(
        K.STACK_OVERFLOW, r"Kernel panic - not syncing: stack-protector: ", _PANIC_END,
        "kernel panic: stack is corrupted in {frame}", CALL,
        over="stack_chk",
    ),
    rule(
        K.STACK_OVERFLOW, r"Kernel panic - not syncing: corrupted stack end", _PANIC_END,
        "kernel panic: corrupted stack end in {frame}", CALL, Choice.LOOP,
        over="schedule|retint_kernel",
    ),
    rule(
        K.STACK_OVERFLOW, r"Kernel panic - not syncing: kernel stack overflow", _PANIC_END,
        "kernel stack overflow in {frame}", CALL, Choice.LOOP,
    ),
    rule(
        K.PANIC, r"Kernel panic - not syncing: (?P<what>Attempted to kill init!)", _PANIC_END, "kernel panic: {what}",
    ),
    rule(K.PANIC, r"Kernel panic - not syncing(?:: ?(?P<what>.*))?", _PANIC_END, "kernel panic: {what}"),
    # Death: BUG(), faults, exceptions
    rule(
        K.RUST_PANIC, r"rust_kernel: panicked at ", TRACE, "{what} in {frame}", CALL,
        over=r"__rustc::rust_begin_unwind",
        detail=r"(?P<what>\S.*)",
    ),
    rule(
        K.PAGE_TABLE_CHECK, r"kernel BUG at (?:\S*/)?mm/page_table_check\.c:\d+!", TRACE,
        "kernel BUG in {frame}", RIP_CALL,
        over="^page_table_check|^__page_table_check",
    ),
    rule(
        K.KERNEL_BUG, r"kernel BUG at (?:\S*/)?mm/usercopy\.c", TRACE, "BUG: bad usercopy in {frame}", CALL,
        over="usercopy|__check",
    ),
    rule(K.KERNEL_BUG, r"kernel BUG at (?:\S*/)?lib/list_debug\.c", TRACE, "BUG: corrupted list in {frame}", CALL),
    # A BUG_ON() in a helper of skbs is its caller's.
    rule(
        K.KERNEL_BUG, r"kernel BUG at \S.*:\d+!", TRACE, "kernel BUG in {frame}", RIP_CALL,
        over="^skb_",
    ),
    rule(
        K.OOPS, r"BUG: (?:unable to handle (?:kernel paging request|page fault)|Unable to handle kernel data)",
        TRACE, "BUG: unable to handle kernel paging request in {frame}", RIP_CALL,
    ),
    rule(
        K.OOPS, r"BUG: (?:unable to handle )?[kK]ernel NULL pointer dereference",
        TRACE, "BUG: unable to handle kernel NULL pointer dereference in {frame}", RIP_CALL,
    ),
    rule(K.OOPS, r"BUG: unable to handle ", TRACE, "BUG: unable to handle kernel"),
    rule(
        K.STACK_OVERFLOW, r"BUG: (?:\S+ )?stack guard page was hit at ", TRACE,
        "BUG: stack guard page was hit in {frame}", RIP_CALL, Choice.LOOP,
    ),
    rule(
        K.STACK_OVERFLOW, rf"(?:Oops: )?(?:kernel )?stack overflow[^:]{{0,40}}{_DIED}", TRACE,
        "kernel stack overflow in {frame}", RIP_CALL, Choice.LOOP,
    ),
    rule(
        K.GENERAL_PROTECTION,
        r"(?:Oops: )?(?:segment-related )?general protection fault(?:[,:] | for non-canonical )", TRACE,
        "general protection fault in {frame}", RIP_CALL,
    ),
    rule(
        K.GENERAL_PROTECTION, rf"(?:Oops: )?stack segment{_DIED}", TRACE,
        "stack segment fault in {frame}", RIP_CALL,
    ),
    rule(
        K.DIVIDE_ERROR, rf"(?:Oops: )?divide[ _]error{_DIED}", TRACE, "divide error in {frame}", (FrameSource.RIP,),
    ),
    rule(K.DOUBLE_FAULT, r"(?:traps: )?PANIC: double fault\b", TRACE, "PANIC: double fault in {frame}", RIP_CALL),
    rule(
        K.DOUBLE_FAULT, rf"(?:Oops: )?double fault{_DIED}", TRACE, "PANIC: double fault in {frame}", RIP_CALL,
    ),
    rule(
        K.OOPS, rf"(?:Oops: )?(?P<what>{_EXCEPTIONS}){_DIED}", TRACE, "{what} in {frame}", RIP_CALL,
    ),
    rule(K.OOPS, r"Oops: ", TRACE, "Oops in {frame}", RIP_CALL),
    # A reserved bit is set in a user mapping; the CPU's page-table walker reports it (mm/fault.c, pgtable_bad()).
    rule(K.OOPS, r".{1,15}: Corrupted page table at address [0-9a-f]+$", TRACE, "Corrupted page table"),
    # Warnings
    *_warning(
        K.ODEBUG, r"lib/debugobjects\.c", "debug_|0x", "WARNING: ODEBUG bug in {frame}",
        over="debug_|rcu|timer_|work_|percpu_|vunmap|vfree|__free_|kobject_",
    ),
    *_warning(
        K.WARNING, r"mm/usercopy\.c", "usercopy|0x", "WARNING: bad usercopy in {frame}",
        over="usercopy|__check",
    ),
    *_warning(K.WARNING, r"lib/kobject\.c", "kobject_|0x", "WARNING: kobject bug in {frame}", over="kobject_"),
    *_warning(K.WARNING, r"fs/proc/generic\.c", "proc_|0x", "WARNING: proc registration bug in {frame}", over="proc_"),
    *_warning(
        K.REFCOUNT, r"lib/refcount\.c", "refcount_|0x", "WARNING: refcount bug in {frame}",
        over="refcount|kobject_",
    ),
    *_warning(
        K.LOCKDEP, r"kernel/locking/lockdep\.c", r"\w*lock_", "WARNING: locking bug in {frame}",
        over="lock_sock|release_sock",
    ),
    *_warning(
        K.WARNING, r"mm/\S{1,80}\.c", r"(?:k\w?)?malloc", "WARNING: kmalloc bug in {frame}",
        over="kmalloc|krealloc|slab|kmem",
    ),
    *_warning(K.WARNING, r"mm/vmalloc\.c", "__vmalloc_node", "WARNING: zero-size vmalloc in {frame}"),
    *_warning(
        K.WARNING, r"\S{1,120}", "usb_submit_urb", "WARNING in {frame}/usb_submit_urb",
        over="usb_(?:submit_urb|start_wait_urb|bulk_msg|interrupt_msg|control_msg)",
    ),
    rule(K.WARNING, r"WARNING: CPU: \d+ PID: \d+ at \S", TRACE, "WARNING in {frame}", RIP_CALL),
    rule(
        K.WARNING, r"WARNING: (?=at \S|.*?:\d+ at \S)(?=.*/\d+\s*$).*, CPU#\d+: ", TRACE,
        "WARNING in {frame}", RIP_CALL,
    ),
)
# fmt: on
