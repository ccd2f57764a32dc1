"""Each first line of a complaint, and for each one that only looks like it."""

from __future__ import annotations

import pytest

from harness.verdict.log.complaint_kinds import RULES, TRIGGERS, ComplaintKind, classify
from harness.verdict.log.lines import message, split

K = ComplaintKind

# One row for each rule, in the order of RULES: the kind, a line of it, a line that is nearly it.
ROWS: list[tuple[ComplaintKind, str, str]] = [
    (K.PANIC, "Kernel panic - not syncing: Fatal exception", "---[ end Kernel panic - not syncing: x ]---"),
    (K.PAGE_TABLE_CHECK, "kernel BUG at mm/page_table_check.c:119!", "see kernel BUG at mm/page_table_check.c:119!"),
    (K.OOPS, "kernel BUG at mm/memory.c:123!", "kernel BUG at some time"),
    (K.OOPS, "BUG: unable to handle page fault for address: ffffc90000", "foo: BUG: unable to handle page fault"),
    (K.OOPS, "BUG: kernel NULL pointer dereference, address: 00000040", "kernel NULL pointer dereference, address: 0"),
    (K.OOPS, "BUG: TASK stack guard page was hit at ffffc90000 (stack is x)", "stack guard page was hit at ffffc90000"),
    (K.OOPS, "Oops: 0002 [#1] PREEMPT SMP PTI", "Oops, the disk is full"),
    (K.OOPS, "Bad pagetable: 000d [#1] SMP", "Bad pagetable: 000d"),
    (K.OOPS, "general protection fault, probably for non-canonical address 0xdead", "general protection fault ip:401"),
    (K.OOPS, "traps: PANIC: double fault, error_code: 0x0", "traps: fork[85] PANIC: double fault"),
    (K.OOPS, "fork: Corrupted page table at address 7f1240000000", "fork: Corrupted page table at address unknown"),
    (K.WARNING, "WARNING: CPU: 0 PID: 85 at mm/memory.c:1 f+0x1/0x2", "WARNING: CPU: too hot"),
    (K.WARNING, "WARNING: mm/memory.c:123 at f+0x1/0x2, CPU#0: fork/85", "WARNING: mm/memory.c:123 at f+0x1/0x2"),
    (K.LOCKDEP, "WARNING: possible recursive locking detected", "WARNING: possible trouble"),
    (K.LOCKDEP, "WARNING: possible irq lock inversion dependency detected", "WARNING: possible irq lock inversion"),
    (K.LOCKDEP, "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected", "WARNING: HARDIRQ-safe lock order"),
    (K.LOCKDEP, "WARNING: inconsistent lock state", "inconsistent lock state"),
    (K.LOCKDEP, "WARNING: suspicious RCU usage", "suspicious RCU usage"),
    (K.LOCKDEP, "WARNING: bad unlock balance detected!", "bad unlock balance detected!"),
    (K.LOCKDEP, "WARNING: held lock freed!", "WARNING: held lock"),
    (K.LOCKDEP, "WARNING: lock held when returning to user space!", "WARNING: lock held"),
    (K.LOCKDEP, "[ BUG: Invalid wait context ]", "[ Invalid wait context ]"),
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
    (K.PGTABLES_BYTES, "BUG: non-zero pgtables_bytes on freeing mm: 4096", "non-zero pgtables_bytes on freeing mm: 1"),
    (K.SOFT_LOCKUP, "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [fork:86]", "watchdog: soft lockup - CPU#1"),
    (K.HARD_LOCKUP, "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0", "watchdog: hard LOCKUP detector is off"),
    (K.HUNG_TASK, "INFO: task fork:85 blocked for more than 120 seconds.", "INFO: task fork:85 is blocked on a mutex"),
    (K.RCU_STALL, "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:", "rcu: rcu_sched detected stalls on CPUs"),
    (K.WORKQUEUE_STALL, "BUG: workqueue lockup - pool cpus=0 node=0 stuck for 33s!", "workqueue: round-robin CPU"),
    (K.KASAN, "BUG: KASAN: use-after-free in f+0x1/0x2", "KASAN: null-ptr-deref in range [0x0-0x7]"),
    (K.KCSAN, "BUG: KCSAN: data-race in f / g", "kcsan: enabled early"),
    (K.KMSAN, "BUG: KMSAN: uninit-value in f+0x1/0x2", "KMSAN: uninit-value in f+0x1/0x2"),
    (K.KFENCE, "BUG: KFENCE: out-of-bounds read in f+0x1/0x2", "kfence: initialized - using 2097152 bytes"),
    (K.UBSAN, "UBSAN: array-index-out-of-bounds in mm/x.c:1:2", "UBSAN: enabled"),
    (K.OOM, "hog invoked oom-killer: gfp_mask=0x140cca, order=0", "hog invoked the oom-killer: order=0"),
    (K.OOM, "Memory cgroup out of memory: Killed process 88 (hog)", "Out of memory: no process to kill"),
    (K.BUG, "BUG: scheduling while atomic: fork/85/0x2", "DEBUG: scheduling while atomic"),
]  # fmt: skip


def test_every_rule_has_a_row() -> None:
    assert [rule.kind for rule in RULES] == [kind for kind, _, _ in ROWS]


@pytest.mark.parametrize("index", range(len(ROWS)))
def test_the_rule_and_its_near_miss(index: int) -> None:
    kind, line, near_miss = ROWS[index]
    rule = RULES[index]
    assert rule.first.match(line)
    assert not rule.first.match(near_miss)
    assert classify(line) == rule, f"a rule before {rule.first.pattern} took the line"
    found = classify(near_miss)
    assert found is None or found.kind is not kind


@pytest.mark.parametrize("line", [line for _, line, _ in ROWS])
def test_a_line_that_a_rule_matches_contains_a_trigger(line: str) -> None:
    assert any(trigger in line for trigger in TRIGGERS)


@pytest.mark.parametrize("index", range(len(ROWS)))
def test_a_quoted_line_is_no_complaint(index: int) -> None:
    assert classify(f"hugepfn: note: {ROWS[index][1]}") is None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("invalid opcode: 0000 [#1] PREEMPT SMP", K.OOPS),
        ("Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP", K.OOPS),
        ("general protection fault: 0000 [#3] SMP PTI", K.OOPS),
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
        "WARNING: stack recursion on stack type 4",
        "Out of memory handler installed",
        "FAULT_INJECTION: forcing a failure.",
        "name failslab, interval 1, probability 0, space 0, times 0",
        "",
    ],
)
def test_what_is_no_complaint(line: str) -> None:
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
def test_what_is_no_prefix(line: str) -> None:
    assert split(line) == ("", line)
