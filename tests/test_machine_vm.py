"""Tests for the start of a VM: when it falls back from KVM to TCG, what it stores about KVM, and refused templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import BootError, HugepfnError, MachineryError, MachineStopped, ProtocolError, RestoreError
from harness.events import Sparing
from harness.guest import bounds
from harness.host import cache
from harness.machine import vm as vm_module
from harness.machine.template import template_key
from harness.machine.vm import VM
from harness.pagetable import NO_BITS
from harness.qemu.binary import QemuBinary
from harness.qemu.spec import Accel, MachineSpec

BINARY = QemuBinary("/usr/bin/true", "11.1.3", "QEMU emulator version 11.1.3")


def dies(console: str) -> BootError:
    return BootError("does not boot: nothing within 20 s", exit_status=None, console_tail=console)


class Host:
    """A host whose KVM passed the probe, on which kernels behave as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.ends: dict[Accel, HugepfnError | None] = {}
        self.tried: list[Accel] = []
        self.said: list[str] = []
        monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(folder))
        monkeypatch.setattr(vm_module, "find_qemu", lambda _asked: BINARY)
        monkeypatch.setattr(vm_module, "choose_accel", lambda *_args: (Accel.KVM, ""))
        monkeypatch.setattr(VM, "_resolve", lambda _vm: SimpleNamespace(release="6.12.118"))

        def come_up(_vm: VM, accel: Accel) -> None:
            self.tried.append(accel)
            if error := self.ends[accel]:
                raise error

        monkeypatch.setattr(VM, "_come_up", come_up)

    def start(self, accel: str = "auto") -> None:
        VM("debian", accel=accel, say=Sparing(self.said.append)).start()

    @property
    def remembered(self) -> list[dict[str, Any]]:
        """What the cache has stored about KVM."""
        folder = cache.root() / "accel"
        return [json.loads(path.read_text()) for path in folder.glob("*.json")] if folder.is_dir() else []


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    return Host(monkeypatch, tmp_path)


def test_a_kernel_that_prints_only_under_tcg_disables_kvm(host: Host) -> None:
    host.ends = {Accel.KVM: dies(""), Accel.TCG: None}
    host.start()
    assert host.tried == [Accel.KVM, Accel.TCG]
    assert [note["works"] for note in host.remembered] == [False]
    assert host.said[0].startswith("using TCG, because KVM does not run this kernel: ")


def test_a_kernel_that_prints_and_dies_under_tcg_disables_kvm_too(host: Host) -> None:
    host.ends = {Accel.KVM: dies(""), Accel.TCG: dies("Kernel panic - not syncing: VFS")}
    with pytest.raises(BootError):
        host.start()
    assert [note["works"] for note in host.remembered] == [False]


def test_a_kernel_that_never_prints_does_not_disable_kvm(host: Host) -> None:
    """Such a kernel is a step of a bisection that dies early, or has no ttyS0."""
    host.ends = {Accel.KVM: dies(""), Accel.TCG: dies("")}
    with pytest.raises(BootError):
        host.start()
    assert host.tried == [Accel.KVM, Accel.TCG]
    assert host.remembered == []


def test_a_kvm_with_an_internal_error_is_disabled(host: Host) -> None:
    """QEMU stops the machine after "KVM internal error" (accel/kvm/kvm-all.c, kvm_cpu_exec())."""
    stopped = MachineStopped("waiting: QEMU has stopped the machine (internal-error); it says: KVM internal error")
    host.ends = {Accel.KVM: stopped, Accel.TCG: None}
    host.start()
    assert host.tried == [Accel.KVM, Accel.TCG]
    assert [note["works"] for note in host.remembered] == [False]
    assert "KVM internal error" in host.said[0]


def test_a_requested_kvm_is_not_replaced(host: Host) -> None:
    host.ends = {Accel.KVM: MachineStopped("QEMU has stopped the machine (internal-error)")}
    with pytest.raises(MachineStopped):
        host.start("kvm")
    assert host.remembered == []


