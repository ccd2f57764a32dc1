"""VFIO_IOMMU_MAP_DMA maps a leaf of a BAR into the IOMMU: how large, with which rights, and that it can be unmapped."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.observe.snapshot import Snapshot
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

TIMEOUT_S = 60.0
BELOW = {Level.PMD: Level.PTE, Level.PUD: Level.PMD}


def _consecutive(at: Snapshot, first_pfn: int) -> bool:
    """Whether the IOMMU's leaves of the range follow each other without a gap, from this pfn on."""
    leaves = at["iommu"].leaves("bar")
    start = leaves[0].vaddr
    return all(leaf.pfn == first_pfn + (leaf.vaddr - start) // 4096 for leaf in leaves)


def _bytes(at: Snapshot) -> int:
    return sum(leaf.size_bytes for leaf in at["iommu"].leaves("bar"))


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.follow_fault_pfn, fn.vfio_iommu_map, fn.hardware_largepage_caps)
def test_iommu_level(vm: VM, level: Level, claim: Claims) -> None:
    """VFIO_IOMMU_MAP_DMA of a whole leaf arrives in the IOMMU at its level, and VFIO_IOMMU_UNMAP_DMA takes it again."""
    with vm.run("iommu", f"--level={level.label}", timeout_s=TIMEOUT_S) as guest:
        opened = guest.until("opened")
        host = opened["parent"].leaf("bar")
        with claim("before the call, the device reaches nothing", fn.vfio_iommu_map):
            assert opened["iommu"].leaves("bar") == ()
        mapped = guest.until("mapped")
        leaves = mapped["iommu"].leaves("bar")
        with claim(f"the IOMMU maps the whole leaf as one {level.label}", fn.hardware_largepage_caps):
            assert host.level is level
            assert [leaf.level for leaf in leaves] == [level] * (4 if level is Level.PTE else 1)
        with claim("the IOMMU maps the pfns of the process's leaves", fn.follow_fault_pfn):
            assert _consecutive(mapped, host.pfn)
        with claim("the device may read and write", fn.vfio_iommu_map):
            assert all(leaf.write and "R" in leaf.bits.names() for leaf in leaves)
        with claim("the call changes nothing in the process's first entry", fn.follow_fault_pfn):
            assert mapped["parent"].leaf("bar").entry == host.entry
        unmapped = guest.until("unmapped")
        with claim("after the unmapping, the device reaches nothing", fn.vfio_unmap_unpin):
            assert unmapped["iommu"].leaves("bar") == ()
        values = guest.result.values
        with claim("both calls succeed, and the second gives back the size of the first", fn.vfio_dma_do_unmap):
            assert (values["map"], values["unmap"], int(values["unmapped"])) == ("0", "0", _bytes(mapped))


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.follow_pfnmap_start, fn.hardware_largepage_caps)
def test_iommu_middle(vm: VM, level: Level, claim: Claims) -> None:
    """VFIO_IOMMU_MAP_DMA from the middle of a leaf maps its second half, one level below."""
    with vm.run("iommu", f"--level={level.label}", "--case=middle", timeout_s=TIMEOUT_S) as guest:
        host = guest.until("opened")["parent"].leaf("bar")
        mapped = guest.until("mapped")
        with claim("the call succeeds, and the device reaches the second half of the leaf", fn.vfio_iommu_map):
            assert _bytes(mapped) == level.size_bytes // 2
        with claim("the IOMMU maps the pfn of the leaf's middle", fn.follow_pfnmap_start):
            assert _consecutive(mapped, host.pfn + level.size_bytes // 2 // 4096)
        with claim("one level below, because the whole leaf does not fit", fn.hardware_largepage_caps):
            assert {leaf.level for leaf in mapped["iommu"].leaves("bar")} == {BELOW[level]}
        with claim("the unmapping gives back as much", fn.vfio_dma_do_unmap):
            assert int(guest.result.values["unmapped"]) == level.size_bytes // 2


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.follow_fault_pfn, fn.hardware_largepage_caps)
def test_iommu_skewed(vm: VM, level: Level, claim: Claims) -> None:
    """At an IO virtual address that is not aligned as the leaf is, the IOMMU maps it one level below."""
    with vm.run("iommu", f"--level={level.label}", "--case=skewed", timeout_s=TIMEOUT_S) as guest:
        host = guest.until("opened")["parent"].leaf("bar")
        mapped = guest.until("mapped")
        with claim("the device reaches the whole leaf", fn.vfio_iommu_map):
            assert _bytes(mapped) == level.size_bytes
            assert _consecutive(mapped, host.pfn)
        with claim("one level below, because the addresses are not congruent", fn.hardware_largepage_caps):
            assert {leaf.level for leaf in mapped["iommu"].leaves("bar")} == {BELOW[level]}
        with claim("the unmapping gives back as much", fn.vfio_dma_do_unmap):
            assert int(guest.result.values["unmapped"]) == level.size_bytes


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_dma_do_map, fn.vfio_iommu_map)
def test_iommu_read_only(vm: VM, level: Level, claim: Claims) -> None:
    """Without VFIO_DMA_MAP_FLAG_WRITE the device may only read, at the leaf's level."""
    with vm.run("iommu", f"--level={level.label}", "--case=no-write", timeout_s=TIMEOUT_S) as guest:
        leaf = guest.until("mapped")["iommu"].leaf("bar")
        with claim(f"the IOMMU maps a {level.label}", fn.hardware_largepage_caps):
            assert leaf.level is level
        with claim("without the flag for writing, the device may only read", fn.vfio_dma_do_map):
            assert "R" in leaf.bits.names()
            assert not leaf.write


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.follow_fault_pfn, fn.vfio_dma_do_map)
def test_iommu_read_only_mapping(vm: VM, level: Level, claim: Claims) -> None:
    """A mapping with PROT_READ cannot be mapped for the device to write, and can be for it to read."""
    with vm.run("iommu", f"--level={level.label}", "--case=read-only", timeout_s=TIMEOUT_S) as guest:
        opened = guest.until("opened")
        with claim("the process's leaf is not writable", fn.FAULTED_BY[level]):
            assert not opened["parent"].leaf("bar").write
        mapped = guest.until("mapped")
        with claim(f"the IOMMU maps a {level.label} that the device may only read", fn.vfio_iommu_map):
            assert mapped["iommu"].leaf("bar").level is level
            assert not mapped["iommu"].leaf("bar").write
        values = guest.result.values
        with claim("the call for writing is EFAULT, the one for reading succeeds", fn.follow_fault_pfn):
            assert (values["map-writable"], values["map"]) == ("EFAULT", "0")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vaddr_get_pfns, fn.vfio_iommu_map, fn.hardware_largepage_caps)
def test_iommu_gigabyte(vm: VM, level: Level, claim: Claims) -> None:
    """One VFIO_IOMMU_MAP_DMA of 1 GiB arrives as one pud, whatever leaves the process has there."""
    with vm.run("iommu_gigabyte", f"--level={level.label}", timeout_s=2 * TIMEOUT_S) as guest:
        mapped = guest.until("mapped")
        with claim(f"the process has leaves of level {level.label}", fn.FAULTED_BY[level]):
            assert {leaf.level for leaf in mapped["parent"].leaves("bar")} == {level}
        with claim("the IOMMU maps all of it as one pud", fn.hardware_largepage_caps):
            assert [leaf.level for leaf in mapped["iommu"].leaves("bar")] == [Level.PUD]
            assert mapped["iommu"].leaf("bar").pfn == mapped["parent"].leaf("bar").pfn
        values = guest.result.values
        with claim("the unmapping gives back as much", fn.vfio_dma_do_unmap):
            assert (values["map"], int(values["unmapped"])) == ("0", Level.PUD.size_bytes)
