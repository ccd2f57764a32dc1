"""Tests for docs/security.md with a running machine: who cannot get in, and what a guest cannot send out."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.campaign.kernels import RunOptions
from harness.campaign.matrix import page_of
from harness.campaign.report import PageRequest
from harness.errors import MachineryError
from harness.guest.initramfs import build_initramfs
from harness.guest.sshd import CONNECTIONS_MAX
from harness.kernel import Kernel
from harness.machine import kept
from harness.machine.vm import VM
from harness.qemu.binary import find_qemu
from harness.qemu.hostroot import VIEW
from harness.qemu.process import Qemu
from harness.qemu.ram import SharedRam
from harness.qemu.sandbox import sandbox_args
from harness.qemu.spec import MachineSpec, Root
from harness.verdict import Run
from harness.verdict.table import Column, Table
from tests.test_printable import unprintable

from .conftest import ROOT, Command
from .test_sessions import Live

KERNEL = "debian:6.12"
NOBODY = 65534
NOTES = Path("/proc/net")


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """A session with SSH and gdb. Other users can reach its folder, which pytest's own folders would prevent."""
    with tempfile.TemporaryDirectory(prefix="hugepfn-test-") as folder:
        Path(folder).chmod(0o755)
        command = Live(f"security-{os.getpid()}", Path(folder) / "sessions")
        command.ram_dir.mkdir(mode=0o755)
        command.ok("start", "--kernel", KERNEL, "-s", "one")
        command.ok("ssh", "-s", "one", "--", "true")
        command.ok("gdb", "-s", "one")
        yield command
        command.ok("stop", "-s", "one")


def processes_of(marker: str) -> list[int]:
    """Return every process with the marker in its environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def sockets_of(pid: int) -> set[str]:
    """Return the inodes of the open sockets of a process."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found |= set(re.findall(r"^socket:\[(\d+)\]$", str(entry.readlink())))
        except OSError:
            continue
    return found


def test_no_process_of_a_session_has_a_socket_of_the_network(live: Live) -> None:
    processes = processes_of(live.marker)
    ours = {inode for pid in processes for inode in sockets_of(pid)}
    assert len(processes) >= 2, "the session and its QEMU must be found"
    assert len(ours) > 5, "their Unix sockets must be found"
    assert ours & network_sockets() == set()


