"""The journal of a bisection: one line of JSON for the question, and one for each unit as soon as it is done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from harness.bisection.symptom import Sighting
from harness.errors import UsageError
from harness.host import cache
from harness.verdict.claims import ScenarioResult
from harness.verdict.json_fields import as_object, member, strings

VERSION = 1


@dataclass(frozen=True)
class Noted:
    """One run, or why there is none."""

    step: str
    """The name of the commit or of the end."""
    seen: Sighting
    reason: str = ""
    key: str = ""
    """Of the kernel, by its content."""
    same_as: str = ""
    """The step that made the same kernel, which was not run again."""
    result: ScenarioResult | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as a line of the journal."""
        result = self.result.to_json() if self.result is not None else None
        told = {"step": self.step, "seen": self.seen.value, "reason": self.reason, "key": self.key}
        return {**told, "same_as": self.same_as, "result": result}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value has another form.
        """
        data = as_object(value, "a line of a journal")
        step, reason, key, same_as = strings(data, "step", "reason", "key", "same_as")
        result = ScenarioResult.from_json(data["result"]) if data.get("result") is not None else None
        return cls(step, member(data, "seen", Sighting), reason, key, same_as, result)


class Journal:
    """A journal in the cache, named by its question."""

    def __init__(self, file: Path, question: Mapping[str, Any]) -> None:
        self.file = file
        self._question = {"version": VERSION, **question}

    def start(self) -> None:
        """Begin a new one."""
        with cache.room_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.unlink(missing_ok=True)
            self._append(self._question)

    def resume(self) -> list[Noted]:
        """Return what was noted so far; begin a new one if there is none.

        :raises UsageError: it belongs to another question.
        """
        if not self.file.exists():
            self.start()
            return []
        question, noted = read(self.file)
        if question != self._question:
            raise UsageError(f"{self.file} is the journal of another bisection; leave out --resume to begin anew")
        return noted

    def note(self, one: Noted) -> None:
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


def read(file: Path) -> tuple[dict[str, Any], list[Noted]]:
    """Return the question and the notes of a journal; a last line that was cut off does not count.

    :raises UsageError: it is no journal.
    """
    try:
        lines = list(_whole_lines(file.read_text()))
        return as_object(lines[0], "a journal"), [Noted.from_json(one) for one in lines[1:]]
    except (OSError, ValueError, IndexError) as error:
        raise UsageError(f"{file} is no journal of a bisection: {error}") from error


def _whole_lines(text: str) -> Iterator[Any]:
    return (json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n"))
