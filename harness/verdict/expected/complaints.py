"""Complaints of the kernel that a test expects, by their titles (``@pytest.mark.expect_complaint``). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.verdict.claims import Claim, Outcome
from harness.verdict.log.complaint_kinds import DYING, ComplaintKind
from harness.verdict.log.taint import Taint
from harness.verdict.log.troubles import NO_TAINT, KernelComplaint, KernelTroubles

#: How the claim begins that an expected complaint makes.
CLAIM = "the kernel complains: "
_WARNS = Taint.WARN | Taint.FIRMWARE_WORKAROUND  # WARN_TAINT() also sets the second (include/asm-generic/bug.h)
_TAINTS = {
    **dict.fromkeys(DYING, Taint.DIE),
    ComplaintKind.WARNING: _WARNS,
    ComplaintKind.REFCOUNT: _WARNS,
    ComplaintKind.ODEBUG: _WARNS,
    ComplaintKind.ATOMIC_CONTEXT: Taint.WARN,  # kernel/sched/core.c __schedule_bug(), __might_resched()
    ComplaintKind.SLAB: Taint.BAD_PAGE | Taint.WARN,  # mm/slub.c object_err(), slab_bug()
    ComplaintKind.SOFT_LOCKUP: Taint.SOFTLOCKUP,
    **dict.fromkeys(
        (
            ComplaintKind.BAD_PAGE,
            ComplaintKind.BAD_PTE,
            ComplaintKind.BAD_PAGE_MAP,
            ComplaintKind.KASAN,
            ComplaintKind.KMSAN,
            ComplaintKind.KFENCE,
        ),
        Taint.BAD_PAGE,
    ),
}


def is_expected(title: str, expected: Iterable[str]) -> bool:
    """Return whether a title is one of those, or matched by one as a regular expression, from its start to its end."""
    return any(one == title or _matches(one, title) for one in expected)


def _matches(pattern: str, title: str) -> bool:
    try:
        return re.fullmatch(pattern, title) is not None
    except re.error:  # a title with an unpaired bracket
        return False


def taint_of(complaints: Iterable[KernelComplaint]) -> Taint:
    """Return the taints that follow from these complaints."""
    taint = NO_TAINT
    for one in complaints:
        taint |= _TAINTS.get(one.kind, NO_TAINT)
    return taint


def without_expected(troubles: KernelTroubles, expected: Sequence[str], taint: Taint) -> KernelTroubles:
    """Return what is held against the kernel if these complaints are expected.

    :param expected: titles, or regular expressions.
    :param taint: what the expected complaints of this and earlier programs set.
    """
    wanted = tuple(one for one in troubles.complaints if is_expected(one.title, expected))
    others = tuple(one for one in troubles.complaints if one not in wanted)
    return replace(troubles, complaints=others, taint=troubles.taint & ~taint, expected=wanted)


def claims_of(expected: Sequence[str], kernel: Sequence[KernelTroubles]) -> list[Claim]:
    """Return one claim per expected complaint: that it came.

    :param kernel: everything that the kernel itself found wrong in the test.
    """
    came = [one.title for seen in kernel for one in seen.expected]
    return [_claim(one, came, kernel) for one in expected]


def _claim(expected: str, came: Sequence[str], kernel: Sequence[KernelTroubles]) -> Claim:
    name = f"{CLAIM}{expected}"
    if any(is_expected(title, [expected]) for title in came):
        return Claim(name, Outcome.PASSED, "")
    if gap := next((seen.gap for seen in kernel if seen.gap), ""):
        return Claim(name, Outcome.ERROR, "", gap)
    others = dict.fromkeys([*came, *(one.title for seen in kernel for one in seen.complaints)])
    has = f"it has {', '.join(map(repr, others))}" if others else "it has no complaint"
    return Claim(name, Outcome.FAILED, "", f"the kernel log has none of this title; {has}")
