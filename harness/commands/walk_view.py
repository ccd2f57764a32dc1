"""How page tables of a live process are shown: values in, lines out. Nothing is asked of a machine here.

What was not there at the last look is bold green, what is gone since is struck through in red.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from rich.text import Text

from harness.errors import UsageError
from harness.machine.areas import Area, AreaLine
from harness.machine.processes import ProcessAreas, ProcessRoot, RangeWalk
from harness.pagetable import Bits, Entry, Level, Run, Walk
from harness.pagetable.bits import ENTRIES_PER_TABLE, PAGE_SHIFT

Cell = str | Text

_NEW, _GONE, _HEADING = "bold green", "red strike", "dim"
_LEVEL_STYLE = {Level.PTE: "", Level.PMD: "magenta", Level.PUD: "bold magenta"}  # of leaves
#: Bits that say nothing beside the level and the permissions of an area.
_PLAIN_BITS = Bits.P | Bits.U | Bits.PSE
_EXACT_MAX = 7  # characters of a size; longer ones are rounded
_SPAN = re.compile(r"(?:0x)?([0-9a-f]{1,16})(?:-(?:0x)?([0-9a-f]{1,16}))?", re.IGNORECASE)


def parse_span(text: str) -> tuple[int, int | None]:
    """An address, or a range as /proc/PID/maps writes it; always hexadecimal, with or without 0x.

    :returns: first address and the one past the last; None in its place for a single address.
    :raises UsageError: it is neither, or the range is empty.
    """
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"address {text!r} is not understood; expected 0x7f0000000000, or START-END in hex")
    start, end = int(match[1], 16), int(match[2], 16) if match[2] else None
    if end is not None and end <= start:
        raise UsageError(f"the range {text} is empty: it ends at {end:#x}")
    return start, end


def process_line(process: ProcessRoot, previous: ProcessRoot | None = None) -> Text:
    """Who it is and where its tables start; whether these are others than at the last look."""
    layout = process.layout
    line = Text(f"process {process}", style="bold")
    if process.tgid != process.pid:
        line.append(f", a thread of {process.tgid}", style="default")
    line.append(f"  root {process.paddr:#x}, {len(layout.levels)} levels", style="not bold dim")
    if previous is not None and previous != process:
        line.append(f"  another than before: {previous} at {previous.paddr:#x}", style="not bold yellow")
    return line


def walk_lines(way: Walk, previous: Walk | None = None) -> list[Text]:
    """One line a level, from the root down: index in the table, raw word, bits, where it leads."""
    before = {entry.level: entry for entry in previous.path} if previous is not None else None
    rows: list[list[Cell]] = []
    for entry in way.path:
        index = way.vaddr >> entry.layout.shift(entry.level) & ENTRIES_PER_TABLE - 1
        old = None if before is None else before.pop(entry.level, Entry(0, entry.level, entry.layout))
        rows.append([f"{entry.level.label}[{index}]", *_entry_cells(entry, old)])
    for gone in (before or {}).values():
        struck = [Text(word, style=_GONE) for word in (gone.level.label, f"{gone.raw:#018x}")]
        rows += [[*struck, "", "no such table any more"]]
    lines = [Text(f"{way.vaddr:#018x}", style="bold cyan"), *_columns(rows)]
    if way.leaf is not None:
        paddr = way.leaf.paddr_at(way.vaddr)
        lines.append(Text(f"  {_size(way.leaf.size_bytes)} page, paddr {paddr:#x}, pfn {paddr >> PAGE_SHIFT:#x}"))
    else:
        lines.append(Text(f"  {_absence(way.terminal)}", style="yellow"))
    return lines


def range_lines(now: RangeWalk, previous: RangeWalk | None = None) -> list[Text]:
    """One line for each run of neighbours that are alike, holes too."""
    heading: list[Cell] = [Text(word, style=_HEADING) for word in ("vaddr", "size", "entries", "raw", "bits", "")]
    rows = [[f"{run.vaddr:#x}", _size(run.end - run.vaddr), *_run_cells(run)] for run in now.runs(previous)]
    return list(_columns([heading, *rows]))


def areas_lines(now: ProcessAreas, previous: ProcessAreas | None = None) -> list[Text]:
    """One line for each area: leaves of each level, how many have each bit, and since the last look how many more."""
    old = {area.line.start: area for area in previous.areas} if previous is not None else {}
    bits = [bit for bit in Bits if bit not in _PLAIN_BITS and any(bit in area.bits for area in now.areas)]
    swapped = any(area.swapped for area in now.areas)
    words = ["range", "perms", "pte", "pmd", "pud", *(["swap"] if swapped else []), *map(_name, bits), "name"]
    rows: list[list[Cell]] = [[Text(word, style=_HEADING) for word in words]]
    for area in now.areas:
        before = old.pop(area.line.start, None)
        style = _NEW if previous is not None and (before is None or before.line != area.line) else ""
        counts = zip(_counts(area, bits, swapped), _counts(before or area, bits, swapped), strict=True)
        rows.append([*_line_cells(area.line, style), *(_count(*pair) for pair in counts), area.line.name])
    blank = [""] * (len(words) - 3)
    rows += [[*_line_cells(gone.line, _GONE), *blank, Text(gone.line.name, style=_GONE)] for gone in old.values()]
    lines = list(_columns(rows))
    if now.elsewhere:
        lines.append(Text(f"  {now.elsewhere} leaves lie in no area", style="bold red"))
    return lines


def _line_cells(line: AreaLine, style: str) -> list[Cell]:
    return [Text(f"{line.start:x}-{line.end:x}", style=style), Text(line.perms, style=style)]


def _counts(area: Area, bits: Sequence[Bits], swapped: bool) -> Iterator[int]:
    yield from (area.leaves.get(level, 0) for level in (Level.PTE, Level.PMD, Level.PUD))
    if swapped:
        yield area.swapped
    yield from (area.bits.get(bit, 0) for bit in bits)


def _count(now: int, before: int) -> Text:
    text = Text(str(now)) if now else Text("-", style="dim")
    if now != before:
        text.append(f"{now - before:+d}", style="bold green" if now > before else "red")
    return text


def _run_cells(run: Run) -> list[Cell]:
    entry = run.entry
    many = f" x{run.count}" if run.count > 1 else ""
    label = Text(f"{entry.level.label}{many}", style=_LEVEL_STYLE.get(entry.level, "") if entry.leaf else "dim")
    if not entry.leaf and run.before is None:
        return [label, "", Text(_absence(entry), style="dim"), ""]
    cells = _entry_cells(entry, run.before)
    if entry.leaf and run.count > 1:
        last = entry.pfn + run.count * (entry.size_bytes >> PAGE_SHIFT) - 1
        cells[-1] = Text.assemble(cells[-1], f"..{last:#x}" if run.consecutive else " and others")
    return [label, *cells]


def _entry_cells(entry: Entry, before: Entry | None) -> list[Cell]:
    """Raw word, bits, and where it leads; before: what it was at the last look, if it was looked at."""
    changed = before is not None and (before.raw != entry.raw or before.level != entry.level)
    bits = Text()
    for name in entry.bits.names():
        bits.append(name, style=_NEW if before is not None and name not in before.bits.names() else "")
        bits.append(" ")
    for name in before.bits.names() if before is not None else ():
        if name not in entry.bits.names():
            bits.append(name, style=_GONE)
            bits.append(" ")
    if entry.pkey:
        bits.append(f"pkey={entry.pkey} ")
    if entry.unnamed:
        bits.append(f"unnamed={entry.unnamed:#x} ", style="bold red")
    bits.rstrip()
    leads = Text(_leads(entry))
    if before is not None and changed and _leads(before) != _leads(entry):
        was = f"{before.level.label} {_leads(before)}" if before.level != entry.level else _leads(before)
        leads.stylize(_NEW)
        leads.append(" ")
        leads.append(was, style=_GONE)
    return [Text(f"{entry.raw:#018x}", style="bold" if changed else ""), bits, leads]


def _leads(entry: Entry) -> str:
    if entry.table:
        return f"table={entry.table_paddr:#x}"
    return f"pfn={entry.pfn:#x}" if entry.leaf else _absence(entry)


def _absence(entry: Entry) -> str:
    if entry.swap:
        return "not present: swap, migration or marker"
    return "hole" if entry.level is Level.PTE else f"hole: no table below this {entry.level.label}"


def _name(bit: Bits) -> str:
    return bit.name or str(bit)


def _size(size_bytes: int) -> str:
    for unit, shift in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if size_bytes >> shift and not size_bytes & (1 << shift) - 1:
            exact = f"{size_bytes >> shift}{unit}"
            return exact if len(exact) <= _EXACT_MAX else f"~{size_bytes / (1 << 30):.1f}G"
    return f"{size_bytes}B"


def _columns(rows: Iterable[Sequence[Cell]]) -> Iterator[Text]:
    """Lines whose columns start at the same place."""
    table = list(rows)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))] if table else []
    for row in table:
        line = Text("  ")
        for cell, width in zip(row, widths, strict=True):
            line.append_text(cell if isinstance(cell, Text) else Text(cell))
            line.append(" " * (width - len(cell) + 2))
        line.rstrip()
        yield line
