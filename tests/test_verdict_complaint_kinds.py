"""Tests for the first lines of complaints, with a line for each rule and one that the rule must not match."""

from __future__ import annotations

import pytest

from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.first_lines import RULES, TRIGGERS, classify
from harness.verdict.log.lines import message, split

K = ComplaintKind

PANIC, GPF, WARN = "Kernel panic - not syncing", "general protection fault", "WARNING: CPU: 0 PID: 85 at"
AT = "CPU#0: fork/85"

# One row for each rule, in the order of RULES: the kind, a matching line, and a similar line that must not match.
ROWS: list[tuple[ComplaintKind, str, str]] = [
    (K.STACK_OVERFLOW, f"{PANIC}: stack-protector: Kernel stack is corrupted in: f+0x1/0x2", "stack-protector: Kernel"),
    (K.STACK_OVERFLOW, f"{PANIC}: stack-protector: Kernel stack is corrupted in: ffffffff83436320", "stack-protector"),
    (K.STACK_OVERFLOW, f"{PANIC}: corrupted stack end detected inside scheduler", "corrupted stack end detected"),
    (K.STACK_OVERFLOW, f"{PANIC}: kernel stack overflow", "kernel stack overflow"),
    (K.PANIC, f"{PANIC}: Attempted to kill init! exitcode=0x00000009", "Attempted to kill init! exitcode=0x00000009"),
    (K.PANIC, f"{PANIC}: Fatal exception", "---[ end Kernel panic - not syncing: x ]---"),
    (K.RUST_PANIC, "rust_kernel: panicked at drivers/block/rnull.rs:7:5:", "rust_kernel: hello"),
    (K.PAGE_TABLE_CHECK, "kernel BUG at mm/page_table_check.c:119!", "see kernel BUG at mm/page_table_check.c:119!"),
    (K.KERNEL_BUG, "kernel BUG at mm/usercopy.c:102!", "BUG at mm/usercopy.c:102!"),
    (K.KERNEL_BUG, "kernel BUG at lib/list_debug.c:59!", "lib/list_debug.c:59!"),
    (K.KERNEL_BUG, "kernel BUG at mm/memory.c:123!", "kernel BUG at some time"),
    (K.OOPS, "BUG: unable to handle page fault for address: ffffc90000", "foo: BUG: unable to handle page fault"),
    (K.OOPS, "BUG: kernel NULL pointer dereference, address: 00000040", "kernel NULL pointer dereference, address: 0"),
    (K.OOPS, "BUG: unable to handle kernel request", "unable to handle kernel request"),
    (K.STACK_OVERFLOW, "BUG: TASK stack guard page was hit at ffffc90000 (stack is x)", "stack guard page was hit at "),
    (K.STACK_OVERFLOW, "kernel stack overflow (double-fault): 0000 [#1] PREEMPT SMP", "kernel stack overflow: 0000"),
    (K.GENERAL_PROTECTION, f"{GPF}, probably for non-canonical address 0xdead", f"{GPF} ip:401"),
    (K.GENERAL_PROTECTION, "stack segment: 0000 [#1] SMP", "stack segment: 0000"),
    (K.DIVIDE_ERROR, "Oops: divide error: 0000 [#1] SMP", "traps: a[1] trap divide error ip:401 sp:7ffd0 error:0"),
    (K.DOUBLE_FAULT, "traps: PANIC: double fault, error_code: 0x0", "traps: fork[85] PANIC: double fault"),
    (K.DOUBLE_FAULT, "double fault: 0000 [#1] SMP", "double fault: 0000"),
    (K.OOPS, "Bad pagetable: 000d [#1] SMP", "Bad pagetable: 000d"),
    (K.OOPS, "Oops: 0002 [#1] PREEMPT SMP PTI", "Oops, the disk is full"),
    (K.OOPS, "fork: Corrupted page table at address 7f1240000000", "fork: Corrupted page table at address unknown"),
    (K.ODEBUG, f"{WARN} lib/debugobjects.c:615 debug_print_object+0x1/0x2", f"{WARN} lib/debug.c:615 debug_x+0x1/0x2"),
    (K.ODEBUG, f"WARNING: lib/debugobjects.c:615 at 0x0, {AT}", f"WARNING: lib/debug.c:615 at 0x0, {AT}"),
    (K.WARNING, f"{WARN} mm/usercopy.c:82 usercopy_warn+0x1/0x2", "mm/usercopy.c:82 usercopy_warn+0x1/0x2"),
    (K.WARNING, f"WARNING: mm/usercopy.c:82 at usercopy_warn+0x1/0x2, {AT}", "WARNING: mm/usercopy.c:82 at usercopy"),
    (K.WARNING, f"{WARN} lib/kobject.c:734 kobject_put+0x1/0x2", "lib/kobject.c:734 kobject_put+0x1/0x2"),
    (K.WARNING, f"WARNING: lib/kobject.c:734 at kobject_put+0x1/0x2, {AT}", "WARNING: lib/kobject.c:734 at kobject_pu"),
    (K.WARNING, f"{WARN} fs/proc/generic.c:382 proc_register+0x1/0x2", "fs/proc/generic.c:382 proc_register"),
    (K.WARNING, f"WARNING: fs/proc/generic.c:382 at proc_register+0x1/0x2, {AT}", "WARNING: fs/proc/generic.c:382 at "),
    (K.REFCOUNT, f"{WARN} lib/refcount.c:28 refcount_warn_saturate+0x1/0x2", f"{WARN} lib/ref.c:28 refcount_x+0x1/0x2"),
    (K.REFCOUNT, f"WARNING: lib/refcount.c:28 at refcount_warn_saturate+0x1/0x2, {AT}", f"WARNING: a.c:28 at f, {AT}"),
    (K.LOCKDEP, f"{WARN} kernel/locking/lockdep.c:5025 __lock_acquire+0x1/0x2", f"{WARN} kernel/locking/a.c:5 a_lock_"),
    (K.LOCKDEP, f"WARNING: kernel/locking/lockdep.c:5 at lock_release+0x1/0x2, {AT}", f"WARNING: a.c:5 at l, {AT}"),
    (K.WARNING, f"{WARN} mm/util.c:591 kvmalloc_node+0x1/0x2", "mm/util.c:591 kvmalloc_node+0x1/0x2"),
    (K.WARNING, f"WARNING: mm/util.c:591 at kvmalloc_node+0x1/0x2, {AT}", "WARNING: mm/util.c:591 at kvmalloc_node"),
    (K.WARNING, f"{WARN} mm/vmalloc.c:2873 __vmalloc_node_range+0x1/0x2", "mm/vmalloc.c:2873 __vmalloc_node_range"),
    (K.WARNING, f"WARNING: mm/vmalloc.c:2873 at __vmalloc_node_range+0x1/0x2, {AT}", "WARNING: mm/vmalloc.c:2873 at"),
    (K.WARNING, f"{WARN} drivers/usb/core/urb.c:503 usb_submit_urb+0x1/0x2", "urb.c:503 usb_submit_urb+0x1/0x2"),
    (K.WARNING, f"WARNING: drivers/usb/core/urb.c:503 at usb_submit_urb+0x1/0x2, {AT}", "WARNING: urb.c:503 at usb"),
    (K.WARNING, "WARNING: CPU: 0 PID: 85 at mm/memory.c:1 f+0x1/0x2", "WARNING: CPU: too hot"),
    (K.WARNING, f"WARNING: mm/memory.c:123 at f+0x1/0x2, {AT}", "WARNING: mm/memory.c:123 at f+0x1/0x2"),
    (K.LOCKDEP, "WARNING: possible circular locking dependency detected", "WARNING: possible trouble"),
    (K.LOCKDEP, "WARNING: possible recursive locking detected", "WARNING: possible recursion"),
    (K.LOCKDEP, "WARNING: possible irq lock inversion dependency detected", "WARNING: possible irq lock inversion"),
    (K.LOCKDEP, "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected", "WARNING: HARDIRQ-safe lock order"),
    (K.LOCKDEP, "WARNING: inconsistent lock state", "inconsistent lock state"),
    (K.LOCKDEP, "WARNING: bad unlock balance detected!", "bad unlock balance detected!"),
    (K.LOCKDEP, "WARNING: held lock freed!", "WARNING: held lock"),
    (K.LOCKDEP, "WARNING: lock held when returning to user space!", "WARNING: lock held"),
    (K.LOCKDEP, "WARNING: fork/85 still has locks held!", "WARNING: fork/85 still has locks"),
    (K.LOCKDEP, "WARNING: Nested lock was not taken", "WARNING: Nested lock"),
    (K.LOCKDEP, "INFO: trying to register non-static key.", "INFO: trying to register a key"),
    (K.LOCKDEP, "[ BUG: Invalid wait context ]", "[ Invalid wait context ]"),
    (K.SUSPICIOUS_RCU, "WARNING: suspicious RCU usage", "suspicious RCU usage"),
    (K.UNWINDER, "WARNING: kernel stack regs at 0 in a:1 has bad 'bp' value 0", "WARNING: kernel stack regs at 0 in a"),
    (K.UNWINDER, "WARNING: kernel stack frame pointer at 0 in a:1 has bad value 0", "WARNING: kernel stack frame poin"),
    (K.UNWINDER, "WARNING: stack recursion on stack type 4", "WARNING: stacked"),
    (K.BAD_PTE, "mm/pgtable-generic.c:57: bad pte 00000000a1b2(67)", "mm/pgtable-generic.c: bad pte"),
    (K.BAD_PMD, "mm/pgtable-generic.c:50: bad pmd 00000000a1b2(e7)", "a bad pmd 00000000a1b2(e7)"),
    (K.BAD_PUD, "mm/pgtable-generic.c:43: bad pud 00000000a1b2(e7)", "mm/pgtable-generic.c:43: bad puddle 1"),
    (K.BAD_P4D, "mm/pgtable-generic.c:36: bad p4d 00000000a1b2(e7)", "mm/pgtable-generic.c:36: p4d 00000000a1b2"),
    (K.BAD_PGD, "mm/pgtable-generic.c:29: bad pgd 00000000a1b2(e7)", "29: bad pgd 00000000a1b2(e7)"),
    (K.BAD_PAGE_MAP, "BUG: Bad page map in process fork  pud:80000008000000e7", "Bad page map in process fork"),
    (K.BAD_PAGE_MAP, "BUG: Bad page map: 12 messages suppressed", "Bad page map: 12 messages suppressed"),
    (K.BAD_PAGE, "BUG: Bad page state in process fork  pfn:05a6c", "Bad page state in process fork  pfn:05a6c"),
    (K.BAD_PAGE, "BUG: Bad page state: 12 messages suppressed", "Bad page state: 12 messages suppressed"),
    (K.BAD_RSS, "BUG: Bad rss-counter state mm:00000000c0ffee type:MM_FILEPAGES val:-1", "Bad rss-counter state mm:0"),
    (K.PGTABLES_BYTES, "BUG: non-zero nr_pmds on freeing mm: 1", "non-zero nr_pmds on freeing mm: 1"),
    (K.PGTABLES_BYTES, "BUG: non-zero pgtables_bytes on freeing mm: 4096", "non-zero pgtables_bytes on freeing mm: 1"),
    (K.SOFT_LOCKUP, "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [fork:86]", "watchdog: soft lockup - CPU#1"),
    (K.HARD_LOCKUP, "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0", "watchdog: hard LOCKUP detector is off"),
    (K.HUNG_TASK, "INFO: task fork:85 blocked for more than 120 seconds.", "INFO: task fork:85 is blocked on a mutex"),
    (K.HUNG_TASK, "INFO: task fork:85 can't die for more than 143 seconds.", "INFO: task fork:85 can't die"),
    (K.RCU_STALL, "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:", "rcu: rcu_sched detected stalls on CPUs"),
    (K.WORKQUEUE_STALL, "BUG: workqueue lockup - pool cpus=0 node=0 stuck for 33s!", "workqueue: round-robin CPU"),
    (K.KASAN, "BUG: KASAN: double-free in kfree+0x1/0x2", "KASAN: double-free in kfree+0x1/0x2"),
    (K.KASAN, "BUG: KASAN: use-after-free in f+0x1/0x2", "KASAN: null-ptr-deref in range [0x0-0x7]"),
    (K.KASAN, "BUG: KASAN: null-ptr-deref on address 0", "KASAN: null-ptr-deref on address 0"),
    (K.KASAN, "BUG: KASAN: ", "KASAN: "),
    (K.KCSAN, "BUG: KCSAN: data-race in f / g", "kcsan: enabled early"),
    (K.KCSAN, "BUG: KCSAN: ", "KCSAN: "),
    (K.KMSAN, "BUG: KMSAN: kernel-usb-infoleak in f+0x1/0x2", "KMSAN: kernel-usb-infoleak in f+0x1/0x2"),
    (K.KMSAN, "BUG: KMSAN: uninit-value in f+0x1/0x2", "KMSAN: uninit-value in f+0x1/0x2"),
    (K.KMSAN, "BUG: KMSAN: ", "KMSAN: "),
    (K.KFENCE, "BUG: KFENCE: out-of-bounds read in f+0x1/0x2", "kfence: initialized - using 2097152 bytes"),
    (K.KFENCE, "BUG: KFENCE: ", "KFENCE: "),
    (K.UBSAN, "UBSAN: Undefined behaviour in mm/x.c:1:2", "Undefined behaviour in mm/x.c:1:2"),
    (K.UBSAN, "UBSAN: array-index-out-of-bounds in mm/x.c:1:2", "UBSAN: enabled"),
    (K.KMEMLEAK, "kmemleak: unreferenced object 0xffff88810 (size 32):", "unreferenced objects are found by kmemleak"),
    (K.KMEMLEAK, "kmemleak: 3 new suspected memory leaks (see /sys/kernel)", "kmemleak: no new suspected memory leaks"),
    (K.SLAB, "BUG kmalloc-8 (Tainted: G    B         ): Object already free", "BUG UNIX (Not tainted): bad access"),
    (K.OOM, "hog invoked oom-killer: gfp_mask=0x140cca, order=0", "hog invoked the oom-killer: order=0"),
    (K.OOM, "Memory cgroup out of memory: Killed process 88 (hog)", "Out of memory: no process to kill"),
    (K.FILESYSTEM, "VFS: Close: file count is 0", "VFS: Close: file count is 1"),
    (K.FILESYSTEM, "VFS: Busy inodes after unmount of loop0. Self-destruct", "VFS: Mounted root (ext4 filesystem)."),
    (K.FILESYSTEM, "BUG: Dentry 0000000{i=1,n=a} still in use (1) [unmount of ext4 vda1]", "Dentry a still in use (1)"),
    (K.FILESYSTEM, "EXT4-fs error (device vda1): ext4_lookup:1785: inode #2: bad", "EXT4-fs (vda1): mounted filesyste"),
    (K.FILESYSTEM, "BTRFS: error (device vda1) in btrfs_commit:1: errno=-5 IO", "BTRFS error (device vda1): open_ctre"),
    (K.FILESYSTEM, "BTRFS critical (device vda1): corrupt leaf, root=2", "BTRFS info (device vda1): using crc32c"),
    (K.FILESYSTEM, "XFS (vda1): Internal error a at line 1 of file b.  Caller f+0x1/0x2", "XFS (vda1): Ending clean m"),
    (K.FILESYSTEM, "XFS (vda1): Metadata corruption detected at f+0x1/0x2 [xfs]", "XFS (vda1): Metadata corruption"),
    (K.FILESYSTEM, "FAT-fs (vda1): error, fat_get_cluster: detected the cluster chain", "FAT-fs (vda1): not unmounted"),
    (K.NETDEVICE, "unregister_netdevice: waiting for lo to become free. Usage count = 2", "unregister_netdevice: done"),
    (K.BUG, "BUG: spinlock bad magic on CPU#0, fork/85", "spinlock bad magic on CPU#0, fork/85"),
    (K.ATOMIC_CONTEXT, "BUG: scheduling while atomic: fork/85/0x2", "DEBUG: scheduling while atomic"),
    (K.ATOMIC_CONTEXT, "BUG: sleeping function called from invalid context at a.c:1", "sleeping function called"),
    (K.ATOMIC_CONTEXT, "BUG: using smp_processor_id() in preemptible [00000000] code: a/1", "using smp_processor_id()"),
    (K.LOCKDEP, "BUG: workqueue leaked atomic, lock or RCU: kworker/0:1[9]", "workqueue leaked atomic, lock or RCU"),
    (K.BUG, "BUG: anything else", "DEBUG: anything else"),
]  # fmt: skip


