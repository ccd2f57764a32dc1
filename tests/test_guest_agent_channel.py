"""Tests for the host's end of the agent channel: its device, flow control on a UART, and a guest that is silent."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

import pytest

from harness.errors import AgentRefused, DeadlineError, KernelDied, MachineryError
from harness.guest import agent as agent_module
from harness.guest.agent import Agent
from harness.guest.channel import Channel
from harness.guest.job import Job
from harness.guest.protocol import Frame, FrameDecoder

T = TypeVar("T")
READY = b"channel=%s\nrelease=6.12\nversion=#1\ntaint=0\n"


class FakeQemu:
    """Socket pairs in place of a machine."""

    def __init__(self) -> None:
        self.stopped = False
        self.theirs: dict[str, socket.socket] = {}
        self._ends: dict[str, socket.socket] = {}
        self.writers: dict[str, Callable[[bytes], None]] = {}
        for name in ("agent", "agent_uart"):
            self._ends[name], self.theirs[name] = socket.socketpair()
            self._ends[name].setblocking(False)
            self.theirs[name].setblocking(False)

    def end(self, channel: str) -> socket.socket:
        return self._ends[channel]

    def pump(self, channel: str, write: Callable[[bytes], None]) -> None:
        self.writers[channel] = write

    async def expect(self, awaitable: Awaitable[T], timeout_s: float, what: str) -> T:
        try:
            return await asyncio.wait_for(asyncio.ensure_future(awaitable), timeout_s)
        except TimeoutError:
            raise DeadlineError(f"waiting for {what}: nothing within {timeout_s:g} s") from None

    def close(self) -> None:
        for end in (*self._ends.values(), *self.theirs.values()):
            end.close()


class Guest:
    """PID 1 on a UART: reads a limited number of bytes at a time, reports them, and answers complete requests.

    :ivar most: the largest number of bytes that were on their way at any time.
    """

    def __init__(self, qemu: FakeQemu, *, takes: int | None = None) -> None:
        self.qemu = qemu
        self.takes = takes  # reads only this many bytes; None: all
        self.most = 0
        self.received: list[Frame] = []
        self._decoder = FrameDecoder()

    def say(self, frame: Frame) -> None:
        self.qemu.writers["agent_uart"](frame.encode())

    async def serve(self) -> None:
        end, loop, taken = self.qemu.theirs["agent_uart"], asyncio.get_running_loop(), 0
        while self.takes is None or taken < self.takes:
            await asyncio.sleep(0)  # lets the sender send everything that it is going to
            data = await loop.sock_recv(end, 1 << 20)
            self.most = max(self.most, len(data))
            taken += len(data)
            for frame in self._decoder.feed(data):
                self.received.append(frame)
                self.say(Frame("done", frame.id, b"x"))
            self.say(Frame("read", 0, str(len(data)).encode()))


def on_uart(work: Callable[[FakeQemu, Agent], Coroutine[Any, Any, T]]) -> T:
    """Run a function with an agent that has reported that it is on the UARTs."""

    async def run() -> T:
        qemu = FakeQemu()
        try:
            agent = Agent(cast(Any, qemu))
            qemu.writers["agent_uart"](Frame("ready", 0, READY % b"serial").encode())
            assert (await agent.ready(5.0))["release"] == "6.12"
            return await work(qemu, agent)
        finally:
            qemu.close()

    return asyncio.run(run())


@pytest.mark.parametrize("channel", Channel)
def test_the_channel_is_the_one_on_which_the_guest_speaks(channel: Channel) -> None:
    async def run() -> Channel:
        qemu = FakeQemu()
        agent = Agent(cast(Any, qemu))
        qemu.writers[channel.agent](Frame("ready", 0, READY % channel.value.encode()).encode())
        other = next(one for one in Channel if one is not channel)
        qemu.writers[other.agent](b"what somebody in the guest writes to a line that is not ours\n" * 9)
        await agent.ready(5.0)
        qemu.close()
        return agent.channel

    assert asyncio.run(run()) is channel


def test_a_restored_machine_keeps_its_channel() -> None:
    async def run() -> set[str]:
        qemu = FakeQemu()
        Agent(cast(Any, qemu), 7, Channel.SERIAL)
        qemu.close()
        return set(qemu.writers)

    assert asyncio.run(run()) == {"agent_uart"}


def test_a_uart_gets_no_more_than_its_reader_has_room_for() -> None:
    """The guest's tty drops what it has no room for, and QEMU's UART has no hardware flow control."""

    async def put(qemu: FakeQemu, agent: Agent) -> Guest:
        guest = Guest(qemu)
        serving = asyncio.ensure_future(guest.serve())
        await agent.put("/tests/fork", b"x" * 700_000)
        serving.cancel()
        return guest

    guest = on_uart(put)
    assert len(guest.received[0].payload) > 700_000
    assert 0 < guest.most <= 8192


def test_a_slow_uart_is_waited_for_but_a_dead_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []

    async def put(qemu: FakeQemu, agent: Agent) -> None:
        guest = Guest(qemu, takes=300_000)
        expect = qemu.expect

        async def impatient(awaitable: Awaitable[T], timeout_s: float, what: str) -> T:
            waits.append(what)
            return await expect(awaitable, 1.0 if "take" in what else timeout_s, what)

        monkeypatch.setattr(qemu, "expect", impatient)
        serving = asyncio.ensure_future(guest.serve())
        try:
            await agent.request("put", b"x" * 1_000_000)
        finally:
            serving.cancel()

    with pytest.raises(MachineryError, match=r"no guest program has run yet, so this says nothing about the kernel"):
        on_uart(put)
    assert len(waits) > 1


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_a_refusal_has_its_errno(number: int) -> None:
    async def refused(qemu: FakeQemu, agent: Agent) -> None:
        asking = asyncio.ensure_future(agent.get("/nowhere"))
        await asyncio.sleep(0)
        qemu.writers["agent_uart"](Frame("error", 1, b"%d get /nowhere: why not" % number).encode())
        await asking

    with pytest.raises(AgentRefused, match=r"^the guest's agent: get /nowhere: why not$") as caught:
        on_uart(refused)
    assert caught.value.errno == number


async def _silent(_qemu: FakeQemu, agent: Agent) -> None:
    await agent.request("get", b"/proc/uptime", 0.05)


def test_a_silent_agent_before_the_first_program_is_no_verdict() -> None:
    with pytest.raises(MachineryError, match="no guest program has run yet"):
        on_uart(_silent)


def test_a_silent_agent_after_a_program_is_the_kernels_fault() -> None:
    async def after_a_program(qemu: FakeQemu, agent: Agent) -> None:
        starting = asyncio.ensure_future(agent.run(["/tests/fork"]))
        await asyncio.sleep(0)
        qemu.writers["agent_uart"](Frame("started", 1, b"7").encode())
        assert (await starting).pid == 7
        await _silent(qemu, agent)

    with pytest.raises(DeadlineError, match="the agent's answer to 'get'"):
        on_uart(after_a_program)


@pytest.mark.parametrize("asked", [True, False], ids=["a request", "a signal"])
def test_a_machine_that_ends_meanwhile_leaves_no_unretrieved_exception(asked: bool) -> None:
    unheard: list[dict[str, Any]] = []

    async def ended(qemu: FakeQemu, agent: Agent) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unheard.append(context))
        qemu.theirs["agent_uart"].close()

        waiting: list[asyncio.Future[Any]] = []

        async def end(awaitable: Awaitable[T], timeout_s: float, what: str) -> T:  # noqa: ARG001 - expect's signature
            waiting.append(asyncio.ensure_future(awaitable))
            await asyncio.sleep(0)  # the wait begins, and the end of QEMU is noticed before the wait fails
            for _ in range(5):
                await asyncio.sleep(0)
            raise KernelDied("the kernel died")

        qemu.expect = end  # type: ignore[method-assign]
        job = Job(1, ("fork",), asyncio.get_running_loop().create_future())
        with pytest.raises(KernelDied):
            await (agent.request("get", b"/proc/uptime") if asked else agent.kill(job))
        waiting.clear()
        gc.collect()

    on_uart(ended)
    assert unheard == []


def test_an_abandoned_frame_is_sent_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the next frame would begin in the middle of it."""
    monkeypatch.setattr(agent_module, "_UART_PIECE_BYTES", 1000)

    async def interrupted(qemu: FakeQemu, agent: Agent) -> list[Frame]:
        guest = Guest(qemu)
        first = asyncio.ensure_future(agent.put("/first", b"1" * 100_000))
        while agent._unread_bytes == 0:
            await asyncio.sleep(0)
        first.cancel()
        serving = asyncio.ensure_future(guest.serve())
        await agent.put("/second", b"2")
        serving.cancel()
        return guest.received

    assert [frame.payload[-1:] for frame in on_uart(interrupted)] == [b"1", b"2"]
