"""SSH into a guest, through paramiko: commands with their streams and their end, files, a terminal."""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paramiko
from paramiko.common import MSG_CHANNEL_REQUEST

from harness.errors import DeadlineError, MachineryError
from harness.guest.agent import UNLIMITED_S
from harness.guest.bounds import OUTPUT_MAX_BYTES, shown
from harness.guest.exec import Completed, Sink
from harness.guest.job import ExitStatus, Stream
from harness.guest.sshd import HOST, SshAddress
from harness.host.process import called_after
from harness.printable import printable

logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # what goes wrong is an error of ours, with its reason

_CONNECT_TIMEOUT_S = 60.0
_CHUNK_BYTES = 32 << 10
_WINDOW_BYTES = 1 << 20
"""Of a channel: so much may be on its way."""


def _handle_request(channel: paramiko.Channel, message: paramiko.Message) -> None:
    """Channel._handle_request(), and what that leaves out: a command that a signal ended (RFC 4254, 6.10)."""
    start = message.packet.tell()
    if message.get_text() == "exit-signal":
        message.get_boolean()
        channel.exit_signal = message.get_text()
    message.packet.seek(start)
    paramiko.Channel._handle_request(channel, message)


def _transport(connection: socket.socket, **options: Any) -> Any:
    """A paramiko transport that hears of exit signals."""
    transport = paramiko.Transport(connection, **options)
    transport._channel_handler_table = {
        **transport._channel_handler_table,
        MSG_CHANNEL_REQUEST: _handle_request,
    }
    return transport


class Ssh:
    """A connection to a guest. A context; what leaves the block is disconnected."""

    def __init__(self, address: SshAddress) -> None:
        """:raises MachineryError: nobody answers there, or not with the key that is expected."""
        self._client = paramiko.SSHClient()
        kind, blob = address.host_key.split()
        self._client.get_host_keys().add(HOST, kind, paramiko.PKey.from_type_string(kind, base64.b64decode(blob)))
        self._client.set_missing_host_key_policy(paramiko.RejectPolicy())
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_CONNECT_TIMEOUT_S)
            connection.connect(str(address.socket))
            self._client.connect(
                HOST,
                username="root",
                sock=connection,
                pkey=paramiko.ECDSAKey.from_private_key(io.StringIO(address.client_key)),
                allow_agent=False,
                look_for_keys=False,
                timeout=_CONNECT_TIMEOUT_S,
                banner_timeout=_CONNECT_TIMEOUT_S,
                auth_timeout=_CONNECT_TIMEOUT_S,
                transport_factory=_transport,
            )
        except (paramiko.SSHException, OSError, EOFError) as error:
            self._client.close()
            connection.close()
            why = printable(str(error))
            raise MachineryError(f"no SSH connection to the guest at {address.socket}: {why}") from error

    def close(self) -> None:
        """Disconnects."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _channel(self) -> paramiko.Channel:
        transport = self._client.get_transport()
        if transport is None or not transport.is_active():
            raise MachineryError("the SSH connection to the guest is gone")
        try:
            return transport.open_session(window_size=_WINDOW_BYTES, timeout=_CONNECT_TIMEOUT_S)
        except (paramiko.SSHException, EOFError) as error:
            raise MachineryError(f"the guest opens no SSH channel: {error}") from error

    def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes | int = b"",
        timeout_s: float = UNLIMITED_S,
        sink: Sink | None = None,
    ) -> Completed:
        """Runs a command to its end.

        :param stdin: what it reads: bytes, or a descriptor of ours that is read as it goes on.

        :param command: a line for the guest's shell, or words that it does not look into.
        :param sink: gets what it prints as it comes, from a thread for each stream; the result then has none of it.
        :raises DeadlineError: it took longer than ``timeout_s``; its channel is closed.
        :raises MachineryError: the connection broke before its end.
        """
        line = command if isinstance(command, str) else f"exec {shlex.join(command)}"
        out, err = bytearray(), bytearray()

        def keep(stream: Stream, data: bytes) -> None:
            kept = out if stream is Stream.OUT else err
            if len(kept) + len(data) > OUTPUT_MAX_BYTES:
                raise MachineryError(
                    f"SSH: {line!r} has printed more than {OUTPUT_MAX_BYTES >> 20} MiB, which is all that is kept; "
                    "print less, or take it as it comes (sink=)"
                )
            kept += data

        channel = self._channel()
        try:
            with _within(channel):
                channel.exec_command(line)
            ended = _follow(channel, stdin, sink or keep, timeout_s, line)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise MachineryError(f"SSH: {line!r} was cut off: {error}") from error
        finally:
            channel.close()
        argv = (line,) if isinstance(command, str) else tuple(command)
        return Completed(argv, ended, bytes(out), bytes(err))

    def put(self, local: Path | bytes, remote: str, mode: int = 0o755) -> None:
        """Writes a file of the guest's.

        :raises MachineryError: the guest does not take it.
        """
        data = local if isinstance(local, bytes) else local.read_bytes()
        path = shlex.quote(remote)
        done = self.run(f"cat > {path} && chmod {mode:o} {path}", stdin=data)
        if not done.ok:
            raise MachineryError(f"put {remote}: {printable(done.stderr).strip() or done.exit}")

    def get(self, remote: str) -> bytes:
        """Reads a file of the guest's.

        :raises MachineryError: the guest cannot read it.
        """
        done = self.run(f"cat {shlex.quote(remote)}")
        if not done.ok:
            raise MachineryError(f"get {remote}: {printable(done.stderr).strip() or done.exit}")
        return done.stdout

    def shell(self, terminal: str, columns: int, rows: int) -> paramiko.Channel:
        """A login shell on a terminal of the guest's; its channel, for :func:`harness.guest.terminal.interact`."""
        channel = self._channel()
        with _within(channel):
            channel.get_pty(terminal, columns, rows)
            channel.invoke_shell()
        return channel