def test_every_rule_has_a_row() -> None:
    assert [rule.kind for rule in RULES] == [kind for kind, _, _ in ROWS]


def test_every_expression_of_a_rule_can_be_compiled() -> None:
    for rule in RULES:
        for one in (rule.first, rule.end, rule.over, rule.detail):
            assert one is None or one.compiled.pattern == one.pattern


@pytest.mark.parametrize("index", range(len(ROWS)))
def test_the_rule_and_its_near_miss(index: int) -> None:
    kind, line, near_miss = ROWS[index]
    rule = RULES[index]
    assert rule.first.match(line)
    assert not rule.first.match(near_miss)
    assert classify(line) == rule, f"a rule before {rule.first.pattern} matched the line"
    found = classify(near_miss)
    assert found is None or found.kind is not kind


@pytest.mark.parametrize("line", [line for _, line, _ in ROWS])
def test_a_line_that_a_rule_matches_contains_a_trigger(line: str) -> None:
    assert any(trigger in line for trigger in TRIGGERS)


@pytest.mark.parametrize("index", range(len(ROWS)))
def test_a_quoted_line_is_not_a_complaint(index: int) -> None:
    assert classify(f"hugepfn: note: {ROWS[index][1]}") is None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("invalid opcode: 0000 [#1] PREEMPT SMP", K.OOPS),
        (
            "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
            K.GENERAL_PROTECTION,
        ),
        ("general protection fault: 0000 [#3] SMP PTI", K.GENERAL_PROTECTION),
        ("WARNING: possible circular locking dependency detected", K.LOCKDEP),
        ("WARNING: at copy_huge_pud+0x1/0x2, CPU#3: fork/85", K.WARNING),
        ("WARNING: mm/memory.c:123 at f+0x1/0x2, CPU#0: fork/85 ", K.WARNING),
        ("WARNING: mm/memory.c:123 at 0x0, CPU#0: my, CPU#1: x/85 \t", K.WARNING),
        ("WARNING: [a && b] mm/memory.c:123 at f+0x1/0x2 [vfio], CPU#0: kworker/0:1/9", K.WARNING),
        ("rcu: INFO: rcu_preempt self-detected stall on CPU", K.RCU_STALL),
        ("rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 1-... }", K.RCU_STALL),
        ("INFO: task kworker/u8:2:31 blocked in I/O wait for more than 122 seconds.", K.HUNG_TASK),
        ("watchdog: CPU3: Watchdog detected hard LOCKUP on cpu 3", K.HARD_LOCKUP),
        ("./include/linux/pgtable.h:900: bad pmd 000000001(2)", K.BAD_PMD),
        ("BUG: KASAN: slab-out-of-bounds in f", K.KASAN),
    ],
)
def test_further_forms(line: str, kind: ComplaintKind) -> None:
    rule = classify(line)
    assert rule is not None
    assert rule.kind is kind
    assert any(trigger in line for trigger in TRIGGERS)


