"""Tests for expectations on a real kernel: an expected failure is none, and an unmet expectation is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import schemas

from .conftest import Command

KEEPS = "the child's pmd keeps its dirty bit"
TEST = """
import pytest


@pytest.mark.levels("pmd")
def test_mine(vm, level, claim):
    with vm.run("fork", f"--level={level.label}") as guest:
        leaf = guest.until("forked")["child"].leaf("bar")
        with claim("the child's leaf is clean"):
            assert not leaf.dirty
        with claim("the child's leaf is writable"):
            assert leaf.write
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's test, whose first claim does not hold on 6.12."""
    file = tmp_path / "test_mine.py"
    file.write_text(TEST)
    return file


def test_an_expected_failure_and_a_claim_that_unexpectedly_holds(hugepfn: Command, tmp_path: Path, mine: Path) -> None:
    out, said = tmp_path / "out.json", tmp_path / "expected"
    said.write_text("# the patch makes the child's leaf dirty\n./test_mine.py:2M:the child's leaf is clean=fail\n")
    words = ("-k", "debian:6.12", f"{mine}", "--expect-file", str(said), "--json", str(out))
    done = hugepfn("run", "-q", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine pmd: expected (failed): 1 claim does not hold: the child's leaf is clean" in done.stdout
    data = json.loads(out.read_text())
    schemas.check(data)
    assert [(one["outcome"], one["was"]) for one in data["results"]] == [("expected", "failed")]
    done = hugepfn("run", "-q", *words, "fork:pmd", "--expect", f"fork:pmd:{KEEPS}=fail")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "is not met: expected the claim to fail, but it holds; remove the expectation" in done.stdout
    schemas.check(json.loads(out.read_text()))


def test_a_comparison_of_a_kernel_with_the_change_and_one_without(hugepfn: Command, mine: Path) -> None:
    """6.1 has no huge pfnmaps, so the test is skipped there. The failure is expected of the new kernel."""
    said = f"{mine}::test_mine=fail"
    done = hugepfn("compare", "debian:6.1", "debian:6.12", str(mine), "--expect", said, "--confirm", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine pmd, as expected: skipped: " in done.stdout
    assert done.stdout.endswith("1 of 1 cases differ, as expected\n")
