"""The explorer's loop: hands sequences to processes until the time is over, and has what they find made short."""

from __future__ import annotations

import collections
import concurrent.futures as futures
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from harness.errors import MachineryError
from harness.explorer.groups import Group, Groups
from harness.explorer.sequence import SequenceResult
from harness.explorer.worker import Batch, Exploration, explore, prepare, shorten
from harness.model.operation import Verb

#: Sequences that a process runs before it reports.
BATCH = 20


@dataclass
class Progress:
    """How far an exploration has come."""

    groups: Groups
    began: float = field(default_factory=time.monotonic)
    sequences: int = 0
    steps: int = 0
    pairs: collections.Counter[tuple[Verb, Verb]] = field(default_factory=collections.Counter)

    def __str__(self) -> str:
        took = max(time.monotonic() - self.began, 0.001)
        verbs = {verb for pair in self.pairs for verb in pair}
        return (
            f"{self.sequences} sequences, {self.sequences / took:.1f} a second, {self.steps / took:.0f} steps; "
            f"{len(verbs)} of {len(Verb)} operations, {len(self.pairs)} of {len(Verb) ** 2} pairs; "
            f"{len(self.groups.new)} findings, {len(self.groups.known)} of known bugs"
        )


def run_exploration(
    task: Exploration, progress: Progress, minutes: float, workers: int, tell: Callable[[Progress, str], None]
) -> None:
    """Explore until the time is over, and then make short what was found.

    :param progress: receives what was done and found.
    :param minutes: for drawing and running sequences. What is made short may take longer.
    :param tell: called with the progress, and with a line about something new or "".
    :raises MachineryError: QEMU, this host or a process of the explorer failed.
    """
    batches = (range(first, first + BATCH) for first in itertools.count(0, BATCH))
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(workers, mp_context=context, initializer=prepare) as pool:
        try:
            for line in _events(pool, task, progress, batches, progress.began + minutes * 60, workers):
                tell(progress, line)
        except futures.process.BrokenProcessPool:
            raise MachineryError("a process of the explorer ended; is this host out of memory?") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():  # its machine ends with it
                process.kill()
            raise


def _events(
    pool: futures.ProcessPoolExecutor,
    task: Exploration,
    progress: Progress,
    batches: Iterator[range],
    end: float,
    workers: int,
) -> Iterator[str]:
    """Keep the processes busy; yield a line for what is new, or "" for progress."""
    running = set[futures.Future[Batch]]()
    shrinking: dict[futures.Future[tuple[SequenceResult, bool]], Group] = {}
    while True:
        while time.monotonic() < end and len(running) + len(shrinking) < workers + 1:
            running.add(pool.submit(explore, task, next(batches)))
        if not running and not shrinking:
            return
        waited: list[futures.Future[Any]] = [*running, *shrinking]
        done, _ = futures.wait(waited, return_when=futures.FIRST_COMPLETED)
        for one in done:
            if one in running:
                batch = one.result()
                running.discard(one)
                progress.sequences += batch.sequences
                progress.steps += batch.sequences * task.length
                progress.pairs += batch.pairs
                for number, outcome in batch.failed:
                    if (group := progress.groups.add(number, outcome)) is not None:
                        shrinking[pool.submit(shorten, task, outcome)] = group
                        yield f"sequence {number}: {group.symptom}"
            else:
                group = shrinking.pop(one)
                group.shortest, group.confirmed = one.result()
                yield f"{len(group.shortest.operations)} operations show: {group.symptom}"
        yield ""
