"""Runs one sequence of operations in a machine, and says what was wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DeadlineError, KernelDied, KernelError, MachineryError, RunBroken
from harness.machine.vm import VM
from harness.model.operation import PROCESSES_MAX, Operation
from harness.model.oracles import Found, Judge, Setting, Stop
from harness.observe.run import GuestRun
from harness.observe.snapshot import Snapshot
from harness.pagetable import Leaf
from harness.qemu.spec import Device
from harness.verdict import words
from harness.verdict.invariants import Deviation, Oracle
from harness.verdict.log.troubles import End, EndKind
from harness.verdict.symptoms import Ended, Shown

#: Of the machine's RAM, the BAR's RAM and the CPU, this one knows the second.
_RAM_BEHIND_BAR = (Device.SHMEM,)
NO_END = "no end"
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
    log: str = ""
    """The kernel log from the start of the sequence, if something is wrong."""
    pristine: bool = True
    """Whether the machine can run another sequence."""


def run_sequence(vm: VM, operations: Sequence[Operation], timeout_s: float = 10.0) -> SequenceResult:
    """Run a sequence, with a look at every process after each operation.

    :raises MachineryError: the two witnesses disagree on ordinary memory, or QEMU or the host failed.
    :raises harness.model.world.Unspecified: the sequence has an operation that says nothing.
    """
    operations = tuple(operations)
    run = vm.run(ACTOR, *(op.word() for op in operations), timeout_s=timeout_s)
    try:
        with run:
            values = run.finish().values
            judged: tuple[Found | None, int] = _judged(vm, run, operations, values)
    except (KernelDied, DeadlineError) as error:
        return SequenceResult(operations, *_end(run, operations, error), run.log, pristine=False)
    except RunBroken:  # the kernel complained, which is asked below
        judged = None, 0
    if run.uncalibrated:
        raise MachineryError(words.uncalibrated(run.uncalibrated[0]))
    troubles = run.kernel_troubles()
    if troubles.complaints or troubles.taint:
        complaint: Shown = troubles.complaints[0] if troubles.complaints else troubles.taint
        return SequenceResult(operations, complaint, 0, run.log, pristine=False)
    failure, step = judged
    return SequenceResult(operations, failure, step, run.log if failure is not None else "", pristine=failure is None)


def _end(run: GuestRun, operations: Sequence[Operation], error: KernelError) -> tuple[Shown, int]:
    """Return what ended a sequence, and after which operation; 0 if that is not known."""
    complaints = run.kernel_troubles().complaints
    if complaints and not complaints[0].kind.fatal:  # what killed it may follow from that
        return complaints[0], 0
    if isinstance(error, KernelDied):
        return Ended(End(EndKind.DIED), *complaints[:1]), 0
    step = len(run.snapshots)  # the first was taken before the first operation
    if not 1 <= step <= len(operations):
        return Ended(End(EndKind.HANG), *complaints[:1]), 0
    return Deviation(Oracle.PROGRESS, operations[step - 1].cause, "", "an end", NO_END, str(error)), step


def _judged(
    vm: VM, run: GuestRun, operations: Sequence[Operation], values: Mapping[str, str]
) -> tuple[Found | None, int]:
    """Return the first finding of the first operation after which there is one, and the number of that operation."""
    device = vm.spec.device
    setting = Setting(run.snapshots[0].bar("bar").start_paddr, vm.layout.saved_dirty, device in _RAM_BEHIND_BAR)
    judge = Judge(setting, before=_leaves(run.snapshots[0]))
    for number, (op, snapshot) in enumerate(zip(operations, run.snapshots[1:], strict=True), start=1):
        word = values.get(f"w{number}")
        stop = Stop(values[f"a{number}"], None if word is None else int(word, 16), _leaves(snapshot))
        if found := judge.step(op, stop):
            return found[0], number
    left = int(values.get("kib-left", "0"))
    if left:
        cause = "munmap"
        return Deviation(Oracle.TEARDOWN, cause, "", "0 KiB of page tables", f"{left} KiB"), len(operations)
    return None, 0


def _leaves(at: Snapshot) -> dict[int, tuple[Leaf, ...]]:
    return {
        number: at[name].leaves("arena")
        for number, name in enumerate(_PROCESS_NAMES)
        if name in at and "arena" in at[name].mappings
    }
