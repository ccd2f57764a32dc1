"""The host's root for a guest: how a kernel can have it, what QEMU is given, and a view that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness import packages
from harness.errors import MachineryError, UsageError
from harness.kernel import ImageKind, Kconfig, KernelImage
from harness.machine import hostroot
from harness.machine.hostroot import choose_root, find_virtiofsd, root_args, root_modules
from harness.machine.spec import Device, MachineSpec, Root, kernel_command_line
from harness.machine.wanted import Wanted

SPEC = MachineSpec(kernel=Path("/k/bzImage"), initramfs=Path("/c/initramfs.cpio"))
NINEP = "CONFIG_VIRTIO_PCI=y\nCONFIG_9P_FS=y\nCONFIG_NET_9P_VIRTIO=y\nCONFIG_OVERLAY_FS=y\n"
RUST_OPTIONS = ("--shared-dir=/", "--no-announce-submounts", "--sandbox=none", "--log-level=error")
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
    assert {"path=/", "readonly=on", "multidevs=remap", "security_model=none"} <= set(fsdev.split(","))
    name = next(word.removeprefix("id=") for word in fsdev.split(",") if word.startswith("id="))
    assert device == f"virtio-9p-pci,fsdev={name},mount_tag=ROOTFS"


def test_a_guest_with_an_initramfs_gets_nothing_of_the_host() -> None:
    assert root_args(Root.INITRAMFS, None) == []
    assert root_modules(Root.INITRAMFS) == ()
    assert "hugepfn.root" not in kernel_command_line(SPEC)


@pytest.mark.parametrize("root", [Root.HOST_9P, Root.HOST_VIRTIOFS])
def test_init_is_told_and_the_modules_come_along(root: Root) -> None:
    assert f" hugepfn.root={root.value}" in kernel_command_line(replace(SPEC, root=root))
    assert "overlay" in root_modules(root)


def test_what_qemu_cannot_save_says_so() -> None:
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
    with pytest.raises(MachineryError, match=r"no virtiofsd here, .*; install it .*qemu-system-common"):
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
def test_a_kernel_that_cannot_names_what_it_lacks(
    make_kernel: MakeKernel, config: str, ninep: str, virtiofs: str
) -> None:
    with pytest.raises(UsageError) as raised:
        choose_root(make_kernel(config))
    assert f"Over 9P it lacks {ninep}; over virtio-fs {virtiofs}. " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_there_are_two_guests() -> None:
    with pytest.raises(UsageError, match="guest 'debian'; valid values: initramfs, host"):
        Wanted(guest="debian")


C_WORDS, RUST_WORDS = "--socket-path --fd", "--shared-dir --readonly --fd"


@pytest.mark.parametrize(
    ("words", "uid", "expected"),
    [
        (C_WORDS, 0, ["-o", "source=/", "-o", "sandbox=chroot", "-o", "log_level=err"]),
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
    assert (str(hostroot._READONLY) in argv) is (uid == 0)


@pytest.mark.parametrize("words", [C_WORDS, "--shared-dir --fd"])
def test_one_that_could_write_for_an_ordinary_user_is_refused(
    virtiofsd: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    virtiofsd.write_text(f"#!/bin/sh\necho '{words}'\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MachineryError, match=f"{virtiofsd}, .* is for root only; install one that has --readonly"):
        find_virtiofsd()


def in_the_view(*argv: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-I", "-S", str(hostroot._READONLY), *argv]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace takes root")
def test_in_the_read_only_view_everything_is_read_and_nothing_written(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("as it was")
    script = f"cat {tmp_path}/there; echo x >{tmp_path}/there; echo x >/dev/shm/hugepfn-x; echo to the end"
    done = in_the_view("/bin/sh", "-c", script)
    assert done.stdout == "as it wasto the end\n"
    assert done.stderr.count("Read-only file system") == 2
    assert (tmp_path / "there").read_text() == "as it was"
    (tmp_path / "new").write_text("our own view is as it was")


def test_a_program_that_is_not_there_is_one_line() -> None:
    done = in_the_view("/nowhere/virtiofsd")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
