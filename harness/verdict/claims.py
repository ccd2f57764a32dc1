"""Results as values, as ``--json`` writes them, and the exit status that follows from them.

docs/results.md describes the file. Words for people are made from these values where they are shown
(:mod:`harness.verdict.words`).

A reader ignores keys that it does not know. A change that would mislead such a reader increases the version.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from harness.errors import ExitCode, UsageError
from harness.pagetable import Observation
from harness.verdict.expected.expectation import Expectation, ExpectationAnswer
from harness.verdict.invariants import Invariant, Violation
from harness.verdict.json_fields import JsonObject, as_object, day, member, objects, strings, value_of
from harness.verdict.log.troubles import End, KernelTroubles
from harness.verdict.mismatch import Mismatch

SCHEMA = "hugepfn-run"
VERSION = 3


class Outcome(enum.Enum):
    """The outcome of a scenario or of one of its claims."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    KNOWN_BUG = "known_bug"
    """It failed as the list of known bugs says, which does not fail the run."""
    EXPECTED = "expected"
    """It ended as ``--expect`` says, which would otherwise count as a failure or a skip."""
    ERROR = "error"
    """The machinery failed: nothing is known about the kernel."""


class ClaimKind(enum.Enum):
    """What a claim is about."""

    SCENARIO = "scenario"
    """A statement that the test makes and names."""
    INVARIANTS = "invariants"
    """The invariants hold at every stop, and the kernel log has no complaint. This claim has no name."""


