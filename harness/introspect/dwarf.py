"""Offsets of struct members from DWARF, read by drgn if it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import PremiseNotMet


def import_drgn() -> Any:
    """Import drgn, untyped, because mypy must also work where it is not installed.

    :raises PremiseNotMet: it is not installed.
    """
    try:
        import drgn
    except ImportError:
        raise PremiseNotMet("drgn is not installed; run: pip install 'hugepfn[drgn]'") from None
    return drgn


def dwarf_offset(vmlinux: Path) -> Callable[[str], int]:
    """Return a function that finds the byte offset of ``"task_struct.mm"`` in the DWARF of a vmlinux.

    :raises PremiseNotMet: drgn is not installed, or cannot read the file. The function raises it if there is no such
        member.
    """
    drgn = import_drgn()
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    module = program.extra_module(str(vmlinux), create=True)
    module.try_file(vmlinux, force=True)
    if module.wants_debug_file():
        raise PremiseNotMet(
            f"{vmlinux} has no debug information that drgn can read; build it with CONFIG_DEBUG_INFO_DWARF5=y"
        )

    def offset(path: str) -> int:
        name, _, member = path.partition(".")
        try:
            return int(drgn.offsetof(program.type(f"struct {name}"), member))
        except LookupError as error:
            raise PremiseNotMet(f"the DWARF of {vmlinux} has no {path}: {error}") from error

    return offset
