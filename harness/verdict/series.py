"""Find where a table's cells change along a series of patches. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from harness.verdict.claims import Outcome, Run
from harness.verdict.differences import CaseDifference, compare_runs
from harness.verdict.table import Case, Cell, Mark, Table

#: Marks that say nothing about the kernel of that step.
_SILENT = {Mark.ERROR, Mark.UNKNOWN}


@dataclass(frozen=True)
class Change:
    """A case whose answer changes at one step."""

    case: Case
    step: int  # index of the column in which the change is first seen
    since: int  # index of the last column before it that has a result
    before: Cell
    after: Cell


def changes(table: Table) -> list[Change]:
    """Return every change along the columns of a table, in their order. A column without a result is skipped."""
    found = []
    for case, row in table.rows():
        last: tuple[int, Cell] | None = None
        for step, cell in enumerate(row):
            if cell.mark in _SILENT:
                continue
            if last is not None and _said(last[1]) != _said(cell):
                found.append(Change(case, step, last[0], last[1], cell))
            last = step, cell
    return sorted(found, key=lambda change: change.step)


def difference_of(table: Table, change: Change) -> CaseDifference | None:
    """Return what differs at a change: entries, claims, checkpoints; None if one side has no result."""
    sides = []
    for column, cell in ((change.since, change.before), (change.step, change.after)):
        result = next((one for one in cell.results if one is not None), None)
        if result is None:
            return None
        sides.append(Run((result,), table.columns[column].runs[0].context))
    return next(iter(compare_runs(*sides)), None)


def steady(table: Table) -> Counter[Mark]:
    """Return the number of cases with the same answer at every step, by that answer."""
    changing = {change.case for change in changes(table)}
    return Counter(
        next((cell.mark for cell in row if cell.mark not in _SILENT), row[0].mark)
        for case, row in table.rows()
        if case not in changing and row
    )


def _said(cell: Cell) -> tuple[object, ...]:
    """Return what counts as the answer: the mark, the bugs, and the broken claims."""
    if cell.mark is not Mark.FAIL:
        return cell.mark, cell.listed
    claims = (claim for result in cell.results if result is not None for claim in result.claims)
    return cell.mark, frozenset(claim.key for claim in claims if claim.outcome is Outcome.FAILED)
