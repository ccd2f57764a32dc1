"""Tests for deadlines: only time in which QEMU could run counts against the kernel, other time is given back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import DeadlineError, MachineryError, ProtocolError
from harness.guest import bounds
from harness.guest.job import ExitStatus, Job
from harness.guest.protocol import MappingEvent, WaitEvent, Where
from harness.host.aside import Abandoned, aside
from harness.observe.run import GuestRun
from harness.observe.snapshot import Snapshot
from harness.pagetable import Level
from harness.qemu import deadline as module
from harness.qemu import speed
from harness.qemu.deadline import CAP, Deadline, check_runs, first_of, was_continued
from harness.qemu.spec import Accel
from harness.qemu.speed import MOST, boot_cpu_s, slowness
from harness.qemu.threads import ThreadTime, state, stolen_s, thread_times
from tests.hand_made_guest import PAGE, WRITABLE, Guest, registers
from tests.test_observe_witness import registered


class Host:
    """The clock and the scheduler, as a test sets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.waited_s = {7: 5.0, 8: 0.0}
        self.ours_waited_s = 3.0
        self.continued = False
        self.state = "S"
        self.asked: list[int] = []
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now_s))

        def times(pid: int) -> dict[int, ThreadTime]:
            self.asked.append(pid)
            waited = self.waited_s if pid == 7 else {10_007: self.ours_waited_s}
            return {thread: ThreadTime(0, int(waited_s * 1e9)) for thread, waited_s in waited.items()}

        self.stolen_s = 100.0
        monkeypatch.setattr(module, "thread_times", times)
        monkeypatch.setattr(module, "stolen_s", lambda: self.stolen_s)
        monkeypatch.setattr(module, "was_continued", lambda _pid: self.continued)
        monkeypatch.setattr(module, "state", lambda _pid: self.state)

    def deadline(self, timeout_s: float = 30.0, slowness: float = 1.0) -> Deadline:
        """One that has noted the times, and has all its time left."""
        begun = Deadline(timeout_s, 7, slowness)
        noted_s = begun.wait_s
        self.now_s += noted_s
        begun.note()
        begun.credit(noted_s)
        return begun


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_on_an_idle_host_the_time_is_over_when_it_is(host: Host) -> None:
    deadline = host.deadline()
    assert deadline.left_s == 30.0
    host.now_s += 30.0
    assert deadline.left_s == 0.0
    assert not deadline.extend()


def test_time_on_a_run_queue_is_given_back_once(host: Host) -> None:
    deadline = host.deadline()
    host.now_s += 30.0
    host.waited_s |= {7: 11.0, 8: 15.0, 9: 1.0}  # 6 s, 15 s and a new thread's 1 s since the beginning
    assert deadline.extend()
    assert deadline.left_s == pytest.approx(15.0)
    host.now_s += 15.0
    assert not deadline.extend(), "the time must not be extended twice for the same wait"


def test_time_in_which_this_process_waited_is_given_back(host: Host) -> None:
    """While the machine is stopped, it is this process that works: it reads the page tables."""
    deadline = host.deadline()
    host.now_s += 30.0
    host.ours_waited_s += 12.0
    assert deadline.extend()
    assert deadline.left_s == pytest.approx(12.0)


@pytest.mark.parametrize(("slowness", "most"), [(1.0, CAP), (3.0, CAP), (10.0, 20)])
def test_a_host_that_is_too_busy_is_said_to_be(host: Host, slowness: float, most: float) -> None:
    """A slow guest gets more time, and a busy host, too. Together they would make hours."""
    deadline, began_s = host.deadline(slowness=slowness), host.now_s

    def starve() -> None:
        while passed_s := deadline.left_s:
            host.now_s += passed_s
            host.waited_s[8] += 0.99 * passed_s
            deadline.extend()

    busy = r"the host is too busy: QEMU \(pid 7\) or hugepfn waited for a CPU for .* of .* s"
    with pytest.raises(MachineryError, match=busy):
        starve()
    assert 0.8 * most * 30.0 < host.now_s - began_s <= most * 30.0


def test_a_qemu_that_is_stopped_says_nothing_of_the_kernel(host: Host) -> None:
    deadline = host.deadline()
    host.now_s += 30.0
    for host.state in ("T", "t"):
        with pytest.raises(MachineryError, match=r"QEMU \(pid 7\) was stopped by SIGSTOP .* `kill -CONT 7`"):
            deadline.extend()


def test_a_qemu_that_was_stopped_and_continued_gets_all_its_time(host: Host) -> None:
    deadline = host.deadline()
    host.now_s += 30.0
    host.continued = True
    assert deadline.extend()
    assert deadline.left_s == 30.0


