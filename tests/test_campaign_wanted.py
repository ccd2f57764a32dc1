"""Tests for which tests the words of a command select: hugepfn's scenarios and a user's files. Starts no machine."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.campaign.scenarios import scenario_lines
from harness.campaign.wanted import choose
from harness.errors import UsageError
from harness.selection.selected import Selected
from harness.verdict.table import Case

OWN = """
import pytest
from helper import NAME


@pytest.mark.levels("pte", "pud")
def test_mine(vm, level): pass


@pytest.mark.parametrize("memory", ["anon", "thp"])
def test_memory(vm, memory): pass


@pytest.mark.parametrize("table", ["pte", "pmd"])
def test_table(vm, table): pass


class TestIt:
    @pytest.mark.levels("pmd")
    def test_mine(self, vm, beside): pass


def test_plain(): assert NAME == "beside"
"""
CONFTEST = "import pytest\n\n@pytest.fixture\ndef beside():\n    from helper import NAME\n    return NAME\n"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder with a space in its name, with a test file, its conftest.py, and a module beside them."""
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "my tests"
    folder.mkdir()
    (tmp_path / "conftest.py").write_text("raise RuntimeError('this folder is above the test')\n")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "helper.py").write_text('NAME = "beside"\n')
    (folder / "test_mine.py").write_text(OWN)
    yield folder
    for name in [name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def names(words: list[Selected], *levels: str) -> list[str]:
    return [str(case) for case in choose(words, levels).cases]


def test_a_file_of_the_user_is_read_by_pytest_itself(own: Path) -> None:
    file = own / "test_mine.py"
    wanted = choose([Selected(file)])
    assert [(case.scenario, case.level) for case in wanted.cases] == [
        ("mine", "pte"),
        ("mine", "pud"),
        ("memory[anon]", None),
        ("memory[thp]", None),
        ("table[pte]", None),
        ("table[pmd]", None),
        ("TestIt::mine", "pmd"),
        ("plain", None),
    ]
    assert {case.file for case in wanted.cases} == {str(file)}


def test_words_and_levels_select_in_any_file(own: Path) -> None:
    file = own / "test_mine.py"
    assert names([Selected(file, "mine")]) == ["mine pte", "mine pud"]
    assert names([Selected(file, "mine", "pud"), Selected(None, "fork", "pmd")]) == ["fork pmd", "mine pud"]
    assert names([Selected(file, "TestIt")]) == ["TestIt::mine pmd"]
    assert names([Selected(file), Selected(None, "fork")], "pud") == [
        *("fork pud", "mine pud", "memory[anon]", "memory[thp]", "table[pte]", "table[pmd]", "plain")
    ]
    assert choose([Selected(None, "fork", "pmd")]).cases == [Case("fork", "pmd")]
    assert len(choose([]).cases) > 300
    with pytest.raises(UsageError, match="none of these tests has the level pte"):
        choose([Selected(file, "mine", "pud")], ["pte"])


def test_a_users_test_does_not_shadow_a_scenario(own: Path) -> None:
    """`fork` is hugepfn's scenario, even where the user's file has a test_fork."""
    args = choose([Selected(None, "fork"), Selected(own / "test_mine.py", "mine")]).pytest_args()
    words = [arg.partition("=")[2] for arg in args if arg.startswith("--hugepfn-scenario")]
    assert [word.rpartition("/")[2] for word in words] == ["test_fork.py::test_fork", "test_mine.py::test_mine"]
    assert all(Selected.parse(word).file is not None for word in words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no tests: a test is a function"),
        ('import pytest\n@pytest.mark.levels("pdm")\ndef test_mine(vm): pass\n', "valid values: pte, pmd, pud"),
    ],
)
def test_a_file_without_a_runnable_test_is_refused(own: Path, text: str, message: str) -> None:
    (own / "test_mine.py").write_text(text)
    with pytest.raises(UsageError) as refused:
        choose([Selected(own / "test_mine.py")])
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import pytest\n\ndef test_mine(vm:\n", "test_mine.py:3: SyntaxError: '(' was never closed"),
        ("import pytest\n  pass\n", "test_mine.py:2: IndentationError: unexpected indent"),
        ("import helpr\n", "test_mine.py:1: ModuleNotFoundError: No module named 'helpr'"),
        ("from helper import NOBODY\n", "test_mine.py:1: ImportError: cannot import name 'NOBODY'"),
        ("import broken\n", "broken.py:2: ValueError: mine"),
    ],
)
def test_an_error_while_importing_a_file_is_one_line_with_its_place(own: Path, text: str, said: str) -> None:
    (own / "test_mine.py").write_text(text)
    (own / "broken.py").write_text("\nraise ValueError('mine\\nand more')\n")
    with pytest.raises(UsageError) as refused:
        choose([Selected(own / "test_mine.py")])
    assert str(refused.value).startswith(f"{own}/{said}")
    assert "\n" not in str(refused.value)


