"""The journal of a campaign: one line of JSON for the question, and one for each answer as soon as it is there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from harness.campaign.cluster.identity import identity_of
from harness.campaign.kernels import RunOptions
from harness.campaign.units.unit import Answers, Unit, UnitAnswer, UnitExecutor
from harness.errors import UsageError
from harness.host import cache
from harness.selection.selected import Selected
from harness.verdict.json_fields import as_object
from harness.verdict.table import TROUBLE

VERSION = 1
_FOLDER = "campaigns"
_KEPT = 32


class JournalLine(Protocol):
    """What is noted."""

    def to_json(self) -> dict[str, Any]:
        """Return it as a line of the journal."""
        ...


Line = TypeVar("Line", bound=JournalLine)


class Journal(Generic[Line]):
    """A journal in the cache, named by its question.

    :param read_line: reads what ``Line.to_json()`` returned; raises UsageError.
    """

    def __init__(self, file: Path, question: Mapping[str, Any], read_line: Callable[[object], Line]) -> None:
        self.file = file
        self._question = {"version": VERSION, **question}
        self._read_line = read_line

    def start(self) -> None:
        """Begin a new one."""
        with cache.room_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.unlink(missing_ok=True)
            self._append(self._question)

    def resume(self) -> list[Line]:
        """Return what was noted so far; begin a new one if there is none.

        :raises UsageError: it belongs to another question.
        """
        if not self.file.exists():
            self.start()
            return []
        question, noted = read(self.file, self._read_line)
        if question != self._question:
            raise UsageError(f"{self.file} is the journal of another campaign; leave out --resume to begin anew")
        with cache.room_errors(self.file):
            os.utime(self.file)  # it is the newest one now, which `hugepfn bisect log` shows
        return noted

    def note(self, one: Line) -> None:
        """Write a line; it is on the disk when this returns."""
        with cache.room_errors(self.file):
            self._append(one.to_json())

    def _append(self, data: Mapping[str, Any]) -> None:
        with self.file.open("rb+" if self.file.exists() else "wb+") as file:
            whole = file.read()
            file.seek(whole.rfind(b"\n") + 1)  # what follows was being written when the process was killed
            file.truncate()
            file.write(json.dumps(data).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read(file: Path, read_line: Callable[[object], Line]) -> tuple[dict[str, Any], list[Line]]:
    """Return the question and the notes of a journal; a last line that was cut off does not count.

    :raises UsageError: it is no journal.
    """
    try:
        lines = list(_whole_lines(file.read_text()))
        return as_object(lines[0], "a journal"), [read_line(one) for one in lines[1:]]
    except (OSError, ValueError, IndexError) as error:
        raise UsageError(f"{file} is no journal of a campaign: {error}") from error


def _whole_lines(text: str) -> Iterator[Any]:
    return (json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n"))


def named_by(question: Mapping[str, Any], folder: str) -> Path:
    """Return the file of the journal of a question in a folder of the cache."""
    name = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]
    return cache.root() / folder / f"{name}.jsonl"


# --- units -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NotedAnswer:
    """The answer of a unit."""

    number: int
    """Of the unit in its campaign, from 0."""
    answer: UnitAnswer

    def to_json(self) -> dict[str, Any]:
        """Return it as a line of the journal."""
        return {"unit": self.number, **self.answer.to_json()}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value has another form.
        """
        return cls(int(as_object(value, "a line of a journal")["unit"]), UnitAnswer.from_json(value))


class NotingExecutor:
    """Notes each answer before it passes it on, and runs nothing that an earlier campaign has noted.

    A unit without results (its kernel does not build, its worker was lost) is not noted, and runs again.
    """

    def __init__(self, executor: UnitExecutor, journal: Journal[NotedAnswer], noted: Mapping[int, UnitAnswer]) -> None:
        self._executor, self._journal, self._noted = executor, journal, noted
        self._begun = 0

    def run(self, units: Sequence[Unit]) -> Answers:
        """Run what is left of these units."""
        first, self._begun = self._begun, self._begun + len(units)
        left = []
        for number in range(len(units)):
            if first + number in self._noted:
                yield number, self._noted[first + number]
            else:
                left.append(number)
        for at, answer in self._executor.run([units[number] for number in left]):
            if answer.run is not None and not answer.run.context.get(TROUBLE):
                self._journal.note(NotedAnswer(first + left[at], answer))
            yield left[at], answer


def noting(
    executor: UnitExecutor,
    question: Mapping[str, Any],
    tests: Sequence[Selected],
    options: RunOptions,
    resume: bool,
    line: Callable[[str], None],
) -> UnitExecutor:
    """Return an executor with a journal.

    :param question: what the campaign is about, apart from its tests and options.
    :param resume: go on with what an earlier campaign with the same question has noted.
    :param line: called with a line about what is resumed.
    :raises UsageError: the journal cannot be read.
    """
    versions = vars(identity_of(options.config.qemu))  # results of another hugepfn are not mixed with this one's
    words = {"tests": [str(test) for test in tests], "levels": list(options.levels), **versions}
    whole = {**question, **words, "machine": list(options.words(None))}
    journal = Journal(named_by(whole, _FOLDER), whole, NotedAnswer.from_json)
    noted = journal.resume() if resume else []
    if resume:
        line(f"{len(noted)} units are done already; journal: {journal.file}")
    else:
        journal.start()
        _prune(journal.file.parent)
    return NotingExecutor(executor, journal, {one.number: one.answer for one in noted})


def _prune(folder: Path) -> None:
    files = sorted(folder.glob("*.jsonl"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for old in files[_KEPT:]:
        old.unlink(missing_ok=True)
