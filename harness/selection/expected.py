"""What ``--expect`` and ``--expect-file`` say: read before anything runs, and held against the tests that will run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import UsageError, did_you_mean
from harness.selection.selected import Selected, shown
from harness.selection.tests import own_file, selected_by
from harness.verdict.expected.expectation import Expectation, Expected
from harness.verdict.expected.judge import Expectations
from harness.verdict.table import Case

EXPECTED = pytest.StashKey[Expectations]()
_SHOWN_MAX = 10


def read(words: Iterable[str], files: Iterable[Path] = ()) -> tuple[Expectation, ...]:
    """The expectations of the command line and of files, which have one per line and comments from # on.

    A test of the user's own in a file is relative to the file's folder.

    :raises UsageError: one of them has another form, or a file cannot be read; names the file and the line.
    """
    found = [Expectation.parse(word) for word in words]
    for file in files:
        try:
            lines = file.read_text().splitlines()
        except (OSError, ValueError) as error:
            raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            try:
                one = Expectation.parse(line)
            except UsageError as error:
                raise UsageError(f"{file}:{number}: {error}") from error
            found.append(_in_folder(one, file.parent))
    return tuple(dict.fromkeys(found))


def _in_folder(one: Expectation, folder: Path) -> Expectation:
    return replace(one, test=os.path.normpath(folder / one.test)) if ".py" in one.test else one


def absolute(said: Iterable[Expectation]) -> tuple[Expectation, ...]:
    """The same for a process with another working directory."""
    return tuple(_in_folder(one, Path.cwd()) for one in said)


def resolve(said: Sequence[Expectation], tests: Sequence[Selected], *, strict: bool = False) -> Expectations:
    """What is expected of each case.

    :param tests: every test that will run.
    :param strict: a precondition that is not met fails.
    :raises UsageError: an expectation selects no test, or two of them contradict each other; names what comes close.
    """
    found: dict[Case, tuple[Expectation, ...]] = {}
    for one in said:
        if strict and one.outcome is Expected.SKIP:
            raise UsageError(f"{str(one)!r} and --strict contradict each other: leave one of them out")
        word = Selected.parse(one.selects)
        cases = [_case(test) for test in tests if word.matches(test)]
        if not cases:
            raise UsageError(_selects_nothing(one, word, tests))
        for case in dict.fromkeys(cases):
            for other in found.get(case, ()):
                if other.claim == one.claim and other.outcome is not one.outcome:
                    raise UsageError(
                        f"{str(other)!r} and {str(one)!r} contradict each other for {case}: leave one of them out"
                    )
            found[case] = (*found.get(case, ()), one)
    return found


def _case(test: Selected) -> Case:
    return Case(test.scenario, test.level, file=own_file(test.file))


def _selects_nothing(one: Expectation, word: Selected, tests: Sequence[Selected]) -> str:
    """Of an expectation: which tests there are, and what comes close to its words."""
    says = f"{str(one)!r} is expected of no test that was selected"
    matched = [test.level for test in tests if replace(word, level=None).matches(test)]
    if matched:
        levels = ", ".join(level for level in dict.fromkeys(matched) if level is not None)
        return f"{says}: {one.test} runs {f'at {levels} only' if levels else 'without levels'}"
    there = [test for test in tests if word.file in (None, test.file)]
    if not there:
        return f"{says}: none is in {shown(Selected(word.file))}"
    names = list(dict.fromkeys(test.scenario for test in there))
    some = ", ".join(names[:_SHOWN_MAX]) + (", ..." if len(names) > _SHOWN_MAX else "")
    return f"{says}{did_you_mean(word.scenario, names)} these were: {some}"


class ExpectedOutcomes:
    """A plugin of pytest that holds the expectations against the tests of the session."""

    def __init__(self, said: tuple[Expectation, ...]) -> None:
        self._said = said

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """After the tests are selected."""
        if not items and self._said:
            return  # that nothing is selected is an error by itself
        try:
            strict = bool(config.getoption("hugepfn_strict"))
            config.stash[EXPECTED] = resolve(self._said, [selected_by(item) for item in items], strict=strict)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error


def expected_of(item: pytest.Item) -> tuple[Expectation, ...]:
    """What is expected of a test."""
    return item.config.stash.get(EXPECTED, {}).get(_case(selected_by(item)), ())
