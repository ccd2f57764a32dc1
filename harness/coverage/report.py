"""Which lines of a patch and of functions were executed, from the counts of lines and the text of the source. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.coverage.changes import Lines
from harness.kernel.definitions import definition_line, functions_of

SCHEMA = "hugepfn-coverage"
VERSION = 1

#: How often each line with code was executed, by file.
Counts = Mapping[str, Mapping[int, int]]
Read = Callable[[str], str]


@dataclass(frozen=True)
class PatchLine:
    """A line of a patch that has code."""

    file: str
    line: int
    text: str
    count: int
    """How often it was executed."""


@dataclass(frozen=True)
class FunctionCoverage:
    """The lines with code of a function."""

    file: str
    name: str
    line: int
    """Where it begins."""
    executed: tuple[int, ...]
    missed: tuple[int, ...]

    @property
    def percent(self) -> float:
        """The share of its lines that were executed, from 0 to 100."""
        return 100 * len(self.executed) / (len(self.executed) + len(self.missed))


@dataclass(frozen=True)
class CoverageSubject:
    """What a report is about."""

    patch: Lines
    """The lines of the patch."""
    functions: tuple[tuple[str, str], ...] = ()
    """Files and names."""
    files: tuple[str, ...] = ()
    """Of these, all functions."""


@dataclass(frozen=True)
class CoverageReport:
    """What was executed of a kernel."""

    patch: tuple[PatchLine, ...]
    functions: tuple[FunctionCoverage, ...]
    unknown: tuple[tuple[str, str], ...]
    """Files and names of functions of which this kernel has no line that is counted."""

    @property
    def missed(self) -> tuple[PatchLine, ...]:
        """The lines of the patch that nothing executed."""
        return tuple(one for one in self.patch if not one.count)

    def to_json(self) -> dict[str, Any]:
        """Return this value as a JSON object (docs/schemas/hugepfn-coverage.schema.json)."""
        return {
            "patch": [
                {"file": one.file, "line": one.line, "text": one.text, "count": one.count}
                for one in sorted(self.patch, key=lambda one: (one.count > 0, one.file, one.line))
            ],
            "functions": [
                {
                    "file": one.file,
                    "name": one.name,
                    "line": one.line,
                    "executed": list(one.executed),
                    "missed": list(one.missed),
                }
                for one in self.functions
            ],
            "unknown": [{"file": file, "name": name} for file, name in self.unknown],
        }


def report_of(wanted: CoverageSubject, counts: Counts, read: Read) -> CoverageReport:
    """Return what was executed.

    :param read: returns the text of a file; "" if there is none.
    """
    patch = [
        PatchLine(file, number, _line(read(file), number), counts[file][number])
        for file, numbers in wanted.patch.items()
        for number in numbers
        if number in counts.get(file, {})
    ]
    names = [*wanted.functions, *((file, name) for file in wanted.files for name in functions_of(read(file)))]
    found = {one: _function(*one, counts.get(one[0], {}), read(one[0])) for one in dict.fromkeys(names)}
    functions = tuple(sorted((one for one in found.values() if one), key=lambda one: (one.file, one.line)))
    return CoverageReport(tuple(patch), functions, tuple(one for one in wanted.functions if found[one] is None))


def _line(text: str, number: int) -> str:
    lines = text.splitlines()
    return lines[number - 1] if number <= len(lines) else ""


def _function(file: str, name: str, counted: Mapping[int, int], text: str) -> FunctionCoverage | None:
    """In the kernel's coding style, a function ends with the first brace in column 0."""
    start = definition_line(text, name)
    if start is None:
        return None
    lines = text.splitlines()
    end = next((at for at in range(start, len(lines) + 1) if lines[at - 1].startswith("}")), start)
    inside = sorted(number for number in counted if start <= number <= end)
    if not inside:
        return None
    executed, missed = ([n for n in inside if bool(counted[n]) is wanted] for wanted in (True, False))
    return FunctionCoverage(file, name, start, tuple(executed), tuple(missed))


def lines_of(report: CoverageReport, what: str, *, patched: bool) -> Iterator[str]:
    """Yield the report as text: what nothing executed comes first.

    :param what: of the lines of the patch: "added" or "taken away".
    :param patched: whether there is a patch.
    """
    if patched and not report.patch:
        yield f"no line that the patch has {what} has code in this kernel"
        yield ""
    if report.patch:
        total = len(report.patch)
        share = f"{total - len(report.missed)} of {total} lines with code that the patch has {what} were executed"
        yield f"{share} ({100 * (total - len(report.missed)) / total:.0f} %)"
        for one in report.missed:
            yield f"  not executed  {one.file}:{one.line}: {one.text.strip()}"
        yield ""
    for function in sorted(report.functions, key=lambda one: (bool(one.executed), one.file, one.line)):
        counted = len(function.executed) + len(function.missed)
        yield (
            f"{function.percent:3.0f} %  {len(function.executed)} of {counted} lines  "
            f"{function.file}:{function.line} {function.name}(){_missed(function)}"
        )
    if report.unknown:
        yield f"not in this kernel: {', '.join(f'{file} {name}()' for file, name in report.unknown)}"


def _missed(function: FunctionCoverage) -> str:
    ranges = ", ".join(_ranges(function.executed, function.missed))
    return f"  not {ranges}" if ranges else ""


def _ranges(executed: Iterable[int], missed: Iterable[int]) -> Iterator[str]:
    """Yield lines with code that were not executed, those with no executed line between them as a range."""
    counted = sorted([*((number, True) for number in executed), *((number, False) for number in missed)])
    for was_executed, group in itertools.groupby(counted, key=lambda one: one[1]):
        numbers = [number for number, _ in group]
        if not was_executed:
            yield str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
