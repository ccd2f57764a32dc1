"""The virtual machines that guest programs make with KVM: what they declared, and where their nested tables start."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from harness.errors import ProtocolError
from harness.guest import bounds
from harness.guest.protocol import (
    CountsEvent,
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
    """Where page tables start: those of a process, or nested ones."""

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


class VirtualMachines:
    """Those of one run, by name.

    :param roots: None if the machine has no KVM.
    """

    def __init__(self, roots: NestedRoots | None) -> None:
        self.roots = roots
        self.by_name: dict[str, VirtualMachine] = {}

    def note(self, event: NestedEvent, taken: Collection[str]) -> None:
        """Record an event.

        :param taken: the names of the processes, which no virtual machine may have.
        :raises ProtocolError: it makes no sense.
        """
        match event:
            case VmEvent(name=name):
                if self.roots is None:
                    raise ProtocolError(
                        f"events: {name} is a virtual machine, but this machine was not started for KVM; give the test "
                        "@pytest.mark.machine(kvm=True), or the command --nested"
                    )
                if name in taken or name in self.by_name:
                    raise ProtocolError(f"events: a second {name!r}; give the virtual machine another name")
                if len(self.by_name) == bounds.MACHINES_MAX:
                    raise ProtocolError(f"events: more than {bounds.MACHINES_MAX} virtual machines")
                self.by_name[name] = VirtualMachine(event)
            case SlotEvent(vm=vm, slot=slot):
                slots = self._of(vm, slot.pid).slots
                if slot.name not in slots and len(slots) == bounds.SLOTS_MAX:
                    raise ProtocolError(f"events: {vm} has more than {bounds.SLOTS_MAX} slots")
                slots[slot.name] = event
            case SlotGoneEvent(name=name, vm=vm, pid=pid):
                self._of(vm, pid).slots.pop(name, None)
            case CountsEvent(vm=vm, pid=pid, leaves=leaves):
                self._of(vm, pid).counts, self._of(vm, pid).due = leaves, False
            case VmGoneEvent(name=name, pid=pid):
                self._of(name, pid)
                del self.by_name[name]

    def _of(self, name: str, pid: int) -> VirtualMachine:
        vm = self.by_name.get(name)
        if vm is None or vm.event.pid != pid:
            raise ProtocolError(f"events: process {pid} has no virtual machine {name!r}; make it with hp_vm_open()")
        return vm

    def forget_of(self, pid: int) -> None:
        """A process is gone: forget its virtual machines."""
        self.by_name = {name: vm for name, vm in self.by_name.items() if vm.event.pid != pid}

    def forget_counts(self) -> None:
        """Discard KVM's counts, which are older than the tables."""
        for vm in self.by_name.values():
            vm.counts = None

    def let_go(self) -> None:
        """A process goes on: its next checkpoint has to come with new counts."""
        for vm in self.by_name.values():
            vm.due = True

    def check_told(self, event: WaitEvent) -> None:
        """Check that KVM's counts came with a checkpoint of the process that owns the virtual machine.

        :raises ProtocolError: they did not, so nothing could be held against the walk.
        """
        for name, vm in self.by_name.items():
            if vm.due and vm.event.pid == event.pid:
                raise ProtocolError(
                    f"events: checkpoint {event.name!r} came without KVM's counts of {name}; use checkpoint()"
                )
