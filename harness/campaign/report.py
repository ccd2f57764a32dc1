"""One self-contained HTML page: a table whose cells open to entries, claims and the kernel log.

The page has its data once, as JSON in which each string is stored once. page/page.js draws a cell when it is opened, so
that a hundred cases on ten kernels stay usable. Equal neighbours share a row (:mod:`harness.verdict.entries`).
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.campaign.session import scenario_lines
from harness.pagetable import Kind, Layout, Level, bit_positions
from harness.verdict import Run, ScenarioResult, words
from harness.verdict.capabilities import Capabilities
from harness.verdict.differences import CaseDifference, What
from harness.verdict.entries import Row, rows
from harness.verdict.table import Case, Cell, Column, Mark, Table

_PAGE = Path(__file__).resolve().parent / "page"
ROWS_MAX = 3000  # per result; further rows are only counted
LEVELS = (Level.PTE, Level.PMD, Level.PUD)


class _Strings:
    """Stores each string once; its number is used elsewhere."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def all(self) -> list[str]:
        return list(self._numbers)


def matrix_page(table: Table, missing: Mapping[str, str]) -> str:
    """The page of ``hugepfn matrix --html``."""
    strings = _Strings()
    data = {
        "kind": "matrix",
        "title": "hugepfn matrix",
        "columns": [_column(column) for column in table.columns],
        "cases": [_case(case) for case in table.cases],
        "cells": [[_cell(strings, table, cell) for cell in row] for row in table.cells],
        "notes": list(table.notes),
        "missing": [f"{series}: {why}" for series, why in missing.items()],
    }
    return _page({**data, "strings": strings.all()}, _plain(table, missing))


def compare_page(specs: Sequence[str], runs: tuple[Run, Run], differences: Sequence[CaseDifference]) -> str:
    """The page of ``hugepfn compare --html``: only the cases that differ."""
    strings = _Strings()
    columns = [Column(spec, (run,)) for spec, run in zip(specs, runs, strict=True)]
    whole = Table.of(columns)
    wanted = {one.case: one for one in differences}
    cases = [case for case in whole.cases if case in wanted]
    # A separate table, so that the notes are those of the cases shown.
    cells = tuple(row for case, row in whole.rows() if case in wanted)
    table = Table(tuple(columns), tuple(cases), cells)
    data = {
        "kind": "compare",
        "title": "hugepfn compare",
        "columns": [_column(column) for column in columns],
        "cases": [{**_case(case), **_told(wanted[case])} for case in cases],
        "cells": [_compared_cells(strings, table, row) for row in cells],
        "notes": list(table.notes),
        "missing": [],
        "compared": len(whole.cases),
    }
    return _page({**data, "strings": strings.all()}, _plain(table, {}))


def _told(one: CaseDifference) -> dict[str, Any]:
    """The differences in words: kind, name, kernel function, A, B; for entries, which are drawn, only the number."""
    differs = [
        [difference.what.value, difference.name, difference.kernel_function, difference.before, difference.after]
        for difference in one.differences
        if difference.change is None
    ]
    return {"differs": differs, "entries": len(one.of(What.ENTRY))}


def _column(column: Column) -> dict[str, Any]:
    context = column.context
    kernel = context.get("kernel") or {}
    told = {key: context.get(key) for key in ("accel", "qemu", "smp", "date")}
    probed = context.get("capabilities")
    layout = Capabilities.from_json(probed).layout if probed else Layout.MODERN
    return {
        "label": column.label,
        "spec": column.spec,
        "release": kernel.get("release"),
        "append": " ".join(context.get("append") or []),
        **told,
        "trouble": column.trouble,
        "bits": {level.label: _bit_names(level, layout) for level in LEVELS},
    }


def _bit_names(level: Level, layout: Layout) -> list[str]:
    """The name of each of the 64 positions in a leaf, "" if it has none. Position 8 may be PROTNONE instead."""
    positions = bit_positions(Kind.LEAF, level, layout, True)
    return [str(positions[bit].name) if bit in positions else "" for bit in range(64)]


def _case(case: Case) -> dict[str, Any]:
    known = {line[0]: line for line in scenario_lines()}
    line = known.get(case.scenario)
    return {"name": str(case), "scenario": case.scenario, "level": case.level, "claim": line[2] if line else ""}


def _cell(strings: _Strings, table: Table, cell: Cell) -> dict[str, Any]:
    # Repeats that agree are shown once; those of a flake are all shown, to be compared.
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
        "outcome": result.outcome.value,
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
    more = (" ".join(sorted(row.appeared)), " ".join(row.vanished), row.pfn, row.pagemap)
    return [row.count, *(strings(text) for text in (*words, *more))]


def _plain(table: Table, missing: Mapping[str, str]) -> str:
    """The table as text, for readers without scripts."""
    lines = [" ".join([f"{case!s:<40}", *(f"{cell.word:<12}" for cell in row)]).rstrip() for case, row in table.rows()]
    heading = " ".join([" " * 40, *(f"{column.label:<12}" for column in table.columns)]).rstrip()
    return "\n".join([heading, *lines, *(f"not available: {series}: {why}" for series, why in missing.items())])


def _page(data: Mapping[str, Any], plain: str) -> str:
    stamped = {**data, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    parts = {
        "@TITLE@": str(data["title"]),
        "@STYLE@": (_PAGE / "page.css").read_text(),
        "@SCRIPT@": (_PAGE / "page.js").read_text(),
        "@PLAIN@": html.escape(plain),
        # "<" is escaped, so that nothing in the data can end the script element.
        "@DATA@": json.dumps(stamped, separators=(",", ":")).replace("<", "\\u003c"),
    }
    # In one pass, so that inserted text is not searched for placeholders.
    return re.sub("|".join(parts), lambda place: parts[place[0]], (_PAGE / "page.html").read_text())
