"""The places in the stacks of a complaint, as the kernel prints them: ``f+0x1a/0x2b [module]``. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_PC = r"(?:\[(?:<[^>]{1,20}>|[0-9a-f]{16})\] *){0,2}"
_PLACE = re.compile(
    rf" *(?P<rip>RIP: 0010:)?{_PC}(?P<guess>\? )?(?P<name>[A-Za-z_][\w.$]*)\+(?P<offset>0x[0-9a-f]{{1,16}})"
    r"/(?P<size>0x[0-9a-f]{1,16})(?: \[(?P<module>[\w-]+)[^\]]*\])?"
)


@dataclass(frozen=True)
class TracePlace:
    """A place in a function."""

    name: str
    """With the compiler's suffix: "f.isra.0"."""
    offset: int
    """In bytes from the function's start."""
    size: int
    """Of the function, in bytes; tells functions of one name apart."""
    module: str = ""
    """"" for the kernel itself."""
    guess: bool = False
    """Found on the stack, but not by the unwinder ("? ")."""
    returns: bool = True
    """It is where a call returns to, which is behind the call; False for the instruction itself (RIP)."""

    def __str__(self) -> str:
        module = f" [{self.module}]" if self.module else ""
        return f"{'? ' if self.guess else ''}{self.name}+{self.offset:#x}/{self.size:#x}{module}"


def places(messages: Sequence[str]) -> tuple[TracePlace, ...]:
    """Return the places in the lines of a complaint, in their order.

    :param messages: its lines without printk's prefix.
    """
    found = (_PLACE.match(text) for text in messages)
    return tuple(
        TracePlace(
            match["name"],
            int(match["offset"], 16),
            int(match["size"], 16),
            match["module"] or "",
            match["guess"] is not None,
            match["rip"] is None,
        )
        for match in found
        if match
    )
