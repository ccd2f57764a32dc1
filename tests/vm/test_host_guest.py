"""Tests with the host's userland in the guest: programs run, walks work, and the guest cannot write to the host.

On a stock kernel over virtio-fs; over 9P on a kernel built for it, which takes ten minutes once (make long-tests).
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import MachineryError, UsageError
from harness.guest.job import ExitStatus
from harness.kernel import Kernel, KernelImage
from harness.kernel.build import Recipe, build, parse_origin
from harness.kernel.build.recipe import DEFAULT_FRAGMENTS
from harness.machine.machine import Origin
from harness.machine.vm import VM
from harness.pagetable import Level
from harness.qemu.hostroot import find_virtiofsd
from harness.qemu.spec import Root

from .conftest import Command

RUN_TIMEOUT_S = 120
#: Run as root in the guest: removes the overlay, and tries to make the file system below it writable.
BREAK_OUT = """\
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
assert libc.umount2(b"/", 2) == 0 and libc.setns(namespace, 0x20000) == 0, os.strerror(ctypes.get_errno())
print("below:", *sorted(set(os.listdir("/lower")) & {"etc", "usr"}), flush=True)
print("running:", *[name for one in ("proc", "run", "sys", "dev") for name in os.listdir("/lower/" + one)], flush=True)
libc.mount(b"none", b"/lower", None, 32, None)
for path in sys.argv[1:]:
    try:
        os.close(os.open("/lower" + path, os.O_WRONLY | os.O_CREAT))
        print("written:", path)
    except OSError as error:
        print(error.strerror)
