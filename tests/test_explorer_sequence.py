"""Tests for several sequences in one run of the actor: what each showed, with runs that are made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Self

import pytest

from harness.errors import KernelDied
from harness.explorer import sequence
from harness.explorer.groups import symptom_of
from harness.explorer.sequence import SequenceResult, run_sequences
from harness.model.operation import Operation, Verb
from harness.verdict.invariants import Deviation, Oracle
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.taint import Taint
from harness.verdict.log.troubles import KernelComplaint

OPERATIONS = (Operation(0, Verb.MAP), Operation(0, Verb.READ))
BAD_PUD = KernelComplaint(ComplaintKind.BAD_PUD, "bad pud 0(1)", (), "bad pud")
TOLD = "0 0=1 0"
WRONG = "0 0=2 0"


class Run:
    """A run of three sequences of two operations."""

    def __init__(self, told: tuple[str, ...], log: str, *complaints: KernelComplaint, dies: bool) -> None:
        said = "".join(f"# value sequence-{number}={one}\n" for number, one in enumerate(told))
        self.job = SimpleNamespace(stdout=said.encode())
        self.log, self.uncalibrated, self._dies = log, (), dies
        self.snapshots = [None] * (3 * len(told) + (2 if dies else 0))
        self._troubles = SimpleNamespace(complaints=complaints, taint=Taint(0))

    def kernel_troubles(self) -> Any:
        return self._troubles

    def finish(self) -> None:
        if self._dies:
            raise KernelDied("the kernel died")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def run(
    monkeypatch: pytest.MonkeyPatch, *told: str, log: str = "", complaint: KernelComplaint | None = None
) -> tuple[SequenceResult, ...]:
    """Run three sequences of which the actor reports this; one word that is wrong is a finding at step 2."""

    def judged(_vm: object, _operations: object, _stops: object, said: str) -> tuple[Deviation | None, int]:
        return (Deviation(Oracle.DATA, "read", "pmd", "0x1", "0x2"), 2) if said == WRONG else (None, 0)

    monkeypatch.setattr(sequence, "_judged", judged)
    made = Run(told, log, *([complaint] if complaint is not None else []), dies=len(told) < 3)
    vm: Any = SimpleNamespace(run=lambda *_words, **_how: made)
    return run_sequences(vm, [OPERATIONS] * 3)


def symptoms(results: tuple[SequenceResult, ...]) -> list[str]:
    return [symptom_of(one.failure) if one.failure is not None else "" for one in results]


def test_sequences_in_which_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, TOLD, TOLD, TOLD) == (SequenceResult(OPERATIONS, None),) * 3


def test_those_after_a_failure_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    log = "hugepfn: checkpoint 0.2 pid 9\n[ 1.0] hugepfn: checkpoint 1.0 pid 9\n"
    results = run(monkeypatch, TOLD, WRONG, TOLD, log=log)
    assert symptoms(results) == ["", "data: read (pmd)"]
    assert (results[1].step, results[1].pristine) == (2, False)
    assert results[1].log == "[ 1.0] hugepfn: checkpoint 1.0 pid 9\n"


def test_a_kernel_that_dies_in_the_last_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert symptoms(run(monkeypatch, TOLD, TOLD)) == ["", "", "the kernel died: without a word"]
    assert symptoms(run(monkeypatch, WRONG, TOLD)) == ["data: read (pmd)"]


@pytest.mark.parametrize(
    ("at", "told", "expected"),
    [
        ("1.0", WRONG, ["", "log: bad pud"]),  # during the first operation, and the second answered wrongly
        ("1.2", WRONG, ["", "data: read (pmd)"]),  # after it
        ("1.2", TOLD, ["", "log: bad pud"]),
        ("0.1", WRONG, ["log: bad pud"]),
    ],
)
def test_a_complaint_belongs_to_a_sequence(
    at: str, told: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = f"hugepfn: checkpoint {at} pid 9\nbad pud 0(1)\n"
    assert symptoms(run(monkeypatch, TOLD, told, TOLD, log=log, complaint=BAD_PUD)) == expected
