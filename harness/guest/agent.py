"""The host's end of the agent channel: requests and answers, jobs and their output."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from harness.errors import AgentRefused, DeadlineError, MachineryError, ProtocolError, UsageError
from harness.guest import bounds
from harness.guest.channel import Channel
from harness.guest.emulator import Emulator
from harness.guest.job import ExitStatus, Input, Job, Stream
from harness.guest.protocol import (
    PAYLOAD_MAX_BYTES,
    Frame,
    FrameDecoder,
    parse_ready,
    parse_refusal,
    put_payload,
    run_payload,
)
from harness.logs import timed

T = TypeVar("T")
_LOG = logging.getLogger("hugepfn.agent")


#: At most this much may be in flight on a UART, because the guest's tty layer drops what it has no room for. The agent
#: acknowledges every 2,048 bytes that it has read (guest_tests/lib/agent/frames.c, acknowledge()).
_UART_WINDOW_BYTES = 8192
_UART_PIECE_BYTES = 4096
#: At most this much of a job's input may be in flight; the agent says when the job has read it.
_INPUT_WINDOW_BYTES = 256 << 10
_PATH_ROOM_BYTES = 1 << 14
_LATE_MAX = 64  # JOBS of guest_tests/lib/agent/jobs.h is 16
_ANSWERS = ("done", "started", "error")
UNLIMITED_S = 1e7  # longer than any session: such a wait ends when QEMU does


def _heard(awaitable: Awaitable[T]) -> asyncio.Future[T]:
    """A task whose failure need not be awaited: if the machine has just ended, the report is about that end.

    asyncio logs other failures when the task is garbage-collected. Inside ast.parse(), which pytest calls, that breaks
    the interpreter's recursion counter (https://github.com/python/cpython/issues/106905).
    """
    task = asyncio.ensure_future(awaitable)
    task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return task


class Agent:
    """PID 1 of the guest, as seen from the host."""

    def __init__(self, emulator: Emulator, first_id: int = 1, channel: Channel | None = None) -> None:
        """Talk to the agent.

        :param first_id: the ID of the next request; in a machine that was kept, jobs have the IDs before it.
        :param channel: the channel of a restored machine; None if it boots, because then the agent chooses one.
        """
        self.emulator = emulator
        self._channel = channel
        self._ready: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        self._answers: dict[int, asyncio.Future[Frame]] = {}
        self._jobs: dict[int, Job] = {}
        self.next_id = first_id
        self._loop = asyncio.get_running_loop()
        self._late: set[asyncio.Future[None]] = set()
        self._pacing: set[asyncio.Future[None]] = set()
        self._sending = asyncio.Lock()  # one frame is sent completely before the next begins
        self._unread_bytes = 0  # in flight on a UART
        self._carried_bytes = 0  # by a UART, in both directions
        self._room = asyncio.Event()
        self._worked = False  # a program was started, which may be the cause if the guest hangs from now on
        for one in (channel,) if channel is not None else Channel:
            emulator.pump(one.agent, functools.partial(self._receive, one, FrameDecoder()))

    @property
    def channel(self) -> Channel:
        """The channel that the agent uses."""
        assert self._channel is not None, "known once it is ready"
        return self._channel

    def _receive(self, channel: Channel, decoder: FrameDecoder, data: bytes) -> None:
        if self._channel not in (None, channel):
            return  # another program in the guest writes to the other channel
        self._carried_bytes += len(data)
        for frame in decoder.feed(data):
            job = self._jobs.get(frame.id)
            if frame.verb == "ready" and not self._ready.done():
                self._channel = channel
                self._ready.set_result(parse_ready(frame.text))
            elif frame.verb == "failed":  # if PID 1 ended, the kernel would panic: it reports and waits
                raise ProtocolError(
                    f"the guest's agent cannot go on: {parse_refusal(frame.text)[1]}; this says nothing about the "
                    "kernel: run again"
                )
            elif frame.verb == "read":
                left = self._unread_bytes - bounds.decimal(frame.text, "read", 0, PAYLOAD_MAX_BYTES)
                self._unread_bytes = max(left, 0)
                self._room.set()
            elif frame.verb in ("out", "err") and job:
                job.receive(Stream(frame.verb), frame.payload)
                self._pace(job)
            elif frame.verb == "took":
                if job:
                    job.took_input(frame.text)
            elif frame.verb == "exit" and job:
                if not job.exited.done():
                    job.exited.set_result(ExitStatus.parse(frame.text))
                job.took.set()
                del self._jobs[frame.id]
            elif frame.verb in _ANSWERS and frame.id in self._answers:
                self._answers.pop(frame.id).set_result(frame)
            elif frame.verb == "started":  # too late: the caller no longer waits
                self._kill_late(frame.id)

    def _kill_late(self, job_id: int) -> None:
        if len(self._late) == _LATE_MAX:
            raise ProtocolError(f"agent: {_LATE_MAX} jobs have started without a request")
        killing = self._write(Frame("kill", job_id, b"9"))
        self._late.add(killing)
        killing.add_done_callback(self._late.discard)

    async def ready(self, timeout_s: float) -> dict[str, str]:
        """Wait for the agent's first message; returns what it says about the guest."""
        return await self.emulator.expect(asyncio.shield(self._ready), timeout_s, "the agent in the guest")

    async def request(self, verb: str, payload: bytes = b"", timeout_s: float = 30.0) -> Frame:
        """Send one request and wait for its answer.

        :raises AgentRefused: the agent cannot do it, with its reason.
        """
        number = self.next_id
        self.next_id += 1
        with timed(_LOG, "request %d %s", number, verb):
            return await self._exchange(Frame(verb, number, payload), timeout_s)

    async def _exchange(self, frame: Frame, timeout_s: float) -> Frame:
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._answers[frame.id] = answer
        try:
            await self._send(frame, timeout_s)
            answered = await self._patiently(answer, timeout_s, f"the agent's answer to {frame.verb!r}")
        except DeadlineError as error:
            if self._worked:
                raise
            raise MachineryError(
                f"{error}; no guest program has run yet, so this says nothing about the kernel: run again; if the "
                "kernel's virtio drivers may be broken, use --append hugepfn.channel=serial"
            ) from error
        finally:
            self._answers.pop(frame.id, None)
        if answered.verb == "error":
            number, reason = parse_refusal(answered.text)
            raise AgentRefused(f"the guest's agent: {reason}", number)
        return answered

    async def _send(self, frame: Frame, timeout_s: float) -> None:
        if self.emulator.stopped:
            raise UsageError(
                "the machine is stopped (at a checkpoint, or by gdb), so its agent cannot answer; resume it first"
            )
        await self._patiently(self._write(frame), timeout_s, f"the agent to take {frame.verb!r}")

    async def _patiently(self, awaitable: Awaitable[T], timeout_s: float, what: str) -> T:
        """Like :meth:`Emulator.expect`, but waits as long as a UART carries anything: 40 KB/s under TCG."""
        task = _heard(awaitable)
        try:
            while True:
                carried = self._carried_bytes
                try:
                    return await self.emulator.expect(_heard(asyncio.shield(task)), timeout_s, what)
                except DeadlineError:
                    if self.channel is Channel.VIRTIO or carried == self._carried_bytes:
                        raise
        finally:
            task.cancel()

    def _write(self, frame: Frame) -> asyncio.Future[None]:
        """Send a frame completely, even if the caller stops waiting, because the next frame follows it."""
        return _heard(asyncio.shield(_heard(self._write_whole(frame.encode()))))

    async def _write_whole(self, data: bytes) -> None:
        loop, end = asyncio.get_running_loop(), self.emulator.end(self.channel.agent)
        async with self._sending:
            if self.channel is Channel.VIRTIO:
                await loop.sock_sendall(end, data)
                return
            for start in range(0, len(data), _UART_PIECE_BYTES):
                piece = data[start : start + _UART_PIECE_BYTES]
                while self._unread_bytes + len(piece) > _UART_WINDOW_BYTES:
                    self._room.clear()
                    await self._room.wait()
                self._unread_bytes += len(piece)
                await loop.sock_sendall(end, piece)

    async def put(self, path: str, data: bytes, mode: int = 0o755) -> None:
        """Write a file in the guest.

        :raises UsageError: it is larger than the agent accepts.
        """
        if len(data) > PAYLOAD_MAX_BYTES - _PATH_ROOM_BYTES:
            raise UsageError(
                f"{path} has {len(data) >> 20} MiB; the guest accepts at most {PAYLOAD_MAX_BYTES >> 20} MiB"
            )
        await self.request("put", put_payload(path, data, mode))

    async def get(self, path: str) -> bytes:
        """Read a file of the guest, including those in /proc and /sys."""
        return (await self.request("get", path.encode())).payload

    async def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        reads: Input = Input.NULL,
        sink: Callable[[Stream, bytes], None] | None = None,
        full: Callable[[], bool] = lambda: False,
    ) -> Job:
        """Start a program, and return when it runs.

        :param sink: gets the output as it arrives, on the machine's loop; without a sink, the job keeps its output.
        :param full: whether the sink has no room for more; asked after each part. If so, the guest keeps further output
            in the job's pipes until the job blocks. What is in flight still arrives, and so does, at the job's end,
            what is in the pipes. See :meth:`has_room`.
        """
        return await self._begin(reads.value, tuple(argv), run_payload(argv, environment), sink, full)

    async def shell(self) -> Job:
        """The shell on the guest's ttyS3, started if there is none. It prints to that terminal, not to us.

        :raises AgentRefused: the guest has no busybox, because the host has none.
        """
        return await self._begin("shell", ("sh",), b"")

    async def _begin(
        self,
        verb: str,
        argv: tuple[str, ...],
        payload: bytes,
        sink: Callable[[Stream, bytes], None] | None = None,
        full: Callable[[], bool] = lambda: False,
    ) -> Job:
        number = self.next_id
        self.next_id += 1
        job = Job(number, argv, asyncio.get_running_loop().create_future(), sink, full)
        self._jobs[number] = job
        try:
            started = await self._exchange(Frame(verb, number, payload), 30.0)
        except BaseException:
            self._jobs.pop(number, None)
            raise
        self._worked = True
        job.pid = bounds.pid(started.text)
        return job

    async def feed(self, job: Job, data: bytes) -> None:
        """Give a job more input, as fast as it reads it. Empty data ends its input.

        If the machine is stopped, this waits until it runs again, however long that takes.
        """
        for start in range(0, max(len(data), 1), _INPUT_WINDOW_BYTES // 4):
            chunk = data[start : start + _INPUT_WINDOW_BYTES // 4]
            while job.on_its_way_bytes + len(chunk) > _INPUT_WINDOW_BYTES and not job.exited.done():
                job.took.clear()
                await self.emulator.expect(job.took.wait(), UNLIMITED_S, f"{job.argv[0]} to read its input")
            if job.exited.done():
                return
            job.on_its_way_bytes += len(chunk)
            await self.emulator.expect(self._write(Frame("in", job.id, chunk)), UNLIMITED_S, "the agent to take input")

    async def kill(self, job: Job, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a job and everything that it started; if the machine is stopped, as soon as it runs again."""
        await self.emulator.expect(
            self._write(Frame("kill", job.id, str(int(number)).encode())), 30.0, "the agent to take a signal"
        )

    def _pace(self, job: Job) -> None:
        if job.held is not job.full():
            job.held = not job.held
            sending = self._write(Frame("hold" if job.held else "resume", job.id))
            self._pacing.add(sending)
            sending.add_done_callback(self._pacing.discard)

    def has_room(self, job: Job) -> None:
        """Let a job print again whose output was kept in the guest. May be called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the machine has ended
            self._loop.call_soon_threadsafe(self._pace, job)

    async def resize_shell(self, rows: int, columns: int) -> None:
        """Tell the guest the size of the terminal at the shell's serial line. Does not wait for an answer."""
        await self.emulator.expect(
            self._write(Frame("size", 0, f"{rows} {columns}".encode())), 30.0, "the agent to take a terminal size"
        )
