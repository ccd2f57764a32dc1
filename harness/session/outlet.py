"""A job's output on its way to the descriptors of a command, whose reader may be slow or may never read."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from harness.errors import ProtocolError
from harness.guest.job import Stream
from harness.outputs import write_all

#: The unread output of a job that the session keeps. From then on, the guest has to keep the rest.
HELD_BYTES = 1 << 20
#: The limit for what still arrives then: from socket buffers, the virtqueue, and the pipes of a job that has ended.
UNREAD_MAX_BYTES = 16 << 20
#: Seconds in which a reader must take something, once the job has ended and the command got a signal.
_LAST_OUTPUT_S = 2.0


class Outlet:
    """Writes output in its own thread, and lets the guest keep output while the reader is too slow.

    A write may block for as long as the reader likes. So the thread has its own descriptors, and nobody waits for a
    thread that was given up.

    :param broken: called once per descriptor that no longer takes output.
    """

    def __init__(self, out: int, err: int, broken: Callable[[OSError], None]) -> None:
        self._descriptors = {Stream.OUT: os.dup(out), Stream.ERR: os.dup(err)}
        self._broken = broken
        self._room: Callable[[], None] = lambda: None
        self._parts: deque[tuple[Stream, bytes]] = deque()
        self._unread_bytes = 0
        self._changed = threading.Condition()
        self._full = self._ended = self._hurried = self._written = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._write, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hurry()
        self.end()

    def end(self) -> None:
        """Wait, after the end of the job, until the reader has everything, or is given up."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._written or self._hurried)
            while not self._written and self._reader_goes_on():
                pass
            self._parts.clear()

    def _reader_goes_on(self) -> bool:
        """Return whether the reader soon takes another part, or everything is written."""
        before = self._unread_bytes
        return self._changed.wait_for(lambda: self._written or self._unread_bytes < before, _LAST_OUTPUT_S)

    def sink(self, stream: Stream, data: bytes) -> None:
        """Take output of the job.

        :raises ProtocolError: the guest sends more although it was told to keep it.
        """
        with self._changed:
            self._parts.append((stream, data))
            self._unread_bytes += len(data)
            self._full = self._full or self._unread_bytes > HELD_BYTES
            self._changed.notify_all()
        if self._unread_bytes > UNREAD_MAX_BYTES:
            raise ProtocolError(
                f"agent: {self._unread_bytes} bytes of a job's output are unread; at {HELD_BYTES} bytes the guest "
                f"was told to keep the rest, so expected at most {UNREAD_MAX_BYTES}; start another machine"
            )

    @property
    def full(self) -> bool:
        """Return whether the guest has to keep further output of the job."""
        return self._full

    def on_room(self, call: Callable[[], None]) -> None:
        """Call a function whenever there is room again, from the writing thread; and once now."""
        self._room = call
        call()

    def hurry(self) -> None:
        """Once the job has ended, do not wait long for a reader that takes nothing."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def _write(self) -> None:
        broken: set[Stream] = set()
        while (part := self._next()) is not None:
            stream, data = part
            if stream not in broken:
                try:
                    write_all(self._descriptors[stream], data)
                except OSError as error:
                    broken.add(stream)
                    self._broken(error)
            with self._changed:
                self._unread_bytes -= len(data)
                has_room = self._full and self._unread_bytes <= HELD_BYTES // 2
                self._full = self._full and not has_room
                self._changed.notify_all()
            if has_room:
                self._room()
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        with self._changed:
            self._written = True
            self._changed.notify_all()

    def _next(self) -> tuple[Stream, bytes] | None:
        """Return the next part; None if there are no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._parts or self._ended)
            return self._parts.popleft() if self._parts else None
