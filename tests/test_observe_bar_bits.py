"""Tests for the calibration of accessed and dirty bits on the BAR under KVM, and for the choice of the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import ClaimFailed, MachineryError, PremiseNotMet
from harness.events import Sparing
from harness.machine import vm as vm_module
from harness.machine.vm import VM
from harness.observe import probe as probe_module
from harness.observe.bar_bits import misses, probe_bar, stand_in
from harness.pagetable import NO_BITS, Bits, Entry, Layout, Leaf, Level
from harness.qemu.spec import Accel, Device, MachineSpec
from harness.verdict.capabilities import Capabilities, ImageCapabilities
from harness.verdict.log.troubles import KernelTroubles

COPIED, READ, WRITTEN = 0x8000380000001217, 0x8000380000001237, 0x8000380000001277
A, D = 0x20, 0x40


def leaf(raw: int) -> Leaf:
    return Leaf(Entry(raw, Level.PTE, Layout.MODERN), 0x7F0000000000)


@pytest.mark.parametrize(
    ("walks", "missed"),
    [
        ((COPIED, READ, WRITTEN), NO_BITS),
        ((COPIED | A, READ, WRITTEN), NO_BITS),  # A was set early, which a CPU may do
        ((COPIED | D, READ | D, WRITTEN), NO_BITS),  # D was left by the kernel's fork(), not set by the CPU
        ((COPIED, READ, WRITTEN & ~D), Bits.D),
        ((COPIED, READ & ~A, WRITTEN), Bits.A),
        ((COPIED, READ, WRITTEN & ~A), Bits.A),
        ((COPIED, COPIED, COPIED), Bits.A | Bits.D),
        ((COPIED, READ | D, WRITTEN), Bits.D),
    ],
    ids=["sound", "early A", "kernel's D", "no D", "no A", "A gone", "neither", "D of a read"],
)
def test_the_conclusions_about_the_cpu(walks: tuple[int, int, int], missed: Bits) -> None:
    assert misses(*(leaf(raw) for raw in walks)) == missed


class Run:
    """A run of bar_bits.c that shows these entries or raises an error."""

    def __init__(self, walks: tuple[int, ...], error: Exception | None = None) -> None:
        self._walks = iter(walks)
        self._error = error

    def until(self, _checkpoint: str) -> dict[str, SimpleNamespace]:
        if self._error is not None:
            raise self._error
        raw = next(self._walks)
        return {"child": SimpleNamespace(leaf=lambda _name: leaf(raw))}


def probed(run: Run, accel: Accel = Accel.KVM) -> VM:
    @contextmanager
    def start(program: str, _args: object, _timeout_s: float) -> Iterator[Run]:
        assert program == "bar_bits"
        yield run

    return cast(VM, SimpleNamespace(launch=start, spec=SimpleNamespace(accel=accel)))


def test_the_probe_walks_before_and_after_a_read_and_a_write() -> None:
    assert probe_bar(probed(Run((COPIED, READ, WRITTEN)))) == NO_BITS
    assert probe_bar(probed(Run((COPIED, READ, WRITTEN & ~D)))) == Bits.D


@pytest.mark.parametrize("error", [PremiseNotMet("no device bound to vfio-pci"), ClaimFailed("child has no entry")])
def test_a_failed_probe_says_nothing_about_the_cpu(error: Exception) -> None:
    """There is no vfio-pci, or the kernel's entries are wrong, which its scenarios report."""
    assert probe_bar(probed(Run((), error))) is None


@pytest.mark.parametrize(
    ("accel", "early", "missed"), [(Accel.KVM, Bits.A, Bits.D), (Accel.TCG, NO_BITS, NO_BITS)], ids=["kvm", "tcg"]
)
def test_tcg_is_not_calibrated_and_sets_nothing_early(
    monkeypatch: pytest.MonkeyPatch, accel: Accel, early: Bits, missed: Bits
) -> None:
    class Caps(Run):
        def until(self, _checkpoint: str) -> dict[str, SimpleNamespace]:
            return {"parent": SimpleNamespace(leaf=lambda _name: leaf(READ))}

        def finish(self) -> SimpleNamespace:
            return SimpleNamespace(values={"kvm_clock": "1"})

        def kernel_troubles(self) -> KernelTroubles:
            return KernelTroubles()

        def __enter__(self) -> Caps:
            return self

        def __exit__(self, *_error: object) -> None:
            pass

    image = ImageCapabilities(True, None, None)
    monkeypatch.setattr(probe_module, "_has_saved_dirty", lambda *_seen: True)
    monkeypatch.setattr(probe_module, "probe_image", lambda _kernel: image)
    monkeypatch.setattr(probe_module, "probe_bar", lambda _vm: Bits.D)
    caps = probe_module.probe(
        cast(VM, SimpleNamespace(launch=lambda *_asked: Caps(()), spec=SimpleNamespace(accel=accel), kernel=None))
    )
    assert (caps.early, caps.bar_misses) == (early, missed)
    assert caps.kvm_clock
    assert Capabilities.from_json(caps.to_json()) == caps


