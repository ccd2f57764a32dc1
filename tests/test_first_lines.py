"""Tests for the first ten lines that ``hugepfn run`` prints about a kernel that is broken in a known way.

The runs were recorded by ``tests/mutants/kill.py --record``, which also compares the lines of a real kernel.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.verdict import Outcome, Run
from tests.test_mutants import kill

FOLDER = Path(__file__).parent / "data" / "failures"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))

#: What the first lines have to tell: what is wrong, whose entry, at which checkpoint, and which function decides.
SAID = {
    "fault-pud-never-done": (
        "nothing within",
        "parent  bar+0x0  none",
        "checkpoint 'read'",
        "vfio_pci_mmap_huge_fault()",
    ),
    "fork-pmd-dies": ("kernel BUG at", "parent  bar+0x0", "checkpoint 'forked'", "copy_huge_pmd()"),
    "fork-pmd-not-copied": ("expected an entry, got none", "child bar+0x0", "at 'forked'", "copy_huge_pmd()"),
    "fork-pte-stays-dirty": ("pte_dirty(): expected 0, got 1", "child bar+0x0", "at 'forked'", "copy_pte_range()"),
    "madvise-cold-taken": (
        "cold",
        "parent  bar+0x0",
        "between 'before' and 'cold': expected EINVAL, got 0",
        "can_madv_lru_vma()",
    ),
    "munmap-table-not-counted": (
        "table-kib-left between 'refaulted' and 'gone': expected 0, got 4",
        "non-zero pgtables_bytes",
        "parent  hole+0x0  none",
        "free_pgd_range()",
    ),
    "order-no-pud": ("level: expected pud, got pmd", "parent bar+0x0", "at 'read'", "vfio_pci_mmap_huge_fault()"),
    "revoke-sigsegv": ("expected BUS code 2", "parent  bar+0x0  none", "between 'off' and 'refused'", "do_sigbus()"),
}


def test_there_is_a_recording_of_each_kind() -> None:
    assert sorted(SAID) == NAMES
    assert set(NAMES) <= {mutant.path.stem for mutant in kill.mutants()}


@pytest.mark.parametrize("name", NAMES)
def test_the_first_ten_lines(name: str) -> None:
    run = Run.from_json(json.loads((FOLDER / f"{name}.json").read_text()))
    lines = kill.first_lines(run)
    assert lines == (FOLDER / f"{name}.txt").read_text()
    assert len(lines.splitlines()) <= 10
    assert [word for word in SAID[name] if word not in lines] == []


def test_different_first_lines_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "order-no-pud"
    (mutant,) = kill.mutants([name])
    run = Run.from_json(json.loads((FOLDER / f"{name}.json").read_text()))
    assert kill.golden(mutant, run, record=False) == ""
    silent = Run(tuple(one for one in run.results if one.outcome is not Outcome.FAILED), run.context)
    assert kill.golden(mutant, silent, record=False) == "its first lines are not those of order-no-pud.txt"
    monkeypatch.setattr(kill, "GOLDEN", tmp_path)
    assert kill.golden(mutant, silent, record=False) == "", "a mutant without recorded lines cannot differ from them"
    assert kill.golden(mutant, run, record=True) == ""
    assert (tmp_path / f"{name}.txt").read_text() == (FOLDER / f"{name}.txt").read_text()
