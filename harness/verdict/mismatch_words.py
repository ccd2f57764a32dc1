"""The words for why a claim does not hold: the same in the terminal, in JSON, in JUnit and on the report page."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from harness.pagetable import Bits, Entry, Leaf, Level
from harness.verdict.entries import signed
from harness.verdict.mismatch import EntrySeen, Mismatch, Place, Subject

_GROUPS_MAX = 8
_WORD_MAX = 200


def word_of(value: object) -> str:
    """Return a value in the field's notation: a bit is 0 or 1, a level "pmd", an entry its word in hex."""
    match value:
        case bool():
            return str(int(value))
        case None:
            return "none"
        case Leaf() | Entry():
            return f"{value.raw:#018x}"
        case Bits():
            return str(value) or "none"
        case Level():
            return value.label
        case enum.Enum():
            return value.name.lower()
        case str():
            return value or '""'
        case set() | frozenset():
            return _many(sorted(map(word_of, value)))
        case list() | tuple():
            return _many([word_of(one) for one in value])
    text = str(value)
    return text if len(text) <= _WORD_MAX else f"{text[:_WORD_MAX]}..."


def _many(texts: Sequence[str]) -> str:
    """Join several values, with equal neighbours as one."""
    groups = [(text, len(list(group))) for text, group in groupby(texts)]
    told = [f"{text} x{count}" if count > 1 else text for text, count in groups[:_GROUPS_MAX]]
    more = [f"and {len(texts) - sum(count for _, count in groups[:_GROUPS_MAX])} more"] * (len(groups) > _GROUPS_MAX)
    return ", ".join([*told, *more]) or "none"


def lines(mismatch: Mismatch) -> list[str]:
    """Return whose entry it is, what was expected and what was found; then the entry before and after, in columns."""
    table = [one for one in (mismatch.reference, mismatch.entry) if one is not None and one.place is not None]
    note = [f"  {line}" for line in mismatch.note.splitlines()]
    return [headline(mismatch), *(f"  {line}" for line in entry_lines(table)), *note]


def compared(op: str, left: Leaf | Entry | Bits, right: Leaf | Entry | Bits) -> list[str]:
    """Return, for pytest, two values of one kind and the bits in which they differ."""
    one, other = (side if isinstance(side, Bits) else side.bits for side in (left, right))
    added = [f"+{name}" for name in (one & ~other).names()]
    lost = [f"-{name}" for name in (other & ~one).names()]
    return [
        f"{word_of(left)} {op} {word_of(right)}",
        " ".join([*added, *lost]) or "no named bit differs",
        *(str(side) for side in (left, right) if not isinstance(side, Bits)),
    ]


def headline(mismatch: Mismatch) -> str:
    """Return ``child bar+0x0 at 'forked', D: expected 0, got 1``."""
    since = f" (so since {mismatch.since!r})" if mismatch.since else ""
    name = f", {mismatch.name}" if mismatch.name else ""
    compared = f"expected {mismatch.expected}, got {mismatch.got}"
    if mismatch.entry is None or mismatch.entry.place is None:
        subject = f"{mismatch.name or 'an entry'}{_when(mismatch)}"
        if mismatch.subject is Subject.HANG:
            return f"{subject} hangs: it was abandoned after {mismatch.got} faults"
        return f"{'the program reports ' if mismatch.subject is Subject.VALUE else ''}{subject}: {compared}"
    if mismatch.subject is Subject.ENTRY or mismatch.name == "bits":
        if words := " ".join(_in_order(mismatch.wrong)):
            compared = f"{words}; {compared}" if mismatch.subject is Subject.ENTRY else words
        name = ""
    return f"{where(mismatch.entry.place)}{since}{name}: {compared}"


def _when(mismatch: Mismatch) -> str:
    """Return between which checkpoints a value was reported."""
    if mismatch.after and mismatch.before:
        return f" between {mismatch.after!r} and {mismatch.before!r}"
    when = [f" {word} {name!r}" for word, name in (("after", mismatch.after), ("before", mismatch.before)) if name]
    return "".join(when)


def where(place: Place) -> str:
    """Return whose entry it is: ``child bar+0x0 at 'forked'``."""
    return f"{place.process} {place.mapping}+{place.offset:#x} at {place.checkpoint!r}"


def entry_lines(entries: Sequence[EntrySeen]) -> list[str]:
    """Return entries in columns. A bit that the entry above does not have is marked, and so is one that only it has."""
    cells = []
    for above, one in zip((None, *entries), entries, strict=False):
        before = above.bits if above is not None else one.bits
        added, lost = set(one.bits) - set(before), [name for name in before if name not in one.bits]
        bits = " ".join(sign + name for sign, name in signed(one.bits, added if one.bits else (), lost))
        if "none" in (one.level, above.level if above is not None else ""):
            bits = " ".join(one.bits)
        place = one.place
        many = f" x{one.count}" if one.count > 1 else ""
        row = (place.checkpoint, place.process, f"{place.mapping}+{place.offset:#x}{many}") if place else ("", "", "")
        cells.append((*row, one.level, f"{one.raw:#018x}", bits))
    widths = [max(len(row[column]) for row in cells) for column in range(6)] if cells else []
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _in_order(wrong: Iterable[str]) -> Iterator[str]:
    """Yield signed names in the order of the bits, then what is not a bit."""
    order = {name: number for number, name in enumerate(Bits.__members__)}
    yield from sorted(wrong, key=lambda word: (word[0] not in "+-", order.get(word[1:], 0), word))
