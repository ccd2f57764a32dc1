"""The ledger: which failures are known, and which are not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date

import pytest

from harness.errors import UsageError
from harness.verdict.claims import BugFixed, BugReturned, BugSeen
from harness.verdict.known_bugs import Failure, FailureKind, Symptom, judge, parse_ledger
from harness.verdict.seen import Facts, Sightings

ENTRY = """
[[bug]]
id = "HP-1"
title = "the rest is lost"
scenario = "mprotect"
levels = ["pud"]
function = "mm/mprotect.c change_pud_range()"
reproduce = "hugepfn run mprotect --level pud"
[[bug.symptom]]
claim = "the rest .*"
message = "no entry for bar"
[[bug.symptom]]
in = "end"
message = "^KernelDied"
"""
CLAIM, END = FailureKind.CLAIM, FailureKind.END
LOST = Failure(CLAIM, "parent has no entry for bar+0x200000", "the rest keeps its entries")
DIED = Failure(END, "KernelDied: Oops")
OTHER = Failure(CLAIM, "W=0", "W is kept")
SEEN = (BugSeen("HP-1", "the rest is lost"),)
DAY = date(2026, 11, 26)


def facts(present: Sequence[str] = (), absent: Sequence[str] = (), kernels: Mapping[str, str] = {}) -> Facts:
    return Facts(None, kernels, {"HP-1": Sightings(dict.fromkeys(present, DAY), dict.fromkeys(absent, DAY))})


@pytest.mark.parametrize(
    ("level", "failures", "known"),
    [
        ("pud", [LOST], True),
        (None, [LOST], True),  # a scenario without levels is about all of them
        ("pud", [LOST, DIED], True),
        ("pud", [LOST, OTHER], False),
        ("pud", [replace(LOST, message="W=0")], False),
        ("pud", [replace(LOST, name="not " + LOST.name)], False),
        ("pud", [replace(DIED, kind=FailureKind.KERNEL_LOG)], False),
        ("pud", [Failure(CLAIM, DIED.message, "end")], False),  # a claim of that name
        ("pmd", [LOST], False),
        ("pud", [], False),
        ("pmd", [], False),
    ],
)
def test_judge(level: str | None, failures: list[Failure], known: bool) -> None:
    assert judge(parse_ledger(ENTRY), "mprotect", level, failures).known == (SEEN if known else ())
    assert judge(parse_ledger(ENTRY), "munmap", level, failures).known == ()


def test_a_bug_is_fixed_only_where_an_older_kernel_of_the_series_had_it() -> None:
    ledger, older = parse_ledger(ENTRY), facts(["6.12.117"])
    assert judge(ledger, "mprotect", "pud", []).fixed == ()
    assert judge(ledger, "mprotect", "pud", [], older).fixed == (), "what kernel this is, nobody says"
    assert judge(ledger, "mprotect", "pud", [], facts(), "6.12.118").fixed == ()
    assert judge(ledger, "mprotect", "pud", [], older, "6.12.118").fixed == (BugFixed("HP-1", "6.12.117"),)
    assert judge(ledger, "mprotect", None, [], older, "6.12.118").fixed == (BugFixed("HP-1", "6.12.117"),)
    assert judge(ledger, "mprotect", "pmd", [], older, "6.12.118").fixed == ()
    assert judge(ledger, "mprotect", "pud", [OTHER], older, "6.12.118").fixed == ()


@pytest.mark.parametrize(
    ("present", "absent", "release", "measured"),
    [
        ([], ["6.12.118"], "6.12.118+deb13-cloud-amd64", "6.12.118"),
        (["6.12.117"], ["6.12.118"], "6.12.118-hugepfn", "6.12.118"),  # built from it, with a patch
        (["6.12.117"], ["6.12.118"], "6.12.120", "6.12.118"),  # newer, in the same series
        (["6.12.43"], ["6.12.117", "6.12.118"], "6.12.117", "6.12.117"),
        (["6.12.43"], ["6.12.117"], "6.12.100", None),  # older than what was measured: it may well have the bug
        ([], ["6.12.117"], "6.12.100", None),
        ([], ["6.12.117"], "6.12.118-rc1", None),  # a candidate counts as older than all releases
        ([], ["6.12.118"], "6.13.1", None),  # another series
        (["6.12.120"], ["6.12.118"], "6.12.120", None),  # it came back, and somebody wrote that down
        (["6.12.118"], ["6.12.118"], "6.12.118", None),
        ([], [], "6.12.118", None),
        ([], ["6.12.118"], "", None),
        ([], ["6.1.192"], "6.1.0-56-cloud-amd64", "6.1.192"),  # by the release that was measured
        ([], ["6.1.192"], "6.1.0-57-cloud-amd64", None),  # whose version is not known
    ],
)
def test_a_bug_of_which_the_kernel_was_measured_free_is_no_known_bug(
    present: list[str], absent: list[str], release: str, measured: str | None
) -> None:
    known = facts(present, absent, {"6.1.192": "6.1.0-56-cloud-amd64"})
    finding = judge(parse_ledger(ENTRY), "mprotect", "pud", [LOST], known, release)
    if measured is None:
        assert (finding.known, finding.returned) == (SEEN, ())
    else:
        assert (finding.known, finding.returned) == ((), (BugReturned("HP-1", measured, DAY),))


def test_a_race_that_was_not_seen_was_not_measured() -> None:
    ledger = parse_ledger(ENTRY.replace("levels =", "sometimes = true\nlevels ="))
    assert judge(ledger, "mprotect", "pud", [LOST], facts([], ["6.12.118"]), "6.12.118").known == SEEN


def test_another_bug_may_explain_what_has_not_returned() -> None:
    ledger = parse_ledger(ENTRY + ENTRY.replace("HP-1", "HP-2"))
    finding = judge(ledger, "mprotect", "pud", [LOST], facts([], ["6.12.118"]), "6.12.118")
    assert finding.known == (BugSeen("HP-2", "the rest is lost"),)
    assert finding.returned == ()


def test_what_returned_is_named_beside_what_nobody_knows() -> None:
    finding = judge(parse_ledger(ENTRY), "mprotect", "pud", [OTHER, LOST], facts([], ["6.12.118"]), "6.12.118")
    assert finding.returned == (BugReturned("HP-1", "6.12.118", DAY),)
    assert judge(parse_ledger(ENTRY), "mprotect", "pud", [OTHER], facts([], ["6.12.118"]), "6.12.118").returned == ()


def test_a_bug_that_shows_only_sometimes_is_never_called_fixed() -> None:
    ledger = parse_ledger(ENTRY.replace("levels =", "sometimes = true\nlevels ="))
    assert judge(ledger, "mprotect", "pud", [], facts(["6.12.117"]), "6.12.118").fixed == ()
    assert judge(ledger, "mprotect", "pud", [LOST]).known == SEEN


def test_two_bugs_in_one_scenario_are_both_named() -> None:
    second = ENTRY.replace("HP-1", "HP-2").replace("the rest .*", "W is kept").replace("no entry for bar", "W=0")
    finding = judge(parse_ledger(ENTRY + second), "mprotect", "pud", [LOST, OTHER])
    assert [bug.id for bug in finding.known] == ["HP-1", "HP-2"]


@pytest.mark.parametrize(
    ("where", "failure"),
    [
        ('invariant = "bar_pfn"', Failure(FailureKind.INVARIANT, "seen W=0", "bar_pfn")),
        ('in = "kernel log"', Failure(FailureKind.KERNEL_LOG, "seen W=0")),
        ('in = "taint"', Failure(FailureKind.TAINT, "seen W=0")),
        ('in = "end"', Failure(FailureKind.END, "seen W=0")),
    ],
)
def test_a_symptom_may_be_something_else_than_a_claim(where: str, failure: Failure) -> None:
    (bug,) = parse_ledger(ENTRY.replace('claim = "the rest .*"', where).replace("no entry for bar", "W=0"))
    assert bug.symptoms[0] == Symptom(failure.kind, re.compile(failure.name), re.compile("W=0"))
    assert bug.explains(failure)
    assert not bug.explains(replace(failure, name="x"))
    assert not bug.explains(replace(failure, message="W=1"))
    assert not bug.explains(OTHER)


def test_a_bug_without_levels_is_about_every_level() -> None:
    (bug,) = parse_ledger(ENTRY.replace('levels = ["pud"]\n', ""))
    assert bug.covers("mprotect", "pte")
    assert bug.covers("mprotect", None)


def test_a_bug_may_show_in_several_scenarios() -> None:
    (bug,) = parse_ledger(ENTRY.replace('"mprotect"', '"mprotect_(part|page)"'))
    assert bug.covers("mprotect_part", "pud")
    assert bug.covers("mprotect_page", "pud")
    assert not bug.covers("mprotect", "pud")
    assert not bug.covers("mprotect_pages", "pud")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('id = "HP-1"', "", "'id' is missing"),
        ('levels = ["pud"]', 'kernels = ["6.12.117"]', "'kernels' is not typed but measured"),
        ('id = "HP-1"', 'id = "HP-1"\nsometimes = "often"', "'sometimes' is true or left out"),
        ('levels = ["pud"]', 'levels = ["p4d"]', "not understood"),
        ('"mprotect"', '"mprotect("', "'scenario' is no regular expression"),
        ("title", "titel", "'title' is missing"),
        ('id = "HP-1"', 'id = "HP-1"\nconfig = "DEBUG_VM"', "'config' is a list"),
        ('id = "HP-1"', 'id = "HP-1"\nsometimes = "yes"', "'sometimes' is true or left out"),
        ("[[bug.symptom]]", "[[bug.sign]]", "not understood"),
        ('"no entry for bar"', '"("', "regular expressions"),
        ('message = "no', 'massage = "no', "a symptom has 'message' and one of"),
        ('claim = "the rest .*"', "", "a symptom has 'message' and one of .*: it has none of them"),
        ('claim = "the rest .*"', 'claim = "x"\nin = "end"', "a symptom has 'message' and one of .*: it has claim, in"),
        ('claim = "the rest .*"', 'in = "log"', "'in' is 'log', one of kernel log, taint, end was expected"),
        ('claim = "the rest .*"', 'invariant = "bar"', "'invariant' is 'bar'; expected one of: walkable, special"),
        ("[[bug]]", "[[bug]", "no TOML"),
    ],
)
def test_a_ledger_that_cannot_be_read_says_why(old: str, new: str, words: str) -> None:
    assert old in ENTRY
    with pytest.raises(UsageError, match=words):
        parse_ledger(ENTRY.replace(old, new))


def test_a_bug_may_need_a_kernel_that_is_configured_for_it() -> None:
    (bug,) = parse_ledger(ENTRY)
    assert bug.shows({"DEBUG_VM"}.__contains__)
    assert bug.shows(set().__contains__)
    (bug,) = parse_ledger(ENTRY.replace("levels =", 'config = ["DEBUG_VM", "SMP"]\nlevels ='))
    assert bug.shows({"DEBUG_VM", "SMP"}.__contains__)
    assert not bug.shows({"SMP"}.__contains__)


def test_ids_are_unique() -> None:
    with pytest.raises(UsageError, match="two entries HP-1"):
        parse_ledger(ENTRY + ENTRY)


def test_a_bug_may_be_met_by_several_scenarios() -> None:
    (bug,) = parse_ledger(ENTRY.replace('"mprotect"', '"mprotect(_part)?"'))
    assert bug.covers("mprotect", "pud")
    assert bug.covers("mprotect_part", "pud")
    assert not bug.covers("mprotect_parts", "pud")
    with pytest.raises(UsageError, match="scenario"):
        parse_ledger(ENTRY.replace('"mprotect"', '"mprotect("'))