@contextlib.contextmanager
def _within(channel: paramiko.Channel) -> Iterator[None]:
    """Closes a channel if the block takes too long: it waits for the guest's answer, and paramiko has no deadline."""

    def close() -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # the connection broke meanwhile
            channel.close()

    with called_after(_CONNECT_TIMEOUT_S, close):
        yield


def _feed(channel: paramiko.Channel, stdin: bytes | int) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # it reads no more
        if isinstance(stdin, bytes):
            channel.sendall(stdin)
        else:
            while data := os.read(stdin, _CHUNK_BYTES):
                channel.sendall(data)
        channel.shutdown_write()


def _read(receive: Callable[[int], bytes], stream: Stream, sink: Sink, channel: paramiko.Channel) -> None:
    """:raises Exception: the sink's own; the channel is closed then, so that nobody waits for its end."""
    while True:
        try:
            data = receive(_CHUNK_BYTES)
        except (OSError, EOFError, paramiko.SSHException):
            return  # how it ended says so
        if not data:
            return
        try:
            sink(stream, data)
        except BaseException:
            channel.close()
            raise


def _follow(channel: paramiko.Channel, stdin: bytes | int, sink: Sink, timeout_s: float, line: str) -> ExitStatus:
    """Feeds and reads a command's streams, each in its own thread, until they are at their end and it has ended."""
    deadline = time.monotonic() + timeout_s
    threading.Thread(target=_feed, args=(channel, stdin), daemon=True).start()
    with ThreadPoolExecutor(2) as pool:
        streams = (channel.recv, Stream.OUT), (channel.recv_stderr, Stream.ERR)
        reading = [pool.submit(_read, receive, stream, sink, channel) for receive, stream in streams]
        try:
            for one in reading:
                one.result(max(deadline - time.monotonic(), 0.0))
            ended = channel.status_event.wait(max(deadline - time.monotonic(), 0.0))
        except TimeoutError:
            ended = False
        finally:
            if not all(one.done() for one in reading):
                channel.close()  # which ends both
    if not ended:
        raise DeadlineError(f"SSH: {line!r} did not end within {timeout_s:g} s; its connection to us is cut")
    return _ended(channel, line)


def _ended(channel: paramiko.Channel, line: str) -> ExitStatus:
    name = getattr(channel, "exit_signal", None)
    if name is not None:
        known = signal.Signals.__members__.get(f"SIG{name}")
        if known is None:
            raise MachineryError(f"SSH: {line!r} was ended by signal {shown(name)}, which this host does not know")
        return ExitStatus(None, known.value)
    if channel.exit_status < 0:
        raise MachineryError(f"SSH: {line!r} was cut off: the guest did not say how it ended")
    return ExitStatus(channel.exit_status, None)
