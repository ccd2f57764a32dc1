"""One run of a guest program: its checkpoints, its result, and what must hold at every stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from harness import pagetable
from harness.errors import (
    DeadlineError,
    GuestProgramError,
    HugepfnError,
    MachineryError,
    PremiseNotMet,
    ProtocolError,
    RunBroken,
    UsageError,
)
from harness.guest import bounds
from harness.guest.event_lines import LineDecoder
from harness.guest.job import Job
from harness.guest.protocol import Event, WaitEvent, parse_event
from harness.host.aside import aside
from harness.kernel import why_missing
from harness.logs import timed
from harness.observe.hung import HangReport, diagnose
from harness.observe.kernel_watch import KernelWatch
from harness.observe.owner import RunOwner
from harness.observe.run_result import RunResult
from harness.observe.snapshot import CALIBRATION_MAPPING, Snapshot
from harness.observe.stop_checks import violations_at
from harness.observe.witness import Witness, needs_registration
from harness.printable import printable
from harness.qemu.deadline import Deadline
from harness.verdict import Complaint, Taint, parse_ktap, words
from harness.verdict.invariants import Violation
from harness.verdict.log.troubles import KernelTroubles

_LOG = logging.getLogger("hugepfn.run")


class GuestRun:
    """A guest program while it runs. :meth:`VM.run` returns it; use it in a ``with`` statement.

    No process of the program goes past a checkpoint until you call :meth:`until` or :meth:`finish`, or the block ends.
    At the end of the block the program runs to its end, and :meth:`check` is called. The end of the block raises
    PremiseNotMet if the program was skipped, and GuestProgramError if it did not pass.
    """

    def __init__(self, vm: RunOwner, job: Job, witness: Witness, timeout_s: float, kernel: KernelWatch) -> None:
        self.vm = vm
        self.job = job
        self.snapshots: list[Snapshot] = []
        self.hung: Snapshot | None = None  # the tables when a deadline passed
        self.hang_report: HangReport | None = None  # and what hangs
        self.violations: list[Violation] = []
        self._witness = witness
        self._timeout_s = timeout_s
        self.kernel = kernel  # what it says itself
        self._held: WaitEvent | None = None
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._lines = LineDecoder()
        self._result: RunResult | None = None

    @property
    def program(self) -> str:
        """The name of the program."""
        return self.job.argv[0].rsplit("/", 1)[-1]

    @property
    def result(self) -> RunResult:
        """How the program ended; see :meth:`finish`, which this calls."""
        return self.finish()

    @property
    def ended(self) -> RunResult | None:
        """How the program ended; None before that is known."""
        return self._result

    # --- what the test says ----------------------------------------------------------------------

    def until(self, checkpoint: str) -> Snapshot:
        """Let the program run to a checkpoint. The machine then stands still until the next call.

        The checkpoints on the way are observed and checked, too.

        :raises GuestProgramError: the program ended first; the message says how.
        :raises KernelDied: the kernel died first; the message has its first complaint.
        :raises DeadlineError: neither happened within the run's ``timeout_s`` seconds.
        :raises MachineryError: QEMU or the agent failed, or the program broke the protocol (ProtocolError).
        """
        return self.vm.on_loop(self._until(checkpoint))

    def look_again(self) -> Snapshot:
        """At a checkpoint, let the machine run for a moment while the program waits, and read the tables again.

        This shows what the kernel does by itself (khugepaged, reclaim, an interrupt).

        :raises UsageError: the program is not at a checkpoint.
        """
        if self._held is None:
            raise UsageError(f"{self.program} is not at a checkpoint; call until() first")
        return self.vm.on_loop(self._look_again(self._held))

    def leaf_arrays(self, process: str, mapping: str) -> pagetable.LeafArrays:
        """At a checkpoint, return the leaves of a mapping as numpy arrays: fast even for a gigabyte of 4 KiB pages.

        :returns: ``vaddr`` (uint64[n]), ``raw`` (uint64[n]) and ``level`` (uint8[n]), in ascending order of vaddr.
        :raises UsageError: the program is not at a checkpoint, or has no such process or mapping.
        """
        if self._held is None:
            raise UsageError(f"{self.program} is not at a checkpoint; call until() first")
        return self._witness.leaf_arrays(process, mapping)

    def finish(self) -> RunResult:
        """Let the program run through its remaining checkpoints to its end, and return how it ended.

        :raises KernelDied: the kernel died first.
        :raises DeadlineError: the program did not end within the run's ``timeout_s`` seconds.
        """
        if self._result is None:
            self._result = self.vm.on_loop(self._finish())
        return self._result

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the program with a signal, wherever it is."""
        self.vm.on_loop(self._kill(number))

    @property
    def uncalibrated(self) -> list[Violation]:
        """Disagreements of two witnesses, on the page that every run maps for this or in nested tables. All is void."""
        return [one for one in self.violations if one.mapping == CALIBRATION_MAPPING or one.invariant.calibrates]

    @property
    def broken(self) -> list[Violation]:
        """The violations that the test did not waive (:attr:`harness.machine.vm.VM.waived`)."""
        return [one for one in self.violations if one.invariant not in self.vm.waived]

    @property
    def log(self) -> str:
        """The kernel log since the run began."""
        return self.kernel.log

    @property
    def taint(self) -> Taint:
        """The taint that the kernel got since it booted, without the harmless bits."""
        return self.kernel.taint

    def complaints(self) -> tuple[Complaint, ...]:
        """Return the complaints in the kernel log since the run began."""
        return self.kernel.complaints()

    def kernel_troubles(self) -> KernelTroubles:
        """Return what the kernel itself found wrong: the complaints in its log, and its taint."""
        return self.vm.judged(self.kernel.troubles())

    def check(self) -> None:
        """Check the invariants of every stop, and the kernel log.

        :raises MachineryError: two witnesses disagree; or a part of the log is lost, and nothing else went wrong.
        :raises RunBroken: an invariant does not hold, or the kernel complained.
        """
        if self.uncalibrated:
            raise MachineryError(words.uncalibrated(self.uncalibrated[0]))
        troubles = self.kernel_troubles()
        found = [*words.violated(self.broken), *words.troubles(troubles)]
        if found:
            more = f"\n... and {len(found) - 8} more" if len(found) > 8 else ""
            raise RunBroken("\n".join(found[:8]) + more)
        if troubles.gap:
            raise MachineryError(troubles.gap)

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
                raise self._unmet(result)
            if not result.passed:
                raise GuestProgramError(
                    f"guest program {self.program}: {result.reason}", signal=result.exit.signal_name
                )
        except BaseException as broken:
            self.vm.abandon(self, broken)
            raise
        self.vm.forget(self)

    # --- on the machine's loop -------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes of the events channel."""
        for line in self._lines.feed(data):
            event = parse_event(line)
            if self._events.qsize() == bounds.EVENTS_MAX:
                raise ProtocolError(f"events: {bounds.EVENTS_MAX} lines were received before a wait for one")
            self._events.put_nowait(event)

    async def _until(self, checkpoint: str) -> Snapshot:
        deadline = self.vm.qemu.deadline(self._timeout_s)
        while True:
            snapshot = await self._next(deadline, f"checkpoint {checkpoint!r} of {self.program}")
            if snapshot is None:
                result = await self._collect()
                if result.skipped:
                    raise self._unmet(result)
                seen = ", ".join(repr(at.checkpoint) for at in self.snapshots) or "none"
                raise GuestProgramError(
                    f"guest program {self.program} ended before checkpoint {checkpoint!r} "
                    f"({result.reason or 'passed'}); it reached: {seen}",
                    signal=result.exit.signal_name,
                )
            if snapshot.checkpoint == checkpoint:
                return snapshot

    async def _finish(self) -> RunResult:
        deadline = self.vm.qemu.deadline(self._timeout_s)
        while await self._next(deadline, f"the end of {self.program}") is not None:
            pass
        await self.kernel.settle()
        return await self._collect()

    async def _next(self, deadline: Deadline, what: str) -> Snapshot | None:
        """Let the program go and wait for its next checkpoint; None once it has ended."""
        try:
            return await self._go_on(deadline, what)
        except MachineryError as error:
            if await self.vm.qemu.has_ended():  # its memory is gone, so what was read there means nothing
                raise self.vm.qemu.end_error(f"waiting for {what}: ") from error
            raise

    async def _go_on(self, deadline: Deadline, what: str) -> Snapshot | None:
        await self.let_go()
        while True:
            event = await self._event(deadline, what)
            if event is None:
                return None
            if not isinstance(event, WaitEvent):
                self._witness.note(event)
            elif needs_registration(event):
                await self._witness.register(event, deadline)
                self._witness.release(event)
                await self.vm.qemu.resume()
            else:
                at = time.monotonic()
                snapshot = await self._stop_at(event)
                deadline.credit(time.monotonic() - at)
                return snapshot

    async def _event(self, deadline: Deadline, what: str) -> Event | None:
        """Return the next event; None when the program has exited and no event is left."""
        if not self._events.empty():
            return self._events.get_nowait()
        getting = asyncio.ensure_future(self._events.get())
        either: set[asyncio.Future[Any]] = {getting, self.job.exited}
        both = asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        try:
            await self.vm.qemu.expect(both, deadline, what)
        except DeadlineError:
            raise await self._hangs(what, deadline.timeout_s) from None
        finally:
            if not getting.done():
                getting.cancel()
        return getting.result() if getting.done() and not getting.cancelled() else None

    async def _hangs(self, what: str, waited_s: float) -> DeadlineError:
        """Return the error for a deadline that has passed, and keep what hangs, and the tables."""
        names = {one.pid: one.name for one in self._witness.processes.values()} or {self.job.pid: self.program}
        checkpoint = self.snapshots[-1].checkpoint if self.snapshots else ""
        self.hang_report = await diagnose(self.kernel, names, checkpoint, waited_s)
        with contextlib.suppress(HugepfnError):  # the deadline is the error
            await self._witness.stop()
            self.hung = self._witness.snapshot("(hangs)", 0)
        return DeadlineError(f"waiting for {what}: {self.hang_report.told(self.program, names)}")

    async def _look_again(self, held: WaitEvent) -> Snapshot:
        await self.vm.qemu.resume()
        self._witness.forget_pagemap()  # it was read before the checkpoint, so it is older than the tables now
        return await self._stop_at(held)

    async def _stop_at(self, event: WaitEvent) -> Snapshot:
        await self._witness.stop()
        self._witness.verify(event)
        self._held = event
        try:
            with timed(_LOG, "%s: entries at checkpoint %s", self.program, event.name):
                snapshot, violations = await self.vm.qemu.expect(
                    aside(functools.partial(self._read, event)), self._timeout_s, f"the entries at {event.name!r}"
                )
        except DeadlineError:
            raise MachineryError(
                f"reading the page tables at checkpoint {event.name!r} took longer than {self._timeout_s:g} s: "
                f"{self._witness.declared}; declare less with hp_map(), or give the run more time (timeout_s=)"
            ) from None
        self.snapshots.append(snapshot)
        self.violations += violations
        return snapshot

    def _read(self, event: WaitEvent, check: Callable[[], None]) -> tuple[Snapshot, list[Violation]]:
        """Return what a stop shows, and the violations there. Called in a thread."""
        snapshot = self._witness.snapshot(event.name, event.pid, check)
        return snapshot, violations_at(snapshot, self.vm.layout.saved_dirty)

    async def let_go(self) -> None:
        """Leave the checkpoint at which the program is held, if there is one."""
        if self._held is not None:
            held, self._held = self._held, None
            self._witness.release(held)
            await self.vm.qemu.resume()

    def _unmet(self, result: RunResult) -> HugepfnError:
        """Return why a program was skipped; an error if the kernel was given without the modules that it needs."""
        kernel = self.vm.known_kernel
        if result.lacks_device and kernel is not None:
            for module in self.vm.ready["missing"].split():
                if (reason := why_missing(kernel, module)) is not None:
                    return reason
        return PremiseNotMet(result.reason)

    async def _collect(self) -> RunResult:
        exited = await self.job.exited
        stdout, stderr = printable(bytes(self.job.stdout)), printable(bytes(self.job.stderr))
        return RunResult(parse_ktap(stdout), exited, stdout, stderr)

    async def _kill(self, number: signal.Signals) -> None:
        self._held = None
        await self.vm.qemu.resume()
        await self.vm.agent.kill(self.job, number)

    async def end(self) -> None:
        """End the program after an error, if the guest still answers."""
        if not self.job.exited.done():
            await self._kill(signal.SIGKILL)
            await self.vm.qemu.expect(asyncio.shield(self.job.exited), 5.0, f"{self.program} to end after SIGKILL")
        if not self.kernel.settled:
            await self.kernel.settle()
