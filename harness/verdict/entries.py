"""Observations as the rows of a table: like pages side by side become one row, changed bits are marked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.pagetable import Level, Observation, PagemapWord


@dataclass(frozen=True, slots=True)
class Row:
    """One leaf, or a run of neighbours of one level that have the same bits."""

    checkpoint: str
    process: str
    place: str  # "bar+0x0"
    count: int  # how many leaves
    level: str
    raw: str  # of the first
    bits: tuple[str, ...]
    appeared: frozenset[str]  # bits that this place did not have at the stop before
    vanished: tuple[str, ...]  # bits that it had
    pfn: str
    pagemap: str


HEADINGS = ("checkpoint", "process", "mapping", "level", "raw", "bits", "pfn", "pagemap")


def rows(observations: Iterable[Observation]) -> list[Row]:
    """The table of one run, in order."""
    last: dict[tuple[str, str, int], Observation] = {}
    found = []
    for group in _groups(observations):
        first = group[0]
        key = (first.process, first.mapping, first.offset)
        before = set(last[key].bits) if key in last else set(first.bits)
        for one in group:
            last[one.process, one.mapping, one.offset] = one
        found.append(
            Row(
                checkpoint=first.checkpoint,
                process=first.process,
                place=f"{first.mapping}+{first.offset:#x}",
                count=len(group),
                level=first.level,
                raw=f"{first.raw:#018x}",
                bits=first.bits,
                appeared=frozenset(first.bits) - before,
                vanished=tuple(sorted(before - set(first.bits))),
                pfn=first.pfn or "-",
                pagemap=_pagemap(first.pagemap),
            )
        )
    return found


def _groups(observations: Iterable[Observation]) -> Iterator[Sequence[Observation]]:
    group: list[Observation] = []
    for one in observations:
        if group and not _continues(group[-1], one):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _continues(before: Observation, one: Observation) -> bool:
    if one.level == "none" or _identity(before) != _identity(one):
        return False
    return one.offset == before.offset + Level.from_label(one.level).size_bytes


def _identity(one: Observation) -> tuple[object, ...]:
    return one.checkpoint, one.process, one.mapping, one.level, one.bits, _pagemap(one.pagemap)


def _pagemap(word: int | None) -> str:
    if word is None:
        return "not read"
    decoded = PagemapWord(word)
    words = ["hole"] if decoded.hole else []
    return " ".join([*words, *decoded.names()])


def as_text(table: Sequence[Row]) -> str:
    """Plain columns, for messages."""
    lines = []
    for row in table:
        bits = " ".join(f"+{name}" if name in row.appeared else name for name in row.bits)
        gone = "".join(f" -{name}" for name in row.vanished)
        many = f" x{row.count}" if row.count > 1 else ""
        lines.append(
            f"  {row.checkpoint:<19} {row.process:<10} {row.place}{many} {row.level} {row.raw} {bits}{gone} {row.pfn}"
        )
    return "\n".join(lines)
