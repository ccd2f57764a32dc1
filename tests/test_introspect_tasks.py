"""Tests for finding the guest's tasks, in simulated memory: a root is verified, and nothing is guessed."""

from __future__ import annotations

import dataclasses

import pytest

from harness.errors import MachineryError, ProtocolError, UsageError
from harness.introspect.kernel_facts import address_in
from harness.introspect.kernel_memory import KernelMemory, prove_kernel_memory
from harness.introspect.tasks import TaskOffsets, Tasks, first_task
from harness.introspect.vmas import VmaLine, count_vmas, parse_maps
from harness.pagetable import Bits, Layout, Level, PhysicalMemory, WalkError, entry_arrays
from harness.qemu.registers import CR4_LA57, ControlRegisters

FOUR = Layout.MODERN
PAGE = 4096
BASE = 0xFFFFFFFF80000000  # address of the first 2 MiB of RAM in the kernel's half
ROOT, USER_ROOT, OTHER_ROOT = 0x2000, 0x3000, 0x4000  # they differ in bit 12, as with page-table isolation
PUD, PMD = 0x5000, 0x6000
AT = TaskOffsets(tasks=0, pid=16, tgid=20, comm=24, flags=40, mm=48, signal=56, thread_node=64, thread_head=0, pgd=8)
INIT, TASK, THREAD, KTHREAD, ZOMBIE = 0x10000, 0x11000, 0x12000, 0x13000, 0x14000
SIGNALS = {INIT: 0x20000, TASK: 0x20100, KTHREAD: 0x20200, ZOMBIE: 0x20300}
MM = 0x21000


class Ram:
    """2 MiB of guest RAM. Its methods take physical addresses; pointers stored in it are kernel addresses."""

    def __init__(self) -> None:
        self.data = bytearray(2 << 20)
        for root in (ROOT, OTHER_ROOT):
            self.put(root + 8 * 511, PUD | 0x67)
        self.put(PUD + 8 * 510, PMD | 0x67)
        self.put(PMD, 0x1E3)
        self.task(INIT, 0, 0, "swapper/0")
        self.task(TASK, 100, 100, "sleeper", mm=MM)
        self.task(THREAD, 101, 100, "worker", mm=MM)
        self.task(KTHREAD, 2, 2, "kthreadd", flags=0x00200000)
        self.task(ZOMBIE, 9, 9, "dead")
        self.put(MM + AT.pgd, BASE + OTHER_ROOT)
        self.ring([INIT, KTHREAD, TASK, ZOMBIE], AT.tasks)
        for leader, signal in SIGNALS.items():
            threads = [leader, THREAD] if leader == TASK else [leader]
            for task in threads:
                self.put(task + AT.signal, BASE + signal)
            self.ring([signal - AT.thread_node, *threads], AT.thread_node)

    def put(self, paddr: int, value: int, size_bytes: int = 8) -> None:
        self.data[paddr : paddr + size_bytes] = value.to_bytes(size_bytes, "little")

    def ring(self, structs: list[int], offset: int) -> None:
        for one, following in zip(structs, [*structs[1:], structs[0]], strict=True):
            self.put(one + offset, BASE + following + offset)

    def task(self, paddr: int, pid: int, tgid: int, name: str, mm: int = 0, flags: int = 0) -> None:
        self.put(paddr + AT.pid, pid, 4)
        self.put(paddr + AT.tgid, tgid, 4)
        self.put(paddr + AT.flags, flags, 4)
        self.put(paddr + AT.mm, mm and BASE + mm)
        self.data[paddr + AT.comm : paddr + AT.comm + len(name)] = name.encode()

    def prove(self, *cr3s: int, cr4: int = 0) -> KernelMemory:
        registers = [ControlRegisters(cpu, cr3, cr4) for cpu, cr3 in enumerate(cr3s)]
        return prove_kernel_memory(PhysicalMemory(self.data), registers, FOUR, first_task(BASE + INIT, AT))

    def tasks(self) -> Tasks:
        return Tasks(self.prove(ROOT), BASE + INIT, AT)


def test_reading_kernel_memory() -> None:
    ram = Ram()
    ram.data[0x1FFE : 0x1FFE + 12] = b"across pages"
    kernel = ram.prove(ROOT)
    assert kernel.read(BASE + 0x1FFE, 12) == b"across pages"
    assert kernel.text(BASE + INIT + AT.comm, 16) == "swapper/0"
    assert [kernel.u32(BASE + TASK + AT.pid), kernel.u32(BASE + THREAD + AT.tgid)] == [100, 100]
    with pytest.raises(WalkError, match="nothing is mapped"):
        kernel.u64(BASE + (4 << 20))


@pytest.mark.parametrize(
    "cr3s", [(ROOT,), (ROOT | 0x801,), (USER_ROOT,), (0, USER_ROOT | 1 << 63), (0x7000, OTHER_ROOT)], ids=str
)
def test_a_root_is_verified_by_init_task(cr3s: tuple[int, ...]) -> None:
    """CR3 may have a PCID, be the user's copy, belong to a vCPU that never started, or to other tables."""
    assert Ram().prove(*cr3s).root in (ROOT, OTHER_ROOT)


