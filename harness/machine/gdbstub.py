"""gdb on a running guest: QEMU's own stub on a loopback port, and the command that attaches with the right symbols.

While gdb holds the guest, walks read it as at any stop. While gdb lets it run, a stop from here looks to gdb like an
interrupt: leave one of the two alone.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import cache
from harness.errors import MachineryError, PremiseNotMet
from harness.kernel.elf import symbols_as_elf
from harness.machine.facts import FUNCTION_LETTERS, KernelFacts, kernel_symbols
from harness.machine.qemu import Qemu

if TYPE_CHECKING:
    from harness.machine.vm import VM

HOST = "127.0.0.1"
_LINKED_AT = 0xFFFFFFFF81000000  # where _text is without KASLR (__START_KERNEL, CONFIG_PHYSICAL_START of 16 MiB)
_LISTENING = re.compile(r"tcp:[\d.]+:(\d+)")


@dataclass(frozen=True, slots=True)
class GdbStub:
    """Where gdb finds the guest, which stands still until gdb lets it go."""

    host: str
    port: int
    symbols: Path | None  # a vmlinux of exactly this kernel, or the names that kallsyms has
    text: int | None  # vaddr of the kernel's _text now; None: the kernel does not tell
    offset: int  # bytes that KASLR moved it from where symbols has it
    note: str  # what is missing, and what would help; empty where nothing is

    @property
    def argv(self) -> list[str]:
        """The command that attaches."""
        words = ["gdb", "-ex", "set architecture i386:x86-64"]
        if self.symbols is not None:
            words += ["-ex", f"symbol-file -o {self.offset:#x} {self.symbols}"]
        return [*words, "-ex", f"target remote {self.host}:{self.port}"]

    @property
    def command(self) -> str:
        """The same, to paste into a shell."""
        return shlex.join(self.argv)


def start_stub(vm: VM) -> GdbStub:
    """Stops the guest and lets gdb come.

    :raises UsageError: the machine stands still, and what the kernel says of itself was never asked for.
    :raises MachineryError: QEMU does not open the port.
    """
    facts = vm.processes.facts
    text = None
    with contextlib.suppress(PremiseNotMet):
        text = facts.address("_text")
    with contextlib.suppress(PremiseNotMet):  # then there are no walks, but there is gdb
        vm.processes.learn()
    symbols, offset, note = None, 0, ""
    if text is None:
        note = "no symbols: the kernel has no kallsyms to say where it is; CONFIG_KALLSYMS=y gives them"
    elif facts.vmlinux is not None:
        symbols, offset = facts.vmlinux.path, text - facts.vmlinux.symbols["_text"]
    else:
        symbols, offset = _names_only(facts, text), text - _LINKED_AT
        note = (
            f"no vmlinux of {vm.kernel.spec} is on this host: gdb has the names that kallsyms has, no types and no "
            "lines; a kernel built by hugepfn has its vmlinux, and so has a distribution's debug package"
        )
    return GdbStub(HOST, vm.on_loop(_listen(vm.qemu)), symbols, text, offset, note)


def _names_only(facts: KernelFacts, text: int) -> Path:
    """A file with the kernel's names at the addresses that they have without KASLR, from the cache."""

    def build(folder: Path) -> None:
        functions: dict[str, int] = {}
        data: dict[str, int] = {}
        for address, name, letter in kernel_symbols(facts.kallsyms):
            if address >= text:  # below are per-CPU offsets
                (functions if letter in FUNCTION_LETTERS else data)[name.decode()] = address - text + _LINKED_AT
        (folder / "kallsyms.elf").write_bytes(symbols_as_elf(functions, data))

    key = facts.build_id.hex() if facts.build_id is not None else f"text-{text:x}"
    return cache.obtain("symbols", key, build) / "kallsyms.elf"


async def _listen(qemu: Qemu) -> int:
    """Opens the stub on a port that the system chooses."""
    await qemu.follow_stops()
    await qemu.stop()
    said = await qemu.execute("human-monitor-command", {"command-line": f"gdbserver tcp:{HOST}:0"})
    for device in await qemu.execute("query-chardev") or ():  # type: ignore[attr-defined]
        if device["label"] == "gdb" and (found := _LISTENING.search(device["filename"])):
            return int(found[1])
    raise MachineryError(f"QEMU does not wait for gdb: {str(said).strip()!r}")
