"""Tests for a run of a guest program, in a simulated guest: what it releases, what it waits for, and how it ends."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from harness.errors import (
    ClaimFailed,
    DeadlineError,
    GuestProgramError,
    KernelDied,
    MachineryError,
    PremiseNotMet,
    ProtocolError,
    UsageError,
)
from harness.guest import bounds
from harness.guest.job import ExitStatus, Job
from harness.guest.kernel_log import KernelLog, LogMark
from harness.guest.protocol import Frame
from harness.observe import run as run_module
from harness.observe.hung import HangReport
from harness.observe.kernel_watch import KernelWatch
from harness.observe.run import GuestRun
from harness.observe.snapshot import CALIBRATION_MAPPING
from harness.observe.witness import Witness
from harness.pagetable import Layout, Level
from harness.qemu.deadline import Deadline
from harness.qemu.standstill import Standstill
from harness.verdict import Taint
from harness.verdict.hang.hang import Hang, HangKind
from harness.verdict.invariants import Invariant
from tests.hand_made_guest import BAR, BAR_VADDR, HUGE, NONCE, PAGE, SPECIAL, STACK, FakeQemu, Guest, registers

T = TypeVar("T")
SOUND = BAR.start_paddr | HUGE | SPECIAL | 0x8000000000000037  # P W U PCD A, NX: what vfio-pci maps
PASSED = b"KTAP version 1\n1..1\nok 1 maps\n"
FAILED = b"KTAP version 1\n1..1\nnot ok 1 maps # expected a pud\n"
BUG = "BUG: Bad rss-counter state mm:0 type:0 val:1"
SKIPPED = b"KTAP version 1\n1..0 # SKIP no guard regions\n"
REGISTERS = "process parent"
MAPS = f"mapping bar 77 {BAR_VADDR:x} {1 << 30:x} 3 bar 0"


class Agent:
    """PID 1 of that guest. Its kernel can log and become tainted."""

    def __init__(self, machine: Machine) -> None:
        self.emulator = machine
        self.next_id = 1
        self.records: list[bytes] = []  # not read yet
        self.number = 0
        self.tainted = b"0\n"
        self.reads = 0
        self.killed: list[tuple[Job, int]] = []

    def log(self, text: str, lost: int = 0) -> None:
        """Log a line, after ``lost`` records that were overwritten before they were read."""
        self.number += lost
        self.records.append(b"4,%d,1000000,-;%s\n" % (self.number, text.encode()))
        self.number += 1

    async def request(self, verb: str, payload: bytes = b"", timeout_s: float = 30.0) -> Frame:
        assert (verb, timeout_s > 0) == ("kmsg", True)
        self.reads += 1
        self.log(payload.decode())
        said, self.records = b"1\n" + b"".join(self.records), []
        return Frame("done", 1, said)

    async def get(self, path: str) -> bytes:
        assert path == "/proc/sys/kernel/tainted"
        return self.tainted

    async def kill(self, job: Job, number: signal.Signals) -> None:
        self.killed.append((job, number))
        if not job.exited.done():
            job.exited.set_result(ExitStatus(None, number))


class Machine(FakeQemu):
    """A machine that runs one program. The steps of the program are lines for the host; the last one ends it.

    The program takes its next step whenever the machine runs and its release word was cleared. A step that begins with
    "process" or "checkpoint" gets the address and a new value of the release word.

    :ivar loop: of the run; the test itself is not async.
    """

    def __init__(self, *steps: str, ends: tuple[bytes, ExitStatus] | None = (PASSED, ExitStatus(0, None))) -> None:
        guest = Guest()
        self.process = guest.process(0)
        super().__init__(guest, [registers(0, self.process.root)])
        guest.map(self.process.root, BAR_VADDR, SOUND, Level.PUD)
        self.loop = asyncio.new_event_loop()
        self.steps = list(steps)
        self.ends = ends
        self.nonces = itertools.count(NONCE)
        self.waits: list[str] = []
        self.patience_s = 60.0  # real deadlines, because a busy host may take long
        self.died: Exception | None = None
        self.over: list[GuestRun] = []
        self.abandoned: list[BaseException] = []
        self.waived: Mapping[Invariant, str] = {}
        self.judged = lambda troubles: troubles
        self.log = KernelLog()
        self.standstill = Standstill()
        self.agent = Agent(self)
        self.ready: Mapping[str, str] = {"missing": ""}
        self.known_kernel = None
        self.layout = Layout.MODERN
        self.job = Job(3, ("/tests/fork", "--level", "pud"), self.loop.create_future())

    @property
    def qemu(self) -> Machine:
        return self

    def run(self) -> GuestRun:
        """Starts the program."""
        witness = Witness(cast(Any, self), [BAR], self.layout)
        watch = KernelWatch(cast(Any, self), cast(Any, self.agent), Taint(0), "fork")
        self.running_program = GuestRun(cast(Any, self), self.job, witness, 5.0, watch)
        self._go_on()
        return self.running_program

    def _go_on(self) -> None:
        while self.guest.load(self.process.release_word) == 0:
            if not self.steps:
                if self.ends is not None and not self.job.exited.done():
                    self.job.stdout += self.ends[0]
                    self.job.exited.set_result(self.ends[1])
                return
            line = self.steps.pop(0)
            if line.startswith(("process", "checkpoint")):
                nonce = next(self.nonces)
                self.guest.store(self.process.release_word, nonce)
                line = f"{line} 77 1 {STACK:x} {nonce:x}"
            self.running_program.receive(f"{line}\n".encode())

    async def resume(self) -> None:
        if not self.running:
            await super().resume()
            self._go_on()

    def deadline(self, timeout_s: float) -> Deadline:
        return Deadline(timeout_s, None)

    async def expect(self, awaitable: Awaitable[T], limit: float | Deadline, what: str) -> T:
        assert (limit.timeout_s if isinstance(limit, Deadline) else limit) == 5.0
        self.waits.append(what)
        task = asyncio.ensure_future(awaitable)
        done, _ = await asyncio.wait({task}, timeout=self.patience_s)
        if not done:
            task.cancel()
            await asyncio.wait({task})
            raise DeadlineError(f"waiting for {what}: nothing")
        return task.result()

    async def has_ended(self) -> bool:
        return self.died is not None

    def end_error(self, when: str) -> KernelDied:
        return KernelDied(f"{when}{self.died}")

    def begin_run(self) -> tuple[LogMark, float]:
        return self.log.mark(), self.standstill.total_s

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 120.0))

    def forget(self, run: GuestRun) -> None:
        self.over.append(run)

    def abandon(self, run: GuestRun, error: BaseException) -> None:
        assert run is self.running_program
        self.abandoned.append(error)


Start = Callable[..., Machine]


async def program_hangs(_kernel: object, _names: object, checkpoint: str, waited_s: float) -> HangReport:
    """A fixed diagnosis. tests/test_hung.py tests the real one."""
    return HangReport(Hang(HangKind.PROGRAM, checkpoint, waited_s, 5.0), "the kernel log has no complaint")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(run_module, "diagnose", program_hangs)
    made: list[Machine] = []

    def make(*steps: str, **how: Any) -> Machine:
        made.append(Machine(*steps, **how))
        return made[-1]

    yield make
    for one in made:
        one.loop.close()


def forks(machine: Start, **how: Any) -> Machine:
    """A program with two checkpoints."""
    return machine(REGISTERS, MAPS, "checkpoint mapped", "checkpoint forked", **how)


# --- to a checkpoint ---------------------------------------------------------------------------------


def test_the_machine_is_stopped_at_the_checkpoint(machine: Start) -> None:
    fork = forks(machine)
    run = fork.run()
    at = run.until("mapped")
    assert (at.checkpoint, at.pid, at["parent"].leaf("bar").raw) == ("mapped", 77, SOUND)
    assert not fork.running
    assert fork.steps == ["checkpoint forked"], "the program must not run past the checkpoint"
    assert run.snapshots == [at]
    assert run.violations == []
    assert run.program == "fork"


def test_checkpoints_on_the_way_are_observed_and_left(machine: Start) -> None:
    fork = forks(machine)
    fork.guest.map(fork.process.root, BAR_VADDR, SOUND & ~SPECIAL, Level.PUD)
    run = fork.run()
    assert run.until("forked").checkpoint == "forked"
    assert [at.checkpoint for at in run.snapshots] == ["mapped", "forked"]
    assert [(one.invariant, one.checkpoint) for one in run.violations] == [
        (Invariant.SPECIAL, "mapped"),
        (Invariant.SPECIAL, "forked"),
    ]


@pytest.mark.parametrize(
    ("ends", "kind", "told"),
    [
        (
            (PASSED, ExitStatus(0, None)),
            GuestProgramError,
            r"ended before checkpoint 'gone' \(passed\); it reached: 'm",
        ),
        (
            (FAILED, ExitStatus(1, None)),
            GuestProgramError,
            r"(?s)before checkpoint 'gone' \(failed, exit status 1: .*expected a pud\); it reached: 'mapped'",
        ),
        ((b"", ExitStatus(None, 11)), GuestProgramError, r"\(killed by SIGSEGV\); it reached: 'mapped', 'forked'$"),
        ((SKIPPED, ExitStatus(4, None)), PremiseNotMet, "^no guard regions$"),
    ],
)
def test_a_program_that_ends_before_the_checkpoint(
    machine: Start, ends: tuple[bytes, ExitStatus], kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        forks(machine, ends=ends).run().until("gone")


def test_the_signal_that_ended_a_program_is_a_value(machine: Start) -> None:
    with pytest.raises(GuestProgramError) as before:
        forks(machine, ends=(b"", ExitStatus(None, 7))).run().until("gone")
    with pytest.raises(GuestProgramError) as at_its_end, forks(machine, ends=(PASSED, ExitStatus(None, 9))).run():
        pass
    with pytest.raises(GuestProgramError) as exited, forks(machine, ends=(PASSED, ExitStatus(1, None))).run():
        pass
    assert [one.value.signal for one in (before, at_its_end, exited)] == ["SIGBUS", "SIGKILL", ""]


def test_a_program_that_ends_at_once_reached_nothing(machine: Start) -> None:
    with pytest.raises(GuestProgramError, match=r"it reached: none$"):
        machine().run().until("mapped")


def test_a_program_that_becomes_silent(machine: Start) -> None:
    fork = forks(machine, ends=None)
    run = fork.run()
    run.until("forked")
    fork.patience_s = 0.05
    with pytest.raises(
        DeadlineError,
        match=r"^waiting for the end of fork: nothing within 5 s; fork: last at checkpoint 'forked', "
        r"processes \['parent'\]; the program hangs, and .*; the kernel log has no complaint$",
    ):
        run.finish()
    assert run.hung is not None
    assert run.hung.checkpoint == "(hangs)"
    silent = machine(ends=None)
    silent.patience_s = 0.05
    with pytest.raises(DeadlineError, match=r"checkpoint 'mapped' of fork: .*; fork: it reached no checkpoint, proc"):
        silent.run().until("mapped")


def test_late_events_of_a_program_are_still_read(machine: Start) -> None:
    fork = machine(ends=None)
    run = fork.run()
    fork.patience_s = 0.05
    with pytest.raises(DeadlineError):
        run.until("mapped")
    fork.patience_s = 60.0
    fork.steps += [REGISTERS, MAPS, "checkpoint mapped"]
    fork._go_on()
    assert run.until("mapped")["parent"].leaf("bar").raw == SOUND


def test_a_checkpoint_of_other_tables_is_refused(machine: Start) -> None:
    """The program's tables no longer map the word that it named: it has called exec(), or sent a false address."""
    run = machine(REGISTERS, ends=None).run()
    run.receive(f"checkpoint mapped 77 1 {STACK:x} {NONCE + 9:x}\n".encode())
    with pytest.raises(ProtocolError, match=r"parent \(pid 77\) waits at 'mapped', but .* did it exec"):
        run.until("mapped")


