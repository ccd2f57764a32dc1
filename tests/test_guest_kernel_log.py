"""Tests for the kernel's log from /dev/kmsg and the console: it is complete, without repeats, and gaps are reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from harness.errors import DeadlineError, MachineryError, RunBroken
from harness.guest import bounds
from harness.guest.kernel_log import KernelLog, LogMark, SavedLog
from harness.guest.log_reader import read_log
from harness.guest.protocol import Frame
from harness.machine.watched import WatchedMachine
from harness.observe.kernel_watch import KernelWatch
from harness.qemu.standstill import Standstill
from harness.verdict import LogPart, LogRecord, Taint, scan

T = TypeVar("T")
STALL = "rcu: INFO: rcu_sched self-detected stall on CPU"
BUG = "BUG: Bad rss-counter state mm:0 type:0 val:1"


class FakeAgent:
    """The guest's ring buffer of log records.

    :ivar room: the number of records that the ring keeps.
    :ivar meanwhile: what others log during each read.
    """

    def __init__(self, room: int = 1000) -> None:
        self.room = room
        self.records: list[tuple[int, str]] = []
        self.count = 0
        self.position = 0
        self.next_id = 1
        self.tainted = b"0\n"
        self.drops = False
        self.answers_left: int | None = None
        self.meanwhile: list[str] = []
        self.each_answer = 100

    def log(self, *texts: str) -> None:
        for text in texts:
            self.records.append((self.count, text))
            self.count += 1
        del self.records[: -self.room]

    async def request(self, verb: str, payload: bytes = b"", timeout_s: float = 30.0) -> Frame:
        assert verb == "kmsg"
        assert timeout_s > 0
        if self.answers_left is not None:
            if not self.answers_left:
                raise DeadlineError("waiting for the agent's answer to 'kmsg'")
            self.answers_left -= 1
        self.next_id += 1
        if payload and not self.drops:
            self.log(payload.decode())
        self.log(*self.meanwhile)
        due = [(number, text) for number, text in self.records if number >= self.position]
        part, left = due[: self.each_answer], due[self.each_answer :]
        self.position = part[-1][0] + 1 if part else self.position
        lines = b"".join(b"6,%d,%d,-;%s\n" % (number, number, text.encode()) for number, text in part)
        return Frame("done", 1, (b"0\n" if left else b"1\n") + lines)

    emulator: SimpleNamespace

    async def get(self, _path: str) -> bytes:
        return self.tainted


class Machine:
    """The part of a VM that a KernelWatch needs."""

    def __init__(self, room: int = 1000) -> None:
        self.agent = FakeAgent(room)
        self.qemu = SimpleNamespace(log=KernelLog(), complaint=lambda: "the console shows this")
        self.qemu.begin_run = lambda: (self.qemu.log.begin_run(), 0.0)
        self.qemu.standstill = Standstill()
        self.agent.emulator = self.qemu

    def watch(self, program: str) -> KernelWatch:
        return KernelWatch(cast(Any, self.qemu), cast(Any, self.agent), Taint(0), program)

    def begin(self) -> KernelWatch:
        return asyncio.run(KernelWatch.begin(cast(Any, self.qemu), cast(Any, self.agent), Taint(0), "fork"))


def record(number: int, text: str) -> LogRecord:
    return LogRecord(number, number, text)


def test_messages_that_the_console_does_not_show_are_found() -> None:
    machine = Machine()
    machine.agent.log("Linux version", BUG)
    watch = machine.begin()
    machine.agent.log("quiet", STALL, "more")
    asyncio.run(watch.settle())
    assert [one.line for one in watch.troubles().complaints] == [STALL]
    assert watch.log.splitlines() == [
        "[    0.000003] quiet",
        f"[    0.000004] {STALL}",
        "[    0.000005] more",
        "[    0.000006] hugepfn: after fork (2)",
    ]
    assert watch.gap == ""


def test_messages_from_both_sources_are_reported_once() -> None:
    machine = Machine()
    watch = machine.begin()
    machine.agent.log(STALL)
    machine.qemu.log.write(f"[    0.000001] {STALL}\r\n".encode())
    assert len(watch.complaints()) == 1  # from the console, which is faster
    asyncio.run(watch.settle())
    assert len(watch.complaints()) == 1
    machine.qemu.log.write(b"[    0.000002] hugepfn: after")  # the console lags behind
    machine.qemu.log.write(b" fork (2)\r\n")
    assert watch.log.count("after fork") == 1


def test_a_console_without_times_shows_the_same_thing_once() -> None:
    machine = Machine()
    watch = machine.begin()
    machine.agent.log(STALL)
    asyncio.run(watch.settle())
    machine.qemu.log.write(f"{STALL}\n".encode())
    assert len(watch.complaints()) == 1


def test_a_late_console_line_does_not_belong_to_the_next_program() -> None:
    machine = Machine()
    machine.agent.log(BUG)
    watch = machine.begin()
    machine.qemu.log.write(f"[    0.000000] {BUG}\n".encode())
    assert watch.complaints() == ()
    machine.qemu.log.write(f"[    0.000009] {BUG}\n".encode())  # the same line again, from a kernel that then died
    assert len(watch.complaints()) == 1


def test_only_a_gap_during_the_run_is_reported() -> None:
    machine = Machine(room=20)
    machine.agent.log(*(f"boot {number}" for number in range(100)))
    watch = machine.begin()
    asyncio.run(watch.settle())
    assert watch.gap == ""
    machine.agent.log(*(f"flood {number}" for number in range(100)))
    asyncio.run(watch.settle())
    assert "a gap of 81 records" in watch.gap
    assert "81 records of the kernel log are lost here" in watch.log


def test_console_lines_in_a_gap_are_still_scanned() -> None:
    machine = Machine(room=20)
    watch = machine.begin()
    machine.agent.log(STALL, *(f"flood {number}" for number in range(100)))
    machine.qemu.log.write(f"[    0.000001] {STALL}\n".encode())
    asyncio.run(watch.settle())
    assert [one.line for one in watch.complaints()] == [STALL]


def test_lost_records_are_a_gap() -> None:
    """The answer came too late, or the reader was interrupted."""
    machine = Machine()
    watch = machine.begin()
    machine.agent.log(STALL)
    asyncio.run(machine.agent.request("kmsg"))
    asyncio.run(watch.settle())
    assert "a gap of 1 records" in watch.gap


def test_a_log_in_many_answers_is_read_to_its_end() -> None:
    machine = Machine()
    watch = machine.begin()
    machine.agent.log(*(f"line {number}" for number in range(950)), STALL)
    asyncio.run(watch.settle())
    assert len(watch.log.splitlines()) == 952
    assert watch.troubles().found


def test_reading_a_flood_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.guest.log_reader._READ_MAX_BYTES", 20_000)
    machine = Machine(room=50)
    machine.agent.each_answer = 40
    machine.agent.meanwhile = [f"flood {number}" for number in range(60)]
    with pytest.raises(MachineryError, match="does not end"):
        asyncio.run(read_log(cast(Any, machine.agent), "now", 30.0))


def test_a_dropped_marker_line_makes_the_end_of_the_log_unknown() -> None:
    machine = Machine()
    machine.agent.drops = True
    with pytest.raises(MachineryError, match="printk_devkmsg"):
        machine.begin()


def test_a_log_that_was_not_read_to_the_end_is_not_called_clean() -> None:
    machine = Machine()
    watch = machine.begin()
    assert "not read up to the end of fork" in watch.gap


def test_messages_of_a_program_that_hangs_are_found() -> None:
    machine = Machine()
    watch = machine.begin()
    assert asyncio.run(watch.last_words()) == "the kernel log has no complaint"
    machine.agent.log(STALL)
    assert asyncio.run(watch.last_words()) == f"the kernel log says: {STALL}"
    machine.agent.answers_left = 0
    assert asyncio.run(watch.last_words()) == "the console shows this"


def test_complaints_without_end_are_cut() -> None:
    machine = Machine()
    watch = machine.begin()
    machine.agent.log(*(f"BUG: Bad page state in process a{number} pfn:1" for number in range(200)))
    asyncio.run(watch.settle())
    assert len(watch.troubles().complaints) == 100


def test_what_the_kernel_answers_is_no_complaint() -> None:
    machine = Machine()
    watch = machine.begin()
    machine.agent.log(BUG)
    asyncio.run(watch.last_words())
    watch.ask()
    machine.agent.log(STALL)
    asyncio.run(read_log(cast(Any, machine.agent), "asked", 5.0))
    watch.answered()
    assert STALL in watch.log
    assert [one.line for one in watch.complaints()] == [BUG]
    machine.agent.log("a pause", STALL)
    asyncio.run(read_log(cast(Any, machine.agent), "later", 5.0))
    assert [one.line for one in watch.complaints()] == [BUG, STALL]


def test_a_restored_machine_continues_its_log(tmp_path: Path) -> None:
    log = KernelLog()
    log.add(LogPart(True, (record(0, "one"), record(1, "two"))))
    log.write(b"[    0.000001] two\n[    0.000002] three\n")
    log.saved().write(tmp_path)
    again = KernelLog()
    again.restore(SavedLog.read(tmp_path))
    assert again.text == log.text == "[    0.000000] one\n[    0.000001] two\n[    0.000002] three\n"
    assert again.add(LogPart(True, (record(2, "three"), record(5, "six")))) == 2
    again.covered(len(again.console))
    assert scan(again.text) == ()
    assert again.text.count("three") == 1


def test_the_console_in_pieces() -> None:
    log = KernelLog()
    for byte in "[    1.0] pr\u00e4fix\r\nnext\r".encode():
        log.write(bytes([byte]))
    log.write(b"\n")
    assert log.text == "[    1.0] pr\u00e4fix\nnext\n"


def test_a_session_keeps_the_newest_of_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is so for both sources. Dropping lines from before a run makes no gap in that run."""
    monkeypatch.setattr(bounds, "LOG_MAX_BYTES", 4000)
    machine = Machine(room=100_000)
    log = machine.qemu.log
    machine.begin()
    for number in range(1000):
        machine.agent.log(f"line {number}")
        log.write(f"[    0.{number:06}] line {number}\n[    0.000000] not in a record {number}\n".encode())
        if number % 10 == 0:
            machine.begin()
    watch = machine.begin()
    machine.agent.log(BUG)
    asyncio.run(watch.settle())
    assert len(log.text) < 3 * 4000
    assert sum(map(len, log._known)) < 3 * 4000
    assert len(log._lost) < 20
    assert watch.gap == ""
    assert [one.line for one in watch.troubles().complaints] == [BUG]
    assert watch.log.splitlines()[0].endswith(BUG)
    assert "lines of the kernel log were dropped here, to keep the newest" in log.text.splitlines()[0]