@pytest.mark.parametrize(("accel", "console"), [("kvm", ""), ("auto", "Linux version 6.12.118")])
def test_tcg_is_not_tried_without_need(host: Host, accel: str, console: str) -> None:
    host.ends = {Accel.KVM: dies(console)}
    with pytest.raises(BootError):
        host.start(accel)
    assert (host.tried, host.remembered) == ([Accel.KVM], [])


# --- a template that QEMU refuses ------------------------------------------------------------------


def coming_back(monkeypatch: pytest.MonkeyPatch, folder: Path, refused: int) -> tuple[VM, list[str]]:
    """A VM whose template is refused a number of times, and a list of what happens to the template."""
    happened: list[str] = []
    template = SimpleNamespace(folder=folder, capabilities=SimpleNamespace(layout="layout", bar_misses=NO_BITS))

    def use(_vm: VM, _machine: object) -> None:
        happened.append("clone")
        if happened.count("clone") <= refused:
            raise RestoreError("QEMU 11.1.3 does not restore it: Unknown ramblock")

    monkeypatch.setattr(VM, "_template", lambda _vm: template)
    monkeypatch.setattr(VM, "_use", use)
    monkeypatch.setattr(vm_module, "clone", lambda *_args: None)
    monkeypatch.setattr(vm_module, "discard", lambda path: happened.append(f"discard {path.name}"))
    vm = VM("debian", say=Sparing(happened.append))
    vm.spec = MachineSpec(Path("bzImage"), Path("initramfs"))
    return vm, happened


def test_a_template_that_qemu_refuses_is_made_again_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vm, happened = coming_back(monkeypatch, tmp_path, 1)
    vm._clone()
    said = "QEMU 11.1.3 does not restore it: Unknown ramblock; building it again"
    assert happened == ["clone", f"discard {tmp_path.name}", said, "clone"]
    vm, happened = coming_back(monkeypatch, tmp_path, 2)
    with pytest.raises(MachineryError, match="Unknown ramblock"):
        vm._clone()
    assert happened.count("clone") == 2, "and not for ever"
    assert happened[-1].startswith("discard"), "a refused template must be removed"


# --- events ---------------------------------------------------------------------------------------


def test_early_events_of_a_program_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "EARLY_MAX_BYTES", 100)
    vm = VM("debian")
    vm.programs.receive(b"x" * 1000)  # no program was started, so the event belongs to none
    vm.programs._early = bytearray()
    for _ in range(2):
        vm.programs.receive(b"x" * 50)
    with pytest.raises(
        ProtocolError, match=r"sent 101 bytes, expected one line \(at most 100 bytes\) until it is registe"
    ):
        vm.programs.receive(b"x")


# --- what a template depends on ----------------------------------------------------------------------


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Return the key of a template on a host with these modules and this kernel."""
    (tmp_path / "cpuinfo").write_text("model name : A\nflags : fpu\n\n")
    monkeypatch.setattr("harness.machine.template._CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("harness.machine.template._MODULES", tmp_path)

    def key(accel: Accel, release: str = "6.12.1", ept: str = "Y") -> str:
        monkeypatch.setattr("platform.release", lambda: release)
        (tmp_path / "kvm_intel/parameters").mkdir(parents=True, exist_ok=True)
        (tmp_path / "kvm_intel/parameters/ept").write_text(f"{ept}\n")
        return template_key(MachineSpec(Path("bzImage"), Path("initramfs"), accel), "kernel", BINARY)

    return key


def test_a_template_under_kvm_depends_on_the_host_kernel_and_module_parameters(key: Callable[..., str]) -> None:
    assert key(Accel.KVM) == key(Accel.KVM)
    assert key(Accel.KVM) != key(Accel.KVM, release="6.12.2")
    assert key(Accel.KVM) != key(Accel.KVM, ept="N")
    assert key(Accel.TCG) == key(Accel.TCG, release="6.12.2", ept="N")
