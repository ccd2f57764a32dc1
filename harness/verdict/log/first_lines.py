"""The first lines of all complaints: one row for each, with the end of the block that it opens, and with its title.

Data only; :mod:`harness.verdict.log.blocks` and :mod:`harness.verdict.log.titles` do the work. Every expression is
matched at the start of the *message*, after printk's prefix. A program that prints "Kernel panic" in the middle of a
line is not a panic, and the kernel's own ``traps: fork[85] general protection fault`` about a user program is no oops.
"""

from __future__ import annotations

from harness.verdict.log.complaint_kinds import Choice, FrameSource, Rule
from harness.verdict.log.complaint_kinds import ComplaintKind as K
from harness.verdict.log.death_lines import CALL, DEATHS_AND_WARNINGS, RIP_CALL, RULER, STACK, TRACE, rule
from harness.verdict.log.expression import Expression

HELD = (FrameSource.HELD,)
_KILLED = r"(?:Memory cgroup out|Out) of memory: Kill(?:ed)? process \d+"


def _bad_entry(kind: K, level: str) -> Rule:
    """pmd_ERROR() and others, arch/x86/include/asm/pgtable_64.h."""
    return rule(kind, rf"\S+\.[ch]:\d+: bad {level} ", None, f"bad {level}")


def _lock(first: str, title: str, sources: tuple[FrameSource, ...], choice: Choice, **more: str) -> Rule:
    """A report of lockdep; before v4.15 it stood in brackets and was INFO or BUG."""
    return rule(K.LOCKDEP, rf"(?:\[ )?(?P<word>INFO|WARNING|BUG): {first}", STACK, title, sources, choice, **more)


