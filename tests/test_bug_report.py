"""Tests for the mail that reports a known bug."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.bugs import report
from harness.bugs.report import Reproduction, attached, command_of, report_lines, shown_in, subject
from harness.campaign.mail import COLUMNS, mail
from harness.cli import cli
from harness.errors import UsageError
from harness.pagetable import Observation
from harness.verdict import Claim, Outcome, Run, ScenarioResult
from harness.verdict.claims import BugSeen
from harness.verdict.known_bugs import parse_ledger
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.troubles import KernelComplaint, KernelTroubles
from harness.verdict.seen import Sightings

ROOT = Path(__file__).resolve().parents[1]
LEDGER = {bug.id: bug for bug in parse_ledger((ROOT / "guest_tests/known_bugs.toml").read_text())}
BUG = LEDGER["HP-003"]
DAY = date(2026, 11, 22)
LEAF = Observation("written", "parent", "bar", 0, "pud", 0x80000001000002F7, ("P", "W", "D", "PSE"), "bar+0x0", None)
GONE = replace(LEAF, checkpoint="moved", level="none", raw=0, bits=(), pfn="")
RESULT = ScenarioResult(
    "mremap_leaf",
    "pud",
    Outcome.KNOWN_BUG,
    claims=(Claim("the entry moves", Outcome.FAILED, "mm/mremap.c move_huge_pud()", "expected an entry, got none"),),
    observations=(LEAF, GONE),
    kernel=(
        KernelTroubles((KernelComplaint(ComplaintKind.BAD_PUD, "bad pud 1(2)", ("move", "sys_mremap"), "bad pud"),)),
    ),
    known_bugs=(BugSeen("HP-003", BUG.title),),
)
RUN = Run(
    (RESULT,), {"kernel": {"spec": "debian:6.12", "release": "6.12.118"}, "qemu": "7.2", "accel": "tcg", "smp": 1}
)


def lines(result: ScenarioResult = RESULT, seen: Sightings | None = None) -> list[str]:
    return list(report_lines(BUG, result, RUN, seen or Sightings({"6.12.9": DAY, "6.12.117": DAY}, {"6.1.192": DAY})))


def test_a_report_has_what_a_maintainer_asks_for() -> None:
    assert lines() == [
        "Subject: [BUG] mm/mremap: mremap() of a pud leaf calls it a bad pud and ...",
        "",
        f"{BUG.title}. Seen on Linux 6.12.118.",
        "The function at fault is get_old_pud() in mm/mremap.c.",
        "",
        "The entries at each stop of the program (+ a bit that came, - one that went):",
        "",
        "  written:",
        "    parent bar+0x0 pud 0x80000001000002f7 P W D PSE",
        "  moved:",
        "    parent bar+0x0 none 0x0000000000000000 -D -P -PSE -W",
        "",
        "What does not hold, with the function that decides it:",
        "",
        "  BROKEN the entry moves [mm/mremap.c move_huge_pud()]",
        "         expected an entry, got none",
        "",
        "The kernel log:",
        "",
        "  bad pud 1(2)",
        "    in move(), sys_mremap()",
        "",
        "Of Debian's stock kernels (x86-64), the bug was",
        "  seen on: 6.12.9, 6.12.117",
        "  not seen on: 6.1.192",
    ]


def test_what_is_not_there_has_no_heading() -> None:
    told = lines(replace(RESULT, claims=(), observations=(), kernel=()), Sightings())
    assert told[4:] == [
        "",
        "Of Debian's stock kernels (x86-64), the bug was",
        "  seen on: none",
        "  not seen on: none that was measured",
    ]


def test_a_race_with_many_entries_does_not_fill_the_mail() -> None:
    many = tuple(replace(LEAF, mapping=f"m{number}") for number in range(20))
    told = lines(replace(RESULT, observations=many))
    assert "  ... 9 more lines; the command below shows all" in told
    assert sum(line.startswith("    parent") for line in told) == report._ENTRIES_MAX - 1


def test_a_mail_is_narrow_and_its_program_is_whole() -> None:
    text = mail(lines(), RUN, command_of(BUG, "debian:6.12"))
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert "  hugepfn run mremap_leaf --level pud --kernel debian:6.12\n" in text
    assert list(attached("HP-003.c", f"{'x' * 200}\n")) == ["", "--- HP-003.c ---", "x" * 200]


@pytest.mark.parametrize("bug", LEDGER.values(), ids=LEDGER.keys())
def test_every_known_bug_has_a_subject_and_a_command(bug: object) -> None:
    known = LEDGER[bug.id]  # type: ignore[attr-defined]
    assert len(subject(known)) <= 76
    assert subject(known).startswith("Subject: [BUG] ")
    shows = Reproduction.of(known)
    assert known.covers(shows.scenario, shows.level)
    assert bool(shows.kernel) == (not known.config)


def test_a_command_of_another_form_is_refused() -> None:
    with pytest.raises(UsageError, match=r"HP-003: expected 'hugepfn run SCENARIO --kernel SPEC', got 'make'"):
        Reproduction.of(replace(BUG, reproduce="make"))


def test_only_a_result_that_shows_the_bug_is_reported() -> None:
    assert shown_in(BUG, RUN) is RESULT
    assert shown_in(LEDGER["HP-001"], RUN) is None


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["HP-3"], "no known bug is called 'HP-3'"),
        (["HP-012"], "HP-012 needs --kernel; the kernel that shows it is built first: hugepfn run munmap_middle"),
    ],
)
def test_a_report_that_cannot_be_made_is_one_line(argv: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, ["report", *argv])
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith(words)
    assert "\n" not in str(result.exception)
