"""Every wait of the harness, with a peer that never answers. tests/test_waits.py runs each in its own process.

``python waiting.py CASE short`` shortens the deadlines, and prints the error with which the wait ends.
``python waiting.py CASE long`` leaves them as they are; the caller ends the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NoReturn

import filelock

from harness.errors import HugepfnError, MachineryError
from harness.host import cache, process
from harness.host.aside import aside
from harness.host.event_loop import LoopThread
from harness.qemu import migration
from harness.qemu import process as qemu_module
from harness.qemu.binary import QemuBinary
from harness.qemu.process import Qemu
from harness.qemu.ram import SharedRam
from harness.qemu.spec import MachineSpec
from harness.session import client as client_module
from harness.session import registry, starting, wire
from harness.session.client import SessionClient
from harness.session.registry import About

HERE = Path(__file__).parent
SHORT_S = 0.5

# A session's process as a client sees it: it proves that it knows the key, and then sends nothing more.
SESSION = """
import signal, socket, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from multiprocessing.connection import Connection
from harness.session import handshake, registry
from harness.session.registry import About
import os, time

def polite(number, frame):
    raise SystemExit(0)

signal.signal(signal.SIGTERM, polite)
with registry.claim("one") as folder, socket.socket(socket.AF_UNIX) as listener:
    listener.bind(str(folder / registry.SOCKET))
    listener.listen(8)
    key = registry.make_key(folder)
    registry.publish(folder, About("one", os.getpid(), "debian:6.12", "6.12.1", time.time()))
    print("up", flush=True)
    connection = Connection(listener.accept()[0].detach())
    handshake.accept(connection, key)
    signal.pause()
"""


def waiting() -> None:
    """Tell the caller that the wait begins."""
    print("waiting", flush=True)


# --- QEMU -----------------------------------------------------------------------------------------


def _on_loop(mode: str, work: Callable[[Qemu], Coroutine[Any, Any, object]]) -> None:
    """Do work with a fake QEMU as a VM does: on a loop in a thread, with quit() at the end."""
    os.environ["FAKE_QEMU"] = mode
    loop = LoopThread("test")
    machines: list[Qemu] = []

    async def start() -> None:
        spec = MachineSpec(kernel=Path("/k"), initramfs=Path("/i"), memory_mib=256)
        fake = QemuBinary(str(HERE / "fake_qemu.py"), "7.2", "fake")
        machines.append(Qemu(spec, fake, SharedRam(256, Path(tempfile.gettempdir()))))
        await work(machines[0])

    try:
        loop.run(start())
    finally:
        for machine in machines:
            loop.run(machine.quit())
        loop.close()


def impatient(timeout_s: float = SHORT_S) -> None:
    """Shorten the deadline for QEMU's answers, if deadlines are short in this process."""
    if short():
        qemu_module.QMP_TIMEOUT_S = timeout_s


async def _start(machine: Qemu) -> None:
    waiting()
    await machine.start()


async def _start_impatiently(machine: Qemu) -> None:
    impatient()
    waiting()
    await machine.start()


async def _start_stopped(machine: Qemu) -> None:
    impatient(5.0)  # the fake QEMU is a Python program, which needs some time on a busy host until it stops itself
    waiting()
    await machine.start()


async def _execute(machine: Qemu) -> None:
    await machine.start()
    impatient()
    waiting()
    await machine.execute("stop")


async def _migrate(machine: Qemu) -> None:
    await machine.start()
    migration._SAVE_TIMEOUT_S = SHORT_S if short() else 600.0
    waiting()
    with tempfile.TemporaryDirectory() as folder:
        await migration.save_state(machine, Path(folder) / "state", with_ram=True)


async def _expect(machine: Qemu) -> None:
    await machine.start()
    waiting()
    await machine.expect(asyncio.Event().wait(), SHORT_S if short() else 600.0, "a guest")


async def _stopped_later(machine: Qemu) -> None:
    await machine.start()
    os.kill(machine.pid, signal.SIGSTOP)
    await _expect_after(machine)


async def _expect_after(machine: Qemu) -> None:
    waiting()
    await machine.expect(asyncio.Event().wait(), SHORT_S if short() else 600.0, "a guest")


async def _host_work(machine: Qemu) -> None:
    def endless(check: Callable[[], None]) -> NoReturn:
        while True:
            check()

    await machine.start()
    waiting()
    await machine.expect(aside(endless), SHORT_S if short() else 600.0, "the end of host work")


def cleanup_that_hangs() -> None:
    """Ended by SIGINT only: a coroutine that cannot be cancelled."""

    async def stubborn() -> None:
        waiting()
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    loop = LoopThread("test")
    loop.run(stubborn())


# --- locks and commands -----------------------------------------------------------------------------


def cache_lock() -> None:
    """Another process holds the lock. For flock(2), another open file is enough."""
    (cache.root() / "locks").mkdir(parents=True)
    with filelock.FileLock(cache.root() / "locks" / "kernels.x.lock", thread_local=False, is_singleton=False):
        waiting()
        cache.obtain("kernels", "x", lambda _folder: None, timeout_s=SHORT_S if short() else 600.0)


def build_lock() -> None:
    """The lock of a slot; see harness/kernel/build/slot.py."""
    cache.root().mkdir(parents=True)
    path = cache.root() / "lock"
    with path.open("w") as theirs, path.open("w") as ours:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        waiting()
        cache.flock(ours, "another build in x", SHORT_S if short() else 600.0)


def host_command() -> None:
    """A command that does not end, and is stopped by SIGSTOP as well."""
    waiting()
    process.run(["sh", "-c", "kill -STOP $$"], timeout_s=SHORT_S if short() else 600.0)


