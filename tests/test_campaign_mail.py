"""Tests for the output of compare and series as text for a mail."""

from __future__ import annotations

import shlex
from dataclasses import replace

from harness.campaign import mail
from harness.campaign.compare import Comparison, case_lines, report_lines
from harness.campaign.series import PatchStep, change_lines
from harness.pagetable import Observation
from harness.verdict import Claim, Outcome, Run, ScenarioResult
from harness.verdict.differences import compare_runs
from harness.verdict.series import changes
from harness.verdict.table import Column, Table

CLAIM = "the child's entry is a copy of the parent's, with its write bit and its dirty bit"
CONTEXT = {"kernel": {"spec": "debsrc:6.12", "release": "6.12.117"}, "qemu": "7.2.22", "accel": "tcg", "smp": 1}
GOOD = Observation("forked", "child", "bar", 0, "pmd", 0x84000000FE0000E7, ("P", "W", "D"), "bar+0x0", None)
BAD = replace(GOOD, raw=0x04000000FE000085, bits=("P", "SAVED_DIRTY"))
COMMAND = "hugepfn series ~/linux v6.12..mine ./test_mine.py --kernel 'a b' --mail"


def run(seen: Observation, entries: int = 1) -> Run:
    outcome = Outcome.PASSED if seen is GOOD else Outcome.FAILED
    observations = tuple(replace(seen, offset=number << 22, pfn=f"bar+{number << 22:#x}") for number in range(entries))
    claims = (Claim(CLAIM, outcome, "copy_huge_pmd()", "" if seen is GOOD else "W=0"),)
    return Run((ScenarioResult("fork", "pmd", outcome, "", claims, observations),), CONTEXT)


def test_the_mail_of_a_comparison() -> None:
    runs = run(GOOD), run(BAD)
    lines = [line.plain for line in report_lines(Comparison(("debsrc:6.12", "b"), runs, compare_runs(*runs)))]
    text = mail.mail(lines, runs[0], "hugepfn compare debsrc:6.12 b fork --mail").splitlines()
    assert text[3].startswith("fork pmd: passed -> failed: 1 claim does not hold: ")
    del text[4:6]  # its other lines
    assert [*text[:3], *text[4:12]] == [
        "A  debsrc:6.12: Linux 6.12.117",
        "B  b: Linux 6.12.117",
        "",
        "  child at forked, bar+0x0: pmd 84000000fe0000e7 -> 04000000fe000085",
        "    +SAVED_DIRTY -W -D",
        "  claim: the child's entry is a copy of the parent's, with its write bit",
        "    and its dirty bit [copy_huge_pmd()]: passed -> failed",
        "",
        "1 of 1 cases differ",
        "",
        "To run it again:",
    ]
    assert text[12] == "  hugepfn compare debsrc:6.12 b fork --mail"
    assert "QEMU 7.2.22 (tcg, 1 vCPU)" in text[-1]


def test_a_change_of_a_series_has_the_patch_and_the_entries() -> None:
    steps = [PatchStep("base", "v6.12", "x"), PatchStep("1/1", "mm: write-protect a pmd that is copied", "y")]
    table = Table.of([Column("base", (run(GOOD, 9),)), Column("1/1", (run(BAD, 9),))])
    lines = [line.plain for line in change_lines(steps, table, changes(table), mail.MOST)]
    assert lines[0].startswith("fork pmd: pass -> FAIL at 1/1 mm: write-protect a pmd that is copied")
    assert lines[1] == "  child at forked, bar+0x0: pmd 84000000fe0000e7 -> 04000000fe000085 +SAVED_DIRTY -W -D"
    assert lines[4] == "  and 6 more entries"
    assert lines[5] == f"  claim: {CLAIM} [copy_huge_pmd()]: passed -> failed"
    everything = [line.plain for line in change_lines(steps, table, changes(table))]
    assert len(everything) == 11, "a terminal shows every entry"


def test_lines_have_at_most_72_columns_and_the_command_stays_valid() -> None:
    command = f"{COMMAND} {' '.join(f'--append=word{number}' for number in range(9))}"
    text = mail.mail(["word " * 40, "    indented " + "x" * 60 + " " + "y" * 60], run(GOOD), command)
    assert max(map(len, text.splitlines())) <= mail.COLUMNS
    again = text[text.index("To run it again:\n") + 17 : text.index("\n\nhugepfn ")]
    assert again.count("\\\n") == 3
    assert shlex.split(again.replace("\\\n", "")) == shlex.split(command)


def test_a_mail_shows_the_first_checkpoint_that_differs() -> None:
    sides = []
    for seen in (GOOD, BAD):
        later = replace(seen, checkpoint="written")
        claims = tuple(Claim(f"claim {number}", run(seen).results[0].outcome, "f()") for number in range(5))
        sides.append(Run((replace(run(seen).results[0], claims=claims, observations=(seen, later)),), CONTEXT))
    (one,) = compare_runs(*sides)
    assert [line.plain.partition(":")[0] for line in case_lines(one, mail.MOST)] == [
        *("  child at forked, bar+0x0", "  and 1 more entry"),
        *(["  claim"] * 3),
        "  and 2 more claims",
    ]