@dataclass(frozen=True)
class Claim:
    """A statement about page-table entries, and whether it holds on the kernel."""

    name: str
    """In the words of the test; "" for the other kind."""
    outcome: Outcome
    """SKIPPED: it does not hold, but the CPU may be the reason."""
    kernel_function: str
    """What decides it: "mm/huge_memory.c copy_huge_pud()", or other words for what is not a kernel function."""
    message: str = ""
    """What was seen instead, with both entries, in words; "" if it holds."""
    kind: ClaimKind = ClaimKind.SCENARIO
    checkpoint: str = ""
    """The last checkpoint that the program had reached; "" if it had reached none."""
    mismatch: Mismatch | None = None
    """What was seen instead, as a value; None if it holds, or if that is not known."""
    was: Outcome | None = None
    """For EXPECTED: the outcome without the expectation."""

    @property
    def found(self) -> Outcome:
        """The outcome without any expectation."""
        return self.was or self.outcome

    @property
    def key(self) -> tuple[ClaimKind, str]:
        """What identifies it among the claims of its scenario, on every kernel."""
        return self.kind, self.name

    def to_json(self) -> dict[str, Any]:
        """Return this claim as an object of schema hugepfn-run."""
        return {
            "kind": self.kind.value,
            "name": self.name,
            "outcome": self.outcome.value,
            "kernel_function": self.kernel_function,
            "message": self.message,
            "checkpoint": self.checkpoint,
            "mismatch": self.mismatch.to_json() if self.mismatch is not None else None,
            "was": self.was.value if self.was is not None else None,
        }

    @classmethod
    def from_json(cls, value: object) -> Claim:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value has another form.
        """
        data = as_object(value, "a claim")
        return cls(
            name=value_of(data, "name", str),
            outcome=member(data, "outcome", Outcome),
            kernel_function=value_of(data, "kernel_function", str),
            message=value_of(data, "message", str),
            kind=member(data, "kind", ClaimKind),
            checkpoint=str(data.get("checkpoint") or ""),
            mismatch=Mismatch.from_json(data["mismatch"]) if data.get("mismatch") is not None else None,
            was=_was(data),
        )


@dataclass(frozen=True)
class BugSeen:
    """A known bug that explains a failure."""

    id: str
    title: str


@dataclass(frozen=True)
class BugFixed:
    """A known bug that did not show, and the older kernel of the series that was seen to have it."""

    id: str
    version: str


@dataclass(frozen=True)
class BugReturned:
    """A known bug whose symptom shows, and the measurement of this or an older version that did not find it."""

    id: str
    version: str
    date: date


@dataclass(frozen=True)
class Answered:
    """What became of an expectation in one case."""

    said: Expectation
    answer: ExpectationAnswer
    found: Outcome | None
    """How the case or the claim ended; None if the claim was not made."""

    @property
    def unmet(self) -> bool:
        """Whether it fails the case."""
        return self.answer in (ExpectationAnswer.UNMET, ExpectationAnswer.NO_CLAIM)

    def to_json(self) -> dict[str, Any]:
        """This answer as an object of schema hugepfn-run."""
        found = self.found.value if self.found is not None else None
        return {**self.said.to_json(), "answer": self.answer.value, "found": found}

    @classmethod
    def from_json(cls, value: object) -> Answered:
        """Read an answer back.

        :raises UsageError: value has another form.
        """
        data = as_object(value, "what became of an expectation")
        found = None if data.get("found") is None else member(data, "found", Outcome)
        return cls(Expectation.from_json(data), member(data, "answer", ExpectationAnswer), found)


@dataclass(frozen=True)
class ScenarioResult:
    """One scenario at one page-table level on one kernel."""

    scenario: str
    """The name of the test without ``test_``, with its class and with its parameters other than the level."""
    level: str | None
    """"pte", "pmd" or "pud"; None for a scenario without levels."""
    outcome: Outcome
    reason: str = ""
    """Why it was skipped, or the error that ended it, in words; "" if the other values tell it."""
    claims: tuple[Claim, ...] = ()
    observations: tuple[Observation, ...] = ()
    log: tuple[str, ...] = ()
    """The kernel log since the first guest program started, one string per line; the last lines of a failed boot."""
    waived: tuple[tuple[Invariant, str], ...] = ()
    """Invariants that need not hold in this test, each with the reason that the test gives."""
    cannot_know: bool = False
    """It was skipped because this machine cannot show what it is about."""
    stops: int = 0
    """The number of stops at which the invariants were checked."""
    violations: tuple[Violation, ...] = ()
    """Of all invariants, including those that the test waived."""
    kernel: tuple[KernelTroubles, ...] = ()
    """What the kernel itself found wrong, once per program that ran."""
    known_bugs: tuple[BugSeen, ...] = ()
    """For KNOWN_BUG: the bugs that explain the failures."""
    fixed_bugs: tuple[BugFixed, ...] = ()
    returned_bugs: tuple[BugReturned, ...] = ()
    file: str = ""
    """The file of a test of the user's own; "" for hugepfn's scenarios."""
    end: End | None = None
    """What ended it too early; None if it came to its end, or if the machinery ended it."""
    was: Outcome | None = None
    """For EXPECTED: the outcome without the expectation."""
    expectations: tuple[Answered, ...] = ()
    """What was expected of it, and what became of that. One that is unmet makes it FAILED."""
    evidence: str = ""
    """The folder with the evidence of a failure; "" if none was kept."""

    @property
    def as_found(self) -> ScenarioResult:
        """The result without any expectation; an unmet one is not taken back."""
        claims = tuple(replace(one, outcome=one.found, was=None) for one in self.claims)
        outcome = (self.was or Outcome.FAILED) if self.outcome is Outcome.EXPECTED else self.outcome
        return replace(self, outcome=outcome, was=None, claims=claims, expectations=())

    @property
    def broken(self) -> tuple[Violation, ...]:
        """The violations that the test did not waive."""
        waived = [invariant for invariant, _ in self.waived]
        return tuple(one for one in self.violations if one.invariant not in waived)

    @property
    def failed_by_claims(self) -> int:
        """The number of broken claims, if they alone made it fail; otherwise 0."""
        if self.outcome is not Outcome.FAILED or self.reason:
            return 0
        return sum(one.kind is ClaimKind.SCENARIO and one.outcome is Outcome.FAILED for one in self.claims)

    def to_json(self) -> dict[str, Any]:
        """Return this result as an object of schema hugepfn-run."""
        return {
            "scenario": self.scenario,
            "file": self.file,
            "level": self.level,
            "outcome": self.outcome.value,
            "was": self.was.value if self.was is not None else None,
            "reason": self.reason,
            "end": self.end.to_json() if self.end is not None else None,
            "cannot_know": self.cannot_know,
            "claims": [claim.to_json() for claim in self.claims],
            "stops": self.stops,
            "violations": [one.to_json() for one in self.violations],
            "waived": [{"invariant": one.id, "reason": why} for one, why in self.waived],
            "kernel": [one.to_json() for one in self.kernel],
            "known_bugs": [{"id": bug.id, "title": bug.title} for bug in self.known_bugs],
            "fixed_bugs": [{"id": bug.id, "version": bug.version} for bug in self.fixed_bugs],
            "returned_bugs": [
                {"id": bug.id, "version": bug.version, "date": bug.date.isoformat()} for bug in self.returned_bugs
            ],
            "expectations": [one.to_json() for one in self.expectations],
            "evidence": self.evidence,
            "observations": [one.to_json() for one in self.observations],
            "log": list(self.log),
        }

    @classmethod
    def from_json(cls, value: object) -> ScenarioResult:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value has another form.
        """
        data = as_object(value, "a result")
        return cls(
            scenario=value_of(data, "scenario", str),
            file=str(data.get("file", "")),  # older files have only hugepfn's scenarios
            level=None if data.get("level") is None else value_of(data, "level", str),
            outcome=member(data, "outcome", Outcome),
            was=_was(data),
            reason=value_of(data, "reason", str),
            end=End.from_json(data["end"]) if data.get("end") is not None else None,
            cannot_know=value_of(data, "cannot_know", bool),
            claims=tuple(Claim.from_json(claim) for claim in value_of(data, "claims", list)),
            stops=value_of(data, "stops", int),
            violations=tuple(map(Violation.from_json, objects(data, "violations"))),
            waived=tuple((Invariant.of(one), value_of(one, "reason", str)) for one in objects(data, "waived")),
            kernel=tuple(map(KernelTroubles.from_json, objects(data, "kernel"))),
            known_bugs=tuple(BugSeen(*strings(one, "id", "title")) for one in objects(data, "known_bugs")),
            fixed_bugs=tuple(BugFixed(*strings(one, "id", "version")) for one in objects(data, "fixed_bugs")),
            returned_bugs=tuple(
                BugReturned(value_of(one, "id", str), value_of(one, "version", str), day(one))
                for one in objects(data, "returned_bugs")
            ),
            expectations=tuple(map(Answered.from_json, data.get("expectations") or ())),
            evidence=str(data.get("evidence") or ""),
            observations=tuple(map(Observation.from_json, value_of(data, "observations", list))),
            log=tuple(str(line) for line in value_of(data, "log", list)),
        )