def network_sockets() -> set[str]:
    """Return the inodes of all network sockets of this host: the tenth column, for packet sockets the ninth."""
    tables = [NOTES / name for name in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet")]
    lines = [line for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return {word for line in lines for word in line.split()[8:10]}


def test_no_worker_of_pytest_xdist_has_a_network_socket(tmp_path: Path) -> None:
    """execnet talks to its workers through pipes."""
    test = tmp_path / "test_worker.py"
    test.write_text(
        "import os, sys\nfrom tests.vm.test_security import network_sockets, sockets_of\n"
        "def test_worker(worker_id):\n    assert worker_id == 'gw0'\n"
        "    assert sockets_of(os.getpid()) & network_sockets() == set()\n"
    )
    argv = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", str(test), "--rootdir", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert "1 passed" in done.stdout, done.stdout


def test_every_socket_that_listens_has_a_name_in_the_sessions_own_folder(live: Live) -> None:
    ours = {inode for pid in processes_of(live.marker) for inode in sockets_of(pid)}
    rows = [line.split() for line in (NOTES / "unix").read_text().splitlines()[1:]]
    listening = {row[7] if len(row) > 7 else "no name" for row in rows if row[6] in ours and int(row[3], 16) & 0x10000}
    assert {Path(name).parent for name in listening} == {live.ram_dir / "one"}
    assert {Path(name).name for name in listening} == {"socket", "ssh", "gdb"}


def as_nobody(work: Callable[[], int]) -> int:
    """Return the result of ``work`` in a process of another user."""
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os._exit(work())
        finally:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
@pytest.mark.parametrize("name", ["socket", "ssh", "gdb"])
def test_another_user_cannot_connect(live: Live, name: str) -> None:
    path = live.ram_dir / "one" / name

    def connect() -> int:
        with socket.socket(socket.AF_UNIX) as own:
            return own.connect_ex(str(path))

    assert as_nobody(lambda: 0 if path.parent.parent.is_dir() else 1) == 0, (
        "another user must be able to reach the session's folder"
    )
    assert as_nobody(connect) == 13, "connect() must fail with EACCES"
    assert connect() == 0, "the session's own user must be able to connect"


def test_a_client_without_the_key_is_disconnected(live: Live) -> None:
    """No pickle is read from such a client, and a silent client blocks nobody."""
    from multiprocessing import AuthenticationError
    from multiprocessing.connection import Client

    address = str(live.ram_dir / "one" / "socket")
    with Client(address, "AF_UNIX") as silent:
        with pytest.raises((AuthenticationError, EOFError)):
            Client(address, "AF_UNIX", authkey=bytes(32))
        assert b"one" in live.ok("ps")
        assert b" stands still" in live.ok("ps")
        assert not silent.closed


def test_many_connections_leave_jobs_for_others() -> None:
    """Each SSH connection is a job of the agent, which has at most 16 jobs."""
    with VM(KERNEL) as vm:
        address = vm.ssh_address()
        strangers = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        heads = []
        for one in strangers:
            one.settimeout(60)
            one.connect(str(address.socket))
            heads.append(one.recv(300))
        assert sum(head.startswith(b"SSH-2.0") for head in heads) == CONNECTIONS_MAX
        assert heads[-1].startswith(b"hugepfn: 8 SSH connections are already open")
        assert vm.exec(["echo", "on"]).stdout == b"on\n"
        with pytest.raises(MachineryError, match="cannot connect to the guest's SSH server"):
            vm.ssh()
        for one in strangers:
            one.close()


def test_a_machine_without_a_session_has_and_removes_its_own_folder() -> None:
    with VM(KERNEL) as vm:
        ssh, gdb = vm.ssh_address().socket, vm.gdb().socket
        assert ssh.parent == gdb.parent
        assert ssh.parent.stat().st_mode & 0o777 == 0o700
    assert not ssh.parent.exists()


def test_openssh_connects_with_the_printed_command(tmp_path: Path) -> None:
    """The name has blanks and a percent sign, which is special in ssh_config."""
    runtime = tmp_path / "50% of, it"
    runtime.mkdir()
    own = Live(f"openssh-{os.getpid()}", runtime)
    own.ok("start", "--kernel", KERNEL, "-s", "two")
    try:
        line = own.ok("ssh", "--address").decode().strip()
        done = subprocess.run(f"{line} 'echo $((6 * 7))'", shell=True, capture_output=True, timeout=120, check=False)
        assert (done.stdout, done.returncode) == (b"42\n", 0), done.stderr
    finally:
        own.ok("stop", "-s", "two")


def test_the_qemu_that_serves_9p_uses_the_read_only_view() -> None:
    """Stock cloud kernels have no 9P, so this one does not boot. Only its QEMU is checked."""

    async def look() -> tuple[list[str], list[str]]:
        spec = dataclasses.replace(MachineSpec(image.image, initramfs), root=Root.HOST_9P, append=("panic=0",))
        qemu = Qemu(spec, find_qemu(), SharedRam(spec.memory_mib))
        try:
            await qemu.start()
            view = Path(f"/proc/{qemu.pid}/root{VIEW}")
            running = [path.name for one in ("proc", "run", "sys", "dev") for path in (view / one).iterdir()]
            return running, Path(f"/proc/{qemu.pid}/cmdline").read_text().split("\0")
        finally:
            await qemu.quit()
            qemu.ram.close()

    image = Kernel.debian("6.12").resolve()
    initramfs = build_initramfs(image)
    running, argv = asyncio.run(look())
    assert running == []
    assert f"path={VIEW}," in next(word for word in argv if word.startswith("local,"))


HOSTILE_PROGRAM = r"""	const char evil[] = "<4>kernel\x1b[31m\x1b]0;title\x07\xc2\x9b" "31m\xe2\x80\xae" "evil\n";
	int kmsg = open("/dev/kmsg", O_WRONLY);
	char *page = mmap(NULL, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	hp_write(page, 1);
	ktap_plan(1);
	if (write(kmsg, evil, sizeof(evil) - 1) < 0)
		return 1;
	dprintf(3, "mapping m\x1b[31m\xe2\x80\xaex %d %lx 1000 3 ram 0\n", getpid(), (unsigned long)page);
	checkpoint("here");
	printf("# value v=\x1b[2J\x07\n# [bold]not[/bold] [/nothing]\n");
	printf("not ok 1 - \x1b]0;title\x07red\x1b[31m\b\xc2\x9b[bold]\xe2\x80\xae\n");
	fflush(stdout);
	_exit(1);"""


@pytest.fixture
def hostile(tmp_path: Path, program: Callable[[str, str], Path]) -> Path:
    """A test whose guest program prints every kind of control sequence."""
    source = program("own", HOSTILE_PROGRAM)
    source.write_text("#include <fcntl.h>\n#include <stdio.h>\n" + source.read_text())
    test = tmp_path / "test_own.py"
    test.write_text("def test_own(vm):\n    with vm.run('own') as guest:\n        guest.until('here')\n")
    return test


def strings(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value, including names."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from (name, *strings(one))
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)
    elif isinstance(value, str):
        yield value


def test_output_of_a_guest_is_never_shown_raw(hugepfn: Command, hostile: Path, tmp_path: Path) -> None:
    results, junit = tmp_path / "out.json", tmp_path / "out.xml"
    argv = [sys.executable, "-m", "pytest", f"--hugepfn-kernel={KERNEL}", "--hugepfn-keep-vm", str(hostile)]
    argv += [f"--hugepfn-json={results}", f"--junitxml={junit}"]
    done = subprocess.run(argv, env=hugepfn.environment(), cwd=tmp_path, capture_output=True, text=True, check=False)
    said = {"pytest": done.stdout + done.stderr, "kept": hugepfn("kept").stdout, "junit": junit.read_text()}
    hugepfn("kept", "--rm", "own")
    assert done.returncode == 1, said["pytest"]
    assert r"red\x1b[31m\x08\x9b[bold]\u202e" in said["pytest"], "the text must be shown with codes"
    assert "own" in said["kept"]
    data = json.loads(results.read_text())
    page = page_of(PageRequest(), Table.of([Column(KERNEL, (Run.from_json(data),))]), {}, 1, RunOptions())
    said |= {"json": "\n".join(strings(data)), "page": page}
    assert {name: unprintable(text) for name, text in said.items()} == {name: [] for name in said}
    assert r"m\x1b[31m\u202ex" in said["json"]
    assert "\\u001b" not in page


def test_a_session_shows_no_raw_output_except_streams_of_programs(live: Live, hostile: Path) -> None:
    live.ok("start", "--kernel", KERNEL, "-s", "evil")
    try:
        rerun = live("rerun", "-s", "evil", str(hostile))
        log = live("log", "-s", "evil").stdout
        assert r"kernel\x1b[31m\x1b]0;title\x07\x9b31m\u202eevil" in log
        assert rerun.returncode == 1
        assert [unprintable(text) for text in (log, rerun.stdout, rerun.stderr)] == [[], [], []]
        raw = "printf '\\033[1m'"
        assert live.ok("exec", "-s", "evil", "sh", "-c", raw) == b"\x1b[1m"
        assert live.ok("ssh", "-s", "evil", "--", raw) == b"\x1b[1m"
        live("exec", "-s", "evil", "sh", "-c", "printf '<0>[/x] \\033[31m' > /dev/kmsg; echo c > /proc/sysrq-trigger")
        assert unprintable(live.ok("ps").decode()) == []
    finally:
        live.ok("stop", "-s", "evil")


def test_qemu_runs_in_its_sandbox() -> None:
    """Every thread, also of a clone and of a boot; and nothing that a machine does needs what it denies."""
    binary = find_qemu()
    if not sandbox_args(binary):
        pytest.skip("this QEMU has no sandbox")
    for clone in (True, False):
        with VM(KERNEL, clone=clone) as vm:
            states = [(task / "status").read_text() for task in Path(f"/proc/{vm.qemu.pid}/task").iterdir()]
            assert all(re.search(r"^Seccomp:\t2$", state, re.MULTILINE) for state in states), "SECCOMP_MODE_FILTER"
            with vm.run("fork", "--level=pte") as guest:
                assert guest.result.passed
            vm.keep("sandboxed", "a test")
            kept.remove("sandboxed")
            assert vm.exec(["true"]).exit.ok, "it goes on after it was saved"


def test_a_qemu_without_a_sandbox_works_as_well(tmp_path: Path) -> None:
    wrapper = tmp_path / "qemu"
    refuses = "echo 'seccomp is not compiled into this build' >&2; exit 1"
    wrapper.write_text(f'#!/bin/sh\ncase "$*" in *-sandbox*) {refuses};; esac\nexec {find_qemu().path} "$@"\n')
    wrapper.chmod(0o755)
    with VM(KERNEL, qemu=str(wrapper), clone=False) as vm:
        assert "-sandbox" not in vm.qemu.argv
        with vm.run("fork", "--level=pte") as guest:
            assert guest.result.passed
