"""Address spaces beside those of processes: virtual machines that guest programs make with KVM, and devices' IOVAs.

Here is what the programs declared, and what finds the tables.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from harness.errors import ProtocolError
from harness.guest import bounds
from harness.guest.protocol import (
    CountsEvent,
    DmaEvent,
    IommuEvent,
    NestedEvent,
    SlotEvent,
    SlotGoneEvent,
    VmEvent,
    VmGoneEvent,
    WaitEvent,
)
from harness.pagetable import Layout
from harness.pagetable.memory import Memory


@dataclass(frozen=True, slots=True)
class TableRoot:
    """Where page tables start: those of a process, nested ones, or those of a device."""

    paddr: int
    """Physical address of the root table."""
    layout: Layout
    """Their format and depth."""


class NestedRoots(Protocol):
    """Finds nested tables through the kernel's own structures. :class:`harness.introspect.kvm.KvmRoots` does."""

    def find(self, memory: Memory, root: int, layout: Layout, vm: VmEvent) -> TableRoot | None:
        """Return where the nested tables of a virtual machine start; None if its vCPU has none yet.

        The machine must be stopped.

        :param root: of the process that made it, a root that was verified, like the layout.
        :raises MachineryError: the kernel's structures make no sense.
        """


@dataclass
class VirtualMachine:
    """One that a process declared."""

    event: VmEvent
    slots: dict[str, SlotEvent] = field(default_factory=dict)
    counts: tuple[int, ...] | None = None
    """Leaves of 4 KiB, 2 MiB and 1 GiB by KVM's own count; None if they were not told since the tables changed."""
    due: bool = True
    """Whether the next checkpoint of its process has to come with the counts."""

    @property
    def witness(self) -> str:
        """What has to come with a checkpoint."""
        return "KVM's counts"


@dataclass
class WatchedIommu:
    """The IOMMU's tables of a device, which a process declared."""

    event: IommuEvent
    slots: dict[str, SlotEvent] = field(default_factory=dict)
    counts: int | None = None
    """Bytes that VFIO has mapped by its own account; None if it was not told since the tables changed."""
    due: bool = True
    """Whether the next checkpoint of its process has to come with it."""

    @property
    def witness(self) -> str:
        """What has to come with a checkpoint."""
        return "VFIO's size"


class Spaces:
    """The virtual machines and watched IOMMUs of one run, by name.

    :param roots: None if the machine has no KVM.
    """

    def __init__(self, roots: NestedRoots | None) -> None:
        self.roots = roots
        self.by_name: dict[str, VirtualMachine | WatchedIommu] = {}

    @property
    def has_iommu(self) -> bool:
        """Whether a process watches the IOMMU's tables of a device."""
        return any(isinstance(one, WatchedIommu) for one in self.by_name.values())

    def note(self, event: NestedEvent, taken: Collection[str]) -> None:
        """Record an event.

        :param taken: the names of the processes, which no virtual machine and no IOMMU may have.
        :raises ProtocolError: it makes no sense.
        """
        match event:
            case VmEvent(name=name):
                if self.roots is None:
                    raise ProtocolError(
                        f"events: {name} is a virtual machine, but this machine was not started for KVM; give the test "
                        "@pytest.mark.machine(kvm=True), or the command --nested"
                    )
                self._add(VirtualMachine(event), taken)
            case IommuEvent():
                self._add(WatchedIommu(event), taken)
            case SlotEvent(vm=name, slot=slot):
                slots = self._of(name, slot.pid).slots
                if slot.name not in slots and len(slots) == bounds.SLOTS_MAX:
                    raise ProtocolError(f"events: {name} has more than {bounds.SLOTS_MAX} slots")
                slots[slot.name] = event
            case SlotGoneEvent(name=slot_name, vm=name, pid=pid):
                self._of(name, pid).slots.pop(slot_name, None)
            case CountsEvent(vm=name, pid=pid, leaves=leaves):
                vm = self._of(name, pid)
                if not isinstance(vm, VirtualMachine):
                    raise ProtocolError(f"events: {name} is an IOMMU, and KVM counts nothing there")
                vm.counts, vm.due = leaves, False
            case DmaEvent(iommu=name, pid=pid, size_bytes=size_bytes):
                iommu = self._of(name, pid)
                if not isinstance(iommu, WatchedIommu):
                    raise ProtocolError(f"events: {name} is a virtual machine, and VFIO maps nothing there")
                iommu.counts, iommu.due = size_bytes, False
            case VmGoneEvent(name=name, pid=pid):
                self._of(name, pid)
                del self.by_name[name]

    def _add(self, one: VirtualMachine | WatchedIommu, taken: Collection[str]) -> None:
        name = one.event.name
        if name in taken or name in self.by_name:
            raise ProtocolError(f"events: a second {name!r}; give the virtual machine or the IOMMU another name")
        if len(self.by_name) == bounds.MACHINES_MAX:
            raise ProtocolError(f"events: more than {bounds.MACHINES_MAX} virtual machines and IOMMUs")
        self.by_name[name] = one

    def _of(self, name: str, pid: int) -> VirtualMachine | WatchedIommu:
        one = self.by_name.get(name)
        if one is None or one.event.pid != pid:
            raise ProtocolError(
                f"events: process {pid} has no virtual machine and no IOMMU {name!r}; use hp_vm_open() or "
                "hp_iommu_watch()"
            )
        return one

    def forget_of(self, pid: int) -> None:
        """A process is gone: forget what it declared."""
        self.by_name = {name: one for name, one in self.by_name.items() if one.event.pid != pid}

    def forget_counts(self) -> None:
        """Discard what KVM and VFIO count, which is older than the tables."""
        for one in self.by_name.values():
            one.counts = None

    def let_go(self) -> None:
        """A process goes on: its next checkpoint has to come with new counts."""
        for one in self.by_name.values():
            one.due = True

    def check_told(self, event: WaitEvent) -> None:
        """Check that a checkpoint came with the counts of what its process declared.

        :raises ProtocolError: it did not, so nothing could be held against the walk.
        """
        for name, one in self.by_name.items():
            if one.due and one.event.pid == event.pid:
                raise ProtocolError(
                    f"events: checkpoint {event.name!r} came without {one.witness} of {name}; use checkpoint()"
                )
