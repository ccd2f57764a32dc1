"""Checks that wrong input and failures end with one clear line and the right exit status, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import (
    ClaimFailed,
    CompileError,
    DeadlineError,
    GuestProgramError,
    KernelDied,
    MachineryError,
    ProtocolError,
    UsageError,
)
from harness.kernel import Kernel, KernelImage
from harness.machine.vm import VM

from .conftest import ROOT, Command, own_qemus


@pytest.fixture(scope="module")
def image() -> KernelImage:
    return Kernel.debian("6.1").resolve()


def _one_line(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stdout + done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("hugepfn: ")
    for words in expected:
        assert words in lines[0]


def test_a_file_that_is_not_a_kernel(hugepfn: Command) -> None:
    done = hugepfn("run", "--kernel", "/etc/passwd")
    assert done.returncode == 2
    _one_line(done, "/etc/passwd", "expected an x86-64 bzImage or vmlinux")


def test_a_missing_path(hugepfn: Command) -> None:
    done = hugepfn("run", "--kernel", "./no-such-kernel")
    assert done.returncode == 2
    _one_line(done, "no such file")


def test_an_unknown_debian_version(hugepfn: Command) -> None:
    done = hugepfn("run", "--kernel", "debian:5.99")
    assert done.returncode == 2
    _one_line(done, "5.99", "6.12")


def test_no_network(hugepfn: Command, tmp_path: Path) -> None:
    apt_config = tmp_path / "apt.conf"
    apt_config.write_text('Acquire::http::Proxy "http://127.0.0.1:9";\nAcquire::https::Proxy "http://127.0.0.1:9";\n')
    cache = tmp_path / "cache"
    done = hugepfn("run", "--kernel", "debian:6.12", APT_CONFIG=str(apt_config), HUGEPFN_CACHE_DIR=str(cache))
    assert done.returncode == 3
    _one_line(done, "cached")


@pytest.mark.parametrize("cpu", ["NOSUCH", "max,nosuch=on"])
def test_a_cpu_that_qemu_does_not_have(hugepfn: Command, cpu: str) -> None:
    done = hugepfn("run", "fork", "--kernel", "debian:6.1", "--cpu", cpu)
    assert done.returncode == 2
    _one_line(done, f"--cpu {cpu}", "nosuch" if "," in cpu else "NOSUCH")


def test_qemu_missing(hugepfn: Command) -> None:
    done = hugepfn("run", "fork", "--kernel", "debian:6.1", HUGEPFN_QEMU="no-such-qemu")
    assert done.returncode == 2
    _one_line(done, "no no-such-qemu", "hugepfn doctor")


def test_qemu_too_old(hugepfn: Command, tmp_path: Path) -> None:
    old = tmp_path / "qemu-old"
    old.write_text("#!/bin/sh\necho 'QEMU emulator version 5.2.0'\n")
    old.chmod(0o755)
    done = hugepfn("run", "fork", "--kernel", "debian:6.1", HUGEPFN_QEMU=str(old))
    assert done.returncode == 2
    _one_line(done, "5.2.0", "expected 7.2 or newer")


def test_no_room_for_guest_ram(hugepfn: Command) -> None:
    # A real file system without room: sysfs, which every host has.
    done = hugepfn("run", "fork", "--kernel", "debian:6.1", "--ram-dir", "/sys")
    assert done.returncode == 3
    _one_line(done, "no space for guest RAM", "--ram-dir")


def test_a_kernel_that_panics_at_boot(hugepfn: Command) -> None:
    done = hugepfn(
        "run", "fork", "--kernel", "debian:6.1", "--level", "pte", "--append", "init=/nowhere rdinit=/nowhere"
    )
    assert done.returncode == 1
    assert "does not boot" in done.stdout
    assert "Kernel panic - not syncing" in done.stdout


def test_ctrl_c_while_booting(hugepfn: Command) -> None:
    _interrupted(hugepfn, until=lambda _pid: bool(own_qemus(hugepfn.marker)))


def test_ctrl_c_while_our_modules_are_imported(hugepfn: Command) -> None:
    """A library's compiled module is mapped while ours are imported; the start of Python itself is not covered."""
    _interrupted(hugepfn, until=lambda pid: "/site-packages/" in Path(f"/proc/{pid}/maps").read_text())


