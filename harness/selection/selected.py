"""The words that select tests, the same for every command: ``fork``, ``fork:pud``, ``mine/test_mine.py::test_it:pud``.

A word names a scenario of hugepfn, or a test file with or without one of its tests; a page-table level may follow.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from harness.errors import UsageError, did_you_mean
from harness.levels import PAGE_SIZES, checked_level

#: A word with a test file: the file's name ends in .py, and then nothing or a colon follows.
_WITH_FILE = re.compile(r"(?P<file>.+?\.py)(?:::(?P<test>.*?))?(?::(?P<level>[^:\]]*))?")
_SHOWN_MAX = 10


@dataclass(frozen=True)
class Selected:
    """Some tests of a file, or a scenario by its name. With all three values, it is one test."""

    file: Path | None = None
    """The absolute path of the test file; None for a scenario, wherever it is."""
    scenario: str = ""
    """The name of a test as in results: without ``test_``, with its class (``TestIt::keeps``) and with its parameters
    other than the level (``keeps[thp]``); "" for every test of the file."""
    level: str | None = None
    """"pte", "pmd" or "pud"; None for all."""

    @classmethod
    def parse(cls, word: str) -> Self:
        """Read a word of the command line.

        :raises UsageError: there is no such file or level.
        """
        if with_file := _WITH_FILE.fullmatch(word):
            file, level = Path(os.path.abspath(with_file["file"])), with_file["level"]  # noqa: PTH100 - as pytest does it
            if not file.is_file():
                raise UsageError(f"{with_file['file']}: no such file; expected a test file")
            if with_file["test"] is None:
                return cls(file, "", _checked(word, level))
            scenario, of_test = scenario_and_level(with_file["test"])
            return cls(file, scenario, _checked(word, level) or of_test)
        if "/" in word or Path(word).suffix in (".c", ".py"):
            raise UsageError(f"{word}: not a test file; expected a name in .py, as in mine/test_mine.py::test_mine:pud")
        name, colon, level = word.partition(":")
        return cls(None, name, _checked(word, level if colon else None))

    def __str__(self) -> str:
        """Return the word that selects the same."""
        test = f"::{_with_prefix(self.scenario)}" if self.scenario else ""
        place = self.scenario if self.file is None else f"{self.file}{test}"
        return f"{place}:{self.level}" if self.level is not None else place

    def matches(self, test: Selected) -> bool:
        """Return whether this selects a test."""
        whole = test.scenario == self.scenario
        part = test.scenario.startswith((f"{self.scenario}[", f"{self.scenario}::"))  # a parameter; a class
        return (
            self.file in (None, test.file) and (not self.scenario or whole or part) and self.level in (None, test.level)
        )


def _checked(word: str, level: str | None) -> str | None:
    return None if level is None else checked_level(word, level)


def scenario_and_level(test: str) -> tuple[str, str | None]:
    """Return the scenario and the level of a test from pytest's name for it: ``TestIt::test_keeps[thp-pud]``."""
    name, bracket, parameters = test.rstrip("]").partition("[")
    *classes, function = name.split("::")
    scenario = "::".join([*classes, function.removeprefix("test_")])
    words = parameters.split("-") if bracket else []
    level = next((word for word in words if word in PAGE_SIZES), None)
    if level is not None:
        words.remove(level)
    return scenario + (f"[{'-'.join(words)}]" if words else ""), level


def _with_prefix(scenario: str) -> str:
    """Return pytest's name for a test or a class."""
    plain, bracket, parameters = scenario.partition("[")
    *classes, function = plain.split("::")
    prefix = "" if function.startswith("Test") else "test_"
    return "::".join([*classes, prefix + function]) + bracket + parameters


def check_selects(words: Iterable[Selected], known: Sequence[Selected]) -> None:
    """Refuse a word that selects nothing.

    :param known: all tests.
    :raises UsageError: a word selects nothing; the message has close names.
    """
    for word in words:
        if not any(word.matches(test) for test in known):
            raise UsageError(_selects_nothing(word, known))


def _selects_nothing(word: Selected, known: Sequence[Selected]) -> str:
    there = [test for test in known if word.file in (None, test.file)]
    names = list(dict.fromkeys(test.scenario for test in there))
    matched = [test for test in there if replace(word, level=None).matches(test)]
    if matched:
        levels = [*dict.fromkeys(test.level for test in matched if test.level is not None)]
        what = f"the level{'s' * (len(levels) > 1)} {', '.join(levels)} only" if levels else "no level"
        return f"{shown(word)}: this test has {what}"
    if word.file is None:
        return f"no scenario {word.scenario!r}{did_you_mean(word.scenario, names)} hugepfn list names them all"
    file = shown(Selected(word.file))
    if not names:
        return f"{file} has no tests: a test is a function test_NAME that takes the fixture vm"
    some = ", ".join(map(_with_prefix, names[:_SHOWN_MAX])) + (", ..." if len(names) > _SHOWN_MAX else "")
    close = did_you_mean(word.scenario, names, _with_prefix)
    return f"{file} has no test {_with_prefix(word.scenario)!r}{close} it has {some}"


def shown(word: Selected) -> str:
    """Return the word, with a path as short as possible."""
    with contextlib.suppress(ValueError):
        return str(word if word.file is None else replace(word, file=word.file.relative_to(Path.cwd())))
    return str(word)