def test_pagemap_is_of_one_checkpoint(machine: Start) -> None:
    fork = machine(REGISTERS, MAPS, "pagemap bar 77 0*2", "checkpoint mapped", "checkpoint forked")
    run = fork.run()
    assert len(run.until("mapped")["parent"].pagemap("bar")) == 2
    assert run.until("forked")["parent"].pagemap("bar") == ()


def test_the_time_of_a_stop_does_not_count_for_the_program(machine: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = forks(machine)
    clock = itertools.count(10.0, 3.0)
    credited: list[float] = []
    monkeypatch.setattr("harness.observe.run.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(Deadline, "credit", lambda _self, seconds: credited.append(seconds))
    fork.run().until("forked")
    assert credited == [3.0, 3.0], "the time of each stop is given back"


def test_events_before_the_end_are_still_read(machine: Start) -> None:
    late = machine(REGISTERS, MAPS, "checkpoint mapped", "gone 77")
    run = late.run()
    run.until("mapped")
    assert run.finish().passed
    assert run._witness.processes == {}


@pytest.mark.parametrize("died", [True, False])
def test_an_error_at_the_end_of_qemu_is_reported_as_that_end(machine: Start, died: bool) -> None:
    fork = forks(machine)
    run = fork.run()
    run.until("mapped")
    fork.guest.store(fork.process.stack_entry, 0)  # the program cannot be released: its memory is gone
    fork.died = RuntimeError("panic") if died else None
    kind, told = (
        (KernelDied, r"^waiting for checkpoint 'forked' of fork: panic$") if died else (ProtocolError, "release word")
    )
    with pytest.raises(kind, match=told):
        run.until("forked")


def test_tables_that_take_too_long_to_read(machine: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = forks(machine)
    expect = fork.expect

    async def slow(awaitable: Awaitable[T], limit: float | Deadline, what: str) -> T:
        if what != "the entries at 'mapped'":
            return await expect(awaitable, limit, what)
        assert limit == 5.0
        cast(Any, awaitable).close()
        raise DeadlineError("nothing")

    monkeypatch.setattr(fork, "expect", slow)
    with pytest.raises(
        MachineryError, match=r"at checkpoint 'mapped' took longer than 5 s: 1 mappings of 1024 MiB; declare less"
    ):
        fork.run().until("mapped")


# --- at a checkpoint ---------------------------------------------------------------------------------


def test_reading_again_runs_the_kernel_while_the_program_waits(machine: Start) -> None:
    fork = machine(REGISTERS, MAPS, "pagemap bar 77 80000000000000*2", "checkpoint mapped", "checkpoint forked")
    run = fork.run()
    with pytest.raises(UsageError, match="fork is not at a checkpoint; call until"):
        run.look_again()
    first = run.until("mapped")
    assert len(first["parent"].pagemap("bar")) == 2
    before = len(fork.commands)
    again = run.look_again()
    assert (again.checkpoint, again["parent"].pagemap("bar")) == ("mapped", ())
    assert fork.commands[before:] == ["cont", "stop"]
    assert fork.steps == ["checkpoint forked"]
    assert run.snapshots == [first, again]
    assert run.until("forked").checkpoint == "forked"


def test_leaves_in_bulk(machine: Start) -> None:
    run = forks(machine).run()
    with pytest.raises(UsageError, match="fork is not at a checkpoint; call until"):
        run.leaf_arrays("parent", "bar")
    run.until("mapped")
    assert [column.tolist() for column in run.leaf_arrays("parent", "bar")] == [[BAR_VADDR], [SOUND], [Level.PUD]]
    with pytest.raises(UsageError, match="no registered process or virtual machine 'child' has a mapping 'bar'"):
        run.leaf_arrays("child", "bar")


def test_a_program_that_is_killed_at_a_checkpoint(machine: Start) -> None:
    fork = forks(machine)
    run = fork.run()
    run.until("mapped")
    run.kill(signal.SIGTERM)
    assert fork.agent.killed == [(fork.job, signal.SIGTERM)]
    assert fork.running
    assert run.finish().reason == "killed by SIGTERM"
    assert fork.steps == ["checkpoint forked"], "the program must not be released"
    with pytest.raises(UsageError, match="not at a checkpoint"):
        run.look_again()


# --- its end -----------------------------------------------------------------------------------------


def test_it_runs_to_its_end_once(machine: Start) -> None:
    fork = forks(machine, ends=(PASSED + b"\xff# value x=1\n", ExitStatus(0, None)))
    fork.job.stderr += b"\x1b[31mred"
    run = fork.run()
    result = run.finish()
    assert (result.passed, result.exit, result.values) == (True, ExitStatus(0, None), {})
    assert "\x1b" not in result.stderr
    assert "red" in result.stderr
    assert [at.checkpoint for at in run.snapshots] == ["mapped", "forked"]
    assert fork.running
    assert fork.agent.reads == 1, "the log is read once, to the program's end"
    before = list(fork.commands)
    assert run.finish() is result
    assert run.result is result
    assert fork.commands == before


def test_a_block_that_passes_forgets_the_run(machine: Start) -> None:
    fork = forks(machine)
    with fork.run() as run:
        assert run is fork.running_program
    assert (fork.over, fork.abandoned) == ([run], [])
    assert fork.steps == []


@pytest.mark.parametrize(
    ("ends", "kind", "told"),
    [
        (
            (FAILED, ExitStatus(1, None)),
            GuestProgramError,
            r"(?s)^guest program fork: failed, exit status 1: .*expected a pud",
        ),
        ((PASSED, ExitStatus(1, None)), GuestProgramError, "^guest program fork: passed, exit status 1"),
        ((SKIPPED, ExitStatus(4, None)), PremiseNotMet, "^no guard regions$"),
    ],
)
def test_a_block_that_fails_abandons_the_run(
    machine: Start, ends: tuple[bytes, ExitStatus], kind: type[Exception], told: str
) -> None:
    fork = forks(machine, ends=ends)
    with pytest.raises(kind, match=told) as caught, fork.run():
        pass
    assert fork.abandoned == [caught.value]
    assert fork.over == []


def test_an_error_in_the_block_is_the_one_reported(machine: Start) -> None:
    fork = forks(machine)
    with pytest.raises(ZeroDivisionError) as caught, fork.run():
        raise ZeroDivisionError
    assert fork.abandoned == [caught.value]
    assert fork.commands == [], "the program was not run to its end"


def test_an_invariant_that_does_not_hold_fails_the_block(machine: Start) -> None:
    fork = forks(machine)
    fork.guest.map(fork.process.root, BAR_VADDR, SOUND & ~SPECIAL, Level.PUD)
    with pytest.raises(ClaimFailed, match="every leaf of a pfnmap is special: at 'mapped'"), fork.run():
        pass
    waived = forks(machine)
    waived.waived = {Invariant.SPECIAL: "on purpose"}
    waived.guest.map(waived.process.root, BAR_VADDR, SOUND & ~SPECIAL, Level.PUD)
    with waived.run() as run:
        pass
    assert len(run.violations) == 2
    assert run.broken == []


def test_shadow_stacks_are_checked_only_with_saved_dirty(machine: Start) -> None:
    shadow = (SOUND & ~2) | 0x40  # W=0, D=1
    for layout, broken in ((Layout.MODERN, 2), (Layout.CLASSIC, 0)):
        fork = forks(machine)
        fork.layout = layout
        fork.guest.map(fork.process.root, BAR_VADDR, shadow, Level.PUD)
        run = fork.run()
        run.finish()
        assert [one.invariant for one in run.violations] == [Invariant.SHADOW_STACK] * broken


def test_check_needs_the_log_up_to_the_end(machine: Start) -> None:
    fork = forks(machine)
    run = fork.run()
    with pytest.raises(MachineryError, match="the kernel log was not read up to the end of fork"):
        run.check()
    run.finish()
    run.check()


def test_a_gap_in_the_log_is_no_verdict_unless_something_is_broken(machine: Start) -> None:
    fork = forks(machine)
    fork.agent.log("fine", lost=3)
    with pytest.raises(MachineryError, match="a gap of 3 records"), fork.run():
        pass
    fork = forks(machine)
    fork.agent.log(BUG, lost=3)
    with pytest.raises(ClaimFailed, match=f"^the kernel log: {BUG}$"), fork.run():
        pass


def test_complaints_and_taint_of_the_kernel(machine: Start) -> None:
    fork = forks(machine)
    fork.guest.map(fork.process.root, BAR_VADDR, SOUND & ~SPECIAL, Level.PUD)
    fork.agent.log(BUG)
    fork.agent.tainted = b"128\n"  # an oops, after which the kernel went on
    run = fork.run()
    run.finish()
    with pytest.raises(ClaimFailed) as caught:
        run.check()
    told = [line.split(":")[0] for line in str(caught.value).splitlines()]
    assert told == ["every leaf of a pfnmap is special"] * 2 + ["the kernel log", "the kernel is now tainted"]
    assert run.log.splitlines()[0] == f"[    1.000000] {BUG}"
    assert [one.line for one in run.complaints()] == [BUG]
    assert run.taint is Taint.DIE


def test_disagreeing_witnesses_are_the_only_error_reported(machine: Start) -> None:
    page = f"mapping {CALIBRATION_MAPPING} 77 {STACK & -PAGE:x} {PAGE:x} 3 ram 0"
    word = f"pagemap {CALIBRATION_MAPPING} 77 "
    fork = machine(REGISTERS, MAPS, page, word + "0*1", "checkpoint mapped")
    fork.guest.map(fork.process.root, BAR_VADDR, SOUND & ~SPECIAL, Level.PUD)
    run = fork.run()
    with pytest.raises(MachineryError, match=r"the walk and pagemap disagree, so the walk proves nothing: .* present"):
        run.__exit__(None, None, None)
    assert [one.invariant for one in run.uncalibrated] == [Invariant.PRESENT]
    assert len(run.violations) == 2


@pytest.mark.parametrize(("count", "more"), [(8, []), (9, ["... and 1 more"]), (11, ["... and 3 more"])])
def test_check_lists_eight_violations_and_counts_the_rest(machine: Start, count: int, more: list[str]) -> None:
    fork = machine(REGISTERS, MAPS, *(f"checkpoint number{number}" for number in range(count)))
    fork.guest.map(fork.process.root, BAR_VADDR, SOUND & ~SPECIAL, Level.PUD)
    with pytest.raises(ClaimFailed) as caught, fork.run() as run:
        pass
    assert str(caught.value).splitlines() == [*map(str, run.violations[:8]), *more]


def test_unread_events_are_limited(machine: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    run = machine(ends=None).run()
    monkeypatch.setattr(bounds, "EVENTS_MAX", 2)
    run.receive(b"gone 78\ngo")
    run.receive(b"ne 79\n")
    with pytest.raises(ProtocolError, match="events: 2 lines were received before a wait for one"):
        run.receive(b"gone 80\n")


# --- after an error ----------------------------------------------------------------------------------


def test_a_program_that_still_runs_is_killed_at_the_end(machine: Start) -> None:
    fork = forks(machine)
    run = fork.run()
    run.until("mapped")
    fork.on_loop(run.end())
    assert fork.agent.killed == [(fork.job, signal.SIGKILL)]
    assert fork.waits[-1] == "fork to end after SIGKILL"
    assert fork.running
    assert fork.agent.reads == 1, "the kernel's log is read once"


def test_a_program_that_has_ended_is_not_killed(machine: Start) -> None:
    fork = forks(machine)
    run = fork.run()
    run.finish()
    fork.on_loop(run.end())
    assert fork.agent.killed == []
    assert fork.agent.reads == 1, "the log is read to the program's end once"
    fork = forks(machine)
    run = fork.run()
    with pytest.raises(GuestProgramError):
        run.until("gone")
    fork.on_loop(run.end())
    assert (fork.agent.killed, fork.agent.reads) == ([], 1)
