"""Tests for the list of known bugs: which failures are known, and which are not."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date

import pytest

from harness.errors import UsageError
from harness.verdict.claims import (
    BugFixed,
    BugReturned,
    BugSeen,
    Claim,
    ClaimKind,
    Outcome,
    ScenarioResult,
)
from harness.verdict.invariants import Invariant, Violation
from harness.verdict.known_bugs import judge, parse_ledger, possible
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.taint import Taint
from harness.verdict.log.troubles import End, EndKind, KernelComplaint, KernelTroubles
from harness.verdict.mismatch import EntrySeen, Mismatch, Place, Subject
from harness.verdict.seen import Facts, Sightings
from harness.verdict.symptoms import Ended, Failure, failures_of, symptom

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
subject = "presence"
[[bug.symptom]]
end = "died"
complaint = "oops"
function = "zap_(pmd|pud)"
called = "fork"
"""
CLAIM = 'claim = "the rest .*"\nsubject = "presence"'
PLACE = Place("forked", "parent", "bar", 0x200000)
LEAF = EntrySeen("pud", 0x8E7, ("P", "W"), PLACE)
HOLE = EntrySeen("none", 0, (), PLACE)
MISSING = Mismatch(Subject.PRESENCE, "", "an entry", "none", HOLE, wrong=frozenset({"missing"}))
NO_D = Mismatch(Subject.BITS, "D", "1", "0", LEAF, wrong=frozenset({"-D"}))
OOPS = KernelComplaint(ComplaintKind.OOPS, "BUG: unable to handle page fault", ("zap_pud", "unmap", "fork", "syscall"))
LOST = Claim("the rest keeps its entries", Outcome.FAILED, "zap_pud()", mismatch=MISSING)
DIED = Ended(End(EndKind.DIED), OOPS)
OTHER = Claim("W is kept", Outcome.FAILED, "zap_pud()", mismatch=NO_D)
SEEN = (BugSeen("HP-1", "the rest is lost"),)
DAY = date(2026, 11, 26)


def facts(present: Sequence[str] = (), absent: Sequence[str] = (), kernels: Mapping[str, str] = {}) -> Facts:
    return Facts(None, kernels, {"HP-1": Sightings(dict.fromkeys(present, DAY), dict.fromkeys(absent, DAY))})


