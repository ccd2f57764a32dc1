"""The page tables of any process of a running guest, found through the kernel's own structures, without its help."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from harness import pagetable
from harness.errors import MachineryError
from harness.introspect.kernel_facts import KernelFacts
from harness.introspect.kernel_memory import KernelMemory, prove_kernel_memory
from harness.introspect.live_kernel import LiveKernel
from harness.introspect.tasks import Task, Tasks, first_task
from harness.introspect.vmas import Vma, count_vmas, parse_maps
from harness.pagetable import Layout, Leaf, Walk, walk
from harness.pagetable.bits import Level
from harness.pagetable.entry import Entry
from harness.printable import printable
from harness.qemu.registers import parse_registers

_TRIES = 5


@dataclass(frozen=True, slots=True)
class ProcessRoot:
    """A process of the guest, and where its page tables start."""

    pid: int
    tgid: int
    """Pid of the process that the thread belongs to."""
    name: str
    """Its comm (task_struct.comm)."""
    paddr: int
    """Physical address of the root table; with page-table isolation, of the kernel's copy."""
    layout: Layout

    def __str__(self) -> str:
        return f"{self.pid} ({self.name})"


class Tables(Protocol):
    """Page tables: those of a :class:`ProcessRoot`, or others."""

    @property
    def layout(self) -> Layout:
        """Their format and depth."""


@dataclass(frozen=True, slots=True, eq=False)
class RangeWalk:
    """All leaves, holes and swap entries in a range of page tables, at one stop."""

    tables: Tables
    start: int
    """First virtual address of the range."""
    end: int
    """One past the last virtual address."""
    entries: pagetable.LeafArrays = field(repr=False)
    """Leaves, holes and swap entries, see entry_arrays()."""

    @property
    def leaves(self) -> list[Leaf]:
        """The leaves in the range, in ascending order of address."""
        layout = self.tables.layout
        found = pagetable.only(self.entries, pagetable.leaf_mask(self.entries, layout.format))
        columns = zip(found.vaddr.tolist(), found.raw.tolist(), found.level.tolist(), strict=True)
        return [Leaf(Entry(raw, Level(level), layout), vaddr) for vaddr, raw, level in columns]

    def runs(self, previous: RangeWalk | None = None) -> Iterator[pagetable.EntryRun]:
        """Yield runs of equal neighbours, holes included.

        :param previous: an earlier walk of the same range; each run then has the entry that it had there.
        """
        old = None if previous is None else previous.entries
        return pagetable.runs(self.entries, self.tables.layout, self.start, self.end, old)


@dataclass(frozen=True, slots=True)
class ProcessVmas:
    """The VMAs of a process, and what its page tables have in each, at one stop."""

    process: ProcessRoot
    vmas: tuple[Vma, ...]
    elsewhere: int
    """Number of leaves outside all VMAs; 0 in a sound kernel."""


class Processes:
    """The processes of one VM. What one method returns was read at one stop."""

    def __init__(self, vm: LiveKernel) -> None:
        self._vm = vm
        self.facts = KernelFacts(vm)

    def learn(self) -> None:
        """Ask the running guest for all that the other methods need, so that they also work while it stands still.

        :raises PremiseNotMet: the kernel does not tell its addresses or offsets, see :class:`KernelFacts`.
        :raises UsageError: the machine stands still, and was not asked before.
        """
        self._vm.caps  # noqa: B018 - the probe gives the layout
        self.facts.init_task  # noqa: B018
        self.facts.offsets  # noqa: B018

    def list(self) -> tuple[Task, ...]:
        """Return every process, kernel threads included (for_each_process() of include/linux/sched/signal.h)."""
        self.learn()
        with self._vm.paused():
            _, tasks = self._tasks()
            return tuple(tasks)

    def root(self, pid: int) -> ProcessRoot:
        """Return where the page tables of a process start (mm->pgd). Only exec changes it while the process lives.

        :param pid: of a process or a thread, in the guest's first pid namespace.
        :raises UsageError: there is no such process, or it has no page tables of its own: a kernel thread, a zombie.
        :raises PremiseNotMet: the kernel does not tell its addresses or offsets, see :class:`KernelFacts`.
        :raises MachineryError: the kernel's structures make no sense.
        """
        self.learn()
        with self._vm.paused():
            return self._root(pid)

    def walk(self, pid: int, vaddr: int) -> Walk:
        """Return the walk from the root of a process to the entry that decides for one address.

        :param vaddr: in the user's or the kernel's half.
        :raises UsageError: as :meth:`root`; or the address is not canonical.
        """
        self.learn()
        with self._vm.paused():
            process = self._root(pid)
            return walk(self._vm.memory, process.paddr, vaddr, process.layout)

    def walk_range(self, pid: int, start: int, end: int) -> RangeWalk:
        """Return all leaves, holes and swap entries in [start, end) of a process.

        :raises UsageError: as :meth:`root`; or the range is not canonical, or ends before it starts.
        """
        self.learn()
        with self._vm.paused():
            process = self._root(pid)
            entries = pagetable.entry_arrays(self._vm.memory, process.paddr, start, end, process.layout)
            return RangeWalk(process, start, end, entries)

    def vmas(self, pid: int) -> ProcessVmas:
        """Return the VMAs of a process, and what its page tables have in each.

        /proc/PID/maps can only be read while the guest runs, and the tables only while it stands still. So maps is read
        before and after, and must be the same. smaps and numa_maps are not read, because reading them changes the
        tables.

        :raises UsageError: as :meth:`root`; or the machine stands still.
        :raises MachineryError: the VMAs changed during every attempt.
        """
        before = self._maps(pid)
        for _ in range(_TRIES):
            with self._vm.paused():
                process = self._root(pid)
                half = 1 << process.layout.address_bits - 1
                entries = pagetable.entry_arrays(self._vm.memory, process.paddr, 0, half, process.layout)
            after = self._maps(pid)
            if before == after:
                vmas, elsewhere = count_vmas(parse_maps(printable(before)), entries, process.layout)
                return ProcessVmas(process, vmas, elsewhere)
            before = after
        raise MachineryError(
            f"the VMAs of process {process} changed during each of {_TRIES} attempts to read them; stop the process "
            "first, for instance with SIGSTOP"
        )

    def _maps(self, pid: int) -> bytes:
        self.root(pid)  # its error says more than that of a missing file
        return self._vm.get(f"/proc/{pid}/maps")

    def _root(self, pid: int) -> ProcessRoot:
        kernel, tasks = self._tasks()
        task = tasks.find(pid)
        return ProcessRoot(task.pid, task.tgid, task.name, tasks.root(task), kernel.layout)

    def _tasks(self) -> tuple[KernelMemory, Tasks]:
        """Return the tasks at this stop."""
        vm, facts = self._vm, self.facts
        said = vm.on_loop(vm.qemu.execute("human-monitor-command", {"command-line": "info registers -a"}))
        first = first_task(facts.init_task, facts.offsets)
        kernel = prove_kernel_memory(vm.memory, parse_registers(str(said)), vm.layout, first)
        return kernel, Tasks(kernel, facts.init_task, facts.offsets)
