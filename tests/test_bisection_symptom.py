"""What a bisection looks for, taken from a result of the bad end, and found again or not in other results."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.bisection.symptom import Sighting, Trait, TraitKind, sighting, traits_of
from harness.errors import UsageError
from harness.pagetable import Observation
from harness.verdict import Claim, Outcome, ScenarioResult
from harness.verdict.invariants import Invariant, Violation
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.taint import Taint
from harness.verdict.log.troubles import End, EndKind, KernelComplaint, KernelTroubles

PASSED = ScenarioResult("fork", "pud", Outcome.PASSED)
FAILED = replace(PASSED, outcome=Outcome.FAILED)
OOPS = KernelComplaint(
    ComplaintKind.OOPS, "BUG: unable to handle page fault", ("zap_pud",), "BUG: page fault in zap_pud"
)


def broken(*names: str, outcome: Outcome = Outcome.FAILED) -> ScenarioResult:
    return replace(PASSED, outcome=outcome, claims=tuple(Claim(name, outcome, "f()") for name in names))


@pytest.mark.parametrize(
    ("result", "traits"),
    [
        (PASSED, []),
        (broken("dirty", "young"), [(TraitKind.CLAIM, "dirty"), (TraitKind.CLAIM, "young")]),
        (broken("dirty", outcome=Outcome.KNOWN_BUG), [(TraitKind.CLAIM, "dirty")]),
        (
            replace(FAILED, violations=(Violation(Invariant.HOLE, "c", "parent", "bar", ""),) * 2),
            [(TraitKind.INVARIANT, Invariant.HOLE.id)],
        ),
        (
            replace(FAILED, kernel=(KernelTroubles((OOPS,), Taint.WARN),)),
            [(TraitKind.COMPLAINT, "BUG: page fault in zap_pud"), (TraitKind.TAINT, "WARN")],
        ),
        (
            replace(FAILED, end=End(EndKind.DIED), kernel=(KernelTroubles((OOPS,)),)),
            [(TraitKind.CRASH, "BUG: page fault in zap_pud")],
        ),
        (replace(FAILED, end=End(EndKind.DIED)), [(TraitKind.CRASH, "")]),
        (replace(FAILED, end=End(EndKind.HANG)), [(TraitKind.HANG, "")]),
        (replace(FAILED, end=End(EndKind.PROGRAM, "SIGBUS")), [(TraitKind.END, "SIGBUS")]),
        (replace(FAILED, end=End(EndKind.ASSERTION)), [(TraitKind.END, "assertion")]),
    ],
)
def test_the_traits_of_a_result(result: ScenarioResult, traits: list[tuple[TraitKind, str]]) -> None:
    assert [(one.kind, one.name) for one in traits_of(result)] == traits
    assert [Trait.from_json(one.to_json()) for one in traits_of(result)] == list(traits_of(result))


def test_a_hang_is_known_by_its_last_checkpoint() -> None:
    seen = tuple(Observation(at, "parent", "bar", 0, "none", 0, (), "", None) for at in ("before", "mapped"))
    assert traits_of(replace(FAILED, end=End(EndKind.HANG), observations=seen)) == (Trait(TraitKind.HANG, "mapped"),)


def test_what_a_run_says_about_a_symptom() -> None:
    dirty = Trait(TraitKind.CLAIM, "dirty")
    assert sighting(PASSED, dirty) == (Sighting.PASSES, "")
    assert sighting(broken("young", "dirty"), dirty) == (Sighting.SHOWS, "claim: dirty")
    assert sighting(broken("young"), dirty) == (Sighting.UNTESTABLE, "it fails otherwise: claim: young")
    assert sighting(broken("young"), None) == (Sighting.SHOWS, "claim: young")
    skipped = replace(PASSED, outcome=Outcome.SKIPPED, reason="no huge pfnmap")
    assert sighting(skipped, None) == (Sighting.UNTESTABLE, "skipped: no huge pfnmap")
    assert sighting(replace(FAILED, reason="what?"), dirty) == (Sighting.UNTESTABLE, "it fails otherwise: what?")


def test_a_symptom_of_another_form() -> None:
    with pytest.raises(UsageError):
        Trait.from_json({"kind": "mood", "name": "x"})
