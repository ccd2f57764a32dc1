"""Both ends of a session's socket prove that they know the session's key, before anything is unpickled.

The folder's mode keeps others away; the key stands behind it, should a folder ever be opened or moved. The proof is
multiprocessing's (HMAC over a random challenge, each way), and has a deadline: who says nothing is hung up on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

TIMEOUT_S = 20
_TIMEOUTS = (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO)
_TIMEVAL = struct.Struct("ll")


@contextlib.contextmanager
def _bounded(connection: Connection, timeout_s: int) -> Iterator[None]:
    """No read or write of the block waits longer: it fails with EAGAIN (socket(7), SO_RCVTIMEO)."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        before = {option: same.getsockopt(socket.SOL_SOCKET, option, _TIMEVAL.size) for option in _TIMEOUTS}
        for option in _TIMEOUTS:
            same.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(timeout_s, 0))
        yield
        for option, value in before.items():
            same.setsockopt(socket.SOL_SOCKET, option, value)


def accept(connection: Connection, key: bytes, timeout_s: int = TIMEOUT_S) -> None:
    """The session's end.

    :raises AuthenticationError: the other end does not know the key.
    :raises OSError: it said nothing for ``timeout_s`` seconds, or no handshake. EOFError where it hung up.
    """
    with _bounded(connection, timeout_s):
        deliver_challenge(connection, key)
        answer_challenge(connection, key)


def prove(connection: Connection, key: bytes, timeout_s: int = TIMEOUT_S) -> None:
    """A command's end; raises as :func:`accept` does."""
    with _bounded(connection, timeout_s):
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
