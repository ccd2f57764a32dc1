"""Observations as rows of a table: equal neighbouring pages share one row, and changed bits are marked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from harness.pagetable import Level, Observation, PagemapWord
from harness.pagetable.bits import PADDR_MASK
from harness.pagetable.changes import by_key
from harness.pagetable.formats import CPU
from harness.pagetable.observation import ORDINARY_MEMORY


@dataclass(frozen=True, slots=True)
class Row:
    """One leaf, or a run of neighbouring leaves of one level with the same bits."""

    checkpoint: str
    process: str
    place: str  # "bar+0x0"
    count: int  # how many leaves
    level: str
    raw: str  # of the first leaf
    bits: tuple[str, ...]
    appeared: frozenset[str]  # bits that were not set at the previous stop, or in the other run
    vanished: tuple[str, ...]  # bits that were set there
    pfn: str
    pagemap: str
    format: str = CPU.name  # of the tables
    changed: int = 0  # mask of the positions at which the first leaf's raw word differs from before, including its pfn


_NO_BITS: frozenset[str] = frozenset()
HEADINGS = ("checkpoint", "process", "mapping", "level", "raw", "bits", "pfn", "pagemap")


class _Seen(NamedTuple):  # one per page: cheaper than a dataclass
    """An observation, and how it differs from the previous stop."""

    one: Observation
    appeared: frozenset[str]
    vanished: frozenset[str]
    changed: int


def rows(observations: Iterable[Observation], against: Iterable[Observation] | None = None) -> list[Row]:
    """Return the table of one run, in order.

    :param against: another run of the same program. Changes are then shown relative to it instead of the previous stop,
        except for frames of ordinary memory, which may differ between two runs.
    """
    found = []
    for group in _groups(_compared(observations) if against is None else _against(observations, against)):
        seen = group[0]
        first = seen.one
        found.append(
            Row(
                checkpoint=first.checkpoint,
                process=first.process,
                place=f"{first.mapping}+{first.offset:#x}",
                count=len(group),
                level=first.level,
                raw=f"{first.raw:#018x}",
                bits=first.bits,
                appeared=seen.appeared,
                vanished=tuple(sorted(seen.vanished)),
                pfn=first.pfn or "-",
                pagemap=_pagemap(first.pagemap),
                format=first.format,
                changed=seen.changed,
            )
        )
    return found


def _compared(observations: Iterable[Observation]) -> Iterator[_Seen]:
    last: dict[tuple[str, str, int], Observation] = {}
    for one in observations:
        key = (one.process, one.mapping, one.offset)
        before = last.get(key, one)
        last[key] = one
        yield _seen(one, before, one.raw ^ before.raw)


def _against(observations: Iterable[Observation], other: Iterable[Observation]) -> Iterator[_Seen]:
    there = by_key(other)
    for key, one in by_key(observations).items():
        twin = there.get(key, one)
        moved = one.raw ^ twin.raw
        if one.pfn.startswith(ORDINARY_MEMORY) and twin.pfn.startswith(ORDINARY_MEMORY):
            moved &= ~PADDR_MASK
        yield _seen(one, twin, moved)


def _seen(one: Observation, before: Observation, changed: int) -> _Seen:
    if before.bits == one.bits:
        return _Seen(one, _NO_BITS, _NO_BITS, changed)
    return _Seen(one, frozenset(one.bits).difference(before.bits), frozenset(before.bits).difference(one.bits), changed)


def _groups(observations: Iterable[_Seen]) -> Iterator[Sequence[_Seen]]:
    group: list[_Seen] = []
    for seen in observations:
        if group and not _continues(group[-1], seen):
            yield group
            group = []
        group.append(seen)
    if group:
        yield group


def _continues(before: _Seen, seen: _Seen) -> bool:
    if seen.one.level == "none" or _identity(before) != _identity(seen):
        return False
    return seen.one.offset == before.one.offset + Level.from_label(seen.one.level).size_bytes


def _identity(seen: _Seen) -> tuple[object, ...]:
    """Return what neighbours in one row have in common. It includes their change, so that no change is hidden."""
    one = seen.one
    kind = one.checkpoint, one.process, one.mapping, one.level, one.bits, _pagemap(one.pagemap)
    return *kind, seen.appeared, seen.vanished


def _pagemap(word: int | None) -> str:
    if word is None:
        return "not read"
    decoded = PagemapWord(word)
    words = ["hole"] if decoded.hole else []
    return " ".join([*words, *decoded.names()])


def as_text(table: Sequence[Row]) -> str:
    """Return the table as plain columns, for messages."""
    lines = []
    for row in table:
        bits = " ".join(sign + name for sign, name in signed(row.bits, row.appeared, row.vanished))
        many = f" x{row.count}" if row.count > 1 else ""
        line = f"  {row.checkpoint:<19} {row.process:<10} {row.place}{many} {row.level} {row.raw} {bits} {row.pfn}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def signed(now: Iterable[str], appeared: Collection[str], vanished: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the bits of an entry as every output shows them: ``W``, ``+D`` for a bit that was set, ``-A`` for cleared.

    Pipes, logs and mails have no colour, so the sign alone must distinguish a set bit from a cleared one.

    :returns: sign (``""``, ``"+"`` or ``"-"``) and name; first the bits that are set, then those that were cleared.
    """
    yield from (("+" if name in appeared else "", name) for name in now)
    yield from (("-", name) for name in vanished)
