"""VFIO_IOMMU_MAP_DMA of whole leaves of a BAR."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

#: A kernel that maps the leaf page by page needs 0.6 to 1.1 of the time for as many pte leaves; one that maps it as a
#: whole, less than 1/60 (measured under TCG, 6.12 to 7.3). Both are far from this limit, even on a busy host.
AT_LEAST_CHEAPER = 8
TIMEOUT_S = 60.0


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.follow_fault_pfn, fn.follow_pfnmap_start)
def test_map_dma_whole_leaf(vm: VM, level: Level, claim: Claims) -> None:
    """VFIO_IOMMU_MAP_DMA maps a leaf as a whole, at a cost that does not grow with its pages, and changes no entry."""
    with vm.run("dma", f"--level={level.label}", timeout_s=TIMEOUT_S) as guest:
        before = guest.until("before")["parent"]
        with claim("one leaf of the level, and pte leaves of the BAR's first pages", fn.follow_fault_pfn):
            assert before.leaf("bar").level is level
            assert {leaf.level for leaf in before.leaves("paged")} == {Level.PTE}
        after = guest.until("after")["parent"]
        for name in ("bar", "paged"):
            with claim(f"no entry of {name} changes", fn.follow_fault_pfn):
                assert [leaf.entry for leaf in after.leaves(name)] == [leaf.entry for leaf in before.leaves(name)]
        values = guest.result.values
        page_by_page_ns = int(values["paged-ns"]) * (level.size_bytes // 4096) // int(values["paged-pages"])
        with claim(f"the leaf costs less than 1/{AT_LEAST_CHEAPER} of its pages mapped one by one", fn.vaddr_get_pfns):
            assert int(values["leaf-ns"]) * AT_LEAST_CHEAPER < page_by_page_ns


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.follow_fault_pfn)
def test_map_dma_soft_dirty(vm: VM, level: Level, claim: Claims) -> None:
    """MAP_DMA maps a leaf that clear_refs 4 made read-only to see the next write: its process may write there."""
    _maps_what_is_tracked(vm, level, claim, "written")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.follow_fault_pfn)
def test_map_dma_soft_dirty_first(vm: VM, level: Level, claim: Claims) -> None:
    """MAP_DMA maps a hole after clear_refs 4: the leaf that is made for it may be read-only to see the next write."""
    _maps_what_is_tracked(vm, level, claim, "fresh")


def _maps_what_is_tracked(vm: VM, level: Level, claim: Claims, case: str) -> None:
    if not vm.caps.soft_dirty:
        pytest.skip("this kernel has no soft-dirty tracking (CONFIG_MEM_SOFT_DIRTY)")
    with vm.run("dma_tracked", f"--level={level.label}", f"--case={case}") as guest:
        before = guest.until("before")["parent"]
        found = before.find_leaf("bar")
        with claim("before: the leaf if it was written, and a hole otherwise", fn.follow_fault_pfn):
            assert (found.level if found is not None else None) is (level if case == "written" else None)
        guest.until("mapped")
        with claim("MAP_DMA for write maps what its process may write", fn.follow_fault_pfn):
            assert guest.result.values["map"] == "0"
