"""drgn on a running guest: its RAM, its symbols, its types."""

from __future__ import annotations

import bisect
import struct
from typing import Any

from harness.errors import PremiseNotMet
from harness.introspect.drgn_btf import BtfTypes
from harness.introspect.dwarf import import_drgn
from harness.introspect.kernel_facts import FUNCTION_LETTERS, KernelFacts, kernel_symbols
from harness.introspect.live_kernel import LiveKernel
from harness.pagetable.bits import PAGE_SIZE_BYTES
from harness.pagetable.memory import Memory

_VMCOREINFO = "/sys/kernel/vmcoreinfo"


def drgn_program(vm: LiveKernel, facts: KernelFacts) -> Any:
    """Return a :class:`drgn.Program` on the guest's RAM. Read through it inside ``vm.paused()`` or at a checkpoint.

    Types come from the DWARF of a vmlinux, if there is one for this kernel, otherwise from the kernel's BTF; symbols
    come from kallsyms. For a name that none of them has, drgn raises LookupError.

    :raises PremiseNotMet: drgn is not installed, or the kernel has no vmcoreinfo, which drgn needs for its page table.
    """
    drgn = import_drgn()
    said = facts.optional(_VMCOREINFO).split()
    if len(said) != 2:
        raise PremiseNotMet(
            f"{vm.ready['release']} has no {_VMCOREINFO}, which drgn needs to find the kernel's page table; "
            "build the kernel with CONFIG_CRASH_DUMP=y"
        )
    kallsyms, vmlinux, btf = facts.kallsyms, facts.vmlinux, facts.btf
    memory = vm.memory
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    with vm.paused():
        note = read_physical(memory, int(said[0], 16), int(said[1], 16))
    program.set_linux_kernel_custom(note_data(note), True)

    def read(paddr: int, count: int, _offset: int, _physical: bool) -> bytes:
        return read_physical(memory, paddr, count)

    program.add_memory_segment(0, memory.size_bytes, read, True)
    program.register_symbol_finder("hugepfn kallsyms", KallsymsFinder(drgn, kallsyms), enable_index=-1)
    if vmlinux is not None and vmlinux.has_dwarf:
        program.load_debug_info([vmlinux.path])
    elif btf is not None:
        types = BtfTypes(drgn, program, btf)
        program.register_type_finder("hugepfn BTF", types.find_type, enable_index=-1)
        program.register_object_finder("hugepfn BTF", types.find_object, enable_index=-1)
    return program


def read_physical(memory: Memory, paddr: int, count: int) -> bytes:
    """Return any bytes of guest RAM, which are read in whole pages."""
    import numpy as np

    first = paddr & -PAGE_SIZE_BYTES
    pages = memory.tables(np.arange(first, paddr + count, PAGE_SIZE_BYTES, dtype=np.uint64))
    return pages.tobytes()[paddr - first : paddr - first + count]


def note_data(note: bytes) -> bytes:
    """Return the contents of an ELF note: the text of vmcoreinfo."""
    name_bytes, data_bytes, _ = struct.unpack_from("<III", note)
    start = 12 + (name_bytes + 3 & ~3)
    return note[start : start + data_bytes]


class KallsymsFinder:
    """drgn's symbol finder over kallsyms, without modules. A symbol extends to the next one: kallsyms has no sizes."""

    def __init__(self, drgn: Any, kallsyms: bytes) -> None:
        self._drgn = drgn
        self._rows = kernel_symbols(kallsyms)
        self._by_name: dict[bytes, list[int]] = {}
        for index, (_, name, _) in enumerate(self._rows):
            self._by_name.setdefault(name, []).append(index)

    def __call__(self, _program: Any, name: str | None, address: int | None, one: bool) -> list[Any]:
        """Return the symbols with a name, or at an address, or both."""
        if name is not None:
            indices = self._by_name.get(name.encode(), [])
        elif address is not None:
            last = bisect.bisect_right(self._rows, (address, b"\xff")) - 1
            first = bisect.bisect_left(self._rows, (self._rows[last][0],)) if last >= 0 else 0
            indices = list(range(first, last + 1))
        else:
            indices = list(range(len(self._rows)))
        symbols = [self._symbol(index) for index in indices]
        found = [one for one in symbols if address is None or one.address <= address < one.address + max(one.size, 1)]
        return found[:1] if one else found

    def _symbol(self, index: int) -> Any:
        address, name, letter = self._rows[index]
        after = bisect.bisect_right(self._rows, (address, b"\xff"))
        end = self._rows[after][0] if after < len(self._rows) else address
        kinds, bindings = self._drgn.SymbolKind, self._drgn.SymbolBinding
        return self._drgn.Symbol(
            name.decode("ascii", "replace"),
            address,
            end - address,
            bindings.GLOBAL if letter.isupper() else bindings.LOCAL,
            kinds.FUNC if letter in FUNCTION_LETTERS else kinds.OBJECT,
        )