def test_records_of_the_run_that_are_not_kept_are_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LOG_MAX_BYTES", 4000)
    machine = Machine(room=100_000)
    watch = machine.begin()
    machine.agent.log(*(f"flood {number}" for number in range(1000)))
    asyncio.run(watch.settle())
    lost = machine.qemu.log.lost_since(LogMark(1))
    assert 800 < lost < 1000
    assert f"the kernel log has a gap of {lost} records" in watch.gap
    assert watch.log.splitlines()[0] == f"hugepfn: {lost} lines of the kernel log were dropped here, to keep the newest"


def test_dropped_console_lines_are_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LOG_MAX_BYTES", 4000)
    machine = Machine()
    watch = machine.begin()
    machine.qemu.log.write(b"[    0.000001] fast\n" * 1000)
    assert 400 < machine.qemu.log.lost_since(LogMark()) < 1000
    assert "lines of the console were dropped here" in watch.log
    asyncio.run(watch.settle())
    assert "gap of" in watch.gap
    assert machine.watch("next").gap == "the kernel log was not read up to the end of next"


def test_a_line_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LOG_MAX_BYTES", 1000)
    log = KernelLog()
    log.add(LogPart(True, (record(0, "x" * 1001),)))
    for _ in range(100):
        log.write(b"y" * 100)
    assert len(log.text) < 1100
    assert log.lost_since(LogMark()) == 1


