"""The measured facts as text: docs/matrix.md, the marked pieces of other documents, and what changed. Pure.

A marked piece is ``<!-- facts:begin NAME -->...<!-- facts:end -->``. ``make facts`` writes the text in between. Each
piece can be generated again from known_bugs_seen.toml, docs/matrix.md and the list of known bugs, so that a test can
check it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import UsageError
from harness.verdict.known_bugs import KnownBug
from harness.verdict.seen import Facts, Sightings, series_of, version_key
from harness.verdict.table import Mark

_MARKED = re.compile(r"(<!-- facts:begin (\w+) -->)(.*?)(<!-- facts:end -->)", re.DOTALL)
_SAMPLE_HEAD = re.compile(r"^debian:\S+: Linux .*$", re.MULTILINE)
_SAMPLE_SERIES = "6.12"
_EXCERPT = ("calibrate_anon pte", "fork pte", "fork pmd", "fork pud")
_EXAMPLE = "HP-002"
_KERNEL = re.compile(r"\b(debian|debsrc):(\d[\w.~-]*)")


@dataclass(frozen=True)
class Grid:
    """The table of docs/matrix.md."""

    columns: tuple[str, ...]  # upstream versions
    cells: Mapping[str, tuple[str, ...]]  # by case: the printed cells, "bug HP-001 16"

    @classmethod
    def parse(cls, text: str) -> Grid:
        """Read docs/matrix.md.

        :raises UsageError: the text has no such table.
        """
        lines = text.partition("```\n")[2].partition("\n\n")[0].splitlines()
        if len(lines) < 2 or not lines[0].startswith(" "):
            raise UsageError("docs/matrix.md has no table; write it again with `make facts`")
        starts = [match.start() for match in re.finditer(r"\S+", lines[0])]
        ends = [*starts[1:], None]
        rows = {
            line[: starts[0]].strip(): tuple(line[a:b].strip() for a, b in zip(starts, ends, strict=True))
            for line in lines[1:]
        }
        return cls(tuple(lines[0].split()), rows)

    def word(self, case: str, column: int) -> str:
        """Return a cell without the number of its footnote: "bug HP-001". pass* counts as a pass."""
        return re.sub(r" +\d+$", "", self.cells[case][column]).replace(Mark.FIXED.value, Mark.PASS.value)


def matrix_document(facts: Facts, table: str, repeat: int) -> str:
    """Return the text of docs/matrix.md.

    :param table: the output of ``hugepfn matrix``.
    """
    measured = facts.measured
    assert measured is not None
    runs = "one run of each case" if repeat == 1 else f"each case {repeat} times"
    run_by = f"QEMU {measured.qemu} ({measured.accel}), {runs}"
    return (
        "# Every scenario on every stock kernel\n\n"
        f"Written by `make facts` on {measured.date}: {run_by}, on the kernels that Debian's mirror\n"
        "had on that day. pass* passes, and an older kernel of that series was seen to have the known bug;\n"
        "HP-... are in guest_tests/known_bugs.toml.\n\n"
        "```\n" + table.strip("\n") + "\n```\n"
    )


# --- the marked pieces -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """Everything from which the marked pieces are generated."""

    facts: Facts
    grid: Grid
    ledger: Sequence[KnownBug]


def fill(text: str, known: Known, where: str) -> str:
    """Return a document with its marked pieces generated again.

    :param where: path of the document, for messages.
    :raises UsageError: it marks an unknown piece.
    """

    def piece(match: re.Match[str]) -> str:
        if match[2] not in PIECES:
            raise UsageError(
                f"{where}: facts:begin {match[2]} is not a known piece; expected one of: {', '.join(PIECES)}"
            )
        return match[1] + PIECES[match[2]](known, match[3]) + match[4]

    return _MARKED.sub(piece, text)


def _sample(known: Known, old: str) -> str:
    """Return the tutorial's run with a new first line; its entries do not depend on the kernel's version."""
    version = next((one for one in known.facts.kernels if series_of(one) == _SAMPLE_SERIES), None)
    measured = known.facts.measured
    if version is None or measured is None:
        return old
    release = known.facts.kernels[version]
    head = f"debian:{_SAMPLE_SERIES}: Linux {release}, QEMU {measured.qemu} ({measured.accel}), 1 vCPU"
    return _SAMPLE_HEAD.sub(head, old)


def _excerpt(known: Known, _old: str) -> str:
    rows = [("", *known.grid.columns), *((case, *known.grid.cells[case]) for case in _EXCERPT)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n```\n" + "\n".join(lines) + "\n```\n"


def _example(known: Known, _old: str) -> str:
    """Return the number of known bugs, and one that a current kernel has."""
    count = f"\n{len(known.ledger)} so far, each with the command that shows it."
    for bug in sorted(known.ledger, key=lambda bug: (bug.id != _EXAMPLE, bug.id)):
        if today := [one for one in known.facts.kernels if one in known.facts.of(bug.id).present]:
            title = bug.title.partition(":")[0]
            command = f".venv/bin/{bug.reproduce}      # known bug {bug.id}"
            return f"{count} {bug.id} for instance shows on {_listed(today)}:\n{title}.\n\n```\n{command}\n```\n"
    return f"{count}\n"


def _kernels(known: Known, _old: str) -> str:
    measured = known.facts.measured
    assert measured is not None
    earlier = sorted(known.facts.versions - known.facts.kernels.keys(), key=version_key)
    run_by = f"QEMU {measured.qemu} ({measured.accel})"
    return (
        f"\nLast measured on {measured.date} with {run_by}, on Debian's stock kernels of that day:\n"
        f"**{', '.join(known.facts.kernels)}**. Earlier kernels that are named below: {', '.join(earlier) or 'none'}.\n"
    )


def _seen(known: Known, _old: str) -> str:
    lines = ["", "| bug | seen on | looked for, and not seen on |", "|---|---|---|"]
    for bug in known.ledger:
        seen = known.facts.of(bug.id)
        note = f" ({', '.join(bug.config)})" if bug.config else " (sometimes)" if bug.sometimes else ""
        lines.append(f"| {bug.id}{note} | {_listed(seen.present)} | {_listed(seen.absent)} |")
    return "\n".join(lines) + "\n"


def _count(known: Known, _old: str) -> str:
    measured = known.facts.measured
    assert measured is not None
    return f"{measured.scenarios} scenarios, {measured.cases} cases"


def _listed(versions: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(sorted(versions, key=version_key))


PIECES: Mapping[str, Callable[[Known, str], str]] = {
    "sample": _sample,
    "excerpt": _excerpt,
    "example": _example,
    "kernels": _kernels,
    "seen": _seen,
    "count": _count,
}


# --- the command of a known bug --------------------------------------------------------------------


def command_shows(command: str, seen: Sightings) -> bool:
    """Return whether the kernel in a bug's command was seen with it; for a series, the newest one that was checked."""
    match = _KERNEL.search(command)
    if match is None:
        return False
    version = match[2] if match[2].count(".") >= 2 else seen.newest_of(match[2])
    return version in seen.present


