"""The ledger: which failures are known, and which are not."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.verdict.known_bugs import Failure, judge, parse_ledger

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
claim = "end"
message = "^KernelDied"
"""
LOST = Failure("the rest keeps its entries", "parent has no entry for bar+0x200000")
DIED = Failure("end", "KernelDied: Oops")
OTHER = Failure("W is kept", "W=0")


@pytest.mark.parametrize(
    ("level", "failures", "known", "reason"),
    [
        ("pud", [LOST], True, "known bug HP-1: the rest is lost"),
        ("pud", [LOST, DIED], True, "known bug HP-1: the rest is lost"),
        ("pud", [LOST, OTHER], False, ""),
        ("pud", [Failure(LOST.what, "W=0")], False, ""),
        ("pud", [Failure("not " + LOST.what, LOST.message)], False, ""),
        ("pmd", [LOST], False, ""),
        ("pud", [], False, ""),
        ("pmd", [], False, ""),
    ],
)
def test_judge(level: str, failures: list[Failure], known: bool, reason: str) -> None:
    finding = judge(parse_ledger(ENTRY), "mprotect", level, failures)
    assert (finding.known, finding.reason) == (known, reason)
    assert judge(parse_ledger(ENTRY), "munmap", level, failures).reason == ""


def test_a_bug_is_fixed_only_where_an_older_kernel_of_the_series_had_it() -> None:
    ledger = parse_ledger(ENTRY)
    assert judge(ledger, "mprotect", "pud", []).reason == ""
    assert judge(ledger, "mprotect", "pud", [], lambda _bug: None).reason == ""
    assert judge(ledger, "mprotect", "pud", [], lambda _bug: "6.12.117").reason == "fixed here: HP-1 (6.12.117 had it)"
    assert judge(ledger, "mprotect", "pmd", [], lambda _bug: "6.12.117").reason == ""
    assert judge(ledger, "mprotect", "pud", [OTHER], lambda _bug: "6.12.117").reason == ""


def test_a_bug_that_shows_only_sometimes_is_never_called_fixed() -> None:
    ledger = parse_ledger(ENTRY.replace("levels =", "sometimes = true\nlevels ="))
    assert judge(ledger, "mprotect", "pud", [], lambda _bug: "6.12.117").reason == ""
    assert judge(ledger, "mprotect", "pud", [LOST]).reason == "known bug HP-1: the rest is lost"


def test_two_bugs_in_one_scenario_are_both_named() -> None:
    second = ENTRY.replace("HP-1", "HP-2").replace("the rest .*", "W is kept").replace("no entry for bar", "W=0")
    finding = judge(parse_ledger(ENTRY + second), "mprotect", "pud", [LOST, OTHER])
    assert [bug.id for bug in finding.bugs] == ["HP-1", "HP-2"]


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
        ('message = "no', 'massage = "no', "'claim' and 'message'"),
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