def _interrupted(hugepfn: Command, until: Callable[[int], bool]) -> None:
    """Start a run, wait until a condition holds, interrupt it as a terminal does, and check how it ends."""
    with subprocess.Popen(
        hugepfn.argv("run", "fork", "--kernel", "debian:6.1"),
        env=hugepfn.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not until(process.pid):
            assert time.monotonic() < deadline
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err
    assert "interrupted" in out + err


def test_qemu_dies_with_its_parent(hugepfn: Command) -> None:
    with subprocess.Popen(
        hugepfn.argv("run", "fork", "--kernel", "debian:6.1"), env=hugepfn.environment(), stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while not (qemus := own_qemus(hugepfn.marker)):
            assert time.monotonic() < deadline
        watched = os.pidfd_open(qemus[0])
        process.kill()
    with os.fdopen(watched) as ended:
        import select

        assert select.select([ended], [], [], 30)[0], "QEMU outlived its parent"


def test_two_runs_at_once(hugepfn: Command) -> None:
    argv = hugepfn.argv("run", "fork", "--kernel", "debian:6.1", "--level", "pte")
    runs = [subprocess.Popen(argv, env=hugepfn.environment(), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        out, _ = run.communicate(timeout=300)
        assert run.returncode == 0, out


def test_a_program_that_does_not_compile(image: KernelImage, program: Callable[[str, str], Path]) -> None:
    with VM(image) as vm, pytest.raises(CompileError, match=r"bad\.c does not compile: .*undeclared"):
        vm.run(program("bad", "\tundeclared = 1;"))


def test_a_program_that_crashes(image: KernelImage, program: Callable[[str, str], Path]) -> None:
    source = program("crash", '\tktap_plan(1);\n\tcheckpoint("before");\n\traise(SIGSEGV);')
    with VM(image) as vm:
        with (
            pytest.raises(
                GuestProgramError, match=r"ended before checkpoint 'after' \(killed by SIGSEGV\); it reached: 'before'"
            ),
            vm.run(source) as guest,
        ):
            guest.until("after")
        with pytest.raises(GuestProgramError, match="killed by SIGSEGV"), vm.run(source):
            pass
        with vm.run("fork") as guest:  # and the machine can still be used
            assert guest.result.passed


def test_a_program_that_never_reaches_its_checkpoint(image: KernelImage, program: Callable[[str, str], Path]) -> None:
    source = program("stuck", '\tktap_plan(1);\n\tcheckpoint("first");\n\tpause();')
    with VM(image) as vm:
        expected = r"waiting for checkpoint 'second' of stuck: nothing within [\d.]+ s; .*last at checkpoint 'first'"
        with pytest.raises(DeadlineError, match=expected), vm.run(source, timeout_s=1) as guest:
            guest.until("second")
        with vm.run("fork") as guest:
            assert guest.result.passed


def test_a_program_without_a_plan_is_never_a_pass(image: KernelImage, program: Callable[[str, str], Path]) -> None:
    with VM(image) as vm, pytest.raises(GuestProgramError, match="silent"), vm.run(program("silent", "\treturn 0;")):
        pass


def test_a_kernel_that_dies_under_a_program(image: KernelImage, program: Callable[[str, str], Path]) -> None:
    body = '\tktap_plan(1);\n\tcheckpoint("alive");\n\tint fd = open("/proc/sysrq-trigger", 1);\n\twrite(fd, "c", 1);'
    source = program("panic", body)
    source.write_text(
        "#include <fcntl.h>\n"
        + source.read_text().replace("\twrite(", "\tif (write(").replace('"c", 1);', '"c", 1) < 0)\n\t\treturn 1;')
    )
    with VM(image) as vm:
        with pytest.raises(KernelDied, match=r"the kernel died: .*after checkpoint alive"), vm.run(source) as guest:
            guest.until("never")
        assert "sysrq" in vm.kernel_log


def test_a_child_that_crashes_is_named(image: KernelImage, program: Callable[[str, str], Path]) -> None:
    body = """\tstruct hp_gate gate;
\thp_gate_init(&gate);
\tktap_plan(1);
\tif (!hp_fork("child"))
\t\traise(SIGBUS);
\thp_gate_wait(&gate);"""
    expected = r"child \(pid \d+\) was killed by signal 7 \(SIGBUS\)"
    with (
        VM(image) as vm,
        pytest.raises(GuestProgramError, match=expected),
        vm.run(program("childcrash", body)) as guest,
    ):
        guest.until("never")


def test_a_complaint_just_before_the_exit_is_found(image: KernelImage, program: Callable[[str, str], Path]) -> None:
    """A complaint just before the exit may still be on its way through the console when the exit is known."""
    body = """\tint fd = open("/dev/kmsg", 1);
\tconst char bug[] = "<3>BUG: Bad rss-counter state mm:0 type:0 val:1";
\tktap_plan(1);
\tfor (int i = 0; i < 300; i++)
\t\tif (write(fd, "<6>filler", 9) != 9)
\t\t\treturn 1;
\tktap_ok(write(fd, bug, sizeof(bug) - 1) > 0, "complained");"""
    source = program("rss", body)
    source.write_text("#include <fcntl.h>\n" + source.read_text())
    with VM(image) as vm:
        for _ in range(5):
            with pytest.raises(ClaimFailed, match="Bad rss-counter"), vm.run(source):
                pass


def test_an_unmet_precondition_is_a_skip(hugepfn: Command) -> None:
    done = hugepfn("run", "fork", "--kernel", "debian:6.1", "--level", "pte", "--append", "intel_iommu=off")
    assert done.returncode == 0, done.stdout
    assert "fork pte: skipped: no device bound to vfio-pci" in done.stdout


def test_the_machine_is_stopped_at_a_checkpoint(image: KernelImage) -> None:
    with VM(image) as vm, vm.run("fork") as guest:
        guest.until("written")
        with pytest.raises(UsageError, match="the machine is stopped"):
            vm.get("/proc/uptime")
        with vm.paused():
            assert vm.qemu.stopped
        assert vm.qemu.stopped
        assert guest.until("forked")["child"].leaf("bar")


def test_changes_by_a_child_after_reading_pagemap_are_no_disagreement(
    image: KernelImage, program: Callable[[str, str], Path]
) -> None:
    body = """\tsize_t length = 4096 * 512;
\tchar *pages = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
\tpid_t child;
\tktap_plan(1);
\thp_map(&(struct hp_mapping){ .name = "recalibration", .addr = pages, .length = length, .prot = 3,
\t\t.backing = HP_RAM, .pagemap_pages = 512 });
\tchild = hp_fork("child");
\tif (!child)
\t\tfor (size_t at = 0;; at = (at + 4096) % length)
\t\t\thp_write(pages + at, 1);
\tcheckpoint("spinning");
\tkill(child, SIGKILL);
\tktap_ok(hp_reap(child) == SIGKILL, "done");"""
    with VM(image) as vm, vm.run(program("spinchild", body)) as guest:
        guest.until("spinning")
        for _ in range(20):
            guest.look_again()
        assert guest.result.passed
        assert guest.violations == []


def test_an_agent_that_cannot_continue_is_not_the_kernels_fault(image: KernelImage) -> None:
    """PID 1 says so and waits; if it ended, the kernel would panic."""

    async def send(vm: VM) -> None:
        end = vm.qemu.end(vm.agent.channel.agent)
        await asyncio.get_running_loop().sock_sendall(end, b"no header\n")

    with VM(image) as vm:
        vm.on_loop(send(vm))
        with pytest.raises(ProtocolError, match=r"expected 'VERB ID LENGTH'.* nothing about the kernel"):
            vm.get("/proc/uptime")


def test_a_killed_qemu_is_not_the_kernels_fault(image: KernelImage) -> None:
    def killed(vm: VM) -> None:
        with vm.run("fork") as guest:
            guest.until("forked")
            os.kill(vm.qemu.pid, signal.SIGKILL)
            guest.until("exited")

    with VM(image) as vm, pytest.raises(MachineryError, match="QEMU was killed by SIGKILL"):
        killed(vm)


def test_a_reader_that_closes_the_pipe_early(hugepfn: Command) -> None:
    argv = hugepfn.argv("run", "fork", "--kernel", "debian:6.1", "--level", "pte")
    with subprocess.Popen(argv, env=hugepfn.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "INTERNALERROR" not in errors


def test_an_installed_wheel_works_in_another_folder(tmp_path: Path) -> None:
    """Installs the wheel with pip, then runs pytest in a folder outside this checkout."""
    venv = tmp_path / "venv"
    build = [str(ROOT / ".venv/bin/python"), "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    subprocess.run([str(ROOT / ".venv/bin/python"), "-m", "venv", str(venv)], check=True)
    wheel = next(tmp_path.glob("*.whl"))
    subprocess.run([venv / "bin/pip", "install", "-q", str(wheel)], check=True)
    tests = tmp_path / "elsewhere"
    tests.mkdir()
    (tests / "own.c").write_text(
        '#include "hugepfn.h"\nint main(int c, char **v)\n{\n\thp_start(c, v);\n\tktap_plan(1);\n'
        '\tcheckpoint("here");\n\tktap_ok(true, "fine");\n\treturn ktap_finish();\n}\n'
    )
    (tests / "test_own.py").write_text(
        "def test_own(vm, caps):\n    with vm.run('own') as guest:\n        assert 'parent' in guest.until('here')\n"
        "    with vm.run('fork', '--level=pte') as guest:\n        assert guest.result.passed\n"
    )
    done = subprocess.run(
        [venv / "bin/pytest", "--hugepfn-kernel=debian:6.1", str(tests)],
        cwd=tests,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hugepfn: kernel debian:6.1 (6.1." in done.stdout
    done = subprocess.run([venv / "bin/hugepfn", "list"], capture_output=True, text=True, check=True)
    assert "fork" in done.stdout


def test_a_stopped_qemu_is_not_the_kernels_fault(image: KernelImage) -> None:
    def stopped_on_the_way(vm: VM) -> None:
        with vm.run("fork", "--level=pte", timeout_s=3) as guest:
            guest.until("read")
            os.kill(vm.qemu.pid, signal.SIGSTOP)
            guest.until("written")

    with VM(image) as vm, pytest.raises(MachineryError, match=rf"QEMU \(pid {vm.qemu.pid}\) was stopped by SIGSTOP"):
        stopped_on_the_way(vm)


def test_time_in_which_qemu_was_stopped_is_given_back(image: KernelImage) -> None:
    with VM(image) as vm, vm.run("fork", "--level=pte", timeout_s=3) as guest:
        guest.until("read")
        os.kill(vm.qemu.pid, signal.SIGSTOP)
        continuing = threading.Timer(2.5, os.kill, (vm.qemu.pid, signal.SIGCONT))
        continuing.start()
        guest.until("written")
        continuing.join()
        guest.finish()
