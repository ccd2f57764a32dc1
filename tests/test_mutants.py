"""Tests for reading mutants and for the verdict on a mutant's run. ``make mutants`` builds and runs them."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from harness.campaign.scenarios import scenario_lines
from harness.verdict import Claim, Outcome, Run, ScenarioResult
from harness.verdict.invariants import Invariant, Violation
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.troubles import End, EndKind, KernelComplaint, KernelTroubles
from harness.verdict.table import TROUBLE


def _load() -> ModuleType:
    path = Path(__file__).parent / "mutants" / "kill.py"
    spec = importlib.util.spec_from_file_location("kill", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill"] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


kill = _load()
WARNS = '{complaint = "warning"}'
HEAD = f"fork() loses W.\n\nKilled-by: fork:pud: W is kept\nKilled-by: race:: {WARNS}\n---\ndiff\n"


@pytest.fixture
def mutant(tmp_path: Path) -> Any:
    path = tmp_path / "fork-pud.patch"
    path.write_text(HEAD)
    return kill.Mutant.read(path)


def result(scenario: str, level: str | None, outcome: Outcome, claim: str = "", message: str = "") -> ScenarioResult:
    claims = (Claim(claim, outcome, "", message),) if claim else ()
    return ScenarioResult(scenario, level, outcome, "", claims)


W_LOST = result("fork", "pud", Outcome.FAILED, "W is kept")
WARNED = ScenarioResult(
    *("race", None, Outcome.FAILED),
    kernel=(KernelTroubles((KernelComplaint(ComplaintKind.WARNING, "WARNING: mm/memory.c:1", ("f", "g")),)),),
)
BUG = KernelComplaint(ComplaintKind.BUG, "BUG: mm")


def test_every_mutant_names_scenarios_that_exist() -> None:
    levels = {line.name: line.levels.split() for line in scenario_lines()}
    for mutant in kill.mutants():
        for killer in mutant.killers:
            assert killer.scenario in levels, mutant.path.name
            assert killer.symptom
            assert killer.level in levels[killer.scenario] or (killer.level is None and not levels[killer.scenario])


def test_a_head_is_read(mutant: Any) -> None:
    assert mutant.what == "fork() loses W."
    assert mutant.killers == (
        kill.Killer("fork", "pud", "W is kept"),
        kill.Killer("race", None, WARNS),
    )


def test_a_mutant_is_built_with_the_fragments_that_it_names(
    mutant: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert mutant.kernel("debsrc:6.12") == f"debsrc:6.12+{mutant.path}"
    built: list[tuple[Any, ...]] = []

    def build(*recipe: Any) -> Any:
        built.append(recipe)
        return SimpleNamespace(image=tmp_path / "vmlinux")

    monkeypatch.setattr(kill, "build_shown", build)
    mutant.path.write_text(HEAD.replace("---\n", "Fragment: faultinject\n---\n"))
    again = kill.Mutant.read(mutant.path)
    assert again.kernel("debsrc:6.12") == str(tmp_path / "vmlinux")
    assert built == [("debsrc:6.12", (mutant.path,), ("faultinject",), "tiny", False, "gcc", False)]


def test_a_patch_without_killed_by_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.patch"
    path.write_text("breaks something\n---\ndiff\n")
    with pytest.raises(ValueError, match="Killed-by"):
        kill.Mutant.read(path)


@pytest.mark.parametrize(
    ("results", "what"),
    [
        ([W_LOST, WARNED], "killed"),
        ([W_LOST], "killed by another"),
        ([result("fork", "pud", Outcome.FAILED, "D is kept"), WARNED], "killed by another"),
        ([result("fork", "pmd", Outcome.FAILED, "W is kept"), WARNED], "killed by another"),
        ([result("fork", "pud", Outcome.PASSED, "W is kept"), result("race", None, Outcome.PASSED)], "survived"),
        ([result("fork", "pud", Outcome.SKIPPED)], "survived"),
        ([W_LOST, replace(WARNED, kernel=(), reason="the kernel log: WARNING: mm/memory.c:1")], "killed by another"),
        ([W_LOST, replace(WARNED, end=End(EndKind.DIED))], "killed by another"),
        ([W_LOST, replace(WARNED, kernel=(KernelTroubles((BUG,)),))], "killed by another"),
    ],
)
def test_the_verdict_on_a_mutant(mutant: Any, results: list[ScenarioResult], what: str) -> None:
    assert kill.verdict(mutant, Run(tuple(results)))[0] == what


def test_an_invariant_is_named_by_its_id() -> None:
    violation = Violation(Invariant.SHADOW_STACK, "forked", "child", "bar", "D=1")
    failed = ScenarioResult("fork", "pud", Outcome.FAILED, violations=(violation,))
    killer = kill.Killer("fork", "pud", '{invariant = "shadow_stack"}')
    assert killer.kills(failed)
    assert not killer.kills(replace(failed, waived=((Invariant.SHADOW_STACK, "mine"),)))
    assert not killer.kills(replace(failed, violations=(replace(violation, invariant=Invariant.HOLE),)))


def test_a_mutant_that_does_not_build_is_an_error(mutant: Any) -> None:
    assert kill.verdict(mutant, Run((), {TROUBLE: "does not build"})) == ("error", "does not build")
