"""Memory of the guest's kernel, read on the host while the machine stands still, through a root that was verified."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from harness.errors import MachineryError, UsageError
from harness.pagetable import Layout, WalkError, root_paddr, translate
from harness.pagetable.bits import PAGE_SIZE_BYTES
from harness.pagetable.memory import Memory
from harness.printable import printable
from harness.qemu.registers import ControlRegisters

#: The name of the first task, "swapper" or "swapper/0" (include/linux/init_task.h, INIT_TASK_COMM).
_FIRST_TASK = b"swapper"


class KernelMemory:
    """Kernel memory at one stop, by virtual address. Translations are cached, so do not use it after the machine ran.

    :param memory: guest RAM.
    :param root: physical address of a root table that maps the kernel.
    """

    def __init__(self, memory: Memory, root: int, layout: Layout) -> None:
        self._memory = memory
        self.root = root
        self.layout = layout
        self._pages: dict[int, int] = {}

    def paddr(self, vaddr: int) -> int:
        """Return the physical address that a kernel virtual address maps to.

        :raises WalkError: nothing is mapped there.
        """
        inside = vaddr % PAGE_SIZE_BYTES
        page = vaddr - inside
        if page not in self._pages:
            self._pages[page] = translate(self._memory, self.root, page, self.layout)
        return self._pages[page] + inside

    def maps_the_same(self, root: int, vaddr: int) -> bool:
        """Return whether another root maps a kernel address to the same memory, as the root of every process does."""
        try:
            return translate(self._memory, root, vaddr, self.layout) == self.paddr(vaddr)
        except (WalkError, UsageError):
            return False

    def u64(self, vaddr: int) -> int:
        """Return the 8-byte word at an 8-byte-aligned virtual address: a pointer, a long."""
        return self._memory.read_u64(self.paddr(vaddr))

    def u32(self, vaddr: int) -> int:
        """Return the 4-byte word at a 4-byte-aligned virtual address: an int."""
        return self.u64(vaddr & ~7) >> (vaddr % 8 * 8) & 0xFFFFFFFF

    def read(self, vaddr: int, size_bytes: int) -> bytes:
        """Return the bytes at any virtual address."""
        first, end = vaddr & ~7, vaddr + size_bytes
        words = b"".join(self.u64(at).to_bytes(8, "little") for at in range(first, end, 8))
        return words[vaddr - first : end - first]

    def text(self, vaddr: int, size_bytes: int) -> str:
        """Return the C string in an array of this size."""
        return printable(self.read(vaddr, size_bytes).partition(b"\0")[0])


@dataclasses.dataclass(frozen=True, slots=True)
class FirstTask:
    """Where the first task, init_task, is, and what is needed to recognise it."""

    vaddr: int
    comm_offset: int
    pid_offset: int


def prove_kernel_memory(
    memory: Memory, registers: Iterable[ControlRegisters], layout: Layout, first: FirstTask
) -> KernelMemory:
    """Return kernel memory through the first vCPU's root that leads to init_task, with its name and pid 0.

    With page-table isolation, a vCPU in user mode has the user's copy of a root in CR3, which does not map init_task;
    the kernel's copy is next to it. A vCPU that was never started has none.

    :raises MachineryError: no vCPU's root leads to init_task, so what is known of this kernel is wrong.
    """
    for one in registers:
        deep = dataclasses.replace(layout, five_level=one.five_level)
        for pti in (False, True):
            kernel = KernelMemory(memory, root_paddr(one.cr3, pti=pti), deep)
            if leads_to_first_task(kernel, first):
                return kernel
    raise MachineryError(
        f"no vCPU's page tables lead to init_task at {first.vaddr:#x} with the name {_FIRST_TASK.decode()!r} and "
        "pid 0: the symbols or types belong to another kernel than the running one"
    )


def leads_to_first_task(kernel: KernelMemory, first: FirstTask) -> bool:
    """Return whether a root leads to the first task, with its name and pid 0."""
    try:
        name = kernel.read(first.vaddr + first.comm_offset, len(_FIRST_TASK))
        return name == _FIRST_TASK and kernel.u32(first.vaddr + first.pid_offset) == 0
    except (WalkError, UsageError):  # nothing is mapped, or this vCPU has fewer levels, and no such address
        return False