@pytest.mark.parametrize(
    ("level", "failures", "known"),
    [
        ("pud", [LOST], True),
        (None, [LOST], True),  # a scenario without levels always matches
        ("pud", [LOST, DIED], True),
        ("pud", [LOST, OTHER], False),
        ("pud", [replace(LOST, mismatch=NO_D)], False),
        ("pud", [replace(LOST, mismatch=None)], False),
        ("pud", [replace(LOST, name="not " + LOST.name)], False),
        ("pud", [OOPS], False),  # the kernel did not die
        ("pud", [replace(DIED, end=End(EndKind.HANG))], False),
        ("pud", [replace(DIED, complaint=None)], False),
        ("pud", [replace(DIED, complaint=replace(OOPS, kind=ComplaintKind.PANIC))], False),
        ("pud", [replace(DIED, complaint=replace(OOPS, functions=("unmap", "zap_pud", "fork")))], False),
        ("pud", [replace(DIED, complaint=replace(OOPS, functions=("zap_pud", "unmap")))], False),
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
    assert judge(ledger, "mprotect", "pud", [], older).fixed == (), "the kernel's version is not known"
    assert judge(ledger, "mprotect", "pud", [], facts(), "6.12.118").fixed == ()
    assert judge(ledger, "mprotect", "pud", [], older, "6.12.118").fixed == (BugFixed("HP-1", "6.12.117"),)
    assert judge(ledger, "mprotect", None, [], older, "6.12.118").fixed == (BugFixed("HP-1", "6.12.117"),)
    assert judge(ledger, "mprotect", "pmd", [], older, "6.12.118").fixed == ()
    assert judge(ledger, "mprotect", "pud", [OTHER], older, "6.12.118").fixed == ()


@pytest.mark.parametrize(
    ("present", "absent", "release", "measured"),
    [
        ([], ["6.12.118"], "6.12.118+deb13-cloud-amd64", "6.12.118"),
        (["6.12.117"], ["6.12.118"], "6.12.118-hugepfn", "6.12.118"),  # built from that release, with a patch
        (["6.12.117"], ["6.12.118"], "6.12.120", "6.12.118"),  # newer, in the same series
        (["6.12.43"], ["6.12.117", "6.12.118"], "6.12.117", "6.12.117"),
        (["6.12.43"], ["6.12.117"], "6.12.100", None),  # older than every measured release, so it may have the bug
        ([], ["6.12.117"], "6.12.100", None),
        ([], ["6.12.117"], "6.12.118-rc1", None),  # a release candidate is older than all releases
        ([], ["6.12.118"], "6.13.1", None),  # another series
        (["6.12.120"], ["6.12.118"], "6.12.120", None),  # the bug came back, and that was measured
        (["6.12.118"], ["6.12.118"], "6.12.118", None),
        ([], [], "6.12.118", None),
        ([], ["6.12.118"], "", None),
        ([], ["6.1.192"], "6.1.0-56-cloud-amd64", "6.1.192"),  # identified by the measured release
        ([], ["6.1.192"], "6.1.0-57-cloud-amd64", None),  # its version is not known
    ],
)
def test_a_bug_that_was_measured_absent_is_no_known_bug(
    present: list[str], absent: list[str], release: str, measured: str | None
) -> None:
    known = facts(present, absent, {"6.1.192": "6.1.0-56-cloud-amd64"})
    finding = judge(parse_ledger(ENTRY), "mprotect", "pud", [LOST], known, release)
    assert [bug.id for bug in possible(parse_ledger(ENTRY), known, release)] == ["HP-1"] * (measured is None)
    if measured is None:
        assert (finding.known, finding.returned) == (SEEN, ())
    else:
        assert (finding.known, finding.returned) == ((), (BugReturned("HP-1", measured, DAY),))


def test_a_race_that_did_not_show_is_not_measured_as_absent() -> None:
    ledger = parse_ledger(ENTRY.replace("levels =", "sometimes = true\nlevels ="))
    assert judge(ledger, "mprotect", "pud", [LOST], facts([], ["6.12.118"]), "6.12.118").known == SEEN


def test_another_bug_may_explain_a_symptom_of_an_absent_one() -> None:
    ledger = parse_ledger(ENTRY + ENTRY.replace("HP-1", "HP-2"))
    finding = judge(ledger, "mprotect", "pud", [LOST], facts([], ["6.12.118"]), "6.12.118")
    assert finding.known == (BugSeen("HP-2", "the rest is lost"),)
    assert finding.returned == ()


def test_a_returned_bug_is_named_beside_an_unknown_failure() -> None:
    finding = judge(parse_ledger(ENTRY), "mprotect", "pud", [OTHER, LOST], facts([], ["6.12.118"]), "6.12.118")
    assert finding.returned == (BugReturned("HP-1", "6.12.118", DAY),)
    assert judge(parse_ledger(ENTRY), "mprotect", "pud", [OTHER], facts([], ["6.12.118"]), "6.12.118").returned == ()


def test_a_bug_that_shows_only_sometimes_is_never_called_fixed() -> None:
    ledger = parse_ledger(ENTRY.replace("levels =", "sometimes = true\nlevels ="))
    assert judge(ledger, "mprotect", "pud", [], facts(["6.12.117"]), "6.12.118").fixed == ()
    assert judge(ledger, "mprotect", "pud", [LOST]).known == SEEN


def test_two_bugs_in_one_scenario_are_both_named() -> None:
    second = ENTRY.replace("HP-1", "HP-2").replace("the rest .*", "W is kept").replace("presence", "bits")
    finding = judge(parse_ledger(ENTRY + second), "mprotect", "pud", [LOST, OTHER])
    assert [bug.id for bug in finding.known] == ["HP-1", "HP-2"]


VIOLATED = Violation(Invariant.BAR_PFN, "forked", "parent", "bar", "seen", LEAF)
WARNED = KernelComplaint(ComplaintKind.WARNING, "WARNING: f+0x1", ("f", "g"))
TAINTED = Taint.WARN | Taint.BAD_PAGE
KILLED = Ended(End(EndKind.PROGRAM, "SIGBUS"))


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ('claim = "W is .*"', OTHER),
        ('claim = "W is kept"', replace(OTHER, mismatch=None)),  # the end of the test is a failure, too
        ('claim = "W is kept"\nwrong = ["-D"]\nname = "D"\nexpected = "1"\ngot = "0|2"', OTHER),
        ('claim = "W is kept"\nprocess = "parent|child"\nlevel = "pud"', OTHER),
        ('claim = "the rest .*"\nlevel = "none"\nwrong = ["missing"]', LOST),
        ('invariant = "bar_pfn"', VIOLATED),
        ('invariant = "bar_pfn"\nlevel = "pud"', VIOLATED),
        ('complaint = "warning"', WARNED),
        ('complaint = "warning"\nfunction = "f"\ncalled = "g"', WARNED),
        ('taint = ["BAD_PAGE", "WARN"]', TAINTED),
        ('end = "program"', KILLED),
        ('end = "program"\nsignal = "SIGBUS"', KILLED),
        ('end = "died"', Ended(End(EndKind.DIED))),  # without a complaint
        ('end = "died"\nfunction = "zap_.*"', DIED),
    ],
)
def test_a_symptom_matches_by_its_values(text: str, failure: Failure) -> None:
    sign = symptom(tomllib.loads(text))
    assert sign.shows_in(failure)
    others: list[Failure] = [LOST, OTHER, VIOLATED, WARNED, TAINTED, KILLED, DIED, OOPS, Taint.WARN]
    others += [replace(VIOLATED, invariant=Invariant.INSIDE), replace(WARNED, kind=ComplaintKind.BUG)]
    same = (failure, replace(failure, mismatch=NO_D)) if isinstance(failure, Claim) else (failure,)
    more = (DIED,) if text == 'end = "died"' else ()
    assert [one for one in others if sign.shows_in(one) and one not in (*same, *more)] == []


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ('claim = "W is"', OTHER),
        ('claim = "W is kept"\nsubject = "value"', OTHER),
        ('claim = "W is kept"\nsubject = "bits"', replace(OTHER, mismatch=None)),
        ('claim = "W is kept"\nname = "A"', OTHER),
        ('claim = "W is kept"\nexpected = "0"', OTHER),
        ('claim = "W is kept"\ngot = "1"', OTHER),
        ('claim = "W is kept"\nwrong = ["-D", "-W"]', OTHER),
        ('claim = "W is kept"\nprocess = "child"', OTHER),
        ('claim = "W is kept"\nprocess = "child"', replace(OTHER, mismatch=replace(NO_D, entry=None))),
        ('claim = "W is kept"\nlevel = "pmd"', OTHER),
        ('claim = "W is kept"\nlevel = "pud"', replace(OTHER, mismatch=replace(NO_D, entry=None))),
        ('invariant = "bar_pfn"\nlevel = "pmd"', VIOLATED),
        ('invariant = "bar_pfn"\nlevel = "pud"', replace(VIOLATED, entry=None)),
        ('complaint = "warning"\nfunction = "g"', WARNED),
        ('complaint = "warning"\nfunction = "f"', replace(WARNED, functions=())),
        ('complaint = "warning"\ncalled = "f"', WARNED),
        ('taint = ["WARN"]', TAINTED),
        ('end = "program"\nsignal = "SIGSEGV"', KILLED),
        ('end = "hang"', KILLED),
        ('end = "program"\ncomplaint = "oops"', KILLED),
    ],
)
def test_one_different_value_makes_a_symptom_not_match(text: str, failure: Failure) -> None:
    assert not symptom(tomllib.loads(text)).shows_in(failure)