# fmt: off
# The first rule that matches wins, so specific rules stand before general ones.
RULES: tuple[Rule, ...] = (
    *DEATHS_AND_WARNINGS,
    # Lockdep
    _lock(
        "possible circular locking\\b", "possible deadlock in {frame}", (FrameSource.HELD, FrameSource.BARE),
        Choice.INNERMOST,
        over="process_one_work|(?:flush|drain|destroy)_workqueue",
        detail="is trying to acquire lock",
    ),
    _lock("possible recursive locking\\b", "possible deadlock in {frame}", HELD, Choice.FIRST),
    _lock(
        "possible irq lock inversion dependency detected", "possible deadlock in {frame}", HELD, Choice.FIRST
    ),
    _lock(
        r"\S+-safe -> \S+-unsafe lock order detected", "possible deadlock in {frame}", (FrameSource.BARE,),
        Choice.INNERMOST,
    ),
    _lock("inconsistent lock state", "inconsistent lock state in {frame}", CALL, Choice.INNERMOST),
    _lock(
        "bad unlock balance detected!", "{word}: bad unlock balance in {frame}",
        (FrameSource.BARE, FrameSource.HELD, FrameSource.CALL), Choice.INNERMOST,
    ),
    _lock("held lock freed!", "{word}: held lock freed in {frame}", HELD, Choice.FIRST),
    _lock(
        "lock held when returning to user space!", "{word}: lock held when returning to user space in {frame}",
        HELD, Choice.FIRST,
    ),
    _lock(r".{0,80}still has locks held!", "{word}: still has locks held in {frame}", HELD, Choice.FIRST),
    _lock("Nested lock was not taken", "{word}: nested lock was not taken in {frame}", RIP_CALL, Choice.INNERMOST),
    _lock(
        "trying to register non-static key", "INFO: trying to register non-static key in {frame}", CALL,
        Choice.INNERMOST,
        over="stack|lock|IRQ",
    ),
    _lock(
        "Invalid wait context", "WARNING: locking bug in {frame}", CALL, Choice.INNERMOST,
        over="lock_sock|release_sock",
    ),
    rule(
        K.SUSPICIOUS_RCU, r"(?:\[ )?(?P<word>INFO|WARNING): suspicious RCU usage", STACK,
        "{word}: suspicious RCU usage in {frame}", CALL,
        over="rcu|kmem|slab",
    ),
    # The unwinder
    rule(
        K.UNWINDER, r"WARNING: kernel stack regs at .{0,80} in .{1,40} has bad '(?P<what>\w+)' value", None,
        "WARNING: kernel stack regs has bad '{what}' value",
    ),
    rule(
        K.UNWINDER, r"WARNING: kernel stack frame pointer at .{0,80} in .{1,40} has bad value", None,
        "WARNING: kernel stack frame pointer has bad value",
    ),
    rule(K.UNWINDER, r"WARNING: (?P<what>stack recursion|can't access registers)\b", None, "WARNING: {what}"),
    # Page tables and pages
    *(
        _bad_entry(kind, level)
        for kind, level in (
            (K.BAD_PTE, "pte"), (K.BAD_PMD, "pmd"), (K.BAD_PUD, "pud"), (K.BAD_P4D, "p4d"), (K.BAD_PGD, "pgd"),
        )
    ),
    rule(K.BAD_PAGE_MAP, r"BUG: Bad page map in process ", STACK, "BUG: Bad page map"),
    rule(K.BAD_PAGE_MAP, r"BUG: Bad page map: \d+ messages suppressed", None, "BUG: Bad page map"),
    rule(
        K.BAD_PAGE, r"BUG: Bad page (?P<what>state|cache) in process ", STACK,
        "BUG: Bad page {what} in {frame}", (FrameSource.ALLOCATED, FrameSource.CALL),
        over="(?:free|put|get|update|release)_page|free_unref|^_*folio|truncate_inode_pages|page_frag_free|alloc|vmap"
        "|page_owner|^bad_page|free_(?:frozen|pcp|one)|^___*free_pages|^free_pages",
    ),
    rule(K.BAD_PAGE, r"BUG: Bad page state: \d+ messages suppressed", None, "BUG: Bad page state"),
    rule(K.BAD_RSS, r"BUG: Bad rss-counter state mm:", None, "BUG: Bad rss-counter state"),
    rule(K.PGTABLES_BYTES, r"BUG: (?P<what>non-zero nr_p[tm][ed]s on freeing mm): ", None, "BUG: {what}"),
    rule(K.PGTABLES_BYTES, r"BUG: non-zero pgtables_bytes on freeing mm: ", None),
    # Stalls
    rule(
        K.SOFT_LOCKUP, r"(?:NMI )?(?:watchdog: )?BUG: soft lockup - CPU#\d+ stuck for ", STACK,
        "BUG: soft lockup in {frame}", RIP_CALL, Choice.LOOP,
    ),
    rule(
        K.HARD_LOCKUP, r"(?:NMI )?watchdog: (?:CPU\d+: )?Watchdog detected hard LOCKUP on cpu \d+", STACK,
        "hard lockup in {frame}", RIP_CALL, Choice.LOOP,
    ),
    rule(
        K.HUNG_TASK, r"INFO: task .+:\d+ blocked (?:in I/O wait )?(?:on .{1,40} )?for more than \d+ seconds", STACK,
        "INFO: task hung in {frame}", CALL, Choice.WAIT,
    ),
    rule(
        K.HUNG_TASK, r"INFO: task .+:\d+ can't die for more than \d+ seconds", STACK,
        "INFO: task can't die in {frame}", CALL,
        over="schedule",
    ),
    rule(
        K.RCU_STALL, r"(?:rcu: )?INFO: rcu_\w+ (?:self-)?detected (?:expedited )?stalls? on ", TRACE,
        "INFO: rcu detected stall in {frame}", (FrameSource.INTERRUPTED,), Choice.LOOP,
        over="apic_timer_interrupt|rcu",
    ),
    rule(K.WORKQUEUE_STALL, r"BUG: workqueue lockup - pool ", None, "BUG: workqueue lockup"),
    # Sanitizers
    rule(
        K.KASAN, r"BUG: KASAN: (?:double-free or invalid-free|double-free|invalid-free) in (?P<func>\w+)", RULER,
        "KASAN: invalid-free in {frame}", (FrameSource.NAMED, FrameSource.CALL),
        over="slab_|kfree|vunmap|vfree",
    ),
    rule(
        K.KASAN, r"BUG: KASAN: (?P<what>[a-z-]+) in (?P<func>\w+)", RULER,
        "KASAN: {what} {access} in {frame}", (FrameSource.NAMED, FrameSource.CALL),
        over="kernel_fault|tag_check|mem_abort|^el1h?_",
        detail=r"(?P<access>Read|Write) (?:of size|at addr) ",
    ),
    rule(
        K.KASAN, r"BUG: KASAN: (?P<what>[a-z-]+) on address", RULER, "KASAN: {what} {access}",
        detail=r"(?P<access>Read|Write) of size ",
    ),
    rule(K.KASAN, r"BUG: KASAN: (?P<what>.*)", RULER, "KASAN: {what}"),
    rule(K.KCSAN, r"BUG: KCSAN: (?P<what>.{1,100}? in (?P<frame>[^\s+]+).*)", RULER, "KCSAN: {what}"),
    rule(K.KCSAN, r"BUG: KCSAN: (?P<what>.*)", RULER, "KCSAN: {what}"),
    rule(
        K.KMSAN, r"BUG: KMSAN: (?P<what>kernel-usb-infoleak) in ", RULER,
        "KMSAN: {what} in {frame}", (FrameSource.BARE,),
        over="alloc_skb|usb_(?:submit_urb|start_wait_urb|bulk_msg|interrupt_msg|control_msg)",
    ),
    # Encryption is where uninitialised data is used first; the caller left it so.
    rule(
        K.KMSAN, r"BUG: KMSAN: (?P<what>[a-z-]+) in ", RULER, "KMSAN: {what} in {frame}", (FrameSource.BARE,),
        over="alloc_skb|netlink_(?:ack|rcv_skb)|_encrypt$|^(?:crypto|cipher|drbg|rng)_",
    ),
    rule(K.KMSAN, r"BUG: KMSAN: (?P<what>.*)", RULER, "KMSAN: {what}"),
    rule(
        K.KFENCE, r"BUG: KFENCE: (?P<what>[a-z -]+) in (?P<func>\w+)", RULER,
        "KFENCE: {what} in {frame}", (FrameSource.NAMED, FrameSource.BARE),
    ),
    rule(K.KFENCE, r"BUG: KFENCE: (?P<what>.*)", RULER, "KFENCE: {what}"),
    rule(
        K.UBSAN, r"UBSAN: Undefined behaviour in \S", RULER, "UBSAN: undefined-behaviour in {frame}", CALL,
        over="ubsan|overflow",
    ),
    rule(
        K.UBSAN, r"UBSAN: (?P<what>.+?) in \S", RULER, "UBSAN: {what} in {frame}", CALL,
        over="ubsan|overflow",
    ),
    rule(
        K.KMEMLEAK, r"(?:BUG: memory leak$|(?:kmemleak: )?unreferenced object 0x)", r"^$",
        "memory leak in {frame}", (FrameSource.ALLOCATED,),
        over="kmemleak|mmap|kmem|slab|alloc|create_object|idr_get|list_lru_init|pcpu_create|mem_pool",
    ),
    rule(K.KMEMLEAK, r"kmemleak: \d+ new suspected memory leaks", None, "kmemleak: new suspected memory leaks"),
    rule(
        K.SLAB,
        r"BUG [\w.-]+ ?\((?:Not tainted|Tainted: [^)]{0,60})[^)]{0,80}\): (?P<what>(?:kmalloc )?[A-Z].*)",
        STACK,
        "BUG: {what}",
    ),
    # Out of memory
    rule(K.OOM, r".{1,15} invoked oom-killer: ", _KILLED, "out of memory"),
    rule(K.OOM, _KILLED, None, "out of memory"),
    # File systems and network devices
    rule(
        K.FILESYSTEM, r"VFS: Close: file count is (?:0|zero)", None, "VFS: Close: file count is zero (use-after-free)"
    ),
    rule(K.FILESYSTEM, r"VFS: Busy inodes after unmount", None, "VFS: Busy inodes after unmount (use-after-free)"),
    rule(
        K.FILESYSTEM, r"BUG: Dentry .* still in use \(\d+\) \[(?P<what>[^\]]{1,40}?) of ", TRACE,
        "BUG: Dentry still in use in {what}",
    ),
    rule(
        K.FILESYSTEM, r"(?P<fs>EXT[234])-fs error \(device [^)]{1,40}\)(?:: | in )(?P<frame>\w+):\d+: ", None,
        "{fs}-fs error in {frame}",
    ),
    rule(
        K.FILESYSTEM, r"BTRFS: error \(device [^)]{1,60}\) in (?P<frame>\w+):\d+: ", None, "BTRFS error in {frame}",
    ),
    rule(K.FILESYSTEM, r"BTRFS critical \(device [^)]{1,60}\): (?P<what>[\w -]+)", None, "BTRFS critical: {what}"),
    rule(
        K.FILESYSTEM, r"XFS \(\S+\): Internal error .{1,120}?\bCaller (?P<frame>\w+)\+0x", STACK,
        "XFS internal error in {frame}",
    ),
    rule(
        K.FILESYSTEM, r"XFS \(\S+\): Metadata corruption detected at (?P<frame>\w+)\+0x", None,
        "XFS metadata corruption in {frame}",
    ),
    rule(
        K.FILESYSTEM,
        r"(?P<fs>FAT|F2FS|UDF|ISOFS)-fs \([^)]{1,40}\): error[, :] ?(?P<what>.*)",
        None,
        "{fs}-fs error: {what}",
    ),
    rule(
        K.NETDEVICE, r"unregister_netdevice: waiting for ", None,
        "unregister_netdevice: waiting for DEV to become free",
    ),
    # Whatever else calls itself a bug
    rule(
        K.BUG,
        r"BUG: (?P<what>(?:spinlock|rwlock) (?:lockup suspected|already unlocked|(?:cpu )?recursion|bad magic"
        r"|wrong owner|wrong CPU|trylock failure on UP))",
        STACK,
        "BUG: {what} in {frame}",
        CALL,
        over="spin_|_lock|_unlock",
    ),
    rule(
        K.ATOMIC_CONTEXT, r"BUG: scheduling while atomic", STACK, "BUG: scheduling while atomic in {frame}", CALL,
        over="schedule",
    ),
    rule(
        K.ATOMIC_CONTEXT, r"BUG: (?P<what>sleeping function called from invalid context)", STACK,
        "BUG: {what} in {frame}", CALL,
    ),
    rule(
        K.ATOMIC_CONTEXT, r"BUG: (?P<what>using \w+\(\) in preemptible)", STACK, "BUG: {what} code in {frame}", CALL,
        over="preempt|debug_|processor_id|this_cpu",
    ),
    rule(
        K.LOCKDEP, r"BUG: workqueue leaked (?:lock or )?atomic", STACK,
        "BUG: workqueue leaked lock or atomic in {frame}",
        detail=r"last function: (?P<frame>\w+)",
    ),
    rule(K.BUG, r"BUG: ", STACK),
)
# fmt: on

