"""Both ends of a session's socket prove that they know the session's key before anything is unpickled.

The mode of the folder keeps others out; the key protects the session even if the folder is opened or moved. The proof
is that of multiprocessing (HMAC over a random challenge, in each direction). It has a deadline, after which a silent
client is disconnected.
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
    """Limit every read and write in the block; a longer one fails with EAGAIN (socket(7), SO_RCVTIMEO)."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        before = {option: same.getsockopt(socket.SOL_SOCKET, option, _TIMEVAL.size) for option in _TIMEOUTS}
        for option in _TIMEOUTS:
            same.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(timeout_s, 0))
        yield
        for option, value in before.items():
            same.setsockopt(socket.SOL_SOCKET, option, value)


def accept(connection: Connection, key: bytes, timeout_s: int = TIMEOUT_S) -> None:
    """Do the session's part of the handshake.

    :raises AuthenticationError: the other end does not know the key.
    :raises OSError: it sent nothing for ``timeout_s`` seconds, or something else. EOFError if it disconnected.
    """
    with _bounded(connection, timeout_s):
        deliver_challenge(connection, key)
        answer_challenge(connection, key)


def prove(connection: Connection, key: bytes, timeout_s: int = TIMEOUT_S) -> None:
    """Do the command's part of the handshake; raises the same errors as :func:`accept`."""
    with _bounded(connection, timeout_s):
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
