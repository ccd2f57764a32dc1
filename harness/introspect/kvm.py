"""The nested tables of KVM's virtual machines, found through the kernel's own structures, without its help.

A process's file descriptor leads to ``struct kvm`` and ``struct kvm_vcpu`` (``private_data`` of the files that
KVM_CREATE_VM and KVM_CREATE_VCPU make), and the vCPU to the root of its MMU. Nothing is guessed: the VM must have the
``mm`` of the process, and the vCPU the VM.

Source: include/linux/kvm_host.h, include/linux/fdtable.h, arch/x86/include/asm/kvm_host.h (struct kvm_mmu, union
kvm_mmu_page_role).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import pagetable
from harness.errors import MachineryError, PremiseNotMet, UsageError
from harness.guest.protocol import VmEvent
from harness.host import cache
from harness.introspect.kernel_facts import KernelFacts
from harness.introspect.kernel_memory import KernelMemory, leads_to_first_task
from harness.introspect.tasks import Task, TaskOffsets, Tasks, first_task
from harness.kernel.btf import Btf
from harness.kernel.offsets import KVM_MEMBERS, TASK_MEMBERS
from harness.observe.nested import TableRoot
from harness.pagetable import PAGE_SIZE_BYTES, Layout, WalkError
from harness.pagetable.memory import Memory
from harness.printable import printable

_KVM_BTF = "/sys/kernel/btf/kvm"
#: The parameter of each vendor's module that says whether it uses nested tables, and their format.
_FORMATS = {"/sys/module/kvm_amd/parameters/npt": Layout.NPT, "/sys/module/kvm_intel/parameters/ept": Layout.EPT}
_TEXT, _TEXT_END = 0xFFFFFFFF80000000, 0xFFFFFFFFC0000000  # __START_KERNEL_map, MODULES_VADDR
_NO_ROOT = (1 << 64) - 1  # INVALID_PAGE


@dataclass(frozen=True)
class KvmFacts:
    """What must be known of a kernel before nested tables can be found; the same in every boot of it."""

    offsets: Mapping[str, int]
    """Bytes from a struct's start to each member."""
    init_task: int
    """Bytes from the start of the kernel's text to the first task."""

    def of(self, member: str) -> int:
        """Return the offset of a member in bytes."""
        return self.offsets[member]


class KvmRoots:
    """Finds nested tables in one machine. Call :meth:`learn` while it runs."""

    def __init__(self, facts: KernelFacts) -> None:
        self._facts = facts

    def learn(self) -> None:
        """Read what :meth:`find` needs.

        :raises PremiseNotMet: the kernel's KVM uses no nested tables, or the kernel does not tell its types.
        """
        self.layout  # noqa: B018
        self.known  # noqa: B018

    @functools.cached_property
    def layout(self) -> Layout | None:
        """The format of the nested tables; None if KVM's module for this CPU is not loaded.

        :raises PremiseNotMet: KVM uses shadow page tables.
        """
        for path, layout in _FORMATS.items():
            said = printable(self._facts.optional(path)).strip()
            if said in ("N", "0"):
                raise PremiseNotMet(f"{path} is {said}: this KVM uses shadow page tables, expected nested ones")
            if said:
                return layout
        return None

    @functools.cached_property
    def known(self) -> KvmFacts:
        """Offsets and addresses, from the cache if this build of the kernel and of its KVM was seen before.

        :raises PremiseNotMet: its types are told neither by BTF nor by its build, or its symbols have no addresses.
        """
        module = self._facts.optional(_KVM_BTF)
        if self._facts.build_id is None:
            return self._read(module)
        key = hashlib.sha256(self._facts.build_id + module).hexdigest()[:32]

        def build(folder: Path) -> None:
            (folder / "facts").write_text(json.dumps(dataclasses.asdict(self._read(module))))

        return KvmFacts(**json.loads((cache.obtain("kvm", key, build) / "facts").read_text()))

    def _read(self, module: bytes) -> KvmFacts:
        kernel = self._facts.btf
        of = self._facts.offset_of if kernel is None or not module else Btf(module, kernel).offset
        offsets = {member: of(member) for member in (*TASK_MEMBERS, *KVM_MEMBERS)}
        return KvmFacts(offsets, self._facts.init_task - self._facts.address("_text"))

    def find(self, memory: Memory, root: int, layout: Layout, vm: VmEvent) -> TableRoot | None:
        """Return where the nested tables of a virtual machine start; None if its vCPU has none yet."""
        if self.layout is None:
            raise MachineryError(f"{vm.name} is a virtual machine, but neither kvm_amd nor kvm_intel is loaded")
        kernel = KernelMemory(memory, root, layout)
        at = self.known
        task = _task(kernel, at, memory, vm.pid)
        table = _file_table(kernel, at, task)
        kvm, vcpu = (_private_data(kernel, at, table, vm, fd) for fd in (vm.vm_fd, vm.vcpu_fd))
        _prove(kernel, at, vm, kvm=kvm, vcpu=vcpu, mm=task.mm)
        paddr = kernel.u64(vcpu + at.of("kvm_vcpu.arch.root_mmu.root.hpa"))
        if paddr == _NO_ROOT:
            return None
        depth = kernel.u32(vcpu + at.of("kvm_vcpu.arch.root_mmu.root_role")) & 0xF  # kvm_mmu_page_role.level
        if paddr % PAGE_SIZE_BYTES or depth not in (4, 5):
            raise MachineryError(
                f"the MMU of {vm.name}'s vCPU has a root at {paddr:#x} with {depth} levels; expected a page, 4 or 5"
            )
        return TableRoot(paddr, dataclasses.replace(self.layout, five_level=depth == 5))

    def machines(self, memory: Memory, root: int, layout: Layout, pid: int) -> tuple[VmEvent, ...]:
        """Return the virtual machines of a process, each once for each vCPU, in the order of their file descriptors.

        The machine must be stopped. Any open file is tried: a pair is a VM and its vCPU if :meth:`find` would take it.

        :param root: of the process, a root that was verified, like the layout.
        :raises UsageError: neither of KVM's modules is loaded.
        :raises MachineryError: the kernel's structures make no sense.
        """
        if self.layout is None:
            raise UsageError("neither kvm_amd nor kvm_intel is loaded; start the session with --nested")
        kernel = KernelMemory(memory, root, layout)
        at = self.known
        task = _task(kernel, at, memory, pid)
        table = _file_table(kernel, at, task)
        files = {
            fd: data
            for fd in range(kernel.u32(table + at.of("fdtable.max_fds")))
            if (data := _data(kernel, at, table, fd))
        }
        vms = {data: fd for fd, data in files.items() if _points(kernel, data + at.of("kvm.mm"), task.mm)}
        return tuple(
            VmEvent(f"{pid}:{vm_fd}", pid, vm_fd, fd)
            for vm, vm_fd in vms.items()
            for fd, data in files.items()
            if _points(kernel, data + at.of("kvm_vcpu.kvm"), vm)
        )


