"""One self-contained HTML page: a table whose cells open to entries, claims and the kernel log.

The page has its data as JSON, in which each string is stored once. page/cell.js draws a cell when it is opened, so that
a page of a hundred cases on ten kernels stays fast. Equal neighbours share a row (:mod:`harness.verdict.entries`).
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.metadata
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.campaign.mail import narrow
from harness.campaign.scenarios import scenario_lines
from harness.pagetable import Kind, Layout, Level, bit_positions
from harness.selection.selected import Selected
from harness.source_links import ELIXIR, SourceSite, functions_of
from harness.verdict import ScenarioResult, words
from harness.verdict.capabilities import Capabilities
from harness.verdict.differences import CaseDifference, What, folded
from harness.verdict.entries import Row, rows
from harness.verdict.table import Case, Cell, Column, Mark, Table

_PAGE = Path(__file__).resolve().parent / "page"
_SCRIPTS = ("base.js", "entries.js", "mail.js", "cell.js", "page.js")  # in this order
ROWS_MAX = 3000  # per result; further rows are only counted
LEVELS = (Level.PTE, Level.PMD, Level.PUD)
_OTHER_TABLES = (Layout.NPT, Layout.EPT, Layout.SECOND_LEVEL, Layout.FIRST_LEVEL)


class _Strings:
    """Stores each string once; its number is used elsewhere."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def all(self) -> list[str]:
        return list(self._numbers)


@dataclass(frozen=True)
class PageRequest:
    """The file of a page, how the page was made, and the form in which the answer is printed."""

    file: Path | None = None
    command: str = "hugepfn"  # the command line that made it
    mail: bool = False  # the printed answer is for a mail
    site: SourceSite = ELIXIR  # where kernel functions link to
    patches: tuple[str, ...] = ()  # the option that names the patches of a series, if it is not --mbox


@dataclass(frozen=True)
class PageColumn:
    """A column of a page, and the command that runs one of its cases again.

    The command is ``before``, the scenario and its level, ``after``.
    """

    column: Column
    name: str  # in addresses, stable: the kernel's spec, or "2/3" in a series
    after: tuple[str, ...]  # --kernel=SPEC and the other options
    before: tuple[str, ...] = ("run",)
    subject: str = ""  # of the patch that a step of a series adds


@dataclass(frozen=True)
class PageChange:
    """A case whose answer changes along a series."""

    case: Case
    column: int
    words: str
    reason: str = ""  # of the new answer


def matrix_page(
    request: PageRequest,
    columns: Sequence[PageColumn],
    table: Table,
    missing: Mapping[str, str],
    printed: Iterable[str],
) -> str:
    """Return the page of ``hugepfn matrix --html``.

    :param missing: kernels that are not available, with the reason.
    :param printed: what the command prints, in lines of at most :data:`harness.campaign.mail.COLUMNS`, for a mail.
    """
    data = {
        "kind": "matrix",
        "about": f"{len(columns)} kernels, {len(table.cases)} cases.",
        "lists": [["Not available", [f"{series}: {why}" for series, why in missing.items()]]],
    }
    return _table_page("hugepfn: scenarios on kernels", request, data, columns, table, printed)


def series_page(
    request: PageRequest,
    columns: Sequence[PageColumn],
    table: Table,
    changes: Iterable[PageChange],
    printed: Iterable[str],
    lists: Sequence[tuple[str, Sequence[str]]] = (),
) -> str:
    """The page of ``hugepfn series --html``.

    :param lists: what else there is to say, as for :func:`compare_page`.
    """
    rows = {case: number for number, case in enumerate(table.cases)}
    patches = f"{len(columns) - 1} patches" if len(columns) != 2 else "1 patch"
    data = {
        "kind": "series",
        "about": f"{columns[0].subject or columns[0].name} and {patches}, {len(table.cases)} cases.",
        "changes": [[rows[one.case], one.column, one.words, one.reason] for one in changes],
        "lists": lists,
    }
    return _table_page("hugepfn: scenarios on a series of patches", request, data, columns, table, printed)


