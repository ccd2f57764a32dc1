"""Tests for SSH into a guest: commands, their streams, their exit status, and authentication."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paramiko
import pytest

from harness.errors import DeadlineError, KernelDied, MachineryError
from harness.guest.job import Stream
from harness.guest.ssh import Ssh
from harness.machine.vm import VM

POOL_BYTES = 1 << 20


@pytest.fixture(scope="module")
def machine() -> Iterator[VM]:
    with VM("debian:6.12") as vm:
        yield vm


@pytest.fixture(scope="module")
def ssh(machine: VM) -> Iterator[Ssh]:
    with machine.ssh() as connection:
        yield connection


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.long)])
def test_commands_with_random_output_and_status(ssh: Ssh, count: int) -> None:
    pool = os.urandom(POOL_BYTES)
    ssh.put(pool, "/tmp/pool")
    dice = random.Random(count)
    for number in range(count):
        size, status = dice.randrange(POOL_BYTES + 1), dice.randrange(256)
        done = ssh.run(f"head -c {size} /tmp/pool; echo {number} >&2; exit {status}")
        assert done.stdout == pool[:size]
        assert done.stderr == f"{number}\n".encode()
        assert (done.exit.status, done.exit.signal) == (status, None)


def test_arguments_are_not_interpreted_but_a_command_line_is(ssh: Ssh) -> None:
    assert ssh.run(["echo", "$HOME", "a  b"]).stdout == b"$HOME a  b\n"
    assert ssh.run("echo $((6 * 7))").stdout == b"42\n"


def test_a_signal_is_reported(ssh: Ssh) -> None:
    assert ssh.run(["sh", "-c", "kill -TERM $$"]).exit.signal == signal.SIGTERM
    assert ssh.run(["sh", "-c", "kill -SEGV $$"]).exit.signal == signal.SIGSEGV


def test_output_arrives_while_the_command_runs(ssh: Ssh) -> None:
    """The command ends only when a file exists, which the test creates after it has read the first output."""
    seen: list[tuple[Stream, bytes]] = []

    def sink(stream: Stream, data: bytes) -> None:
        if not seen:
            ssh.put(b"", "/tmp/seen")
        seen.append((stream, data))

    done = ssh.run("echo first; until test -e /tmp/seen; do :; done; echo second", sink=sink, timeout_s=60)
    assert done.ok
    assert b"".join(data for _, data in seen) == b"first\nsecond\n"
    assert done.stdout == b""


def test_files_are_put_and_read_back(ssh: Ssh, machine: VM, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    file = tmp_path / "file"
    file.write_bytes(data)
    ssh.put(file, "/tmp/it's here", 0o640)
    assert ssh.get("/tmp/it's here") == data
    assert machine.get("/tmp/it's here") == data
    assert ssh.run(["stat", "-c", "%a", "/tmp/it's here"]).stdout == b"640\n"
    with pytest.raises(MachineryError, match="nonesuch"):
        ssh.get("/nonesuch")


def test_standard_input(ssh: Ssh) -> None:
    data = os.urandom(500_000)
    assert ssh.run("cat", stdin=data).stdout == data
    assert ssh.run("head -c 3", stdin=data).stdout == data[:3], "input that the program does not read must not block"


def test_a_command_that_does_not_end(ssh: Ssh) -> None:
    with pytest.raises(DeadlineError, match="'sleep 1000' did not end within 1 s"):
        ssh.run("sleep 1000", timeout_s=1)
    assert ssh.run("true").ok, "the connection must still work"


def test_guest_programs_and_the_device_are_known(ssh: Ssh, machine: VM) -> None:
    machine.programs.push("fork")
    done = ssh.run(["fork", "--level=pmd"], timeout_s=60)
    assert done.ok, done
    assert done.stdout.startswith(b"KTAP version 1")
    assert ssh.run("echo $VFIO_BDF").stdout.decode().strip() == machine.ready["vfio_bdf"]


def test_the_machine_may_be_stopped_meanwhile(ssh: Ssh, machine: VM) -> None:
    """A command continues when the machine runs again."""
    data = os.urandom(2_000_000)
    received = bytearray()
    more = threading.Event()

    def sink(_stream: Stream, chunk: bytes) -> None:
        received.extend(chunk)
        more.set()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ssh.run, "cat", stdin=data, sink=sink)
        stops = 0
        while len(received) < len(data) // 2:
            assert more.wait(60)
            more.clear()
            with machine.paused():
                stops += machine.qemu.stopped
        assert running.result().ok
    assert bytes(received) == data
    assert stops > 1


def test_another_key_is_refused(machine: VM) -> None:
    stranger = io.StringIO()
    paramiko.ECDSAKey.generate(bits=256).write_private_key(stranger)
    with pytest.raises(MachineryError, match="Authentication failed"):
        Ssh(dataclasses.replace(machine.ssh_address(), client_key=stranger.getvalue()))


def test_a_password_is_refused(machine: VM) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(machine.ssh_address().socket))
        transport = paramiko.Transport(connection)
        transport.start_client(timeout=60)
        with pytest.raises(paramiko.BadAuthenticationType):
            transport.auth_password("root", "")
        transport.close()


def test_another_server_key_is_refused(machine: VM) -> None:
    other = paramiko.ECDSAKey.generate(bits=256)
    address = dataclasses.replace(machine.ssh_address(), host_key=f"{other.get_name()} {other.get_base64()}")
    with pytest.raises(MachineryError, match="cannot connect to the guest's SSH server"):
        Ssh(address)


def test_the_connection_ends_with_the_machine() -> None:
    with VM("debian:6.12") as vm:
        connection = vm.ssh()
        assert connection.run("true").ok
    with pytest.raises(MachineryError):
        connection.run("true")
    connection.close()


def test_a_kernel_that_dies_ends_the_command() -> None:
    with VM("debian:6.12") as vm, vm.ssh() as connection:
        with pytest.raises(MachineryError, match="the connection broke"):
            connection.run("echo c > /proc/sysrq-trigger", timeout_s=60)
        with pytest.raises(KernelDied):
            vm.get("/proc/version")


def test_without_dropbear_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with VM("debian:6.12") as vm, monkeypatch.context() as patch:
        patch.setattr("harness.host.process.os.access", lambda *_args, **_kwargs: False)
        with pytest.raises(MachineryError, match="dropbear-bin"):
            vm.ssh_address()
