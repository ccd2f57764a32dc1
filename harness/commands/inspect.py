"""Commands that look into a live machine: ``hugepfn walk``, ``maps`` and ``gdb``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from harness.commands.sessions import client_of, note, session_option, show_gdb
from harness.errors import UsageError

if TYPE_CHECKING:
    from rich.text import Text

watch_option = click.option("--watch", "-w", is_flag=True, help="look repeatedly, and mark changes; Ctrl-C ends it")
every_option = click.option(
    "--every", type=click.FloatRange(0.05), default=1.0, show_default=True, metavar="S", help="seconds between looks"
)


@click.command(no_args_is_help=True)
@click.argument("pid", metavar="PID")
@click.argument("vaddr", metavar="VADDR[-VADDR]")
@click.option("--kvm", is_flag=True, help="nested tables: of a virtual machine that process PID (or PID:FD) has made")
@click.option("--iommu", is_flag=True, help="the IOMMU's tables of a device: its PCI address in place of PID")
@session_option
@watch_option
@every_option
def walk(pid: str, vaddr: str, kvm: bool, iommu: bool, session: str | None, watch: bool, every: float) -> None:
    """Walk the page tables of any process in a live guest, of a virtual machine, or of a device.

    Entries are shown raw and decoded: for one address, those at every level; for a range, every leaf and hole, with
    equal neighbours in one line. Addresses are hexadecimal. The root comes from the kernel's own task list, which is
    found through BTF and kallsyms, or through the file that `hugepfn build` has put beside the kernel.

    With --kvm, addresses are guest-physical ones of a virtual machine that the process has made with the guest's KVM;
    PID:FD chooses one of several. With --iommu, they are IO virtual addresses of a device, as in
    `hugepfn walk --iommu 0000:00:05.0 40000000`; the root comes from the IOMMU's register.
    """
    from harness.commands.walk_view import parse_span, range_lines, walk_lines
    from harness.session.state import halt_words

    start, end = parse_span(vaddr)
    if kvm and iommu:
        raise UsageError("--kvm and --iommu are different tables; give only one of them")
    method, whose = _whose(pid, kvm, iommu)
    client = client_of(session)

    def look() -> Any:
        return client.call(method, **whose, start=start, end=end)

    def lines(now: Any, before: Any) -> list[Text]:
        draw: Callable[..., list[Text]] = walk_lines if end is None else range_lines
        (root, found), (old_root, old) = now, before or (None, None)
        return [*_root_lines(root, old_root), *(draw(found, old) if found is not None else [])]

    if (halt := client.call("state").halt) is not None:
        note(halt_words(halt, client.about.name))
    _show(look, lines, every if watch else None)


def _whose(word: str, kvm: bool, iommu: bool) -> tuple[str, dict[str, Any]]:
    """Return the request of the session that reads the tables, and its arguments that say whose they are."""
    if iommu:
        return "look_at_device", {"bdf": word}
    number, _, fd = word.partition(":")
    if not number.isdecimal() or (":" in word and not (kvm and fd.isdecimal())):
        expected = "a number, or PID:FD" if kvm else "a number"
        raise click.BadParameter(f"{word!r} is not a process; expected {expected}", param_hint="'PID'")
    if kvm:
        return "look_at_machine", {"pid": int(number), "vm_fd": int(fd) if fd else None}
    return "look", {"pid": int(number)}


def _root_lines(root: Any, before: Any) -> list[Text]:
    from harness.commands.walk_view import device_lines, machine_line, process_line
    from harness.introspect.address_spaces import DeviceRoot, MachineRoot

    if isinstance(root, DeviceRoot):
        return device_lines(root)
    return [machine_line(root) if isinstance(root, MachineRoot) else process_line(root, before)]


@click.command(no_args_is_help=True)
@click.argument("pid", type=int)
@session_option
@watch_option
@every_option
def maps(pid: int, session: str | None, watch: bool, every: float) -> None:
    """Show the VMAs of a process, and the leaves in each.

    For each VMA: the number of leaves at each level, and how many of them have each bit.
    """
    from harness.commands.walk_view import process_line, vma_lines

    client = client_of(session)

    def lines(now: Any, before: Any) -> list[Text]:
        return [process_line(now.process, before and before.process), *vma_lines(now, before)]

    _show(lambda: client.call("maps", pid=pid), lines, every if watch else None)


@click.command()
@session_option
def gdb(session: str | None) -> None:
    """Stop a session for gdb, and print how to attach it."""
    show_gdb(client_of(session))


def _show(look: Callable[[], Any], lines: Callable[[Any, Any], list[Text]], every_s: float | None) -> None:
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(highlight=False)
    live = Live(console=console, auto_refresh=False, vertical_overflow="visible")
    redrawn = every_s is not None and console.is_terminal  # elsewhere, looks are printed one after the other
    before, now = None, look()
    with live if redrawn else contextlib.nullcontext():
        while True:
            if redrawn:
                live.update(Group(*lines(now, before)), refresh=True)
            else:
                for line in lines(now, before):
                    console.print(line, soft_wrap=True)
            if every_s is None:
                return
            time.sleep(every_s)
            before, now = now, look()
