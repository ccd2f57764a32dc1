"""Groups what the explorer finds by how it shows, and says which of it is known. Pure but for the words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.explorer.sequence import SequenceResult
from harness.model.operation import Operation
from harness.verdict.invariants import Deviation, Oracle, Violation
from harness.verdict.known_bugs import KnownBug
from harness.verdict.log.troubles import EndKind, KernelComplaint
from harness.verdict.symptoms import Ended, Shown

SCHEMA, VERSION = "hugepfn-explore", 1


def symptom_of(shown: Shown) -> str:
    """Return how a finding shows, without anything that differs between two findings of one bug."""
    match shown:
        case Deviation(oracle=oracle, cause=cause, level=level):
            values = oracle in (Oracle.DATA, Oracle.TEARDOWN)
            return f"{oracle.value}: {cause}{f' ({level})' if level else ''}" if values else str(shown)
        case Violation(entry=entry):
            return f"entries: {shown.invariant.value}{f' ({entry.level})' if entry is not None else ''}"
        case KernelComplaint():
            return f"log: {shown.title or shown.line}"
        case Ended(end=end, complaint=complaint):
            what = complaint.title or complaint.line if complaint is not None else "without a word"
            return f"hang: {what}" if end.kind is EndKind.HANG else f"the kernel died: {what}"
    return f"taint: {shown}"


@dataclass
class Group:
    """All sequences that fail in one way."""

    symptom: str
    shortest: SequenceResult
    number: int
    """Of the first sequence that showed it."""
    known: str = ""
    """The known bug that it is; "" if it is none."""
    times: int = 1
    confirmed: bool = False
    """It was seen again in a pristine machine, with the shortest sequence."""

    def to_json(self) -> dict[str, Any]:
        """Return it as a part of schema hugepfn-explore."""
        operations = [op.word() for op in self.shortest.operations]
        return {
            "symptom": self.symptom,
            "known": self.known,
            "times": self.times,
            "number": self.number,
            "confirmed": self.confirmed,
            "detail": detail_of(self.shortest.failure),
            "operations": operations,
        }


@dataclass
class Groups:
    """Everything that was found."""

    ledger: Sequence[KnownBug] = ()
    by_symptom: dict[str, Group] = field(default_factory=dict)

    def add(self, number: int, outcome: SequenceResult) -> Group | None:
        """Count a sequence that failed. Return its group if that is a new one, which is no known bug."""
        assert outcome.failure is not None
        symptom = symptom_of(outcome.failure)
        if (group := self.by_symptom.get(symptom)) is not None:
            group.times += 1
            return None
        known = next((bug.id for bug in self.ledger if bug.explains(outcome.failure)), "")
        group = self.by_symptom[symptom] = Group(symptom, outcome, number, known)
        return None if known else group

    @property
    def new(self) -> list[Group]:
        """The groups that are no known bugs, by the number of the sequence that showed each first."""
        return sorted((one for one in self.by_symptom.values() if not one.known), key=lambda one: one.number)

    @property
    def known(self) -> list[Group]:
        """The groups that are known bugs, by the name of the bug."""
        return sorted((one for one in self.by_symptom.values() if one.known), key=lambda one: one.known)

    def to_json(self, release: str, seed: int, sequences: int) -> dict[str, Any]:
        """Return everything as an object of schema hugepfn-explore."""
        found = [one.to_json() for one in (*self.new, *self.known)]
        head = {"schema": SCHEMA, "version": VERSION, "kernel": release, "seed": seed, "sequences": sequences}
        return {**head, "groups": found}


def detail_of(shown: Shown | None) -> str:
    """Return where it was seen, for people."""
    match shown:
        case Deviation(detail=detail):
            return detail
        case Violation(message=message):
            return message
        case KernelComplaint(line=line):
            return line
        case Ended(complaint=KernelComplaint(line=line)):
            return line
    return ""


def lines_of(operations: Iterable[Operation], failing: int = 0) -> list[str]:
    """Return a sequence as numbered lines.

    :param failing: the number of the operation after which something was wrong; 0 if it is not known.
    """
    return [f"{number:3}  {op}{'    <-' * (number == failing)}" for number, op in enumerate(operations, start=1)]
