"""Runs several units on this host at the same time, each in a child process."""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from harness.campaign.event_stream import RunEvent
from harness.campaign.kernels import end_child
from harness.campaign.units.child import run_in_child
from harness.campaign.units.unit import Answers, Show, Unit, UnitAnswer, UnitEvent, UnitStarted


@dataclass(frozen=True)
class ParallelExecutor:
    """Runs units on this host, some at the same time. Kernels of one tree are built one after the other.

    :ivar show: called with everything that happens, in the thread that takes the answers.
    """

    show: Show
    at_once: int

    def run(self, units: Sequence[Unit]) -> Answers:
        """Run units. Yield their answers in the order in which they come."""
        inbox: queue.SimpleQueue[tuple[int, UnitEvent | Future[UnitAnswer]]] = queue.SimpleQueue()
        children, left = _Children(), len(units)

        def work(number: int) -> UnitAnswer:
            def say(event: RunEvent) -> None:
                inbox.put((number, event))

            inbox.put((number, UnitStarted()))
            return run_in_child(units[number], say, children.started)

        def ended(number: int, future: Future[UnitAnswer]) -> None:
            inbox.put((number, future))

        with ThreadPoolExecutor(self.at_once, "hugepfn-unit") as pool:
            try:
                for number in range(len(units)):
                    pool.submit(work, number).add_done_callback(partial(ended, number))
                while left:
                    number, message = inbox.get()
                    if isinstance(message, Future):
                        left -= 1
                        yield number, message.result()
                    else:
                        self.show(units[number], message)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                children.end()


@dataclass
class _Children:
    """The child processes, which end when nobody wants their answers any more."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _unwanted: bool = False

    def started(self, child: subprocess.Popen[bytes]) -> None:
        """Note a child.

        :raises KeyboardInterrupt: nobody wants its answer; whoever follows the child ends it.
        """
        with self._lock:
            self._running.append(child)
            if self._unwanted:
                raise KeyboardInterrupt

    def end(self) -> None:
        """End all that run, and those that start later."""
        with self._lock:
            self._unwanted = True
            for child in self._running:
                if child.returncode is None:
                    end_child(child)
