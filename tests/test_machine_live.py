"""Tests for the API of a running machine, with a QEMU and an agent that only record their requests."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import DeadlineError, MachineryError, UsageError
from harness.guest.job import ExitStatus, Input, Job, Stream
from harness.machine import live as live_module
from harness.machine.live import LiveMachine
from harness.machine.machine import Machine, Origin
from harness.pagetable import Region
from harness.verdict import Taint

BARS = (Region("bar0", 0xFEBD0000, 16384), Region("bar", 0x380000000, 1 << 30))


class Qemu:
    """Answers requests, and records them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.stopped = False
        self.exit_status: int | None = None
        self.answer = "0000000380000008: 0x0000000000001234\r\n"
        self.log = SimpleNamespace(text="[    0.1] Linux\n")
        self.ram = SimpleNamespace(memory="RAM", close=lambda: self.asked.append("RAM is given back"))
        self.line, self.guests_line = socket.socketpair()
        self.line.setblocking(False)

    async def stop(self) -> None:
        self.asked.append("stop")
        self.stopped = True

    async def resume(self) -> None:
        self.asked.append("cont")
        self.stopped = False

    async def is_stopped(self) -> bool:
        return self.stopped

    async def execute(self, command: str, arguments: dict[str, object]) -> object:
        self.asked.append(f"{command} {arguments['command-line']}")
        return self.answer

    async def quit(self) -> None:
        self.asked.append("quit")

    def end(self, channel: str) -> socket.socket:
        assert channel == "shell"
        return self.line


