"""Tests for a user's own tests: in any folder, with files beside them, in every command, distinguished by file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Command

PROGRAM = """#define _GNU_SOURCE
#include <sys/mman.h>
#include "hugepfn.h"
#include "beside.h"

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	struct hp_bar bar = hp_bar_open(2);
	int not_used_and_no_error;

	hp_write(hp_bar_map(&bar, options.level, PROT_READ | PROT_WRITE), VALUE);
	checkpoint("written");
	ktap_plan(1);
	ktap_ok(true, "wrote");
	return ktap_finish();
}
"""
TEST = """
import pytest
from {helper} import PROGRAM


@pytest.mark.levels("pte", "pud")
def test_mine(vm, level, claim, about):
    with vm.run(PROGRAM, f"--level={{level.label}}") as guest:
        leaf = guest.until("written")["parent"].leaf("bar")
        with claim(about, by="vfio_pci_mmap_huge_fault()"):
            assert leaf.dirty is {dirty}


@pytest.mark.skip(reason="not today")
def test_another(vm): pass


def test_without_a_machine():
    assert PROGRAM == "mine"
"""
CONFTEST = "import pytest\n\n@pytest.fixture\ndef about():\n    return 'the entry is as it should be'\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of a user with tests of the same names. The claim in the second one does not hold."""
    found = []
    for name, dirty in (("good", True), ("bad", False)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "test_mine.py").write_text(TEST.format(helper=f"helper_{name}", dirty=dirty))
        (folder / f"helper_{name}.py").write_text('PROGRAM = "mine"\n')
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "mine.c").write_text(PROGRAM)
        (folder / "beside.h").write_text("#define VALUE 1\n")
        found.append(folder / "test_mine.py")
    return found[0], found[1]


def test_two_tests_with_the_same_name_are_two_rows(hugepfn: Command, tmp_path: Path, files: tuple[Path, Path]) -> None:
    good, bad = files
    out = tmp_path / "out.json"
    words = (str(good), f"{bad}::test_mine:pud")
    done = hugepfn("matrix", "-k", "debian:6.12", *words, "-n", "2", "--json", str(out))
    assert done.returncode == 1, done.stdout + done.stderr
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[1:6]] == [
        *("mine pte", "mine pud (good/test_mine.py)", "another", "without_a_machine", "mine pud (bad/test_mine.py)")
    ]
    rows = json.loads(out.read_text())["rows"]
    assert [(row["file"], row["scenario"], row["level"], row["cells"][0]["mark"]) for row in rows] == [
        (str(good), "mine", "pte", "pass"),
        (str(good), "mine", "pud", "pass"),
        (str(good), "another", None, "skip"),
        (str(good), "without_a_machine", None, "pass"),
        (str(bad), "mine", "pud", "FAIL"),
    ]


def test_run_shows_which_file_it_is(hugepfn: Command, files: tuple[Path, Path]) -> None:
    good, bad = files
    done = hugepfn("run", "-q", "-k", "debian:6.12", f"{good}::test_mine", f"{bad}::test_mine:1G")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "mine pud (good/test_mine.py): passed" in done.stdout
    assert "mine pud (bad/test_mine.py): failed" in done.stdout
    assert "\n2 passed, 1 failed; " in done.stdout
