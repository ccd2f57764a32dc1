"""Tests for the host's root in a guest: how a kernel mounts it, QEMU's options, and the read-only view."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.config import MachineConfig
from harness.errors import MachineryError, UsageError
from harness.host import packages
from harness.kernel import ImageKind, Kconfig, KernelImage
from harness.qemu import hostroot
from harness.qemu.hostroot import VIEW, FileServer, choose_root, find_virtiofsd, root_args, root_modules
from harness.qemu.readonly import special_mounts
from harness.qemu.spec import Device, MachineSpec, Root, kernel_command_line

SPEC = MachineSpec(kernel=Path("/k/bzImage"), initramfs=Path("/c/initramfs.cpio"))
NINEP = "CONFIG_VIRTIO_PCI=y\nCONFIG_9P_FS=y\nCONFIG_NET_9P_VIRTIO=y\nCONFIG_OVERLAY_FS=y\n"
RUST_OPTIONS = (f"--shared-dir={VIEW}", "--no-announce-submounts", "--sandbox=none", "--log-level=error")
VIRTIOFS = "CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_FS=y\nCONFIG_OVERLAY_FS=m\n"  # Debian's cloud kernels
MakeKernel = Callable[..., KernelImage]


@pytest.fixture
def make_kernel(tmp_path: Path) -> MakeKernel:
    """A kernel with this configuration, and these modules."""

    def make(config: str | None, *modules: str) -> KernelImage:
        (tmp_path / "modules.dep").write_text("".join(f"kernel/{name}.ko:\n" for name in modules))
        folder = tmp_path if modules else None
        kconfig = None if config is None else Kconfig(config)
        return KernelImage("./bzImage", Path("/k/bzImage"), ImageKind.BZIMAGE, "6.12.0", folder, kconfig)

    return make


@pytest.fixture
def virtiofsd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only virtiofsd of this host."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(packages, "_ELSEWHERE", {"virtiofsd": (str(tmp_path / "lib/virtiofsd"),)})
    daemon = tmp_path / "lib/virtiofsd"
    daemon.parent.mkdir()
    daemon.write_text("#!/bin/sh\necho --shared-dir --readonly\n")
    daemon.chmod(0o755)
    return daemon


def test_qemu_serves_9p_itself_and_read_only() -> None:
    fsdev, device = root_args(Root.HOST_9P, None)[1::2]
    assert fsdev.split(",")[0] == "local"
    assert {f"path={VIEW}", "readonly=on", "multidevs=remap", "security_model=none"} <= set(fsdev.split(","))
    name = next(word.removeprefix("id=") for word in fsdev.split(",") if word.startswith("id="))
    assert device == f"virtio-9p-pci,fsdev={name},mount_tag=ROOTFS"


def test_a_guest_with_an_initramfs_gets_no_files_of_the_host() -> None:
    assert root_args(Root.INITRAMFS, None) == []
    assert root_modules(Root.INITRAMFS) == ()
    assert "hugepfn.root" not in kernel_command_line(SPEC)


@pytest.mark.parametrize("root", [Root.HOST_9P, Root.HOST_VIRTIOFS])
def test_init_is_told_and_the_modules_come_along(root: Root) -> None:
    assert f" hugepfn.root={root.value}" in kernel_command_line(replace(SPEC, root=root))
    assert "overlay" in root_modules(root)


def test_a_machine_that_qemu_cannot_save_has_a_reason() -> None:
    assert SPEC.why_not_saved == ""
    assert "nvme" in replace(SPEC, device=Device.NVME).why_not_saved
    for root in (Root.HOST_9P, Root.HOST_VIRTIOFS):
        assert "host's root" in replace(SPEC, root=root).why_not_saved


@pytest.mark.parametrize("config", [NINEP, VIRTIOFS + NINEP, None])
def test_9p_comes_first_and_a_kernel_of_unknown_configuration_is_tried(
    make_kernel: MakeKernel, config: str | None
) -> None:
    assert choose_root(make_kernel(config)) is Root.HOST_9P


@pytest.mark.usefixtures("virtiofsd")
def test_a_stock_kernel_takes_virtio_fs_with_overlayfs_from_its_modules(make_kernel: MakeKernel) -> None:
    assert choose_root(make_kernel(VIRTIOFS, "overlay")) is Root.HOST_VIRTIOFS


def test_without_a_virtiofsd_the_message_says_how_to_get_one(make_kernel: MakeKernel, virtiofsd: Path) -> None:
    virtiofsd.unlink()
    with pytest.raises(
        MachineryError, match=r"needs virtiofsd for a kernel without 9P, .*; install it .*qemu-system-common"
    ):
        choose_root(make_kernel(VIRTIOFS, "overlay"))


@pytest.mark.parametrize(
    ("config", "ninep", "virtiofs"),
    [
        (
            "",
            "CONFIG_9P_FS, CONFIG_NET_9P_VIRTIO, CONFIG_VIRTIO_PCI, CONFIG_OVERLAY_FS",
            "CONFIG_VIRTIO_FS, CONFIG_VIRTIO_PCI, CONFIG_OVERLAY_FS",
        ),
        (NINEP.replace("CONFIG_OVERLAY_FS=y\n", ""), "CONFIG_OVERLAY_FS", "CONFIG_VIRTIO_FS, CONFIG_OVERLAY_FS"),
        (
            VIRTIOFS,
            "CONFIG_9P_FS, CONFIG_NET_9P_VIRTIO, the module of CONFIG_OVERLAY_FS=m",
            "the module of CONFIG_OVERLAY_FS=m",
        ),
    ],
)
def test_an_unsuitable_kernel_gets_a_list_of_missing_symbols(
    make_kernel: MakeKernel, config: str, ninep: str, virtiofs: str
) -> None:
    with pytest.raises(UsageError) as raised:
        choose_root(make_kernel(config))
    assert f"Over 9P it lacks {ninep}; over virtio-fs {virtiofs}. " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_guest_is_refused() -> None:
    with pytest.raises(UsageError, match="guest 'debian'; valid values: initramfs, host"):
        MachineConfig(guest="debian")


C_WORDS, RUST_WORDS = "--socket-path --fd", "--shared-dir --readonly --fd"


@pytest.mark.parametrize(
    ("words", "uid", "expected"),
    [
        (C_WORDS, 0, ["-o", f"source={VIEW}", "-o", "sandbox=chroot", "-o", "log_level=err"]),
        (RUST_WORDS, 0, [*RUST_OPTIONS, "--readonly"]),
        (RUST_WORDS, 1000, [*RUST_OPTIONS, "--readonly"]),
        ("--shared-dir --fd", 0, [*RUST_OPTIONS]),
    ],
)
def test_a_virtiofsd_serves_read_only_whichever_it_is_and_whoever_asks(
    virtiofsd: Path, monkeypatch: pytest.MonkeyPatch, words: str, uid: int, expected: list[str]
) -> None:
    virtiofsd.write_text(f"#!/bin/sh\necho '{words}'\n")
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    argv = find_virtiofsd().argv(7)
    assert argv[argv.index(str(virtiofsd)) + 1 :] == ["--fd=7", *expected]
    assert argv[argv.index(str(hostroot._READONLY)) + 1 :][:2] == [VIEW, "all"]


@pytest.mark.parametrize("words", [C_WORDS, "--shared-dir --fd"])
def test_one_that_could_write_for_an_ordinary_user_is_refused(
    virtiofsd: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    virtiofsd.write_text(f"#!/bin/sh\necho '{words}'\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MachineryError, match=f"only root can use {virtiofsd}; install one that has --readonly"):
        find_virtiofsd()


def in_the_view(*argv: str, mode: str = "all") -> subprocess.CompletedProcess[str]:
    words = hostroot.in_view(mode, argv)
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="the test looks at all mounts of this host")
def test_the_view_can_be_read_but_not_written(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("as it was")
    there = f"{VIEW}{tmp_path}/there"
    script = f"cat {there}; echo x >{there}; echo x >/dev/shm/hugepfn-x; echo to the end"
    done = in_the_view("/bin/sh", "-c", script)
    assert done.stdout == "as it wasto the end\n"
    assert done.stderr.count("Read-only file system") == 2
    assert (tmp_path / "there").read_text() == "as it was"
    (tmp_path / "new").write_text("our own view is as it was")
    assert Path(VIEW, "readonly.py").is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="the test looks at all mounts of this host")
@pytest.mark.parametrize("mode", ["all", "view"])
def test_the_view_has_files_but_no_kernel_file_systems(mode: str, tmp_path: Path) -> None:
    """The server itself sees the unchanged host, because it needs /proc/self/fd."""
    (tmp_path / "there").touch()
    script = f"""cd {VIEW} && ls -A proc run sys dev && ls .{tmp_path} && ls .{VIEW}/readonly.py && ls /proc/self/fd/0
        while read -r _ _ _ _ place _; do echo "$place"; done <{VIEW}/proc/self/mountinfo"""
    done = in_the_view("/bin/sh", "-c", script, mode=mode)
    assert done.stdout == f"dev:\n\nproc:\n\nrun:\n\nsys:\nthere\n.{VIEW}/readonly.py\n/proc/self/fd/0\n"
    assert "No such file" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_without_root_the_view_uses_a_user_namespace() -> None:
    """QEMU, which serves 9P, usually runs as an ordinary user. It must still end with its parent."""
    ask = "import ctypes; v = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(v)); print(v.value)"
    python = next(path for path in ("/usr/bin/python3", sys.executable) if Path(path).exists())
    with tempfile.TemporaryDirectory(prefix="hugepfn-test-") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "readonly.py").write_text(hostroot._READONLY.read_text())
        cover = Path(folder) / "cover"
        cover.mkdir(mode=0o755)
        script = f"ls -A {cover}/proc {cover}/run; exec {python} -c '{ask}'"
        argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "setpriv", "--pdeathsig", "KILL", "--"]
        argv += [python, "-I", "-S", f"{folder}/readonly.py", str(cover), "view", "/bin/sh", "-c", script]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, cwd="/")
    if "which this host denies" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout == f"{cover}/proc:\n\n{cover}/run:\n9\n", done.stderr


MOUNTINFO = r"""22 27 0:21 / /proc rw - proc proc rw
31 22 0:30 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw
24 27 0:6 / /dev rw - devtmpfs devtmpfs rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
28 27 254:1 / /home rw shared:2 master:3 - xfs /dev/vdb rw
29 27 0:25 / /tmp rw - tmpfs tmpfs rw
30 27 0:26 / /run/user/1000 rw - tmpfs tmpfs rw
32 27 0:31 / /var/lib/lxcfs rw - fuse.lxcfs lxcfs rw
33 27 0:32 / /a\040place rw - cgroup2 none rw
34 27 0:33 / /never/heard/of rw - newfs none rw
35 34 0:33 / /never/heard/of/it rw - newfs none rw
"""


def test_special_file_systems_are_hidden() -> None:
    expected = ["/a place", "/dev", "/never/heard/of", "/proc", "/run", "/sys", "/var/lib/lxcfs"]
    assert special_mounts(MOUNTINFO) == expected


def test_nobody_else_can_be_the_file_servers_first_client(virtiofsd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves the first client that connects, and anybody can use an abstract name (unix(7))."""
    names: list[object] = []

    class Recorded(socket.socket):
        def bind(self, address: Any) -> None:
            names.append(address)
            if address:
                assert Path(address).parent.stat().st_mode & 0o777 == 0o700
            super().bind(address)

    monkeypatch.setattr("harness.qemu.hostroot.socket.socket", Recorded)
    monkeypatch.setenv("PATH", f"{virtiofsd.parent}:/usr/bin:/bin")

    async def start() -> None:
        await (await FileServer.start()).end()

    asyncio.run(start())
    (name,) = names
    assert str(name).startswith("/")
    assert not Path(str(name)).parent.exists()


def test_only_asyncio_reaps_the_file_server() -> None:
    """Process.kill() polls first. That reaped a server that had just ended, and asyncio complained on stderr."""
    with subprocess.Popen(["sleep", "100"], start_new_session=True) as child:

        class Process:
            pid = child.pid
            returncode = None

            def kill(self) -> None:
                pytest.fail("kill() polls, which reaps the process")

            async def wait(self) -> int:
                return await asyncio.to_thread(child.wait)

        process: Any = Process()
        with tempfile.TemporaryFile() as said:
            asyncio.run(FileServer(process, socket.socket(socket.AF_UNIX), said).end())
        assert child.returncode == -signal.SIGKILL


def test_a_missing_program_is_one_line() -> None:
    done = in_the_view("/nowhere/virtiofsd")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