def mended_command(bug: KnownBug, facts: Facts) -> str:
    """Return the command of a bug; if its kernel no longer has the bug, with the newest stock kernel that does."""
    seen = facts.of(bug.id)
    if command_shows(bug.reproduce, seen) or not seen.present:
        return bug.reproduce
    today = [one for one in facts.kernels if one in seen.present and seen.newest_of(series_of(one)) == one]
    wanted = series_of(max(today, key=version_key)) if today else max(seen.present, key=version_key)
    return _KERNEL.sub(lambda match: f"{match[1]}:{wanted}", bug.reproduce)


# --- what changed ----------------------------------------------------------------------------------


def changes(before: Known, after: Known) -> Iterator[str]:
    """Yield the relevant differences, one per line: kernels, numbers, bugs, then scenarios."""
    yield from _kernel_changes(before.facts, after.facts)
    numbers = [_count(known, "") for known in (before, after) if known.facts.measured is not None]
    if len(set(numbers)) > 1:
        yield f"{numbers[0]} -> {numbers[1]}"
    for bug in sorted({*before.facts.bugs, *after.facts.bugs}):
        yield from _bug_changes(bug, before.facts.of(bug), after.facts.of(bug))
    yield from _case_changes(before.grid, after.grid, {bug.id for bug in after.ledger if bug.sometimes})


def _kernel_changes(before: Facts, after: Facts) -> Iterator[str]:
    old = {series_of(version): version for version in before.kernels}
    new = {series_of(version): version for version in after.kernels}
    for series, version in new.items():
        if series not in old:
            yield f"kernel {version}: a new series"
        elif old[series] != version:
            yield f"kernel {old[series]} -> {version}"
    for series in old.keys() - new.keys():
        yield f"kernel {old[series]}: its series was not measured"


def _bug_changes(bug: str, before: Sightings, after: Sightings) -> Iterator[str]:
    for version in sorted({*after.present, *after.absent}, key=version_key):
        state = _state(after, version)
        if _state(before, version) == state:
            continue
        if _state(before, version):
            yield f"{bug} on {version}: {_state(before, version)} -> {state}"
        elif (older := before.newest_of(series_of(version))) is None:
            yield f"{bug} on {version}: {state}"
        elif _state(before, older) != state:
            yield f"{bug}: {_state(before, older)} on {older} -> {state} on {version}"


def _state(seen: Sightings, version: str) -> str:
    return "present" if version in seen.present else "absent" if version in seen.absent else ""


def _case_changes(before: Grid, after: Grid, sometimes: Collection[str]) -> Iterator[str]:
    old = {series_of(version): number for number, version in enumerate(before.columns)}
    series = [series_of(version) for version in after.columns]
    for case in after.cells:
        if case not in before.cells:
            yield f"{case}: new"
            continue
        pairs = {
            one: (_without(sometimes, before.word(case, old[one])), _without(sometimes, after.word(case, number)))
            for number, one in enumerate(series)
            if one in old
        }
        for was, now in dict.fromkeys(pair for pair in pairs.values() if pair[0] != pair[1]):
            yield f"{case} on {', '.join(one for one in pairs if pairs[one] == (was, now))}: {was} -> {now}"
    yield from (f"{case}: gone" for case in before.cells if case not in after.cells)


def _without(sometimes: Collection[str], word: str) -> str:
    """Return a cell without the bugs that show only sometimes, which do not count as a change."""
    kind, _, bugs = word.partition(" ")
    left = [bug for bug in bugs.split(", ") if bug not in sometimes]
    return word if kind != Mark.BUG.value else f"{kind} {', '.join(left)}" if left else Mark.PASS.value
