"""Which tests a command runs. Its words are checked here, before anything is fetched, built or booted."""

from __future__ import annotations

import io
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from harness.campaign.pytest_session import place_args, run_pytest
from harness.campaign.reporter import SessionReporter
from harness.campaign.scenarios import scenario_lines
from harness.errors import MachineryError, UsageError
from harness.guest.compiler import guest_tests_dir
from harness.selection.selected import Selected, check_selects
from harness.selection.tests import own_file, selected_by
from harness.verdict.table import Case


@dataclass(frozen=True)
class Wanted:
    """The requested tests."""

    words: tuple[Selected, ...]
    """The words of the request; empty for every scenario."""
    levels: tuple[str, ...]
    """Only these levels, and tests without a level; empty for all."""
    tests: tuple[Selected, ...]
    """Every single test that is selected."""

    @property
    def cases(self) -> list[Case]:
        """Return the rows of a table of these tests."""
        return list(dict.fromkeys(Case(one.scenario, one.level, file=own_file(one.file)) for one in self.tests))

    @property
    def files(self) -> tuple[Path, ...]:
        """Their files, each once."""
        return tuple(dict.fromkeys(one.file for one in self.tests if one.file is not None))

    def pytest_args(self) -> list[str]:
        """Return the arguments with which pytest collects only these tests."""
        files = self.files if self.words else (guest_tests_dir(),)
        places = {one.scenario: one.file for one in self.tests if own_file(one.file) == ""}
        located = [one if one.file else replace(one, file=places.get(one.scenario)) for one in self.words]
        return [
            *map(str, files),
            *place_args(self.files),
            *(f"--hugepfn-level={level}" for level in self.levels),
            *(f"--hugepfn-scenario={one}" for one in located),
        ]


def choose(words: Sequence[Selected], levels: Sequence[str] = ()) -> Wanted:
    """Return the tests that words select.

    :param words: empty for every scenario.
    :raises UsageError: a word selects nothing, none of the tests has one of the levels, or a test file cannot be read.
    """
    own = list(dict.fromkeys(word.file for word in words if word.file is not None))
    # A word without a file is a scenario of hugepfn, even if a test of the user has this name.
    ours, others = [one for one in words if one.file is None], [one for one in words if one.file is not None]
    scenarios = _scenarios(ours) if ours or not words else []
    check_selects(ours, scenarios)
    _check_helpers({file.parent for file in own})
    theirs = _collect(own) if own else []
    check_selects(others, theirs)
    selected = [
        *(one for one in scenarios if not words or any(word.matches(one) for word in ours)),
        *(one for one in theirs if any(word.matches(one) for word in others)),
    ]
    kept = [one for one in selected if not levels or one.level in (*levels, None)]
    if not kept:
        raise UsageError(f"none of these tests has the level {' or '.join(levels)}")
    return Wanted(tuple(words), tuple(levels), tuple(kept))


def _scenarios(words: Sequence[Selected]) -> list[Selected]:
    """Return the scenarios that words may mean: all of them if there is no word, or one that means none by name."""
    names = {word.scenario.partition("[")[0] for word in words}
    lines = scenario_lines(names)
    if not names <= {line.name for line in lines}:
        lines = scenario_lines()
    return [Selected(line.file, line.name, level) for line in lines for level in line.levels.split() or (None,)]


class _Collector(SessionReporter):
    """Notes the tests that pytest finds."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.tests: list[Selected] = []
        self.misused = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(self) -> Iterator[None]:
        """Report a marker with a wrong value in one line, instead of pytest's traceback."""
        try:
            return (yield)
        except pytest.UsageError as error:
            self.misused = str(error)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note the tests: all of them are known now."""
        self.tests = [selected_by(item) for item in session.items]


def _collect(files: Sequence[Path]) -> list[Selected]:
    """Return the tests in the user's own files, as pytest finds them: in classes, imported, generated."""
    collector = _Collector()
    args = [*map(str, files), *place_args(files), "--collect-only"]
    try:
        status = run_pytest(pytest, collector, args, [])
    except MachineryError as error:
        if not collector.unreadable:
            raise
        raise UsageError(_unreadable(collector.unreadable[0], files)) from error
    if collector.misused:
        raise UsageError(collector.misused)
    if status == pytest.ExitCode.USAGE_ERROR:
        raise UsageError(f"the tests in {', '.join(map(str, files))} cannot be read; see pytest's message above")
    return collector.tests


def _unreadable(error: BaseException, files: Sequence[Path]) -> str:
    """Why a test file of the user's cannot be read, with the line of theirs that it is about."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    folders = {file.parent for file in files}
    lines = [
        f"{frame.filename}:{frame.lineno}: "
        for frame in traceback.extract_tb(error.__traceback__)
        if not folders.isdisjoint(Path(frame.filename).parents)
    ]
    words = str(error).splitlines()[0] if str(error) else ""
    return f"{lines[-1] if lines else f'{files[0]}: '}{type(error).__name__}: {words}"


def _check_helpers(folders: set[Path]) -> None:
    """Refuse two helper modules with one name, because a test would get the one that another test imported."""
    found: dict[str, Path] = {}
    for folder in sorted(folders):
        for path in folder.glob("*.py"):
            if path.name.startswith("test_") or path.name in ("conftest.py", "__init__.py"):
                continue
            if path.name in found:
                raise UsageError(
                    f"{found[path.name]} and {path} have the same module name; run the tests of one folder at a time"
                )
            found[path.name] = path
