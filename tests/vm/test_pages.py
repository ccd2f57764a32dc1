"""Follows the tutorial and the how-to pages word by word: each command must run and show what the page says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
import pytest
import yaml

from harness.host import cache
from tests.dmesg_logs import FOLDER, GoldenLog
from tests.pages import Reader

from . import bisect_tree
from .conftest import ROOT, Command

DOCS = ROOT / "docs"
BISECTED = """
def test_mine(vm, claim):
    with vm.run("fork", "--level=pud") as guest:
        with claim("the child may write", by="copy_huge_pud()"):
            assert guest.until("forked")["child"].leaf("bar").write
"""
Follow = Callable[[str], Reader]


@pytest.fixture
def follow(tmp_path: Path, hugepfn: Command) -> Iterator[Follow]:
    """Follow a page of docs/ in a new directory, and print how long each command took."""
    folder, runtime = tmp_path / "work", tmp_path / "rt"
    folder.mkdir()
    runtime.mkdir(mode=0o700)
    (folder / "examples").symlink_to(ROOT / "examples")
    bin_ = Path(sys.executable).parent
    path = f"{bin_}{os.pathsep}{os.environ['PATH']}"
    # HOME is new, so ~/linux and ~/mine belong to the page. The caches are kept.
    home = {"HOME": str(tmp_path), "HUGEPFN_CACHE_DIR": str(cache.root()), "CCACHE_DIR": os.fspath(_ccache())}
    reader = Reader(folder, hugepfn.environment(PATH=path, HUGEPFN_RUNTIME_DIR=str(runtime), **home))

    def follow_page(name: str) -> Reader:
        reader.follow((DOCS / name).read_text().replace("git clone URL", f"git clone {ROOT}"))
        return reader

    try:
        yield follow_page
    finally:
        subprocess.run([bin_ / "hugepfn", "stop", "--all"], env=reader.environment, check=False, timeout=60)
        reader.close()
        for words, seconds in reader.spent:
            print(f"{seconds:7.1f} s  {words}")
        print(f"{sum(seconds for _, seconds in reader.spent):7.1f} s  in all")


def test_the_tutorial(follow: Follow) -> None:
    follow("tutorial.md")


@pytest.mark.parametrize("page", ["live-machine", "selftests", "many-machines"])
def test_a_page(follow: Follow, page: str) -> None:
    follow(f"how-to/{page}.md")


def test_your_test(follow: Follow) -> None:
    reader = follow("../README.md")  # the files of its section "A test of your own"
    shutil.copy(bisect_tree.PATCH.with_name("mprotect-pud-cleaned.patch"), reader.folder / "mutant.patch")
    follow("how-to/your-test.md")


def test_kernel_log(follow: Follow, tmp_path: Path) -> None:
    log = GoldenLog.read(FOLDER / "kasan_slab_uaf.log").text
    (tmp_path / "work" / "console.log").write_bytes(log.encode())
    follow("how-to/kernel-log.md")


@pytest.mark.long
def test_your_kernel(follow: Follow, tmp_path: Path) -> None:
    _tree(tmp_path / "linux", good=bisect_tree.MUTANT - 2, tip=bisect_tree.MUTANT - 1)
    follow("how-to/your-kernel.md")


@pytest.mark.long
def test_series(follow: Follow, tmp_path: Path) -> None:
    _tree(tmp_path / "linux", good=bisect_tree.MUTANT - 2, tip=bisect_tree.MUTANT)
    follow("how-to/series.md")


@pytest.mark.long
def test_bisect(follow: Follow, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "test_mine.py").write_text(BISECTED)
    _tree(tmp_path / "linux", good=bisect_tree.MUTANT - 2, tip=bisect_tree.MUTANT)
    follow("how-to/bisect.md")


def _ccache() -> Path:
    """The folder of ccache's objects, for a user who has not configured it."""
    return Path(os.environ.get("CCACHE_DIR") or platformdirs.user_cache_path("ccache"))


def _tree(folder: Path, good: int, tip: int) -> None:
    """Make a kernel tree as the pages describe it: v6.12, with a branch ``mine`` checked out."""
    bisect_tree.make_tree(folder, "debsrc:6.12")
    bisect_tree.git(folder, "tag", "v6.12", f"v{good}")
    bisect_tree.git(folder, "checkout", "--quiet", "-b", "mine", f"v{tip}")
    mutant = bisect_tree.MUTANT
    mail = bisect_tree.git(folder, "format-patch", "--stdout", f"v{mutant - 1}..v{mutant}") + "\n"
    (folder.parent / "work" / "series.mbox").write_text(mail)
    (folder / "mm" / "memory.c").open("a").write("/* fixed */\n")
    (folder.parent / "work" / "fix.patch").write_text(bisect_tree.git(folder, "diff") + "\n")
    bisect_tree.git(folder, "checkout", "--quiet", "mm/memory.c")


@pytest.mark.long
@pytest.mark.parametrize("system", ["github", "gitlab"])
def test_ci(tmp_path: Path, hugepfn: Command, system: str) -> None:
    """Runs the shell lines of the CI files in a tree as CI checks it out, except those that install packages."""
    job = yaml.safe_load((ROOT / "examples" / "ci" / f"{system}.yml").read_text())
    tree = tmp_path / "linux"
    bisect_tree.make_tree(tree, "debsrc:6.12")
    bisect_tree.git(tree, "checkout", "--quiet", f"v{bisect_tree.MUTANT - 1}")
    extra = {}
    if system == "github":
        lines = [step["run"] for step in job["jobs"]["page-tables"]["steps"] if "run" in step]
        lines.insert(0, f"git clone --quiet {ROOT} hugepfn")
        folder = tmp_path
    else:
        lines = [*job["page-tables"]["before_script"], *job["page-tables"]["script"]]
        lines = [line.replace("/tmp/hugepfn", str(tmp_path / "hugepfn")) for line in lines if "apt-get" not in line]
        extra = {"HUGEPFN_URL": str(ROOT), "CI_PROJECT_DIR": str(tree), "HUGEPFN_CACHE_DIR": os.fspath(cache.root())}
        folder = tree
    subprocess.run(["bash", "-ec", "\n".join(lines)], cwd=folder, env=hugepfn.environment(**extra), check=True)
    assert (folder / "hugepfn.xml").exists()
    assert (folder / "hugepfn.json").exists()
