"""Tests for what the host accepts from PID 1 of the guest. Everything beyond the bounds is refused with a reason."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import AgentRefused, ProtocolError
from harness.guest import agent as module
from harness.guest import bounds
from harness.guest.agent import Agent
from harness.guest.job import ExitStatus, Job, Stream
from harness.guest.protocol import Frame
from harness.introspect.kernel_facts import KernelFacts, kernel_symbols
from harness.machine.vm import VM
from harness.observe.run_result import RunResult
from harness.qemu.process import Qemu
from harness.verdict import parse_ktap

READY = b"release=6.12.1\nversion=#1\ntaint=0\nvfio_bdf=\nvfio_group=\nvfio_why=\n"


class FakeQemu:
    """Stores the function that receives the agent's channel."""

    def pump(self, channel: str, write: Callable[[bytes], None]) -> None:
        if channel == "agent":
            self.say = write


async def _agent_with_a_job() -> tuple[FakeQemu, Agent, Job]:
    qemu = FakeQemu()
    agent = Agent(cast(Qemu, qemu))
    job = Job(5, ("/tests/fork",), asyncio.get_running_loop().create_future())
    agent._jobs[5] = job
    return qemu, agent, job


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (Frame("took", 5, b"lots"), "took 'lots', expected a decimal number from 0 to 10"),
        (Frame("took", 5, b"11"), "took '11', expected a decimal number from 0 to 10"),
        (Frame("took", 5, b"-1"), "took '-1', expected"),
        (Frame("exit", 5, b"status \xc2\xb2"), "exit status '\u00b2', expected a decimal number from 0 to 255"),
        (Frame("exit", 5, b"status 256"), "exit status '256', expected"),
        (Frame("exit", 5, b"signal 65"), "signal '65', expected a decimal number from 1 to 64"),
        (Frame("exit", 5, b"signal 0"), "signal '0', expected"),
        (Frame("exit", 5, b"x" * 1000), r"exit 'x{80}'\.\.\. \(1000 characters\), expected 'status N' or 'signal N'"),
        (
            Frame("failed", 0, b"71 no header"),
            "the guest's agent cannot go on: no header; this says nothing about the kernel",
        ),
        (Frame("failed", 0, b"no header"), "errno 'no', expected a decimal number from 1 to 4095"),
        (Frame("ready", 0, b"taint=0"), "agent: ready 'taint=0', expected release="),
    ],
)
def test_an_invalid_number_is_refused_with_a_reason(frame: Frame, expected: str) -> None:
    async def receive() -> None:
        qemu, _, job = await _agent_with_a_job()
        job.on_its_way_bytes = 10
        qemu.say(frame.encode())

    with pytest.raises(ProtocolError, match=expected):
        asyncio.run(receive())


frames = st.builds(
    Frame,
    st.sampled_from(["ready", "out", "err", "took", "exit", "done", "error", "failed", "unknown"]),
    st.sampled_from([0, 5, 6]),
    st.binary(max_size=40) | st.sampled_from([READY, b"status 0", b"signal 9", b"3", b"9" * 5000]),
)


@settings(max_examples=100)
@given(st.lists(frames, max_size=8))
def test_any_frames_are_accepted_or_refused(said: list[Frame]) -> None:
    async def receive() -> None:
        qemu, _, job = await _agent_with_a_job()
        job.on_its_way_bytes = 4
        for frame in said:
            qemu.say(frame.encode())

    refused = ""
    try:
        asyncio.run(receive())
    except ProtocolError as error:
        refused = str(error)
    assert len(refused) < 400


@pytest.mark.parametrize("number", range(1, 65))
def test_every_signal_has_a_name(number: int) -> None:
    assert ExitStatus.parse(f"signal {number}").signal_name.startswith("SIG")


def test_a_signal_that_python_does_not_know() -> None:
    assert ExitStatus(None, 32).signal_name == "SIG32"
    assert ExitStatus(None, signal.SIGSEGV).signal_name == "SIGSEGV"


def test_unread_output_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "OUTPUT_MAX_BYTES", 2 << 20)

    async def receive() -> None:
        qemu, _, job = await _agent_with_a_job()
        for _ in range(2):
            qemu.say(Frame("out", 5, b"x" * (1 << 20)).encode())
        qemu.say(Frame("err", 5, b"y").encode())
        assert (len(job.stdout), bytes(job.stderr)) == (2 << 20, b"y")
        with pytest.raises(
            ProtocolError, match="'/tests/fork' has printed more than 2 MiB, the limit for output that is kept"
        ):
            qemu.say(Frame("out", 5, b"x").encode())
        taken: list[bytes] = []
        job.sink = lambda _stream, data: taken.append(data)
        qemu.say(Frame("out", 5, b"x").encode())
        assert taken == [b"x"]
        assert Stream.OUT.value == "out"

    asyncio.run(receive())


def test_unrequested_jobs_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    async def receive() -> None:
        qemu, agent, _ = await _agent_with_a_job()

        monkeypatch.setattr(agent, "_write", lambda _frame: asyncio.get_running_loop().create_future())
        for number in range(module._LATE_MAX):
            qemu.say(Frame("started", 100 + number, b"1").encode())
        with pytest.raises(ProtocolError, match="64 jobs have started without a request"):
            qemu.say(Frame("started", 999, b"1").encode())

    asyncio.run(receive())


@pytest.mark.parametrize("said", ["", "many", "1e9", "9" * 5000, "\u0663"])
def test_an_invalid_number_of_faults_is_refused(said: str) -> None:
    result = RunResult(parse_ktap(""), ExitStatus(0, None), f"# value read-faults={said}\n", "")
    with pytest.raises(ProtocolError, match=r"the program's value read-faults is .*; expected a number of faults"):
        result.faults("read-faults", "read")
    with pytest.raises(ProtocolError, match="the program's value other is ''; expected"):
        result.faults("other", "read")


class Refusing:
    """A machine whose agent can read no file, for the reason ``number``, an errno."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get(self, path: str) -> bytes:
        raise AgentRefused(f"the guest's agent: get {path}: No such file or directory", self.number)


def test_an_optional_file_is_empty_only_if_it_does_not_exist() -> None:
    """Decided by the errno, not by the text."""
    assert KernelFacts(cast(VM, Refusing(errno.ENOENT))).optional("/proc/kallsyms") == b""
    with pytest.raises(AgentRefused):
        KernelFacts(cast(VM, Refusing(errno.EIO))).optional("/proc/kallsyms")


def test_malformed_kallsyms_is_refused() -> None:
    assert kernel_symbols(b"ffffffff81000000 T _text\n") == [(0xFFFFFFFF81000000, b"_text", b"T")]
    with pytest.raises(ProtocolError, match="a line without an address"):
        kernel_symbols(b"here T _text\n")