def test_each_problem_is_one_failure() -> None:
    held = Claim("holds", Outcome.PASSED, "")
    unnamed = Claim("", Outcome.FAILED, "", kind=ClaimKind.INVARIANTS)
    waived = replace(VIOLATED, invariant=Invariant.HOLE)
    result = ScenarioResult(
        *("fork", "pud", Outcome.FAILED),
        claims=(held, OTHER, unnamed),
        violations=(VIOLATED, waived),
        waived=((Invariant.HOLE, "mine"),),
        kernel=(KernelTroubles((WARNED,)), KernelTroubles((OOPS, WARNED), Taint.DIE)),
    )
    assert failures_of(result) == [OTHER, VIOLATED, WARNED, OOPS, WARNED, Taint.DIE]
    assert failures_of(replace(result, end=KILLED.end)) == [OTHER, VIOLATED, KILLED, WARNED, OOPS, WARNED, Taint.DIE]
    assert failures_of(replace(result, end=DIED.end)) == [OTHER, VIOLATED, DIED], (
        "other troubles follow from the kernel's death"
    )
    assert failures_of(replace(result, end=DIED.end, kernel=())) == [OTHER, VIOLATED, Ended(DIED.end)]


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
        ('"the rest .*"', '"("', "'claim' of a symptom is .*; expected a regular expression"),
        ('"the rest .*"', "1", "'claim' of a symptom is 1; expected a regular expression"),
        ('claim = "the rest .*"\n', "", "a symptom has subject; expected one of: claim, invariant, oracle, end"),
        (
            'subject = "pres',
            'message = "pres',
            "the unknown key 'message'; expected some of: claim, subject, name, exp",
        ),
        ('subject = "pres', 'function = "pres', "the unknown key 'function'; expected some of: claim, subject"),
        (
            '"presence"',
            '"present"',
            "'subject' of a symptom is 'present'; expected one of: entry, bits, part, presence",
        ),
        (
            'subject = "presence"',
            'level = "p4d"',
            "'level' of a symptom is 'p4d'; expected one of: pte, pmd, pud, none",
        ),
        ('subject = "presence"', 'wrong = "-D"', "'wrong' of a symptom is '-D'; expected a list of names"),
        ('subject = "presence"', 'wrong = ["-DIRTY"]', "'wrong' of a symptom is 'DIRTY'; expected one of: P, R, W, X"),
        (CLAIM, 'invariant = "bar"', "'invariant' of a symptom is 'bar'; expected one of: walkable, special"),
        ('"died"', '"dead"', "'end' of a symptom is 'dead'; expected one of: died, hang, program, boot, assertion"),
        ('"oops"', '"ooops"', "'complaint' of a symptom is 'ooops'; expected one of: oops, kernel-bug"),
        ('complaint = "oops"', "signal = 7", "'signal' of a symptom is 7; expected a text"),
        (CLAIM, 'taint = ["WARM"]', "'taint' of a symptom is 'WARM'; expected one of: PROPRIETARY_MODULE"),
        ("[[bug]]", "[[bug]", "no TOML"),
    ],
)
def test_the_error_about_an_invalid_list_has_a_reason(old: str, new: str, words: str) -> None:
    assert old in ENTRY
    with pytest.raises(UsageError, match=words):
        parse_ledger(ENTRY.replace(old, new))


def test_a_bug_may_need_a_configured_symbol() -> None:
    (bug,) = parse_ledger(ENTRY)
    assert bug.shows({"DEBUG_VM"}.__contains__)
    assert bug.shows(set().__contains__)
    (bug,) = parse_ledger(ENTRY.replace("levels =", 'config = ["DEBUG_VM", "SMP"]\nlevels ='))
    assert bug.shows({"DEBUG_VM", "SMP"}.__contains__)
    assert not bug.shows({"SMP"}.__contains__)


def test_ids_are_unique() -> None:
    with pytest.raises(UsageError, match="two entries HP-1"):
        parse_ledger(ENTRY + ENTRY)


def test_a_bug_may_have_several_scenarios() -> None:
    (bug,) = parse_ledger(ENTRY.replace('"mprotect"', '"mprotect(_part)?"'))
    assert bug.covers("mprotect", "pud")
    assert bug.covers("mprotect_part", "pud")
    assert not bug.covers("mprotect_parts", "pud")
    with pytest.raises(UsageError, match="scenario"):
        parse_ledger(ENTRY.replace('"mprotect"', '"mprotect("'))
