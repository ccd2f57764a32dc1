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

from harness.errors import MachineryError, PremiseNotMet
from harness.machine.qemu import Qemu

if TYPE_CHECKING:
    from harness.machine.vm import VM

HOST = "127.0.0.1"
_LISTENING = re.compile(r"tcp:[\d.]+:(\d+)")


@dataclass(frozen=True, slots=True)
class GdbStub:
    """Where gdb finds the guest, which stands still until gdb lets it go."""

    host: str
    port: int
    vmlinux: Path | None  # with symbols, of exactly this kernel
    text: int | None  # vaddr of the kernel's _text now; None: the kernel does not tell
    offset: int  # bytes that KASLR moved it from where vmlinux has it
    note: str  # why there are no symbols; empty where there are

    @property
    def argv(self) -> list[str]:
        """The command that attaches."""
        words = ["gdb", "-ex", "set architecture i386:x86-64"]
        if self.vmlinux is not None:
            words += ["-ex", f"symbol-file -o {self.offset:#x} {self.vmlinux}"]
        return [*words, "-ex", f"target remote {self.host}:{self.port}"]

    @property
    def command(self) -> str:
        """The same, to paste into a shell."""
        return shlex.join(self.argv)


def start_stub(vm: VM) -> GdbStub:
    """Stops the guest and lets gdb come.

    :raises MachineryError: QEMU does not open the port.
    """
    text = _learn(vm)
    vmlinux = vm.processes.facts.vmlinux
    note, offset = "", 0
    if vmlinux is None:
        note = (
            f"no vmlinux with symbols of {vm.kernel.spec} is on this host: gdb shows addresses only; a kernel built by "
            "hugepfn has one, and so has a distribution's debug package"
        )
    elif text is None:
        note = "the kernel has no kallsyms, so how far KASLR moved it is not known: boot with --append nokaslr"
        vmlinux = None
    else:
        offset = text - vmlinux.symbols["_text"]
    port = vm.on_loop(_listen(vm.qemu))
    return GdbStub(HOST, port, vmlinux.path if vmlinux is not None else None, text, offset, note)


def _learn(vm: VM) -> int | None:
    """Where the kernel's text is; asks for what walks need too, while the guest still runs."""
    with contextlib.suppress(PremiseNotMet):  # then there are no walks, but there is gdb
        vm.processes.learn()
    with contextlib.suppress(PremiseNotMet):
        return vm.processes.facts.address("_text")
    return None


async def _listen(qemu: Qemu) -> int:
    """Opens the stub on a port that the system chooses."""
    await qemu.follow_stops()
    await qemu.stop()
    said = await qemu.execute("human-monitor-command", {"command-line": f"gdbserver tcp:{HOST}:0"})
    for device in await qemu.execute("query-chardev") or ():  # type: ignore[attr-defined]
        if device["label"] == "gdb" and (found := _LISTENING.search(device["filename"])):
            return int(found[1])
    raise MachineryError(f"QEMU does not wait for gdb: {str(said).strip()!r}")