def test_a_complaint_after_a_program_may_count_for_the_next() -> None:
    machine = Machine()
    machine.agent.log("quiet")
    earlier = machine.begin()
    machine.agent.log(BUG)
    asyncio.run(earlier.settle())
    earlier.hold_against_next()
    saved = machine.qemu.log.saved()
    later, last = machine.begin(), machine.begin()
    machine.agent.log(STALL)
    asyncio.run(last.settle())
    assert [[one.line for one in watch.complaints()] for watch in (later, last)] == [[BUG, STALL], [STALL]]
    clone = KernelLog()
    clone.restore(saved)
    assert [one.line for one in scan(clone.since(clone.begin_run()))] == [BUG]
    assert scan(clone.since(clone.begin_run())) == ()


# --- outside of programs -------------------------------------------------------------------------


class MachineInATest(WatchedMachine):
    """A machine on which a test runs, with what a :class:`Machine` has."""

    def __init__(self, *expected: str) -> None:
        super().__init__()
        self.fake = Machine()
        self.fake.qemu.exit_status, self.fake.qemu.stopped = None, False
        self.expected_complaints = expected
        self._machine = cast(Any, SimpleNamespace(qemu=self.fake.qemu, agent=self.fake.agent, ready={"taint": "0"}))
        self.asks()  # so that the log is known up to here
        self.begin_test()

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(work)

    def asks(self, *logs: str) -> None:
        """As if a command were run in the guest, during which the kernel logs this."""
        self.fake.agent.log(*logs)
        asyncio.run(read_log(cast(Any, self.fake.agent), "a command", 1.0))

    def runs_program(self, *logs: str) -> None:
        """As if a program were run, during which the kernel logs this."""
        watch = asyncio.run(KernelWatch.begin(cast(Any, self.qemu), cast(Any, self.agent), self.boot_taint, "fork"))
        self.fake.agent.log(*logs)
        asyncio.run(watch.settle())
        run = SimpleNamespace(kernel=watch, kernel_troubles=lambda: self.judged(watch.troubles()))
        self.runs.append(cast(Any, run))

    def said(self) -> list[list[str]]:
        """The lines of the complaints, by program; what was outside comes last."""
        self.end_test()
        return [[one.line for one in seen.complaints] for seen in self.kernel_troubles()]


