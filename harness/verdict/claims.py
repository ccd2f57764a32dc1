"""Results as ``--json`` writes them, and the exit status that follows from them.

The file is one JSON object::

    {"schema": "hugepfn-run", "version": 1,
     "kernel": {"spec": ..., "release": ..., "config_hash": ...}, "accel": ..., "qemu": ..., ...
                                        the context of the run, with as many keys as are known
     "results": [
       {"scenario": "fork", "level": "pud", "outcome": "failed", "reason": "",
        "claims": [{"name": ..., "outcome": ..., "kernel_function": ..., "message": ...}],
        "observations": [{...}],        objects of the observation schema, passed on without interpretation
        "log": ["..."],                 the kernel log during the scenario
        "waived": ["..."]}]}            invariants that the test waived, with its reason

A reader ignores keys that it does not know. A change that would mislead such a reader increases the version.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from harness.errors import ExitCode, UsageError

SCHEMA = "hugepfn-run"
VERSION = 1

JsonObject = Mapping[str, Any]
"""A JSON object of somebody else's schema, carried as it is."""

_T = TypeVar("_T")


class Outcome(enum.Enum):
    """The outcome of a scenario or of one of its claims."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    KNOWN_BUG = "known_bug"
    """It failed in the way that the ledger of known bugs says; no reason to fail the run."""
    ERROR = "error"
    """The machinery failed: nothing is known about the kernel."""


@dataclass(frozen=True)
class Claim:
    """A statement about page-table entries, and whether it holds on the kernel."""

    name: str
    outcome: Outcome
    kernel_function: str
    """The function of the kernel that decides it, such as "copy_huge_pud"."""
    message: str = ""
    """What was seen instead, with both entries; "" where it held."""

    def to_json(self) -> dict[str, Any]:
        """This claim as an object of schema hugepfn-run."""
        return {
            "name": self.name,
            "outcome": self.outcome.value,
            "kernel_function": self.kernel_function,
            "message": self.message,
        }

    @classmethod
    def from_json(cls, value: object) -> Claim:
        """Read a claim back.

        :raises UsageError: value has another form.
        """
        data = _object(value, "a claim")
        return cls(
            name=_field(data, "name", str),
            outcome=_outcome(data),
            kernel_function=_field(data, "kernel_function", str),
            message=_field(data, "message", str),
        )


@dataclass(frozen=True)
class ScenarioResult:
    """One scenario at one page-table level on one kernel."""

    scenario: str
    level: str | None
    """"pte", "pmd" or "pud"; None for a scenario that knows no levels."""
    outcome: Outcome
    reason: str = ""
    """Why it was skipped, or what went wrong; "" where it passed."""
    claims: tuple[Claim, ...] = ()
    observations: tuple[JsonObject, ...] = ()
    log: tuple[str, ...] = ()
    """The kernel's log from the first guest program on, a line each; of a boot that failed, its last lines."""
    waived: tuple[str, ...] = ()
    """Invariants that the test waived: name, reason, and whether that was needed."""

    def to_json(self) -> dict[str, Any]:
        """This result as an object of schema hugepfn-run."""
        return {
            "scenario": self.scenario,
            "level": self.level,
            "outcome": self.outcome.value,
            "reason": self.reason,
            "claims": [claim.to_json() for claim in self.claims],
            "observations": [dict(observation) for observation in self.observations],
            "log": list(self.log),
            "waived": list(self.waived),
        }

    @classmethod
    def from_json(cls, value: object) -> ScenarioResult:
        """Read a result back.

        :raises UsageError: value has another form.
        """
        data = _object(value, "a result")
        return cls(
            scenario=_field(data, "scenario", str),
            level=None if data.get("level") is None else _field(data, "level", str),
            outcome=_outcome(data),
            reason=_field(data, "reason", str),
            claims=tuple(Claim.from_json(claim) for claim in _field(data, "claims", list)),
            observations=tuple(_object(one, "an observation") for one in _field(data, "observations", list)),
            log=tuple(str(line) for line in _field({"log": [], **data}, "log", list)),  # older files have none
            waived=tuple(str(one) for one in _field({"waived": [], **data}, "waived", list)),  # and none of these
        )


@dataclass(frozen=True)
class Run:
    """Everything that one run found: the whole ``--json`` file."""

    results: tuple[ScenarioResult, ...]
    context: JsonObject = field(default_factory=dict)
    """What was run on, as further keys of the file's object: kernel, accel, qemu. JSON-able."""

    def to_json(self) -> dict[str, Any]:
        """The object of the file, ready for :func:`json.dump`."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            **self.context,
            "results": [result.to_json() for result in self.results],
        }

    @classmethod
    def from_json(cls, value: object) -> Run:
        """Read a file's object back, as :func:`json.load` returned it.

        :raises UsageError: value is not a hugepfn-run object, or has another version.
        """
        data = _object(value, "the file")
        schema, version = data.get("schema"), data.get("version")
        if schema != SCHEMA:
            raise UsageError(f"the file has schema {schema!r}, {SCHEMA!r} was expected; was it written by --json?")
        if version != VERSION or isinstance(version, bool):
            raise UsageError(
                f"the file is {SCHEMA} version {version!r}, this hugepfn reads version {VERSION}; "
                "write it again with this hugepfn, or read it with the one that wrote it"
            )
        return cls(
            results=tuple(ScenarioResult.from_json(result) for result in _field(data, "results", list)),
            context={key: value for key, value in data.items() if key not in ("schema", "version", "results")},
        )


def exit_code(results: Iterable[ScenarioResult], *, strict: bool = False) -> ExitCode:
    """The exit status of a run; a claim counts as much as its scenario.

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


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{what} is {type(value).__name__}, a JSON object was expected; is this a {SCHEMA} file?")
    return dict(value)


def _field(data: JsonObject, key: str, kind: type[_T]) -> _T:
    if key not in data:
        raise UsageError(f"{key!r} is missing in an object of {SCHEMA}; it has {', '.join(sorted(data)) or 'nothing'}")
    value = data[key]
    if not isinstance(value, kind):
        raise UsageError(f"{key!r} is {value!r:.80}, {kind.__name__} was expected")
    return value


def _outcome(data: JsonObject) -> Outcome:
    word = _field(data, "outcome", str)
    try:
        return Outcome(word)
    except ValueError:
        known = ", ".join(outcome.value for outcome in Outcome)
        raise UsageError(f"'outcome' is {word!r}, one of {known} was expected") from None
