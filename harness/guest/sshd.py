"""An SSH server in the guest, reached through the agent's channel. The guest has no network device and no network.

The host listens on a Unix socket in a folder that only this user can enter. Each connection has its own dropbear in
the guest, started as inetd would start it, and the agent connects its socket to ours. That socket is the only way in,
and there is no way out of the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import paramiko

from harness.errors import AgentRefused, HugepfnError, MachineryError
from harness.guest.agent import UNLIMITED_S, Agent
from harness.guest.exec import execute
from harness.guest.job import Input, Stream
from harness.guest.libraries import libraries
from harness.host.process import find_program, run

_PACKAGE = "dropbear-bin"
_SERVER = "/tests/.ssh/dropbear"
_HOST_KEY = "/tests/.ssh/host_key"
_SHELL = "/tests/.ssh/shell"
#: dropbear sets its own PATH; this shell adds the folder of the guest programs.
_SHELL_TEXT = b'#!/bin/sh\nPATH=/tests:/bin:/sbin:$PATH\nexport PATH\nexec /bin/sh "$@"\n'
_HOME = "/root"
_SEED_BYTES = 256
_SEED_TIMEOUT_S = 30.0
_READ_BYTES = 64 << 10
_KEYGEN_TIMEOUT_S = 30
_KEY_BITS = 256
_UNREAD_MAX_BYTES = 16 << 20  # of one connection; sixteen times the window of SSH
_LOG_MAX_BYTES = 64 << 10
_CONNECT = Path(__file__).with_name("ssh_connect.py")
#: The guest's name where a host name is needed.
HOST = "hugepfn"
#: Simultaneous connections. Each is one of the agent's jobs (lib/agent/jobs.h, JOBS), and `exec` needs some as well.
CONNECTIONS_MAX = 8


@dataclass(frozen=True)
class SshAddress:
    """The address of the server, its key, and the only key that it accepts."""

    socket: Path
    host_key: str  # "ssh-ed25519 AAAA..."
    client_key: str  # a private key, PEM

    @property
    def known_hosts(self) -> str:
        """The line of a known_hosts file that pins the server's key."""
        return f"{HOST} {self.host_key}"


def openssh_files(address: SshAddress, folder: Path) -> dict[Path, str]:
    """The files that ssh(1), scp(1) and rsync(1) need to connect: ``ssh -F FOLDER/ssh_config NAME``, with any name.

    :param folder: a folder that only this user can read.
    """
    key, known = folder / "ssh_key", folder / "known_hosts"
    way = shlex.join([sys.executable, "-I", "-S", str(_CONNECT), str(address.socket)])

    def plain(words: object) -> str:
        return str(words).replace("%", "%%")  # ssh_config expands percent signs

    config = f"""\
Host *
    HostName {HOST}
    HostKeyAlias {HOST}
    User root
    IdentityFile "{plain(key)}"
    IdentitiesOnly yes
    UserKnownHostsFile "{plain(known)}"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    ProxyCommand {plain(way)}
    ProxyUseFdpass yes
"""
    return {key: address.client_key, known: f"{address.known_hosts}\n", folder / "ssh_config": config}


