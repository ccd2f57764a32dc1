"""Tests for a session's process: callers that leave, and callers that wait while the session is stopped."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.config import DEFAULT, MachineConfig
from harness.errors import MachineryError, UsageError
from harness.events import Event
from harness.host import cache
from harness.kernel import Kernel
from harness.machine import kept
from harness.machine import vm as vm_module
from harness.qemu.binary import QemuBinary
from harness.qemu.spec import MachineSpec
from harness.session import handshake, wire
from harness.session.client import SessionClient
from harness.session.registry import About
from harness.session.server import Server, Start, serve
from harness.session.state import Halt, HaltCause, MachineState

SOON_S = 30.0


class FakeVM:
    """A machine with a shell."""

    def __init__(self) -> None:
        self.line, self.guest = socket.socketpair()
        self.sizes: list[tuple[int, int]] = []
        self.sized = threading.Event()

    def shell(self) -> tuple[socket.socket, object]:
        exited = SimpleNamespace(add_done_callback=lambda _tell: None, remove_done_callback=lambda _tell: None)
        return self.line.dup(), SimpleNamespace(exited=exited)

    def resize_shell(self, rows: int, columns: int) -> None:
        self.sizes.append((rows, columns))
        self.sized.set()

    @staticmethod
    def on_loop(work: Any) -> Any:
        return asyncio.run(work)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(handshake, "accept", lambda *_args: None)
    server = Server(Start("one", DEFAULT), tmp_path, print)
    vm = FakeVM()
    server._session = cast(Any, SimpleNamespace(vm=vm, prepare_for_people=lambda: None, check_runs=lambda: None))
    with vm.line, vm.guest:
        yield server


def enter(server: Server) -> tuple[Connection, threading.Thread]:
    """Return a caller at the shell, and the thread that serves it."""
    ours, theirs = Pipe()
    serving = threading.Thread(target=server._serve, args=(cast(Any, theirs),))
    serving.start()
    ours.send(wire.Call("shell"))
    assert ours.poll(SOON_S)
    assert ours.recv() == wire.Answer()
    with socket.socket(fileno=wire.receive_descriptors(cast(Any, ours), 1)[0]):
        pass
    return cast(Any, ours), serving


def test_a_caller_that_leaves_the_shell_is_no_error(server: Server) -> None:
    for _ in range(2):  # the second caller finds the shell free
        caller, serving = enter(server)
        caller.send(wire.Size(25, 80))
        assert cast(Any, server)._session.vm.sized.wait(SOON_S)
        caller.close()
        serving.join(SOON_S)
        assert not serving.is_alive()
    assert cast(Any, server)._session.vm.sizes == [(25, 80), (25, 80)]
    assert not (cache.root() / "traceback.txt").exists()


def test_a_bug_in_the_shell_is_still_reported(server: Server) -> None:
    caller, serving = enter(server)
    cast(Any, server)._session.vm.resize_shell = None
    caller.send(wire.Size(25, 80))
    assert caller.poll(SOON_S)
    said = caller.recv()
    serving.join(SOON_S)
    assert isinstance(said, wire.RemoteFailure)
    assert "a bug of hugepfn: TypeError" in said.message
    assert (cache.root() / "traceback.txt").exists()
    caller.close()


@pytest.mark.parametrize("verb", ["exec", "rerun", "look", "attend"])
def test_a_waiting_caller_is_told_that_the_session_was_stopped(server: Server, verb: str) -> None:
    going, ends = threading.Event(), threading.Event()

    def wait(**_arguments: object) -> None:
        going.set()
        ends.wait(SOON_S)
        raise MachineryError("QEMU was killed by SIGKILL: no word")  # because the session has ended its machine

    setattr(cast(Any, server)._session, verb, wait)
    ours, theirs = Pipe()
    serving = threading.Thread(target=server._serve, args=(cast(Any, theirs),))
    serving.start()
    descriptors = 1 if verb == "rerun" else 0
    ours.send(wire.Call(verb, {}, descriptors))
    wire.send_descriptors(cast(Any, ours), [1] * descriptors)
    if verb == "attend":
        while not server._callers:
            assert serving.is_alive()
    else:
        assert going.wait(SOON_S)
    server._dismiss()
    ends.set()
    assert ours.poll(SOON_S)
    assert ours.recv() == wire.RemoteFailure(f"the session {server._folder.name} was stopped", 3)
    if verb == "attend":
        ours.close()
    serving.join(SOON_S)
    assert not serving.is_alive()
    ours.close()
    assert not server._callers


def test_a_command_in_the_guest_is_told_that_the_machine_was_stopped(server: Server) -> None:
    session = cast(Any, server)._session
    ends = threading.Event()
    session.exec = lambda **_: ends.wait(SOON_S)
    session.pause = MachineState
    session.state = lambda: MachineState(Halt(HaltCause.PAUSED, None))
    ours, theirs = Pipe()
    serving = threading.Thread(target=server._serve, args=(cast(Any, theirs),))
    serving.start()
    ours.send(wire.Call("exec"))
    while not server._callers:
        assert serving.is_alive()
    asking, asked = Pipe()
    asking.send(wire.Call("pause"))
    server._serve(cast(Any, asked))
    assert asking.recv() == wire.Answer(MachineState())
    assert ours.poll(SOON_S)
    said: list[Event] = []
    about = About("one", 1, "", "", 0.0)
    ends.set()
    assert SessionClient(about)._answer(cast(Any, ours), SOON_S, said.append) is True
    assert [str(one).partition(":")[0] for one in said] == ["the machine stands still"]
    serving.join(SOON_S)
    for end in (ours, asking):
        end.close()


@pytest.mark.parametrize("verb", ["exec", "rerun"])
def test_nobody_reads_from_a_caller_that_has_its_answer(server: Server, verb: str) -> None:
    """A thread that still read would read what the next caller sends, whose connection may have the same descriptor."""
    before = set(threading.enumerate())
    setattr(cast(Any, server)._session, verb, lambda **_arguments: 0)
    ours, theirs = Pipe()
    descriptors = 1 if verb == "rerun" else 0
    ours.send(wire.Call(verb, {}, descriptors))
    wire.send_descriptors(cast(Any, ours), [1] * descriptors)
    server._serve(cast(Any, theirs))
    assert set(threading.enumerate()) <= before
    assert ours.recv() == wire.Answer(0)
    ours.close()


def test_a_call_to_an_ended_session_is_refused(server: Server) -> None:
    server._dismiss()
    cast(Any, server)._session.look = lambda: "an answer of a machine that is gone"
    ours, theirs = Pipe()
    ours.send(wire.Call("look"))
    server._serve(cast(Any, theirs))
    assert ours.recv() == wire.RemoteFailure(f"the session {server._folder.name} was stopped", 3)
    ours.close()


def test_a_shell_is_told_that_the_session_was_stopped(server: Server) -> None:
    caller, serving = enter(server)
    server._dismiss()
    assert caller.poll(SOON_S)
    assert caller.recv() == wire.RemoteFailure(f"the session {server._folder.name} was stopped", 3)
    caller.close()
    serving.join(SOON_S)


def test_the_command_that_stops_a_session_is_answered(server: Server) -> None:
    ours, theirs = Pipe()
    ours.send(wire.Call("stop"))
    server._serve(cast(Any, theirs))
    assert ours.recv() == wire.Answer()
    assert server._stopping.is_set()
    ours.close()


def test_a_kept_machine_is_restored_with_ram_in_the_requested_folder(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = MachineSpec(Path("bzImage"), Path("initramfs"))
    saved = SimpleNamespace(spec=spec, asked=Kernel.image("./gone"), kernel="./gone", kernel_key="", capabilities=None)
    monkeypatch.setattr(kept, "find", lambda _name: saved)
    monkeypatch.setattr(vm_module, "find_qemu", lambda _asked: QemuBinary("/usr/bin/false", "7.2", "fake"))
    server._start = Start("one", MachineConfig(ram_dir=tmp_path / "nowhere"), "fork-pud")
    with pytest.raises(UsageError, match=f"cannot put guest RAM into {tmp_path}/nowhere: no such folder"):
        server._machine()


@pytest.mark.parametrize("early", [True, False])
def test_a_session_whose_starter_was_killed_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, early: bool) -> None:
    monkeypatch.setenv("HUGEPFN_RUNTIME_DIR", str(tmp_path / "run"))
    ours, theirs = Pipe()
    came_up = []

    def run(_server: Server, ready: Callable[[About], None]) -> None:
        ours.close()
        came_up.append(True)
        ready(About("one", 1, "", "", 0.0))
        raise AssertionError("it goes on")

    monkeypatch.setattr(Server, "run", run)
    if early:
        ours.close()
    else:
        ours.send(Start("one", DEFAULT))
    serve(theirs)
    assert (bool(came_up), list((tmp_path / "run").glob("*"))) == (not early, [])
