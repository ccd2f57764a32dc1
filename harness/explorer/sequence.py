"""Runs sequences of operations in a machine, and says what was wrong."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DeadlineError, GuestProgramError, KernelDied, KernelError, MachineryError, RunBroken
from harness.machine.vm import VM
from harness.model.operation import PROCESSES_MAX, Operation, Verb
from harness.model.oracles import Found, Judge, Setting, Stop
from harness.observe.run import GuestRun
from harness.observe.run_result import values_in
from harness.observe.snapshot import Snapshot
from harness.pagetable import Bits, Leaf
from harness.printable import printable
from harness.qemu.spec import Device
from harness.verdict import words
from harness.verdict.invariants import AGAINST, Deviation, Oracle
from harness.verdict.log.troubles import End, EndKind
from harness.verdict.symptoms import Ended, Shown

#: Of the machine's RAM, the BAR's RAM and the CPU, this one knows the second.
_RAM_BEHIND_BAR = (Device.SHMEM,)
NO_END = "no end"
#: What checkpoint() writes to the kernel log (guest_tests/lib/checkpoint.c): the sequence and the step.
_CHECKPOINT = re.compile(r"hugepfn: checkpoint ([0-9]+)\.([0-9]+) pid")
#: The argument that begins another sequence (actor.c).
NEXT = ","
ACTOR = Path(__file__).parent / "actor.c"
_PROCESS_NAMES = tuple(f"p{number}" for number in range(PROCESSES_MAX))


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """What one sequence showed."""

    operations: tuple[Operation, ...]
    failure: Shown | None
    """The most telling thing that is wrong; None if nothing is."""
    step: int = 0
    """After which operation it was seen; 0 if that is not known."""
    before: tuple[tuple[Operation, ...], ...] = ()
    """What ran before it in its program, if something is wrong."""


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """What the sequences of one program showed."""

    results: tuple[SequenceResult, ...]
    """Up to the first in which something is wrong. If none of them is that one and ``pristine`` is false, it is not
    known, and the others have to run again, each alone."""
    pristine: bool
    """Whether nothing is wrong, so that the machine can run another program."""


def run_sequences(vm: VM, sequences: Sequence[tuple[Operation, ...]], timeout_s: float = 10.0) -> ProgramResult:
    """Run sequences one after the other in one program, with a look at every process after each operation.

    They share the program, its device and the kernel, but no process and no memory.

    :param timeout_s: for each.
    :raises MachineryError: the two witnesses disagree on ordinary memory, or QEMU or the host failed.
    :raises harness.model.world.Unspecified: a sequence has an operation that says nothing.
    """
    told_actor = [word for operations in sequences for word in (NEXT, *(op.word() for op in operations))][1:]
    run = vm.run(ACTOR, *told_actor, timeout_s=timeout_s)
    end: KernelError | None = None
    try:
        with run:
            for number in range(len(sequences)):
                run.until(f"{number}.0")
            run.finish()
    except (KernelDied, DeadlineError) as error:
        end = error
    except GuestProgramError:
        if not run.kernel_troubles().complaints:
            raise
    except RunBroken:  # the kernel complained, which is asked below
        pass
    if end is None and run.uncalibrated:
        raise MachineryError(words.uncalibrated(run.uncalibrated[0]))
    return _sorted_out(vm, run, sequences, end)


def _sorted_out(
    vm: VM, run: GuestRun, sequences: Sequence[tuple[Operation, ...]], end: KernelError | None
) -> ProgramResult:
    """Find the first sequence of a program in which something is wrong.

    :param end: why the program did not end by itself, if it did not.
    """
    reported, stops = values_in(printable(bytes(run.job.stdout))), collections.defaultdict[int, list[Snapshot]](list)
    for snapshot in run.snapshots:
        stops[int(snapshot.checkpoint.partition(".")[0])].append(snapshot)
    last = max(stops, default=0)
    complaint, (where, complained) = _complaint(run, only=len(sequences) == 1)
    results = list[SequenceResult]()
    for number, operations in enumerate(sequences):
        told = reported.get(f"sequence-{number}")
        failure: Shown | None
        failure, step = _judged(vm, operations, stops[number], told) if told is not None else (None, 0)
        if end is not None and number == last:
            if failure is None:
                failure, step = end_of(run, operations, len(stops[number]), end)
        # What the kernel complains about may follow from what it did before.
        elif number == where and not (failure is not None and step < complained):
            failure, step = complaint, complained
        elif told is None:  # it has not arrived, or the program ended because of what the kernel did
            break
        if failure is not None:
            results.append(SequenceResult(operations, failure, step, tuple(sequences[:number])))
            return ProgramResult(tuple(results), pristine=False)
        results.append(SequenceResult(operations, None))
    pristine = end is None and complaint is None and len(results) == len(sequences)
    return ProgramResult(tuple(results) if pristine or end is not None else (), pristine)


def _complaint(run: GuestRun, *, only: bool) -> tuple[Shown | None, tuple[int, int]]:
    """Return the first thing that the kernel itself found wrong, and the numbers of the sequence and the operation.

    The sequence is -1 if it is not known, and the operation 0.

    :param only: there is only one sequence.
    """
    troubles, somewhere = run.kernel_troubles(), (0 if only else -1, 0)
    if troubles.complaints:
        return troubles.complaints[0], place_of(run.log, troubles.complaints[0].line) or somewhere
    return (troubles.taint, somewhere) if troubles.taint else (None, (-1, 0))


def place_of(log: str, line: str) -> tuple[int, int] | None:
    """Return during which operation of which sequence the kernel logged a line; None if that is not known."""
    before, found, _ = log.partition(line)
    passed = _CHECKPOINT.findall(before)
    return (int(passed[-1][0]), int(passed[-1][1]) + 1) if found and passed else None


def end_of(run: GuestRun, operations: Sequence[Operation], step: int, error: KernelError) -> tuple[Shown, int]:
    """Return what ended a sequence, and after which operation; 0 if that is not known.

    :param step: the number of its checkpoints that were passed; the first is before the first operation.
    """
    complaints = run.kernel_troubles().complaints
    if complaints and not complaints[0].kind.fatal and not complaints[0].kind.stall:
        return complaints[0], 0  # what killed it may follow from that; a stall is what an endless operation looks like
    if isinstance(error, KernelDied):
        return Ended(End(EndKind.DIED), *complaints[:1]), 0
    if not 1 <= step <= len(operations):
        return Ended(End(EndKind.HANG), *complaints[:1]), 0
    racers = operations[step : step + 2] if operations[step - 1].verb is Verb.RACE else operations[step - 1 : step]
    cause = AGAINST.join(sorted(one.cause for one in racers))
    return Deviation(Oracle.PROGRESS, cause, "", "an end", NO_END, str(error)), step


def _judged(
    vm: VM, operations: Sequence[Operation], snapshots: Sequence[Snapshot], told: str
) -> tuple[Found | None, int]:
    """Return the first finding of the first operation after which there is one, and the number of that operation.

    :param snapshots: from that before the first operation on.
    :param told: the value that the actor reported.
    """
    device = vm.spec.device
    bar, holds, can = snapshots[0].bar("bar"), device in _RAM_BEHIND_BAR, vm.caps
    about = (can.soft_dirty, can.fault_fills_vma, Bits.A in can.early)
    setting = Setting(bar.start_paddr, vm.layout.saved_dirty, holds, *about)
    judge = Judge(setting, before=_leaves(snapshots[0]))
    *answers, left = told.split()
    seen = zip(operations, snapshots[1:], answers, strict=True)
    for number, (op, snapshot, answer) in enumerate(seen, start=1):
        said, _, word = answer.partition("=")
        stop = Stop(said, int(word, 16) if word else None, _leaves(snapshot))
        if found := judge.step(op, stop):
            return found[0], number
    if left not in ("0", "-"):
        cause = "munmap"
        return Deviation(Oracle.TEARDOWN, cause, "", "0 KiB of page tables", f"{left} KiB"), len(operations)
    return None, 0


def _leaves(at: Snapshot) -> dict[int, tuple[Leaf, ...]]:
    return {
        number: at[name].leaves("arena")
        for number, name in enumerate(_PROCESS_NAMES)
        if name in at and "arena" in at[name].mappings
    }