def test_what_came_while_we_stood_still_is_taken_in(host: Host) -> None:
    deadline = host.deadline()
    host.now_s += 3600.0  # this process was stopped, QEMU was not
    assert deadline.extend()
    assert deadline.left_s == 5.0
    host.now_s += 5.0
    assert not deadline.extend()


def test_host_work_is_not_the_guests_time(host: Host) -> None:
    deadline = host.deadline()
    host.now_s += 20.0
    deadline.credit(15.0)
    assert deadline.left_s == 25.0


def test_time_that_the_hosts_own_host_took_is_given_back(host: Host) -> None:
    deadline = host.deadline()
    host.now_s += 30.0
    host.stolen_s += 4.0
    assert deadline.extend()
    assert deadline.left_s == pytest.approx(4.0)
    host.now_s += 4.0
    assert not deadline.extend()


def test_a_slow_guest_gets_more_time(host: Host) -> None:
    deadline = host.deadline(slowness=2.5)
    assert (deadline.timeout_s, deadline.left_s) == (75.0, 75.0)
    host.now_s += 75.0
    assert not deadline.extend()


def test_a_wait_that_ends_soon_does_not_ask_for_the_times_of_threads(host: Host) -> None:
    deadline = Deadline(30.0, 7)
    deadline.note()
    host.now_s += 0.29
    deadline.note()
    assert host.asked == []
    host.now_s += 0.01
    deadline.note()
    host.now_s += 1.0
    deadline.note()
    assert host.asked == [7, os.getpid()]
    assert deadline.wait_s == deadline.left_s == pytest.approx(28.7)


def test_what_passes_before_a_late_note_does_not_count(host: Host) -> None:
    """The host ran neither QEMU nor us for nine seconds, and we are there first."""
    deadline = Deadline(10.0, 7)
    host.now_s += 9.0
    host.waited_s[8] += 9.0
    deadline.note()
    assert deadline.left_s == pytest.approx(9.9)
    over = Deadline(10.0, 7)
    host.now_s += 60.0
    over.note()
    assert over.left_s == pytest.approx(9.9)


def test_the_times_are_noted_while_something_is_waited_for(host: Host) -> None:
    """Also if the time is over before they were noted, because this process did not run."""

    async def wait() -> bool:
        deadline = Deadline(0.0, 7)
        return await first_of({asyncio.get_running_loop().create_future()}, deadline)

    assert not asyncio.run(wait())
    assert host.asked == [7, os.getpid()] * 2, "once at the beginning, and once at the end"


@pytest.mark.parametrize(
    ("accel", "boot_s", "expected"),
    [
        (Accel.TCG, 0.0, 1.0),
        (Accel.TCG, 3.3, 1.0),
        (Accel.TCG, 12.5, 2.5),
        (Accel.TCG, 1000.0, MOST),
        (Accel.KVM, 5.0, 2.5),
    ],
)
def test_how_slow_a_guest_is_follows_from_its_boot(accel: Accel, boot_s: float, expected: float) -> None:
    assert slowness(accel, boot_s) == expected


def test_the_boot_is_measured_in_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {1: ThreadTime(2_000_000_000, 9_000_000_000), 2: ThreadTime(3_500_000_000, 0)}
    monkeypatch.setattr(speed, "thread_times", lambda _pid: times)
    assert boot_cpu_s(7) == 3.5


