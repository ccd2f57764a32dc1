"""All words that are made from results. Every output takes them from here, and no code reads them back.

The values are in :mod:`harness.verdict.claims`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.errors import did_you_mean
from harness.verdict.causes import Cause, causes
from harness.verdict.claims import Answered, Claim, ClaimKind, Outcome, ScenarioResult
from harness.verdict.expected.expectation import ExpectationAnswer, Expected
from harness.verdict.invariants import Violation
from harness.verdict.log.taint import describe as describe_taint
from harness.verdict.log.troubles import KernelTroubles

EARLY_BIT = "cannot know: under KVM the CPU may set A before any access (SDM volume 3, 4.8; APM volume 2, 5.4.2)"
NOT_RUN = "cannot know: it was not run"
NO_RESULT = "cannot know: the run has no result for it"
BROKEN = "BROKEN"
UNMET = "UNMET"
BEFORE_PROGRAM = "before the scenario's program began, while the kernel was probed"
_ENDED = {
    Outcome.PASSED: "passed",
    Outcome.FAILED: "failed",
    Outcome.SKIPPED: "was skipped",
    Outcome.KNOWN_BUG: "has a known bug",
    Outcome.ERROR: "is an error",
    Outcome.EXPECTED: "failed",
}
_INVARIANTS = "the invariants held at {stops}, and the kernel log has no {complaint}"


def uncalibrated(violation: Violation) -> str:
    """Return why nothing that was read can be believed."""
    return f"the walk and {violation.invariant.other_witness} disagree, so the walk proves nothing: {violation}"


def troubles(seen: KernelTroubles) -> list[str]:
    """Return what the kernel itself found wrong, one line each."""
    lines = [f"the kernel log: {one.words}" for one in seen.complaints]
    return lines + ([f"the kernel is now tainted: {', '.join(describe_taint(seen.taint))}"] if seen.taint else [])


def invariants(stops: int | None = None, *, expected: bool = False) -> str:
    """Return the words for the claim that has no name: the invariants held.

    :param stops: the number of stops; None for "every stop".
    :param expected: whether the kernel complained as the test expects.
    """
    many = "every stop" if stops is None else f"{stops} stop" if stops == 1 else f"{stops} stops"
    return _INVARIANTS.format(stops=many, complaint="other complaint" if expected else "complaint")


def claims(result: ScenarioResult) -> tuple[tuple[Claim, str, str], ...]:
    """Return each claim of a result with its name and message; a claim that follows from another names that one."""
    found = result.as_found.claims  # a claim follows from another whether that was expected or not
    first = {id(one): cause.claim for cause in causes(found) for one in cause.followers}
    each = zip(result.claims, found, strict=True)
    return tuple((one, *_claim(result, one, first.get(id(raw)))) for one, raw in each)


def _claim(result: ScenarioResult, claim: Claim, first: Claim | None) -> tuple[str, str]:
    if claim.kind is ClaimKind.INVARIANTS:
        expected = any(seen.expected for seen in result.kernel)
        return invariants(result.stops, expected=expected), "\n".join(_held(result))
    if first is not None:
        return claim.name, f"for the same entry as: {first.name}"
    return claim.name, EARLY_BIT if claim.outcome is Outcome.SKIPPED else claim.message


def _held(result: ScenarioResult) -> Iterator[str]:
    broken = [*violated(result.broken), *(line for seen in result.kernel for line in troubles(seen))]
    yield from broken
    if not broken:
        yield from (seen.gap for seen in result.kernel if seen.gap)
    yield from (f"not the kernel's fault: {one.line} ({one.why})" for seen in result.kernel for one in seen.excused)


def violated(violations: Sequence[Violation]) -> list[str]:
    """Return the violations, one line for all entries of one mapping at one stop."""
    found: dict[tuple[object, ...], list[Violation]] = {}
    for one in violations:
        found.setdefault((one.invariant, one.checkpoint, one.process, one.mapping), []).append(one)
    return [f"{first}" + (f" (and {len(rest)} more there)" if rest else "") for first, *rest in found.values()]


def number_of(outcome: Outcome, count: int) -> str:
    """``3 failed``, ``1 known bug``."""
    if outcome is Outcome.KNOWN_BUG:
        return "1 known bug" if count == 1 else f"{count} known bugs"
    if outcome is Outcome.ERROR:
        return "1 error" if count == 1 else f"{count} errors"
    return f"{count} {outcome.value}"


def of_outcome(outcome: Outcome) -> str:
    """``failed``, ``known bug``."""
    return outcome.value.replace("_", " ")


def outcome(result: ScenarioResult) -> str:
    """The outcome; of one that was expected, with what it is without the expectation: ``expected (failed)``."""
    return of_outcome(result.outcome) + (f" ({of_outcome(result.was)})" if result.was is not None else "")


def unmet(result: ScenarioResult) -> list[str]:
    """The expectations that a case does not meet: what was expected, what happened, and what to do; one line each."""
    return [_unmet(result, one) for one in result.expectations if one.unmet]


def _unmet(result: ScenarioResult, one: Answered) -> str:
    said, what = one.said, "the claim" if one.said.claim else "it"
    begin = f"{str(said)!r} is not met: expected {what} {_TO_END[said.outcome]}, but "
    if one.answer is ExpectationAnswer.NO_CLAIM:
        close = did_you_mean(said.claim, [claim.name for claim in result.claims if claim.name])
        return f"{begin}there is no claim of this name{close} `hugepfn run {_case(result)}` prints them all"
    held = one.found is Outcome.PASSED and bool(said.claim)
    ended = "it holds" if held else f"it {_ENDED[one.found or Outcome.ERROR]}"
    return f"{begin}{ended}; {_ADVICE[said.outcome]}"


_TO_END = {Expected.PASS: "to pass", Expected.FAIL: "to fail", Expected.SKIP: "to be skipped"}
_ADVICE = {
    Expected.PASS: "remove the expectation if that may happen",
    Expected.FAIL: "remove the expectation, or find out why the kernel does not do what was intended",
    Expected.SKIP: "remove the expectation, or find out what has met the precondition",
}


def _case(result: ScenarioResult) -> str:
    """The word that selects a case."""
    place = f"{result.file}::test_{result.scenario}" if result.file else result.scenario
    return ":".join(filter(None, (place, result.level)))


def claims_hold(held: int, made: int) -> str:
    """``1 of 1 claim holds``, ``59 of 60 claims hold``."""
    return f"{held} of {made} {'claim' if made == 1 else 'claims'} {'holds' if held == 1 else 'hold'}"


def decided(name: str, kernel_function: str) -> str:
    """Return a claim with the function that decides it: ``the child has D [mm/memory.c f()]``."""
    return f"{name} [{kernel_function}]" if kernel_function else name


def on_the_way_to(name: str, kernel_function: str) -> str:
    """Return the line about the claim that a test would have made next."""
    return f"  the next claim would be: {decided(name, kernel_function)}"


def decided_by(functions: Sequence[str]) -> str:
    """Return the line about the functions that decide a scenario."""
    return f"  decided by {', '.join(functions)}"


def told(made: Sequence[Claim]) -> list[str]:
    """Return the causes of broken claims: for each the first claim, the function that decides it, and what was seen."""
    lines = []
    for number, cause in enumerate(causes(made)):
        shown = cause.claim.message.splitlines()
        if number and cause.claim.mismatch is not None and cause.claim.mismatch.entry is None:
            shown = shown[:1]
        lines.append(f"{BROKEN} {decided(cause.claim.name, cause.kernel_function)}")
        lines += [f"{' ' * len(BROKEN)} {line}" for line in shown]
        if cause.followers:
            many = f"{len(cause.followers)} more claims" if len(cause.followers) > 1 else "1 more claim"
            lines.append(f"{' ' * len(BROKEN)} and {many} of the same entry")
    return lines


def failed(result: ScenarioResult) -> list[str]:
    """Return a failure in words: the first line says what kind of failure it is, the others what was seen."""
    found = causes(result.claims)
    ended = [] if any(cause.claim.message == result.reason for cause in found) else result.reason.splitlines()
    counted = [_count(found)] if found else []
    lines = [*counted, *told(result.claims), *ended, *returned(result), *unmet(result)]
    return lines or list(_held(result)) or [of_outcome(result.outcome)]


def _count(found: Sequence[Cause], first: str = "") -> str:
    """How many claims do not hold; of several, before the first."""
    count = sum(1 + len(cause.followers) for cause in found)
    return f"{count} claim does not hold" if count == 1 else f"{count} claims do not hold{first}"


def broken_claims(result: ScenarioResult) -> list[str]:
    """Return the names of the claims that do not hold."""
    return [name for claim, name, _ in claims(result) if claim.outcome is Outcome.FAILED]


def with_reason(outcome: Outcome, word: str, why: str) -> str:
    """Return the word for an outcome and its reason; that of a known bug begins with the word itself."""
    return why if outcome is Outcome.KNOWN_BUG and why else ": ".join(filter(None, (word, why)))


def reason(result: ScenarioResult) -> str:
    """Return the reason for the outcome; "" if the scenario simply passed."""
    return "\n".join(filter(None, (_reason(result), *returned(result))))


def _reason(result: ScenarioResult) -> str:
    if result.outcome is Outcome.EXPECTED:
        return _reason(result.as_found)
    if result.outcome is Outcome.KNOWN_BUG:
        return "; ".join(f"known bug {bug.id}: {bug.title}" for bug in result.known_bugs)
    if result.fixed_bugs and result.outcome is not Outcome.FAILED:
        return "fixed here: " + ", ".join(f"{bug.id} ({bug.version} had it)" for bug in result.fixed_bugs)
    found = causes(result.claims) if result.outcome is Outcome.FAILED else ()
    if not found:
        return "; ".join(filter(None, (result.reason, *unmet(result))))
    lead = decided(found[0].claim.name, found[0].kernel_function)
    return "; ".join(filter(None, (f"{_count(found, ', first')}: {lead}", result.reason, *unmet(result))))


def evidence(result: ScenarioResult) -> list[str]:
    """Return the line that names the folder with the evidence of a failure, if there is one."""
    return [f"evidence: {result.evidence}"] if result.evidence else []


def returned(result: ScenarioResult) -> list[str]:
    """Return the known bugs whose symptoms show although the kernel was measured without them, one line each."""
    return [
        f"this looks like {bug.id}, but {bug.version} was measured without {bug.id} on {bug.date}"
        for bug in result.returned_bugs
    ]


def broken(results: Sequence[ScenarioResult]) -> list[str]:
    """Return every broken claim of the cases that failed, with its case."""
    found = []
    for result in results:
        if result.outcome is not Outcome.FAILED:
            continue
        case = f"{result.scenario} {result.level or ''}".strip()
        names = [decided(name, one.kernel_function) for one, name, _ in claims(result) if one.outcome is Outcome.FAILED]
        found += [f"{case}: {name}" for name in names or result.reason.splitlines()[:1]]
    return found


def unmet_of(results: Sequence[ScenarioResult]) -> list[str]:
    """Every expectation that is not met, by its case."""
    return [f"{one.scenario} {one.level or ''}".strip() + f": {line}" for one in results for line in unmet(one)]


def totals(results: Sequence[ScenarioResult]) -> str:
    """Return the last line: the numbers of outcomes and claims and, if it matters, that known bugs are not failures."""
    counts = {outcome: sum(one.outcome is outcome for one in results) for outcome in Outcome}
    cases = ", ".join(number_of(outcome, count) for outcome, count in counts.items() if count) or "nothing ran"
    made = [claim for one in results for claim in one.claims]
    held = claims_hold(sum(claim.outcome is Outcome.PASSED for claim in made), len(made))
    only = not counts[Outcome.FAILED] and not counts[Outcome.ERROR]
    why = [known_bugs_are_no_failures(counts[Outcome.KNOWN_BUG])] if only and counts[Outcome.KNOWN_BUG] else []
    why += ["what was expected does not count as a failure"] if only and counts[Outcome.EXPECTED] else []
    return "; ".join([cases, held, *why])


def known_bugs_are_no_failures(count: int) -> str:
    """Return why the exit status is 0 although known bugs were seen."""
    return "a known bug does not count as a failure" if count == 1 else "known bugs do not count as failures"


def failure(result: ScenarioResult) -> str:
    """Return the reason for a failure; the first line has everything that the footnote of a table needs."""
    if result.outcome is Outcome.EXPECTED:
        return failure(result.as_found)
    first, newline, rest = (_reason(result) or "; ".join(broken_claims(result))).partition("\n")
    found = causes(result.claims)
    seen = found[0].claim.message.partition("\n")[0] if found else ""
    return "; ".join(filter(None, (first, seen, *returned(result)))) + newline + rest


def errors(result: ScenarioResult) -> str:
    """Return what is not known, if a scenario that passed has claims that are errors."""
    return "; ".join(said or name for claim, name, said in claims(result) if claim.outcome is Outcome.ERROR)


def waived(result: ScenarioResult) -> list[str]:
    """Return what the test waived and why, and how often it did not hold; one line per invariant."""
    told = []
    for invariant, why in result.waived:
        broken = [one for one in result.violations if one.invariant is invariant]
        times = f"{len(broken)} times" if len(broken) > 1 else "once"
        seen = f"broken {times}, first {broken[0].message}" if broken else "not needed: it held"
        told.append(f"{invariant.value}: {why} ({seen})")
    return told
