"""Tests for the IOMMU's tables on a real machine: both witnesses agree, and the run is an error if one of them lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.config import DEFAULT
from harness.errors import MachineryError, PremiseNotMet
from harness.machine.vm import VM
from harness.observe import iommu
from harness.observe.snapshot import IommuLook
from harness.pagetable import Level
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
