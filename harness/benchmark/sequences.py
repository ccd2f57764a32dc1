"""How long the explorer takes for a sequence, and for an operation in it."""

from __future__ import annotations

import functools
import itertools
import time

from harness.benchmark.rows import BenchRow, paired
from harness.config import MachineConfig
from harness.explorer.campaign import Progress, run_exploration
from harness.explorer.groups import Groups
from harness.explorer.sequence import run_sequences
from harness.explorer.worker import TOGETHER, Exploration, bar_most_of
from harness.guest.compiler import guest_tests_dir
from harness.kernel import KernelImage
from harness.machine.vm import VM
from harness.model.draw import ALONE, draw
from harness.model.operation import Verb
from harness.qemu.spec import Device
from harness.selection.tests import bugs_of

_LENGTH = 10
_WORKERS = 2
_MINUTES = 0.5


def step_rows(image: KernelImage, runs: int) -> list[BenchRow]:
    """Measure sequences of ten operations beside those of one, as many in one program as the explorer runs."""
    verbs = (Verb.MAP, Verb.READ, Verb.WRITE, Verb.FORK, Verb.UNMAP)
    numbers, bar_most = itertools.count(), bar_most_of(image)

    def sequence_s(vm: VM, length: int) -> float:
        drawn = [draw(1, next(numbers), length, verbs, bar_most) for _ in range(TOGETHER)]
        began = time.perf_counter()
        run_sequences(vm, drawn)
        return (time.perf_counter() - began) / TOGETHER

    with VM(image, device=Device.SHMEM.value) as vm:
        row = paired(
            f"a sequence of the explorer, {_LENGTH} operations, {TOGETHER} in a program",
            functools.partial(sequence_s, vm, _LENGTH),
            "of one operation",
            functools.partial(sequence_s, vm, 1),
            runs,
        )
    assert row.rival_median_s is not None
    return [row, BenchRow("one operation of it", (row.median_s - row.rival_median_s) / (_LENGTH - 1), runs=runs)]


def explorer_row(config: MachineConfig) -> BenchRow:
    """Measure an exploration of half a minute, with the start of its processes."""
    task = Exploration.prepared(config, 1, _LENGTH, ALONE, lambda _event: None)
    progress = Progress(Groups(bugs_of(guest_tests_dir(), task.kernel.release)))
    came_s = {0: 0.0}  # when so many sequences had been run; what is made short later does not count

    def tell(now: Progress, _line: str) -> None:
        came_s.setdefault(now.sequences, time.monotonic() - now.began)

    run_exploration(task, progress, _MINUTES, _WORKERS, tell)
    took_s = came_s[progress.sequences]
    return BenchRow("explore -n 2, a sequence of all operations", took_s / progress.sequences, runs=progress.sequences)
