"""One run of a guest program: its checkpoints, its result, and what must hold at every stop."""

from __future__ import annotations

import asyncio
import signal
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from harness.errors import ClaimFailed, DeadlineError, GuestProgramError, MachineryError, PremiseNotMet, UsageError
from harness.guest.protocol import Event, LineDecoder, WaitEvent, parse_event
from harness.machine.agent import Job
from harness.machine.held import violations_at
from harness.machine.kernel_watch import KernelWatch
from harness.machine.result import RunResult
from harness.machine.snapshot import CALIBRATION_MAPPING, Snapshot
from harness.machine.witness import Witness, needs_registration
from harness.pagetable import LeafArrays
from harness.verdict import Complaint, Taint, parse_ktap
from harness.verdict.invariants import Violation

if TYPE_CHECKING:
    from harness.machine.vm import VM


class GuestRun:
    """A guest program while it runs. Use it as a context: its end is checked when the block ends.

    Nothing of the program moves past a checkpoint unless :meth:`until`, :meth:`finish` or the end of the block
    lets it.
    """

    def __init__(self, vm: VM, job: Job, witness: Witness, timeout_s: float, kernel: KernelWatch) -> None:
        self.vm = vm
        self.job = job
        self.snapshots: list[Snapshot] = []
        self.violations: list[Violation] = []
        self._witness = witness
        self._timeout_s = timeout_s
        self._kernel = kernel
        self._held: WaitEvent | None = None
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._lines = LineDecoder()
        self._result: RunResult | None = None

    @property
    def program(self) -> str:
        """Its name."""
        return self.job.argv[0].rsplit("/", 1)[-1]

    @property
    def result(self) -> RunResult:
        """How the program ended; lets it run to its end first."""
        return self.finish()

    # --- what the test says ----------------------------------------------------------------------

    def until(self, checkpoint: str) -> Snapshot:
        """Lets the program run to a checkpoint; the machine stands still there until the next call.

        Checkpoints on the way are observed and checked as well, and left.

        :raises GuestProgramError: the program ended first; says how.
        :raises KernelDied: the kernel died first, with its first complaint.
        :raises DeadlineError: neither happened within the run's ``timeout_s``.
        """
        return self.vm.on_loop(self._until(checkpoint))

    def look_again(self) -> Snapshot:
        """At a checkpoint: lets the machine run for a moment, the program still waiting, and looks once more.

        For what the kernel does behind a program's back (khugepaged, reclaim, an interrupt).

        :raises UsageError: the program is at no checkpoint.
        """
        if self._held is None:
            raise UsageError(f"{self.program} is at no checkpoint; call until() first")
        return self.vm.on_loop(self._look_again(self._held))

    def leaf_arrays(self, process: str, mapping: str) -> LeafArrays:
        """At a checkpoint: the leaves of a mapping as numpy columns, for a gigabyte of them.

        :raises UsageError: the program is at no checkpoint, or has no such process or mapping.
        """
        if self._held is None:
            raise UsageError(f"{self.program} is at no checkpoint; call until() first")
        return self._witness.leaf_arrays(process, mapping)

    def finish(self) -> RunResult:
        """Lets the program run to its end, all its checkpoints included."""
        if self._result is None:
            self._result = self.vm.on_loop(self._finish())
        return self._result

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends the program by a signal, wherever it is."""
        self.vm.on_loop(self._kill(number))

    @property
    def uncalibrated(self) -> list[Violation]:
        """Where the two witnesses disagree on the page that every run maps for that: then nothing else is believed."""
        return [violation for violation in self.violations if violation.mapping == CALIBRATION_MAPPING]

    @property
    def broken(self) -> list[Violation]:
        """The violations that the test did not waive (:attr:`harness.machine.vm.VM.waived`)."""
        return [one for one in self.violations if one.invariant not in self.vm.waived]

    @property
    def log(self) -> str:
        """The kernel's log since the run began."""
        return self._kernel.log

    @property
    def taint(self) -> Taint:
        """What the kernel got since it booted, but for what means no harm."""
        return self._kernel.taint

    def complaints(self) -> tuple[Complaint, ...]:
        """What the kernel log complains about since the run began."""
        return self._kernel.complaints()

    def kernel_troubles(self) -> list[str]:
        """What the kernel itself found wrong: its log's complaints, its taint."""
        return self._kernel.troubles()

    def check(self) -> None:
        """Holds the run against what must hold at every stop, and against the kernel log.

        :raises MachineryError: the two witnesses disagree on ordinary memory: nothing else can be believed.
        :raises ClaimFailed: an invariant does not hold, or the kernel complained.
        """
        if self.uncalibrated:
            raise MachineryError(f"the walk and pagemap disagree, so the walk proves nothing: {self.uncalibrated[0]}")
        found = [str(violation) for violation in self.broken]
        found += self.kernel_troubles()
        if found:
            more = f"\n... and {len(found) - 8} more" if len(found) > 8 else ""
            raise ClaimFailed("\n".join(found[:8]) + more)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.vm.abandon(self, error)
            return
        try:
            result = self.finish()
            self.check()
            if result.skipped:
                raise PremiseNotMet(result.reason)
            if not result.passed:
                raise GuestProgramError(f"guest program {self.program}: {result.reason}")
        except BaseException as broken:
            self.vm.abandon(self, broken)
            raise
        self.vm.forget(self)

    # --- on the machine's loop -------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Bytes of the events channel."""
        for line in self._lines.feed(data):
            self._events.put_nowait(parse_event(line))

    async def _until(self, checkpoint: str) -> Snapshot:
        deadline = time.monotonic() + self._timeout_s
        while True:
            snapshot = await self._next(deadline, f"checkpoint {checkpoint!r} of {self.program}")
            if snapshot is None:
                result = await self._collect()
                if result.skipped:
                    raise PremiseNotMet(result.reason)
                seen = ", ".join(repr(at.checkpoint) for at in self.snapshots) or "none"
                raise GuestProgramError(
                    f"guest program {self.program} ended before checkpoint {checkpoint!r} "
                    f"({result.reason or 'passed'}); it reached: {seen}"
                )
            if snapshot.checkpoint == checkpoint:
                return snapshot

    async def _finish(self) -> RunResult:
        deadline = time.monotonic() + self._timeout_s
        while await self._next(deadline, f"the end of {self.program}") is not None:
            pass
        await self._kernel.settle(self.job.id, self.program)
        return await self._collect()

    async def _next(self, deadline: float, what: str) -> Snapshot | None:
        """Lets the program go and waits for its next checkpoint; None once it has ended."""
        try:
            return await self._go_on(deadline, what)
        except MachineryError as error:
            if await self.vm.qemu.has_ended():  # and its memory with it: nothing that was read there means anything
                raise self.vm.qemu.end_error(f"waiting for {what}: ") from error
            raise

    async def _go_on(self, deadline: float, what: str) -> Snapshot | None:
        await self.let_go()
        while True:
            event = await self._event(deadline, what)
            if event is None:
                return None
            if not isinstance(event, WaitEvent):
                self._witness.note(event)
            elif needs_registration(event):
                await self._witness.register(event, max(deadline - time.monotonic(), 0.1))
                self._witness.release(event)
                await self.vm.qemu.resume()
            else:
                return await self._stop_at(event)

    async def _event(self, deadline: float, what: str) -> Event | None:
        """The next event; None when the program has exited and said everything."""
        if not self._events.empty():
            return self._events.get_nowait()
        getting = asyncio.ensure_future(self._events.get())
        either: set[asyncio.Future[Any]] = {getting, self.job.exited}
        both = asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        try:
            await self.vm.qemu.expect(both, max(deadline - time.monotonic(), 0.0), what)
        except DeadlineError:
            raise DeadlineError(
                f"waiting for {what}: nothing within {self._timeout_s:g} s; {self._where()}; {self.vm.qemu.complaint()}"
            ) from None
        finally:
            if not getting.done():
                getting.cancel()
        return getting.result() if getting.done() and not getting.cancelled() else None

    def _where(self) -> str:
        last = f"last at checkpoint {self.snapshots[-1].checkpoint!r}" if self.snapshots else "it reached no checkpoint"
        return f"{self.program}: {last}, processes {sorted(p.name for p in self._witness.processes.values())}"

    async def _look_again(self, held: WaitEvent) -> Snapshot:
        await self.vm.qemu.resume()
        self._witness.forget_pagemap()  # read before the checkpoint, so older than what is looked at now
        return await self._stop_at(held)

    async def _stop_at(self, event: WaitEvent) -> Snapshot:
        await self._witness.stop()
        self._witness.verify(event)
        self._held = event
        snapshot = self._witness.snapshot(event.name, event.pid)
        self.snapshots.append(snapshot)
        self.violations += violations_at(snapshot, self.vm.layout.saved_dirty)
        return snapshot

    async def let_go(self) -> None:
        """Leaves the checkpoint at which the program is held, if it is."""
        if self._held is not None:
            held, self._held = self._held, None
            self._witness.release(held)
            await self.vm.qemu.resume()

    async def _collect(self) -> RunResult:
        exited = await self.job.exited
        stdout = bytes(self.job.stdout).decode("utf-8", "replace")
        stderr = bytes(self.job.stderr).decode("utf-8", "replace")
        return RunResult(parse_ktap(stdout), exited, stdout, stderr)

    async def _kill(self, number: signal.Signals) -> None:
        self._held = None
        await self.vm.qemu.resume()
        await self.vm.agent.kill(self.job, number)

    async def end(self) -> None:
        """Ends the program after an error, as far as the guest still answers."""
        if self.job.exited.done():
            return
        await self._kill(signal.SIGKILL)
        await self.vm.qemu.expect(asyncio.shield(self.job.exited), 5.0, f"{self.program} to end after SIGKILL")
