"""Reads which lines a patch adds and takes away. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.errors import UsageError

Lines = Mapping[str, Sequence[int]]

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


@dataclass(frozen=True)
class LineChanges:
    """The lines in which two trees differ: by file, as numbers from 1."""

    removed: Lines
    """In the first tree."""
    added: Lines
    """In the second tree."""


def changes_of(diff: str) -> LineChanges:
    """Read ``git diff-tree -p -U0 BEFORE AFTER``.

    Without context lines, a hunk's header has all that is needed::

        --- a/mm/huge_memory.c
        +++ b/mm/huge_memory.c
        @@ -1728,2 +1711 @@ out_zero_page:
        -       pmd = pmd_wrprotect(pmd);
        -       pmd = pmd_mkold(pmd);
        +       pmd = pmd_mkold(pmd_wrprotect(pmd));

    :raises UsageError: it has another form.
    """
    removed: dict[str, list[int]] = {}
    added: dict[str, list[int]] = {}
    file, before = "", ""
    left = 0  # lines of the current hunk: one of them may look like a header
    for line in diff.splitlines():
        if left:
            left -= 1
        elif line.startswith("--- "):
            before = line[4:].split("\t")[0].partition("/")[2]
        elif line.startswith("+++ "):
            after = line[4:].split("\t")[0]
            file = before if after == "/dev/null" else after.partition("/")[2]
        elif hunk := _HUNK.match(line):
            old, new = (int("1" if counted is None else counted) for counted in (hunk[2], hunk[4]))
            if not file:
                raise UsageError(f"this is no diff between two trees: {line!r} comes before the name of a file")
            removed.setdefault(file, []).extend(range(int(hunk[1]), int(hunk[1]) + old))
            added.setdefault(file, []).extend(range(int(hunk[3]), int(hunk[3]) + new))
            left = old + new
    return LineChanges(_with_lines(removed), _with_lines(added))


def _with_lines(lines: Mapping[str, Sequence[int]]) -> Lines:
    return {file: tuple(numbers) for file, numbers in lines.items() if numbers}