def test_the_time_that_was_stolen_is_in_proc_stat(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "cpu 9 9 9 9 9 9 9 300 0 0\ncpu0 1 2 3 4 5 6 7 100 0 0\ncpu1 1 2 3 4 5 6 7 200 0 0\nintr 5\n"
    monkeypatch.setattr(Path, "read_text", lambda _path: text)
    assert stolen_s() == 200 / os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(Path, "read_text", lambda _path: "cpu0 1 2\n")
    assert stolen_s() == 0.0


def test_much_host_work_does_not_make_the_host_too_busy(host: Host) -> None:
    """Many large stops before one short wait for a CPU. The host's own work must not count towards :data:`CAP`."""
    deadline = host.deadline()
    for _ in range(CAP + 1):
        host.now_s += 30.0
        deadline.credit(30.0)
    host.now_s += 30.0
    host.waited_s[8] += 1.0
    assert deadline.extend(), "the guest itself has used 30 s, and is given back 1 s"
    assert deadline.left_s == pytest.approx(1.0)


def test_a_real_process(tmp_path: object) -> None:
    assert tmp_path
    with subprocess.Popen(["sleep", "600"]) as child:
        try:
            assert not was_continued(child.pid)
            check_runs(child.pid)
            child.send_signal(signal.SIGSTOP)
            assert os.waitid(os.P_PID, child.pid, os.WSTOPPED) is not None
            with pytest.raises(MachineryError, match=f"pid {child.pid}"):
                check_runs(child.pid)
            child.send_signal(signal.SIGCONT)
            assert os.waitid(os.P_PID, child.pid, os.WCONTINUED | os.WNOWAIT) is not None
            check_runs(child.pid)
            assert was_continued(child.pid)
            assert not was_continued(child.pid), "a continuation is reported only once"
            assert thread_times(child.pid).keys() == {child.pid}
        finally:
            child.kill()
    assert (state(child.pid), thread_times(child.pid), was_continued(child.pid)) == ("", {}, False)


def test_a_wait_goes_on_for_as_long_as_time_is_given_back() -> None:
    class Given(Deadline):
        asked = 0

        def extend(self) -> bool:
            self.asked += 1
            self.credit(0.01)
            return self.asked < 3

    async def wait() -> tuple[bool, int]:
        deadline = Given(0.01, None)
        return await first_of({asyncio.get_running_loop().create_future()}, deadline), deadline.asked

    assert asyncio.run(wait()) == (False, 3)


# --- host work ------------------------------------------------------------------------------------


def test_work_aside_returns_and_raises() -> None:
    assert asyncio.run(aside(lambda _check: threading.current_thread().name)) == "aside"
    with pytest.raises(ZeroDivisionError):
        asyncio.run(aside(lambda _check: 1 // 0))


def test_work_aside_ends_when_nobody_waits_for_it() -> None:
    ended = threading.Event()

    def endless(check: Callable[[], None]) -> None:
        try:
            while True:
                check()
        except Abandoned:
            ended.set()
            raise

    async def wait() -> None:
        await asyncio.wait_for(aside(endless), 0.05)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(wait())
    assert ended.wait(60)


class FakeVm:
    """The part of a machine that a run needs: a QEMU that answers, deadlines that end a wait, the layout."""

    def __init__(self, qemu: Any) -> None:
        self.qemu = qemu
        self.layout = SimpleNamespace(saved_dirty=True)
        qemu.expect = self.expect
        qemu.deadline = lambda timeout_s: Deadline(timeout_s, None)

    @staticmethod
    async def expect(awaitable: Any, limit: float, what: str) -> Any:
        try:
            return await asyncio.wait_for(awaitable, limit)
        except TimeoutError:
            raise DeadlineError(f"waiting for {what}") from None


def _stop_at_a_checkpoint(timeout_s: float, copies: int, pages: int = 512) -> Snapshot:
    """What a stop reads whose process has declared the same pages several times: one table, many entries."""
    guest = Guest()
    process = guest.process()
    event = WaitEvent(Where.CHECKPOINT, "there", 77, 1, 0x7FFD12345678, 0x4D00000003)
    witness, qemu = registered(guest, registers(process.root))
    zero, start = guest.page(), 0x7F4000000000
    slot = guest.map(process.root, start, zero | WRITABLE)
    table = slot & -PAGE
    for number in range(512):
        guest.store(table + 8 * number, zero | WRITABLE)
    for number in range(1, pages // 512):
        guest.map(process.root, start + number * Level.PMD.size_bytes, table | 0x67, Level.PMD)
    for number in range(copies):
        witness.note(MappingEvent(f"zero-{number}", 77, start, pages * PAGE, 1, "ram", 0))
    kernel: Any = None

    async def stop() -> Snapshot:
        future: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        job = Job(1, ("/tests/zero",), future)
        run = GuestRun(cast(Any, FakeVm(qemu)), job, witness, timeout_s, kernel)
        try:
            return await run._stop_at(event)
        except Exception:
            assert run.snapshots == []
            raise

    return asyncio.run(stop())


def test_walking_what_a_program_declares_has_the_runs_deadline() -> None:
    expected = "reading the page tables at checkpoint 'there' took longer than 0.05 s: 8 mappings of 8192 MiB"
    with pytest.raises(MachineryError, match=expected):
        _stop_at_a_checkpoint(0.05, copies=8, pages=1 << 18)


def test_what_a_program_declares_is_seen_where_there_is_time() -> None:
    snapshot = _stop_at_a_checkpoint(60.0, copies=2)
    assert [len(snapshot["parent"].leaves(f"zero-{number}")) for number in range(2)] == [512, 512]


def test_the_leaves_of_a_run_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LEAVES_MAX", 1000)
    with pytest.raises(ProtocolError, match="all stops of this run have more than 1000 leaves and holes; declare less"):
        _stop_at_a_checkpoint(60.0, copies=2)