def followed_command() -> None:
    """A build that prints nothing."""
    waiting()
    limit = SHORT_S if short() else 600.0
    env = dict(os.environ)
    process.follow(["sleep", "600"], print, cwd=Path("/"), env=env, on_end=lambda _: None, timeout_s=limit)


def matrix_child() -> None:
    """A ``hugepfn run`` of a matrix that is stopped by SIGSTOP."""
    from harness.campaign import kernels

    if short():
        vars(kernels)["FOLLOW_TIMEOUT_S"] = SHORT_S
    waiting()
    kernels.run_child(["sh", "-c", "kill -STOP $$"], 2, print)


# --- sessions -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _session(stop: bool = True) -> Iterator[SessionClient]:
    """A session's process that never answers, and is stopped by SIGSTOP as well."""
    os.environ["HUGEPFN_RUNTIME_DIR"] = str(cache.root() / "rt")
    argv = [sys.executable, "-c", SESSION, str(HERE.parent), registry.SERVE]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "up\n"
            if stop:
                child.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
            yield SessionClient(About("one", child.pid, "", "", 0.0))
        finally:
            child.kill()


def session_that_is_stopped() -> None:
    """A request to a stopped session."""
    with _session() as client:
        waiting()
        client.call("state")


def session_that_says_nothing() -> None:
    """The session accepts the connection, and does nothing more."""
    with _session(stop=False) as client:
        waiting()
        client.call("state", timeout_s=SHORT_S if short() else 600.0)


def session_stop() -> None:
    """Ended by SIGINT only in the long form. In the short form, the stopped process is told to end and does."""
    with _session() as client:
        waiting()
        client.stop()
        assert registry.held() == []


def session_without_socket() -> None:
    """The session's files are gone. It can still be found by its lock, and ended."""
    with _session(stop=False):
        (registry.root() / "one" / registry.SOCKET).unlink()
        (registry.root() / "one" / "about.json").unlink()
        assert registry.sessions() == []
        (found,) = registry.held()
        waiting()
        SessionClient(found).stop()
        assert registry.held() == []


def session_exec_of_a_stopped_session() -> None:
    """Ctrl-C is meant for the guest's program, but the stopped session cannot pass it on."""
    with _session(stop=False) as client:
        send = wire.send_descriptors

        def then_stop(*args: Any) -> None:
            send(*args)
            os.kill(client.about.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, client.about.pid, os.WSTOPPED | os.WNOWAIT)  # this takes some time on a busy host
            waiting()

        vars(wire)["send_descriptors"] = then_stop
        client.exec(["true"], None, {}, print)


def session_that_starts() -> None:
    """The session's process sends nothing."""
    ours, _theirs = Pipe()
    waiting()
    starting._until_ready(ours, print)


# --- SSH ------------------------------------------------------------------------------------------


def ssh_channel() -> None:
    """The guest does not answer a request on the channel."""
    import paramiko

    from harness.guest import ssh

    if short():
        ssh._CONNECT_TIMEOUT_S = SHORT_S
    ours, theirs = socket.socketpair()
    server = paramiko.Transport(theirs)
    server.add_server_key(paramiko.ECDSAKey.generate())

    class Deaf(paramiko.ServerInterface):  # type: ignore[misc]
        def get_allowed_auths(self, _username: str) -> str:
            return "none"

        def check_auth_none(self, _username: str) -> int:
            return int(paramiko.AUTH_SUCCESSFUL)

        def check_channel_request(self, _kind: str, _number: int) -> int:
            return int(paramiko.OPEN_SUCCEEDED)

        def check_channel_exec_request(self, _channel: object, _command: bytes) -> bool:
            threading.Event().wait()
            return False

    server.start_server(threading.Event(), Deaf())
    transport = paramiko.Transport(ours)
    transport.start_client(timeout=60)
    transport.auth_none("root")
    channel = transport.open_session(timeout=60)
    waiting()
    try:
        with ssh._within(channel):
            channel.exec_command("true")
    except paramiko.SSHException as error:  # as Ssh.run() does
        raise MachineryError(f"cut off: {error}") from error


CASES: dict[str, Callable[[], None]] = {
    "qmp-greeting": lambda: _on_loop("silent", _start_impatiently),
    "qmp-greeting-stopped": lambda: _on_loop("stopped", _start_stopped),
    "qmp-command": lambda: _on_loop("deaf", _execute),
    "qmp-migration": lambda: _on_loop("answers", _migrate),
    "qemu-stderr": lambda: _on_loop("orphan", _start),
    "guest": lambda: _on_loop("answers", _expect),
    "guest-internal-error": lambda: _on_loop("internal-error", _expect),
    "guest-stopped": lambda: _on_loop("answers", _stopped_later),
    "host-work": lambda: _on_loop("answers", _host_work),
    "cleanup": cleanup_that_hangs,
    "cache-lock": cache_lock,
    "build-lock": build_lock,
    "command": host_command,
    "followed-command": followed_command,
    "matrix-child": matrix_child,
    "session-stopped": session_that_is_stopped,
    "session-silent": session_that_says_nothing,
    "session-stop": session_stop,
    "session-stop-no-socket": session_without_socket,
    "session-exec": session_exec_of_a_stopped_session,
    "session-start": session_that_starts,
    "ssh-channel": ssh_channel,
}


def short() -> bool:
    """Whether deadlines are short in this process."""
    return sys.argv[2] == "short"


def main() -> None:
    """Runs one case and prints how it ended."""
    if short():
        client_module._STOP_TIMEOUT_S = SHORT_S
        starting._SILENCE_TIMEOUT_S = SHORT_S
    try:
        CASES[sys.argv[1]]()
        print("ended")
    except HugepfnError as error:
        print(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        print("interrupted")


if __name__ == "__main__":
    main()
