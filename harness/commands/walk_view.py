"""Show the page tables of a live process. Pure: values in, lines out.

A + marks what is new since the last look, and a - what is gone. A word that changed is shown with its old value. Colour
only repeats this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from rich.text import Text

from harness.errors import UsageError
from harness.introspect.address_spaces import DeviceRoot, MachineRoot
from harness.introspect.processes import ProcessRoot, ProcessVmas, RangeWalk
from harness.introspect.vmas import Vma, VmaLine
from harness.pagetable import Bits, Entry, EntryRun, Level, Walk
from harness.pagetable.bits import ENTRIES_PER_TABLE, PAGE_SHIFT
from harness.pagetable.vtd import Access
from harness.verdict.entries import signed

Cell = str | Text

_NEW, _GONE, _HEADING = "bold green", "red", "dim"
_STYLE = {"": "", "+": _NEW, "-": _GONE}
_LEVEL_STYLE = {Level.PTE: "", Level.PMD: "magenta", Level.PUD: "bold magenta"}  # the style of leaves
#: Bits that add nothing to the level and the permissions of a VMA.
_PLAIN_BITS = Bits.P | Bits.U | Bits.PSE
_EXACT_MAX = 7  # the longest size, in characters, that is shown exactly; longer ones are rounded
_SPAN = re.compile(r"(?:0x)?([0-9a-f]{1,16})(?:-(?:0x)?([0-9a-f]{1,16}))?", re.IGNORECASE)


def parse_span(text: str) -> tuple[int, int | None]:
    """Parse an address, or a range as in /proc/PID/maps; always hexadecimal, with or without 0x.

    :returns: the first address, and one past the last; None instead of the latter for a single address.
    :raises UsageError: text is neither, or the range is empty.
    """
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not an address; expected 0x7f0000000000, or START-END in hexadecimal")
    start, end = int(match[1], 16), int(match[2], 16) if match[2] else None
    if end is not None and end <= start:
        raise UsageError(f"the range {text} is empty: it ends at {end:#x}; expected START-END with START < END")
    return start, end


def process_line(process: ProcessRoot, previous: ProcessRoot | None = None) -> Text:
    """Return the process, the root of its page tables, and whether the root changed since the last look."""
    layout = process.layout
    line = Text(f"process {process}", style="bold")
    if process.tgid != process.pid:
        line.append(f", a thread of {process.tgid}", style="default")
    line.append(f"  root {process.paddr:#x}, {len(layout.levels)} levels", style="not bold dim")
    if previous is not None and previous != process:
        line.append(f"  at the last look: {previous} with root {previous.paddr:#x}", style="not bold yellow")
    return line


def machine_line(machine: MachineRoot) -> Text:
    """Return the virtual machine, and the root of its nested page tables."""
    line = Text(str(machine), style="bold")
    where = f"root {machine.paddr:#x}, {len(machine.layout.levels)} levels" if machine.paddr else "no nested tables yet"
    line.append(f"  {where}", style="not bold dim")
    return line


def device_lines(device: DeviceRoot) -> list[Text]:
    """Return the device, the root of its page tables in the IOMMU, and how the IOMMU finds it."""
    head = Text(str(device), style="bold")
    translated = device.access is Access.TRANSLATED
    where = f"root {device.paddr:#x}, {len(device.layout.levels)} levels" if translated else device.access.value
    head.append(f"  {where}", style="not bold dim")
    return [
        head,
        *_columns(
            [[f"{one.table}[{one.index}]", " ".join(f"{word:#018x}" for word in one.raw)] for one in device.path]
        ),
    ]


def walk_lines(way: Walk, previous: Walk | None = None) -> list[Text]:
    """Return one line per level, from the root down: index in the table, raw word, bits, and target."""
    before = {entry.level: entry for entry in previous.path} if previous is not None else None
    rows: list[list[Cell]] = []
    for entry in way.path:
        index = way.vaddr >> entry.layout.shift(entry.level) & ENTRIES_PER_TABLE - 1
        old = None if before is None else before.pop(entry.level, Entry(0, entry.level, entry.layout))
        rows.append([f"{entry.level.label}[{index}]", *_entry_cells(entry, old)])
    for gone in (before or {}).values():
        was = [Text(word, style=_GONE) for word in (f"-{gone.level.label}", f"{gone.raw:#018x}")]
        rows += [[*was, "", "this table is gone"]]
    lines = [Text(f"{way.vaddr:#018x}", style="bold cyan"), *_columns(rows)]
    if way.leaf is not None:
        paddr = way.leaf.paddr_at(way.vaddr)
        lines.append(Text(f"  {_size(way.leaf.size_bytes)} page, paddr {paddr:#x}, pfn {paddr >> PAGE_SHIFT:#x}"))
    else:
        lines.append(Text(f"  {_absence(way.terminal)}", style="yellow"))
    return lines


def range_lines(now: RangeWalk, previous: RangeWalk | None = None) -> list[Text]:
    """Return one line for each run of equal neighbours, including holes."""
    heading: list[Cell] = [Text(word, style=_HEADING) for word in ("vaddr", "size", "entries", "raw", "bits", "")]
    rows = [[f"{run.vaddr:#x}", _size(run.end - run.vaddr), *_run_cells(run)] for run in now.runs(previous)]
    return list(_columns([heading, *rows]))


def vma_lines(now: ProcessVmas, previous: ProcessVmas | None = None) -> list[Text]:
    """Return one line per VMA: leaves at each level, how many have each bit, and the change since the last look."""
    old = {vma.line.start: vma for vma in previous.vmas} if previous is not None else {}
    bits = [bit for bit in Bits if bit not in _PLAIN_BITS and any(bit in vma.bits for vma in now.vmas)]
    swapped = any(vma.swapped for vma in now.vmas)
    words = ["range", "perms", "pte", "pmd", "pud", *(["swap"] if swapped else []), *map(_name, bits), "name"]
    rows: list[list[Cell]] = [[Text(word, style=_HEADING) for word in words]]
    for vma in now.vmas:
        before = old.pop(vma.line.start, None)
        line, was = vma.line, before.line if before is not None else None
        new = previous is not None and (was is None or was.offset != line.offset)
        cells: list[Cell] = [
            Text(f"+{_range(line)}", style=_NEW) if new else _changed(_range(line), _range(was or line)),
            _changed(line.perms, line.perms if was is None else was.perms),
            *(_count(*pair) for pair in zip(*(_counts(a, bits, swapped) for a in (vma, before or vma)), strict=True)),
            _changed(line.name, line.name if was is None else was.name),
        ]
        rows.append(cells)
    for gone in old.values():
        first, *rest = f"-{_range(gone.line)}", gone.line.perms, *[""] * (len(words) - 3), gone.line.name
        rows.append([Text(word, style=_GONE if word else "") for word in (first, *rest)])
    lines = list(_columns(rows))
    if now.elsewhere:
        lines.append(Text(f"  {now.elsewhere} leaves are outside all VMAs", style="bold red"))
    return lines


def _range(line: VmaLine) -> str:
    return f"{line.start:x}-{line.end:x}"


def _changed(now: str, before: str) -> Text:
    """Return a word, with its value at the last look if that was different."""
    if now == before:
        return Text(now)
    return Text.assemble((now, _NEW), " ", (f"(was {before or 'none'})", _GONE))


def _counts(vma: Vma, bits: Sequence[Bits], swapped: bool) -> Iterator[int]:
    yield from (vma.leaves.get(level, 0) for level in (Level.PTE, Level.PMD, Level.PUD))
    if swapped:
        yield vma.swapped
    yield from (vma.bits.get(bit, 0) for bit in bits)


def _count(now: int, before: int) -> Text:
    text = Text(str(now)) if now else Text("-", style="dim")
    if now != before:
        text.append(f" ({now - before:+d})", style=_NEW if now > before else _GONE)
    return text


def _run_cells(run: EntryRun) -> list[Cell]:
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
    """Return raw word, bits and target of an entry; ``before`` is the entry at the last look, if there was one."""
    now, then = _names(entry), _names(before or entry)
    words = signed(now, {name for name in now if name not in then}, [name for name in then if name not in now])
    bits = Text(" ").join(Text(sign + name, _STYLE[sign]) for sign, name in words)
    leads, led = _leads(entry), _leads(before or entry)
    if before is not None and before.level != entry.level and led != leads:
        led = f"{before.level.label} {led}"
    return [f"{entry.raw:#018x}", bits, _changed(leads, led)]


def _names(entry: Entry) -> list[str]:
    """Return everything in an entry except its target."""
    more = {f"pkey={entry.pkey}": entry.pkey, f"unnamed={entry.unnamed:#x}": entry.unnamed}
    return [*entry.bits.names(), *(word for word, there in more.items() if there)]


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
    """Yield lines with aligned columns."""
    table = list(rows)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))] if table else []
    for row in table:
        line = Text("  ")
        for cell, width in zip(row, widths, strict=True):
            line.append_text(cell if isinstance(cell, Text) else Text(cell))
            line.append(" " * (width - len(cell) + 2))
        line.rstrip()
        yield line
