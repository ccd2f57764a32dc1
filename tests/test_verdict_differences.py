"""Tests for the differences between two kernels, and for what may differ between two runs of one kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.pagetable import Observation
from harness.verdict import Claim, ClaimKind, Outcome, Run, ScenarioResult
from harness.verdict.claims import BugSeen
from harness.verdict.differences import What, compare_runs, folded, lasting, unknown_cases
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.troubles import KernelComplaint, KernelTroubles

CLAIM = Claim("the child keeps its dirty bit", Outcome.PASSED, "copy_huge_pud()")


def seen(bits: str, *, checkpoint: str = "forked", level: str = "pud", raw: int = 0x87, **more: Any) -> Observation:
    given = {"process": "child", "mapping": "bar", "offset": 0, "pfn": "bar+0x0", "pagemap": None, **more}
    return Observation(checkpoint=checkpoint, level=level, raw=raw, bits=tuple(bits.split()), **given)


def run(
    *observations: Observation,
    outcome: Outcome = Outcome.PASSED,
    reason: str = "",
    claims: tuple[Claim, ...] = (CLAIM,),
    spec: str = "debian:6.12",
) -> Run:
    return Run((ScenarioResult("fork", "pud", outcome, reason, claims, observations),), {"kernel": {"spec": spec}})


def told(before: Run, after: Run) -> list[tuple[str, str, str, str]]:
    return [(d.what.value, d.name, d.before, d.after) for one in compare_runs(before, after) for d in one.differences]


def test_equal_runs_have_no_difference() -> None:
    assert compare_runs(run(seen("P W D")), run(seen("P W D"))) == ()


def test_what_varies_between_runs_of_one_kernel_is_no_difference() -> None:
    memory = [seen("P W", mapping="memory", pfn=f"ram+{paddr:#x}", raw=paddr | 3) for paddr in (0x1000, 0x9000)]
    assert compare_runs(run(memory[0]), run(memory[1])) == ()
    reasons = [
        "debian:6.1 died: BUG at ffff888012345678, pid 12",
        "./bzImage died: BUG at ffff8880deadbeef, pid 1234",
    ]
    failed = [
        run(outcome=Outcome.FAILED, reason=reason, spec=spec)
        for reason, spec in zip(reasons, ("debian:6.1", "./bzImage"), strict=True)
    ]
    assert compare_runs(*failed) == ()


def test_a_complaint_is_compared_by_its_title() -> None:
    def died(line: str, title: str) -> Run:
        complaint = KernelComplaint(ComplaintKind.WARNING, line, (), title)
        ended = run(outcome=Outcome.FAILED, reason=f"the kernel log: {complaint.words}\npfn is BAR + offset")
        (one,) = ended.results
        return replace(ended, results=(replace(one, kernel=(KernelTroubles((complaint,)),)),))

    older = died("WARNING: CPU: 0 PID: 81 at mm/memory.c:1028 f+0xd5/0xe0", "WARNING in f")
    newer = died("WARNING: mm/memory.c:1130 at f+0xd7/0xf0, CPU#0: fork/85", "WARNING in f")
    assert compare_runs(older, newer) == ()
    another = died("WARNING: mm/memory.c:1130 at g+0xd7/0xf0, CPU#0: fork/85", "WARNING in g")
    assert [what for what, *_ in told(older, another)] == ["reason"]
    unknown = [died(f"WARNING: mm/{file}.c:1 at 0x1, CPU#0: fork/85", "WARNING in corrupted") for file in ("a", "b")]
    assert [what for what, *_ in told(*unknown)] == ["reason"]


def test_an_entry_that_differs_with_its_bits() -> None:
    (one,) = compare_runs(run(seen("P W D")), run(seen("P SAVED_DIRTY", raw=1 << 58 | 0x85)))
    (difference,) = one.of(What.ENTRY)
    assert difference.change is not None
    assert (difference.change.appeared, difference.change.vanished) == (("SAVED_DIRTY",), ("W", "D"))
    assert difference.before == "pud 0x0000000000000087 P W D bar+0x0"
    assert str(one.case) == "fork pud"
    entry = one.to_json()["differences"][0]["entry"]
    assert (entry["checkpoint"], entry["process"], entry["mapping"], entry["offset"]) == ("forked", "child", "bar", 0)
    assert entry["after"]["bits"] == ["P", "SAVED_DIRTY"]


def test_a_pfn_inside_the_bar_is_compared() -> None:
    assert len(told(run(seen("P")), run(seen("P", pfn="bar+0x1000")))) == 1


def test_a_claim_whose_outcome_differs_is_named_with_its_function() -> None:
    broken = Claim(CLAIM.name, Outcome.FAILED, CLAIM.kernel_function, "D=0")
    (one,) = compare_runs(run(), run(claims=(broken,), outcome=Outcome.FAILED))
    assert [(d.name, d.kernel_function, d.before, d.after) for d in one.of(What.CLAIM)] == [
        ("the child keeps its dirty bit", "copy_huge_pud()", "passed", "failed")
    ]
    assert [(d.before, d.after) for d in one.of(What.OUTCOME)] == [
        ("passed", "failed: 1 claim does not hold: the child keeps its dirty bit [copy_huge_pud()]")
    ]


def test_a_claim_that_only_one_kernel_has() -> None:
    assert told(run(claims=()), run()) == [("claim", "the child keeps its dirty bit", "not claimed", "passed")]


def test_the_number_of_stops_is_not_part_of_a_claim() -> None:
    held = Claim("", Outcome.PASSED, "", kind=ClaimKind.INVARIANTS)
    few, many = (
        replace(one, results=(replace(one.results[0], stops=stops),))
        for one, stops in ((run(claims=(held,)), 3), (run(claims=(held,)), 8))
    )
    assert told(few, many) == []
    broken = run(claims=(replace(held, outcome=Outcome.FAILED),))
    name = "the invariants held at every stop, and the kernel log has no complaint"
    assert told(few, broken) == [("claim", name, "passed", "failed")]


def test_a_hang_is_one_difference_at_the_missing_checkpoint() -> None:
    before = run(
        *(seen("P"), seen("P", checkpoint="child-written"), seen("P", checkpoint="child-written", offset=4096)),
        claims=(CLAIM, Claim("every process wrote and exited", Outcome.PASSED, "")),
    )
    after = run(seen("P"), outcome=Outcome.FAILED, reason="fork did not come to 'child-written' in 30 s")
    assert told(before, after) == [
        ("outcome", "", "passed", "failed: fork did not come to 'child-written' in 30 s"),
        ("checkpoint", "child-written", "came there", "never came there"),
    ]


def test_the_same_outcome_for_another_reason() -> None:
    skipped = [run(outcome=Outcome.SKIPPED, reason=why) for why in ("no huge pfnmap", "no THP")]
    assert told(*skipped) == [("reason", "", "skipped: no huge pfnmap", "skipped: no THP")]


def test_a_skip_on_one_side_is_one_difference() -> None:
    skipped = run(outcome=Outcome.SKIPPED, reason="no huge pfnmap", claims=())
    assert told(skipped, run(seen("P"))) == [("outcome", "", "skipped: no huge pfnmap", "passed")]


def test_a_case_that_only_one_run_has() -> None:
    assert told(Run(()), run()) == [("outcome", "", "nothing", "passed")]


def test_an_error_is_reported_and_not_compared() -> None:
    lost = run(outcome=Outcome.ERROR, reason="QEMU is gone")
    assert told(lost, run(seen("P"))) == []
    assert [(str(case), why) for case, why in unknown_cases(lost, run()).items()] == [("fork pud", "QEMU is gone")]


def test_unstable_differences_are_listed_separately() -> None:
    first = compare_runs(run(seen("P W"), seen("P", process="parent")), run(seen("P"), seen("P W", process="parent")))
    again = compare_runs(run(seen("P W"), seen("P", process="parent")), run(seen("P"), seen("P", process="parent")))
    stays, passes = lasting([first, again])
    assert [d.change.key.process for one in stays for d in one.differences if d.change] == ["child"]
    assert [d.change.key.process for one in passes for d in one.differences if d.change] == ["parent"]
    assert lasting([first])[1] == ()
    assert lasting([first, ()])[0] == ()


@pytest.mark.parametrize("odd", [None, 3])
def test_neighbours_that_differ_alike_are_folded(odd: int | None) -> None:
    sides = [
        [
            seen("P" if number == odd else bits, level="pte", offset=4096 * number, pfn=f"bar+{4096 * number:#x}")
            for number in range(8)
        ]
        for bits in ("P W", "P D")
    ]
    (one,) = compare_runs(run(*sides[0]), run(*sides[1]))
    counts = [(d.change.key.offset, count) for d, count in folded(one.differences) if d.change]
    assert counts == ([(0, 8)] if odd is None else [(0, 3), (4096 * 4, 4)])


def test_neighbours_that_differ_in_another_way_are_not_folded() -> None:
    sides = [
        [
            seen(bits, level="pte", offset=4096 * number, pfn=f"bar+{4096 * number:#x}")
            for number, bits in enumerate(entries)
        ]
        for entries in (("P W", "P W", "P W"), ("P D", "P D", "P"))
    ]
    (one,) = compare_runs(run(*sides[0]), run(*sides[1]))
    counts = [(d.change.key.offset, count) for d, count in folded(one.differences) if d.change]
    assert counts == [(0, 2), (4096 * 2, 1)]


def _under_kvm(side: Run) -> Run:
    return replace(side, context={**side.context, "capabilities": {"early": ["A"]}})


@pytest.mark.parametrize("sides", [(True, True), (True, False), (False, True)])
def test_an_accessed_bit_that_the_cpu_may_set_early_is_no_difference(sides: tuple[bool, bool]) -> None:
    runs = run(seen("P W A", raw=0xA7)), run(seen("P W", raw=0x87))
    one, other = (_under_kvm(side) if kvm else side for side, kvm in zip(runs, sides, strict=True))
    assert told(*runs) != []
    assert compare_runs(one, other) == ()
    dirty = run(seen("P W D", raw=0xC7))
    assert [what for what, *_ in told(one, dirty)] == ["entry"], "every other bit still counts"


def test_a_claim_that_is_unknown_on_one_kernel_is_not_compared() -> None:
    unknown = run(claims=(replace(CLAIM, outcome=Outcome.SKIPPED),))
    assert compare_runs(run(), unknown) == ()
    assert told(run(), run(claims=(replace(CLAIM, outcome=Outcome.FAILED),))) != []


def test_only_differences_of_entries_are_folded() -> None:
    sides = [
        run(claims=tuple(Claim(name, outcome, "f()") for name in "ab")) for outcome in (Outcome.PASSED, Outcome.FAILED)
    ]
    (one,) = compare_runs(*sides)
    assert [(d.what, d.name, count) for d, count in folded(one.differences)] == [
        (What.CLAIM, "a", 1),
        (What.CLAIM, "b", 1),
    ]


def test_two_known_bugs_differ_by_their_ids_and_not_by_their_words() -> None:
    def with_bug(bug: str, reason: str) -> Run:
        one = run(outcome=Outcome.KNOWN_BUG, reason=reason)
        return replace(one, results=(replace(one.results[0], known_bugs=(BugSeen(bug, bug),)),))

    assert told(with_bug("HP-001", "D is lost"), with_bug("HP-001", "W is lost")) == []
    ((what, *_),) = told(with_bug("HP-001", "D is lost"), with_bug("HP-002", "D is lost"))
    assert what == What.REASON.value
