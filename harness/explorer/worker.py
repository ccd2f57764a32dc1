"""What one process of the explorer does: it keeps a machine, and runs sequences in it."""

from __future__ import annotations

import atexit
import collections
import itertools
import multiprocessing
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from harness.config import MachineConfig
from harness.errors import MachineryError
from harness.events import Say
from harness.explorer.groups import symptom_of
from harness.explorer.sequence import NO_END, ProgramResult, SequenceResult, run_sequences
from harness.host.signals import ignore_ending
from harness.kernel import KernelImage
from harness.machine.preparation import kernel_of
from harness.machine.vm import VM
from harness.model.draw import draw
from harness.model.operation import ARENA_BYTES, PMD, Operation, Verb
from harness.model.shrink import shrink, until
from harness.observe.probe import probe_image
from harness.qemu.spec import Device
from harness.verdict.invariants import Deviation

#: Sequences in one run of the actor: a third of the time of a sequence of ten operations is its start and its end.
TOGETHER = 5
_OPERATIONS_TOGETHER = 100
_CANDIDATES = 200
_CANDIDATES_THAT_HANG = 15  # each costs a deadline


@dataclass(frozen=True)
class Exploration:
    """What is explored, the same for all processes."""

    kernel: KernelImage
    config: MachineConfig
    seed: int
    length: int
    verbs: tuple[Verb, ...]
    bar_most: int = ARENA_BYTES
    """See :func:`harness.model.draw.draw`."""

    @classmethod
    def prepared(
        cls, config: MachineConfig, seed: int, length: int, verbs: Sequence[Verb], say: Say, *, two_vcpus: bool = False
    ) -> Exploration:
        """Get the kernel, and choose the machine: RAM behind its BAR, and two vCPUs if a race or the caller needs them.

        :param length: operations of a sequence.
        """
        two = two_vcpus or Verb.RACE in verbs
        machine = replace(config, device=Device.SHMEM.value, smp=max(config.smp, 2 if two else 1))
        kernel = kernel_of(config).resolve(say)
        return cls(kernel, machine, seed, length, tuple(verbs), bar_most_of(kernel))


def bar_most_of(kernel: KernelImage) -> int:
    """Return how much of the BAR a process of a sequence may map: little, if each page of it has a leaf at once."""
    return 4 * PMD if probe_image(kernel).huge_fault is False else ARENA_BYTES


@dataclass(frozen=True)
class Batch:
    """What a run of sequences showed."""

    failed: tuple[tuple[int, SequenceResult], ...]
    """Those that failed, with their numbers."""
    sequences: int
    pairs: collections.Counter[tuple[Verb, Verb]]
    """How often each operation followed each other one in a sequence."""


class _Bench:
    """The machine of this process. It is thrown away when a sequence has left something behind."""

    def __init__(self) -> None:
        self._vm: VM | None = None

    def run(
        self, task: Exploration, sequences: Sequence[tuple[Operation, ...]], *, pristine: bool = False
    ) -> ProgramResult:
        """Run sequences in one program; once more if QEMU crashes.

        :param pristine: in a machine that has run no other.
        """
        if pristine:
            self.close()
        for last in (False, True):
            if self._vm is None:
                self._vm = VM(task.kernel, task.config).start()
            try:
                done = run_sequences(self._vm, sequences)
                break
            except BaseException as error:
                died = isinstance(error, MachineryError) and self._vm.qemu.exit_status is not None
                self.close()
                if last or not died:  # that QEMU crashes says nothing about the kernel
                    raise
        if not done.pristine:
            self.close()
        return done

    def close(self) -> None:
        """End the machine."""
        if self._vm is not None:
            self._vm.close()
            self._vm = None


_BENCH = _Bench()


def prepare() -> None:
    """Prepare a process: the one that started it hears of Ctrl-C, and ends it. If that one is killed, it ends, too."""
    ignore_ending()
    atexit.register(_BENCH.close)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # the machine ends with this process


def explore(task: Exploration, numbers: Sequence[int]) -> Batch:
    """Run the sequences with these numbers.

    :raises MachineryError: QEMU or this host failed.
    """
    failed, pairs = [], collections.Counter[tuple[Verb, Verb]]()
    left = [(number, draw(task.seed, number, task.length, task.verbs, task.bar_most)) for number in numbers]
    for _, operations in left:
        pairs.update(_pairs(operations))
    alone = 0  # so many of the next ones run in a program of their own
    while left:
        together = _together([operations for _, operations in left], 1 if alone else TOGETHER)
        done = _BENCH.run(task, together)
        found = [(at, one) for (at, _), one in zip(left, done.results, strict=False) if one.failure is not None]
        failed += found
        alone = len(together) if not done.pristine and not found else max(alone - 1, 0)
        left = left[len(done.results) :]
    return Batch(tuple(failed), len(numbers), pairs)


def _together(sequences: Sequence[tuple[Operation, ...]], most: int) -> Sequence[tuple[Operation, ...]]:
    """Return the first of them, as many as share one program: the last one may change the device.

    PID 1 takes 255 words, and a run may have a limited number of leaves (harness/guest/bounds.py, LEAVES_MAX).
    """
    operations = 0
    for at, one in enumerate(sequences[:most]):
        operations += len(one)
        if at and operations > _OPERATIONS_TOGETHER:
            return sequences[:at]
        if any(op.verb is Verb.MEMORY for op in one):
            return sequences[: at + 1]
    return sequences[:most]


def shorten(task: Exploration, outcome: SequenceResult) -> tuple[SequenceResult, bool]:
    """Return the shortest sequence that fails in the same way, each tried in a pristine machine.

    :returns: what it showed, and whether the first one failed again at all.
    """
    assert outcome.failure is not None
    symptom, seen = symptom_of(outcome.failure), dict[tuple[Operation, ...], SequenceResult]()

    def fails(candidate: tuple[Operation, ...]) -> bool:
        (again,) = _BENCH.run(task, [candidate], pristine=True).results
        if again.failure is None or symptom_of(again.failure) != symptom:
            return False
        seen[candidate] = again
        return True

    first = until(outcome.operations, outcome.step) if outcome.step else outcome.operations
    if not fails(first):
        return replace(outcome, operations=first), False
    ends = not isinstance(outcome.failure, Deviation) or outcome.failure.got != NO_END
    return seen[shrink(first, fails, _CANDIDATES if ends else _CANDIDATES_THAT_HANG)], True


def _pairs(operations: Collection[Operation]) -> Iterator[tuple[Verb, Verb]]:
    verbs = [op.verb for op in operations]
    return itertools.pairwise(verbs)
