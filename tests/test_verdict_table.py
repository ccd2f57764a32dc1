"""Tests for the table of many runs: the cells, the footnotes and the exit status."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import pytest

from harness.errors import ExitCode
from harness.verdict import Claim, Outcome, Run, ScenarioResult
from harness.verdict.claims import BugFixed, BugReturned, BugSeen
from harness.verdict.table import TROUBLE, Case, Column, Mark, Table, labels

PASSED = ScenarioResult("fork", "pud", Outcome.PASSED)
FIXED = ScenarioResult(
    "fork", "pud", Outcome.PASSED, fixed_bugs=(BugFixed("HP-1", "6.12.9"), BugFixed("HP-2", "6.12.8"))
)
BROKEN = Claim("the child keeps its dirty bit", Outcome.FAILED, "copy_huge_pud()", "D=0")


def result(scenario: str, level: str | None, outcome: Outcome = Outcome.PASSED, reason: str = "") -> ScenarioResult:
    return ScenarioResult(scenario, level, outcome, reason)


def known(*bugs: tuple[str, str]) -> ScenarioResult:
    return ScenarioResult("fork", "pud", Outcome.KNOWN_BUG, "W=0", known_bugs=tuple(BugSeen(*bug) for bug in bugs))


def column(spec: str, *results: ScenarioResult, trouble: str = "") -> Column:
    return Column(spec, (Run(results, {TROUBLE: trouble} if trouble else {}),))


@pytest.mark.parametrize(
    ("one", "word", "note"),
    [
        (PASSED, "pass", ""),
        (FIXED, "pass*", "fixed here: HP-1 (6.12.9 had it), HP-2 (6.12.8 had it)"),
        (result("fork", "pud", Outcome.SKIPPED, "no huge pfnmap"), "skip", "no huge pfnmap"),
        (replace(PASSED, outcome=Outcome.SKIPPED, reason="blind", cannot_know=True), "?", "blind"),
        (result("fork", "pud", Outcome.SKIPPED, "cannot know: so it says"), "skip", "cannot know: so it says"),
        (known(("HP-007", "W is")), "bug HP-007", "known bug HP-007: W is"),
        (known(("HP-1", "a"), ("HP-2", "b")), "bug HP-1, HP-2", "known bug HP-1: a; known bug HP-2: b"),
        (result("fork", "pud", Outcome.ERROR, "QEMU is gone\nargv ..."), "error", "QEMU is gone"),
        (result("fork", "pud", Outcome.FAILED, "killed by SIGBUS"), "FAIL", "killed by SIGBUS"),
        (
            ScenarioResult("fork", "pud", Outcome.FAILED, "", (BROKEN,)),
            "FAIL",
            "1 claim does not hold: the child keeps its dirty bit [copy_huge_pud()]; D=0",
        ),
        (
            ScenarioResult(
                *("fork", "pud", Outcome.FAILED, "", (BROKEN,)),
                returned_bugs=(BugReturned("HP-1", "6.12.118", date(2026, 11, 26)),),
            ),
            "FAIL",
            "1 claim does not hold: the child keeps its dirty bit [copy_huge_pud()]; D=0; "
            "this looks like HP-1, but 6.12.118 was measured without HP-1 on 2026-11-26",
        ),
        (ScenarioResult("fork", "pud", Outcome.PASSED, "", (BROKEN,)), "FAIL", "the child keeps its dirty bit; D=0"),
    ],
)
def test_the_word_of_a_cell(one: ScenarioResult, word: str, note: str) -> None:
    ((cell,),) = Table.of([column("debian:6.12", one)]).cells
    assert (cell.word, cell.note) == (word, note)


def test_a_cell_names_its_bugs() -> None:
    bug = known(("HP-3", "a"), ("HP-4", "b"))
    ((cell,),) = Table.of([column("debian:6.12", FIXED)]).cells
    assert (cell.listed, cell.bugs) == (("HP-1", "HP-2"), frozenset())
    ((cell,),) = Table.of([Column("debian:6.12", (Run((bug,)), Run((PASSED,))))]).cells
    assert (cell.mark, cell.bugs) == (Mark.FLAKE, frozenset({"HP-3", "HP-4"}))


def test_rows_are_those_of_every_kernel_in_the_order_of_the_suite() -> None:
    expected = [Case("fork", "pte"), Case("fork", "pmd"), Case("zap", None)]
    table = Table.of(
        [
            column("a", result("zap", None), result("fork", "pmd"), result("new", "pud"), result("new", "pte")),
            column("b", result("fork", "pte")),
        ],
        expected,
    )
    assert [str(case) for case in table.cases] == ["fork pte", "fork pmd", "zap", "new pte", "new pud"]
    assert [[cell.word for cell in row] for row in table.cells][:2] == [["?", "pass"], ["pass", "?"]]
    assert "cannot know" in table.cells[0][0].note


def test_two_results_with_the_same_name_are_two_rows() -> None:
    table = Table.of([column("a", result("fork", "pte"), result("fork", "pte", Outcome.FAILED, "x"))])
    assert [str(case) for case in table.cases] == ["fork pte", "fork pte (2)"]
    assert [row[0].mark for row in table.cells] == [Mark.PASS, Mark.FAIL]


def test_a_kernel_without_results_is_a_column_of_errors_beside_the_others() -> None:
    table = Table.of([column("a", PASSED), column("b", trouble="the mirror is gone")])
    ((first, second),) = table.cells
    assert (first.mark, second.mark, second.note) == (Mark.PASS, Mark.ERROR, "the mirror is gone")
    assert table.exit_code() is ExitCode.MACHINERY


def test_no_kernel_has_results() -> None:
    table = Table.of([column("b", trouble="no QEMU")], [Case("fork", "pte"), Case("fork", "pmd")])
    assert [[cell.word for cell in row] for row in table.cells] == [["error"], ["error"]]
    assert table.exit_code() is ExitCode.MACHINERY


def test_reasons_are_numbered_once_in_reading_order() -> None:
    skipped = [result("s", level, Outcome.SKIPPED, f"no {level}") for level in ("pmd", "pud")]
    table = Table.of([column("a", *skipped), column("b", *skipped)])
    assert table.notes == {"no pmd": 1, "no pud": 2}
    assert table.counts == {Mark.SKIP: 4}


def test_a_cell_whose_repeats_differ_is_a_flake() -> None:
    failed = result("fork", "pud", Outcome.FAILED, "killed by SIGBUS")
    steady = result("zap", None)
    runs = tuple(Run((one, steady)) for one in (PASSED, failed, PASSED))
    table = Table.of([Column("debian:6.12", runs)])
    ((case, on, cell),) = table.flakes
    assert (str(case), on.spec) == ("fork pud", "debian:6.12")
    assert cell.note == "2 of 3 pass, 1 of 3 FAIL: killed by SIGBUS"
    assert cell.results == (PASSED, failed, PASSED)
    assert table.cells[1][0].mark is Mark.PASS
    assert table.exit_code() is ExitCode.CLAIM_FAILED


def test_repeats_that_differ_only_in_the_known_bug_are_a_flake() -> None:
    one, other = known(("HP-1", "a")), known(("HP-2", "b"))
    ((cell,),) = Table.of([Column("a", (Run((one,)), Run((other,))))]).cells
    assert (cell.mark, cell.note) == (Mark.FLAKE, "1 of 2 bug HP-1, 1 of 2 bug HP-2: known bug HP-1: a")
    ((cell,),) = Table.of([Column("a", (Run((one,)), Run((one,))))]).cells
    assert cell.mark is Mark.BUG
    fixed = replace(FIXED, fixed_bugs=FIXED.fixed_bugs[:1])
    ((cell,),) = Table.of([Column("a", (Run((FIXED,)), Run((fixed,))))]).cells
    assert cell.mark is Mark.FLAKE


def test_a_repeat_that_lost_a_result_is_a_flake_too() -> None:
    table = Table.of([Column("a", (Run((PASSED,)), Run(())))])
    assert table.cells[0][0].note == "1 of 2 pass, 1 of 2 ?: cannot know: the run has no result for it"


@pytest.mark.parametrize(
    ("outcomes", "code", "strict"),
    [
        ([Outcome.PASSED, Outcome.SKIPPED], ExitCode.OK, ExitCode.CLAIM_FAILED),
        ([Outcome.PASSED, Outcome.KNOWN_BUG], ExitCode.OK, ExitCode.OK),
        ([Outcome.ERROR, Outcome.FAILED], ExitCode.CLAIM_FAILED, ExitCode.CLAIM_FAILED),
        ([Outcome.PASSED, Outcome.ERROR], ExitCode.MACHINERY, ExitCode.MACHINERY),
    ],
)
def test_the_exit_status_is_that_of_all_results(outcomes: list[Outcome], code: ExitCode, strict: ExitCode) -> None:
    table = Table.of([column(str(number), result("s", None, one)) for number, one in enumerate(outcomes)])
    assert table.exit_code() is code
    assert table.exit_code(strict=True) is strict


def test_the_json_has_the_table_and_every_run() -> None:
    table = Table.of([column("debian:6.12", PASSED), column("debian:6.1", trouble="gone")])
    data = json.loads(json.dumps(table.to_json()))
    assert (data["schema"], data["version"]) == ("hugepfn-matrix", 2)
    assert [kernel["spec"] for kernel in data["kernels"]] == ["debian:6.12", "debian:6.1"]
    assert Run.from_json(data["kernels"][0]["runs"][0]) == Run((PASSED,))
    (row,) = data["rows"]
    assert (row["scenario"], row["level"]) == ("fork", "pud")
    assert row["cells"][1] == {"mark": "error", "was": None, "bugs": [], "reason": "gone"}


def test_unknown_cases_are_listed_by_scenario() -> None:
    found = [result("zap", "pud"), result("fork", "pud"), result("zap", "pte"), result("fork", "pte")]
    rows = [str(case) for case in Table.of([column("debian:6.1", *found)]).cases]
    assert rows == ["zap pte", "zap pud", "fork pte", "fork pud"]


def test_a_row_has_the_shortest_distinguishing_file_name() -> None:
    alone = Case("alone", "pud", file="/a/test_mine.py")
    ours = Case("mine", "pud")
    first, second = (Case("mine", "pud", file=f"/home/{who}/tests/test_mine.py") for who in "ab")
    assert labels([alone, ours, first, second]) == {
        alone: "alone pud",
        ours: "mine pud",
        first: "mine pud (a/tests/test_mine.py)",
        second: "mine pud (b/tests/test_mine.py)",
    }
