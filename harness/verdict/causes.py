"""Group broken claims by their cause, because one cause breaks many claims. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.kernel_functions import CPU
from harness.verdict.claims import Claim, ClaimKind, Outcome


@dataclass(frozen=True)
class Cause:
    """A broken claim, and the claims that are broken because of the same entry and the same difference."""

    claim: Claim
    followers: tuple[Claim, ...]
    kernel_function: str
    """What decided it; if the entry was already wrong at an earlier stop, what decides there."""


_BROKEN = (Outcome.FAILED, Outcome.KNOWN_BUG)


def causes(claims: Sequence[Claim]) -> tuple[Cause, ...]:
    """Return the causes of the broken claims of a test, in order; of those that were expected to break, none.

    A claim follows from an earlier one about the same entry (process, mapping and offset) if everything that it finds
    wrong was already wrong there, or if it compares with the entry that was wrong.
    """
    groups: list[list[Claim]] = []
    for claim in claims:
        if claim.outcome not in _BROKEN or claim.kind is not ClaimKind.SCENARIO:
            continue
        cause = next((group for group in groups if _follows(claim, group[0])), None)
        if cause is None:
            groups.append([claim])
        else:
            cause.append(claim)
    return tuple(Cause(first, tuple(rest), _decided(first, claims)) for first, *rest in groups)


def consequences(first: Claim, claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """The broken claims that follow from a broken one: those that it would have as its followers, were it a cause."""
    later = claims[[one is first for one in claims].index(True) + 1 :]
    return tuple(one for one in later if one.outcome in _BROKEN and _follows(one, first))


def _follows(claim: Claim, first: Claim) -> bool:
    one, other = claim.mismatch, first.mismatch
    if one is None or other is None or one.entry is None or other.entry is None:
        return False
    place, there = one.entry.place, other.entry.place
    if place is None or there is None:
        return False
    if one.reference is not None and one.reference.place == there:
        return True
    return place.owner == there.owner and one.wrong <= other.change


def _decided(claim: Claim, claims: Sequence[Claim]) -> str:
    """Return the function that decides at the stop at which the entry became wrong."""
    since = claim.mismatch.since if claim.mismatch is not None else ""
    if not since:
        return claim.kernel_function
    there = (one.kernel_function for one in claims if one.checkpoint == since)
    return next((name for name in there if name and name != CPU), claim.kernel_function)
