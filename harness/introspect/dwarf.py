"""Offsets out of DWARF, read by drgn where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import PremiseNotMet


def import_drgn() -> Any:
    """The module; it has no type stubs that would help where it is not installed.

    :raises PremiseNotMet: it is not installed.
    """
    try:
        import drgn
    except ImportError:
        raise PremiseNotMet("drgn is not installed; run: pip install 'hugepfn[drgn]'") from None
    return drgn


def dwarf_offset(vmlinux: Path) -> Callable[[str], int]:
    """What tells the byte offset of ``"task_struct.mm"`` by a vmlinux's DWARF.

    :raises PremiseNotMet: drgn is not installed, or does not understand the file; when called: there is no such member.
    """
    drgn = import_drgn()
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    module = program.extra_module(str(vmlinux), create=True)
    module.try_file(vmlinux, force=True)
    if module.wants_debug_file():
        raise PremiseNotMet(f"{vmlinux} has no debug information that drgn can read")

    def offset(path: str) -> int:
        name, _, member = path.partition(".")
        try:
            return int(drgn.offsetof(program.type(f"struct {name}"), member))
        except LookupError as error:
            raise PremiseNotMet(f"the DWARF of {vmlinux} has no {path}: {error}") from error

    return offset
