"""The differences between two kernels that ran the same suite. Pure.

What may vary between two runs of the same kernel does not count: the frames of ordinary memory
(:mod:`harness.pagetable.changes`), addresses and pids in a message, and the kernel's own name. The rest may still be
a race, so a caller may run again what differs (:func:`lasting`).
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.pagetable import Bits, EntryChange, Level, Observation, diff
from harness.verdict import words
from harness.verdict.claims import Claim, ClaimKind, Outcome, Run, ScenarioResult
from harness.verdict.table import Case, Column

SCHEMA = "hugepfn-compare"
VERSION = 1
NOTHING = "nothing"  # shown for a side that has no such result or entry
NOT_CLAIMED = "not claimed"

_UNSTABLE = (
    (re.compile(r"\b0x[0-9a-f]+\b|\b[0-9a-f]{8,16}\b"), "0x.."),  # addresses
    (re.compile(r"\b(pid|PID|CPU|cpu)(:? )\d+"), r"\1\2N"),
    (re.compile(r"\[\s*\d+\.\d+\]"), "[..]"),  # printk timestamps
)


class What(enum.Enum):
    """What a difference is about."""

    OUTCOME = "outcome"
    REASON = "reason"  # the same outcome, for another reason
    CLAIM = "claim"
    CHECKPOINT = "checkpoint"  # only one kernel reached it
    ENTRY = "entry"


@dataclass(frozen=True)
class Difference:
    """One question that the two kernels answer differently."""

    what: What
    name: str  # of the claim or the checkpoint; "" for the others
    before: str  # the first kernel's answer: an outcome, a reason, a level with its bits
    after: str
    kernel_function: str = ""  # that decides the claim
    change: EntryChange | None = None  # for an entry

    @property
    def question(self) -> tuple[object, ...]:
        """The question without the answers."""
        return self.what, self.name, self.change.key if self.change else None

    def to_json(self) -> dict[str, Any]:
        """Return this difference as an object of schema hugepfn-compare."""
        data: dict[str, Any] = {"what": self.what.value, "name": self.name}
        data |= {"before": self.before, "after": self.after, "kernel_function": self.kernel_function}
        if self.change is not None:
            one, other = self.change.before, self.change.after
            data["entry"] = {
                **self.change.key._asdict(),
                "before": one.to_json() if one else None,
                "after": other.to_json() if other else None,
                "appeared": list(self.change.appeared),
                "vanished": list(self.change.vanished),
            }
        return data


@dataclass(frozen=True)
class CaseDifference:
    """Everything that differs in one scenario at one level; at least one thing does."""

    case: Case
    differences: tuple[Difference, ...]

    def of(self, what: What) -> tuple[Difference, ...]:
        """The differences of one kind."""
        return tuple(one for one in self.differences if one.what is what)

    def to_json(self) -> dict[str, Any]:
        """Return this case as an object of schema hugepfn-compare."""
        case = {"scenario": self.case.scenario, "level": self.case.level, "turn": self.case.turn}
        return {**case, "file": self.case.file, "differences": [one.to_json() for one in self.differences]}


def compare_runs(before: Run, after: Run) -> tuple[CaseDifference, ...]:
    """Compare two runs. A case that is an error on either side is left out, because nothing is known about it."""
    first, second = (Column("", (run,)).by_case[0] for run in (before, after))
    early = any(_sets_accessed_early(run) for run in (before, after))
    found = []
    for case in dict.fromkeys((*first, *second)):
        one, other = first.get(case), second.get(case)
        differences = tuple(_differences(one, other, (_names(before), _names(after)), early=early))
        if differences:
            found.append(CaseDifference(case, differences))
    return tuple(found)


def unknown_cases(*runs: Run) -> dict[Case, str]:
    """Return the cases that are an error on at least one side, each with the reason."""
    found: dict[Case, str] = {}
    for run in runs:
        for case, result in Column("", (run,)).by_case[0].items():
            if result.outcome is Outcome.ERROR:
                found.setdefault(case, words.reason(result) or Outcome.ERROR.value)
    return found


def lasting(
    rounds: Sequence[tuple[CaseDifference, ...]],
) -> tuple[tuple[CaseDifference, ...], tuple[CaseDifference, ...]]:
    """Split several comparisons of the same two kernels into what differs in all of them, and what only in some.

    :param rounds: the first covers everything; later ones may cover only the cases that differed in it.
    """
    everywhere = [{(one.case, d.question) for one in found for d in one.differences} for found in rounds]
    lasts = set.intersection(*everywhere) if everywhere else set()
    stays, passes = [], []
    for one in rounds[0] if rounds else ():
        kept = tuple(d for d in one.differences if (one.case, d.question) in lasts)
        rest = tuple(d for d in one.differences if (one.case, d.question) not in lasts)
        stays += [CaseDifference(one.case, kept)] if kept else []
        passes += [CaseDifference(one.case, rest)] if rest else []
    return tuple(stays), tuple(passes)


def folded(differences: Iterable[Difference]) -> Iterator[tuple[Difference, int]]:
    """Yield neighbouring entries that differ in the same way as one: the first of them, and their number."""
    group: list[Difference] = []
    for one in differences:
        if group and not _continues(group[-1], one):
            yield group[0], len(group)
            group = []
        group.append(one)
    if group:
        yield group[0], len(group)


def _names(run: Run) -> tuple[str, ...]:
    """Return the names of the kernel under test, longest first."""
    kernel = run.context.get("kernel")
    names = [str(kernel[key]) for key in ("spec", "release") if kernel.get(key)] if isinstance(kernel, dict) else []
    return tuple(sorted(names, key=len, reverse=True))


def _sets_accessed_early(run: Run) -> bool:
    """Return whether the CPU may set A before any access, so that A says nothing about the kernel."""
    return Bits.A.name in ((run.context.get("capabilities") or {}).get("early") or ())


def _differences(
    one: ScenarioResult | None,
    other: ScenarioResult | None,
    names: tuple[tuple[str, ...], tuple[str, ...]],
    *,
    early: bool,
) -> Iterator[Difference]:
    sides = [side for side in (one, other) if side is not None]
    if any(side.outcome is Outcome.ERROR for side in sides):
        return
    said = _said(one), _said(other)
    if one is None or other is None or one.outcome is not other.outcome:
        yield Difference(What.OUTCOME, "", *said)
    elif _why(one, names[0]) != _why(other, names[1]):
        yield Difference(What.REASON, "", *said)
    if one is None or other is None or Outcome.SKIPPED in (one.outcome, other.outcome):
        return  # one side has no results for the scenario: the outcome shows that
    yield from _claims(one, other)
    yield from _entries(one, other, early=early)


def _said(result: ScenarioResult | None) -> str:
    if result is None:
        return NOTHING
    why = words.reason(result).strip().partition("\n")[0]
    return words.with_reason(result.outcome, words.of_outcome(result.outcome), why)


def _why(result: ScenarioResult, names: Iterable[str]) -> tuple[object, ...]:
    """Return the reason for the outcome, without what varies between two runs or two kernels."""
    if result.known_bugs:
        return result.known_bugs
    reason = result.reason
    for one in (one for seen in result.kernel for one in seen.complaints):
        if one.has_function:  # the same bug has other line numbers and sizes on another kernel
            reason = reason.replace(one.words, one.title)
    return result.fixed_bugs, result.returned_bugs, result.failed_by_claims, _stable(reason, names)


def _stable(reason: str, names: Iterable[str]) -> str:
    for name in names:
        reason = reason.replace(name, "KERNEL")
    for pattern, substitute in _UNSTABLE:
        reason = pattern.sub(substitute, reason)
    return reason


_Key = tuple[ClaimKind, str, int]  # the number counts claims of the same name


def _claims(one: ScenarioResult, other: ScenarioResult) -> Iterator[Difference]:
    first, second = _claims_by_key(one), _claims_by_key(other)
    for key in dict.fromkeys((*first, *second)):
        before, after = (side[key].outcome if key in side else None for side in (first, second))
        ended = [side.outcome for side, said in ((one, before), (other, after)) if said is None]
        if Outcome.FAILED in ended and one.outcome is not other.outcome:
            continue  # the test ended before this claim: the outcome shows that
        if before is not after and Outcome.SKIPPED not in (before, after):  # nothing is known about that side
            name = words.invariants() if key[0] is ClaimKind.INVARIANTS else key[1]
            function = (first.get(key) or second[key]).kernel_function
            yield Difference(What.CLAIM, name, _outcome(before), _outcome(after), function)


def _outcome(outcome: Outcome | None) -> str:
    return NOT_CLAIMED if outcome is None else words.of_outcome(outcome)


def _claims_by_key(result: ScenarioResult) -> dict[_Key, Claim]:
    seen: Counter[tuple[ClaimKind, str]] = Counter()
    found = {}
    for claim in result.claims:
        found[*claim.key, seen[claim.key]] = claim
        seen[claim.key] += 1
    return found


def _entries(one: ScenarioResult, other: ScenarioResult, *, early: bool) -> Iterator[Difference]:
    first, second = one.observations, other.observations
    if early:
        first, second = (tuple(seen.aged() for seen in side) for side in (first, second))
    stops = [dict.fromkeys(seen.checkpoint for seen in side) for side in (first, second)]
    for name in dict.fromkeys((*stops[0], *stops[1])):
        if not (name in stops[0] and name in stops[1]):
            before, after = ("came there" if name in side else "never came there" for side in stops)
            yield Difference(What.CHECKPOINT, name, before, after)
    for change in diff(first, second):
        if change.key.checkpoint in stops[0] and change.key.checkpoint in stops[1]:
            yield Difference(What.ENTRY, "", _answer(change.before), _answer(change.after), change=change)


def _answer(seen: Observation | None) -> str:
    return NOTHING if seen is None else seen.answer


def _continues(last: Difference, one: Difference) -> bool:
    """Return whether ``one`` is the next entry after ``last`` and differs in the same way."""
    if last.change is None or one.change is None:
        return False
    answers = [
        tuple((seen.level, seen.bits) if seen else None for seen in (change.before, change.after))
        for change in (last.change, one.change)
    ]
    seen = last.change.before or last.change.after
    if answers[0] != answers[1] or seen is None or seen.level == "none":
        return False
    step = Level.from_label(seen.level).size_bytes
    return one.change.key == last.change.key._replace(offset=last.change.key.offset + step)
