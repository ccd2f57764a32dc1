"""Tests for live machines: start, exec, rerun, shell, ps and stop, as a user types them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from tests.vm.conftest import ROOT, Command, own_qemus

KERNEL = "debian:6.12"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the sessions of this module. All of them are ended at the end."""
    folder = tmp_path_factory.mktemp("rt")
    yield folder
    environment = {**os.environ, "HUGEPFN_RUNTIME_DIR": str(folder)}
    subprocess.run([sys.executable, str(ROOT / "vm.py"), "stop", "--all"], env=environment, check=True, timeout=60)
    assert list(folder.iterdir()) == []


@dataclass
class Live(Command):
    """The command, with the sessions of this module."""

    checkout: Path = ROOT

    def argv(self, *args: str) -> list[str]:
        return [sys.executable, str(self.checkout / "vm.py"), *args]

    def environment(self, **extra: str) -> dict[str, str]:
        return super().environment(HUGEPFN_RUNTIME_DIR=str(self.ram_dir), **extra)

    def ok(self, *args: str, stdin: bytes = b"") -> bytes:
        done = subprocess.run(self.argv(*args), env=self.environment(), input=stdin, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


@pytest.fixture(scope="module")
def live(runtime: Path) -> Live:
    """A session that the tests share."""
    command = Live(f"sessions-{os.getpid()}", runtime)
    assert command.ok("start", "--kernel", KERNEL, "-s", "one") == b"one\n"
    return command


def test_ps_shows_it(live: Live) -> None:
    line = live.ok("ps").decode().splitlines()[1].split()
    assert line[0] == "one"
    assert line[2] == KERNEL
    assert line[3].startswith("6.12.")
    assert line[5] == "runs"


def test_two_sessions_cannot_have_the_same_name(live: Live) -> None:
    done = live("start", "--kernel", KERNEL, "-s", "one")
    assert done.returncode == 2
    assert "there is already a session 'one'" in done.stderr


def test_exec_passes_on_streams_and_status(live: Live) -> None:
    done = live("exec", "-s", "one", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.returncode) == ("out\n", 7)
    assert done.stderr == "err\n"


def test_exec_feeds_standard_input(live: Live) -> None:
    data = os.urandom(2_000_000)
    assert live.ok("exec", "-s", "one", "cat", stdin=data) == data


def test_exec_passes_a_signal_on(live: Live) -> None:
    argv = live.argv("exec", "-s", "one", "sh", "-c", "trap 'echo caught; exit 5' INT; echo ready; sleep 100 & wait")
    with subprocess.Popen(argv, env=live.environment(), stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "caught\n"
        assert child.wait(30) == 5


def _gdb(live: Live, name: str) -> socket.socket:
    """Connect to the gdb stub of a session's machine."""
    gdb = socket.socket(socket.AF_UNIX)
    gdb.settimeout(30)
    gdb.connect(str(live.ram_dir / name / "gdb"))
    return gdb


def _until_it_says_no(live: Live, *command: str) -> None:
    """Wait until a command in the guest exits with 1, because what it looks for is gone."""
    deadline = time.monotonic() + 30
    while (status := live("exec", "-s", "one", *command).returncode) == 0:
        assert time.monotonic() < deadline, f"{command}: what it looks for is still there"
    assert status == 1


def test_the_program_ends_with_the_exec_command(live: Live) -> None:
    argv = live.argv("exec", "-s", "one", "sh", "-c", "echo $$; exec sleep 1000")
    with subprocess.Popen(argv, env=live.environment(), stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        pid = child.stdout.readline().strip()
        child.kill()
    _until_it_says_no(live, "test", "-d", f"/proc/{pid}")


@pytest.mark.parametrize("command", [("exec", "-s", "one", "yes"), ("ssh", "-s", "one", "--", "yes")])
def test_a_reader_that_closes_the_pipe_ends_the_program(live: Live, command: tuple[str, ...]) -> None:
    argv = live.argv(*command)
    with subprocess.Popen(argv, env=live.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"y\n"
        child.stdout.close()
        assert child.wait(60) == 128 + signal.SIGPIPE, "the status must be that of a host program killed by SIGPIPE"
    _until_it_says_no(live, "pidof", "yes")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_reader_that_does_not_read_pauses_the_program(live: Live, number: signal.Signals) -> None:
    """SIGINT is passed to the program. SIGKILL ends the command, and with it the program."""
    counting = "i=0; while dd if=/dev/zero bs=64k count=16 2>/dev/null; do i=$((i+1)); echo $i > /tmp/count; done"
    argv = live.argv("exec", "-s", "one", "sh", "-c", f"rm -f /tmp/count; {counting}")
    with subprocess.Popen(argv, env=live.environment(), stdout=subprocess.PIPE) as child:
        before = -1
        while (count := _number(live, "/tmp/count")) != before or not count:  # a check takes longer than sending 1 MiB
            before = count
        assert count < 20, "the host must not keep more MiB than this, with those on their way"
        child.send_signal(number)
        assert child.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
        _until_it_says_no(live, "pidof", "dd")


def _number(live: Live, path: str) -> int:
    return int(live.ok("exec", "-s", "one", "sh", "-c", f"cat {path} 2>/dev/null || echo 0"))


@pytest.mark.parametrize("command", [("exec", "-s", "one", "yes"), ("ssh", "-s", "one", "--", "yes")])
def test_output_to_a_full_disk_ends_the_program_with_our_own_status(live: Live, command: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            live.argv(*command), env=live.environment(), stdout=full, stderr=subprocess.PIPE, check=False, timeout=60
        )
    assert done.returncode == 3
    assert b"No space left on device" in done.stderr
    _until_it_says_no(live, "pidof", "yes")


def test_a_signal_waits_until_the_machine_runs(live: Live) -> None:
    live.ok("start", "--kernel", KERNEL, "-s", "still")
    argv = live.argv("exec", "-s", "still", "sh", "-c", "echo up; exec sleep 1000")
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=live.environment(), stdout=pipe, stderr=pipe) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == b"up\n"
        live.ok("gdb", "-s", "still")
        said = child.stderr.readline()
        assert said.startswith(b"hugepfn: the machine stands still since "), (
            "a command that waits must report that the machine is stopped"
        )
        child.send_signal(signal.SIGTERM)
        with _gdb(live, "still") as gdb:
            gdb.sendall(b"+$c#63")
            assert child.wait(60) == 128 + signal.SIGTERM
    live.ok("stop", "-s", "still")


def test_a_stopped_machine_is_reported(live: Live) -> None:
    live.ok("start", "--kernel", KERNEL, "-s", "paused")
    assert live.ok("pause", "-s", "paused") == b"paused is paused; `hugepfn resume -s paused` lets it go on\n"
    for command in (("exec", "-s", "paused", "true"), ("ssh", "-s", "paused", "true"), ("maps", "-s", "paused", "1")):
        done = live(*command)
        assert done.returncode == 2
        assert "the machine stands still since " in done.stderr
        assert "`hugepfn pause` stopped it; `hugepfn resume -s paused` lets it go on\n" in done.stderr
    walked = live("walk", "-s", "paused", "1", "400000")
    assert "pte[0]" in walked.stdout, "pause must ask the guest beforehand for what a walk needs"
    assert "the machine stands still since " in walked.stderr
    live.ok("gdb", "-s", "paused")
    assert "no gdb is attached" in live("exec", "-s", "paused", "true").stderr
    with _gdb(live, "paused") as gdb:
        gdb.sendall(b"+$?#3f")
        assert gdb.recv(1)
        assert "gdb has stopped it; `continue` in gdb" in live("exec", "-s", "paused", "true").stderr
        assert live.ok("resume", "-s", "paused") == b"paused runs\n"
        assert live.ok("exec", "-s", "paused", "echo", "on") == b"on\n"
    live.ok("stop", "-s", "paused")


@pytest.mark.parametrize("command", ["exec", "ssh"])
def test_a_command_in_a_stopped_session_is_reported(live: Live, command: str) -> None:
    live.ok("start", "--kernel", KERNEL, "-s", "short")
    argv = live.argv(command, "-s", "short", "sh -c 'echo up; exec sleep 1000'")
    if command == "exec":
        argv[-1:] = ["sh", "-c", "echo up; exec sleep 1000"]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=live.environment(), stdout=pipe, stderr=pipe) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        assert live.ok("stop", "-s", "short") == b"stopped the session short\n"
        _, said = child.communicate(timeout=60)
        assert (child.returncode, said) == (3, b"hugepfn: the session short was stopped\n")


def test_a_large_and_a_too_large_program(live: Live, tmp_path: Path) -> None:
    program = tmp_path / "large"
    program.write_bytes(b"#!/bin/sh\necho large\nexit\n" + bytes(70 << 20))
    program.chmod(0o755)
    assert live.ok("exec", "-s", "one", str(program)) == b"large\n"
    with program.open("ab") as file:
        file.truncate(300 << 20)
    done = live("exec", "-s", "one", str(program))
    assert done.returncode == 2
    assert "has 300 MiB; the guest accepts at most 256 MiB" in done.stderr


def test_a_program_with_the_name_of_a_scenario_is_separate(live: Live, tmp_path: Path) -> None:
    own = tmp_path / "fork"
    own.write_text("#!/bin/sh\necho mine\n")
    own.chmod(0o755)
    assert live.ok("rerun", "-s", "one", "fork", "-l", "pte", "-q")
    assert live.ok("exec", "-s", "one", str(own)) == b"mine\n"
    assert live.ok("rerun", "-s", "one", "fork", "-l", "pte", "-q")


def test_an_abandoned_rerun_ends(live: Live) -> None:
    argv = live.argv("rerun", "-s", "one", "-q")
    with subprocess.Popen(argv, env=live.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        while b": passed" not in child.stdout.readline():
            pass
        child.kill()
    begin = time.monotonic()
    live.ok("maps", "-s", "one", "1")
    assert time.monotonic() - begin < 60, "the rerun was not ended: the whole suite takes longer"


def test_a_vfio_program_without_hugepfn(live: Live, tmp_path: Path) -> None:
    program = tmp_path / "vfio-regions"
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, ROOT / "examples/vfio-regions.c"], check=True)
    said = live.ok("exec", "-s", "one", str(program), "{bdf}").decode()
    assert "BAR 2: 2147483648 bytes, first word 0\n" in said


def test_rerun_uses_the_current_source(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for part in ("harness", "guest_tests"):
        shutil.copytree(ROOT / part, checkout / part)
    shutil.copy(ROOT / "vm.py", checkout)
    runtime = tmp_path / "rt"
    runtime.mkdir()
    copy = Live(f"rerun-{os.getpid()}", runtime, checkout)
    copy.ok("start", "--kernel", KERNEL)
    try:
        first = copy("rerun", "fork", "--level", "pud")
        assert first.returncode == 0, first.stderr
        assert "fork pud: passed" in first.stdout
        source = checkout / "guest_tests/fork.c"
        source.write_text(source.read_text().replace('"child-written"', '"written-by-the-child"'))
        changed = copy("rerun", "fork", "--level", "pud")
        assert changed.returncode == 1
        assert "ended before checkpoint 'child-written'" in changed.stdout
    finally:
        copy.ok("stop")


def test_rerun_of_a_users_test(live: Live, tmp_path: Path, program: Callable[[str, str], Path]) -> None:
    program("own", '\tktap_plan(1);\n\tcheckpoint("here");\n\tktap_ok(true, "was here");')
    test = tmp_path / "test_own.py"
    test.write_text(
        "def test_own(vm):\n    with vm.run('own') as guest:\n        assert 'parent' in guest.until('here')\n"
    )
    assert "own: passed" in live.ok("rerun", str(test)).decode()
    test.write_text(test.read_text().replace("'here'", "'there'"))
    changed = live("rerun", str(test))
    assert changed.returncode == 1
    assert "ended before checkpoint 'there'" in changed.stdout


def test_rerun_of_an_unknown_test(live: Live) -> None:
    done = live("rerun", "nonesuch")
    assert done.returncode == 2
    assert "no scenario 'nonesuch'" in done.stderr


def test_rerun_skips_tests_for_other_machines(live: Live) -> None:
    done = live("rerun", "race_fault", "-q")
    assert done.returncode == 0
    assert "the live machine has 1 vCPU, this test wants 2" in done.stdout


def test_walk_shows_every_level_of_pid_1(live: Live) -> None:
    lines = live.ok("walk", "1", "400000").decode().splitlines()
    assert lines[0].startswith("process 1 (init)  root 0x")
    assert [line.split("[")[0].strip() for line in lines[2:7]] == ["pgd", "p4d", "pud", "pmd", "pte"]
    assert lines[7].startswith("  4K page, paddr 0x")
    assert "pte x" in live.ok("walk", "-s", "one", "1", "0x400000-0x4c0000").decode()
    lines = live.ok("walk", "--iommu", "0000:00:05.0", "40000000").decode().splitlines()
    assert re.fullmatch(r"device 0000:00:05\.0  root 0x[0-9a-f]+, 3 levels", lines[0])
    assert [line.split()[0] for line in lines[1:5]] == ["root[0]", "context[40]", "0x0000000040000000", "pud[1]"]


def test_maps_counts_the_leaves_of_every_area(live: Live) -> None:
    said = live.ok("maps", "1").decode()
    (text,) = (line.split() for line in said.splitlines() if "r-xp" in line and line.endswith("/init"))
    start, end = (int(edge, 16) for edge in text[0].split("-"))
    assert 0 < int(text[2]) <= (end - start) >> 12, "the number of pte leaves"
    assert text[3:5] == ["-", "-"], "no pmd or pud leaves"


def test_watch_marks_what_changes(live: Live) -> None:
    argv = live.argv(
        "exec", "-s", "one", "sh", "-c", "echo $$; read line; x=$(yes | head -c 3000000); echo done; read line"
    )
    with subprocess.Popen(argv, env=live.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        pid = child.stdout.readline().decode().strip()
        watch = live.argv("maps", pid, "--watch", "--every", "0.2")
        terminal = live.environment(TERM="xterm-256color")
        watching = pexpect.spawn(*_argv(watch), encoding="utf-8", timeout=60, env=terminal, dimensions=(60, 200))
        watching.expect(r"\[stack\]")
        child.stdin.write(b"\n")
        child.stdin.flush()
        watching.expect(r"\d\x1b\[1;32m \(\+\d+\)")  # the number of new leaves since the last look, in green
        watching.sendintr()
        watching.expect(pexpect.EOF)
        child.stdin.close()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("walk", "1"), "missing argument 'VADDR[-VADDR]' (see `hugepfn walk --help`)"),
        (("walk", "x", "0"), "invalid value for 'PID': 'x' is not a process; expected a number"),
        (("walk", "1:2", "0"), "invalid value for 'PID': '1:2' is not a process; expected a number"),
        (("walk", "--kvm", "1:", "0"), "invalid value for 'PID': '1:' is not a process; expected a number, or PID:FD"),
        (("walk", "--kvm", "--iommu", "1", "0"), "--kvm and --iommu are different tables"),
        (("walk", "--kvm", "1", "0"), "neither kvm_amd nor kvm_intel is loaded; start the session with --nested"),
        (("walk", "--iommu", "5", "0"), "'5' is not the address of a PCI device"),
        (("walk", "1", "zz"), "'zz' is not an address; expected 0x7f0000000000"),
        (("maps", "99999"), "no process 99999 in the guest"),
        (("maps", "2"), "kernel thread"),
        (("maps", "-s", "other", "1"), "there is no session 'other'; expected one of: one"),
    ],
)
def test_wrong_arguments_of_walk_and_maps_are_one_line(live: Live, args: tuple[str, ...], words: str) -> None:
    done = live(*args)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_gdb_finds_the_machine_stopped(live: Live) -> None:
    live.ok("start", "--kernel", KERNEL, "-s", "four")
    assert live.ok("gdb", "-s", "four").decode().endswith(f"target remote {live.ram_dir}/four/gdb'\n")
    with _gdb(live, "four") as gdb:
        gdb.sendall(b"+$?#3f")
        said = b""
        while b"$T05" not in said:  # stopped by SIGTRAP
            said += gdb.recv(1000)
        gdb.sendall(b"+$c#63")
        assert live.ok("exec", "-s", "four", "echo", "on") == b"on\n"
    live.ok("stop", "-s", "four")