def warning(function: str) -> str:
    return f"WARNING: CPU: 0 PID: 1 at mm/memory.c:1 {function}+0x1/0x2"


def block(function: str) -> list[str]:
    return [warning(function), "Call Trace:", " <TASK>", f" {function}+0x1/0x2", " </TASK>", "---[ end trace 0 ]---"]


def test_a_complaint_outside_of_programs_is_told_once() -> None:
    machine = MachineInATest()
    machine.asks(warning("before"))
    machine.runs_program(warning("first"))
    machine.asks(warning("between"))
    machine.runs_program()
    machine.fake.agent.log(warning("after"))
    machine.asks()
    assert machine.said() == [[warning("first")], [], [warning(name) for name in ("before", "between", "after")]]
    with pytest.raises(RunBroken, match=r"first[\s\S]*before[\s\S]*between[\s\S]*after"):
        machine.check_kernel()


def test_a_quiet_test_is_a_pass_and_costs_nothing() -> None:
    machine = MachineInATest()
    machine.runs_program()
    asked = machine.agent.next_id
    assert machine.said() == [[]]
    assert machine.agent.next_id == asked, "nothing was asked of the guest since the program's end"
    machine.check_kernel()


def test_what_was_said_before_the_test_is_not_its_fault() -> None:
    machine = MachineInATest()
    machine.asks(warning("earlier"))
    machine.begin_test()
    assert machine.said() == []


