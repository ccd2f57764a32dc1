"""Tests for a job's output and a reader that does not read: the guest keeps the rest, and nothing hangs."""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import ProtocolError
from harness.guest.agent import Agent
from harness.guest.channel import Channel
from harness.guest.job import ExitStatus, Job, Stream
from harness.guest.protocol import Frame, FrameDecoder
from harness.session import outlet as module
from harness.session.outlet import Outlet
from harness.session.session import Session

PART = b"x" * 65536  # as much as a pipe holds
SOON_S = 30.0


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """A pipe: the reader's end, and the end for output."""
    both = os.pipe()
    yield both
    for end in both:
        os.close(end)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 4 * len(PART))
    monkeypatch.setattr(module, "UNREAD_MAX_BYTES", 64 * len(PART))
    monkeypatch.setattr(module, "_LAST_OUTPUT_S", 0.05)


def read_exactly(end: int, size: int) -> None:
    while size:
        size -= len(os.read(end, size))


def test_the_guest_keeps_unread_output_until_it_is_read(ends: tuple[int, int]) -> None:
    room: queue.SimpleQueue[bool] = queue.SimpleQueue()
    with Outlet(ends[1], ends[1], print) as outlet:
        outlet.on_room(lambda: room.put(outlet.full))
        assert room.get(timeout=SOON_S) is False
        for _ in range(7):  # one of the parts is in the pipe
            outlet.sink(Stream.OUT, PART)
        assert outlet.full
        read_exactly(ends[0], 7 * len(PART))
        assert room.get(timeout=SOON_S) is False
        outlet.sink(Stream.ERR, b"end")
        outlet.end()
        assert os.read(ends[0], 10) == b"end"
    assert room.empty()


def test_a_guest_that_ignores_hold_is_refused(ends: tuple[int, int]) -> None:
    with (
        Outlet(ends[1], ends[1], print) as outlet,
        pytest.raises(ProtocolError, match="so expected at most 4194304"),
    ):
        outlet.sink(Stream.OUT, PART * 65)


def test_a_slow_reader_gets_everything_after_the_end(ends: tuple[int, int]) -> None:
    with Outlet(ends[1], ends[1], print) as outlet:
        for _ in range(3):
            outlet.sink(Stream.OUT, PART)
        reader = threading.Timer(0.2, read_exactly, (ends[0], 3 * len(PART)))  # later than the deadline of a quick end
        reader.start()
        outlet.end()
    reader.join()


class Patience(threading.Condition):
    """Makes the reader take one more part at each wait with a deadline."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = threading.Semaphore(0)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        if timeout is not None:
            self.wanted.release()
        return super().wait_for(predicate, timeout)


def test_a_reader_that_continues_gets_everything_after_a_signal(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LAST_OUTPUT_S", 2.0)
    outlet, patience, got = Outlet(ends[1], ends[1], print), Patience(), 0
    monkeypatch.setattr(outlet, "_changed", patience)

    def read() -> None:
        nonlocal got
        while got < 4 and patience.wanted.acquire(timeout=SOON_S):
            read_exactly(ends[0], len(PART))
            got += 1

    reader = threading.Thread(target=read, daemon=True)
    with outlet:
        for _ in range(4):
            outlet.sink(Stream.OUT, PART)
        outlet.hurry()
        reader.start()
        outlet.end()
        assert outlet._written
    patience.wanted.release(4)  # the last part fits into the pipe
    reader.join(SOON_S)
    assert got == 4


def test_a_broken_descriptor_is_reported_once(ends: tuple[int, int]) -> None:
    broken: list[OSError] = []
    full = os.open("/dev/full", os.O_WRONLY)
    with Outlet(full, ends[1], broken.append) as outlet:
        os.close(full)
        for _ in range(3):
            outlet.sink(Stream.OUT, PART)
        outlet.sink(Stream.ERR, b"other")
        outlet.end()
        assert os.read(ends[0], 10) == b"other"
    assert [error.errno for error in broken] == [errno.ENOSPC]


class FakeQemu:
    """The guest's end of the agent's channel: records what was sent, and can send frames."""

    def __init__(self) -> None:
        self.sent: list[Frame] = []
        self.heard = threading.Semaphore(0)
        self.stopped = False
        self.exit_status = None

    async def run_state(self) -> str:
        return "running"

    def pump(self, _channel: str, write: Callable[[bytes], None]) -> None:
        self.say = write

    async def expect(self, awaitable: Any, _limit: object, _what: str) -> Any:
        return await awaitable


class FakeVM:
    """A machine whose only job prints until it is killed."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.qemu = FakeQemu()
        self.ready = {"vfio_bdf": "", "vfio_group": ""}
        self.held = threading.Event()
        self.agent: Agent = self.on_loop(self._made())
        self.machine = SimpleNamespace(qemu=self.qemu, agent=self.agent)

    async def _made(self) -> Agent:
        agent = Agent(cast(Any, self.qemu), channel=Channel.VIRTIO)
        decoder = FrameDecoder()

        async def whole(data: bytes) -> None:
            for frame in decoder.feed(data):
                self.answer(frame)

        vars(agent)["_write_whole"] = whole
        return agent

    def answer(self, frame: Frame) -> None:
        """Do what the guest does with a frame."""
        match frame.verb:
            case "pipe":
                self.qemu.say(Frame("started", frame.id, b"77").encode())
                self.loop.call_soon(self.print, frame.id)
            case "hold":
                self.held.set()
            case "kill":
                number = frame.payload.decode()
                self.qemu.say(Frame("out", frame.id, PART).encode())  # the rest that was in the job's pipe
                self.qemu.say(Frame("exit", frame.id, f"signal {number}".encode()).encode())

    def print(self, job_id: int) -> None:
        """Send output, as the agent does for a pipe."""
        if not self.held.is_set():
            self.qemu.say(Frame("out", job_id, PART).encode())
            self.loop.call_soon(self.print, job_id)

    def on_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SOON_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_command_without_a_reader_ends_by_a_signal_or_with_its_caller(
    ends: tuple[int, int], number: signal.Signals
) -> None:
    """For a caller that is gone, the server sends SIGKILL (harness/session/server.py, _listen())."""
    vm, signals = FakeVM(), queue.SimpleQueue[int | None]()
    ended: list[ExitStatus] = []
    empty = os.open(os.devnull, os.O_RDONLY)

    def run() -> None:
        ended.append(Session(cast(Any, vm)).exec(["yes"], None, {}, (empty, ends[1], ends[1]), signals))

    command = threading.Thread(target=run, daemon=True)
    command.start()
    assert vm.held.wait(SOON_S), "the guest was never told to keep its output"
    signals.put(number)
    command.join(SOON_S)
    os.close(empty)
    assert ended == [ExitStatus(None, number)]


def test_hold_and_resume_are_sent_once_per_change() -> None:
    async def pace() -> list[str]:
        sent: list[str] = []
        qemu = FakeQemu()
        agent = Agent(cast(Any, qemu), channel=Channel.VIRTIO)

        async def whole(data: bytes) -> None:
            sent.extend(frame.verb for frame in FrameDecoder().feed(data))

        vars(agent)["_write_whole"] = whole
        full = [True, True, False, False]
        agent._jobs[5] = job = Job(5, ("yes",), asyncio.get_running_loop().create_future(), print, lambda: full.pop(0))
        for _ in range(2):
            qemu.say(Frame("out", 5, b"x").encode())
        for _ in range(2):
            agent.has_room(job)
        await asyncio.sleep(0)
        await asyncio.gather(*agent._pacing)
        return sent

    assert asyncio.run(pace()) == ["hold", "resume"]