class Agent:
    """PID 1 of the guest: stores files. Its programs end at once."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, int]] = {"/proc/sys/kernel/tainted": (b"128\n", 0o444)}
        self.puts: list[str] = []
        self.shells: list[Job] = []
        self.ran: list[object] = []
        self.sizes: list[tuple[int, int]] = []
        self.emulator = self

    async def get(self, path: str) -> bytes:
        return self.files[path][0]

    async def put(self, path: str, data: bytes, mode: int = 0o755) -> None:
        self.puts.append(path)
        self.files[path] = (data, mode)

    async def shell(self) -> Job:
        self.shells.append(Job(len(self.shells), ("sh",), asyncio.get_running_loop().create_future()))
        return self.shells[-1]

    async def resize_shell(self, rows: int, columns: int) -> None:
        self.sizes.append((rows, columns))

    async def run(self, argv: Sequence[str], environment: object, *, reads: Input, sink: object) -> Job:
        self.ran.append((argv, environment, reads, sink))
        job = Job(9, tuple(argv), asyncio.get_running_loop().create_future())
        job.stdout += b"out"
        job.exited.set_result(ExitStatus(3, None))
        return job

    async def feed(self, _job: Job, data: bytes) -> None:
        self.ran.append(data)

    async def expect(self, awaitable: Any, timeout_s: float, _what: str) -> Any:
        self.ran.append(timeout_s)
        return await awaitable


class Up:
    """A live machine, and the simulated QEMU and agent behind it."""

    def __init__(self) -> None:
        self.qemu, self.agent = Qemu(), Agent()
        self.live = LiveMachine()
        machine = Machine(cast(Any, self.qemu), cast(Any, self.agent), {"release": "6.12"}, BARS, Origin.CLONE)

        async def come_up() -> Machine:
            self.live._started(cast(Any, self.qemu))
            return machine

        self.live._use(come_up())

    def close(self) -> None:
        self.live.close()
        self.qemu.line.close()
        self.qemu.guests_line.close()


@pytest.fixture
def up() -> Iterator[Up]:
    one = Up()
    yield one
    one.close()


# --- its life ------------------------------------------------------------------------------------------


def test_a_machine_that_is_not_up_refuses_every_request() -> None:
    live = LiveMachine()
    asked: list[str] = []

    async def ask() -> None:
        asked.append("asked")

    assert not live.running
    with pytest.raises(MachineryError, match="this VM is not running"):
        live.on_loop(ask())
    with pytest.raises(MachineryError, match="this VM is not running"):
        _ = live.qemu
    live.close()
    assert asked == []


def test_a_machine_comes_up(up: Up) -> None:
    assert up.live.running
    assert cast(Any, up.live.qemu) is up.qemu
    assert cast(Any, up.live.agent) is up.agent
    assert (up.live.ready, up.live.origin) == ({"release": "6.12"}, Origin.CLONE)
    assert (up.live.bars, up.live.bar) == (BARS, BARS[1])
    assert cast(Any, up.live.memory) == "RAM"


def test_close_releases_everything_once(up: Up) -> None:
    folder = up.live.sockets.socket("gdb").parent
    up.live.close()
    up.live.close()
    assert up.qemu.asked == ["quit", "RAM is given back"]
    assert not folder.exists()
    with pytest.raises(MachineryError, match="not running"):
        up.live.get("/proc/sys/kernel/tainted")


def test_a_machine_that_fails_to_come_up_is_closed() -> None:
    live, qemu = LiveMachine(), Qemu()

    async def fail() -> Machine:
        live._started(cast(Any, qemu))
        raise MachineryError("no kernel")

    with pytest.raises(MachineryError, match="no kernel"):
        live._use(fail())
    assert qemu.asked == ["quit", "RAM is given back"]
    assert not live.running
    live.close()
    qemu.line.close()
    qemu.guests_line.close()


def test_a_qemu_that_does_not_end_leaves_no_thread_and_no_folder(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang() -> None:
        raise MachineryError("QEMU (pid 7) does not end")

    folder = up.live.sockets.socket("gdb").parent
    monkeypatch.setattr(up.qemu, "quit", hang)
    with pytest.raises(MachineryError, match="does not end"):
        up.live.close()
    assert not folder.exists()
    up.live.close()


# --- its memory and its log ----------------------------------------------------------------------------


def test_a_word_of_the_bar_is_read_by_qemu(up: Up) -> None:
    assert up.live.bar_word(8) == 0x1234
    assert up.qemu.asked == ["human-monitor-command xp /1gx 0x380000008"]


@pytest.mark.parametrize(
    ("offset", "answer"),
    [
        (8, "Cannot access memory\r\n"),
        (8, ""),
        (1 << 30, "00000003c0000000: 0x0000000000000000\r\n"),
        (-8, "000000037ffffff8: 0x0000000000000000\r\n"),
    ],
)
def test_an_invalid_word_of_the_bar_is_refused(up: Up, offset: int, answer: str) -> None:
    up.qemu.answer = answer
    with pytest.raises(MachineryError, match=f"QEMU cannot read BAR 2 at offset {offset:#x}"):
        up.live.bar_word(offset)


@pytest.mark.parametrize(
    ("stopped", "exit_status", "asked"), [(False, None, 1), (True, None, 0), (False, 0, 0), (True, -9, 0)]
)
def test_the_log_is_requested_only_if_the_agent_can_answer(
    up: Up, monkeypatch: pytest.MonkeyPatch, stopped: bool, exit_status: int | None, asked: int
) -> None:
    reads: list[object] = []

    async def read(agent: object, *_how: object) -> None:
        reads.append(agent)
        up.qemu.log.text += "[    0.2] more\n"
        raise DeadlineError("the agent does not answer")

    monkeypatch.setattr(live_module, "read_log", read)
    up.qemu.stopped, up.qemu.exit_status = stopped, exit_status
    assert up.live.kernel_log == "[    0.1] Linux\n" + "[    0.2] more\n" * asked
    assert reads == [up.agent] * asked


def test_the_taint_now(up: Up) -> None:
    assert up.live.taint is Taint.DIE


def test_a_pause_restores_the_previous_state(up: Up) -> None:
    with up.live.paused():
        assert up.qemu.stopped
    assert up.qemu.asked == ["stop", "cont"]
    with pytest.raises(ZeroDivisionError), up.live.paused():
        raise ZeroDivisionError
    assert up.qemu.asked == ["stop", "cont"] * 2
    up.qemu.stopped = True  # stopped already, at a checkpoint or by gdb
    with up.live.paused():
        pass
    assert up.qemu.asked == ["stop", "cont"] * 2


# --- files and programs --------------------------------------------------------------------------------


def test_files_are_put_and_read_back(up: Up) -> None:
    up.live.put("/tmp/x", b"1", 0o600)
    assert up.agent.files["/tmp/x"] == (b"1", 0o600)
    assert up.live.get("/tmp/x") == b"1"


def test_a_program_is_sent_with_its_libraries_each_once(
    up: Up, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program, library = tmp_path / "tool", tmp_path / "libz.so"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o750)
    library.write_bytes(b"z")
    monkeypatch.setattr(live_module, "libraries", lambda path: (library,) if path == program else ())
    assert up.live.send(program) == "/sent/tool"
    assert up.agent.files["/sent/tool"] == (b"\x7fELF", 0o750)
    assert up.agent.files[str(library)][0] == b"z"
    up.live.send(str(program))
    assert up.agent.puts == [str(library), "/sent/tool", "/sent/tool"], (
        "the program is sent each time, because it may have changed; its library only once"
    )
    os.utime(library, ns=(1, 1))
    up.live.send(program)
    assert up.agent.puts[3:] == [str(library), "/sent/tool"], "a library that was built again is sent again"
    with pytest.raises(UsageError, match="nothing: no such file"):
        up.live.send(tmp_path / "nothing")


def test_a_command_runs_to_its_end(up: Up) -> None:
    def sink(_stream: Stream, _data: bytes) -> None: ...

    done = up.live.exec(["ls", "/"], environment={"A": "b"}, timeout_s=7.0, sink=sink)
    assert (done.argv, done.exit, done.stdout, done.ok) == (("ls", "/"), ExitStatus(3, None), b"out", False)
    assert up.agent.ran == [(["ls", "/"], {"A": "b"}, Input.NULL, sink), 7.0]
    up.agent.ran.clear()
    up.live.exec(["cat"], stdin=b"words")
    assert up.agent.ran[0] == (["cat"], None, Input.PIPE, None)


# --- ways in -------------------------------------------------------------------------------------------


def test_one_shell_is_shared_until_it_ends(up: Up) -> None:
    first, job = up.live.shell()
    second, same = up.live.shell()
    with first, second:
        assert job is same
        assert first.getblocking()
        first.sendall(b"ls\n")
        second.sendall(b"id\n")
        assert up.qemu.guests_line.recv(100) == b"ls\nid\n"

    async def end() -> None:
        job.exited.set_result(ExitStatus(0, None))

    up.live.on_loop(end())
    third, other = up.live.shell()
    third.close()
    assert other is up.agent.shells[1]
    assert len(up.agent.shells) == 2
    up.live.resize_shell(24, 80)
    assert up.agent.sizes == [(24, 80)]


def test_a_console_is_that_shell(up: Up) -> None:
    console = up.live.console()
    try:
        console.sendline("uname")
        assert up.qemu.guests_line.recv(100) == b"uname\n"
        up.qemu.guests_line.sendall(b"Linux\r\n")
        console.expect_exact("Linux")
    finally:
        console.close()


class Server:
    """An SSH server in the guest."""

    def __init__(self, agent: object) -> None:
        self.agent = agent
        self.started: list[Path] = []
        self.stopped = 0

    async def start(self, path: Path) -> str:
        self.started.append(path)
        return f"address of {path.name}"

    async def stop(self) -> None:
        self.stopped += 1


class Hanging(Server):
    """A server whose connections do not end."""

    async def stop(self) -> None:
        await super().stop()
        await asyncio.Event().wait()


@pytest.mark.parametrize("kind", [Server, Hanging])
def test_ssh_is_installed_once_and_ends_with_the_machine(
    up: Up, monkeypatch: pytest.MonkeyPatch, kind: type[Server]
) -> None:
    made: list[Server] = []

    def make(agent: object) -> Server:
        made.append(kind(agent))
        return made[-1]

    monkeypatch.setattr("harness.guest.sshd.SshServer", make)
    monkeypatch.setattr("harness.guest.ssh.Ssh", lambda address: f"connection to {address}")
    monkeypatch.setattr(live_module, "_SSHD_END_S", 0.05)
    assert not up.live.has_ssh
    assert cast(Any, up.live.ssh()) == "connection to address of ssh"
    assert cast(Any, up.live.ssh_address()) == "address of ssh"
    (server,) = made
    assert (server.agent, len(server.started)) == (up.agent, 1)
    assert up.live.has_ssh
    up.live.close()
    assert server.stopped == 1
    assert up.qemu.asked == ["quit", "RAM is given back"]


def test_other_coroutines_run_on_its_loop(up: Up) -> None:
    async def where() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    work: Coroutine[Any, Any, asyncio.AbstractEventLoop] = where()
    first = up.live.on_loop(work)
    assert first is up.live.on_loop(where())
