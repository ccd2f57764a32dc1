"""Tests for a session whose machine is stopped: it reports since when, why, and how to resume."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import DeadlineError, UsageError
from harness.qemu.standstill import LastStop, Standstill
from harness.session.session import Session
from harness.session.state import Halt, HaltCause, MachineState, halt_words, state_words

SOON_S = 30.0
GDB = "unix:/run/one/gdb,server=on"


class Qemu:
    """A QEMU that can be stopped and continued."""

    def __init__(self) -> None:
        self.state = "running"
        self.exit_status: int | None = None
        self.standstill = Standstill()
        self.stub: str | None = None
        self.last_stop = LastStop()

    async def run_state(self) -> str:
        return self.state

    async def follow_stops(self) -> None: ...

    async def stop(self) -> None:
        self.state = "paused"
        self.standstill.begin()

    async def resume(self) -> None:
        self.state = "running"
        self.standstill.end()

    async def execute(self, command: str) -> object:
        assert command == "query-chardev"
        return [{"label": "qmp", "filename": "x"}, *([{"label": "gdb", "filename": self.stub}] if self.stub else ())]

    def end_error(self, when: str) -> Exception:
        return RuntimeError(f"{when}the kernel died: BUG\nmore")


class Machine:
    """The part of a VM that a session needs to stop and continue it."""

    def __init__(self) -> None:
        self.qemu = Qemu()
        self.learned = False
        self.has_ssh = True
        self.spec = SimpleNamespace(kvm=False)
        self.processes = SimpleNamespace(learn=self._learn)
        self.asked: list[str] = []

    def _learn(self) -> None:
        if self.qemu.state != "running" and not self.learned:
            raise DeadlineError("nothing within 30 s")
        self.learned = True

    def gdb(self) -> None:
        self.on_loop(self.qemu.stop())
        self.qemu.stub = f"disconnected:{GDB}"

    def vmas(self, pid: int) -> str:
        return f"VMAs of {pid}"

    def ssh_address(self) -> str:
        return "address"

    @staticmethod
    def on_loop(work: Any) -> Any:
        return asyncio.run(work)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def session(machine: Machine) -> Session:
    return Session(cast(Any, machine), "one")


def refusal(session: Session) -> str:
    """Return the error of a command that needs the guest's help."""
    said = set()
    for ask in (lambda: session.maps(1), session.ssh_address, session.check_runs):
        with pytest.raises(UsageError) as caught:
            ask()
        said.add(str(caught.value))
    (line,) = said
    return line


def test_a_running_machine_refuses_nothing(session: Session, machine: Machine) -> None:
    assert session.maps(1) == cast(Any, "VMAs of 1")
    assert session.state() == MachineState()
    assert session.resume() == MachineState()
    machine.qemu.state = "paused"  # stopped for a moment, to read memory
    session.check_runs()
    assert session.ssh_address() == cast(Any, "address")


def test_pause_and_resume(session: Session, machine: Machine) -> None:
    before = time.time()
    assert session.pause() == MachineState()
    assert machine.learned, "pause must first learn what a walk needs"
    halt = session.state().halt
    assert halt is not None
    assert halt.cause is HaltCause.PAUSED
    assert halt.since is not None
    assert before - 1 <= halt.since <= time.time() + 1
    line = refusal(session)
    assert line.startswith("the machine stands still since ")
    assert line.endswith(": `hugepfn pause` stopped it; `hugepfn resume -s one` lets it go on")
    again = session.pause().halt
    assert again is not None
    assert again.cause is HaltCause.PAUSED
    resumed = session.resume().halt
    assert resumed is not None
    assert machine.qemu.state == "running"
    assert session.maps(1) == cast(Any, "VMAs of 1")
    assert session.state() == MachineState()


def test_gdb(session: Session, machine: Machine) -> None:
    session.pause()
    session.gdb()
    assert "it was stopped for gdb, and no gdb is attached; `hugepfn resume -s one` lets it go on" in refusal(session)
    machine.qemu.stub = GDB
    assert "gdb has stopped it; `continue` in gdb lets it go on" in refusal(session)
    machine.on_loop(machine.qemu.resume())
    session.check_runs()
    assert session.state() == MachineState()
    machine.on_loop(machine.qemu.stop())
    assert session.state().halt is not None, "the machine must be shown as stopped at a breakpoint"
    session.resume()
    session.check_runs()


def test_a_walk_that_needs_the_guest_gives_the_reason(session: Session, machine: Machine) -> None:
    session.gdb()
    machine.learned = False
    with pytest.raises(UsageError, match=r"the machine stands still since .* for gdb"):
        session.look(1, 0, None)
    session.resume()
    machine.qemu.state = "paused"
    session._may_stand = False
    with pytest.raises(DeadlineError):
        session.look(1, 0, None)


def test_a_machine_with_an_internal_error_is_not_resumed(session: Session, machine: Machine) -> None:
    machine.qemu.state = "internal-error"
    words = "the machine stands still: QEMU has stopped it and cannot go on; end the session with `hugepfn stop`"
    with pytest.raises(UsageError, match=words):
        session.maps(1)
    with pytest.raises(UsageError, match=words):
        session.resume()
    machine.qemu.last_stop.at = time.time() - 7
    words = r"the machine stands still since \d\d:\d\d:\d\d \(\d+ s\): QEMU has stopped it and cannot go on"
    with pytest.raises(UsageError, match=words):
        session.maps(1)


def test_a_rerun_in_progress_is_not_waited_for(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.session.session._TURN_TIMEOUT_S", 0.05)
    session.pause()
    taken, done = threading.Event(), threading.Event()

    def work() -> None:
        with session._turn:
            taken.set()
            done.wait(SOON_S)

    thread = threading.Thread(target=work)
    thread.start()
    assert taken.wait(SOON_S)
    assert session.state() == MachineState()
    done.set()
    thread.join()


def test_the_text_of_each_state(session: Session, machine: Machine) -> None:
    assert {cause: halt_words(Halt(cause, None), "") for cause in HaltCause}[HaltCause.PAUSED].endswith(
        "`hugepfn resume` lets it go on"
    )
    now = time.time()
    assert state_words(MachineState()) == "runs"
    assert " (5 s): paused" in state_words(MachineState(Halt(HaltCause.PAUSED, now - 5.5)))
    days = halt_words(Halt(HaltCause.PAUSED, now - 100_000), "")
    assert time.strftime("%Y-%m-%d", time.localtime(now - 100_000)) in days
    assert len({state_words(MachineState(Halt(cause, None))) for cause in HaltCause}) == len(HaltCause)
    machine.qemu.exit_status = 0
    assert session.state() == MachineState(ended="the kernel died: BUG\nmore")
    assert state_words(session.state()) == "the kernel died: BUG"
