"""An SSH server in the guest, reached through the agent's channel: no network device, no network in the guest.

The host listens on a Unix socket in a folder that only this user can enter. Each connection is a dropbear of its own in
the guest, started as inetd would start it, whose one socket the agent connects to ours. Nothing but that socket leads
there, and nothing leads out of the guest.
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
#: dropbear sets a PATH of its own; the guest programs are to be found all the same.
_SHELL_TEXT = b'#!/bin/sh\nPATH=/tests:/bin:/sbin:$PATH\nexport PATH\nexec /bin/sh "$@"\n'
_HOME = "/root"
_SEED_BYTES = 256
_SEED_TIMEOUT_S = 30.0
_READ_BYTES = 64 << 10
_KEYGEN_TIMEOUT_S = 30
_KEY_BITS = 256
_UNREAD_MAX_BYTES = 16 << 20  # of one connection; sixteen times what SSH lets be on its way
_LOG_MAX_BYTES = 64 << 10
_CONNECT = Path(__file__).with_name("ssh_connect.py")
#: What the guest is called where a name of a host is wanted.
HOST = "hugepfn"
#: Connections at once: each is one of the agent's jobs (lib/agent/jobs.h, JOBS), and `exec` needs some, too.
CONNECTIONS_MAX = 8


@dataclass(frozen=True)
class SshAddress:
    """Where the server is, and the two keys: its own, and the only one that it lets in."""

    socket: Path
    host_key: str  # "ssh-ed25519 AAAA..."
    client_key: str  # a private key, PEM

    @property
    def known_hosts(self) -> str:
        """The line of a known_hosts file that pins the server's key."""
        return f"{HOST} {self.host_key}"


def openssh_files(address: SshAddress, folder: Path) -> dict[Path, str]:
    """What ssh(1), scp(1) and rsync(1) need to get there: ``ssh -F FOLDER/ssh_config NAME``, whatever the name.

    :param folder: a folder that only this user can read.
    """
    key, known = folder / "ssh_key", folder / "known_hosts"
    way = shlex.join([sys.executable, "-I", "-S", str(_CONNECT), str(address.socket)])

    def plain(words: object) -> str:
        return str(words).replace("%", "%%")  # percent signs are ssh_config's own

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
    """The host's end: a socket, and a job of the agent's for each connection."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.log = bytearray()  # what the dropbears say of themselves

    async def start(self, socket: Path) -> SshAddress:
        """Installs the server in the guest, and listens.

        :param socket: where, in a folder that nobody else can enter.

        :raises MachineryError: dropbear is not on this host.
        """
        host_key, private_host_key = await asyncio.to_thread(_make_host_key)
        client_key = paramiko.ECDSAKey.generate(bits=_KEY_BITS)
        await self._install(private_host_key, f"{client_key.get_name()} {client_key.get_base64()}")
        self._server = await asyncio.start_unix_server(self._connected, socket)
        socket.chmod(0o600)
        return SshAddress(socket, host_key, _private_pem(client_key))

    async def stop(self) -> None:
        """Listens no more, and cuts every connection."""
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
            # A guest that has no users yet.
            await agent.put("/etc/passwd", f"root:x:0:0:root:{_HOME}:{_SHELL}\n".encode(), 0o644)
            await agent.put("/etc/group", b"root:x:0:\ntty:x:5:\n", 0o644)
            await agent.put("/etc/shells", f"{_SHELL}\n".encode(), 0o644)
        # A clone's random numbers would be its template's, and so would the keys of its connections.
        seed = os.urandom(_SEED_BYTES)
        await execute(self._agent, ["/bin/sh", "-c", "cat > /dev/urandom"], stdin=seed, timeout_s=_SEED_TIMEOUT_S)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= CONNECTIONS_MAX:
            # Lines before the version string are for people (RFC 4253, 4.2).
            writer.write(f"hugepfn: {CONNECTIONS_MAX} SSH connections are open already; close one\r\n".encode())
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (HugepfnError, OSError) as error:  # the guest, or who is connected, is gone: the end of the connection
            self.log += f"{error}\n".encode()
        except asyncio.CancelledError:
            pass  # by stop(), the only one who has this task
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def sink(stream: Stream, data: bytes) -> None:
            if stream is Stream.OUT:
                writer.write(data)
                if writer.transport.get_write_buffer_size() > _UNREAD_MAX_BYTES:
                    writer.transport.abort()  # nobody reads what this guest sends
            else:
                self.log = (self.log + data)[-_LOG_MAX_BYTES:]

        # -i: one connection, on standard input; -s: keys only; -j, -k: no forwarding, there is no network; -m: no motd
        argv = [_SERVER, "-i", "-e", "-s", "-j", "-k", "-m", "-r", _HOST_KEY, "-W", str(1 << 20)]
        # What a person starts by hand has no host to wait for at checkpoints.
        argv = ["env", "-u", "HUGEPFN_EVENTS_FD", *argv]
        job = await self._agent.run(argv, {"HOME": _HOME}, reads=Input.SOCKET, sink=sink)

        async def forward() -> None:
            with contextlib.suppress(OSError):  # who left without reading what was sent resets the connection
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
    """A new key of the server's: public ("ssh-ed25519 AAAA..."), and private as dropbear writes it."""
    with tempfile.TemporaryDirectory(prefix="hugepfn-") as folder:
        path = Path(folder) / "key"
        words: list[str | Path] = [find_program("dropbearkey", _PACKAGE), "-t", "ed25519", "-f", path]
        done = run(words, timeout_s=_KEYGEN_TIMEOUT_S, check=False)
        said = done.stdout.decode()
        public = [line for line in said.splitlines() if line.startswith("ssh-ed25519 ")]
        if done.status or not public:
            raise MachineryError(f"dropbearkey makes no key: {done.stderr.strip() or said.strip()}")
        return " ".join(public[0].split()[:2]), path.read_bytes()


def _private_pem(key: paramiko.ECDSAKey) -> str:
    text = io.StringIO()
    key.write_private_key(text)
    return text.getvalue()
