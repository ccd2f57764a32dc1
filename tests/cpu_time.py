"""A limit on the CPU time that a block of a test may use."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_most(cpu_s: float) -> Iterator[None]:
    """Fail if the block uses more CPU time. Other load on the host does not count."""

    def too_much(*_: object) -> None:
        raise AssertionError(f"more than {cpu_s} s of CPU time")

    before = signal.signal(signal.SIGPROF, too_much)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
