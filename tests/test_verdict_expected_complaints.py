"""Tests for complaints that a test expects: the titles that they match, and the taint that is expected with them."""

import pytest

from harness.verdict import ComplaintKind, Outcome, Taint
from harness.verdict.expected.complaints import claims_of, is_expected, taint_of, without_expected
from harness.verdict.log.troubles import KernelComplaint, KernelTroubles

WARNING = KernelComplaint(ComplaintKind.WARNING, "WARNING: mm/a.c:1 at f+0x1/0x2", ("f",), "WARNING in f")
OTHER = KernelComplaint(ComplaintKind.WARNING, "WARNING: mm/a.c:2 at g+0x1/0x2", ("g",), "WARNING in g")
BAD_PAGE = KernelComplaint(ComplaintKind.BAD_PAGE, "BUG: Bad page state", (), "BUG: Bad page state in h")


@pytest.mark.parametrize(
    ("expected", "title"),
    [
        ("WARNING in f", "WARNING in f"),
        ("WARNING in f.*", "WARNING in f_locked"),
        ("(WARNING|kernel BUG) in f", "kernel BUG in f"),
        ("INFO: task hung in f (2)", "INFO: task hung in f (2)"),
        ("BUG: MAX_STACK (too low", "BUG: MAX_STACK (too low"),
    ],
)
def test_a_title_or_an_expression_for_all_of_it(expected: str, title: str) -> None:
    assert is_expected(title, ["something else", expected])
    assert not is_expected(f"{title} again", [expected.removesuffix(".*")])
    assert not is_expected(f"a {title}", [expected])


def test_the_taint_of_an_expected_complaint_is_expected_too() -> None:
    seen = KernelTroubles((WARNING, OTHER), Taint.WARN | Taint.BAD_PAGE)
    left = without_expected(seen, ["WARNING in f"], taint_of([WARNING]))
    assert (left.complaints, left.taint, left.expected) == ((OTHER,), Taint.BAD_PAGE, (WARNING,))
    assert left.found
    left = without_expected(seen, ["WARNING in .", "BUG: .*"], taint_of([WARNING, OTHER, BAD_PAGE]))
    assert (left.complaints, left.taint, left.expected) == ((), Taint(0), (WARNING, OTHER))
    assert not left.found


@pytest.mark.parametrize(
    ("kind", "taint"),
    [
        (ComplaintKind.KERNEL_BUG, Taint.DIE),
        (ComplaintKind.REFCOUNT, Taint.WARN),
        (ComplaintKind.KASAN, Taint.BAD_PAGE),
        (ComplaintKind.SOFT_LOCKUP, Taint.SOFTLOCKUP),
        (ComplaintKind.RCU_STALL, Taint(0)),
    ],
)
def test_the_taint_that_a_complaint_sets(kind: ComplaintKind, taint: Taint) -> None:
    assert taint_of([KernelComplaint(kind, "")]) & taint == taint
    assert bool(taint_of([KernelComplaint(kind, "")])) is bool(taint)


def test_each_expected_complaint_is_a_separate_claim() -> None:
    seen = [KernelTroubles(expected=(WARNING,)), KernelTroubles((OTHER,))]
    came, missing = claims_of(["WARNING in f", "WARNING in h"], seen)
    assert (came.name, came.outcome) == ("the kernel complains: WARNING in f", Outcome.PASSED)
    assert missing.outcome is Outcome.FAILED
    assert missing.message == "the kernel log has none of this title; it has 'WARNING in f', 'WARNING in g'"
    (unknown,) = claims_of(["WARNING in h"], [*seen, KernelTroubles(gap="a gap")])
    assert (unknown.outcome, unknown.message) == (Outcome.ERROR, "a gap")


def test_troubles_survive_a_file() -> None:
    seen = KernelTroubles((OTHER,), Taint.WARN, (), "", (WARNING,))
    assert KernelTroubles.from_json(seen.to_json()) == seen
    older = seen.to_json()
    del older["expected"]
    assert KernelTroubles.from_json(older).expected == ()
