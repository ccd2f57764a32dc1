"""gdb on a running guest: QEMU's own stub on a Unix socket, and the command that attaches with the right symbols.

The stub has no password, and passes gdb's ``monitor`` commands on to QEMU, which can run programs on this host. So it
listens in a folder that only this user can enter, and never on a port (docs/security.md).

While gdb has stopped the guest, its tables can be walked. While gdb lets it run, a stop by hugepfn looks like an
interrupt to gdb: use one of the two at a time.
"""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass
from pathlib import Path

from harness.errors import MachineryError, PremiseNotMet, UsageError
from harness.host import cache
from harness.introspect.kernel_facts import FUNCTION_LETTERS, KernelFacts, kernel_symbols
from harness.introspect.live_kernel import LiveKernel
from harness.introspect.processes import Processes
from harness.kernel.elf import symbols_as_elf
from harness.qemu.process import Qemu

_LINKED_AT = 0xFFFFFFFF81000000  # vaddr of _text without KASLR (__START_KERNEL, CONFIG_PHYSICAL_START of 16 MiB)


@dataclass(frozen=True, slots=True)
class GdbStub:
    """How gdb finds the guest, which stands still until gdb continues it."""

    socket: Path
    symbols: Path | None
    """A vmlinux of exactly this kernel, or the names that kallsyms has."""
    text: int | None
    """Virtual address of the kernel's _text now; None if the kernel does not tell."""
    offset: int
    """Bytes by which KASLR moved it from its address in symbols."""
    note: str
    """What is missing, and what would help; "" if nothing is."""

    @property
    def argv(self) -> list[str]:
        """The command that attaches gdb, as a list of words."""
        words = ["gdb", "-ex", "set architecture i386:x86-64"]
        if self.symbols is not None:
            words += ["-ex", f"symbol-file -o {self.offset:#x} {_for_gdb(self.symbols)}"]
        return [*words, "-ex", f"target remote {self.socket}"]

    @property
    def command(self) -> str:
        """The command that attaches gdb, to paste into a shell."""
        return shlex.join(self.argv)


def start_stub(vm: LiveKernel, processes: Processes) -> GdbStub:
    """Stop the guest and wait for gdb.

    :raises UsageError: the machine stands still, and the kernel's addresses are not known yet; or gdb cannot use the
        path of the socket.
    :raises MachineryError: QEMU does not open the socket.
    """
    socket = vm.sockets.socket("gdb")
    if ":" in str(socket):
        raise UsageError(
            f"gdb would take {socket} for a host and a port, because it contains a colon; "
            "set HUGEPFN_RUNTIME_DIR (for a session) or TMPDIR to a folder without one"
        )
    facts = processes.facts
    text = None
    with contextlib.suppress(PremiseNotMet):
        text = facts.address("_text")
    with contextlib.suppress(PremiseNotMet):  # walks are not possible then, but gdb is
        processes.learn()
    symbols, offset, note = None, 0, ""
    if text is None:
        note = "gdb has no symbols, because the kernel has no kallsyms; build it with CONFIG_KALLSYMS=y"
    elif facts.vmlinux is not None:
        symbols, offset = facts.vmlinux.path, text - facts.vmlinux.symbols["_text"]
    else:
        symbols, offset = _names_only(facts, text), text - _LINKED_AT
        note = (
            f"no vmlinux of {vm.ready['release']} was found, so gdb has only the names in kallsyms, without types and "
            "line numbers; kernels that hugepfn builds have a vmlinux, and so do the debug packages of distributions"
        )
    vm.on_loop(_listen(vm.qemu, socket))
    return GdbStub(socket, symbols, text, offset, note)


def _for_gdb(path: Path) -> str:
    """Quote a file's name for gdb's command line."""
    return '"' + str(path).replace("\\", r"\\").replace('"', r"\"") + '"'


def _names_only(facts: KernelFacts, text: int) -> Path:
    """Return a file, from the cache, with the kernel's symbols at their addresses without KASLR."""

    def build(folder: Path) -> None:
        functions: dict[str, int] = {}
        data: dict[str, int] = {}
        for address, name, letter in kernel_symbols(facts.kallsyms):
            if address >= text:  # lower ones are per-CPU offsets
                (functions if letter in FUNCTION_LETTERS else data)[name.decode()] = address - text + _LINKED_AT
        (folder / "kallsyms.elf").write_bytes(symbols_as_elf(functions, data))

    key = facts.build_id.hex() if facts.build_id is not None else f"text-{text:x}"
    return cache.obtain("symbols", key, build) / "kallsyms.elf"


async def _listen(qemu: Qemu, socket: Path) -> None:
    """Open the stub, unless it is open."""
    await qemu.follow_stops()
    await qemu.stop()
    said: object = ""
    if await _channel(qemu) is None:
        where = str(socket).replace(",", ",,").replace("\\", r"\\").replace('"', r"\"")
        command = f'gdbserver "unix:{where},server=on,wait=off"'
        said = await qemu.execute("human-monitor-command", {"command-line": command})
    if await _channel(qemu) is None or not socket.is_socket():
        raise MachineryError(f"QEMU cannot open {socket} for gdb: {str(said).strip()!r}")


async def gdb_is_attached(qemu: Qemu) -> bool:
    """Return whether gdb is connected to the stub."""
    channel = await _channel(qemu)
    return channel is not None and not channel.startswith(
        "disconnected:"
    )  # chardev/char-socket.c, update_disconnected_filename()


async def _channel(qemu: Qemu) -> str | None:
    """Return where the stub listens; None if it does not. Its chardev is "gdb" (gdbstub.c, gdbserver_start())."""
    channels = await qemu.execute("query-chardev")
    found = [str(one["filename"]) for one in (channels if isinstance(channels, list) else ()) if one["label"] == "gdb"]
    return found[0] if found else None
