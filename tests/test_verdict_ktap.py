"""Tests for reading KTAP reports: golden reports, small reports, and arbitrary text."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.verdict.ktap import parse as ktap_parse
from harness.verdict.ktap.parse import MAX_DEPTH, KtapOutcome, Report, Test, parse
from harness.verdict.selftest import points

DATA = Path(__file__).parent / "data" / "verdict"
P, F, S, C, T = KtapOutcome.PASSED, KtapOutcome.FAILED, KtapOutcome.SKIPPED, KtapOutcome.CRASHED, KtapOutcome.TODO


def read(name: str) -> Report:
    return parse((DATA / name).read_text())


def tap(*lines: str) -> Report:
    return parse("\n".join(("KTAP version 1", *lines, "")))


def tree(tests: tuple[Test, ...]) -> list[object]:
    """Return (name, outcome) of each test, and the list of its subtests if it has any."""
    return [(t.name, t.outcome, tree(t.subtests)) if t.subtests else (t.name, t.outcome) for t in tests]


def test_kunit() -> None:
    report = read("kunit.ktap")
    assert tree(report.tests) == [
        ("pgtable", F, [("levels", P), ("bits", F), ("devmap", S)]),
        ("walk", P, [("five levels", P)]),
    ]
    assert (report.outcome, report.planned, report.problems) == (F, 2, ())
    bits = report.tests[0].subtests[1]
    assert bits.diagnostics == (
        "bits: EXPECTATION FAILED at mm/pgtable_test.c:31",
        "vfio_pci: a line of the kernel in between",
    )
    assert report.tests[0].subtests[2].reason == "the kernel has no DEVMAP"
    assert report.tests[0].diagnostics == ("pgtable: pass:1 fail:1 skip:1 total:3",)
    assert report.diagnostics == ("reboot: Power down",)


def test_kselftest() -> None:
    report = read("kselftest.ktap")
    assert tree(report.tests) == [
        ("selftests: mm: mkdirty", P, [("PTRACE write access", P), ("", S), ("migration", T)]),
        ("selftests: mm: soft-dirty", S),
        ("selftests: mm: hung", F),
    ]
    assert report.tests[0].subtests[0].diagnostics == ("[INFO] detected THP size: 2048 KiB",)
    assert report.tests[0].subtests[1].reason == "no userfaultfd in this kernel"
    assert "Totals: pass:1 fail:0 xfail:1 xpass:0 skip:1 error:0" in report.tests[0].diagnostics
    assert report.tests[2].reason == "TIMEOUT 45 seconds"
    assert report.outcome is F


def test_crash_in_the_middle() -> None:
    report = read("crashed_midway.ktap")
    assert tree(report.tests) == [("pte", P), ("pmd", P), ("selftests: mm: pud", C, [("parent", P)])]
    assert report.tests[2].subtests[0].diagnostics == ("parent: PUD W=1 D=1 SPECIAL",)
    assert report.outcome is C
    assert any("2 of 4 planned tests never reported: 3, 4" in problem for problem in report.problems)
    assert any("1 of 2 planned tests never reported: 2" in problem for problem in report.problems)


@pytest.mark.parametrize("version", ["KTAP version 1", "TAP version 13", "TAP version 14"])
def test_versions(version: str) -> None:
    report = parse(f"SeaBIOS (version 1.16)\n{version}\r\n1..1\r\nok 1 - a\r\n")
    assert report == Report((Test("a", P, number=1),), 1, (), P)
    assert report.passed


@pytest.mark.parametrize(
    ("lines", "outcome", "problem"),
    [
        (["1..1", "ok 1 a"], P, ""),
        (["ok 1 a", "ok 2 b", "1..2"], P, ""),
        (["1..2", "ok 1 a", "not ok 2 b"], F, ""),
        (["1..2", "ok 1 a"], C, "1 of 2 planned tests never reported: 2"),
        (["1..2"], C, "2 of 2 planned tests never reported: 1, 2"),
        (["1..999999999"], C, "never reported: 1, 2, 3, 4, 5, ..."),
        (["1..2", "not ok 1 a"], C, "never reported"),
        ([], C, "no plan"),
        (["ok 1 a"], C, "no plan"),
        (["not ok 1 a"], F, "no plan"),
        (["1..1", "ok 1 a", "ok 2 b"], F, "more tests than the 1"),
        (["1..0", "ok 1 a"], F, "more tests than the 0"),
        (["1..2", "ok 2 b", "ok 1 a"], P, "test number 2; expected 1"),
        (["1..2", "ok 1 a", "ok 1 a"], C, "test number 1 again"),
        (["1..2", "ok 1 a", "ok 2 b", "ok 2 b"], F, "test number 2 again"),
        (["1..1", "1..1", "ok 1 a"], P, "a second plan"),
        (["1..1", "1..2", "ok 1 a"], F, "a second plan"),
        (["1..1", "ok 1 a", "KTAP version 1"], P, "a second version line"),
        (["1..1", "ok 1 a", "KTAP version 1", "1..1", "not ok 1 b"], F, "a second version line"),
        (["1..2", "ok 1 a", "Bail out! no BAR"], C, "Bail out! no BAR"),
        (["1..1", "ok 1 a", "Bail out!"], F, "Bail out!"),
        (["1..1", "ok 1 a # SKIP no vfio"], S, ""),
        (["1..1", "not ok 1 a # SKIP no vfio"], S, ""),
        (["1..2", "ok 1 a # SKIP no vfio", "ok 2 b"], P, ""),
        (["1..0 # SKIP no vfio"], S, ""),
        (["1..0"], S, ""),
        (["1..1", "not ok 1 a # TODO later"], T, ""),
        (["1..1", "ok 1 a # TODO later"], P, ""),
        (["1..2", "ok 1 a # XFAIL known", "ok 2 b"], P, ""),
        (["1..1", "okay 1 a"], C, "never reported"),
        (["1..1", "ok 1a"], C, "never reported"),
        (["1..1", "ok - a"], C, "never reported"),
        (["1..1", "ok 9999999999999999999999 a"], C, "never reported"),
        (["1..1", "[    1.000000] ok 1 a"], C, "never reported"),
        (["1..1", "  ok 1 a"], C, "never reported"),
    ],
)
def test_complete_reports(lines: list[str], outcome: KtapOutcome, problem: str) -> None:
    report = tap(*lines)
    assert report.outcome is outcome
    assert any(problem in one for one in report.problems) if problem else report.problems == ()
    assert report.passed is (outcome is P)


@pytest.mark.parametrize("text", ["", "\n", "1..1\nok 1 a\n", "not a KTAP version 1\n1..1\nok 1 a\n"])
def test_without_a_version_line_nothing_was_reported(text: str) -> None:
    report = parse(text)
    assert (report.outcome, report.tests, report.planned) == (C, (), None)
    assert "no KTAP or TAP version line" in report.problems[0]


def test_an_unknown_version_is_read_and_noted() -> None:
    report = parse("KTAP version 7\n1..1\nok 1 a\n")
    assert report.passed
    assert "does not know" in report.problems[0]


@pytest.mark.parametrize(
    ("line", "name", "outcome", "reason"),
    [
        ("ok 1", "", P, ""),
        ("ok 1 -", "", P, ""),
        ("ok 1 a name", "a name", P, ""),
        ("ok 1 - a name", "a name", P, ""),
        ("ok 1 - a # skip lower case", "a", S, "lower case"),
        ("ok 1 a # SKIP", "a", S, ""),
        ("ok 1 # SKIP no name", "", S, "no name"),
        ("ok 1 a # SKIPPING is no directive", "a", P, "SKIPPING is no directive"),
        ("not ok 1 a # TIMEOUT 45 seconds", "a", F, "TIMEOUT 45 seconds"),
        ("not ok 1 a # ERROR open: ENOENT", "a", F, "ERROR open: ENOENT"),
        ("not ok 1 a # exit=1", "a", F, "exit=1"),
        ("ok 1 a # rcode=0", "a", P, "rcode=0"),
        ("ok 1 C# and \\# stay", "C# and # stay", P, ""),
        ("ok 1 a # XFAIL b # SKIP c", "a", T, "b # SKIP c"),
    ],
)
def test_result_lines(line: str, name: str, outcome: KtapOutcome, reason: str) -> None:
    (test,) = tap("1..1", line).tests
    assert (test.name, test.outcome, test.reason) == (name, outcome, reason)


def test_skip_reasons_of_a_report() -> None:
    assert tap("1..0 # SKIP no vfio").reason == "no vfio"
    assert tap("1..3", "ok 1 a # SKIP x", "ok 2 b # SKIP y", "ok 3 c # SKIP x").reason == "x; y"


@pytest.mark.parametrize(
    ("inner", "verdict", "outcome"),
    [
        (["1..1", "ok 1 x"], "ok", P),
        (["1..1", "not ok 1 x"], "ok", F),
        (["1..2", "ok 1 x"], "ok", C),
        (["1..2", "ok 1 x"], "not ok", C),
        (["1..1", "not ok 1 x # TODO"], "ok", P),
        (["1..1", "ok 1 x # SKIP why"], "ok", S),
        (["1..1", "ok 1 x", "Bail out! gone"], "ok", F),
        (["ok 1 x"], "ok", P),
        (["1..1", "ok 1 x"], "not ok", F),
        (["1..1", "not ok 1 x"], "not ok # TODO", T),
        (["1..2", "ok 1 x"], "not ok # TODO", C),
    ],
)
@pytest.mark.parametrize("indent", ["  ", "    ", "\t", "\t\t", " \t", "# "])
def test_a_test_is_no_better_than_its_subtests(
    inner: list[str], verdict: str, outcome: KtapOutcome, indent: str
) -> None:
    verdict, _, directive = verdict.partition(" # ")
    result = f"{verdict} 1 a" + (f" # {directive}" if directive else "")
    report = tap("1..1", *(indent + line for line in ["KTAP version 1", *inner]), result)
    (test,) = report.tests
    assert test.outcome is outcome
    assert report.outcome is outcome
    assert [one.name for one in test.subtests] == ["x"]


def test_a_skipped_test_may_leave_its_plan_unfinished() -> None:
    report = tap("1..1", "# TAP version 13", "# 1..4", "# ok 1 # SKIP no vfio", "ok 1 a # SKIP")
    assert report.outcome is S


@pytest.mark.parametrize("indent", ["    ", "\t"])
def test_old_kunit_without_inner_version_lines(indent: str) -> None:
    report = tap("1..1", f"{indent}# Subtest: suite", f"{indent}1..1", f"{indent}ok 1 - x", "ok 1 - suite")
    assert tree(report.tests) == [("suite", P, [("x", P)])]


@pytest.mark.parametrize("indent", ["  ", "\t"])
def test_a_plan_alone_opens_a_level(indent: str) -> None:
    report = tap("1..1", f"{indent}1..2", f"{indent}ok 1 x", f"{indent}not ok 2 y", "ok 1 a")
    assert tree(report.tests) == [("a", F, [("x", P), ("y", F)])]
    deeper = tap("1..1", f"{indent}1..1", f"{indent * 2}1..1", f"{indent * 2}not ok 1 y", f"{indent}ok 1 x", "ok 1 a")
    assert tree(deeper.tests) == [("a", F, [("x", F, [("y", F)])])]
    skipped = tap("1..1", f"{indent}1..0 # SKIP no vfio", "ok 1 a # SKIP")
    assert skipped.outcome is S


def test_a_plan_at_an_indentation_between_two_levels_belongs_to_neither() -> None:
    lines = ["\t# Subtest: s", "\t1..1", "\t\t# Subtest: t", "\t\t1..1", "\t 1..5", "\t\tok 1 x", "\tok 1 t", "ok 1 s"]
    report = tap("1..1", *lines)
    assert tree(report.tests) == [("s", P, [("t", P, [("x", P)])])]


def test_plans_alone_nest_no_deeper_than_the_limit() -> None:
    report = tap("1..1", *(" " * depth + "1..1" for depth in range(1, 500)), "ok 1 a")
    depth, tests = 0, report.tests
    while tests:
        depth, tests = depth + 1, tests[0].subtests
    assert 1 < depth <= MAX_DEPTH


_ABSENT = re.compile(r"(\d+) of \d+ planned tests.* never reported")


def kunit_counts(report: Report) -> dict[KtapOutcome, int]:
    """Count as kunit does (tools/testing/kunit/kunit_parser.py).

    That is: tests without subtests; a test that failed although its subtests passed; and each planned test that never
    reported as a crash, apart from one whose subtests did.
    """
    found = Counter(point.outcome for point in points(report) if point.outcome is not C)
    absent = sum(int(match[1]) for problem in report.problems if (match := _ABSENT.match(problem)))
    crashed = absent - cut_off(report.tests)
    return {**found, **({C: crashed} if crashed else {})}


def cut_off(tests: tuple[Test, ...]) -> int:
    """The number of tests that never reported, but some of their subtests did."""
    here = sum(test.outcome is C and not test.number and bool(test.subtests) for test in tests)
    return here + sum(cut_off(test.subtests) for test in tests)


#: What kunit of Linux 7.3 counts in each case, and our outcome: without a plan, nothing passes.
KUNIT_COUNTS: dict[str, tuple[dict[KtapOutcome, int], KtapOutcome]] = {
    "all_passed_nested": ({P: 4}, P),
    "all_skipped": ({S: 3}, S),
    "attributes": ({P: 1}, P),
    "failure": ({P: 2, F: 1}, F),
    "failure_nested": ({P: 1, F: 2}, F),
    "failure_nested_tabs": ({P: 1, F: 2}, F),
    "interrupted": ({P: 4}, P),
    "isolated": ({P: 2}, P),
    "multiple_prefixes": ({P: 1, F: 1}, F),
    "nested": ({P: 5}, P),
    "no_memory": ({}, C),
    "no_plan": ({P: 2}, C),
    "no_tests": ({}, S),
    "no_tests_no_plan": ({P: 1}, P),
    "no_version": ({}, C),
    "panic": ({P: 3, C: 2}, C),
    "panic_early": ({P: 2, F: 1, C: 4}, C),
    "pound_signs": ({P: 3}, P),
    "printk_caller": ({P: 3}, P),
    "printk_time": ({P: 4}, P),
    "skipped": ({P: 2, S: 1}, P),
    "strip_hyphen": ({P: 2}, P),
    "subtest_header": ({P: 1}, P),
}
#: What it counts of kselftest's runner, whose programs' own tests it takes for comments. We read those as well.
KSELFTEST_COUNTS = {"kselftest": {P: 2, S: 1}, "kselftest_failure": {P: 1, F: 1}}


def test_every_case_of_kunit_has_its_counts() -> None:
    cases = {path.stem for path in (DATA / "kunit_cases").glob("*.ktap")}
    assert cases == KUNIT_COUNTS.keys() | KSELFTEST_COUNTS.keys()


@pytest.mark.parametrize("name", KUNIT_COUNTS)
def test_the_cases_of_kunit_give_its_counts(name: str) -> None:
    report = read(f"kunit_cases/{name}.ktap")
    assert (kunit_counts(report), report.outcome) == KUNIT_COUNTS[name]
    assert not any(line.strip().startswith(("ok ", "not ok ")) for line in report.diagnostics)


@pytest.mark.parametrize("name", KSELFTEST_COUNTS)
def test_the_programs_of_kselftest_give_its_counts(name: str) -> None:
    report = read(f"kunit_cases/{name}.ktap")
    assert Counter(test.outcome for test in report.tests) == KSELFTEST_COUNTS[name]
    assert sum(len(test.subtests) for test in report.tests) == {"kselftest": 3, "kselftest_failure": 2}[name]


def test_a_result_at_the_level_of_its_plan_after_deeper_ones_is_not_lost() -> None:
    report = tap("1..1", "  KTAP version 1", "  1..1", "    ok 1 a", "  not ok 1 a", "ok 1 s")
    assert report.outcome is F
    report = tap("1..1", "  KTAP version 1", "  1..2", "  ok 1 a", "    not ok 2 b", "ok 1 s")
    assert report.outcome is C, "what a test prints is no result"


def test_three_levels() -> None:
    report = tap(
        "1..1", "  KTAP version 1", "  1..1", "    KTAP version 1", "    1..1", "    not ok 1 x", "  ok 1 b", "ok 1 a"
    )
    assert tree(report.tests) == [("a", F, [("b", F, [("x", F)])])]


def test_the_result_of_a_middle_level_is_lost() -> None:
    report = tap("1..1", "  KTAP version 1", "  1..1", "    KTAP version 1", "    1..1", "    ok 1 x", "ok 1 a")
    assert tree(report.tests) == [("a", C, [("", C, [("x", P)])])]


def test_the_next_suite_starts_before_the_result_of_the_last_one() -> None:
    report = tap(
        "1..2", "  KTAP version 1", "  # Subtest: one", "  1..1", "  ok 1 x", "  KTAP version 1", "  1..1", "  ok 1 y",
        "ok 2 two",
    )  # fmt: skip
    assert tree(report.tests) == [("one", C, [("x", P)]), ("two", P, [("y", P)])]
    assert report.outcome is C


def test_a_suite_that_never_ended() -> None:
    report = tap("1..1", "  KTAP version 1", "  # Subtest: suite", "  1..2", "  ok 1 x", "  # y: about to map")
    assert tree(report.tests) == [("suite", C, [("x", P), ("", C)])]
    assert report.tests[0].subtests[1].diagnostics == ("y: about to map",)


def test_a_result_outside_an_indented_report_is_not_lost() -> None:
    report = parse("    KTAP version 1\n    1..1\n    ok 1 a\nnot ok 1 suite\n")
    assert report.outcome is F
    assert "a result outside the report: not ok 1 suite" in report.problems[0]
    report = parse("    KTAP version 1\n    1..1\n    ok 1 a\nKTAP version 1\n1..1\nnot ok 1 b\n")
    assert report.outcome is F


def test_deep_nesting_is_cut_off() -> None:
    lines = ["# " * depth + "KTAP version 1" for depth in range(1, 500)]
    report = tap("1..1", *lines, "ok 1 a")
    depth, tests = 0, report.tests
    while tests:
        depth, tests = depth + 1, tests[0].subtests
    assert 1 < depth <= MAX_DEPTH
    assert repr(report)


words = st.sampled_from(
    [
        "KTAP version 1", "TAP version 13", "1..1", "1..2", "1..0 # SKIP x", "ok 1 a", "ok 2 b", "not ok 1 a",
        "not ok 2 # TODO", "ok 1 # SKIP y", "Bail out!", "# note", "# Subtest: s", "# selftests: mm: p", "noise", "",
        "[    1.000000] vfio: hello",
    ]
)  # fmt: skip
lines_of_ktap = st.builds(
    lambda indent, word: indent + word, st.sampled_from(["", "  ", "    ", "\t", "# ", "# # "]), words
)
reports = st.lists(lines_of_ktap, max_size=25).map("\n".join)


@given(reports | st.text())
@example("KTAP version 1\n1..1\nok 1 a")
def test_a_report_passes_only_with_a_fulfilled_plan(text: str) -> None:
    report = parse(text)
    if report.passed:
        assert re.search(r"K?TAP version \d", text)
        assert report.planned is not None
        assert {test.number for test in report.tests} == set(range(1, report.planned + 1))
        assert all(test.outcome in (P, S, T) for test in report.tests)
    elif report.outcome is S:
        assert report.planned is not None
        assert all(test.outcome is S for test in report.tests)


@given(reports)
def test_a_failed_result_of_the_outermost_level_is_never_forgotten(text: str) -> None:
    text = f"KTAP version 1\n{text}\nnot ok 7 z"
    assert parse(text).outcome in (F, C)


@pytest.mark.parametrize("name", ["kunit.ktap", "kselftest.ktap"])
def test_a_truncated_report_never_passes(name: str) -> None:
    text = (DATA / name).read_text().replace("not ok", "ok")
    last = text.rindex("ok ")
    assert all(parse(text[:end]).outcome in (F, C) for end in range(last))


def test_the_complete_report_passes() -> None:
    assert parse((DATA / "kunit.ktap").read_text().replace("not ok", "ok")).passed


def test_a_problem_names_its_line() -> None:
    report = tap("1..3", "ok 1 a", "# x", "ok 1 a", "ok 3 b")
    assert report.problems[:2] == ("line 5: test number 1 again", "line 6: test number 3; expected 2")
    assert report.outcome is C


def test_a_test_with_only_skipped_subtests_has_their_reasons() -> None:
    report = tap(
        "1..1", "  KTAP version 1", "  1..3", *(f"  ok {n} x # SKIP {why}" for n, why in enumerate("aba", 1)), "ok 1 t"
    )
    (test,) = report.tests
    assert (test.outcome, test.reason) == (S, "a; b")


def test_a_line_without_a_time_is_no_result_of_a_report_that_has_times() -> None:
    """kunit prints with printk(), so a line without a time was printed by a program."""
    lines = ["[    1.0] KTAP version 1", "[    1.1] 1..1", "not ok 1 a", "KTAP version 1", "[    1.2] ok 1 a"]
    report = parse("\n".join(lines) + "\n")
    assert [(test.name, test.outcome) for test in report.tests] == [("a", KtapOutcome.PASSED)]
    assert report.problems == ()


def test_a_version_line_is_not_output_of_the_next_test() -> None:
    report = tap("1..1", "    KTAP version 1", "    1..1", "    not ok 1 x", "not ok 1 a")
    assert report.tests[0].subtests[0].diagnostics == ()


# --- more than any kernel's test prints ------------------------------------------------------------

FEW = {"MAX_RESULTS": 10, "MAX_LINES": 40, "MAX_DIAGNOSTICS": 5, "MAX_PROBLEMS": 3}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FEW.items():
        monkeypatch.setattr(ktap_parse, name, value)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("ok 1", "line 12: more than 10 results and plans; what follows was not read"),
        ("1..1", "line 12: more than 10 results and plans; what follows was not read"),
        ("    KTAP version 1", "line 12: more than 10 results and plans; what follows was not read"),
        ("  # Subtest: a", "line 12: more than 10 results and plans; what follows was not read"),
        ("# a diagnostic", "line 41: more than 40 lines; what follows was not read"),
        ("", "line 41: more than 40 lines; what follows was not read"),
    ],
)
def test_a_report_without_end_does_not_pass_and_says_why(line: str, cause: str) -> None:
    report = parse("KTAP version 1\n" + f"{line}\n" * 1000)
    assert report.problems[0] == cause
    assert len(report.problems) <= FEW["MAX_PROBLEMS"]
    assert not report.passed


@pytest.mark.usefixtures("few")
def test_results_that_are_deeper_than_their_plan_count_as_well() -> None:
    report = parse("KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n" + "    ok 1\n" * 30)
    assert report.problems[0] == "line 12: more than 10 results and plans; what follows was not read"


@pytest.mark.usefixtures("few")
def test_a_report_of_the_allowed_length_is_read_whole() -> None:
    report = parse("KTAP version 1\n1..9\n" + "".join(f"ok {number}\n" for number in range(1, 10)))
    assert (report.passed, len(report.tests), report.problems) == (True, 9, ())
    report = parse("KTAP version 1\n1..1\n" + "# a\n" * 5 + "\n" * 32 + "ok 1\n")
    assert (report.passed, report.problems) == (True, ())


@pytest.mark.usefixtures("few")
def test_diagnostics_beyond_the_limit_are_counted_and_change_no_verdict() -> None:
    report = parse("KTAP version 1\n1..1\n" + "# noise\n" * 20 + "ok 1\n")
    assert report.passed
    assert report.tests[0].diagnostics == ("noise",) * 5
    assert report.problems == ("15 further lines of diagnostics were not kept",)
