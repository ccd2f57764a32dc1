"""Tests for the process of the explorer that keeps a machine, with machines and sequences that are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import MachineryError
from harness.explorer import worker
from harness.explorer.sequence import ProgramResult, SequenceResult
from harness.explorer.worker import Exploration
from harness.model.operation import Operation, Verb
from harness.verdict.log.taint import Taint

SEQUENCE = (Operation(0, Verb.MAP),)
TASK = cast(Exploration, SimpleNamespace(kernel=None, config=None, seed=1, length=1, verbs=(), bar_most=0))


class Machine:
    """A machine whose QEMU ends with the status of its turn; None: it does not end."""

    statuses: list[int | None]
    closed: list[int | None]

    def __init__(self, *_: object) -> None:
        self.qemu = SimpleNamespace(exit_status=self.statuses.pop(0))

    def start(self) -> Machine:
        return self

    def close(self) -> None:
        self.closed.append(self.qemu.exit_status)


def run(monkeypatch: pytest.MonkeyPatch, *statuses: int | None, fails: bool = False) -> SequenceResult:
    """Run a sequence in machines that end like this; one that does not end fails anyway if ``fails``."""

    def sequences(vm: Any, those: Sequence[tuple[Operation, ...]]) -> ProgramResult:
        if fails or vm.qemu.exit_status is not None:
            raise MachineryError("QEMU was killed by SIGSEGV" if not fails else "two witnesses disagree")
        return ProgramResult(tuple(SequenceResult(one, None) for one in those), pristine=True)

    Machine.statuses, Machine.closed = list(statuses), []
    monkeypatch.setattr(worker, "VM", Machine)
    monkeypatch.setattr(worker, "run_sequences", sequences)
    (result,) = worker._Bench().run(TASK, [SEQUENCE]).results
    return result


def test_a_sequence_runs_once_more_if_qemu_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, -11, None) == SequenceResult(SEQUENCE, None)
    assert Machine.closed == [-11]


def test_qemu_that_crashes_twice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MachineryError, match="SIGSEGV"):
        run(monkeypatch, -11, -11, None)
    assert Machine.closed == [-11, -11]


def test_another_error_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MachineryError, match="disagree"):
        run(monkeypatch, None, None, fails=True)
    assert Machine.closed == [None]


def explored(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[list[int]], tuple[list[int], int | None, bool]], **lengths: int
) -> tuple[list[list[int]], worker.Batch]:
    """Explore 12 sequences, of which number 4 turns the device's memory off.

    :param answer: of the numbers of a program, those with a result, which of them fails, and whether nothing is wrong.
    :returns: the numbers of the sequences of each program, and what was found.
    """
    drawn = [
        (Operation(0, Verb.MEMORY if number == 4 else Verb.READ, number),) * lengths.get(f"n{number}", 1)
        for number in range(12)
    ]
    runs: list[list[int]] = []

    class Bench:
        def run(self, _: Exploration, sequences: Sequence[tuple[Operation, ...]]) -> ProgramResult:
            runs.append([one[0].at for one in sequences])
            ran, fails, pristine = answer(runs[-1])
            results = [SequenceResult(drawn[one], Taint.WARN if one == fails else None) for one in ran]
            return ProgramResult(tuple(results), pristine)

    monkeypatch.setattr(worker, "_BENCH", Bench())
    monkeypatch.setattr(worker, "draw", lambda _seed, number, *_: drawn[number])
    batch = worker.explore(TASK, range(12))
    assert batch.sequences == 12
    return runs, batch


def test_what_follows_a_failure_or_a_change_of_the_device_runs_in_another_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(numbers: list[int]) -> tuple[list[int], int | None, bool]:
        return ([0, 1, 2], 2, False) if 2 in numbers else (numbers, None, True)

    runs, batch = explored(monkeypatch, answer)
    assert runs == [[0, 1, 2, 3, 4], [3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert [number for number, _ in batch.failed] == [2]


@pytest.mark.parametrize("known", [0, 1])
def test_if_it_is_not_known_which_one_failed_each_runs_alone(known: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is tainted by number 6, which only its own program shows."""

    def answer(numbers: list[int]) -> tuple[list[int], int | None, bool]:
        if numbers == [6]:
            return [6], 6, False
        return (numbers[:known], None, False) if 6 in numbers else (numbers, None, True)

    runs, batch = explored(monkeypatch, answer)
    left = [[number] for number in range(5 + known, 10)]
    assert runs == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], *left, *([[10], [11]] if known else [[10, 11]])]
    assert [number for number, _ in batch.failed] == [6]


def test_long_sequences_share_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """PID 1 takes 255 words."""
    runs, _ = explored(monkeypatch, lambda numbers: (numbers, None, True), n0=60, n1=40, n2=1, n3=64, n5=64, n6=64)
    assert runs == [[0, 1], [2, 3, 4], [5], [6, 7, 8, 9, 10], [11]]
