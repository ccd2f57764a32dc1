"""Measures which lines of a kernel that is really built the scenarios execute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import schemas

from .conftest import ROOT, Command

PATCH = ROOT / "examples/undo-fork-patch.patch"
#: In copy_huge_pud(), for a pud that is mapped privately, which no driver of 6.12 does (docs/reference/coverage.md).
NOT_REACHED = ["pudp_set_wrprotect(src_mm, addr, src_pud);", "pud = pud_wrprotect(pud);"]


@pytest.mark.long
def test_every_line_that_makes_fork_right_is_executed(tmp_path: Path, hugepfn: Command) -> None:
    """The lines that examples/undo-fork-patch.patch takes away; at pte alone, not all of them are."""
    for levels in (("--level", "pte"), ()):
        written = tmp_path / "coverage.json"
        kernel = ("--removed", "--kernel", f"debsrc:6.12+{PATCH}")
        done = hugepfn("coverage", "fork", *levels, *kernel, "--json", str(written), timeout_s=3600)
        said = json.loads(written.read_text())
        assert schemas.check(said) == "hugepfn-coverage"
        assert (done.returncode, said["lines"], said["lost"]) == (1, "taken away", []), done.stdout + done.stderr
        assert {one["file"] for one in said["patch"]} == {"mm/huge_memory.c"}
        assert len(said["patch"]) >= 5
        missed = [one["text"].strip() for one in said["patch"] if not one["count"]]
        assert (missed == NOT_REACHED) is not bool(levels), missed
        executed = {one["name"]: bool(one["executed"]) for one in said["functions"]}
        assert executed["copy_pte_range"]
        assert executed["copy_huge_pud"] is not bool(levels)
