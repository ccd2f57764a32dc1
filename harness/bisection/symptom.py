"""What a bisection looks for: one way in which a scenario failed at the bad end, and whether a run shows it. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Any, Self

from harness.errors import UsageError
from harness.verdict import words
from harness.verdict.claims import Claim, Outcome, ScenarioResult
from harness.verdict.invariants import Violation
from harness.verdict.json_fields import as_object, member, strings
from harness.verdict.log.taint import Taint
from harness.verdict.log.troubles import EndKind, KernelComplaint
from harness.verdict.symptoms import Failure, failures_of


class TraitKind(enum.Enum):
    """What a failure is recognised by."""

    CLAIM = "claim"
    INVARIANT = "invariant"
    COMPLAINT = "complaint"
    TAINT = "taint"
    CRASH = "crash"
    HANG = "hang"
    END = "end"
    """The program ended otherwise than it should have, or an assertion failed."""


@dataclass(frozen=True)
class Trait:
    """One way in which a scenario fails: this claim, a crash with this title, a hang at this checkpoint."""

    kind: TraitKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.name}" if self.name else self.kind.value

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str()`` wrote, such as "claim: the child's entry is writable".

        :raises UsageError: text has another form.
        """
        kind, _, name = text.partition(":")
        try:
            return cls(TraitKind(kind.strip()), name.strip())
        except ValueError:
            kinds = ", ".join(one.value for one in TraitKind)
            raise UsageError(f"{text!r} is not a symptom; expected KIND: NAME, where KIND is one of {kinds}") from None

    def to_json(self) -> dict[str, Any]:
        """Return it as an object of a journal."""
        return {"kind": self.kind.value, "name": self.name}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value has another form.
        """
        data = as_object(value, "a symptom")
        return cls(member(data, "kind", TraitKind), *strings(data, "name"))


class Sighting(enum.Enum):
    """What a run says about a symptom."""

    SHOWS = "shows"
    PASSES = "passes"
    UNTESTABLE = "untestable"
    """It was skipped, or fails otherwise."""


def traits_of(result: ScenarioResult) -> tuple[Trait, ...]:
    """Return how a result fails, first what it is told by; a known bug fails like any other."""
    claims = tuple(
        replace(one, outcome=Outcome.FAILED) if one.found is Outcome.KNOWN_BUG else one for one in result.claims
    )
    return tuple(dict.fromkeys(_trait(one, result) for one in failures_of(replace(result, claims=claims))))


def sighting(result: ScenarioResult, sought: Trait | None) -> tuple[Sighting, str]:
    """Return what a result says about a symptom, and the reason.

    :param sought: None for any failure.
    """
    if result.outcome is Outcome.PASSED:
        return Sighting.PASSES, ""
    if result.outcome is Outcome.SKIPPED:
        return Sighting.UNTESTABLE, f"skipped: {words.reason(result)}"
    traits = traits_of(result)
    if sought is None or sought in traits:
        return Sighting.SHOWS, str(sought or next(iter(traits), "")) or words.reason(result)
    return Sighting.UNTESTABLE, f"it fails otherwise: {next(iter(traits), words.reason(result))}"


def _trait(failure: Failure, result: ScenarioResult) -> Trait:
    if isinstance(failure, Claim):
        return Trait(TraitKind.CLAIM, failure.name)
    if isinstance(failure, Violation):
        return Trait(TraitKind.INVARIANT, failure.invariant.id)
    if isinstance(failure, KernelComplaint):
        return Trait(TraitKind.COMPLAINT, failure.title or failure.line)
    if isinstance(failure, Taint):
        return Trait(TraitKind.TAINT, str(failure.name))
    if failure.end.kind is EndKind.DIED:
        return Trait(TraitKind.CRASH, (failure.complaint.title or failure.complaint.line) if failure.complaint else "")
    if failure.end.kind is EndKind.HANG:
        return Trait(TraitKind.HANG, result.observations[-1].checkpoint if result.observations else "")
    return Trait(TraitKind.END, failure.end.signal or failure.end.kind.value)
