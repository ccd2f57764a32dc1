"""Tests for the words that select tests: their meaning, what they match, and the errors about wrong words."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.selection.selected import Selected, check_selects, scenario_and_level


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A test file of a user, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine" / "test_mine.py"
    path.parent.mkdir()
    path.write_text("")
    return path


@pytest.mark.parametrize(
    ("word", "scenario", "level"),
    [
        ("fork", "fork", None),
        ("fork:pud", "fork", "pud"),
        ("fork:1G", "fork", "pud"),
        ("mine/test_mine.py", "", None),
        ("./mine/test_mine.py:pmd", "", "pmd"),
        ("mine/../mine/test_mine.py::test_mine", "mine", None),
        ("mine/test_mine.py::test_mine:2M", "mine", "pmd"),
        ("mine/test_mine.py::mine", "mine", None),
        ("mine/test_mine.py::TestIt", "TestIt", None),
        ("mine/test_mine.py::TestIt::test_mine:pte", "TestIt::mine", "pte"),
        ("mine/test_mine.py::test_mine[pud]", "mine", "pud"),
        ("mine/test_mine.py::test_mine[thp-pud]", "mine[thp]", "pud"),
    ],
)
def test_what_a_word_means(file: Path, word: str, scenario: str, level: str | None) -> None:
    found = Selected.parse(word)
    assert found == Selected(file if "/" in word else None, scenario, level)
    assert Selected.parse(str(found)) == found, "the text must parse to the same value, because children get it as text"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("fork:pdm", "'fork:pdm': no page-table level 'pdm'; did you mean"),
        ("fork:", "no page-table level ''; the levels are pte, pmd, pud"),
        ("mine/test_mine.py::test_mine:p4d", "no page-table level 'p4d'"),
        ("mine/test_mnie.py::test_mine", "mine/test_mnie.py: no such file"),
        ("./mine", "./mine: not a test file; expected a name in .py"),
        ("mine.c", "mine.c: not a test file"),
    ],
)
@pytest.mark.usefixtures("file")
def test_an_invalid_word_is_refused(word: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        Selected.parse(word)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


FILE, OTHER = Path("/mine/test_mine.py"), Path("/other/test_mine.py")
KNOWN = [
    *(Selected(FILE, "mine", level) for level in ("pte", "pmd")),
    Selected(FILE, "mine[thp]", "pte"),
    Selected(FILE, "TestIt::mine", "pud"),
    Selected(FILE, "plain", None),
    Selected(OTHER, "mine", "pud"),
    Selected(OTHER, "fork", "pud"),
]


@pytest.mark.parametrize(
    ("word", "count"),
    [
        (Selected(FILE), 5),
        (Selected(FILE, "mine"), 3),
        (Selected(FILE, "mine", "pte"), 2),
        (Selected(FILE, "mine[thp]"), 1),
        (Selected(FILE, "TestIt"), 1),
        (Selected(OTHER, "mine"), 1),
        (Selected(None, "mine", "pud"), 1),
        (Selected(FILE, "", "pte"), 2),
    ],
)
def test_what_a_word_selects(word: Selected, count: int) -> None:
    assert sum(word.matches(test) for test in KNOWN) == count
    check_selects([word], KNOWN)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (Selected(None, "frok"), "no scenario 'frok'; did you mean 'fork'? hugepfn list names them all"),
        (Selected(None, "zzz"), "no scenario 'zzz'; hugepfn list names them all"),
        (Selected(FILE, "mnie"), "/mine/test_mine.py has no test 'test_mnie'; did you mean 'test_mine'? it has test_"),
        (Selected(FILE, "zzz"), "has no test 'test_zzz'; it has test_mine, test_mine[thp], TestIt::test_mine"),
        (Selected(FILE, "plain", "pte"), "/mine/test_mine.py::test_plain:pte: this test has no level"),
        (Selected(FILE, "mine", "pud"), "/mine/test_mine.py::test_mine:pud: this test has the levels pte, pmd only"),
        (Selected(Path("/mine/helper.py")), "/mine/helper.py has no tests"),
    ],
)
def test_a_word_that_selects_nothing(word: Selected, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_selects([word], KNOWN)
    assert str(refused.value).startswith(message) or message in str(refused.value)


def test_the_name_of_a_test_tells_scenario_and_level() -> None:
    assert scenario_and_level("test_fork[pud]") == ("fork", "pud")
    assert scenario_and_level("TestIt::test_keeps[thp-pud-2]") == ("TestIt::keeps[thp-2]", "pud")
    assert scenario_and_level("fork") == ("fork", None)
