"""Tests for a bisection over Debian's kernels: with a test of the user's own, and after it was killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from harness.archive.versions import sort_key
from harness.kernel import available

from .conftest import Command

#: The claim holds on all kernels but these, and does so with a program and a helper beside the test.
TEST = """
from beside import BROKEN


def test_mine(vm, claim):
    with vm.run("mine") as guest:
        guest.until("here")
        with claim("the kernel is not broken", by="copy_huge_pud()"):
            assert vm.kernel.release not in BROKEN
"""
PROGRAM = """#include "lib/hugepfn.h"
#include "beside.h"

int main(int argc, char **argv)
{
	hp_start(argc, argv);
	ktap_plan(1);
	checkpoint(HERE);
	ktap_ok(true, "came there");
	return ktap_finish();
}
"""
KILLED_AFTER = 5


@pytest.fixture(scope="module")
def versions() -> tuple[str, str, str]:
    """The newest version of 6.12 and the two before it, oldest first."""
    offers = sorted((one for one in available() if one.upstream.startswith("6.12.")), key=sort_key)[-3:]
    if len(offers) < 3:
        pytest.skip(f"the mirror has only {len(offers)} kernels of 6.12; two kernels and a candidate are needed")
    older, middle, newer = offers
    return older.version, middle.version, newer.version


@pytest.fixture
def mine(tmp_path: Path, versions: tuple[str, str, str]) -> Path:
    """A test of the user's own, outside of the repository, that fails from the second version on."""
    folder = tmp_path / "mine"
    folder.mkdir()
    releases = {one.version: one.release for one in available()}
    (folder / "beside.py").write_text(f"BROKEN = {[releases[one] for one in versions[1:]]}\n")
    (folder / "beside.h").write_text('#define HERE "here"\n')
    (folder / "mine.c").write_text(PROGRAM)
    (folder / "test_mine.py").write_text(TEST)
    return folder / "test_mine.py"


def journal(said: str) -> list[str]:
    """The lines of the journal that a bisection told about."""
    (file,) = re.findall(r"journal: (\S+)$", said, re.MULTILINE)
    return Path(file).read_text().splitlines()


def runs_in(said: str) -> int:
    """How many runs were told about."""
    return len(re.findall(r"\(\d+\.\d bits are missing\)$", said, re.MULTILINE))


def test_killed_and_resumed(hugepfn: Command, versions: tuple[str, str, str], mine: Path) -> None:
    older, middle, newer = versions
    words = ("bisect", "--debian", older, newer, f"{mine}::test_mine")
    whole = hugepfn(*words, timeout_s=1800)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert f"first bad: {middle} " in whole.stdout
    assert "shows claim: the kernel is not broken\n" in whole.stdout
    noted = journal(whole.stderr)
    assert runs_in(whole.stderr) == len(noted) - 1 > KILLED_AFTER

    environment = hugepfn.environment()
    with subprocess.Popen(
        hugepfn.argv(*words), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = ""
        while runs_in(first) < KILLED_AFTER:
            first += (line := process.stderr.readline())
            assert line, first
        process.kill()
        first += process.stderr.read()  # until the last child has ended
    before = journal(first)
    assert KILLED_AFTER <= len(before) - 1 < len(noted) - 1

    resumed = hugepfn(*words, "--resume", timeout_s=1800)
    assert resumed.stdout == whole.stdout
    after = journal(resumed.stderr)
    assert after[: len(before)] == before
    assert runs_in(resumed.stderr) == len(after) - len(before), "nothing that was noted was run again"
    assert [json.loads(line)["step"] for line in after[1:]] == [json.loads(line)["step"] for line in noted[1:]]


def test_two_at_once_find_the_same(hugepfn: Command, versions: tuple[str, str, str], mine: Path) -> None:
    older, middle, newer = versions
    done = hugepfn("bisect", "--debian", older, newer, f"{mine}::test_mine", "-j", "2", timeout_s=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"first bad: {middle} " in done.stdout
    assert runs_in(done.stderr) == len(journal(done.stderr)) - 1 > 3
    assert hugepfn.left_behind() == []


def test_compare_with_a_test_of_ones_own(hugepfn: Command, versions: tuple[str, str, str], mine: Path) -> None:
    older, _, newer = versions
    done = hugepfn("compare", f"debian:{older}", f"debian:{newer}", os.fspath(mine))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the kernel is not broken [copy_huge_pud()]: passed -> failed" in done.stdout
