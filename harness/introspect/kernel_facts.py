"""What must be known of a running kernel before its tasks can be found: addresses from kallsyms, offsets from BTF.

Both come from the kernel itself. If one is missing, the files of its build are used instead: a vmlinux with symbols,
the offsets beside it (harness/kernel/build/offsets.py), DWARF.
"""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Callable
from pathlib import Path

from harness.errors import AgentRefused, PremiseNotMet, ProtocolError
from harness.host import cache
from harness.introspect.dwarf import dwarf_offset
from harness.introspect.live_kernel import LiveKernel
from harness.introspect.tasks import TaskOffsets
from harness.kernel.btf import Btf
from harness.kernel.elf import build_id
from harness.kernel.offsets import OFFSETS_FILE, find_offsets
from harness.kernel.vmlinux import Vmlinux, find_vmlinux

#: Letters of nm(1) for code, including weak symbols, which in a kernel are code.
FUNCTION_LETTERS = b"tTwW"
_BTF_PATH = "/sys/kernel/btf/vmlinux"
_ADVICE = (
    "use a kernel that `hugepfn build` has built, or one with CONFIG_DEBUG_INFO_BTF=y, as stock kernels have, or give "
    "it a vmlinux with DWARF (CONFIG_DEBUG_INFO_DWARF5=y) and install drgn: "
    "pip install 'hugepfn[drgn]'"
)


class KernelFacts:
    """Facts about the kernel of one VM, each read once. The VM must run when a fact is first used."""

    def __init__(self, vm: LiveKernel) -> None:
        self._vm = vm

    @functools.cached_property
    def kallsyms(self) -> bytes:
        """/proc/kallsyms; empty if the kernel has none (CONFIG_KALLSYMS)."""
        return self.optional("/proc/kallsyms")

    @functools.cached_property
    def build_id(self) -> bytes | None:
        """The build id of the running kernel; None if it has none."""
        return build_id(self.optional("/sys/kernel/notes"))

    @functools.cached_property
    def vmlinux(self) -> Vmlinux | None:
        """The file with this kernel's symbols; None if this host has none."""
        kernel = self._vm.known_kernel
        return find_vmlinux(kernel, self.build_id) if kernel is not None else None

    @functools.cached_property
    def btf(self) -> Btf | None:
        """The kernel's types; None if it has no BTF. From the cache, if this build was seen before."""
        if self.build_id is None:
            data = self.optional(_BTF_PATH)
        else:
            fetch = functools.partial(_write_btf, self._vm)
            data = (cache.obtain("btf", self.build_id.hex(), fetch) / "btf").read_bytes()
        return Btf(data) if data else None

    def address(self, symbol: str) -> int:
        """Return the virtual address of a symbol of the kernel itself, KASLR included.

        :raises PremiseNotMet: neither kallsyms nor a vmlinux has it.
        """
        found = address_in(self.kallsyms, symbol)
        if found is not None:
            return found
        text = address_in(self.kallsyms, "_text")
        if text is not None and self.vmlinux is not None and symbol in self.vmlinux.symbols:
            return text + self.vmlinux.symbols[symbol] - self.vmlinux.symbols["_text"]
        raise PremiseNotMet(
            f"{self._vm.ready['release']}: the address of {symbol} is neither in /proc/kallsyms (CONFIG_KALLSYMS, and "
            "CONFIG_KALLSYMS_ALL for data) nor in a vmlinux with symbols"
        )

    @functools.cached_property
    def init_task(self) -> int:
        """Virtual address of the first task, init_task."""
        return self.address("init_task")

    @functools.cached_property
    def offset_of(self) -> Callable[[str], int]:
        """Returns the bytes from the start of its struct to a member, such as ``"task_struct.mm"``.

        :raises PremiseNotMet: neither the kernel's BTF, nor the files of its build, nor a vmlinux with DWARF has them.
        """
        if self.btf is not None:
            return self.btf.offset
        kernel = self._vm.known_kernel
        if kernel is None:
            raise PremiseNotMet(f"{self._vm.ready['release']} has no BTF, and its files have been removed; {_ADVICE}")
        built = find_offsets(kernel, self.build_id)
        if built is not None and not built.problem:
            return built.offset
        if self.vmlinux is not None and self.vmlinux.has_dwarf:
            return dwarf_offset(self.vmlinux.path)
        left = f"there is no {OFFSETS_FILE} beside it"
        if built is not None:
            left = (
                f"its build did not find the offsets ({built.problem}; remove {kernel.image.parent} to build it again)"
            )
        raise PremiseNotMet(f"{kernel.spec} has no BTF, {left}, and no vmlinux with DWARF was found; {_ADVICE}")

    @functools.cached_property
    def offsets(self) -> TaskOffsets:
        """Offsets of the struct members that lead to the page tables of a process.

        :raises PremiseNotMet: as for :attr:`offset_of`.
        """
        return TaskOffsets.of(self.offset_of)

    def optional(self, path: str) -> bytes:
        """Return a file of the guest; empty if there is none."""
        return _optional(self._vm, path)


def _write_btf(vm: LiveKernel, folder: Path) -> None:
    (folder / "btf").write_bytes(_optional(vm, _BTF_PATH))


def _optional(vm: LiveKernel, path: str) -> bytes:
    """Return a file of the guest; empty if there is none."""
    try:
        return vm.get(path)
    except AgentRefused as error:
        if error.errno == errno.ENOENT:
            return b""
        raise


def kernel_symbols(kallsyms: bytes) -> list[tuple[int, bytes, bytes]]:
    """Return address, name and letter (nm(1)) of the kernel's own symbols, sorted; no modules, no absolute symbols.

    :raises ProtocolError: a line has another form.
    """
    rows = (line.split() for line in kallsyms.splitlines())
    try:
        return sorted((int(row[0], 16), row[2], row[1]) for row in rows if len(row) == 3 and row[1] not in b"aA")
    except ValueError as error:
        raise ProtocolError(f"/proc/kallsyms has a line without an address: {error}") from None


def address_in(kallsyms: bytes, symbol: str) -> int | None:
    """Return the address of a symbol in /proc/kallsyms; None if it is not listed, or kptr_restrict hides it."""
    found = re.search(rb"^([0-9a-f]{16}) [A-Za-z] " + re.escape(symbol.encode()) + rb"$", kallsyms, re.MULTILINE)
    return (int(found[1], 16) or None) if found else None
