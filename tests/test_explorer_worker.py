"""Tests for the process of the explorer that keeps a machine, with machines and sequences that are made up."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import MachineryError
from harness.explorer import worker
from harness.explorer.sequence import SequenceResult
from harness.explorer.worker import Exploration
from harness.model.operation import Operation, Verb

SEQUENCE = (Operation(0, Verb.MAP),)
TASK = cast(Exploration, SimpleNamespace(kernel=None, config=None))


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

    def sequence(vm: Any, operations: Sequence[Operation]) -> SequenceResult:
        if fails or vm.qemu.exit_status is not None:
            raise MachineryError("QEMU was killed by SIGSEGV" if not fails else "two witnesses disagree")
        return SequenceResult(tuple(operations), None)

    Machine.statuses, Machine.closed = list(statuses), []
    monkeypatch.setattr(worker, "VM", Machine)
    monkeypatch.setattr(worker, "run_sequence", sequence)
    return worker._Bench().run(TASK, SEQUENCE)


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
