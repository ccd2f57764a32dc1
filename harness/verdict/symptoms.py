"""What went wrong in a scenario, and how a known bug shows: both as values, of which none is a message. Pure.

A symptom is recognised by the values of a result. Its first key says what it is; what else is given has to be so, too:

=========== ============================================================================================================
claim       A claim that does not hold, by its name, and the values of its :class:`~harness.verdict.mismatch.Mismatch`:
            ``subject``, ``name``, ``expected``, ``got``, ``wrong`` (the signed names of exactly the bits and parts that
            differ), and of its entry ``process`` and ``level`` ("none": there is none).
invariant   An invariant that is broken, by its id, and the ``level`` of the entry.
complaint   A complaint in the kernel's log that ended nothing, by its kind (:class:`ComplaintKind`), the innermost
            ``function`` of its trace and one of the functions that ``called`` it.
taint       A list of exactly those taints that the kernel got (:class:`~harness.verdict.log.taint.Taint`).
oracle      What the explorer saw (:class:`~harness.verdict.invariants.Deviation`), by what says that it is wrong, with
            its ``cause``, ``level``, ``expected`` and ``got``.
end         What ended the test (:class:`~harness.verdict.log.troubles.EndKind`), and the ``signal`` of a program. Of a
            kernel that died, ``complaint``, ``function`` and ``called`` as above, of its first complaint.
=========== ============================================================================================================

``claim``, ``name``, ``expected``, ``got``, ``process``, ``function``, ``called`` and ``cause`` are regular expressions,
which have to match all of it.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from harness.errors import UsageError
from harness.levels import PAGE_SIZES
from harness.pagetable import Bits
from harness.verdict.claims import Claim, ClaimKind, Outcome, ScenarioResult
from harness.verdict.invariants import Deviation, Invariant, Oracle, Violation
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.taint import Taint
from harness.verdict.log.troubles import NO_TAINT, End, EndKind, KernelComplaint
from harness.verdict.mismatch import EntrySeen, Subject

_T = TypeVar("_T")
_E = TypeVar("_E", bound=enum.Enum)


@dataclass(frozen=True, slots=True)
class Ended:
    """What ended a test, with the complaint of a kernel that died."""

    end: End
    complaint: KernelComplaint | None = None


Failure = Claim | Violation | KernelComplaint | Taint | Ended
"""One thing that went wrong in a scenario."""

Shown = Failure | Deviation
"""One thing that went wrong in a scenario, or in a sequence of the explorer."""


def failures_of(result: ScenarioResult) -> list[Failure]:
    """Return each thing that went wrong, once: broken claims, broken invariants, the kernel log, what ended the test.

    What a kernel complains about after its first complaint, of which it died, follows from that.
    """
    found: list[Failure] = [
        one for one in result.claims if one.kind is ClaimKind.SCENARIO and one.outcome is Outcome.FAILED
    ]
    found += result.broken
    if result.end is not None and result.end.kind is EndKind.DIED:
        last = result.kernel[-1].complaints if result.kernel else ()
        return [*found, Ended(result.end, *last[:1])]
    found += [Ended(result.end)] if result.end is not None else []
    for seen in result.kernel:
        found += [*seen.complaints, *([seen.taint] if seen.taint else [])]
    return found


@dataclass(frozen=True, slots=True)
class ClaimSymptom:
    """A claim that does not hold."""

    claim: re.Pattern[str]
    subject: Subject | None = None
    name: re.Pattern[str] | None = None
    expected: re.Pattern[str] | None = None
    got: re.Pattern[str] | None = None
    wrong: frozenset[str] | None = None
    process: re.Pattern[str] | None = None
    level: str | None = None

    def shows_in(self, failure: Shown) -> bool:
        """Return whether the failure is this symptom."""
        if not isinstance(failure, Claim) or not self.claim.fullmatch(failure.name):
            return False
        seen = failure.mismatch
        if seen is None:
            return all(getattr(self, one.name) is None for one in dataclasses.fields(self)[1:])
        place = seen.entry.place if seen.entry is not None else None
        return (
            self.subject in (None, seen.subject)
            and _fits(self.name, seen.name)
            and _fits(self.expected, seen.expected)
            and _fits(self.got, seen.got)
            and self.wrong in (None, seen.wrong)
            and _fits(self.process, place.process if place is not None else "")
            and _at(self.level, seen.entry)
        )


@dataclass(frozen=True, slots=True)
class InvariantSymptom:
    """An invariant that is broken."""

    invariant: Invariant
    level: str | None = None

    def shows_in(self, failure: Shown) -> bool:
        """Return whether the failure is this symptom."""
        if not isinstance(failure, Violation):
            return False
        return failure.invariant is self.invariant and _at(self.level, failure.entry)


@dataclass(frozen=True, slots=True)
class DeviationSymptom:
    """What the explorer saw."""

    oracle: Oracle
    cause: re.Pattern[str] | None = None
    level: str | None = None
    expected: re.Pattern[str] | None = None
    got: re.Pattern[str] | None = None

    def shows_in(self, failure: Shown) -> bool:
        """Return whether the failure is this symptom."""
        return (
            isinstance(failure, Deviation)
            and failure.oracle is self.oracle
            and any(_fits(self.cause, one) for one in failure.causes)
            and self.level in (None, failure.level)
            and _fits(self.expected, failure.expected)
            and _fits(self.got, failure.got)
        )


@dataclass(frozen=True, slots=True)
class ComplaintSymptom:
    """A complaint of the kernel."""

    complaint: ComplaintKind | None = None
    function: re.Pattern[str] | None = None
    called: re.Pattern[str] | None = None

    def shows_in(self, failure: Shown) -> bool:
        """Return whether the failure is this symptom."""
        return isinstance(failure, KernelComplaint) and self.is_of(failure)

    def is_of(self, complaint: KernelComplaint | None) -> bool:
        """Return whether it is this complaint."""
        if complaint is None:
            return (self.complaint, self.function, self.called) == (None, None, None)
        innermost, callers = (*complaint.functions[:1], "")[0], complaint.functions[1:]
        called = self.called is None or any(self.called.fullmatch(name) for name in callers)
        return self.complaint in (None, complaint.kind) and _fits(self.function, innermost) and called


@dataclass(frozen=True, slots=True)
class TaintSymptom:
    """The taints that a kernel got."""

    taint: Taint

    def shows_in(self, failure: Shown) -> bool:
        """Return whether the failure is this symptom."""
        return isinstance(failure, Taint) and failure == self.taint


@dataclass(frozen=True, slots=True)
class EndSymptom(ComplaintSymptom):
    """What ended the test."""

    end: EndKind | None = None
    signal: str | None = None

    def shows_in(self, failure: Shown) -> bool:
        """Return whether the failure is this symptom."""
        if not isinstance(failure, Ended):
            return False
        same = failure.end.kind is self.end and self.signal in (None, failure.end.signal)
        return same and self.is_of(failure.complaint)


Symptom = ClaimSymptom | InvariantSymptom | DeviationSymptom | EndSymptom | ComplaintSymptom | TaintSymptom
"""One way in which a bug shows."""


def _fits(pattern: re.Pattern[str] | None, text: str) -> bool:
    return pattern is None or pattern.fullmatch(text) is not None


def _at(level: str | None, entry: EntrySeen | None) -> bool:
    return level is None or (entry is not None and entry.level == level)


def symptom(data: Mapping[str, Any]) -> Symptom:
    """Read a symptom.

    :raises UsageError: it is none; names the key that is wrong, and the values that it may have.
    """
    form = next((one for key, one in _FORMS.items() if key in data), None)
    if form is None:
        raise UsageError(f"a symptom has {', '.join(data) or 'nothing'}; expected one of: {', '.join(_FORMS)}")
    keys = [one.name for one in dataclasses.fields(form)]
    if unknown := [key for key in data if key not in keys]:
        raise UsageError(f"a symptom has the unknown key {unknown[0]!r}; expected some of: {', '.join(keys)}")
    return form(**{key: _READ[key](key, value) for key, value in data.items()})


def _expected(key: str, value: object, expected: str) -> UsageError:
    return UsageError(f"{key!r} of a symptom is {value!r}; expected {expected}")


def _pattern(key: str, value: object) -> re.Pattern[str]:
    try:
        return re.compile(value)  # type: ignore[call-overload, no-any-return]  # refused here if it is no text
    except (re.error, TypeError) as error:
        raise _expected(key, value, f"a regular expression: {error}") from None


def _one_of(values: Mapping[str, _T]) -> Callable[[str, object], _T]:
    def read(key: str, value: object) -> _T:
        if not isinstance(value, str) or value not in values:
            raise _expected(key, value, f"one of: {', '.join(values)}")
        return values[value]

    return read


def _members(kind: type[_E]) -> Callable[[str, object], _E]:
    return _one_of({str(one.value): one for one in kind})


def _names(key: str, value: object) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _expected(key, value, "a list of names")
    return frozenset(value)


def _wrong(key: str, value: object) -> frozenset[str]:
    bit = _one_of(Bits.__members__)
    names = _names(key, value)
    for name in sorted(names):
        if name[:1] in ("+", "-"):
            bit(key, name[1:])
    return names


def _taint(key: str, value: object) -> Taint:
    known = _one_of(Taint.__members__)
    return functools.reduce(operator.or_, (known(key, one) for one in sorted(_names(key, value))), NO_TAINT)


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise _expected(key, value, "a text")
    return value


#: By the key that says what a symptom is. "end" may have the keys of "complaint", too.
_FORMS: Mapping[str, type[Symptom]] = {
    "claim": ClaimSymptom,
    "invariant": InvariantSymptom,
    "oracle": DeviationSymptom,
    "end": EndSymptom,
    "complaint": ComplaintSymptom,
    "taint": TaintSymptom,
}
_READ: Mapping[str, Callable[[str, object], Any]] = {
    **dict.fromkeys(("claim", "name", "expected", "got", "process", "function", "called", "cause"), _pattern),
    "oracle": _members(Oracle),
    "subject": _members(Subject),
    "wrong": _wrong,
    "level": _one_of({level: level for level in (*PAGE_SIZES, "none")}),
    "invariant": _one_of({one.id: one for one in Invariant}),
    "complaint": _members(ComplaintKind),
    "taint": _taint,
    "end": _members(EndKind),
    "signal": _text,
}
