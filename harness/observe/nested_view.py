"""Reads what nested tables, and the IOMMU's, have at one stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

from harness import pagetable
from harness.guest.protocol import SlotEvent
from harness.observe.iommu import root_of
from harness.observe.nested import TableRoot, VirtualMachine, WatchedIommu
from harness.observe.snapshot import IommuLook, MappingView, NestedLook, ProcessView
from harness.observe.table_reader import TableReader
from harness.pagetable import LEAF_LEVELS, Walk, WalkError
from harness.pagetable.memory import Memory
from harness.pagetable.vtd import Access


class _Slots(NamedTuple):
    views: dict[str, MappingView]
    holes: dict[str, tuple[Walk, ...]]


class TablesReading:
    """The reading of one stop.

    :param check: called for each leaf; it may raise to end the walk.
    """

    def __init__(self, memory: Memory, reader: TableReader, checkpoint: str, check: Callable[[], None]) -> None:
        self._memory = memory
        self._reader = reader
        self._checkpoint = checkpoint
        self._check = check

    def machine(self, vm: VirtualMachine, owner: str, tables: TableRoot, root: TableRoot | None) -> ProcessView:
        """Return what the nested tables of a virtual machine have. All of them are counted, not only the slots.

        :param owner: the name of the process that made it.
        :param tables: of that process.
        :param root: of the nested tables; None if there are none yet.
        """
        walked, broken = self._counted(root)
        slots = self._slots(vm.slots, root)
        if root is not None:
            for name, declared in vm.slots.items():
                same = dataclasses.replace(declared.slot, vaddr=declared.owner_vaddr)
                behind, _ = self._reader.mapping(self._memory, tables, same, (), self._check)
                seen = slots.views[name]
                slots.views[name] = dataclasses.replace(seen, behind=behind.leaves, behind_vaddr=same.vaddr)
        look = NestedLook(owner, walked, vm.counts, broken)
        return ProcessView(vm.event.name, vm.event.pid, self._checkpoint, *slots, look)

    def device(self, iommu: WatchedIommu, owner: str, rtaddr: int) -> ProcessView:
        """Return what the IOMMU's tables of a device have. All of them are counted, not only the ranges.

        :param owner: the name of the process that watches it.
        :param rtaddr: RTADDR_REG of the IOMMU.
        """
        access, root, broken = Access.BLOCKED, None, ""
        try:
            found, root = root_of(self._memory, rtaddr, iommu.event.bdf)
            access = found.access
        except WalkError as error:
            broken = str(error)
        walked, why = self._counted(root)
        sizes = [level.size_bytes for level in LEAF_LEVELS]
        walked_bytes = sum(number * size for number, size in zip(walked, sizes, strict=True))
        look = IommuLook(owner, access, walked_bytes, iommu.counts, broken or why)
        slots = self._slots(iommu.slots, root)
        return ProcessView(iommu.event.name, iommu.event.pid, self._checkpoint, *slots, look)

    def _counted(self, root: TableRoot | None) -> tuple[tuple[int, ...], str]:
        """Return how many leaves of each level the tables have, and why they cannot be walked."""
        if root is None:
            return (0,) * len(LEAF_LEVELS), ""
        try:
            every = pagetable.walk_arrays(self._memory, root.paddr, 0, root.layout.end, root.layout)
        except WalkError as error:
            return (0,) * len(LEAF_LEVELS), str(error)
        return tuple(int((every.level == level).sum()) for level in LEAF_LEVELS), ""

    def _slots(self, declared: Mapping[str, SlotEvent], root: TableRoot | None) -> _Slots:
        found = _Slots({}, {})
        for name, event in declared.items():
            if root is None:
                found.views[name], found.holes[name] = MappingView(event.slot, (), ()), ()
            else:
                found.views[name], found.holes[name] = self._reader.mapping(
                    self._memory, root, event.slot, (), self._check
                )
        return found
