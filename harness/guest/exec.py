"""Commands in a guest: any program with its arguments, its separate output streams and the way it ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import DeadlineError
from harness.guest.agent import UNLIMITED_S, Agent
from harness.guest.job import ExitStatus, Input, Job, Stream

_KILL_TIMEOUT_S = 5.0

Sink = Callable[[Stream, bytes], None]


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended."""

    argv: tuple[str, ...]
    """The command and its arguments."""
    exit: ExitStatus
    """Its exit status, or the signal that killed it."""
    stdout: bytes
    """Everything on standard output; empty if a sink got it."""
    stderr: bytes
    """Everything on standard error; empty if a sink got it."""

    @property
    def ok(self) -> bool:
        """Whether it exited with 0."""
        return self.exit.ok


async def finish(agent: Agent, job: Job, timeout_s: float) -> ExitStatus:
    """Wait for the end of a command. It is killed if it does not end in time, or if the wait is cancelled.

    :raises DeadlineError: it took longer.
    :raises KernelDied: the kernel died first.
    """
    try:
        return await agent.emulator.expect(asyncio.shield(job.exited), timeout_s, f"the end of {job.argv[0]}")
    except (DeadlineError, asyncio.CancelledError):
        with contextlib.suppress(Exception):
            await agent.kill(job, signal.SIGKILL)
            await agent.emulator.expect(asyncio.shield(job.exited), _KILL_TIMEOUT_S, "its end after SIGKILL")
        raise


async def execute(
    agent: Agent,
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    timeout_s: float = UNLIMITED_S,
    sink: Sink | None = None,
) -> Completed:
    """Run a command to its end; see :meth:`harness.machine.live.LiveMachine.exec`."""
    reads = Input.PIPE if stdin else Input.NULL
    job = await agent.run(argv, environment, reads=reads, sink=sink)
    feeding = asyncio.ensure_future(_feed_all(agent, job, stdin)) if stdin else None
    try:
        ended = await finish(agent, job, timeout_s)
    finally:
        if feeding is not None:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
    return Completed(tuple(argv), ended, bytes(job.stdout), bytes(job.stderr))


async def _feed_all(agent: Agent, job: Job, data: bytes) -> None:
    await agent.feed(job, data)
    await agent.feed(job, b"")
