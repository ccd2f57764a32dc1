"""Many runs as one table, with a row per scenario and level, and a column per kernel. Pure."""

from __future__ import annotations

import enum
import functools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.errors import ExitCode
from harness.verdict import words
from harness.verdict.claims import Outcome, Run, ScenarioResult, exit_code

SCHEMA = "hugepfn-matrix"
VERSION = 2

#: The key in a Run's context that says why results are missing, because the child process that ran it failed.
TROUBLE = "trouble"
#: The key that names the workers which were lost while they ran it, so that it ran again elsewhere.
LOST = "lost_workers"


class Mark(enum.Enum):
    """The mark in a cell."""

    PASS = "pass"
    FIXED = "pass*"  # passed, and an older kernel of its series had a known bug here
    SKIP = "skip"  # a precondition is not met
    EXPECTED = "expected"  # it failed or was skipped, as was expected
    BUG = "bug"  # it failed as the list of known bugs says
    UNKNOWN = "?"  # cannot know: it cannot be observed here, or there is no result
    ERROR = "error"  # the machinery failed
    FLAKE = "flake"  # repeats differ
    FAIL = "FAIL"


@dataclass(frozen=True, order=True)
class Case:
    """One row: a scenario at a level."""

    scenario: str
    level: str | None
    turn: int = 0  # 0 for the first result of that name in a run, 1 for the second
    file: str = ""  # the path of a user's own test; "" for hugepfn's scenarios

    def __str__(self) -> str:
        again = f"({self.turn + 1})" if self.turn else ""
        return " ".join(word for word in (self.scenario, self.level, again) if word)


def labels(cases: Iterable[Case]) -> dict[Case, str]:
    """Return the label of each row: its name and, if two files have a test of this name, enough of the file's path."""
    files: dict[str, set[str]] = {}
    for case in cases:
        files.setdefault(str(case), set()).add(case.file)
    return {case: _label(case, files[str(case)]) for case in cases}


def _label(case: Case, files: Collection[str]) -> str:
    if len(files) == 1 or not case.file:
        return str(case)
    parts = case.file.split("/")
    others = [file.split("/") for file in files if file != case.file]
    count = next(n for n in range(1, len(parts) + 1) if all(parts[-n:] != other[-n:] for other in others))
    return f"{case} ({'/'.join(parts[-count:])})"


@dataclass(frozen=True)
class Cell:
    """One case on one kernel."""

    mark: Mark
    reason: str = ""  # "" if it simply passed
    listed: tuple[str, ...] = ()  # ids in the list of known bugs: those that it shows, or that are fixed here
    results: tuple[ScenarioResult | None, ...] = ()  # one per repeat; None if that run has none
    was: Mark | None = None  # for EXPECTED: the mark without the expectation

    @property
    def word(self) -> str:
        """The printed form: ``pass``, ``bug HP-001``, ``skip``, ``expected fail``."""
        if self.was is not None:
            return f"{self.mark.value} {self.was.value.lower()}"
        return " ".join([self.mark.value, *([", ".join(self.listed)] if self.mark is Mark.BUG and self.listed else [])])

    @property
    def bugs(self) -> frozenset[str]:
        """The ids of the known bugs in any of its results."""
        return frozenset(bug.id for one in self.results if one is not None for bug in one.known_bugs)

    @property
    def note(self) -> str:
        """The footnote: the first line of the reason; "" if there is nothing to explain."""
        return self.reason.strip().partition("\n")[0]


@dataclass(frozen=True)
class Column:
    """One kernel and the results of its runs."""

    spec: str
    runs: tuple[Run, ...]  # one per repeat, in order

    @property
    def label(self) -> str:
        """A short name for the heading of the column."""
        return self.spec.removeprefix("debian:")

    @property
    def trouble(self) -> str:
        """Why results of a run are missing; "" if none are."""
        return next((str(run.context[TROUBLE]) for run in self.runs if run.context.get(TROUBLE)), "")

    @property
    def lost(self) -> tuple[str, ...]:
        """The workers that were lost while they ran it, so that it ran again elsewhere."""
        return tuple(str(worker) for run in self.runs for worker in run.context.get(LOST) or ())

    @property
    def context(self) -> Mapping[str, Any]:
        """The context of the first run that has one."""
        told = [run.context for run in self.runs if run.context.get("qemu")]
        return (told or [run.context for run in self.runs] or [{}])[0]

    @functools.cached_property
    def by_case(self) -> tuple[Mapping[Case, ScenarioResult], ...]:
        """The results of each run, by their row."""
        return tuple(dict(_cases(run)) for run in self.runs)