def test_what_the_probe_made_the_kernel_say_is_told_without_a_program() -> None:
    machine = MachineInATest()
    mark = machine.qemu.log.mark()
    machine.asks(warning("probe"))
    machine.qemu.log.held = mark
    machine.begin_test()
    assert machine.said() == [[warning("probe")]]


def test_the_taint_outside_of_programs_counts() -> None:
    machine = MachineInATest()
    machine.asks()
    machine.fake.agent.tainted = b"512\n"
    machine.end_test()
    assert [one.taint for one in machine.kernel_troubles()] == [Taint.WARN]
    machine = MachineInATest()
    machine.fake.agent.tainted = b"512\n"
    machine.runs_program()
    machine.asks()
    machine.end_test()
    assert [one.taint for one in machine.kernel_troubles()] == [Taint.WARN], "the program answers for it"


def test_a_stall_that_we_caused_outside_of_programs_is_excused_with_its_taint() -> None:
    machine = MachineInATest()
    machine.asks("watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [bash:1]")
    machine.fake.agent.tainted = b"16384\n"
    machine.end_test()
    machine.fake.qemu.standstill = cast(Any, SimpleNamespace(excuse=lambda *_: "the machine was stopped"))
    (seen,) = machine.kernel_troubles()
    assert (seen.complaints, seen.taint, len(seen.excused)) == ((), Taint(0), 1)


@pytest.mark.parametrize("by", [MachineInATest.runs_program, MachineInATest.asks])
def test_expected_complaints_without_end_hide_no_other_one(by: Callable[..., None]) -> None:
    machine = MachineInATest("WARNING in f")
    machine.fake.agent.tainted = b"512\n"
    by(machine, *block("f") * bounds.COMPLAINTS_MAX, *block("g"))
    machine.end_test()
    assert [one.gap for one in machine.kernel_troubles()] == [
        "the kernel log has 101 complaints, and only the first 100 are judged"
    ]


def test_an_expected_complaint_is_not_held_against_the_kernel_and_neither_is_its_taint() -> None:
    machine = MachineInATest("WARNING in f")
    machine.fake.agent.tainted = b"512\n"
    machine.asks(*block("f"))
    machine.runs_program(*block("f"))
    machine.runs_program()
    assert machine.said() == [[], [], []]
    assert [len(one.expected) for one in machine.kernel_troubles()] == [1, 0, 1]
    machine.check_kernel()
    machine.expected_complaints = ()  # the next test on this machine
    machine.runs.clear()
    machine.begin_test()
    machine.runs_program()
    assert machine.said() == [[]]
    machine.check_kernel()


def test_a_log_that_cannot_be_read_to_the_end_of_the_test_is_no_verdict() -> None:
    machine = MachineInATest()
    machine.asks()
    machine.fake.agent.answers_left = 0
    machine.end_test()
    with pytest.raises(MachineryError, match="not read up to the end of the test"):
        machine.check_kernel()


def test_nothing_is_asked_of_a_machine_that_has_ended() -> None:
    machine = MachineInATest()
    machine.asks()
    machine.qemu.log.write(f"[    9.000000] {warning('dying')}\n".encode())
    machine.fake.qemu.exit_status = 0
    machine.fake.agent.answers_left = 0
    assert machine.said() == [[warning("dying")]]


def test_the_log_of_a_program_ends_with_it() -> None:
    machine = Machine()
    watch = machine.begin()
    machine.agent.log(STALL)
    asyncio.run(watch.settle())
    machine.agent.log(BUG)
    asyncio.run(read_log(cast(Any, machine.agent), "later", 1.0))
    assert [one.line for one in watch.complaints()] == [STALL]