class SshServer:
    """The host's end: a socket, and one job of the agent for each connection."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.log = bytearray()  # the messages of dropbear

    async def start(self, socket: Path) -> SshAddress:
        """Install the server in the guest, and listen.

        :param socket: its path, in a folder that no other user can enter.

        :raises MachineryError: dropbear is not on this host.
        """
        host_key, private_host_key = await asyncio.to_thread(_make_host_key)
        client_key = paramiko.ECDSAKey.generate(bits=_KEY_BITS)
        await self._install(private_host_key, f"{client_key.get_name()} {client_key.get_base64()}")
        self._server = await asyncio.start_unix_server(self._connected, socket)
        socket.chmod(0o600)
        return SshAddress(socket, host_key, _private_pem(client_key))

    async def stop(self) -> None:
        """Stop listening, and close every connection."""
        if self._server is not None:
            self._server.close()
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _install(self, private_host_key: bytes, authorized_key: str) -> None:
        agent = self._agent
        dropbear = find_program("dropbear", _PACKAGE)
        for file, target in [(dropbear, _SERVER), *((path, str(path)) for path in libraries(dropbear))]:
            await agent.put(target, file.read_bytes())
        await agent.put(_HOST_KEY, private_host_key, 0o600)
        await agent.put(f"{_HOME}/.ssh/authorized_keys", f"{authorized_key}\n".encode(), 0o600)
        await agent.put(_SHELL, _SHELL_TEXT)
        try:
            await agent.get("/etc/passwd")
        except AgentRefused as error:
            if error.errno != errno.ENOENT:
                raise
            # The guest has no users yet.
            await agent.put("/etc/passwd", f"root:x:0:0:root:{_HOME}:{_SHELL}\n".encode(), 0o644)
            await agent.put("/etc/group", b"root:x:0:\ntty:x:5:\n", 0o644)
            await agent.put("/etc/shells", f"{_SHELL}\n".encode(), 0o644)
        # Otherwise all clones would have their template's random numbers, and so the same keys for their connections.
        seed = os.urandom(_SEED_BYTES)
        await execute(self._agent, ["/bin/sh", "-c", "cat > /dev/urandom"], stdin=seed, timeout_s=_SEED_TIMEOUT_S)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= CONNECTIONS_MAX:
            # The client shows lines before the version string to the user (RFC 4253, 4.2).
            writer.write(f"hugepfn: {CONNECTIONS_MAX} SSH connections are already open; close one\r\n".encode())
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (HugepfnError, OSError) as error:  # the guest or the client is gone, which ends the connection
            self.log += f"{error}\n".encode()
        except asyncio.CancelledError:
            pass  # by stop(), which alone has this task
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def sink(stream: Stream, data: bytes) -> None:
            if stream is Stream.OUT:
                writer.write(data)
                if writer.transport.get_write_buffer_size() > _UNREAD_MAX_BYTES:
                    writer.transport.abort()  # the client does not read what the guest sends
            else:
                self.log = (self.log + data)[-_LOG_MAX_BYTES:]

        # -i: one connection, on standard input; -s: keys only; -j, -k: no forwarding, there is no network; -m: no motd
        argv = [_SERVER, "-i", "-e", "-s", "-j", "-k", "-m", "-r", _HOST_KEY, "-W", str(1 << 20)]
        # A program that a person starts by hand must not wait for the host at checkpoints.
        argv = ["env", "-u", "HUGEPFN_EVENTS_FD", *argv]
        job = await self._agent.run(argv, {"HOME": _HOME}, reads=Input.SOCKET, sink=sink)

        async def forward() -> None:
            with contextlib.suppress(OSError):  # a client that leaves with unread data resets the connection
                while data := await reader.read(_READ_BYTES):
                    await self._agent.feed(job, data)
            await self._agent.feed(job, b"")

        forwarding = asyncio.ensure_future(forward())
        try:
            await self._agent.emulator.expect(asyncio.shield(job.exited), UNLIMITED_S, "the end of a connection")
        finally:
            forwarding.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await forwarding


def _make_host_key() -> tuple[str, bytes]:
    """Make a key for the server: the public one ("ssh-ed25519 AAAA..."), and the private one in dropbear's format."""
    with tempfile.TemporaryDirectory(prefix="hugepfn-") as folder:
        path = Path(folder) / "key"
        words: list[str | Path] = [find_program("dropbearkey", _PACKAGE), "-t", "ed25519", "-f", path]
        done = run(words, timeout_s=_KEYGEN_TIMEOUT_S, check=False)
        said = done.stdout.decode()
        public = [line for line in said.splitlines() if line.startswith("ssh-ed25519 ")]
        if done.status or not public:
            raise MachineryError(f"dropbearkey did not make a key: {done.stderr.strip() or said.strip()}")
        return " ".join(public[0].split()[:2]), path.read_bytes()


def _private_pem(key: paramiko.ECDSAKey) -> str:
    text = io.StringIO()
    key.write_private_key(text)
    return text.getvalue()
