"""Tests for a patch series and a bisection, with kernels that are built. Long: ``make long-tests``."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.guest.compiler import guest_tests_dir
from tests import schemas

from . import bisect_tree
from .conftest import Command

pytestmark = pytest.mark.long
TIMEOUT_S = 3600


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git tree of 16 commits."""
    folder = tmp_path_factory.mktemp("bisect") / "linux"
    bisect_tree.make_tree(folder, "debsrc:6.12")
    return folder


@pytest.mark.parametrize("by", ["check", "pytest"])
def test_git_bisect_finds_the_commit(tree: Path, hugepfn: Command, by: str) -> None:
    words = [*hugepfn.argv("check"), ".", "fork:pud"]
    if by == "pytest":
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hugepfn-bisect"]
        words += [
            "--hugepfn-kernel=tree:.",
            "--hugepfn-scenario=fork:pud",
            os.fspath(guest_tests_dir() / "test_fork.py"),
        ]
    script = f"git bisect start HEAD v0 && git bisect run {shlex.join(words)}"
    done = subprocess.run(
        ["sh", "-ec", script],
        cwd=tree,
        env=hugepfn.environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = bisect_tree.git(tree, "rev-parse", "refs/bisect/bad")
    assert found == bisect_tree.git(tree, "rev-parse", f"v{bisect_tree.MUTANT}"), done.stdout
    log = bisect_tree.git(tree, "bisect", "log")
    bisect_tree.git(tree, "bisect", "reset")
    assert "# skip:" in log or "v12" not in log, log


@pytest.mark.parametrize("kind", ["range", "mbox"])
def test_a_series_shows_the_bad_patch_in_its_middle(tree: Path, tmp_path: Path, hugepfn: Command, kind: str) -> None:
    first, last = bisect_tree.MUTANT - 2, bisect_tree.MUTANT
    results = tmp_path / "series.json"
    if kind == "range":
        words = [str(tree), f"v{first}..v{last}", "fork"]
    else:
        mbox = tmp_path / "series.mbox"
        mbox.write_text(bisect_tree.git(tree, "format-patch", "--stdout", f"v{first}..v{last}") + "\n")
        base = tmp_path / "base.patch"
        base.write_text(bisect_tree.git(tree, "diff", "v0", f"v{first}") + "\n")
        words = [f"debsrc:6.12+{base}", "--mbox", str(mbox), "fork"]
    done = hugepfn("series", *words, "--json", str(results), timeout_s=TIMEOUT_S)
    assert done.returncode == 1, done.stdout + done.stderr
    data = json.loads(results.read_text())
    assert schemas.check(data) == "hugepfn-matrix"
    changes = data["changes"]
    assert [(one["scenario"], one["level"], one["step"], one["before"], one["after"]) for one in changes] == [
        ("fork", "pud", "2/2", "pass", "FAIL"),
    ]
    assert changes[0]["subject"] == "mm/huge_memory: write-protect a pud that is copied"


def test_a_commit_that_does_not_build_is_skipped(tree: Path, hugepfn: Command) -> None:
    bisect_tree.git(tree, "checkout", "--quiet", f"v{bisect_tree.BROKEN.first}")
    done = hugepfn("check", str(tree), "fork:pud", timeout_s=TIMEOUT_S)
    bisect_tree.git(tree, "checkout", "--quiet", "main")
    assert done.returncode == 125
    assert "this commit does not build" in done.stdout, done.stdout + done.stderr
    assert os.fspath(bisect_tree.BROKEN.file) in done.stdout
