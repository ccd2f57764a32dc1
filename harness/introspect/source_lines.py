"""File and line of the places in a stack trace, with inline functions, from the DWARF of a vmlinux, read by drgn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import PremiseNotMet
from harness.introspect.dwarf import import_drgn
from harness.verdict.log.trace import TracePlace

#: Which symbol's file gives the folder of the source, and that file.
_ROOT = ("start_kernel", "init/main.c")
#: So that every address of the file is in it, whatever it is linked to.
_ANYWHERE = (1, (1 << 64) - 1)


@dataclass(frozen=True)
class SourceLine:
    """A place in the source."""

    function: str
    file: str
    """Relative to the kernel's source, if it is in there."""
    line: int

    def __str__(self) -> str:
        return f"{self.function}() {self.file}:{self.line}"


class SourceLines:
    """The source of one vmlinux.

    :raises PremiseNotMet: drgn is not installed, or the file has no debug information.
    """

    def __init__(self, vmlinux: Path) -> None:
        drgn = import_drgn()
        self._program: Any = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        module = self._program.extra_module(str(vmlinux), create=True)
        module.address_range = _ANYWHERE
        module.try_file(vmlinux, force=True)
        if module.wants_debug_file():
            raise PremiseNotMet(
                f"{vmlinux} has no debug information, so no file and line can be shown: "
                "build the kernel with --fragment debuginfo (CONFIG_DEBUG_INFO_DWARF5=y)"
            )
        self._root = self._find_root()

    def of(self, place: TracePlace) -> tuple[SourceLine, ...]:
        """Return where a place is in the source: first the innermost inline function, last the function itself.

        :returns: empty for a module's function, for one without debug information, and if the vmlinux is not the
            kernel's that printed it.
        """
        address = None if place.module or place.offset > place.size else self._address(place)
        if address is None:
            return ()
        in_call = place.returns and place.offset > 0  # at 0 it is no return address, and 1 before is another function
        return tuple(self._line(one) for one in self._locations(address - 1 if in_call else address))

    def _address(self, place: TracePlace) -> int | None:
        """The address of a place. Of several functions of one name, the size decides (scripts/faddr2line)."""
        named = [one for one in self._program.symbols(place.name) if one.size == place.size]
        # kallsyms reaches to the next symbol, so the padding between two functions counts there.
        named = named or [one for one in self._program.symbols(place.name) if one.size <= place.size < one.size + 64]
        return int(named[0].address) + place.offset if len(named) == 1 else None

    def _locations(self, address: int) -> Any:
        try:
            return self._program.source_location(address)
        except LookupError:
            return ()

    def _line(self, location: Any) -> SourceLine:
        file = str(location.filename or "?").removeprefix(self._root)
        return SourceLine(str(location.name() or "?"), file, int(location.line))

    def _find_root(self) -> str:
        symbol, file = _ROOT
        for one in self._program.symbols(symbol):
            for location in self._locations(int(one.address)):
                if str(location.filename).endswith(f"/{file}"):
                    return str(location.filename).removesuffix(file)
        return ""


def told(places: Iterable[TracePlace], lines: SourceLines) -> Iterator[str]:
    """Yield a trace for a reader, innermost first: each place with its file and line, inline functions before it."""
    for place in places:
        *inlined, own = lines.of(place) or (None,)
        for one in inlined:
            assert one is not None
            yield f"{one.function} {one.file}:{one.line} (inlined)"
        yield f"{place} {own.file}:{own.line}" if own is not None else str(place)
