"""A command's end of a session, which sends it requests. It imports little, because people wait for it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection
from types import FrameType
from typing import TYPE_CHECKING, Any

from harness.errors import MachineryError
from harness.events import Event, Say
from harness.host.signals import handling
from harness.qemu.threads import state
from harness.session import handshake, registry, wire
from harness.session.registry import About

if TYPE_CHECKING:
    from harness.guest.job import ExitStatus

#: The deadline of a call that only looks, or stops and resumes. The slowest one sends the programs of all scenarios.
ANSWER_TIMEOUT_S = 600.0
_CONNECT_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 20.0
_READ_BYTES = 64 << 10


class SessionClient:
    """A session as seen by another process."""

    def __init__(self, about: About) -> None:
        self.about = about

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        self._check_runs()
        try:
            key = registry.key_of(self.about.name)
            connection = _connect(str(registry.folder_of(self.about.name) / registry.SOCKET))
            with _closed_on_error(connection):
                handshake.prove(connection, key)
        except BlockingIOError as error:
            self._check_runs()
            raise self._silent(f"it sent nothing within {handshake.TIMEOUT_S} s") from error
        except (OSError, EOFError, AuthenticationError) as error:
            raise self._silent(getattr(error, "strerror", None) or str(error) or "it closed the connection") from error
        with connection:
            try:
                yield connection
            except ConnectionError as error:
                raise MachineryError(f"the session {self.about.name} ended meanwhile") from error

    def _silent(self, why: str) -> MachineryError:
        return MachineryError(
            f"the session {self.about.name} (pid {self.about.pid}) does not answer: {why}; "
            f"`hugepfn stop -s {self.about.name}` ends it"
        )

    def _check_runs(self) -> None:
        """:raises MachineryError: the session's process is stopped."""
        if state(self.about.pid) in ("T", "t"):
            raise self._silent(f"its process is stopped (continue it with `kill -CONT {self.about.pid}`)")

    def call(
        self,
        verb: str,
        *,
        descriptors: Sequence[int] = (),
        timeout_s: float | None = ANSWER_TIMEOUT_S,
        **arguments: Any,
    ) -> Any:
        """Call a method of :class:`harness.session.session.Session`; see there.

        :param timeout_s: None for calls without a deadline, which Ctrl-C ends.
        :raises HugepfnError: the method raised it; it has the message of the session's process.
        :raises MachineryError: the session does not answer in time.
        """
        with self._connected() as connection:
            connection.send(wire.Call(verb, arguments, len(descriptors)))
            wire.send_descriptors(connection, descriptors)
            return self._answer(connection, timeout_s)

    def _answer(
        self, connection: Connection, timeout_s: float | None = ANSWER_TIMEOUT_S, say: Say = lambda _event: None
    ) -> Any:
        try:
            while True:
                if not connection.poll(timeout_s):
                    raise self._silent(f"it sent nothing within {timeout_s:g} s")
                if not isinstance(said := connection.recv(), Event):
                    break
                say(said)
        except (EOFError, ConnectionError):
            raise MachineryError(f"the session {self.about.name} ended meanwhile") from None
        except BlockingIOError:
            raise self._silent("its answer is incomplete") from None
        if isinstance(said, wire.RemoteFailure):
            raise wire.RemoteError(said)
        return said.value

    def stop(self) -> None:
        """End the session, and return when nothing of it is left.

        A session that does not answer, because it is stopped or its socket is gone, is ended by signals: SIGTERM, on
        which it cleans up, and then SIGKILL, on which its QEMU ends too.

        :raises MachineryError: the session does not end.
        """
        pid = registry.holder(self.about.name)
        if pid is None:
            return
        end = os.pidfd_open(pid)
        try:
            if registry.holder(self.about.name) != pid:  # it has ended, and another process may have its pid
                return
            with contextlib.suppress(MachineryError):
                self.call("stop", timeout_s=_STOP_TIMEOUT_S)
                if _ended(end, _END_TIMEOUT_S):
                    return
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(end, number)
                signal.pidfd_send_signal(end, signal.SIGCONT)
                if _ended(end, _END_TIMEOUT_S):
                    registry.sessions()  # this removes what it left behind
                    return
            raise MachineryError(f"the session {self.about.name} (pid {pid}) did not end, even after SIGKILL")
        finally:
            os.close(end)

    def exec(self, argv: Sequence[str], program: str | None, environment: Mapping[str, str], say: Say) -> ExitStatus:
        """Run a command in the guest on this process's standard streams, and pass SIGINT and SIGTERM to it.

        :param say: called if another command stops the machine meanwhile.
        """
        with self._connected() as connection:
            arguments = {"argv": tuple(argv), "program": program, "environment": dict(environment)}
            connection.send(wire.Call("exec", arguments, 3))
            with _own_stdin() as stdin:
                wire.send_descriptors(connection, [stdin, 1, 2])

            def pass_on(number: int) -> None:
                self._check_runs()  # otherwise nobody would receive it, and Ctrl-C would not end this command
                connection.send(wire.Signal(number))

            with passing_signals(pass_on):
                answer: ExitStatus = self._answer(connection, None, say)
            return answer

    @contextlib.contextmanager
    def shell(self) -> Iterator[tuple[socket.socket, Connection, Callable[[int, int], None]]]:
        """Yield the serial line of the guest's shell, a connection that is readable when the shell has ended, and a
        function that sets the size of the terminal.

        :raises UsageError: another command is using the shell.
        :raises MachineryError: the session was stopped meanwhile.
        """
        with self._connected() as connection:
            connection.send(wire.Call("shell"))
            self._answer(connection)
            (descriptor,) = wire.receive_descriptors(connection, 1)
            with socket.socket(fileno=descriptor) as line:
                yield line, connection, lambda rows, columns: connection.send(wire.Size(rows, columns))
            if connection.poll(0):
                self._answer(connection)

    @contextlib.contextmanager
    def attending(self) -> Iterator[None]:
        """A block that uses the machine by another way than this socket.

        :raises MachineryError: the session was stopped meanwhile, which is the reason for whatever went wrong there.
        """
        with self._connected() as connection:
            connection.send(wire.Call("attend"))
            try:
                yield
            finally:
                if connection.poll(0):
                    self._answer(connection)


def _connect(path: str) -> Connection:
    """Connect to a session's socket. Connecting, sending and the rest of a message have a deadline (socket(7))."""
    with socket.socket(socket.AF_UNIX) as end:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(_CONNECT_TIMEOUT_S), 0))
        end.connect(path)
        return Connection(end.detach())


def _ended(process: int, timeout_s: float) -> bool:
    """Return whether the process of a pidfd ends within the time."""
    return bool(select.select([process], [], [], timeout_s)[0])


@contextlib.contextmanager
def _closed_on_error(connection: Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def passing_signals(send: Callable[[int], None]) -> Iterator[None]:
    """Pass SIGINT and SIGTERM to ``send`` while the block runs."""

    def handler(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            send(number)

    with handling((signal.SIGINT, signal.SIGTERM), handler):
        yield


@contextlib.contextmanager
def _own_stdin() -> Iterator[int]:
    """Yield standard input for another process. This process reads a terminal itself, because of job control."""
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
