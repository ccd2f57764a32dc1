"""Ordinary memory: both witnesses see the same thing. What the walk says about a pfnmap rests on this."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.errors import PremiseNotMet
from harness.machine.vm import VM
from harness.observe.snapshot import ProcessView, Snapshot
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace


def _agree(process: ProcessView) -> None:
    """Walk and pagemap agree on every page: whether it is present, and its pfn."""
    view = process.mapping("memory")
    assert len(view.pagemap) == view.declared.size_bytes // 4096
    for number, word in enumerate(view.pagemap):
        leaf = view.leaf_at(number * 4096)
        assert word.present == (leaf is not None), f"page {number}: {word}, {leaf}"
        if leaf is not None:
            assert word.pfn == leaf.pfn_at(view.declared.vaddr + number * 4096), f"page {number}: {word}, {leaf}"


def _soft_dirty_agrees(process: ProcessView) -> None:
    view = process.mapping("memory")
    for number, word in enumerate(view.pagemap):
        leaf = view.leaf_at(number * 4096)
        assert word.soft_dirty == (leaf is not None and leaf.soft_dirty), f"page {number}: {word}, {leaf}"


def _calibrate(vm: VM, claim: Claims, memory: str, level: Level, pages: int) -> Snapshot:
    """Claims what holds for every kind of memory. Returns the stop after fork()."""
    with vm.run("calibrate", f"--memory={memory}") as guest:
        at = guest.until("filled")
        with claim(f"{pages} pages are mapped, as {level.label}", fn.pagemap_read):
            leaves = at["parent"].leaves("memory")
            assert {leaf.level for leaf in leaves} == {level}
            assert sum(leaf.size_bytes for leaf in leaves) == pages * 4096
        with claim("walk and pagemap agree on present and pfn of every page", fn.pagemap_read):
            _agree(at["parent"])

        at = guest.until("cleaned")
        if vm.caps.soft_dirty:
            with claim("after clear_refs 4 walk and pagemap show nothing soft-dirty", fn.clear_refs_write):
                assert not any(leaf.soft_dirty for leaf in at["parent"].leaves("memory"))
                _soft_dirty_agrees(at["parent"])
        at = guest.until("rewritten")
        if vm.caps.soft_dirty:
            with claim("after a write walk and pagemap show its entry soft-dirty", fn.wp_page_reuse):
                assert at["parent"].leaf("memory", 4096).soft_dirty
                _soft_dirty_agrees(at["parent"])
        with claim("the rewritten page is still the same page", fn.pagemap_read):
            _agree(at["parent"])

        forked = guest.until("forked")
        with claim("walk and pagemap agree in parent and child after fork", fn.pagemap_read):
            _agree(forked["parent"])
            _agree(forked["child"])
        at = guest.until("child-written")
        with claim("walk and pagemap agree after the child's write", fn.pagemap_read):
            _agree(at["child"])
            _agree(at["parent"])
        with claim("the page that the child wrote is its own, or the shared one", fn.do_wp_page):
            same = at["child"].mapping("memory").pagemap[0].pfn == at["parent"].mapping("memory").pagemap[0].pfn
            assert same == (memory == "shmem")
        with claim("the program passed", ""):
            assert guest.result.passed, guest.result.reason
    return forked


@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.copy_pte_range)
def test_calibrate_anon(vm: VM, claim: Claims) -> None:
    """Anonymous 4K pages: walk and pagemap agree; after fork a page is read-only in parent and child."""
    forked = _calibrate(vm, claim, "anon", Level.PTE, 15)
    with claim("after fork every page is read-only in parent and child", fn.copy_pte_range):
        for process in forked:
            leaves = process.leaves("memory")
            assert len(leaves) == 15
            assert not any(leaf.write for leaf in leaves)


@pytest.mark.levels("pmd")
@pytest.mark.decided_by(fn.copy_huge_pmd)
def test_calibrate_thp(vm: VM, claim: Claims) -> None:
    """A transparent huge page: walk and pagemap agree on its 512 pages; after fork it is read-only in both."""
    if vm.caps.why_no_thp:
        raise PremiseNotMet(vm.caps.why_no_thp)
    forked = _calibrate(vm, claim, "thp", Level.PMD, 512)
    with claim("after fork the huge page is read-only in parent and child", fn.copy_huge_pmd):
        for process in forked:
            assert process.leaf("memory").level is Level.PMD
            assert not process.leaf("memory").write


@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.vma_needs_copy)
def test_calibrate_shmem(vm: VM, claim: Claims) -> None:
    """A shared file: walk and pagemap agree; fork copies no entry, the child faults its own in."""
    forked = _calibrate(vm, claim, "shmem", Level.PTE, 15)
    with claim("fork copies no entry of shared memory that a fault can find again", fn.vma_needs_copy):
        assert forked["child"].leaves("memory") == ()
        assert len(forked["parent"].leaves("memory")) == 15