def _was(data: JsonObject) -> Outcome | None:
    return None if data.get("was") is None else member(data, "was", Outcome)


@dataclass(frozen=True)
class Run:
    """The results of one run: the whole ``--json`` file."""

    results: tuple[ScenarioResult, ...]
    context: JsonObject = field(default_factory=dict)
    """What the tests ran on, as further keys of the file's object (kernel, accel, qemu), in types that JSON has."""

    def to_json(self) -> dict[str, Any]:
        """Return the object of the file, ready for :func:`json.dump`."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            **self.context,
            "results": [result.to_json() for result in self.results],
        }

    @classmethod
    def from_json(cls, value: object) -> Run:
        """Read the object of a file, as :func:`json.load` returned it.

        :raises UsageError: value is not a hugepfn-run object, or has another version.
        """
        data = as_object(value, "the file")
        schema, version = data.get("schema"), data.get("version")
        if schema != SCHEMA:
            raise UsageError(f"the file has schema {schema!r}; expected {SCHEMA!r}, as `hugepfn run --json` writes it")
        if version != VERSION or isinstance(version, bool):
            raise UsageError(
                f"the file has {SCHEMA} version {version!r}; expected version {VERSION}: run again with --json"
            )
        return cls(
            results=tuple(ScenarioResult.from_json(result) for result in value_of(data, "results", list)),
            context={key: value for key, value in data.items() if key not in ("schema", "version", "results")},
        )


def exit_code(results: Iterable[ScenarioResult], *, strict: bool = False) -> ExitCode:
    """Return the exit status of a run; a claim counts as much as its scenario.

    :param strict: count a skip, of a scenario or of one claim, as a failure.
    :returns: CLAIM_FAILED if anything failed, else MACHINERY if there was an error, else OK; USAGE if there are no
        results, because a selection that ran nothing proves nothing.
    """
    found = {outcome for result in results for outcome in (result.outcome, *(claim.outcome for claim in result.claims))}
    if not found:
        return ExitCode.USAGE
    if Outcome.FAILED in found or (strict and Outcome.SKIPPED in found):
        return ExitCode.CLAIM_FAILED
    return ExitCode.MACHINERY if Outcome.ERROR in found else ExitCode.OK
