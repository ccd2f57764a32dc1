"""What went wrong outside of all claims, as values: what the kernel itself found, and what ended a test. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Self

from harness.verdict.hang.hang import Hang
from harness.verdict.json_fields import JsonObject, as_object, member, objects, strings, value_of
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.complaints import Complaint
from harness.verdict.log.taint import Taint
from harness.verdict.log.titles import UNKNOWN, canonical

NO_TAINT = Taint(0)


@dataclass(frozen=True, slots=True)
class KernelComplaint:
    """A complaint in the kernel's log, without the rest of its block."""

    kind: ComplaintKind
    line: str
    """The first line, without printk's prefix: the kernel's own words."""
    functions: tuple[str, ...] = ()
    """Of its trace, innermost first, as far as they tell one bug from another; empty if it has none."""
    title: str = ""
    """What it is about, without anything that differs from one occurrence to the next (:attr:`Complaint.title`)."""

    @classmethod
    def of(cls, complaint: Complaint) -> Self:
        """Return what is kept of a complaint."""
        return cls(complaint.kind, complaint.line, complaint.innermost, complaint.title)

    def to_json(self) -> dict[str, Any]:
        """Return this complaint as an object of schema hugepfn-run."""
        functions = list(self.functions)
        return {"kind": self.kind.value, "line": self.line, "functions": functions, "title": self.title}

    @property
    def has_function(self) -> bool:
        """Whether the title is one, and says all that it should."""
        return bool(self.title) and UNKNOWN not in self.title.split()

    @property
    def words(self) -> str:
        """The title, and the kernel's own words; these alone where the title says no more than they do."""
        told = not self.has_function or canonical(self.line).startswith(self.title)
        return self.line if told else f"{self.title} ({self.line})"

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value has another form.
        """
        data = as_object(value, "a complaint")
        functions = tuple(str(name) for name in value_of(data, "functions", list))
        line, title = strings(data, "line", "title")
        return cls(member(data, "kind", ComplaintKind), line, functions, title)


@dataclass(frozen=True)
class Excused:
    """A complaint that is not held against the kernel."""

    line: str
    why: str


@dataclass(frozen=True)
class KernelTroubles:
    """The kernel's complaints during one run of a program, and its taint."""

    complaints: tuple[KernelComplaint, ...] = ()
    """In the order of its log."""
    taint: Taint = NO_TAINT
    """What it got since it booted, but for what means no harm."""
    excused: tuple[Excused, ...] = ()
    gap: str = ""
    """Why "no complaint" cannot be said; "" if all of the log was read."""
    expected: tuple[KernelComplaint, ...] = ()
    """Complaints that the test expects, which are not held against the kernel."""

    @property
    def found(self) -> bool:
        """Whether anything is held against the kernel."""
        return bool(self.complaints or self.taint)

    def to_json(self) -> dict[str, Any]:
        """These troubles as an object of schema hugepfn-run."""
        return {
            "complaints": [one.to_json() for one in self.complaints],
            "taint": int(self.taint),
            "excused": [{"line": one.line, "why": one.why} for one in self.excused],
            "gap": self.gap,
            "expected": [one.to_json() for one in self.expected],
        }

    @classmethod
    def from_json(cls, data: JsonObject) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: data has another form.
        """
        return cls(
            complaints=tuple(map(KernelComplaint.from_json, value_of(data, "complaints", list))),
            taint=Taint(value_of(data, "taint", int)),
            excused=tuple(Excused(*strings(one, "line", "why")) for one in objects(data, "excused")),
            gap=value_of(data, "gap", str),
            expected=tuple(map(KernelComplaint.from_json, data.get("expected") or ())),  # older files have none
        )


class EndKind(enum.Enum):
    """What ended a test."""

    DIED = "died"
    """The kernel died: by its last run's first complaint, or without a word."""
    HANG = "hang"
    """Something that was waited for did not happen in time."""
    PROGRAM = "program"
    """The guest program ended otherwise than it should have."""
    BOOT = "boot"
    """The kernel did not boot."""
    ASSERTION = "assertion"
    """Something did not hold outside of all claims."""


@dataclass(frozen=True)
class End:
    """What ended a test before it came to its end."""

    kind: EndKind
    signal: str = ""
    """The signal that ended the guest program, such as "SIGBUS"; "" if it was none."""
    hang: Hang | None = None
    """For HANG: what hangs, and where; None if that was not found out."""

    def to_json(self) -> dict[str, Any]:
        """Return this end as an object of schema hugepfn-run."""
        hang = self.hang.to_json() if self.hang is not None else None
        return {"kind": self.kind.value, "signal": self.signal, "hang": hang}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value has another form.
        """
        data = as_object(value, "an end")
        hang = Hang.from_json(data["hang"]) if data.get("hang") is not None else None
        return cls(member(data, "kind", EndKind), value_of(data, "signal", str), hang)
