"""SSH to a guest through paramiko: commands with their streams and exit status, files, a terminal."""

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

logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # we raise our own errors, with the reason

_CONNECT_TIMEOUT_S = 60.0
_CHUNK_BYTES = 32 << 10
_WINDOW_BYTES = 1 << 20
"""The window of a channel: how much may be in flight."""


def _handle_request(channel: paramiko.Channel, message: paramiko.Message) -> None:
    """Channel._handle_request(), and what it leaves out: a command that was ended by a signal (RFC 4254, 6.10)."""
    start = message.packet.tell()
    if message.get_text() == "exit-signal":
        message.get_boolean()
        channel.exit_signal = message.get_text()
    message.packet.seek(start)
    paramiko.Channel._handle_request(channel, message)


def _transport(connection: socket.socket, **options: Any) -> Any:
    """A paramiko transport that handles exit signals."""
    transport = paramiko.Transport(connection, **options)
    transport._channel_handler_table = {
        **transport._channel_handler_table,
        MSG_CHANNEL_REQUEST: _handle_request,
    }
    return transport


class Ssh:
    """A connection to a guest. A context manager, which disconnects at the end of the block."""

    def __init__(self, address: SshAddress) -> None:
        """:raises MachineryError: there is no answer, or it has another key than expected."""
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
            raise MachineryError(f"cannot connect to the guest's SSH server at {address.socket}: {why}") from error

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
            raise MachineryError("the SSH connection to the guest is closed; connect again")
        try:
            return transport.open_session(window_size=_WINDOW_BYTES, timeout=_CONNECT_TIMEOUT_S)
        except (paramiko.SSHException, EOFError) as error:
            raise MachineryError(f"the guest's SSH server does not open a channel: {error}") from error

    def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes | int = b"",
        timeout_s: float = UNLIMITED_S,
        sink: Sink | None = None,
    ) -> Completed:
        """Run a command to its end.

        :param command: a line for the guest's shell, or words that the shell does not interpret.
        :param stdin: its input: bytes, or a descriptor of ours that is read while it runs.
        :param sink: gets the output as it arrives, from one thread per stream; the result then has no output.
        :raises DeadlineError: it took longer than ``timeout_s``; its channel is closed.
        :raises MachineryError: the connection broke before its end.
        """
        line = command if isinstance(command, str) else f"exec {shlex.join(command)}"
        out, err = bytearray(), bytearray()

        def keep(stream: Stream, data: bytes) -> None:
            kept = out if stream is Stream.OUT else err
            if len(kept) + len(data) > OUTPUT_MAX_BYTES:
                raise MachineryError(
                    f"SSH: {line!r} has printed more than {OUTPUT_MAX_BYTES >> 20} MiB, the limit for kept output; "
                    "print less, or read the output as it arrives (sink=)"
                )
            kept += data

        channel = self._channel()
        try:
            with _within(channel):
                channel.exec_command(line)
            ended = _follow(channel, stdin, sink or keep, timeout_s, line)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise MachineryError(f"SSH: the connection broke during {line!r}: {error}") from error
        finally:
            channel.close()
        argv = (line,) if isinstance(command, str) else tuple(command)
        return Completed(argv, ended, bytes(out), bytes(err))

    def put(self, local: Path | bytes, remote: str, mode: int = 0o755) -> None:
        """Write a file in the guest.

        :raises MachineryError: the guest cannot write it.
        """
        data = local if isinstance(local, bytes) else local.read_bytes()
        path = shlex.quote(remote)
        done = self.run(f"cat > {path} && chmod {mode:o} {path}", stdin=data)
        if not done.ok:
            raise MachineryError(f"put {remote}: {printable(done.stderr).strip() or done.exit}")

    def get(self, remote: str) -> bytes:
        """Read a file of the guest.

        :raises MachineryError: the guest cannot read it.
        """
        done = self.run(f"cat {shlex.quote(remote)}")
        if not done.ok:
            raise MachineryError(f"get {remote}: {printable(done.stderr).strip() or done.exit}")
        return done.stdout

    def shell(self, terminal: str, columns: int, rows: int) -> paramiko.Channel:
        """Start a login shell on a terminal; the channel is for :func:`harness.guest.terminal.interact`."""
        channel = self._channel()
        with _within(channel):
            channel.get_pty(terminal, columns, rows)
            channel.invoke_shell()
        return channel


@contextlib.contextmanager
def _within(channel: paramiko.Channel) -> Iterator[None]:
    """Close a channel if the block takes too long, because paramiko waits for the guest's answer without a timeout."""

    def close() -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # the connection broke in the meantime
            channel.close()

    with called_after(_CONNECT_TIMEOUT_S, close):
        yield


def _feed(channel: paramiko.Channel, stdin: bytes | int) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # the command no longer reads
        if isinstance(stdin, bytes):
            channel.sendall(stdin)
        else:
            while data := os.read(stdin, _CHUNK_BYTES):
                channel.sendall(data)
        channel.shutdown_write()


def _read(receive: Callable[[int], bytes], stream: Stream, sink: Sink, channel: paramiko.Channel) -> None:
    """:raises Exception: from the sink; the channel is then closed, so that nothing waits for its end."""
    while True:
        try:
            data = receive(_CHUNK_BYTES)
        except (OSError, EOFError, paramiko.SSHException):
            return  # _ended() reports it
        if not data:
            return
        try:
            sink(stream, data)
        except BaseException:
            channel.close()
            raise


def _follow(channel: paramiko.Channel, stdin: bytes | int, sink: Sink, timeout_s: float, line: str) -> ExitStatus:
    """Feed and read the streams of a command, each in its own thread, until all of them and the command have ended."""
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
        raise DeadlineError(f"SSH: {line!r} did not end within {timeout_s:g} s; its connection was closed")
    return _ended(channel, line)


def _ended(channel: paramiko.Channel, line: str) -> ExitStatus:
    name = getattr(channel, "exit_signal", None)
    if name is not None:
        known = signal.Signals.__members__.get(f"SIG{name}")
        if known is None:
            raise MachineryError(
                f"SSH: {line!r} was ended by signal {shown(name)}, expected a signal that this host knows"
            )
        return ExitStatus(None, known.value)
    if channel.exit_status < 0:
        raise MachineryError(f"SSH: the connection broke during {line!r}: the guest did not report how it ended")
    return ExitStatus(channel.exit_status, None)