@pytest.mark.parametrize(
    "line",
    [
        "traps: fork[85] general protection fault ip:401c12 sp:7ffd0 error:0",
        "[Firmware Bug]: the BIOS has corrupted hw-PMU resources",
        "WARNING: mm/memory.c:123 at f+0x1/0x2, CPU#0: fork",
        "WARNING: mm/memory.c:123 at f+0x1/0x2, CPU#0: fork/85 and so on",
        "WARNING: mm/memory.c:123 f+0x1/0x2, CPU#0: fork/85",
        "WARNING: mm/memory.c: at f+0x1/0x2, CPU#0: fork/85",
        "WARNING: mm/memory.c:123 at f+0x1/0x2, CPU#x: fork/85",
        "Out of memory handler installed",
        "FAULT_INJECTION: forcing a failure.",
        "name failslab, interval 1, probability 0, space 0, times 0",
        "",
    ],
)
def test_lines_that_are_not_complaints(line: str) -> None:
    assert classify(line) is None


@pytest.mark.parametrize(
    ("line", "prefix"),
    [
        ("[    0.000000] x", "[    0.000000] "),
        ("[123456.000001] x", "[123456.000001] "),
        ("<6>[    1.000000] x", "<6>[    1.000000] "),
        ("[    1.000000][    T1] x", "[    1.000000][    T1] "),
        ("[   C12] x", "[   C12] "),
        ("<4>x", "<4>"),
        ("x", ""),
    ],
)
def test_prefix_of_printk(line: str, prefix: str) -> None:
    assert split(line) == (prefix, "x")
    assert message(line + "\r") == "x"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("guest login: [    1.000000] x", "x"),
        ("** 12 printk messages dropped ** [    1.000000][   T12] x", "x"),
        ("$ [    1.000000] a: [    2.000000] x", "a: [    2.000000] x"),
        ("[    1.000000] a: [    2.000000] x", "a: [    2.000000] x"),
        ("a: [    1.0] x", "a: [    1.0] x"),
        (" " * 200 + "[    1.000000] x", "x"),
        (" " * 201 + "[    1.000000] x", " " * 201 + "[    1.000000] x"),
    ],
)
def test_text_before_the_timestamp(line: str, text: str) -> None:
    assert message(line) == text


@pytest.mark.parametrize("line", ["[ BUG: x ]", "[vfio] 1.0", " [    0.000000] x", "[    0.000000]x"])
def test_text_that_is_not_a_prefix(line: str) -> None:
    assert split(line) == ("", line)
