"""Why a claim does not hold, as a value: whose entry, which part of it, what was expected and what was found. Pure.

:mod:`harness.verdict.mismatch_words` makes the words.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Self

from harness.errors import UsageError
from harness.verdict.json_fields import JsonObject, as_object, member, strings, value_of

MISSING = "missing"
"""In :attr:`Mismatch.wrong`: there is no entry."""


class Subject(enum.Enum):
    """What was compared."""

    ENTRY = "entry"
    """The whole word."""
    BITS = "bits"
    """The named bits, or some of them."""
    PART = "part"
    """A part that is not a bit: level, pfn, PAT index."""
    PRESENCE = "presence"
    """Whether there is an entry at all."""
    VALUE = "value"
    """A value that the guest program reports: a count, an error, a signal."""
    HANG = "hang"
    """Whether an access of the guest program ends."""
    OTHER = "other"
    """Something else."""


@dataclass(frozen=True, slots=True)
class Place:
    """Whose entry: a byte of a mapping of a process, at a checkpoint."""

    checkpoint: str
    process: str
    mapping: str
    offset: int  # bytes from the start of the mapping

    @property
    def owner(self) -> tuple[str, str, int]:
        """Process, mapping and offset, which stay the same from one checkpoint to the next."""
        return self.process, self.mapping, self.offset

    def to_json(self) -> dict[str, Any]:
        """Return this place as an object of schema hugepfn-run."""
        where = {"checkpoint": self.checkpoint, "process": self.process}
        return {**where, "mapping": self.mapping, "offset": self.offset}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value has another form.
        """
        data = as_object(value, "a place")
        checkpoint, process, mapping = strings(data, "checkpoint", "process", "mapping")
        return cls(checkpoint, process, mapping, value_of(data, "offset", int))


@dataclass(frozen=True, slots=True)
class EntrySeen:
    """An entry, or the absence of one, that a claim is about."""

    level: str  # "pte", "pmd", "pud"; "none" if there is no entry
    raw: int  # the 64-bit word
    bits: tuple[str, ...]  # names of the bits that are set
    place: Place | None  # None if it is not known whose entry it is
    count: int = 1  # of equal neighbours that it stands for

    def to_json(self) -> dict[str, Any]:
        """Return this entry as an object of schema hugepfn-run."""
        place = self.place.to_json() if self.place is not None else None
        word = {"level": self.level, "raw": f"{self.raw:#018x}", "bits": list(self.bits)}
        return {**word, "place": place, "count": self.count}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value has another form.
        """
        data = as_object(value, "an entry")
        level, raw = strings(data, "level", "raw")
        try:
            word = int(raw, 16)
        except ValueError:
            raise UsageError(f'raw is {raw!r}, expected a 64-bit number as "0x..."') from None
        bits = tuple(str(bit) for bit in value_of(data, "bits", list))
        place = None if data.get("place") is None else Place.from_json(data["place"])
        return cls(level, word, bits, place, value_of(data, "count", int))


@dataclass(frozen=True, slots=True)
class Mismatch:
    """What a broken claim expected, and what it found instead."""

    subject: Subject
    name: str
    """What was compared, in the words of the test: "D", "level", "write-faults"; "" for a whole entry."""
    expected: str
    got: str
    entry: EntrySeen | None = None
    """The entry that is wrong."""
    reference: EntrySeen | None = None
    """The entry that it was compared with, or that was there at the stop before."""
    wrong: frozenset[str] = frozenset()
    """What differs, as signed names: "+SAVED_DIRTY", "-W", "level", "entry", "missing"."""
    since: str = ""
    """The first checkpoint at which the entry was like this, if that is before the claim's; otherwise ""."""
    after: str = ""
    """For a value: the last checkpoint before it was reported; "" if there was none, or it is not known."""
    before: str = ""
    """For a value: the first checkpoint after it was reported; "" if there was none, or it is not known."""
    note: str = ""
    """The message of the test's own assert statement."""

    @property
    def change(self) -> frozenset[str]:
        """All differences between the entry and its reference, as signed names."""
        if self.entry is None or self.reference is None:
            return self.wrong
        now, then = set(self.entry.bits), set(self.reference.bits)
        found = {f"+{name}" for name in now - then} | {f"-{name}" for name in then - now}
        return self.wrong | found

    def to_json(self) -> dict[str, Any]:
        """Return this mismatch as an object of schema hugepfn-run."""
        return {
            "subject": self.subject.value,
            "name": self.name,
            "expected": self.expected,
            "got": self.got,
            "entry": self.entry.to_json() if self.entry is not None else None,
            "reference": self.reference.to_json() if self.reference is not None else None,
            "wrong": sorted(self.wrong),
            "since": self.since,
            "after": self.after,
            "before": self.before,
            "note": self.note,
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value has another form.
        """
        data = as_object(value, "a mismatch")
        name, expected, got, note = strings(data, "name", "expected", "got", "note")
        since, after, before = strings(data, "since", "after", "before")
        return cls(
            subject=member(data, "subject", Subject),
            name=name,
            expected=expected,
            got=got,
            note=note,
            entry=_entry(data, "entry"),
            reference=_entry(data, "reference"),
            wrong=frozenset(str(one) for one in value_of(data, "wrong", list)),
            since=since,
            after=after,
            before=before,
        )


def _entry(data: JsonObject, key: str) -> EntrySeen | None:
    return None if data.get(key) is None else EntrySeen.from_json(data[key])
