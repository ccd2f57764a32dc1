"""Holds results against what was expected of them. Pure.

An expected failure of a claim covers the claims that follow from it (:mod:`harness.verdict.causes`), because they are
broken by the same difference in the same entry. Whatever else is broken still fails the case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.verdict.causes import consequences
from harness.verdict.claims import Answered, Claim, ClaimKind, Outcome, Run, ScenarioResult
from harness.verdict.expected.expectation import Expectation, ExpectationAnswer, Expected
from harness.verdict.table import Case, Column

Expectations = Mapping[Case, tuple[Expectation, ...]]
"""What is expected of each case; those of which nothing is expected are missing."""

_BROKEN = (Outcome.FAILED, Outcome.KNOWN_BUG)
_WORST_FIRST = (Outcome.FAILED, Outcome.KNOWN_BUG, Outcome.ERROR, Outcome.SKIPPED, Outcome.PASSED)


def held(result: ScenarioResult, said: Sequence[Expectation]) -> ScenarioResult:
    """The result, with what becomes of the expectations.

    What is expected and happens makes a failure or a skip EXPECTED. What is expected and does not happen makes it
    FAILED.
    """
    if not said:
        return result
    answers = [(_of_claim if one.claim else _of_case)(result, one) for one in said]
    judged = _excused(result, [one for one in answers if one.answer is ExpectationAnswer.MET])
    if any(one.unmet for one in answers):
        judged = replace(judged, outcome=Outcome.FAILED, was=None)
    return replace(judged, expectations=tuple(answers))


def held_run(run: Run, said: Expectations) -> Run:
    """Every result of a run, with what becomes of the expectations."""
    return replace(run, results=tuple(held(one, _of(said, one)) for one in run.results)) if said else run


@dataclass(frozen=True)
class Unmet:
    """An expectation that a series or the second kernel of a comparison does not meet."""

    case: Case
    column: int
    """Where that is seen."""
    result: ScenarioResult
    """The result there, with what became of the expectation."""


def held_along(columns: Sequence[Column], said: Expectations) -> tuple[list[Column], tuple[Unmet, ...]]:
    """Hold the columns after the first against expectations, which begin where they are first met.

    From there on an expectation has to be met in every column. One that is met nowhere is unmet in the last column that
    has an answer. Where an expectation is not met, the result stays as it is.

    :param columns: what there was before, then each change of it; one run each.
    """
    since = {(case, one): _first(columns, case, one) for case, several in said.items() for one in several}
    found, unmet = [*columns[:1]], {}
    for number, column in enumerate(columns[1:], start=1):
        results = []
        for result in column.runs[0].results:
            case = _case(result)
            begun = [one for one in said.get(case, ()) if number >= since[case, one]]
            last = [one for one in said.get(case, ()) if since[case, one] == len(columns)]
            answers = held(result, [*begun, *last]).expectations
            results.append(held(result, [one.said for one in answers if not one.unmet and one.said in begun]))
            for one in answers:
                if one.unmet:  # of one that is never met, the last column's answer counts
                    unmet[case, one.said] = Unmet(case, number, replace(result, expectations=(one,)))
        found.append(replace(column, runs=(replace(column.runs[0], results=tuple(results)), *column.runs[1:])))
    return found, tuple(unmet.values())


def _first(columns: Sequence[Column], case: Case, said: Expectation) -> int:
    """The first column after the base that meets an expectation; their number if none does."""
    for number, column in enumerate(columns[1:], start=1):
        result = column.by_case[0].get(case)
        if result is not None and held(result, [said]).expectations[0].answer is ExpectationAnswer.MET:
            return number
    return len(columns)


def _case(result: ScenarioResult) -> Case:
    return Case(result.scenario, result.level, file=result.file)


def _of(said: Expectations, result: ScenarioResult) -> tuple[Expectation, ...]:
    return said.get(_case(result), ())


def _of_case(result: ScenarioResult, said: Expectation) -> Answered:
    known = not (result.cannot_know or (result.outcome is Outcome.SKIPPED and said.outcome is Expected.FAIL))
    return _answered(said, result.outcome, known=known)


def _of_claim(result: ScenarioResult, said: Expectation) -> Answered:
    made = {one.outcome for one in _named(result, said.claim)}
    if made:
        found = next(one for one in _WORST_FIRST if one in made)
        return _answered(said, found, known=found is not Outcome.SKIPPED)
    if result.outcome is Outcome.SKIPPED:
        return _of_case(result, said)
    # A case that something else ended may not have come to it.
    ended = result.outcome is Outcome.ERROR or (result.outcome in _BROKEN and bool(result.reason))
    return Answered(said, ExpectationAnswer.UNKNOWN if ended else ExpectationAnswer.NO_CLAIM, None)


def _named(result: ScenarioResult, name: str) -> list[Claim]:
    return [one for one in result.claims if one.kind is ClaimKind.SCENARIO and one.name == name]


def _answered(said: Expectation, found: Outcome, *, known: bool) -> Answered:
    """:param known: False if only that it was skipped is known."""
    meets = {Expected.PASS: (Outcome.PASSED,), Expected.FAIL: _BROKEN, Expected.SKIP: (Outcome.SKIPPED,)}
    if found in meets[said.outcome]:
        return Answered(said, ExpectationAnswer.MET, found)
    open_ = found is Outcome.ERROR or not known
    return Answered(said, ExpectationAnswer.UNKNOWN if open_ else ExpectationAnswer.UNMET, found)


def _excused(result: ScenarioResult, met: Sequence[Answered]) -> ScenarioResult:
    """The result, with what was expected as EXPECTED."""
    said = [one.said for one in met if one.said.outcome is not Expected.PASS]
    whole = [one for one in said if not one.claim]
    if any(one.outcome is Expected.FAIL for one in whole):
        excused = [one for one in result.claims if one.outcome in _BROKEN]
    else:
        excused = [one for each in said if each.claim for one in _named(result, each.claim) if _covers(each, one)]
        excused += [one for first in excused if first.outcome in _BROKEN for one in consequences(first, result.claims)]
    ids = {id(one) for one in excused}
    claims = tuple(
        replace(one, outcome=Outcome.EXPECTED, was=one.outcome) if id(one) in ids else one for one in result.claims
    )
    judged = replace(result, claims=claims)
    if whole or (ids and _nothing_else(judged, [one.message for one in excused])):
        return replace(judged, outcome=Outcome.EXPECTED, was=result.outcome)
    return judged


def _covers(said: Expectation, claim: Claim) -> bool:
    return claim.outcome in (_BROKEN if said.outcome is Expected.FAIL else (Outcome.SKIPPED,))


def _nothing_else(result: ScenarioResult, messages: Sequence[str]) -> bool:
    """Whether a case that failed did so by its expected claims alone.

    :param messages: of these claims; one of them may also be what ended the case, and begins its reason.
    """
    left = any(one.outcome in _BROKEN for one in result.claims)
    ended = not result.reason or any(one and result.reason.startswith(one) for one in messages)
    return result.outcome in _BROKEN and not left and ended
