"""Reads what a process prints on stderr as it arrives. Does not wait for others that keep the pipe open."""

from __future__ import annotations

import asyncio
import os
from typing import Self

_KEPT_BYTES = 64 << 10
_END_S = 0.5


class LastWords(asyncio.Protocol):
    """The last 64 KiB of stderr."""

    def __init__(self) -> None:
        self.data = b""
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.BaseTransport | None = None

    @classmethod
    async def listen(cls) -> tuple[Self, int]:
        """Start to read a new pipe. Returns also its other end for the process, which the caller has to close."""
        readable, writable = os.pipe()
        words = cls()
        words._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: words,
            os.fdopen(readable, "rb", buffering=0),
        )
        return words, writable

    def data_received(self, data: bytes) -> None:
        """More data has arrived."""
        self.data = (self.data + data)[-_KEPT_BYTES:]

    def connection_lost(self, _error: Exception | None) -> None:
        """All data has arrived."""
        if not self._ended.done():
            self._ended.set_result(None)

    async def end(self) -> None:
        """Wait for the end of the data for half a second, because a child of the process may keep the pipe open."""
        await asyncio.wait({self._ended}, timeout=_END_S)

    def close(self) -> None:
        """Stop reading."""
        if self._transport is not None:
            self._transport.close()