# Literals, because str.find() reads a log a hundred times as fast as a regular expression does.
TRIGGERS = (
    "BUG", "WARNING", "INFO: ", "Oops: ", "Kernel panic - ", " [#", "general protection fault", "PANIC: double fault",
    ": Corrupted page table at ", ": bad p", "hard LOCKUP", "UBSAN: ", " invoked oom-killer: ", " of memory: Kill",
    "rust_kernel: ", "unreferenced object", "new suspected memory", "VFS: ", "-fs error", "-fs (", "BTRFS", "XFS (",
    "unregister_netdevice: ",
)  # fmt: skip
"""Every line that a rule matches contains one of these strings."""


_BEGINNING = Expression(
    r"(?:\[ )?(?:INFO|WARNING|BUG)\b|[Kk]ernel |kernel BUG|Oops: |rcu: INFO|(?:NMI )?watchdog: |UBSAN: |traps: PANIC"
    r"|PANIC: |(?:segment-related )?general protection|stack |divide|double fault|rust_kernel: |kmemleak: |unreferenced"
    r"|(?:Memory cgroup out|Out) of memory|VFS: |EXT|BTRFS|XFS|[A-Z0-9]{3,5}-fs |unregister_netdevice"
    r"|\S+\.[ch]:\d+: bad|.{1,15}(?: invoked oom|: Corrupted page)|[A-Za-z0-9 ]{4,40}(?:, [^\[]*)?: [0-9a-f]{4} \[#"
)
"""Every line that a rule matches begins like this; asking one expression first is ten times as fast."""


def classify(text: str) -> Rule | None:
    """The rule that this message matches as a first line, or None.

    :param text: a message without printk's prefix.
    """
    if not _BEGINNING.match(text):
        return None
    return next((one for one in RULES if one.first.match(text)), None)
