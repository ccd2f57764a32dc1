"""A command's end of a session: asking it for things. Imports little, since people wait for it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import connection as mp
from multiprocessing.connection import Connection
from types import FrameType
from typing import TYPE_CHECKING, Any

from harness.errors import MachineryError
from harness.session import registry, wire
from harness.session.registry import About

if TYPE_CHECKING:
    from harness.machine.agent import ExitStatus

_END_TIMEOUT_S = 20.0
_READ_BYTES = 64 << 10


class SessionClient:
    """A session, as another process asks it."""

    def __init__(self, about: About) -> None:
        self.about = about

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        try:
            connection = mp.Client(str(registry.folder_of(self.about.name) / registry.SOCKET), "AF_UNIX")
        except OSError as error:
            raise MachineryError(f"the session {self.about.name} does not answer: {error.strerror}") from error
        with connection:
            try:
                yield connection
            except ConnectionError as error:
                raise MachineryError(f"the session {self.about.name} ended meanwhile") from error

    def call(self, verb: str, *, descriptors: Sequence[int] = (), **arguments: Any) -> Any:
        """Calls a method of :class:`harness.session.session.Session`; see there.

        :raises HugepfnError: in the words of the session's process.
        """
        with self._connected() as connection:
            connection.send(wire.Call(verb, arguments, len(descriptors)))
            wire.send_descriptors(connection, descriptors)
            return self._answer(connection)

    def _answer(self, connection: Connection) -> Any:
        try:
            said = connection.recv()
        except EOFError:
            raise MachineryError(f"the session {self.about.name} ended meanwhile") from None
        if isinstance(said, wire.Failure):
            raise wire.RemoteError(said)
        return said.value

    def stop(self) -> None:
        """Ends the session; returns once nothing of it is left.

        :raises MachineryError: it does not end.
        """
        end = os.pidfd_open(self.about.pid)
        try:
            self.call("stop")
            if not select.select([end], [], [], _END_TIMEOUT_S)[0]:
                raise MachineryError(f"the session {self.about.name} (pid {self.about.pid}) does not end")
        finally:
            os.close(end)

    def exec(self, argv: Sequence[str], program: str | None, environment: Mapping[str, str]) -> ExitStatus:
        """Runs a command in the guest on our standard streams; our SIGINT and SIGTERM are for it."""
        with self._connected() as connection:
            arguments = {"argv": tuple(argv), "program": program, "environment": dict(environment)}
            connection.send(wire.Call("exec", arguments, 3))
            with _own_stdin() as stdin:
                wire.send_descriptors(connection, [stdin, 1, 2])
            with passing_signals(lambda number: connection.send(wire.Signal(number))):
                answer: ExitStatus = self._answer(connection)
            return answer

    @contextlib.contextmanager
    def shell(self) -> Iterator[tuple[socket.socket, Connection, Callable[[int, int], None]]]:
        """The serial line of the guest's shell; a connection that is readable when the shell has ended; how to resize.

        :raises UsageError: somebody else is there.
        """
        with self._connected() as connection:
            connection.send(wire.Call("shell"))
            self._answer(connection)
            (descriptor,) = wire.receive_descriptors(connection, 1)
            with socket.socket(fileno=descriptor) as line:
                yield line, connection, lambda rows, columns: connection.send(wire.Size(rows, columns))


@contextlib.contextmanager
def passing_signals(send: Callable[[int], None]) -> Iterator[None]:
    """Ctrl-C and polite ends go elsewhere while the block runs."""

    def handler(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            send(number)

    wanted = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def _own_stdin() -> Iterator[int]:
    """Standard input for another process: a terminal stays ours to read, since job control is about us."""
    if not os.isatty(0):
        yield 0
        return
    readable, writable = os.pipe()

    def copy() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(0, _READ_BYTES):
                os.write(writable, data)
        os.close(writable)

    threading.Thread(target=copy, daemon=True).start()
    try:
        yield readable
    finally:
        os.close(readable)
