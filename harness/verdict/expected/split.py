"""Which differences between two kernels were expected. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.verdict import words
from harness.verdict.claims import Answered, Claim, ClaimKind, Outcome, ScenarioResult
from harness.verdict.differences import CaseDifference, Difference, What
from harness.verdict.expected.expectation import ExpectationAnswer
from harness.verdict.mismatch import MISSING
from harness.verdict.table import Column


def split_differences(
    differences: Iterable[CaseDifference], after: Column
) -> tuple[tuple[CaseDifference, ...], tuple[CaseDifference, ...]]:
    """Differences that count, and differences that were expected; a case may have both.

    Where a whole case was expected to fail or to be skipped, all its differences are. Where a claim was, these are: the
    claim and what follows from it; the outcome, if nothing else is broken; and in the entries of the mappings that the
    claims are about, the bits that the claims found changed.

    :param after: the second kernel, whose results were held against what was expected.
    """
    counted, expected = [], []
    for one in differences:
        result = after.by_case[0].get(one.case)
        split_up: dict[bool, list[Difference]] = {True: [], False: []}
        for difference in one.differences:
            split_up[result is not None and _expected(difference, result)].append(difference)
        counted += [CaseDifference(one.case, tuple(split_up[False]))] if split_up[False] else []
        expected += [CaseDifference(one.case, tuple(split_up[True]))] if split_up[True] else []
    return tuple(counted), tuple(expected)


def _expected(difference: Difference, result: ScenarioResult) -> bool:
    claims = [one for one in result.claims if one.outcome is Outcome.EXPECTED]
    if result.outcome is Outcome.EXPECTED and any(_is_whole(one) for one in result.expectations):
        return True
    match difference.what:
        case What.OUTCOME | What.REASON:
            return result.outcome is Outcome.EXPECTED
        case What.CLAIM:
            return any(_name(one) == difference.name for one in claims)
        case What.ENTRY:
            return _follows(difference, claims)
        case What.CHECKPOINT:
            return False


def _is_whole(answered: Answered) -> bool:
    return not answered.said.claim and answered.answer is ExpectationAnswer.MET


def _name(claim: Claim) -> str:
    return words.invariants() if claim.kind is ClaimKind.INVARIANTS else claim.name


def _follows(difference: Difference, claims: Sequence[Claim]) -> bool:
    """Whether an entry differs in nothing but what an expected claim about its mapping found changed."""
    change = difference.change
    assert change is not None
    there = [seen is not None and seen.level != "none" for seen in (change.before, change.after)]
    if there[0] is not there[1]:
        differs = {"entry" if there[1] else MISSING}
    else:
        differs = {f"+{name}" for name in change.appeared} | {f"-{name}" for name in change.vanished}
        differs |= {word for word, has in (("level", change.level), ("pfn", change.pfn)) if has}
    return bool(differs) and differs <= _changed(claims, (change.key.process, change.key.mapping))


def _changed(claims: Iterable[Claim], where: tuple[str, str]) -> frozenset[str]:
    """All that claims about a mapping of a process found changed in its entries."""
    found: frozenset[str] = frozenset()
    for claim in claims:
        entry = claim.mismatch.entry if claim.mismatch is not None else None
        if claim.mismatch is not None and entry is not None and entry.place and entry.place.owner[:2] == where:
            found |= claim.mismatch.change
    return found