def test_two_helpers_with_the_same_name_are_refused(own: Path, tmp_path: Path) -> None:
    """Python would import only one of them, and the tests of both folders would use it."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "test_mine.py").write_text("def test_mine(vm): pass\n")
    words = [Selected(folder / "test_mine.py") for folder in (own, other)]
    assert len({case.file for case in choose(words).cases}) == 2
    (other / "helper.py").write_text("")
    with pytest.raises(UsageError, match=r"my tests/helper.py and .*other/helper.py have the same module name"):
        choose(words)


COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "run": lambda word: ["run", word],
    "matrix": lambda word: ["matrix", "-k", "debian:6.12", word],
    "compare": lambda word: ["compare", "debian:6.1", "debian:6.12", word],
    "series": lambda word: ["series", "/tree", "a..b", word],
    "check": lambda word: ["check", "/tree", word],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("frok", "no scenario 'frok'; did you mean 'fork'"),
        ("map_null:pud", "map_null:pud: this test has no level"),
        ("nosuch.py", "nosuch.py: no such file"),
        ("test_mine.py::test_mnie", "test_mine.py has no test 'test_mnie'; did you mean 'test_mine'?"),
    ],
)
def test_every_command_refuses_a_wrong_word_with_the_same_message(
    own: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, word: str, message: str
) -> None:
    monkeypatch.chdir(own)
    before = sorted(own.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        cli.main(COMMANDS[command](word))
    out, err = capfd.readouterr()
    assert ended.value.code == (128 if command == "check" else 2), err
    assert (out, err.count("\n")) == ("", 1), err
    assert err.startswith("hugepfn: ")
    assert message in err
    assert [path for path in sorted(own.rglob("*")) if "__pycache__" not in str(path)] == [
        path for path in before if "__pycache__" not in str(path)
    ]


def test_a_session_is_given_the_words_as_values(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session's process has another working directory."""
    asked: dict[str, Any] = {}

    class Client:
        def call(self, verb: str, **arguments: Any) -> int:
            asked.update(arguments, verb=verb)
            return 0

    monkeypatch.chdir(own)
    monkeypatch.setattr("harness.commands.live.client_of", lambda _name: Client())
    with pytest.raises(SystemExit):
        cli.main(["rerun", "test_mine.py::test_mine", "fork:pud"])
    assert (asked["verb"], asked["words"]) == (
        *("rerun", (Selected(own / "test_mine.py", "mine"), Selected(None, "fork", "pud"))),
    )


def test_scenarios_read_from_the_source_are_those_that_pytest_collects() -> None:
    """Levels may come from a marker that several tests share by a name."""
    read = choose([])
    files = [Selected(file) for file in dict.fromkeys(line.file for line in scenario_lines())]
    assert set(read.cases) == set(choose(files).cases)


def test_only_the_files_that_define_a_named_scenario_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    every = choose([])
    parsed: list[str] = []
    parse = ast.parse

    def counted(text: str) -> ast.Module:
        parsed.append(text)
        return parse(text)

    monkeypatch.setattr(ast, "parse", counted)
    fork = [Selected(None, "fork", "pud"), Selected(None, "munmap_middle")]
    assert choose(fork).tests == tuple(one for one in every.tests if any(word.matches(one) for word in fork))
    assert len(parsed) == 2
    with pytest.raises(UsageError, match=r"no scenario 'frok'.*fork"):
        choose([*fork, Selected(None, "frok")])
    with pytest.raises(UsageError, match="no scenario 'test_fork'"):
        choose([Selected(None, "test_fork")])
    assert choose([*fork, Selected()]).tests == every.tests
