"""What VFIO_IOMMU_MAP_DMA has mapped stays until it is unmapped or its process ends."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

TIMEOUT_S = 60.0


def _gone(vm: VM, level: Level, claim: Claims, case: str) -> None:
    """What holds whatever takes the leaf from the process."""
    with vm.run("iommu_gone", f"--level={level.label}", f"--case={case}", timeout_s=TIMEOUT_S) as guest:
        mapped = guest.until("mapped")["iommu"].leaves("bar")
        with claim(f"the IOMMU has the {level.label}", fn.hardware_largepage_caps):
            assert {leaf.level for leaf in mapped} == {level}
        gone = guest.until("gone")
        with claim("the process cannot reach the leaf any more", fn.follow_fault_pfn):
            assert not any(leaf.hardware_present for leaf in gone["parent"].leaves("bar"))
        with claim("the device can: the IOMMU has it as it was", fn.vfio_dma_do_unmap):
            assert gone["iommu"].leaves("bar") == mapped
        tried = guest.until("tried")
        with claim("nothing is mapped meanwhile", fn.follow_fault_pfn):
            assert tried["iommu"].leaves("late") == ()
            assert tried["iommu"].leaves("bar") == mapped
        back = guest.until("back")
        with claim("when the process's mapping is back, the device gets the same leaf again", fn.follow_fault_pfn):
            late = back["iommu"].leaves("late")
            assert [(leaf.level, leaf.pfn) for leaf in late] == [(leaf.level, leaf.pfn) for leaf in mapped]
        guest.until("unmapped")
        values = guest.result.values
        with claim("VFIO_IOMMU_MAP_DMA is EFAULT meanwhile, and succeeds before and after", fn.follow_fault_pfn):
            assert (values["before"], values["while"], values["after"]) == ("0", "EFAULT", "0")
        with claim("the unmapping gives back both", fn.vfio_dma_do_unmap):
            assert int(values["unmapped"]) == 2 * sum(leaf.size_bytes for leaf in mapped)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.follow_fault_pfn, fn.vfio_dma_do_unmap)
def test_iommu_memory_off(vm: VM, level: Level, claim: Claims) -> None:
    """A leaf that the device's memory off takes from the process stays in the IOMMU; it cannot be mapped meanwhile."""
    _gone(vm, level, claim, "memory")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.follow_fault_pfn, fn.vfio_dma_do_unmap)
def test_iommu_munmap(vm: VM, level: Level, claim: Claims) -> None:
    """A leaf that munmap() takes from the process stays in the IOMMU; it cannot be mapped meanwhile."""
    _gone(vm, level, claim, "munmap")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.follow_fault_pfn, fn.vfio_dma_do_unmap)
def test_iommu_protnone(vm: VM, level: Level, claim: Claims) -> None:
    """A leaf that is PROT_NONE stays in the IOMMU; it cannot be mapped for writing meanwhile."""
    _gone(vm, level, claim, "protnone")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.follow_pfnmap_start, fn.follow_fault_pfn)
def test_iommu_unread(vm: VM, level: Level, claim: Claims) -> None:
    """A leaf that is PROT_NONE cannot be mapped for the device to read."""
    _gone(vm, level, claim, "unread")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_iommu_type1_detach_group, fn.vfio_unmap_unpin)
def test_iommu_dead(vm: VM, level: Level, claim: Claims) -> None:
    """A process that is killed leaves nothing in the IOMMU's tables of its device."""
    with vm.run("iommu_dead", f"--level={level.label}", timeout_s=TIMEOUT_S) as guest:
        mapped = guest.until("mapped")
        with claim(f"the device reaches the child's {level.label}", fn.vfio_iommu_map):
            assert mapped["iommu"].leaf("bar").level is level
            assert mapped["iommu"].leaf("bar").pfn == mapped["child"].leaf("bar").pfn
        dead = guest.until("dead")
        with claim("when the child is dead, the device reaches nothing", fn.vfio_iommu_type1_detach_group):
            assert dead["iommu"].leaves("bar") == ()
            assert "child" not in dead