def _task(kernel: KernelMemory, at: KvmFacts, memory: Memory, pid: int) -> Task:
    """Return a process.

    :raises MachineryError: the root does not lead to the kernel's tasks.
    """
    offsets = TaskOffsets.of(at.of)
    init_task = _text_vaddr(memory, kernel.root, kernel.layout) + at.init_task
    if not leads_to_first_task(kernel, first_task(init_task, offsets)):
        raise MachineryError(f"the page tables of process {pid} do not lead to init_task at {init_task:#x}")
    return Tasks(kernel, init_task, offsets).find(pid)


def _file_table(kernel: KernelMemory, at: KvmFacts, task: Task) -> int:
    files = kernel.u64(task.vaddr + at.of("task_struct.files"))
    return kernel.u64(files + at.of("files_struct.fdt"))


def _data(kernel: KernelMemory, at: KvmFacts, table: int, fd: int) -> int:
    """Return ``private_data`` of a file descriptor below the table's size; 0 if it is not open."""
    file = kernel.u64(kernel.u64(table + at.of("fdtable.fd")) + 8 * fd)
    return kernel.u64(file + at.of("file.private_data")) if file else 0


def _points(kernel: KernelMemory, vaddr: int, to: int) -> bool:
    """Return whether there is a pointer to an object at an address, which may be any number."""
    try:
        return vaddr % 8 == 0 and kernel.u64(vaddr) == to
    except (WalkError, UsageError):
        return False


def _text_vaddr(memory: Memory, root: int, layout: Layout) -> int:
    """Return where the kernel's text starts: the first mapped address of its range (arch/x86/mm/init_64.c).

    :raises MachineryError: nothing is mapped there.
    """
    found = pagetable.walk_arrays(memory, root, _TEXT, _TEXT_END, layout).vaddr
    if not len(found):
        raise MachineryError(f"the page tables at {root:#x} do not map the kernel's text")
    return int(found[0])


def _private_data(kernel: KernelMemory, at: KvmFacts, table: int, vm: VmEvent, fd: int) -> int:
    """Return ``private_data`` of an open file of the process.

    :raises MachineryError: the file is not open.
    """
    is_open = fd < kernel.u32(table + at.of("fdtable.max_fds"))
    data = _data(kernel, at, table, fd) if is_open else 0
    if not data:
        raise MachineryError(f"process {vm.pid} has no open file {fd}, which it named for {vm.name}")
    return data


def _prove(kernel: KernelMemory, at: KvmFacts, vm: VmEvent, *, kvm: int, vcpu: int, mm: int) -> None:
    """Check that the two files are a VM of the process and a vCPU of that VM.

    :raises MachineryError: they are not.
    """
    if _points(kernel, kvm + at.of("kvm.mm"), mm) and _points(kernel, vcpu + at.of("kvm_vcpu.kvm"), kvm):
        return
    raise MachineryError(
        f"files {vm.vm_fd} and {vm.vcpu_fd} of process {vm.pid} are not a VM of its own and a vCPU of that, as it said "
        f"of {vm.name}"
    )
