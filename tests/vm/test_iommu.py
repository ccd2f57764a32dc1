"""Tests for the IOMMU's tables on a real machine: both witnesses agree, and the run is an error if one of them lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.config import DEFAULT
from harness.errors import MachineryError, PremiseNotMet
from harness.introspect.address_spaces import AddressSpaces
from harness.introspect.processes import RangeWalk
from harness.machine.vm import VM
from harness.observe import iommu
from harness.observe.snapshot import IommuLook
from harness.pagetable import Level, Walk
from harness.pagetable.memory import Memory
from harness.pagetable.vtd import Access, DeviceTables, SourceId, device_tables

HERE = Path(__file__).parent
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def vm() -> Iterator[VM]:
    with VM("debian:6.12", DEFAULT, search=[HERE]) as machine:
        yield machine


def _run_to_its_end(vm: VM, *args: str) -> None:
    with vm.run("iommu", *args, timeout_s=TIMEOUT_S) as guest:
        guest.until("seen")


def test_both_witnesses_agree(vm: VM) -> None:
    with vm.run("iommu", timeout_s=TIMEOUT_S) as guest:
        at = guest.until("seen")
        assert at["iommu"].nested == IommuLook("parent", Access.TRANSLATED, 4 << 20, 4 << 20)
        leaf = at["iommu"].leaf("bar")
        assert (leaf.level, leaf.write, leaf.pfn) == (Level.PMD, True, at.bar("bar").start_paddr >> 12)


def test_any_device_can_be_walked_live(vm: VM) -> None:
    spaces = AddressSpaces(vm, vm.processes, vm.kvm_roots)
    with vm.run("iommu", timeout_s=TIMEOUT_S) as guest:
        leaf = guest.until("seen")["iommu"].leaf("bar")
        root, way = spaces.device("00:05.0", leaf.vaddr + 0x1000, None)
        assert isinstance(way, Walk)
        assert (root.access, way.leaf) == (Access.TRANSLATED, leaf)
        _, found = spaces.device("0000:00:05.0", 0, 1 << 39)
        assert isinstance(found, RangeWalk)
        assert [(one.level, one.vaddr) for one in found.leaves] == [(Level.PMD, 1 << 30), (Level.PMD, 2 << 30)]
        root, none = spaces.device("0000:0f:00.0", 0, None)
        assert (root.access, none) == (Access.BLOCKED, None)


def test_a_size_that_is_not_vfios_is_an_error(vm: VM) -> None:
    expected = r"VFIO's account disagree, .* iommu: walk 0x400000 bytes; VFIO has mapped 0x200000"
    with pytest.raises(MachineryError, match=expected):
        _run_to_its_end(vm, "--case=lie")


def test_a_walk_with_the_root_of_another_device_is_an_error(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_the_host_bridge(memory: Memory, rtaddr: int, _device: SourceId) -> DeviceTables:
        return device_tables(memory, rtaddr, SourceId(0, 0))

    monkeypatch.setattr(iommu, "device_tables", of_the_host_bridge)
    with pytest.raises(MachineryError, match="iommu: walk 0x0 bytes; VFIO has mapped 0x400000"):
        _run_to_its_end(vm)


def test_an_iommu_that_is_off_is_a_skip_with_the_reason() -> None:
    with (
        VM("debian:6.12", search=[HERE], append=("intel_iommu=off",), clone=False) as machine,
        pytest.raises(PremiseNotMet, match=r"0000:00:05\.0 has no IOMMU group: .*intel_iommu=off"),
    ):
        _run_to_its_end(machine)
