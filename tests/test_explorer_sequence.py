"""Tests for several sequences in one run of the actor: what each showed, with runs that are made up."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Self

import pytest

from harness.errors import DeadlineError, GuestProgramError, KernelDied
from harness.explorer import sequence
from harness.explorer.groups import symptom_of
from harness.explorer.sequence import ProgramResult, SequenceResult, run_sequences
from harness.model.operation import Operation, Verb
from harness.verdict.invariants import Deviation, Oracle
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.taint import Taint
from harness.verdict.log.troubles import NO_TAINT, KernelComplaint

OPERATIONS = (Operation(0, Verb.MAP), Operation(0, Verb.READ))
BAD_PUD = KernelComplaint(ComplaintKind.BAD_PUD, "bad pud 0(1)", (), "bad pud")
TOLD = "0 0=1 0"
WRONG = "0 0=2 0"


class Run:
    """A run of three sequences of two operations.

    :param stops: the names of the checkpoints that it passes; then it ends with ``end``, or by itself.
    """

    def __init__(
        self, told: Sequence[str], log: str, complaints: Sequence[KernelComplaint], stops: Sequence[str], **how: Any
    ) -> None:
        said = "".join(f"# value sequence-{number}={one}\n" for number, one in enumerate(told))
        self.job = SimpleNamespace(stdout=said.encode())
        self.log, self.uncalibrated = log, ()
        self.snapshots: list[Any] = []
        self._stops = list(stops)
        self._troubles = SimpleNamespace(complaints=tuple(complaints), taint=how["taint"])
        self._end: Exception | None = how["end"]

    def kernel_troubles(self) -> Any:
        return self._troubles

    def until(self, checkpoint: str) -> None:
        while self._stops:
            self.snapshots.append(SimpleNamespace(checkpoint=self._stops.pop(0)))
            if self.snapshots[-1].checkpoint == checkpoint:
                return
        self._over()

    def finish(self) -> None:
        while self._stops:
            self.snapshots.append(SimpleNamespace(checkpoint=self._stops.pop(0)))
        self._over()

    def _over(self) -> None:
        if self._end is not None:
            raise self._end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


ALL_STOPS = [f"{number}.{step}" for number in range(3) for step in range(3)]


def run(
    monkeypatch: pytest.MonkeyPatch,
    *told: str,
    log: str = "",
    complaint: KernelComplaint | None = None,
    stops: int = 9,
    taint: Taint = NO_TAINT,
    end: Exception | None = None,
    only: int = 3,
) -> ProgramResult:
    """Run sequences of which the actor reports this; one word that is wrong is a finding at step 2."""
    seen: list[list[str]] = []

    def judged(_vm: object, _operations: object, at: Sequence[Any], said: str) -> tuple[Deviation | None, int]:
        seen.append([one.checkpoint for one in at])
        return (Deviation(Oracle.DATA, "read", "pmd", "0x1", "0x2"), 2) if said == WRONG else (None, 0)

    monkeypatch.setattr(sequence, "_judged", judged)
    made = Run(told, log, [complaint] if complaint is not None else [], ALL_STOPS[:stops], taint=taint, end=end)
    vm: Any = SimpleNamespace(run=lambda *_words, **_how: made)
    done = run_sequences(vm, [OPERATIONS] * only)
    assert seen == [ALL_STOPS[3 * at : 3 * at + 3] for at in range(len(seen))], "each is judged by its own stops"
    return done


def symptoms(done: ProgramResult) -> list[str]:
    assert done.pristine == (len(done.results) == 3 and all(one.failure is None for one in done.results))
    return [symptom_of(one.failure) if one.failure is not None else "" for one in done.results]


DIED, HANGS = KernelDied("the kernel died"), DeadlineError("nothing within 10 s")


def test_sequences_in_which_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(monkeypatch, TOLD, TOLD, TOLD)
    assert (done.results, done.pristine) == ((SequenceResult(OPERATIONS, None),) * 3, True)


def test_those_after_a_failure_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(monkeypatch, TOLD, WRONG, TOLD)
    assert symptoms(done) == ["", "data: read (pmd)"]
    assert (done.results[1].step, done.results[1].before) == (2, (OPERATIONS,))


@pytest.mark.parametrize(
    ("told", "stops", "end", "expected"),
    [
        ((TOLD, TOLD), 8, DIED, ["", "", "the kernel died: without a word"]),
        ((TOLD, TOLD), 8, HANGS, ["", "", "progress: read: expected an end, got no end"]),
        ((TOLD, TOLD, TOLD), 9, DIED, ["", "", "the kernel died: without a word"]),  # when the program ended
        ((TOLD, TOLD, TOLD), 9, HANGS, ["", "", "hang: without a word"]),
        ((WRONG, TOLD), 8, DIED, ["data: read (pmd)"]),
        ((TOLD,), 3, DIED, ["the kernel died: without a word"]),  # between two
        ((TOLD,), 7, DIED, [""]),  # what the second showed had not arrived
        ((), 0, DIED, ["the kernel died: without a word"]),
    ],
)
def test_a_program_that_does_not_end(
    told: tuple[str, ...], stops: int, end: Exception, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert symptoms(run(monkeypatch, *told, stops=stops, end=end)) == expected


@pytest.mark.parametrize(
    ("at", "told", "expected"),
    [
        ("1.0", WRONG, ["", "log: bad pud"]),  # during the first operation, and the second answered wrongly
        ("1.2", WRONG, ["", "data: read (pmd)"]),  # after it
        ("1.2", TOLD, ["", "log: bad pud"]),
        ("0.1", WRONG, ["log: bad pud"]),
        ("", TOLD, []),  # not known in which
    ],
)
def test_a_complaint_belongs_to_a_sequence(
    at: str, told: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = f"hugepfn: checkpoint {at} pid 9\nbad pud 0(1)\n"
    assert symptoms(run(monkeypatch, TOLD, told, TOLD, log=log, complaint=BAD_PUD)) == expected


def test_a_taint_without_a_complaint_belongs_to_nobody_but_a_single_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert symptoms(run(monkeypatch, TOLD, TOLD, TOLD, taint=Taint.WARN)) == []
    assert symptoms(run(monkeypatch, TOLD, stops=3, taint=Taint.WARN, only=1)) == [f"taint: {Taint.WARN}"]


def test_an_actor_that_fails_when_the_kernel_complains(monkeypatch: pytest.MonkeyPatch) -> None:
    log = "hugepfn: checkpoint 1.1 pid 9\nbad pud 0(1)\n"
    failed = GuestProgramError("guest program actor: Bail out!")
    assert symptoms(run(monkeypatch, TOLD, stops=5, end=failed, log=log, complaint=BAD_PUD)) == ["", "log: bad pud"]
    with pytest.raises(GuestProgramError):
        run(monkeypatch, TOLD, stops=5, end=failed)
