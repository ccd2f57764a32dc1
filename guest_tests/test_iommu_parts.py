"""VFIO_IOMMU_UNMAP_DMA takes whole calls of VFIO_IOMMU_MAP_DMA, as many as its range covers, or nothing."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.pagetable import Leaf, Level

pytestmark = pytest.mark.leaves_no_trace

TIMEOUT_S = 60.0


def _act(vm: VM, level: Level, claim: Claims, case: str, *, error: str, taken: tuple[str, ...]) -> None:
    """What holds for each case.

    :param error: what the call returns.
    :param taken: the ranges that it takes.
    """
    with vm.run("iommu_parts", f"--level={level.label}", f"--case={case}", timeout_s=TIMEOUT_S) as guest:
        mapped = guest.until("mapped")["iommu"]
        before = {name: mapped.leaves(name) for name in ("first", "second")}
        with claim(f"the same {level.label} is mapped at two addresses", fn.vfio_dma_do_map):
            assert mapped.leaf("first").level is level
            assert mapped.leaf("first").entry == mapped.leaf("second").entry
        done = guest.until("done")["iommu"]
        for name in before:
            expected: tuple[Leaf, ...] = () if name in taken else before[name]
            with claim(f"the {name} range is {'gone' if name in taken else 'as it was'}", fn.vfio_unmap_unpin):
                assert done.leaves(name) == expected
        size = sum(leaf.size_bytes for name in taken for leaf in before[name])
        values = guest.result.values
        with claim(f"the call returns {error}, and the size of what it took", fn.vfio_dma_do_unmap):
            assert (values["error"], int(values["bytes"])) == (error, size)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_dma_do_unmap)
def test_iommu_unmap_all(vm: VM, level: Level, claim: Claims) -> None:
    """VFIO_DMA_UNMAP_FLAG_ALL takes everything, and gives back its size."""
    _act(vm, level, claim, "all", error="0", taken=("first", "second"))


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_dma_do_unmap)
def test_iommu_unmap_both(vm: VM, level: Level, claim: Claims) -> None:
    """A range that covers two mappings takes both, and gives back the sum."""
    _act(vm, level, claim, "both", error="0", taken=("first", "second"))


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_dma_do_unmap)
def test_iommu_unmap_one(vm: VM, level: Level, claim: Claims) -> None:
    """Where a leaf is mapped twice, the unmapping of one leaves the other."""
    _act(vm, level, claim, "one", error="0", taken=("second",))


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_dma_do_unmap)
def test_iommu_unmap_part(vm: VM, level: Level, claim: Claims) -> None:
    """A part of what was mapped in one call cannot be unmapped: EINVAL, and nothing changes."""
    _act(vm, level, claim, "part", error="EINVAL", taken=())


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_dma_do_unmap)
def test_iommu_unmap_nothing(vm: VM, level: Level, claim: Claims) -> None:
    """A range with nothing mapped is unmapped without an error, and gives back 0 bytes."""
    _act(vm, level, claim, "nothing", error="0", taken=())


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_dma_do_map)
def test_iommu_map_again(vm: VM, level: Level, claim: Claims) -> None:
    """An address that is mapped cannot be mapped again: EEXIST, and nothing changes."""
    _act(vm, level, claim, "again", error="EEXIST", taken=())
