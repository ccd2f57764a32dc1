"""Checks that a failure in a user's test shows the test, but no source of hugepfn. Boots no kernel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.machine import preparation

pytest_plugins = ["pytester"]

TESTS = """
import pytest
from tests.hand_made_stop import DIRTY, leaf, stop
from vm import VM, Kernel, Level, UsageError

AT = stop("forked", child=leaf(DIRTY))


@pytest.fixture
def vm():
    return VM("debian:6.12")  # which is not started


@pytest.fixture
def label():
    return Level.from_label(7)


def test_entry(): assert AT["child"].leaf("bar", 0x40000000).dirty


def test_process(): AT["parent"]


def test_run(vm): vm.run("no_such_program")


def test_exec(vm): vm.exec(["true"])


def test_exec_without_the_fixture(): VM("debian:6.12").exec(["true"])


def test_wrong_type(vm): vm.walk("1", None)


def test_wrong_type_without_the_fixture(): Level.from_label(5)


def test_in_a_fixture(label): pass


def test_chain():
    try:
        Kernel.parse("nonsense:1")
    except UsageError as error:
        raise ValueError("mine") from error


def test_plain(): assert 1 == 2
"""
SOURCE = re.compile(r"harness/[\w/]+\.py:\d+|def from_label|def parse|raise UsageError")


@pytest.fixture(autouse=True)
def _nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))


def shown(pytester: pytest.Pytester, *args: str) -> str:
    plugins = ("-p", "harness.pytest_plugin", "-p", "no:hypothesispytest")
    return pytester.runpytest_inprocess(*plugins, *args).stdout.str()


@pytest.mark.parametrize("style", ["auto", "native"])
def test_the_source_of_hugepfn_is_never_shown(pytester: pytest.Pytester, style: str) -> None:
    pytester.makepyfile(TESTS)
    text = shown(pytester, f"--tb={style}", "-v")
    assert "9 failed, 1 error" in text
    assert SOURCE.findall(text) == []


def test_a_failure_says_what_is_wrong_and_names_the_statement(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_mine=TESTS)
    text = shown(pytester)
    for words, statement in (
        (
            "child bar+0x40000000 at 'forked': expected an entry, got none\n"
            "  forked  child  bar+0x40000000  none  0x0000000000000000",
            'def test_entry(): assert AT["child"].leaf("bar", 0x40000000).dirty',
        ),
        (
            "UsageError: there is no process 'parent' at 'forked'; expected one of ['child']",
            'def test_process(): AT["parent"]',
        ),
        ("MachineryError: this VM is not running", 'def test_exec(vm): vm.exec(["true"])'),
        (
            "MachineryError: this VM is not running",
            'def test_exec_without_the_fixture(): VM("debian:6.12").exec(["true"])',
        ),
    ):
        pattern = rf"^{re.escape(words)}[^\n]*\n  test_mine\.py:\d+: {re.escape(statement)}$"
        assert re.search(pattern, text, re.MULTILINE), f"{pattern} is not in:\n{text}"
    assert re.search(r"^  test_mine\.py:\d+: def test_run\(vm\): ", text, re.MULTILINE)
    misuse = "AttributeError: 'int' object has no attribute 'lower'"
    hidden = "hugepfn's own frames are hidden; --full-trace shows them"
    assert text.count(f"E   {misuse}\n\ntest_mine.py:") == 1
    assert text.count(hidden) == 2, "--full-trace shows the frames of both the test and the fixture"


def test_full_trace_shows_everything(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    text = shown(pytester, "--full-trace", "-k", "wrong_type_without or process")
    assert "harness/pagetable/bits.py:" in text
    assert "harness/observe/snapshot.py:" in text
    assert "are hidden" not in text


def test_an_error_in_a_fixture_of_hugepfn_is_one_line(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(preparation, "kernel_of", lambda _config: None)
    pytester.makepyfile("def test_it(kernel): pass")
    text = shown(pytester)
    line = r"^a bug of hugepfn: AttributeError: .*; its traceback is in .*traceback\.txt$"
    assert re.search(line, text, re.MULTILINE)
    assert SOURCE.findall(text) == []
    assert "in resolve" in (tmp_path / "cache" / "traceback.txt").read_text()
