"""Tests for a patch series and a bisection, with kernels that are built. Long: ``make long-tests``."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.guest.compiler import guest_tests_dir
from harness.host import cache
from tests import schemas

from . import bisect_tree
from .conftest import Command
from .test_cluster import Cluster, cluster

__all__ = ["cluster"]  # a fixture

pytestmark = pytest.mark.long
TIMEOUT_S = 3600


SYMPTOM = "claim: the parent's entry is as it was before fork"
#: A test of the user's own, with a program and a header beside it.
TEST = """
def test_mine(vm, claim):
    with vm.run("mine", "--level=pud") as guest:
        with claim("the child may write", by="copy_huge_pud()"):
            assert guest.until("forked")["child"].leaf("bar").write
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git tree of 44 commits on each of two branches.

    HUGEPFN_BISECT_TREE names one that tests/vm/bisect_tree.py made before. Its first kernel takes minutes to build, and
    the next ones are incremental only for a tree in the same folder.
    """
    if made := os.environ.get("HUGEPFN_BISECT_TREE"):
        return Path(made)
    folder = tmp_path_factory.mktemp("bisect") / "linux"
    bisect_tree.make_tree(folder, "debsrc:6.12")
    bisect_tree.add_sometimes(folder)
    return folder


def git_bisect(tree: Path, hugepfn: Command, good: str, bad: str, words: list[str]) -> tuple[str, str]:
    """Let git bisect, and return the commit that it finds, as a tag, and its log."""
    script = f"git bisect start {bad} {good} && git bisect run {shlex.join(words)}"
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
    found = bisect_tree.git(tree, "describe", "--tags", "refs/bisect/bad")
    log = bisect_tree.git(tree, "bisect", "log")
    bisect_tree.git(tree, "bisect", "reset")
    return found, log


def without_kernels(folder: Path) -> str:
    """Make a cache in which the same is built incrementally, but no kernel is ready: such ones are tried first."""
    folder.mkdir()
    for part in ("apt", "builds"):
        (folder / part).symlink_to(cache.root() / part)
    return str(folder)


def test_hugepfn_bisect_finds_the_commit(tree: Path, tmp_path: Path, hugepfn: Command) -> None:
    before = bisect_tree.git(tree, "status", "--porcelain", "--branch")
    words = ("bisect", "--tree", str(tree), "--good", "v0", "--bad", f"v{bisect_tree.COMMITS}", "fork:pud")
    own = without_kernels(tmp_path / "cache")
    done = hugepfn(*words, timeout_s=TIMEOUT_S, HUGEPFN_CACHE_DIR=own)
    assert done.returncode == 0, done.stdout + done.stderr
    culprit = bisect_tree.git(tree, "rev-parse", f"v{bisect_tree.MUTANT}")
    assert f"first bad: {culprit} mm/huge_memory: fork-pud-write-protected\nshows {SYMPTOM}\n" in done.stdout
    for trap, why in zip(
        bisect_tree.TRAPS, ("does not build", "fails otherwise: crash: ", "does not boot"), strict=True
    ):
        assert re.search(rf"not tested: [0-9a-f]{{12}} .*: it {why}", done.stdout), (trap, done.stdout)
    assert bisect_tree.git(tree, "status", "--porcelain", "--branch") == before

    log = tmp_path / "log"
    log.write_text(hugepfn("bisect", "log", HUGEPFN_CACHE_DIR=own).stdout)
    bisect_tree.git(tree, "bisect", "replay", str(log))
    said = bisect_tree.git(tree, "bisect", "log")
    bisect_tree.git(tree, "bisect", "reset")
    assert f"# first bad commit: [{culprit}]" in said


@pytest.mark.parametrize("by", ["check", "pytest"])
def test_git_bisect_finds_the_commit(tree: Path, hugepfn: Command, by: str) -> None:
    good, bad = "v0", f"v{bisect_tree.COMMITS}"
    words = [*hugepfn.argv("check"), ".", "fork:pud", "--symptom", SYMPTOM]
    if by == "pytest":  # which takes every failure for the symptom; in the middle is a commit that does not boot
        first, middle = bisect_tree.OOPS.mended, bisect_tree.DEAD.mended - 1
        good, bad = f"v{first}", f"v{middle + (middle - first)}"
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hugepfn-bisect"]
        words += ["--hugepfn-kernel=tree:.", "--hugepfn-scenario=fork:pud"]
        words += [os.fspath(guest_tests_dir() / "test_fork.py")]
    found, log = git_bisect(tree, hugepfn, good, bad, words)
    assert found == f"v{bisect_tree.MUTANT}", log
    assert "# skip:" in log, log


def test_a_bug_that_shows_in_one_boot_of_three(tree: Path, hugepfn: Command) -> None:
    words = ("bisect", "--tree", str(tree), "--good", "v0", "--bad", f"f{bisect_tree.COMMITS}", "fork:pud")
    done = hugepfn(*words, timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    culprit = bisect_tree.git(tree, "rev-parse", f"f{bisect_tree.MUTANT}")
    assert f"first bad: {culprit} mm/huge_memory: write-protected-sometimes\n" in done.stdout
    sure = re.search(r"(\d+\.\d+) % sure: .* a bad commit shows it in (\d+) % of its runs", done.stdout)
    assert sure is not None, done.stdout
    assert float(sure[1]) >= 99.6
    assert 10 <= int(sure[2]) <= 65


def test_plain_bisection_misses_it(tree: Path, hugepfn: Command) -> None:
    """It names the right commit if every bad one on its way shows it at once: in less than one bisection of nine."""
    words = [*hugepfn.argv("check"), ".", "fork:pud", "--symptom", SYMPTOM]
    found = [git_bisect(tree, hugepfn, "v0", f"f{bisect_tree.COMMITS}", words)[0] for _ in range(3)]
    assert found != [f"f{bisect_tree.MUTANT}"] * 3
    assert all(name.startswith("f") for name in found)


@pytest.mark.parametrize("kind", ["series", "mbox"])
def test_bisect_a_series(tree: Path, tmp_path: Path, hugepfn: Command, kind: str) -> None:
    first, last = bisect_tree.MUTANT - 2, bisect_tree.MUTANT
    if kind == "series":
        words = ["--tree", str(tree), "--series", f"v{first}..v{last}"]
    else:
        words = ["--tree", f"tree:{tree}@v{first}", "--mbox", str(_mbox(tree, tmp_path, first, last))]
    done = hugepfn("bisect", *words, "fork:pud", timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    name = bisect_tree.git(tree, "rev-parse", f"v{last}") if kind == "series" else "2/2"
    assert f"first bad: {name} mm/huge_memory: fork-pud-write-protected\n" in done.stdout


def _mbox(tree: Path, folder: Path, first: int, last: int) -> Path:
    mbox = folder / "series.mbox"
    mbox.write_text(bisect_tree.git(tree, "format-patch", "--stdout", f"v{first}..v{last}") + "\n")
    return mbox


@pytest.mark.parametrize("kind", ["range", "mbox"])
def test_a_series_shows_the_bad_patch(tree: Path, tmp_path: Path, hugepfn: Command, kind: str) -> None:
    first, last = bisect_tree.MUTANT - 2, bisect_tree.MUTANT
    results = tmp_path / "series.json"
    words = [str(tree), f"v{first}..v{last}"]
    if kind == "mbox":
        words = [f"tree:{tree}@v{first}", "--mbox", str(_mbox(tree, tmp_path, first, last))]
    done = hugepfn("series", *words, "fork", "--json", str(results), timeout_s=TIMEOUT_S)
    assert done.returncode == 1, done.stdout + done.stderr
    data = json.loads(results.read_text())
    assert schemas.check(data) == "hugepfn-matrix"
    changes = data["changes"]
    assert [(one["scenario"], one["level"], one["step"], one["before"], one["after"]) for one in changes] == [
        ("fork", "pud", "2/2", "pass", "FAIL"),
    ]
    assert changes[0]["subject"] == "mm/huge_memory: fork-pud-write-protected"


def test_series_bisect_and_check_take_a_test_of_ones_own(tree: Path, tmp_path: Path, hugepfn: Command) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    program = (guest_tests_dir() / "fork.c").read_text()
    (mine / "mine.c").write_text(program.replace('#include "lib/hugepfn.h"', '#include "beside.h"'))
    (mine / "beside.h").write_text('#include "lib/hugepfn.h"\n')
    (mine / "test_mine.py").write_text(TEST)
    word, last = f"{mine}/test_mine.py::test_mine", bisect_tree.MUTANT
    done = hugepfn("series", str(tree), f"v{last - 2}..v{last}", word, timeout_s=TIMEOUT_S)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "mine: pass -> FAIL at 2/2 mm/huge_memory: fork-pud-write-protected" in done.stdout
    done = hugepfn("bisect", "--tree", str(tree), "--series", f"v{last - 2}..v{last}", word, timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shows claim: the child may write\n" in done.stdout
    bisect_tree.git(tree, "checkout", "--quiet", f"v{last}")
    done = hugepfn("check", str(tree), word, timeout_s=TIMEOUT_S)
    bisect_tree.git(tree, "checkout", "--quiet", "main")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("bad: mine: failed"), done.stdout


def test_series_and_check_on_two_workers(tree: Path, hugepfn: Command, cluster: Cluster) -> None:
    """They say the same, and each kernel is built once: here, where the tree is."""
    last = bisect_tree.MUTANT
    address = cluster.ready(2)
    words = ("series", str(tree), f"v{last - 2}..v{last}", "fork:pud")
    expected = hugepfn(*words, timeout_s=TIMEOUT_S)
    assert expected.returncode == 1, expected.stdout + expected.stderr
    done = hugepfn(*words, "--scheduler", address, timeout_s=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (1, expected.stdout), done.stderr
    assert "building" not in done.stderr
    bisect_tree.git(tree, "checkout", "--quiet", f"v{last}")
    checked = [hugepfn("check", str(tree), "fork:pud", *more) for more in ((), ("--scheduler", address))]
    bisect_tree.git(tree, "checkout", "--quiet", "main")
    assert [one.returncode for one in checked] == [1, 1], checked
    assert checked[0].stdout == checked[1].stdout
    assert not list(cluster.folder.glob("*/built"))


def test_a_commit_that_does_not_build_is_skipped(tree: Path, hugepfn: Command) -> None:
    bisect_tree.git(tree, "checkout", "--quiet", f"v{bisect_tree.BROKEN.first}")
    done = hugepfn("check", str(tree), "fork:pud", timeout_s=TIMEOUT_S)
    bisect_tree.git(tree, "checkout", "--quiet", "main")
    assert done.returncode == 125
    assert "this commit does not build" in done.stdout, done.stdout + done.stderr
    assert os.fspath(bisect_tree.BROKEN.file) in done.stdout
