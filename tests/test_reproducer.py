"""Tests for the reproducers: one for each known bug, composed from what it uses, and built by a plain gcc."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.bugs.__main__ import PARTS, main
from harness.bugs.compose import BEGIN, compose, parts
from harness.errors import UsageError
from harness.verdict.known_bugs import parse_ledger

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "reproducers").glob("*.c"))
AVAILABLE = parts(PARTS.read_text())
LEDGER = parse_ledger((ROOT / "guest_tests/known_bugs.toml").read_text())


def test_every_known_bug_has_a_reproducer() -> None:
    assert [file.stem for file in FILES] == sorted(bug.id for bug in LEDGER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_reproducer_has_the_parts_that_it_uses(file: Path) -> None:
    """After a change of parts.c: `python -m harness.bugs reproducers/*.c`."""
    text = file.read_text()
    assert compose(text, AVAILABLE) == text


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_reproducer_says_what_is_expected_and_who_is_to_blame(file: Path) -> None:
    comment = file.read_text().partition("*/")[0]
    bug = next(one for one in LEDGER if one.id == file.stem)
    assert f" * {bug.id}: " in comment
    for begin in ("Expected: ", "Broken: ", "Function: ", "Build: gcc ", "Exit status: "):
        assert f"\n * {begin}" in comment
    assert bug.function.split()[-1] in comment
    assert bug.function.split()[0] in comment
    assert max(map(len, comment.splitlines())) <= 120


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_reproducer_is_built_by_a_plain_gcc_without_a_warning(file: Path, tmp_path: Path) -> None:
    argv = ["gcc", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o", str(tmp_path / "program"), str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_only_what_the_code_uses_is_composed() -> None:
    body = 'int main(void)\n{\n\tprintf("open_device() faults"); /* logged() */\n\treturn faults_of_read(0) > 0;\n}\n'
    text = compose(f"/* A comment. */\n{BEGIN}{body}", AVAILABLE)
    assert text.startswith("/* A comment. */\n#define _GNU_SOURCE\n#include <stdio.h>\n#include <sys/resource.h>\n\n")
    assert "static long faults(void)" in text
    for other in ("open_device(const", "int container", "logged(const", "cannot_tell"):
        assert other not in text
    assert compose(text, AVAILABLE) == text


@pytest.mark.parametrize("text", ["", "int main(void) {}\n", "/* a comment */\nint main(void) {}\n", f"{BEGIN}\n"])
def test_a_file_that_is_no_reproducer_is_left_alone(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.c"
    file.write_text(text)
    assert main([str(file)]) == 2
    assert (
        capsys.readouterr().err == f"{file}: a reproducer begins with a comment, and has the line '{BEGIN.strip()}'\n"
    )
    assert file.read_text() == text


def test_a_part_that_defines_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="a part of a reproducer defines nothing: static_assert"):
        parts("/* the file */\n\nstatic_assert(1);\n")
