"""What the kernel itself found wrong while a program ran, as values. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from harness.verdict.json_fields import JsonObject, objects, strings, value_of
from harness.verdict.log.taint import Taint

NO_TAINT = Taint(0)


@dataclass(frozen=True)
class Excused:
    """A complaint that is not held against the kernel."""

    line: str
    why: str


@dataclass(frozen=True)
class KernelTroubles:
    """The kernel's complaints during one run of a program, and its taint."""

    complaints: tuple[str, ...] = ()
    """The first line of each complaint in its log, without printk's prefix."""
    taint: Taint = NO_TAINT
    """What it got since it booted, but for what means no harm."""
    excused: tuple[Excused, ...] = ()
    gap: str = ""
    """Why "no complaint" cannot be said; "" if all of the log was read."""

    @property
    def found(self) -> bool:
        """Whether anything is held against the kernel."""
        return bool(self.complaints or self.taint)

    def to_json(self) -> dict[str, Any]:
        """These troubles as an object of schema hugepfn-run."""
        excused = [{"line": one.line, "why": one.why} for one in self.excused]
        return {"complaints": list(self.complaints), "taint": int(self.taint), "excused": excused, "gap": self.gap}

    @classmethod
    def from_json(cls, data: JsonObject) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: data has another form.
        """
        return cls(
            complaints=tuple(str(line) for line in value_of(data, "complaints", list)),
            taint=Taint(value_of(data, "taint", int)),
            excused=tuple(Excused(*strings(one, "line", "why")) for one in objects(data, "excused")),
            gap=value_of(data, "gap", str),
        )