def test_the_kernels_log(live: Live) -> None:
    assert b"Linux version 6.12." in live.ok("log")


@contextlib.contextmanager
def _shell(live: Live, *args: str) -> Iterator[pexpect.spawn]:
    """A terminal at a shell in the guest. After the block it is left by Ctrl-], unless it has ended."""
    program, *argv = live.argv("shell", *args)
    shell = pexpect.spawn(program, argv, encoding="utf-8", timeout=60, env=live.environment(), dimensions=(33, 99))
    try:
        yield shell
        if shell.isalive():
            shell.send("\x1d")
        shell.expect(pexpect.EOF)
        shell.close()
        assert shell.exitstatus == 0
    finally:
        shell.close(force=True)


def test_a_shell_knows_the_terminals_size_and_takes_ctrl_c(live: Live) -> None:
    with _shell(live, "-s", "one") as shell:
        shell.expect("guest# ")
        shell.sendline("stty size")
        shell.expect("33 99")
        shell.setwinsize(44, 111)
        shell.sendline("sh -c 'echo $((40 + 2))up; sleep 1000'")
        shell.expect("42up")
        shell.sendintr()
        shell.expect("guest# ")
        shell.sendline("stty size; echo $?")
        shell.expect("44 111\r\n0")
        shell.sendline("fork --level=pmd | head -1; echo $VFIO_BDF")
        shell.expect("KTAP version 1\r\n0000:00:05.0")
    assert live.ok("ps").decode().count("one ") == 1, "the session must continue to run"


