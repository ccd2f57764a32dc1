"""The candidate patches: which bugs have one, and how their effects are told. ``make fixes`` builds and runs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.selection.tests import facts_of, ledger_of
from harness.verdict import Claim, Outcome, Run, ScenarioResult
from harness.verdict.claims import BugSeen
from harness.verdict.seen import version_key
from harness.verdict.series import changes
from harness.verdict.table import Column, Table
from tests.fixes.measure import FIXES, PAGE, Effect, Fix, fixes
from tests.marked_page import replaced

GUEST_TESTS = FIXES.parent / "guest_tests"
SERIES = sorted(path.name for path in FIXES.iterdir())
PATCHES = sorted(FIXES.glob("*/*.patch"))


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_patch_is_a_mail_for_a_known_bug(path: Path) -> None:
    fix = Fix(path)
    assert fix.bug in {bug.id for bug in ledger_of(GUEST_TESTS)}
    assert re.match(r"[A-Za-z/_0-9]+: .{10,}", fix.subject)
    assert len(f"[PATCH] {fix.subject}") <= 80
    head = path.read_text().partition("\n---\n")[0]
    assert max(map(len, head.splitlines())) <= 80


def test_each_bug_of_the_newest_kernel_has_a_patch_or_a_word_about_it() -> None:
    facts = facts_of(GUEST_TESTS)
    newest = max(facts.kernels, key=version_key)
    text = PAGE.read_text().partition("<!-- fixes-")[0]
    for bug in ledger_of(GUEST_TESTS):
        if newest in facts.of(bug.id).present:
            assert (FIXES / SERIES[-1] / f"{bug.id}.patch").is_file() or f"`{bug.id}`" in text, bug.id


def test_the_patches_come_in_the_order_of_the_bugs() -> None:
    for series in SERIES:
        names = [fix.bug for fix in fixes(series)]
        assert names == sorted(names)
        assert names


def _column(name: str, *results: ScenarioResult) -> Column:
    return Column(name, (Run(results, {"kernel": {"spec": name}}),))


def _case(scenario: str, *bugs: str, broken: str = "") -> ScenarioResult:
    claims = (Claim(broken, Outcome.FAILED, ""),) if broken else ()
    outcome = Outcome.KNOWN_BUG if bugs else Outcome.FAILED if broken else Outcome.PASSED
    return ScenarioResult(scenario, "pud", outcome, "", claims, known_bugs=tuple(BugSeen(bug, "") for bug in bugs))


def test_the_effect_of_a_patch_is_what_changes_at_its_step() -> None:
    fix = Fix(FIXES / "7.3" / "HP-003.patch")
    before = _column("base", _case("mremap", "HP-003"), _case("other", "HP-003"), _case("fork"), _case("munmap"))
    after = _column(
        "HP-003", _case("mremap"), _case("other", "HP-003"), _case("fork", broken="W is kept"), _case("munmap")
    )
    table = Table.of([before, after])
    effect = Effect.of(fix, 1, table, changes(table))
    assert effect.mended == {"HP-003": 1}
    assert effect.left == 1
    assert effect.other == ("fork pud: pass → FAIL",)
    assert effect.row().startswith("| HP-003 | mm/mremap: do not take a pud leaf for a bad pud | HP-003 (1) | 1 | fork")


def test_what_is_measured_replaces_the_section_of_its_series_only() -> None:
    page = PAGE.read_text()
    for series in SERIES:
        after = replaced(page, f"fixes-{series}", "measured\n")
        assert f"<!-- fixes-{series}:begin -->\nmeasured\n<!-- fixes-{series}:end -->" in after
        for other in set(SERIES) - {series}:
            begin, end = (f"<!-- fixes-{other}:{what} -->" for what in ("begin", "end"))
            assert after.partition(begin)[2].partition(end)[0] == page.partition(begin)[2].partition(end)[0]
