"""Page tables of a running machine that are not a process's: those of virtual machines of KVM, and the IOMMU's."""

from __future__ import annotations

from dataclasses import dataclass

from harness import pagetable
from harness.errors import UsageError
from harness.guest.protocol import VmEvent
from harness.introspect.kvm import KvmRoots
from harness.introspect.live_kernel import LiveKernel
from harness.introspect.processes import Processes, ProcessRoot, RangeWalk
from harness.observe.iommu import read_rtaddr
from harness.pagetable import Layout, Walk, walk
from harness.pagetable.vtd import Access, LookUp, SourceId, device_tables


@dataclass(frozen=True, slots=True)
class DeviceRoot:
    """A device, and where the IOMMU's page tables of it start."""

    bdf: str
    access: Access
    path: tuple[LookUp, ...]
    """How the IOMMU finds them, from its root table on."""
    paddr: int
    """Physical address of the root of the page tables; 0 if there are none, because its access is not TRANSLATED."""
    layout: Layout

    def __str__(self) -> str:
        return f"device {self.bdf}"


@dataclass(frozen=True, slots=True)
class MachineRoot:
    """A virtual machine of KVM in the guest, and where its nested page tables start."""

    process: ProcessRoot
    """The process that made it."""
    vm_fd: int
    """That process's file descriptor of the virtual machine."""
    paddr: int
    """Physical address of the root of the nested tables; 0 if its vCPU has none yet."""
    layout: Layout

    def __str__(self) -> str:
        return f"virtual machine {self.vm_fd} of process {self.process}"


class AddressSpaces:
    """The virtual machines and devices of one machine. What one method returns was read at one stop."""

    def __init__(self, vm: LiveKernel, processes: Processes, kvm: KvmRoots) -> None:
        self._vm = vm
        self._processes = processes
        self._kvm = kvm

    def device(self, bdf: str, start: int, end: int | None) -> tuple[DeviceRoot, Walk | RangeWalk | None]:
        """Return the walk to one IO virtual address of a device, or everything in [start, end).

        :returns: the walk is None if the IOMMU has no page tables for the device.
        :raises UsageError: bdf is not the PCI address of a device, or the tables have no such addresses.
        :raises PremiseNotMet: the machine has no IOMMU, or the kernel does not use it.
        :raises WalkError: the tables make no sense.
        """
        source = SourceId.parse(bdf)
        vm = self._vm
        with vm.paused():
            rtaddr = vm.on_loop(read_rtaddr(vm.qemu))
            found = device_tables(vm.memory, rtaddr, source)
            root = DeviceRoot(str(source), found.access, found.path, found.root, found.layout)
            return root, self._look(root, start, end) if found.access is Access.TRANSLATED else None

    def learn_machines(self) -> None:
        """Ask the running guest for all that :meth:`machine` needs, so that it works while the guest stands still.

        :raises PremiseNotMet: the kernel's KVM uses no nested tables, or the kernel does not tell its types.
        """
        self._processes.learn()
        self._kvm.learn()

    def machine(
        self, pid: int, vm_fd: int | None, start: int, end: int | None
    ) -> tuple[MachineRoot, Walk | RangeWalk | None]:
        """Return the walk to one guest-physical address of a virtual machine, or everything in [start, end).

        :param pid: of the process that made the virtual machine.
        :param vm_fd: its file descriptor there; None if it has only one.
        :returns: the walk is None if the vCPU has no nested tables yet.
        :raises UsageError: the process has no such virtual machine, or several.
        :raises PremiseNotMet: as :meth:`learn_machines`.
        """
        self.learn_machines()
        vm = self._vm
        with vm.paused():
            process = self._processes.root(pid)
            there = self._kvm.machines(vm.memory, process.paddr, process.layout, process.tgid)
            event = _chosen(there, process, vm_fd)
            tables = self._kvm.find(vm.memory, process.paddr, process.layout, event)
            if tables is None:
                return MachineRoot(process, event.vm_fd, 0, Layout.NPT), None
            root = MachineRoot(process, event.vm_fd, tables.paddr, tables.layout)
            return root, self._look(root, start, end)

    def _look(self, root: DeviceRoot | MachineRoot, start: int, end: int | None) -> Walk | RangeWalk:
        if end is None:
            return walk(self._vm.memory, root.paddr, start, root.layout)
        return RangeWalk(root, start, end, pagetable.entry_arrays(self._vm.memory, root.paddr, start, end, root.layout))


def _chosen(there: tuple[VmEvent, ...], process: ProcessRoot, vm_fd: int | None) -> VmEvent:
    """:raises UsageError: there is no such virtual machine, or none is named and there are several."""
    files = sorted({one.vm_fd for one in there})
    if not files:
        raise UsageError(f"process {process} has no virtual machine of KVM with a vCPU")
    if vm_fd is None and len(files) > 1:
        raise UsageError(
            f"process {process} has {len(files)} virtual machines; expected PID:FD with one of the file descriptors "
            f"{', '.join(map(str, files))}"
        )
    found = [one for one in there if vm_fd in (None, one.vm_fd)]
    if not found:
        raise UsageError(f"file descriptor {vm_fd} of process {process} is no virtual machine; expected one of {files}")
    return found[0]
