"""Tests for the spec of a machine, without a boot: the CPU and the modules of one with KVM in the guest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config import DEFAULT, MachineConfig
from harness.errors import PremiseNotMet, UsageError
from harness.kernel.image import ImageKind, KernelImage
from harness.kernel.kconfig import Kconfig
from harness.machine import preparation
from harness.machine.preparation import check_guest, machine_spec
from harness.qemu.spec import Accel

NESTED = replace(DEFAULT, kvm=True)


def kernel(tmp_path: Path, config: str) -> KernelImage:
    image = tmp_path / "bzImage"
    image.write_bytes(b"")
    return KernelImage("./bzImage", image, ImageKind.BZIMAGE, "6.12.0", None, Kconfig(config))


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that the initramfs was asked for."""
    asked: list[str] = []

    def build(_kernel: KernelImage, extra: Sequence[str]) -> Path:
        asked[:] = extra
        return Path("initramfs")

    monkeypatch.setattr(preparation, "build_initramfs", build)
    return asked


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("config", "accel", "cpu"),
    [
        (DEFAULT, Accel.TCG, "max,cx16=off"),
        (NESTED, Accel.TCG, "max,cx16=off,svm=on"),
        (NESTED, Accel.KVM, "max"),
        (replace(NESTED, cpu="EPYC"), Accel.TCG, "EPYC"),
    ],
)
def test_the_cpu(config: MachineConfig, accel: Accel, cpu: str, tmp_path: Path) -> None:
    assert machine_spec(config, kernel(tmp_path, ""), accel).cpu == cpu


@pytest.mark.parametrize(
    ("flags", "accel", "module"),
    [
        ("svm", Accel.KVM, "kvm_amd"),
        ("vmx", Accel.KVM, "kvm_intel"),
        ("vmx", Accel.TCG, "kvm_amd"),  # TCG emulates AMD's
        ("vmxon", Accel.KVM, "kvm_amd"),  # no flag of that name: the guest says what it lacks
    ],
)
def test_the_module_is_the_one_for_the_guests_cpu(
    flags: str, accel: Accel, module: str, modules: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} npt\n")
    monkeypatch.setattr(preparation, "_CPUINFO", cpuinfo)
    spec = machine_spec(NESTED, kernel(tmp_path, ""), accel)
    assert (spec.kvm, modules) == (True, [module])
    machine_spec(DEFAULT, kernel(tmp_path, ""), accel)
    assert modules == []


def test_a_kernel_without_kvm_cannot_have_it_in_the_guest(tmp_path: Path) -> None:
    check_guest(DEFAULT, kernel(tmp_path, "CONFIG_PCI=y\n"))
    check_guest(NESTED, kernel(tmp_path, "CONFIG_KVM=y\n"))
    with pytest.raises(PremiseNotMet, match=r"was built without kvm: CONFIG_KVM is not set"):
        check_guest(NESTED, kernel(tmp_path, "CONFIG_PCI=y\n"))
    with pytest.raises(UsageError, match=r"kvm is a module of this kernel .* pass --modules DIR"):
        check_guest(NESTED, kernel(tmp_path, "CONFIG_KVM=m\n"))