@dataclass(frozen=True)
class Table:
    """The whole table: ``cells[row][column]``."""

    columns: tuple[Column, ...]
    cases: tuple[Case, ...]
    cells: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(cls, columns: Sequence[Column], expected: Sequence[Case] = ()) -> Table:
        """Make a table from the runs of some kernels.

        :param expected: the rows to show if no kernel has results.
        """
        found: dict[Case, None] = {}
        for column in columns:
            for results in column.by_case:
                found |= dict.fromkeys(results)
        # The expected rows come first, in their order; the others are sorted by name, since xdist's order is random.
        order = {case: number for number, case in enumerate(expected)}
        first = {(case.file, case.scenario): number for number, case in reversed([*enumerate(found)])}
        cases = sorted(
            found or expected,
            key=lambda case: (
                order.get(case, len(order)),
                first.get((case.file, case.scenario), 0),
                _level_rank(case),
                case.turn,
            ),
        )
        cells = tuple(tuple(_cell(column, case) for column in columns) for case in cases)
        return cls(tuple(columns), tuple(cases), cells)

    def rows(self) -> Iterator[tuple[Case, tuple[Cell, ...]]]:
        """Each case with its cells."""
        return zip(self.cases, self.cells, strict=True)

    def only(self, cases: Collection[Case]) -> Table:
        """Return the table with the rows of some cases only."""
        kept = [(case, row) for case, row in self.rows() if case in cases]
        return Table(self.columns, tuple(case for case, _ in kept), tuple(row for _, row in kept))

    @functools.cached_property
    def labels(self) -> Mapping[Case, str]:
        """The label of each row."""
        return labels(self.cases)

    @functools.cached_property
    def notes(self) -> Mapping[str, int]:
        """Every reason once, with its number from 1, in reading order."""
        numbers: dict[str, int] = {}
        for row in self.cells:
            for cell in row:
                if cell.note:
                    numbers.setdefault(cell.note, len(numbers) + 1)
        return numbers

    @property
    def flakes(self) -> list[tuple[Case, Column, Cell]]:
        """The cells whose repeats differ."""
        return [
            (case, column, cell)
            for case, row in self.rows()
            for column, cell in zip(self.columns, row, strict=True)
            if cell.mark is Mark.FLAKE
        ]

    @property
    def counts(self) -> Counter[Mark]:
        """The number of cells with each mark."""
        return Counter(cell.mark for row in self.cells for cell in row)

    def exit_code(self, *, strict: bool = False) -> ExitCode:
        """Return the exit status of a run with all these results; a kernel without results is an error."""
        results = [result for column in self.columns for run in column.runs for result in run.results]
        missing = [ScenarioResult("", None, Outcome.ERROR) for column in self.columns if column.trouble]
        return exit_code([*results, *missing], strict=strict)

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``hugepfn matrix --json`` writes: the table, and every run in full."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "kernels": [
                {"spec": column.spec, "trouble": column.trouble, "runs": [run.to_json() for run in column.runs]}
                for column in self.columns
            ],
            "rows": [
                {
                    "scenario": case.scenario,
                    "file": case.file,
                    "level": case.level,
                    "turn": case.turn,
                    "cells": [
                        {
                            "mark": cell.mark.value,
                            "was": cell.was.value if cell.was is not None else None,
                            "bugs": list(cell.listed),
                            "reason": cell.reason,
                        }
                        for cell in row
                    ],
                }
                for case, row in self.rows()
            ],
        }


def _cases(run: Run) -> Iterator[tuple[Case, ScenarioResult]]:
    seen: Counter[Case] = Counter()
    for result in run.results:
        case = Case(result.scenario, result.level, file=result.file)
        yield replace(case, turn=seen[case]), result
        seen[case] += 1


def _level_rank(case: Case) -> int:
    return ("pte", "pmd", "pud").index(case.level) if case.level in ("pte", "pmd", "pud") else -1


def _cell(column: Column, case: Case) -> Cell:
    results = tuple(found.get(case) for found in column.by_case)
    single = [_judge(result, column.trouble) for result in results]
    if not single:
        return Cell(Mark.UNKNOWN, words.NOT_RUN)
    if len({(cell.mark, cell.was, cell.listed) for cell in single}) > 1:
        counts = Counter(cell.word for cell in single)
        said = ", ".join(f"{count} of {len(single)} {word}" for word, count in counts.most_common())
        why = next((cell.note for cell in single if cell.mark not in (Mark.PASS, Mark.FIXED) and cell.note), "")
        return Cell(Mark.FLAKE, f"{said}: {why}" if why else said, results=results)
    return replace(single[0], results=results)


def _judge(result: ScenarioResult | None, trouble: str) -> Cell:
    if result is None:
        return Cell(Mark.ERROR, trouble) if trouble else Cell(Mark.UNKNOWN, words.NO_RESULT)
    reason = words.reason(result)
    match _outcome(result):
        case Outcome.PASSED:
            fixed = tuple(bug.id for bug in result.fixed_bugs)
            return Cell(Mark.FIXED if fixed else Mark.PASS, reason, fixed)
        case Outcome.SKIPPED:
            return Cell(Mark.UNKNOWN if result.cannot_know else Mark.SKIP, reason)
        case Outcome.KNOWN_BUG:
            return Cell(Mark.BUG, reason, tuple(bug.id for bug in result.known_bugs))
        case Outcome.ERROR:
            return Cell(Mark.ERROR, reason or words.errors(result))
        case Outcome.FAILED:
            return Cell(Mark.FAIL, words.failure(result))
        case Outcome.EXPECTED:
            found = _judge(result.as_found, trouble)
            return replace(found, mark=Mark.EXPECTED, was=found.mark)


def _outcome(result: ScenarioResult) -> Outcome:
    """Return the outcome with that of the claims, which count as in :func:`harness.verdict.claims.exit_code`."""
    if result.outcome is Outcome.PASSED:
        claims = {claim.outcome for claim in result.claims}
        return next((one for one in (Outcome.FAILED, Outcome.ERROR) if one in claims), Outcome.PASSED)
    return result.outcome