def test_the_replacement_device() -> None:
    assert stand_in(Device.TESTDEV, Bits.D) is Device.SHMEM
    with pytest.raises(
        MachineryError, match=r"does not set A and D in an entry of ivshmem-plain's BAR, .* --accel tcg"
    ):
        stand_in(Device.SHMEM, Bits.A | Bits.D)
    with pytest.raises(PremiseNotMet, match=r"^cannot know: .* nvme's BAR"):
        stand_in(Device.NVME, Bits.D)


# --- how a VM comes up under KVM ---------------------------------------------------------------------


class Host:
    """A host with KVM, whose CPU leaves bits clear in entries of some devices' BARs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, missed: dict[Device, Bits]) -> None:
        self.missed = missed
        self.up: list[Device] = []
        self.closed = 0
        self.said: list[str] = []

        def spec(wanted: Any, _kernel: object, accel: Accel) -> MachineSpec:
            return MachineSpec(Path("bzImage"), Path("initramfs"), accel, device=Device(wanted.device))

        def close(_vm: VM) -> None:
            self.closed += 1

        monkeypatch.setattr("harness.machine.vm.machine_spec", spec)
        monkeypatch.setattr(VM, "close", close)
        monkeypatch.setattr(VM, "_use", lambda vm, _machine: self.up.append(vm.spec.device))
        monkeypatch.setattr(VM, "_boot", lambda vm, _timing: self.up.append(vm.spec.device))
        monkeypatch.setattr(VM, "_template", lambda vm: self.template(vm))
        monkeypatch.setattr(VM, "caps", property(lambda vm: self.template(vm).capabilities))
        monkeypatch.setattr(vm_module, "clone", lambda *_args: None)

    def template(self, vm: VM) -> Any:
        missed = self.missed.get(vm.spec.device, NO_BITS)
        return SimpleNamespace(capabilities=SimpleNamespace(bar_misses=missed, layout=Layout.MODERN))

    def come_up(self, device: Device = Device.TESTDEV, *, clone: bool = True, accel: Accel = Accel.KVM) -> VM:
        vm = VM("debian", device=device.value, clone=clone, say=Sparing(self.said.append))
        vm.kernel = cast(Any, None)
        vm._come_up(accel)
        return vm


Hosts = Callable[[dict[Device, Bits]], Host]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    return lambda missed: Host(monkeypatch, missed)


@pytest.mark.parametrize("clone", [True, False])
def test_ram_replaces_a_bar_without_memory(on: Hosts, clone: bool) -> None:
    host = on({Device.TESTDEV: Bits.D})
    vm = host.come_up(clone=clone)
    assert host.up == ([Device.SHMEM] if clone else [Device.TESTDEV, Device.SHMEM])
    assert host.closed == (0 if clone else 1), "the first machine must be closed"
    assert (vm.spec.device, vm.asked_device) == (Device.SHMEM, "pci-testdev")
    assert host.said == [
        "using ivshmem-plain instead of pci-testdev: under KVM on this host, an access does not set D in an entry of "
        "pci-testdev's BAR"
    ]


@pytest.mark.parametrize("clone", [True, False])
def test_if_no_device_passes_there_is_no_verdict(on: Hosts, clone: bool) -> None:
    host = on({Device.TESTDEV: Bits.D, Device.SHMEM: Bits.A})
    with pytest.raises(MachineryError, match="although RAM is behind it"):
        host.come_up(clone=clone)
    assert host.closed == (0 if clone else 2)


@pytest.mark.parametrize("clone", [True, False])
def test_a_bar_that_passes_is_used(on: Hosts, clone: bool) -> None:
    host = on({})
    assert host.come_up(clone=clone).spec.device is Device.TESTDEV
    assert (host.up, host.said, host.closed) == ([Device.TESTDEV], [], 0)


def test_nvme_cannot_be_replaced(on: Hosts) -> None:
    host = on({Device.NVME: Bits.D})
    with pytest.raises(PremiseNotMet, match="cannot know"):
        host.come_up(Device.NVME)
    assert host.closed == 1