def test_an_unverified_root_is_refused() -> None:
    ram = Ram()
    for cr3s, cr4 in [((), 0), ((0,), 0), ((0x7000,), 0), ((ROOT,), CR4_LA57)]:
        with pytest.raises(MachineryError, match="init_task at 0xffffffff80010000"):
            ram.prove(*cr3s, cr4=cr4)
    ram.put(INIT + AT.pid, 7, 4)
    with pytest.raises(MachineryError, match="belong to another kernel than the running one"):
        ram.prove(ROOT)
    ram = Ram()
    ram.data[INIT + AT.comm] = ord("S")
    with pytest.raises(MachineryError, match="belong to another kernel than the running one"):
        ram.prove(ROOT)


def test_tasks_and_threads_are_found() -> None:
    tasks = Ram().tasks()
    assert [(task.pid, task.name, task.kernel_thread) for task in tasks] == [
        (2, "kthreadd", True),
        (100, "sleeper", False),
        (9, "dead", False),
    ]
    thread = tasks.find(101)
    assert (thread.pid, thread.tgid, thread.name) == (101, 100, "worker")
    assert tasks.root(tasks.find(100)) == tasks.root(thread) == OTHER_ROOT


def test_a_task_without_page_tables_has_a_reason() -> None:
    tasks = Ram().tasks()
    with pytest.raises(UsageError, match=r"no process 77 in the guest; expected one of 100 \(sleeper\)"):
        tasks.find(77)
    with pytest.raises(UsageError, match=r"2 \(kthreadd\).*a kernel thread"):
        tasks.root(tasks.find(2))
    with pytest.raises(UsageError, match=r"9 \(dead\).*exiting"):
        tasks.root(tasks.find(9))


@pytest.mark.parametrize("pgd", [0x7000, OTHER_ROOT + 8, MM])
def test_a_pgd_that_does_not_map_the_kernel_is_no_root(pgd: int) -> None:
    ram = Ram()
    ram.put(MM + AT.pgd, BASE + pgd)
    tasks = ram.tasks()
    with pytest.raises(MachineryError, match="not the root of a page table"):
        tasks.root(tasks.find(100))


def test_a_broken_task_list_is_an_error() -> None:
    ram = Ram()
    ram.put(TASK + AT.tasks, 0x1234567000)
    with pytest.raises(MachineryError, match="nothing is mapped"):
        list(ram.tasks())


MAPS = "".join(
    f"{line}\n"
    for line in (
        "00400000-00401000 r--p 00000000 00:02 12                                 /init",
        "7f0000000000-7f0000400000 rw-p 00000000 00:00 0 ",
        "7f0000400000-7f0000401000 ---s 00001000 00:05 99                         /a name (deleted)",
        "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]",
    )
)


def test_maps() -> None:
    assert parse_maps(MAPS) == (
        VmaLine(0x400000, 0x401000, "r--p", 0, "/init"),
        VmaLine(0x7F0000000000, 0x7F0000400000, "rw-p", 0, ""),
        VmaLine(0x7F0000400000, 0x7F0000401000, "---s", 0x1000, "/a name (deleted)"),
    )
    with pytest.raises(ProtocolError, match="nonsense"):
        parse_maps("nonsense\n")


def test_vmas_count_leaves_bits_and_leaves_outside_of_vmas() -> None:
    ram = Ram()
    ram.put(ROOT, 0x7067)
    ram.put(0x7000, 0x8067)
    ram.put(0x8000 + 8 * 2, 0x9067)  # the table for 4 MiB and above
    ram.put(0x8000 + 8 * 3, 0x80000000002008E7)  # 2 MiB at 6 MiB
    for index, raw in enumerate([0x8000000000001067, 0x1065, 0x1E, 0, 0x1067]):
        ram.put(0x9000 + 8 * index, raw)
    kernel = ram.prove(ROOT)
    layout = dataclasses.replace(FOUR, five_level=False)
    entries = entry_arrays(PhysicalMemory(ram.data), kernel.root, 0, 1 << 47, layout)
    lines = [VmaLine(4 << 20, (4 << 20) + 4 * PAGE, "rw-p", 0, ""), VmaLine(6 << 20, 8 << 20, "rw-p", 0, "huge")]
    vmas, elsewhere = count_vmas(lines, entries, layout)
    assert [dict(vma.leaves) for vma in vmas] == [
        {Level.PTE: 2, Level.PMD: 0, Level.PUD: 0},
        {Level.PTE: 0, Level.PMD: 1, Level.PUD: 0},
    ]
    assert [vma.swapped for vma in vmas] == [1, 0]
    assert vmas[0].bits == {Bits.P: 2, Bits.W: 1, Bits.U: 2, Bits.A: 2, Bits.D: 2, Bits.NX: 1}
    assert vmas[1].bits[Bits.SOFT_DIRTY] == 1
    assert elsewhere == 1


def test_kallsyms() -> None:
    text = (
        b"ffffffff81000000 T _text\nffffffff82a10940 D init_task\n0000000000000000 D hidden\n"
        b"ffffffff81000010 t init_task_more\nffffffffc0000000 t init_tas\t[module]\n"
    )
    assert address_in(text, "init_task") == 0xFFFFFFFF82A10940
    assert address_in(text, "_text") == 0xFFFFFFFF81000000
    assert [address_in(text, name) for name in ("hidden", "init_tas", "text", "")] == [None] * 4