def compare_page(
    request: PageRequest,
    columns: Sequence[PageColumn],
    differences: Sequence[CaseDifference],
    lists: Sequence[tuple[str, Sequence[str]]],
    printed: Iterable[str],
) -> str:
    """Return the page of ``hugepfn compare --html``, with only the cases that differ.

    :param columns: A and B, each with one run.
    :param lists: further headings with lines; one without lines is not shown.
    """
    whole = Table.of([one.column for one in columns])
    wanted = {one.case: one for one in differences}
    table = whole.only(wanted)  # the notes are those of the cases shown
    strings = _Strings()
    data = {
        "kind": "compare",
        "about": f"{len(wanted)} of {len(whole.cases)} cases differ.",
        "cases": [{**case, **_told(wanted[one])} for one, case in zip(table.cases, _cases(table), strict=True)],
        "cells": [_compared_cells(strings, table, row) for row in table.cells],
        "lists": lists,
    }
    title = " against ".join(one.column.label for one in columns)
    return _page(title, request, data, columns, table, printed, strings)


def _table_page(
    title: str,
    request: PageRequest,
    data: Mapping[str, Any],
    columns: Sequence[PageColumn],
    table: Table,
    printed: Iterable[str],
) -> str:
    strings = _Strings()
    cells = [[_cell(strings, table, cell) for cell in row] for row in table.cells]
    return _page(title, request, {**data, "cases": _cases(table), "cells": cells}, columns, table, printed, strings)


def _told(one: CaseDifference) -> dict[str, Any]:
    """The differences: of entries checkpoint, place, bits and the rest; of others kind, name, function, A and B."""
    entries = []
    for difference, count in folded(one.of(What.ENTRY)):
        change = difference.change
        assert change is not None
        many = f" x{count}" if count > 1 else ""
        others = [
            f"{what} {pair[0] or 'none'} -> {pair[1] or 'none'}"
            for what, pair in (("level", change.level), ("pfn", change.pfn), ("pagemap", change.pagemap))
            if pair
        ]
        place = f"{change.key.process} {change.key.mapping}+{change.key.offset:#x}{many}"
        entries.append([change.key.checkpoint, place, change.appeared, change.vanished, " ".join(others)])
    differs = [
        [difference.what.value, difference.name, difference.kernel_function, difference.before, difference.after]
        for difference in one.differences
        if difference.change is None
    ]
    return {"differs": differs, "entries": entries}


def _column(one: PageColumn, site: SourceSite) -> dict[str, Any]:
    column, context = one.column, one.column.context
    kernel = context.get("kernel") or {}
    told = {key: context.get(key) for key in ("accel", "qemu", "smp")}
    probed = context.get("capabilities")
    layout = Capabilities.from_json(probed).layout if probed else Layout.MODERN
    return {
        "name": one.name,
        "label": column.label,
        "subject": one.subject,
        "before": one.before,
        "after": one.after,
        "release": kernel.get("release"),
        "append": " ".join(context.get("append") or []),
        **told,
        "trouble": column.trouble,
        "bits": _bits_of(layout),
        "functions": functions_of(kernel, _functions(column), site),
    }


def _functions(column: Column) -> Iterator[str]:
    """Yield what decides the claims."""
    return (claim.kernel_function for run in column.runs for result in run.results for claim in result.claims)


def _bits_of(layout: Layout) -> dict[str, list[str]]:
    return {level.label: _bit_names(level, layout) for level in LEVELS}


def _bit_names(level: Level, layout: Layout) -> list[str]:
    """Return the name of each of the 64 positions in a leaf; "" if it has none. Position 8 may be PROTNONE instead."""
    positions = bit_positions(Kind.LEAF, level, layout, True)
    return [str(positions[bit].name) if bit in positions else "" for bit in range(64)]


def selecting(case: Case) -> Selected:
    """What runs a case again."""
    return Selected(Path(case.file) if case.file else None, case.scenario, case.level)


