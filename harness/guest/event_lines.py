"""The lines of the events channel, cut out of the bytes that arrive."""

from __future__ import annotations

from harness.errors import ProtocolError
from harness.guest import bounds
from harness.guest.bounds import shown
from harness.printable import printable


class LineDecoder:
    """Bytes in, as they arrive; complete printable lines out, without their newline."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[str]:
        """Add bytes, and return the lines that are now complete, except empty ones.

        :raises ProtocolError: a line is longer than any event.
        """
        *ends, rest = data.split(b"\n")
        lines = []
        for end in ends:
            lines.append(printable(bytes(self._add(end)).strip(b"\r")))
            self._pending.clear()
        self._add(rest)
        return [line for line in lines if line]

    def _add(self, data: bytes) -> bytearray:
        if len(self._pending) + len(data) > bounds.LINE_MAX_BYTES:
            begin = shown(printable(bytes(self._pending[:64] + data[:64])))
            raise ProtocolError(f"events: a line begins with {begin}, expected at most {bounds.LINE_MAX_BYTES} bytes")
        self._pending += data
        return self._pending