def test_a_shell_can_be_left_and_entered_again_and_ends_by_exit(live: Live) -> None:
    with _shell(live, "-s", "one") as shell:
        shell.expect("guest# ")
        shell.sendline("variable=kept")
        shell.expect("guest# ")
        with pexpect.spawn(*_argv(live.argv("shell", "-s", "one")), encoding="utf-8", env=live.environment()) as other:
            other.expect("this session's shell is in use", timeout=60)
            other.expect(pexpect.EOF, timeout=60)
    with _shell(live, "-s", "one") as again:
        again.sendline("echo $variable")
        again.expect("\r\nkept\r\n")
        again.sendline("exit")
        again.expect(pexpect.EOF)


def _argv(words: list[str]) -> tuple[str, list[str]]:
    return words[0], words[1:]


def test_a_fresh_shell_is_a_session_and_ends_with_it(live: Live) -> None:
    with _shell(live, "--kernel", KERNEL) as shell:
        shell.expect("guest# ")
        names = [about.split()[0] for about in live.ok("ps").decode().splitlines()[1:]]
        assert sorted(names) == ["debian-6.12", "one"]
        assert "fork pte: passed" in live("rerun", "-s", "debian-6.12", "fork", "-l", "pte", "-q").stdout
    assert [line.split()[0] for line in live.ok("ps").decode().splitlines()[1:]] == ["one"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_session_that_is_killed_leaves_nothing(live: Live, runtime: Path, number: signal.Signals) -> None:
    live.ok("start", "--kernel", KERNEL, "-s", "two")
    (pid,) = (int(line.split()[1]) for line in live.ok("ps").decode().splitlines() if line.startswith("two "))
    qemus = own_qemus(live.marker)
    assert len(qemus) == 2
    process = os.pidfd_open(pid)
    os.kill(pid, number)
    _gone(process)
    assert "two" not in live.ok("ps").decode()
    assert sorted(path.name for path in runtime.iterdir()) == ["one", "one.lock"]
    assert len(own_qemus(live.marker)) == 1


def _gone(pidfd: int) -> None:
    import select

    assert select.select([pidfd], [], [], 30)[0]
    os.close(pidfd)


def test_a_dead_kernel_is_reported(live: Live) -> None:
    live.ok("start", "--kernel", KERNEL, "-s", "three")
    done = live("exec", "-s", "three", "sh", "-c", "echo c > /proc/sysrq-trigger")
    assert done.returncode == 1
    assert "the kernel died" in done.stderr
    assert "the kernel died" in next(line for line in live.ok("ps").decode().splitlines() if line.startswith("three "))
    assert "sysrq triggered crash" in live.ok("log", "-s", "three").decode().lower()
    live.ok("stop", "-s", "three")


def test_without_a_session(tmp_path: Path) -> None:
    command = Live("nobody", tmp_path)
    for args in (("ssh",), ("rerun", "fork"), ("log",), ("stop",), ("exec", "-s", "x", "true")):
        done = command(*args)
        assert done.returncode == 2, args
        assert "; start one with `hugepfn start`" in done.stderr