"""


def execute(vm: VM, *argv: str) -> tuple[ExitStatus, str, str]:
    """Run a program of the host in the guest. Returns how it ended, its output, and its errors."""
    done = vm.exec(argv, timeout_s=RUN_TIMEOUT_S)
    return done.exit, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="module", params=["stock", pytest.param("built", marks=pytest.mark.long)])
def image(request: pytest.FixtureRequest) -> KernelImage:
    """A kernel that can mount the host's root: Debian's own, and one of ours."""
    if request.param == "built":
        return build(Recipe(parse_origin("debsrc:6.12"), fragments=(*DEFAULT_FRAGMENTS, "hostroot")))
    try:
        find_virtiofsd()
    except MachineryError as error:
        pytest.skip(str(error))
    return Kernel.debian("6.12").resolve()


@pytest.fixture(scope="module")
def machine(image: KernelImage) -> Iterator[VM]:
    with VM(image, guest="host") as vm:
        yield vm


def test_it_boots_with_the_file_server_that_the_kernel_supports(machine: VM) -> None:
    assert machine.origin is Origin.BOOT
    assert machine.spec.root is (Root.HOST_9P if machine.kernel.modules_dir is None else Root.HOST_VIRTIOFS)


def test_programs_of_the_host_run_with_status_and_separate_output(machine: VM) -> None:
    assert execute(machine, "uname", "-r") == (ExitStatus(0, None), f"{machine.kernel.release}\n", "")
    assert machine.kernel.release != platform.release()
    status, out, err = execute(machine, "sh", "-c", "echo to stdout; echo to stderr >&2; exit 3")
    assert (status, out, err) == (ExitStatus(3, None), "to stdout\n", "to stderr\n")


def test_a_python_script_of_the_host_runs_in_its_virtual_environment(machine: VM, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, platform, socket, sys, click\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname())\n"
        "print(platform.release(), sys.prefix, sys.argv[1], os.environ['HOME'], os.getcwd())\n"
        "print('gr\\u00fc\\u00dfe', file=sys.stderr)\n"
        "sys.exit(7)\n"
    )
    status, out, err = execute(machine, sys.executable, str(script), "an argument")
    assert (status, err) == (ExitStatus(7, None), "grüße\n")
    assert out == f"{machine.kernel.release} {sys.prefix} an argument /root /root\n"


def test_writes_stay_in_the_guest(machine: VM, tmp_path: Path) -> None:
    (tmp_path / "changed").write_text("as it was\n")
    (tmp_path / "removed").write_text("still here\n")
    (tmp_path / "folder").mkdir()
    script = (
        f"cd {tmp_path} && echo guest >>changed && rm removed && rmdir folder && echo new >made && mkdir folder && "
        "echo in >folder/file && cat changed made folder/file && ls && touch /usr/bin/hugepfn-was-here"
    )
    status, out, err = execute(machine, "sh", "-c", script)
    assert (status, err) == (ExitStatus(0, None), "")
    assert out == "as it was\nguest\nnew\nin\nchanged\nfolder\nmade\n"
    assert {path.name for path in tmp_path.iterdir()} == {"changed", "removed", "folder"}
    assert (tmp_path / "changed").read_text() == "as it was\n"
    assert list((tmp_path / "folder").iterdir()) == []
    assert not Path("/usr/bin/hugepfn-was-here").exists()


def test_modprobe_finds_the_kernels_modules(machine: VM) -> None:
    if machine.kernel.modules_dir is None:
        pytest.skip("this kernel has no modules")
    assert execute(machine, "modprobe", "loop") == (ExitStatus(0, None), "", "")
    assert b"\nloop " in b"\n" + machine.get("/proc/modules")


def test_a_terminal_gets_the_hosts_shell(machine: VM) -> None:
    console = machine.console()
    console.expect_exact("guest# ")
    console.sendline("echo $0 $((6 * 7)) $(uname -n)")
    console.expect_exact("/bin/bash 42 hugepfn")
    console.close()


def test_it_cannot_be_kept(machine: VM) -> None:
    with pytest.raises(UsageError, match="QEMU cannot save a machine that has the host's root mounted"):
        machine.keep("host", "a test")
    assert execute(machine, "true")[0].ok, "the machine must continue to run"


def test_checkpoints_and_walks_work(machine: VM) -> None:
    with machine.run("fork", "--level=pud") as guest:
        at = guest.until("forked")
        assert at["parent"].leaf("bar").level is Level.PUD
        assert at["child"].leaf("bar").pfn == at["parent"].leaf("bar").pfn
    assert guest.result.passed


def test_below_its_overlay_the_guest_cannot_see_or_write_the_running_host(machine: VM, tmp_path: Path) -> None:
    """The last test of the module, because the guest has no root file system afterwards."""
    there = tmp_path / "there"
    there.write_text("as it was")
    script = tmp_path / "break_out.py"
    script.write_text(BREAK_OUT)
    status, out, err = execute(machine, "python3", str(script), str(there), str(tmp_path / "new"))
    assert (status, err) == (ExitStatus(0, None), "")
    assert out.splitlines() == ["below: etc usr", "running:", "Read-only file system", "Read-only file system"]
    assert {path.name: path.read_text() for path in (there, script)} == {"there": "as it was", script.name: BREAK_OUT}
    assert not (tmp_path / "new").exists()


def test_the_command_boots_it_and_leaves_nothing_behind(hugepfn: Command) -> None:
    try:
        find_virtiofsd()
    except MachineryError as error:
        pytest.skip(str(error))
    done = hugepfn("run", "fork", "--level=pud", "--kernel=debian:6.12", "--guest=host", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fork pud: passed" in done.stdout


def test_exec_runs_a_file_of_the_host_in_place(hugepfn: Command, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"#!{sys.executable}\nimport os, sys\nprint(os.uname().release)\nsys.exit('to stderr')\n")
    script.chmod(0o755)
    done = hugepfn("exec", "--guest", "host", "--kernel", "debian:6.12", str(script))
    assert done.returncode == 1
    assert done.stdout.startswith("6.12.")
    assert done.stderr.splitlines()[-1] == "to stderr"


def test_an_unsuitable_kernel_is_refused_before_a_boot(hugepfn: Command, tmp_path: Path) -> None:
    stock = Kernel.debian("6.12").resolve()
    assert stock.config is not None
    (tmp_path / "bzImage").symlink_to(stock.image)
    (tmp_path / "config").write_text(stock.config.text.replace("CONFIG_OVERLAY_FS=m", ""))
    done = hugepfn("run", "fork", "--guest=host", f"--kernel={tmp_path / 'bzImage'}")
    assert done.returncode == 2, done.stdout
    assert "fork" not in done.stdout
    assert done.stderr.splitlines()[-1].startswith("hugepfn: --guest host: ")
    assert "over virtio-fs CONFIG_OVERLAY_FS. " in done.stderr
