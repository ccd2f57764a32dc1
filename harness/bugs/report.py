"""The mail that reports a known bug to the kernel's maintainers. Pure.

It says what the kernel does, what was seen in the entries and in its log, which kernels have the bug, and how to see
it without hugepfn.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from harness.errors import UsageError
from harness.verdict import Run, ScenarioResult, words
from harness.verdict.entries import Row, rows, signed
from harness.verdict.known_bugs import KnownBug
from harness.verdict.seen import Sightings, version_key

_SUBJECT_MAX = 76
_ENTRIES_MAX = 12


@dataclass(frozen=True)
class Reproduction:
    """The command that shows a bug, taken apart."""

    scenario: str
    level: str | None
    kernel: str
    """The spec; "" if the command builds a kernel, which it names in a way that only a shell understands."""

    @classmethod
    def of(cls, bug: KnownBug) -> Reproduction:
        """Return the parts of a bug's command.

        :raises UsageError: it is not of the form ``hugepfn run SCENARIO [--level LEVEL] --kernel SPEC``.
        """
        pattern = r"hugepfn run (\w+)(?: --level (\w+))? --kernel (\$\(.*\)|\S+)"
        if (found := re.fullmatch(pattern, bug.reproduce)) is None:
            raise UsageError(f"{bug.id}: expected 'hugepfn run SCENARIO --kernel SPEC', got {bug.reproduce!r}")
        return cls(found[1], found[2], "" if found[3].startswith("$") else found[3])


def shown_in(bug: KnownBug, run: Run) -> ScenarioResult | None:
    """Return the result in which a bug shows; None if it does in none."""
    return next((one for one in run.results if bug.id in {known.id for known in one.known_bugs}), None)


def report_lines(bug: KnownBug, result: ScenarioResult, run: Run, seen: Sightings) -> Iterator[str]:
    """Yield the lines of the mail up to the reproducer, not yet narrow.

    :param result: in which the bug shows.
    :param run: the run of that result, for the kernel.
    :param seen: the kernels that have the bug and that do not.
    """
    kernel = run.context.get("kernel")
    release = str(kernel["release"]) if isinstance(kernel, Mapping) else "this kernel"
    yield subject(bug)
    yield ""
    yield f"{_sentence(bug.title)} Seen on Linux {release}."
    yield f"The function at fault is {bug.function.split()[-1]} in {bug.function.split()[0]}."
    if entries := list(_entries(rows(result.observations))):
        yield ""
        yield "The entries at each stop of the program (+ a bit that came, - one that went):"
        yield ""
        yield from entries[:_ENTRIES_MAX]
        if len(entries) > _ENTRIES_MAX:
            yield f"  ... {len(entries) - _ENTRIES_MAX} more lines; the command below shows all"
    if broken := words.told(result.claims):
        yield ""
        yield "What does not hold, with the function that decides it:"
        yield ""
        yield from (f"  {line}" for line in broken)
    if said := list(_log(result)):
        yield ""
        yield "The kernel log:"
        yield ""
        yield from said
    yield ""
    yield from _seen(seen)


def subject(bug: KnownBug) -> str:
    """Return the subject: the part of the kernel, and what happens, cut off between two words."""
    title = bug.title.partition(": ")[0]
    line = f"Subject: [BUG] {bug.function.split()[0].rpartition('.')[0]}: {title}"
    return line if len(line) <= _SUBJECT_MAX else f"{line[: _SUBJECT_MAX - 3].rpartition(' ')[0].rstrip(',:;')} ..."


def _sentence(title: str) -> str:
    """A title begins with a name, which may be that of a function, and has no full stop."""
    first = title.split()[0]
    return f"{title if re.search(r'[()_/]', first) or first == 'pagemap' else title[0].upper() + title[1:]}."


def _entries(table: Sequence[Row]) -> Iterator[str]:
    checkpoint = ""
    for row in table:
        if row.checkpoint != checkpoint:
            checkpoint = row.checkpoint
            yield f"  {checkpoint}:"
        bits = " ".join(sign + name for sign, name in signed(row.bits, row.appeared, row.vanished))
        place = row.place + (f" x{row.count}" if row.count > 1 else "")
        yield f"    {row.process} {place} {row.level} {row.raw} {bits}".rstrip()


def _log(result: ScenarioResult) -> Iterator[str]:
    for seen in result.kernel:
        for one in seen.complaints:
            yield f"  {one.words}"
            if one.functions:
                yield f"    in {', '.join(f'{name}()' for name in one.functions)}"


def _seen(seen: Sightings) -> Iterator[str]:
    yield "Of Debian's stock kernels (x86-64), the bug was"
    yield f"  seen on: {_versions(seen.present) or 'none'}"
    yield f"  not seen on: {_versions(seen.absent) or 'none that was measured'}"


def _versions(measured: Mapping[str, date]) -> str:
    return ", ".join(sorted(measured, key=version_key))


def attached(name: str, source: str) -> Iterable[str]:
    """Return a reproducer as the end of a mail: whole, because a program that is made narrow does not compile."""
    return ["", f"--- {name} ---", source.rstrip("\n")]


def command_of(bug: KnownBug, spec: str) -> str:
    """Return the command that shows the bug on a kernel."""
    one = Reproduction.of(bug)
    level = ["--level", one.level] if one.level else []
    return shlex.join(["hugepfn", "run", one.scenario, *level, "--kernel", spec])