def _cases(table: Table) -> list[dict[str, Any]]:
    claims = {line.name: line.claim for line in scenario_lines()}
    return [
        {
            "name": name.replace(" ", ":"),
            "title": name,
            "scenario": case.scenario,
            "word": str(selecting(case)),
            "level": case.level,
            "file": case.file,
            "claim": "" if case.file else claims.get(case.scenario, ""),
        }
        for case, name in table.labels.items()
    ]


def _cell(strings: _Strings, table: Table, cell: Cell) -> dict[str, Any]:
    # Repeats that agree are shown once; those of a flake are all shown, for comparison.
    results = cell.results if cell.mark is Mark.FLAKE else cell.results[:1]
    return {**_head(table, cell), "runs": [_result(strings, result, None) for result in results if result]}


def _compared_cells(strings: _Strings, table: Table, row: tuple[Cell, ...]) -> list[dict[str, Any]]:
    first, second = (cell.results[0] for cell in row)
    found = []
    for cell, one, other in zip(row, (first, second), (second, first), strict=True):
        runs = [_result(strings, one, other)] if one is not None else []
        found.append({**_head(table, cell), "runs": runs})
    return found


def _head(table: Table, cell: Cell) -> dict[str, Any]:
    return {"mark": cell.mark.name, "word": cell.word, "note": table.notes.get(cell.note, 0), "reason": cell.reason}


def _result(strings: _Strings, result: ScenarioResult, against: ScenarioResult | None) -> dict[str, Any]:
    found = rows(result.observations, against.observations if against else None)
    return {
        "outcome": words.outcome(result),
        "reason": strings(words.reason(result)),
        "claims": [
            [strings(text) for text in (name, one.outcome.value, one.kernel_function, message)]
            for one, name, message in words.claims(result)
        ]
        + [[strings(told), strings("waived"), strings(""), strings("")] for told in words.waived(result)],
        "rows": [_row(strings, row) for row in found[:ROWS_MAX]],
        "beyond": max(0, len(found) - ROWS_MAX),
        "log": [strings(line) for line in result.log],
    }


def _row(strings: _Strings, row: Row) -> list[int]:
    words = (row.checkpoint, row.process, row.place, row.level, row.raw, f"{row.changed:016x}", " ".join(row.bits))
    more = (" ".join(sorted(row.appeared)), " ".join(row.vanished), row.pfn, row.pagemap, row.format)
    return [row.count, *(strings(text) for text in (*words, *more))]


def _page(
    title: str,
    request: PageRequest,
    data: Mapping[str, Any],
    columns: Sequence[PageColumn],
    table: Table,
    printed: Iterable[str],
    strings: _Strings,
) -> str:
    version = importlib.metadata.version("hugepfn")
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = narrow(printed)
    scripts = "\n".join((_PAGE / name).read_text() for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{scripts}}})();\n'
    stamped = {
        **data,
        "columns": [_column(one, request.site) for one in columns],
        "bits": {layout.format.name: _bits_of(layout) for layout in _OTHER_TABLES},
        "notes": list(table.notes),
        "version": version,
        "command": request.command,
        "date": date,
        "text": f"{text}\n\nhugepfn {version}, {date}",
        "strings": strings.all(),
    }
    parts = {
        "@TITLE@": html.escape(title),
        "@VERSION@": html.escape(version),
        "@DATE@": date,
        "@COMMAND@": html.escape(request.command),
        "@STYLE@": (_PAGE / "page.css").read_text(),
        "@SCRIPT@": script,
        # The browser runs only this script, and loads nothing.
        "@HASH@": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "@PLAIN@": html.escape(text),
        # "<" is escaped, so that nothing in the data can end the script element.
        "@DATA@": json.dumps(stamped, separators=(",", ":")).replace("<", "\\u003c"),
    }
    # In one pass, so that inserted text is not searched for placeholders.
    return re.sub("|".join(parts), lambda place: parts[place[0]], (_PAGE / "page.html").read_text())
