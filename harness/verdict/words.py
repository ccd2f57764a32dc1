"""The words for results, all in one place; whoever shows a result takes them from here. Nobody reads them back.

What a result is, its values say: :mod:`harness.verdict.claims`.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.verdict.claims import Claim, ClaimKind, Outcome, ScenarioResult
from harness.verdict.invariants import Violation
from harness.verdict.log.taint import describe as describe_taint
from harness.verdict.log.troubles import KernelTroubles

EARLY_BIT = "cannot know: under KVM the CPU may set A ahead of any access (SDM volume 3, 4.8; APM volume 2, 5.4.2)"
NOT_RUN = "cannot know: it was not run"
NO_RESULT = "cannot know: the run has no result of it"
_INVARIANTS = "the invariants held at {stops}, and the kernel log has no complaint"


def uncalibrated(violation: Violation) -> str:
    """Why nothing that was read can be believed."""
    return f"the walk and pagemap disagree, so the walk proves nothing: {violation}"


def troubles(seen: KernelTroubles) -> list[str]:
    """What is held against the kernel, one line each."""
    lines = [f"the kernel log: {line}" for line in seen.complaints]
    return lines + ([f"the kernel is now tainted: {', '.join(describe_taint(seen.taint))}"] if seen.taint else [])


def invariants(stops: int | None = None) -> str:
    """The name of the claim that each scenario makes.

    :param stops: None for "every stop".
    """
    many = "every stop" if stops is None else f"{stops} stop" if stops == 1 else f"{stops} stops"
    return _INVARIANTS.format(stops=many)


def claims(result: ScenarioResult) -> tuple[tuple[Claim, str, str], ...]:
    """Each claim of a result with its name and its message."""
    return tuple((one, *_claim(result, one)) for one in result.claims)


def _claim(result: ScenarioResult, claim: Claim) -> tuple[str, str]:
    if claim.kind is ClaimKind.INVARIANTS:
        return invariants(result.stops), "\n".join(_held(result))
    return claim.name, EARLY_BIT if claim.outcome is Outcome.SKIPPED else claim.message


def _held(result: ScenarioResult) -> Iterator[str]:
    broken = [*map(str, result.broken), *(line for seen in result.kernel for line in troubles(seen))]
    yield from broken
    if not broken:
        yield from (seen.gap for seen in result.kernel if seen.gap)
    yield from (f"not the kernel's fault: {one.line} ({one.why})" for seen in result.kernel for one in seen.excused)


def broken_claims(result: ScenarioResult) -> list[str]:
    """The names of the claims that do not hold."""
    return [name for claim, name, _ in claims(result) if claim.outcome is Outcome.FAILED]


def reason(result: ScenarioResult) -> str:
    """Why the outcome is what it is; "" if the scenario simply passed."""
    return "\n".join(filter(None, (_reason(result), *returned(result))))


def _reason(result: ScenarioResult) -> str:
    if result.outcome is Outcome.KNOWN_BUG:
        return "; ".join(f"known bug {bug.id}: {bug.title}" for bug in result.known_bugs)
    if result.fixed_bugs:
        return "fixed here: " + ", ".join(f"{bug.id} ({bug.version} had it)" for bug in result.fixed_bugs)
    return f"{result.failed_by_claims} claims do not hold" if result.failed_by_claims else result.reason


def returned(result: ScenarioResult) -> list[str]:
    """The known bugs whose symptoms a kernel shows that was measured without them, one line each."""
    return [
        f"this looks like {bug.id}, but {bug.version} was measured without {bug.id} on {bug.date}"
        for bug in result.returned_bugs
    ]


def failure(result: ScenarioResult) -> str:
    """The reason of a failure, with everything that a table's footnote needs in the first line."""
    first, newline, rest = _reason(result).partition("\n")
    said = ": ".join(filter(None, (first, "; ".join(broken_claims(result)))))
    return "; ".join(filter(None, (said, *returned(result)))) + newline + rest


def errors(result: ScenarioResult) -> str:
    """What is not known, if a scenario that passed has claims of which that is so."""
    return "; ".join(said or name for claim, name, said in claims(result) if claim.outcome is Outcome.ERROR)


def waived(result: ScenarioResult) -> list[str]:
    """What the test waived and why, and how often it did not hold; one line per invariant."""
    told = []
    for invariant, why in result.waived:
        broken = [one for one in result.violations if one.invariant is invariant]
        times = f"{len(broken)} times" if len(broken) > 1 else "once"
        seen = f"broken {times}, first {broken[0].message}" if broken else "not needed: it held"
        told.append(f"{invariant.value}: {why} ({seen})")
    return told
