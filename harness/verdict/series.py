"""Find where a table's cells change along a series of patches. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from harness.verdict.claims import ClaimKind, Outcome, Run
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

    @property
    def expected(self) -> bool:
        """Whether it is what was expected and nothing else: nothing that was broken before holds now."""
        return self.after.mark is Mark.EXPECTED and _broken(self.before) <= _broken(self.after)


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
        sides.append(Run((result.as_found,), table.columns[column].runs[0].context))
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
    """Return what counts as the answer, expected or not: the mark, the bugs, and the broken claims."""
    mark = cell.was or cell.mark
    return (mark, _broken(cell)) if mark is Mark.FAIL else (mark, cell.listed)


def _broken(cell: Cell) -> frozenset[tuple[ClaimKind, str]]:
    claims = (claim for result in cell.results if result is not None for claim in result.claims)
    return frozenset(claim.key for claim in claims if claim.found is Outcome.FAILED)
