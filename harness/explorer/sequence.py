"""Runs one sequence of operations in a machine, and says what was wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DeadlineError, KernelDied, KernelError, MachineryError, RunBroken
from harness.machine.vm import VM
from harness.model.operation import PROCESSES_MAX, Operation, Verb
from harness.model.oracles import Found, Judge, Setting, Stop
from harness.observe.run import GuestRun
from harness.observe.snapshot import Snapshot
from harness.pagetable import Bits, Leaf
from harness.qemu.spec import Device
from harness.verdict import words
from harness.verdict.invariants import AGAINST, Deviation, Oracle
from harness.verdict.log.troubles import End, EndKind
from harness.verdict.symptoms import Ended, Shown

#: Of the machine's RAM, the BAR's RAM and the CPU, this one knows the second.
_RAM_BEHIND_BAR = (Device.SHMEM,)
NO_END = "no end"
#: What checkpoint() writes to the kernel log (guest_tests/lib/checkpoint.c).
_CHECKPOINT = re.compile(r"hugepfn: checkpoint ([0-9]+) pid")
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
    judged: tuple[Found | None, int] = (None, 0)
    try:
        with run:
            judged = _judged(vm, run, operations, run.finish().values)
    except (KernelDied, DeadlineError) as error:
        return SequenceResult(operations, *end_of(run, operations, error), run.log, pristine=False)
    except RunBroken:  # the kernel complained, which is asked below
        pass
    if run.uncalibrated:
        raise MachineryError(words.uncalibrated(run.uncalibrated[0]))
    failure, step = judged
    troubles = run.kernel_troubles()
    if not troubles.complaints and not troubles.taint:
        return SequenceResult(operations, failure, step, run.log if failure is not None else "", failure is None)
    complaint: Shown = troubles.complaints[0] if troubles.complaints else troubles.taint
    complained = step_of(run.log, troubles.complaints[0].line) if troubles.complaints else 0
    if failure is not None and step < complained:  # what the kernel complains about may follow from that
        return SequenceResult(operations, failure, step, run.log, pristine=False)
    return SequenceResult(operations, complaint, complained, run.log, pristine=False)


def step_of(log: str, line: str) -> int:
    """Return during which operation the kernel logged a line; 0 if that is not known."""
    before, found, _ = log.partition(line)
    passed = _CHECKPOINT.findall(before)
    return int(passed[-1]) + 1 if found and passed else 0


def end_of(run: GuestRun, operations: Sequence[Operation], error: KernelError) -> tuple[Shown, int]:
    """Return what ended a sequence, and after which operation; 0 if that is not known."""
    complaints = run.kernel_troubles().complaints
    if complaints and not complaints[0].kind.fatal and not complaints[0].kind.stall:
        return complaints[0], 0  # what killed it may follow from that; a stall is what an endless operation looks like
    if isinstance(error, KernelDied):
        return Ended(End(EndKind.DIED), *complaints[:1]), 0
    step = len(run.snapshots)  # the first was taken before the first operation
    if not 1 <= step <= len(operations):
        return Ended(End(EndKind.HANG), *complaints[:1]), 0
    racers = operations[step : step + 2] if operations[step - 1].verb is Verb.RACE else operations[step - 1 : step]
    cause = AGAINST.join(sorted(one.cause for one in racers))
    return Deviation(Oracle.PROGRESS, cause, "", "an end", NO_END, str(error)), step


def _judged(
    vm: VM, run: GuestRun, operations: Sequence[Operation], values: Mapping[str, str]
) -> tuple[Found | None, int]:
    """Return the first finding of the first operation after which there is one, and the number of that operation."""
    device = vm.spec.device
    bar, holds, can = run.snapshots[0].bar("bar"), device in _RAM_BEHIND_BAR, vm.caps
    about = (can.soft_dirty, can.fault_fills_vma, Bits.A in can.early)
    setting = Setting(bar.start_paddr, vm.layout.saved_dirty, holds, *about)
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
