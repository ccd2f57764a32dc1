"""The host's witness: finds the page tables of a process, walks them, and lets the process go.

A waiting process has reported the address of its release word and the value in it (guest_tests/lib/checkpoint.c). That
value is unique in the machine, so a root through which the word is found is the root of this process. This needs no
help from the kernel, and no trust in the current CR3. The root is searched once, when the process registers; it does
not change while the process lives.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from harness import pagetable
from harness.errors import DeadlineError, ProtocolError, UsageError
from harness.guest import bounds
from harness.guest.protocol import (
    ORDINARY,
    Event,
    GoneEvent,
    MappingEvent,
    NestedEvent,
    PagemapEvent,
    SlotEvent,
    UnmappingEvent,
    WaitEvent,
    Where,
)
from harness.observe.iommu import read_rtaddr
from harness.observe.nested import NestedRoots, Spaces, TableRoot, VirtualMachine, WatchedIommu
from harness.observe.nested_view import TablesReading
from harness.observe.snapshot import MappingView, ProcessView, Snapshot
from harness.observe.table_reader import TableReader
from harness.pagetable import (
    PAGE_SIZE_BYTES,
    Layout,
    PagemapWord,
    Region,
    Walk,
    WalkError,
    root_paddr,
    translate,
    walk,
)
from harness.qemu.deadline import Deadline
from harness.qemu.process import Qemu
from harness.qemu.ram import GuestMemory
from harness.qemu.registers import ControlRegisters, parse_registers

T = TypeVar("T")

RELEASED = 0


@dataclass
class Process:
    """A registered process: its root table, and what it reported."""

    name: str
    pid: int
    root: int
    five_level: bool
    mappings: dict[str, MappingEvent] = field(default_factory=dict)
    pagemap: dict[str, tuple[int, ...]] = field(default_factory=dict)


class Witness:
    """Follows one guest program and its children, their virtual machines, and what the IOMMU lets their device reach.

    :param nested: finds nested tables; None if the machine has no KVM.
    """

    def __init__(self, qemu: Qemu, bars: Sequence[Region], layout: Layout, nested: NestedRoots | None = None) -> None:
        self._qemu = qemu
        self._bars = tuple(bars)
        self._layout = layout
        self._stopped_at = 0.0
        self._reader = TableReader()
        self._words_left = bounds.PAGEMAP_RUN_MAX
        self._spaces = Spaces(nested)
        self._rtaddr = 0
        self.processes: dict[int, Process] = {}

    @property
    def _memory(self) -> GuestMemory:
        return self._qemu.ram.memory

    def note(self, event: Event) -> None:
        """Record an event that needs no stop."""
        match event:
            case MappingEvent(name=name, pid=pid):
                self._declare(self._process(pid), event)
            case UnmappingEvent(name=name, pid=pid):
                self._process(pid).mappings.pop(name, None)
                self._process(pid).pagemap.pop(name, None)
            case PagemapEvent(mapping=name, pid=pid, words=words):
                if pid in self.processes:
                    self._keep_pagemap(self.processes[pid], name, words)
            case GoneEvent(pid=pid):
                self.processes.pop(pid, None)
                self._spaces.forget_of(pid)
            case WaitEvent():
                raise ProtocolError(f"events: {event} needs a stop")
            case _:
                self._note_nested(event)

    def _note_nested(self, event: NestedEvent) -> None:
        self._spaces.note(event, [process.name for process in self.processes.values()])
        if isinstance(event, SlotEvent):
            self._check_backing(event.slot)

    def _declare(self, process: Process, mapping: MappingEvent) -> None:
        if mapping.name not in process.mappings and len(process.mappings) == bounds.MAPPINGS_MAX:
            raise ProtocolError(f"events: pid {process.pid} declared more than {bounds.MAPPINGS_MAX} mappings")
        self._check_backing(mapping)
        process.mappings[mapping.name] = mapping
        process.pagemap.pop(mapping.name, None)

    def _check_backing(self, mapping: MappingEvent) -> None:
        """:raises ProtocolError: it ends after its BAR."""
        if mapping.backing != ORDINARY:
            bar = next((bar for bar in self._bars if bar.name == mapping.backing), None)
            size = bar.size_bytes if bar is not None else 0
            if mapping.offset_bytes + mapping.size_bytes > size:
                raise ProtocolError(
                    f"events: mapping {mapping.name} of pid {mapping.pid} ends at {mapping.backing}+"
                    f"{mapping.offset_bytes + mapping.size_bytes:#x}, but {mapping.backing} has {size:#x} bytes"
                )

    def _keep_pagemap(self, process: Process, name: str, words: tuple[int, ...]) -> None:
        mapping = process.mappings.get(name)
        if mapping is None:  # it was unmapped while another process read its pagemap
            return
        if len(words) * PAGE_SIZE_BYTES > mapping.size_bytes:
            raise ProtocolError(
                f"events: {len(words)} pagemap words for {name} of pid {process.pid}, "
                f"which has {mapping.size_bytes // PAGE_SIZE_BYTES} pages"
            )
        self._words_left -= len(words)
        if self._words_left < 0:
            raise ProtocolError(
                f"events: the processes of this run sent more than {bounds.PAGEMAP_RUN_MAX} pagemap words; "
                "declare less with hp_map(), or use fewer checkpoints"
            )
        process.pagemap[name] = words

    def _check_new(self, event: WaitEvent) -> None:
        """:raises ProtocolError: another process has this pid or name, or there are too many processes."""
        for known in self.processes.values():
            if known.pid == event.pid:
                raise ProtocolError(
                    f"events: {event.name} registers as pid {event.pid}, which {known.name} has; is it in another pid "
                    "namespace, or did a process end without hp_reap()?"
                )
            if known.name == event.name:
                raise ProtocolError(
                    f"events: pid {event.pid} registers as {event.name!r}, as pid {known.pid} did; give it another name"
                )
        if event.name in self._spaces.by_name:
            raise ProtocolError(f"events: pid {event.pid} registers as {event.name!r}, which is no process")
        if len(self.processes) == bounds.PROCESSES_MAX:
            raise ProtocolError(f"events: more than {bounds.PROCESSES_MAX} processes have registered")

    def _process(self, pid: int) -> Process:
        if pid not in self.processes:
            raise ProtocolError(f"events: pid {pid} never registered; call hp_start, hp_fork or hp_register first")
        return self.processes[pid]

    async def stop(self) -> None:
        """Stop every vCPU.

        :raises PremiseNotMet: a process watches the IOMMU, and it is off.
        """
        self._stopped_at = time.perf_counter()
        await self._qemu.stop()
        if self._spaces.has_iommu:
            self._rtaddr = await read_rtaddr(self._qemu)

    def forget_pagemap(self) -> None:
        """Discard the pagemap words and the counts of KVM and VFIO, which are older than the tables."""
        self._spaces.forget_counts()
        for process in self.processes.values():
            process.pagemap.clear()

    async def register(self, event: WaitEvent, deadline: Deadline) -> Process:
        """Find the root of a process that waits to be registered. The machine is stopped when this returns.

        If the process is not on a vCPU at a stop, the machine runs for the time of a few commands.

        :raises DeadlineError: the process was never on a vCPU when the machine was stopped.
        :raises ProtocolError: another process has its pid or its name.
        """
        self._check_new(event)
        while True:
            await self.stop()
            said = await self._qemu.execute("human-monitor-command", {"command-line": "info registers -a"})
            for registers in parse_registers(str(said)):
                root = self._root_of(registers, event)
                if root is None:
                    continue
                process = Process(event.name, event.pid, root, registers.five_level)
                if (parent := self.processes.get(event.parent_pid)) is not None:
                    process.mappings = {
                        name: dataclasses.replace(mapping, pid=event.pid) for name, mapping in parent.mappings.items()
                    }
                self.processes[event.pid] = process
                return process
            await self._qemu.resume()
            deadline.note()
            if not deadline.left_s and not deadline.extend():
                raise DeadlineError(
                    f"process {event.name} (pid {event.pid}) waits to be registered, "
                    f"but no vCPU had its page tables loaded at any stop within {deadline.timeout_s:g} s"
                )

    def _root_of(self, registers: ControlRegisters, event: WaitEvent) -> int | None:
        """Return the kernel's root of the process if this vCPU's CR3 leads to its release word."""
        root = root_paddr(registers.cr3)
        if not self._holds_nonce(root, registers.five_level, event):
            return None
        # With page-table isolation, bit 12 selects the user's copy of the root; both map user memory.
        kernel_root = root_paddr(registers.cr3, pti=True)
        if kernel_root != root and self._holds_nonce(kernel_root, registers.five_level, event):
            return kernel_root
        return root

    def _holds_nonce(self, root: int, five_level: bool, event: WaitEvent) -> bool:
        try:
            paddr = translate(self._memory, root, event.release_vaddr, self._layout_for(five_level))
            return self._memory.read_u64(paddr) == event.nonce
        except (WalkError, UsageError):  # nothing is mapped, or this vCPU has fewer levels, and no such address
            return False

    def _layout_for(self, five_level: bool) -> Layout:
        return dataclasses.replace(self._layout, five_level=five_level)

    def verify(self, event: WaitEvent) -> Process:
        """Return the process that is at a checkpoint, after a check that its tables lead to its release word.

        :raises ProtocolError: they do not, because the process has other tables now (exec?); or it never registered.
        """
        process = self._process(event.pid)
        self._spaces.check_told(event)
        if not self._holds_nonce(process.root, process.five_level, event):
            raise ProtocolError(
                f"{process.name} (pid {event.pid}) waits at {event.name!r}, but the tables of its registration do not "
                "lead to its release word: did it exec, or exit without hp_reap()?"
            )
        return process

    def release(self, event: WaitEvent) -> None:
        """Let a waiting process go by writing its release word. The machine must be stopped.

        :raises ProtocolError: the word is in a page that another process may share.
        """
        process = self._process(event.pid)
        layout = self._layout_for(process.five_level)
        way = walk(self._memory, process.root, event.release_vaddr, layout)
        if way.leaf is None or not way.leaf.write:
            raise ProtocolError(f"the release word of {process.name} is not in a page of its own:\n{way}")
        self._memory.write_u64(way.leaf.paddr_at(event.release_vaddr), RELEASED)
        self.forget_pagemap()
        self._spaces.let_go()

    def snapshot(self, checkpoint: str, pid: int, check: Callable[[], None] = lambda: None) -> Snapshot:
        """Walk every mapping of every registered process, and every slot of their virtual machines and devices.

        The machine must be stopped.

        :param check: called for each leaf; it may raise to end the walk.
        :raises ProtocolError: there are more leaves and holes than all stops of a run may have.
        """
        views = {process.name: self._view(process, checkpoint, check) for process in self.processes.values()}
        reading = TablesReading(self._memory, self._reader, checkpoint, check)
        for one in self._spaces.by_name.values():
            views[one.event.name] = self._other_view(reading, one)
        return Snapshot(checkpoint, pid, views, self._bars, time.perf_counter() - self._stopped_at)

    def _other_view(self, reading: TablesReading, one: VirtualMachine | WatchedIommu) -> ProcessView:
        """Return what the tables of a virtual machine or of a device have."""
        owner = self._process(one.event.pid)
        if isinstance(one, WatchedIommu):
            return reading.device(one, owner.name, self._rtaddr)
        return reading.machine(one, owner.name, self._tables(owner), self._nested_root(one))

    @property
    def declared(self) -> str:
        """What is walked at a stop, in words: the number of mappings, and their size."""
        mappings = [mapping for process in self.processes.values() for mapping in process.mappings.values()]
        return f"{len(mappings)} mappings of {sum(one.size_bytes for one in mappings) >> 20} MiB"

    def leaf_arrays(self, name: str, mapping: str) -> pagetable.LeafArrays:
        """Return the leaves of one mapping, or of a virtual machine's slot, as arrays. The machine must be stopped.

        :raises UsageError: there is no such process or mapping.
        """
        declared, tables = self._tables_of(name, mapping)
        end = declared.vaddr + declared.size_bytes
        return pagetable.walk_arrays(self._memory, tables.paddr, declared.vaddr, end, tables.layout)

    def _tables_of(self, name: str, mapping: str) -> tuple[MappingEvent, TableRoot]:
        """Return a mapping of a process, or a slot of a virtual machine, and the tables that have it.

        :raises UsageError: there is no such process or mapping, or the virtual machine has no tables yet.
        """
        for process in self.processes.values():
            if process.name == name and mapping in process.mappings:
                return process.mappings[mapping], self._tables(process)
        one = self._spaces.by_name.get(name)
        if isinstance(one, VirtualMachine) and mapping in one.slots and (root := self._nested_root(one)) is not None:
            return one.slots[mapping].slot, root
        raise UsageError(f"no registered process or virtual machine {name!r} has a mapping {mapping!r}")

    def _tables(self, process: Process) -> TableRoot:
        return TableRoot(process.root, self._layout_for(process.five_level))

    def _nested_root(self, one: VirtualMachine) -> TableRoot | None:
        assert self._spaces.roots is not None
        tables = self._tables(self._process(one.event.pid))
        return self._spaces.roots.find(self._memory, tables.paddr, tables.layout, one.event)

    def _view(self, process: Process, checkpoint: str, check: Callable[[], None]) -> ProcessView:
        tables = self._tables(process)
        mappings: dict[str, MappingView] = {}
        holes: dict[str, tuple[Walk, ...]] = {}
        for name, declared in process.mappings.items():
            words = tuple(PagemapWord(word) for word in process.pagemap.get(name, ()))
            mappings[name], holes[name] = self._reader.mapping(self._memory, tables, declared, words, check)
        return ProcessView(process.name, process.pid, checkpoint, mappings, holes)


def needs_registration(event: WaitEvent) -> bool:
    """Return whether the process waits to be registered, rather than at a checkpoint."""
    return event.where is Where.REGISTERING
