"""Tests for results of the kernel's selftests: the names of their points, and the verdict on each program."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.verdict.ktap.parse import KtapOutcome, parse
from harness.verdict.selftest import Point, judge, points

DATA = Path(__file__).parent / "data" / "verdict"
P, F, S, C, T = KtapOutcome.PASSED, KtapOutcome.FAILED, KtapOutcome.SKIPPED, KtapOutcome.CRASHED, KtapOutcome.TODO


def of(*lines: str) -> list[Point]:
    return points(parse("\n".join(lines), headless=True))


def test_a_program_without_a_version_line_is_read() -> None:
    text = (DATA / "mremap_test_6_12.ktap").read_text()
    report = parse(text, headless=True)
    found = points(report)
    assert (len(found), report.planned, report.outcome) == (19, 19, F)
    assert [point.outcome for point in found] == [T] * 3 + [P] * 6 + [F] * 4 + [P] * 6
    assert found[0].name == "mremap - Source and Destination Regions Overlapping", "the name is the text after XFAIL"
    assert found[9].lines == ("\tmremap time:       150766ns", "Failed to map source region: Cannot allocate memory")
    assert judge(report, 1, "exit status 1").reason == "4 of 19 points failed; exit status 1"
    assert parse(text).outcome is C, "our own programs must print the version line"


def test_the_harness_with_skips_and_assertions() -> None:
    report = parse((DATA / "vfio_dma_mapping_7_3.ktap").read_text(), headless=True)
    found = points(report)
    assert [point.outcome for point in found].count(F) == 9
    assert found[0] == Point("vfio_dma_mapping_test.vfio_type1_iommu_anonymous.dma_map_unmap", P, "", found[0].lines)
    assert "  open(/dev/iommu) failed" in found[2].lines
    assert (found[5].outcome, found[5].reason) == (S, "mmap() failed: Cannot allocate memory (12)")
    assert judge(report, 1, "exit status 1").outcome is F


def test_points_with_the_same_name_are_distinguished() -> None:
    found = of("TAP version 13", "1..4", "# [RUN] a", "ok 1 x", "# [INFO] b", "ok 2 x", "ok 3 x", "ok 4 y")
    assert [point.name for point in found] == ["a: x", "b: x", "b: x (2)", "y"]
    assert [point.name for point in of("1..2", "ok 1 x", "ok 2 x")] == ["x", "x (2)"]
    assert [point.name for point in of("1..1", "ok 1")] == ["test 1"]


def test_only_innermost_points_count() -> None:
    found = of("TAP version 13", "1..1", "  TAP version 13", "  1..2", "  ok 1 a", "  not ok 2 b", "not ok 1 outer")
    assert [(point.name, point.outcome) for point in found] == [("outer / a", P), ("outer / b", F)]
    found = of("TAP version 13", "1..1", "  TAP version 13", "  1..1", "  ok 1 a", "not ok 1 outer # exit=1")
    assert [(point.name, point.outcome) for point in found] == [("outer / a", P), ("outer", F)]


HEAD = ("TAP version 13", "1..2")


@pytest.mark.parametrize(
    ("lines", "status", "outcome", "reason"),
    [
        ((*HEAD, "ok 1 a", "ok 2 b"), 0, P, ""),
        ((*HEAD, "ok 1 a", "not ok 2 b"), 1, F, "1 of 2 points failed; exit status 1"),
        ((*HEAD, "ok 1 a", "not ok 2 b"), 0, F, "1 of 2 points failed"),
        ((*HEAD, "ok 1 a", "ok 2 b"), 1, F, "exit status 1"),
        ((*HEAD, "ok 1 a", "not ok 2 b # TODO later"), 0, P, ""),
        ((*HEAD, "ok 1 # XFAIL a", "ok 2 # XFAIL b"), 2, T, "b"),
        ((*HEAD, "ok 1 a", "ok 2 b"), 2, T, "exit status 2"),
        ((*HEAD, "ok 1 a", "ok 2 b"), 3, P, ""),
        ((*HEAD, "ok 1 # SKIP no a", "ok 2 # SKIP no b"), 4, S, "no a; no b"),
        (("TAP version 13", "1..0 # SKIP no THP"), 4, S, "no THP"),
        ((*HEAD, "ok 1 a", "ok 2 # SKIP no b"), 0, P, ""),
        (
            ("TAP version 13", "1..9", "ok 1 a", "ok 2 # SKIP the rest"),
            4,
            S,
            "the rest",
        ),  # ksft_exit_skip() in the middle of the test
        (("TAP version 13", "1..9", "not ok 1 a", "ok 2 # SKIP the rest"), 4, F, "1 of 2 points failed"),
        ((*HEAD, "ok 1 a"), 0, F, "line 3: 1 of 2 planned tests never reported: 2"),
        ((*HEAD, "ok 1 a"), None, F, "killed"),
        (("TAP version 13", "ok 1 a"), 0, F, "no plan, so tests may be missing"),
        (("TAP version 13",), 0, F, "no plan, so tests may be missing"),
        ((*HEAD, "ok 1 a", "Bail out! no memory"), 1, F, "Bail out! no memory"),
        (("it works",), 0, P, "by its exit status; it reports no test points"),
        (("no such thing",), 4, S, "no such thing"),
        (("it is broken",), 1, F, "exit status 1"),
        ((), None, F, "killed"),
    ],
)
def test_the_verdict_follows_from_report_and_exit_status(
    lines: tuple[str, ...], status: int | None, outcome: KtapOutcome, reason: str
) -> None:
    report = parse("\n".join(lines), headless=True)
    ended = "killed" if status is None else f"exit status {status}"
    judgement = judge(report, status, ended, lines[-1] if lines else "")
    assert judgement.outcome is outcome, judgement
    assert reason.removeprefix("line 3: ") in judgement.reason if reason else judgement.reason == ""


def test_the_kernel_s_complaint_fails_a_program_that_passed() -> None:
    report = parse("TAP version 13\n1..1\nok 1 a")
    judgement = judge(report, 0, "exit status 0", "", ["the kernel log: WARNING: mm/memory.c:1"])
    assert (judgement.outcome, judgement.reason) == (F, "the kernel log: WARNING: mm/memory.c:1")


def test_a_skip_after_a_failed_point_does_not_excuse_missing_points() -> None:
    report = parse("TAP version 13\n1..4\nnot ok 1 a\nok 2 # SKIP the rest", headless=True)
    assert judge(report, 4, "exit status 4").reason == f"1 of 2 points failed; {report.problems[0]}"
    assert "2 of 4 planned tests never reported: 3, 4" in report.problems[0]
    report = parse("TAP version 13\n1..4\nok 1 a\nok 2 # SKIP the rest", headless=True)
    assert judge(report, 4, "exit status 4").reason == "the rest"
