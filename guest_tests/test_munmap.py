"""munmap() of all and of part of a leaf: the hole is empty, the rest stays usable, another process keeps its own."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.kernel import has_symbol
from harness.machine.vm import VM
from harness.observe.snapshot import ProcessView, Snapshot
from harness.pagetable import Bits, Leaf, Level

pytestmark = pytest.mark.leaves_no_trace

ZAPPED_BY = {Level.PTE: fn.zap_pte_range, **fn.SPLIT_BY}
PAGE_SIZE_BYTES = 4096
#: What a refault may differ in from the first fault: the level, and the dirty bit of the writes since.
LEVEL_AND_DIRTY = Bits.PSE | Bits.D
NO_MAPPING = "SEGV code 1 there"  # SEGV_MAPERR, and si_addr is where it was tried


def largest_leaf(process: ProcessView, mapping: str, offset: int) -> Level:
    """The level of the largest leaf around ``offset`` that stays within the mapping, where address and pfn agree."""
    declared = process.mapping(mapping).declared
    for level in (Level.PUD, Level.PMD):
        size = PAGE_SIZE_BYTES << 9 * (2 if level is Level.PUD else 1)
        start = (declared.vaddr + offset) // size * size
        congruent = (declared.vaddr - declared.offset_bytes) % size == 0
        if congruent and declared.vaddr <= start and start + size <= declared.vaddr + declared.size_bytes:
            return level
    return Level.PTE


def both_ends(process: ProcessView, mapping: str) -> tuple[int, int]:
    """Offsets of the first and the last page: where the program touches each mapping."""
    return 0, process.mapping(mapping).declared.size_bytes - PAGE_SIZE_BYTES


def _rest(process: ProcessView) -> list[str]:
    return [name for name in ("low", "high") if name in process.mappings]


def _zapped_by_open(vm: VM, process: ProcessView) -> bool:
    """Whether the split at the hole made a new VMA behind it, and vfio-pci zapped that."""
    return _rest(process) == ["low", "high"] and bool(has_symbol(vm.kernel, "vfio_pci_core", "vfio_pci_mmap_open"))


def _is_as_it_was(process: ProcessView, names: list[str], written: ProcessView) -> None:
    for name in names:
        for offset in both_ends(process, name):
            before = written.leaf("bar", process.mapping(name).declared.offset_bytes + offset)
            assert process.leaf(name, offset).entry == before.entry


def _refaulted(process: ProcessView, mapping: str, first: Leaf) -> None:
    for offset in both_ends(process, mapping):
        leaf = process.leaf(mapping, offset)
        assert leaf.level is largest_leaf(process, mapping, offset), leaf
        assert leaf.bits & ~LEVEL_AND_DIRTY == first.bits & ~LEVEL_AND_DIRTY, leaf
        assert not leaf.kernel_dirty, leaf


def _munmap(vm: VM, level: Level, claim: Claims, case: str, *options: str) -> Snapshot:
    """What holds wherever the hole is; returns the stop after munmap()."""
    zapped_by = ZAPPED_BY[level]
    over = case in ("over", "remap")
    with vm.run("munmap", f"--level={level.label}", f"--case={case}", *options, timeout_s=20.0) as guest:
        first = guest.until("read")["parent"].leaf("bar")
        with claim(f"the mapping begins as {level.label}", fn.vfio_pci_mmap_huge_fault):
            assert first.level is level
        written = guest.until("written")["parent"]
        unmapped = guest.until("unmapped")
        parent = unmapped["parent"]
        with claim("no entry is left where it was unmapped", zapped_by):
            assert parent.leaves("over" if over else "hole") == ()
        emptied = _zapped_by_open(vm, parent)
        kept = [] if level is not Level.PTE else ["low"] if emptied else _rest(parent)
        if emptied:
            with claim("vfio-pci zaps the VMA that the split made", fn.vfio_pci_mmap_open):
                assert parent.leaves("high") == ()
        if level is Level.PTE:
            with claim("the rest keeps its entries", zapped_by):
                _is_as_it_was(parent, kept, written)
        else:
            with claim("a leaf that lost a part is zapped as a whole", zapped_by):
                assert [leaf for name in _rest(parent) for leaf in parent.leaves(name)] == []
        if "--child=1" in options:
            _child_keeps(claim, written, unmapped, guest.until("child-written"), level)

        at = guest.until("refaulted")["parent"]
        if kept:
            with claim("touching the rest changes nothing", zapped_by):
                _is_as_it_was(at, kept, written)
        if kept != _rest(at):
            with claim("the rest comes back clean, at the largest level that fits", fn.vfio_pci_mmap_huge_fault):
                for name in set(_rest(at)) - set(kept):
                    _refaulted(at, name, first)
        if over:
            with claim(
                "what was mapped there has entries of its own, at the largest level that fits",
                fn.vfio_pci_mmap_huge_fault,
            ):
                _refaulted(at, "over", first)
        else:
            with claim("touching the rest makes no entry where it was unmapped", fn.vfio_pci_mmap_huge_fault):
                assert at.leaves("hole") == ()

        at = guest.until("gone")["parent"]
        with claim("no entry is left once all of it is unmapped", zapped_by):
            assert at.leaves("hole") == ()
        with claim("every page table that the mapping needed is freed again", fn.free_pgd_range):
            assert guest.result.values["table-kib-left"] == "0"
        with claim("the program passed", zapped_by):
            assert guest.result.passed, guest.result.reason
        if not over:
            with claim("access to either end of the hole gets SIGSEGV, SEGV_MAPERR", fn.handle_mm_fault):
                assert guest.result.values["hole-first"] == NO_MAPPING
                assert guest.result.values["hole-last"] == NO_MAPPING
        if "--child=1" in options:
            with claim("the child writes there without a fault", zapped_by):
                assert guest.result.values["child-write-faults"] == "0"
    return unmapped


def _child_keeps(claim: Claims, written: ProcessView, at: Snapshot, later: Snapshot, level: Level) -> None:
    offset = at["parent"].mapping("hole").declared.offset_bytes
    before = written.leaf("bar", offset)
    with claim("the child keeps its whole leaf", ZAPPED_BY[level]):
        child = at["child"].leaf("bar", offset)
        assert child.level is level
        assert child.pfn == before.pfn
        assert child.write
    with claim("the child's write sets the accessed and dirty bits in that leaf", fn.CPU):
        child = later["child"].leaf("bar", offset)
        assert child.bits == before.bits
        assert child.pfn == before.pfn
    with claim("the child's write maps nothing in the parent", ZAPPED_BY[level]):
        assert later["parent"].leaves("hole") == ()


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.zap_pte_range, fn.SPLIT_BY)
def test_munmap_start(vm: VM, level: Level, claim: Claims) -> None:
    """munmap() of a leaf's first part: nothing is left there, the rest comes back at the largest level that fits."""
    _munmap(vm, level, claim, "start")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.zap_pte_range, fn.SPLIT_BY)
def test_munmap_middle(vm: VM, level: Level, claim: Claims) -> None:
    """munmap() of the middle of a leaf: nothing is left there, both sides come back at the largest level that fits."""
    _munmap(vm, level, claim, "middle")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.zap_pte_range, fn.SPLIT_BY)
def test_munmap_end(vm: VM, level: Level, claim: Claims) -> None:
    """munmap() of a leaf's last part: nothing is left there, the rest comes back at the largest level that fits."""
    _munmap(vm, level, claim, "end")


@pytest.mark.levels("pud")
@pytest.mark.decided_by(fn.vma_adjust_trans_huge, fn.mm_find_pmd)
def test_munmap_page(vm: VM, level: Level, claim: Claims) -> None:
    """munmap() of one page of a 1G leaf: it is zapped, the 2M around the page come back as pages, the rest as 2M."""
    _munmap(vm, level, claim, "page")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vma_adjust_trans_huge, fn.zap_pte_range)
def test_munmap_across(vm: VM, level: Level, claim: Claims) -> None:
    """munmap() of eight pages across two leaves: both are zapped, and nothing reaches into the hole again."""
    _munmap(vm, level, claim, "across")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.unmap_page_range, fn.free_pgd_range)
def test_munmap_whole(vm: VM, level: Level, claim: Claims) -> None:
    """munmap() of everything: no entry and no page table is left, and access gets SIGSEGV."""
    _munmap(vm, level, claim, "whole")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.zap_pte_range, fn.SPLIT_BY)
def test_munmap_child_keeps(vm: VM, level: Level, claim: Claims) -> None:
    """munmap() of part of a leaf in the parent: the child keeps the whole leaf, and writes there without a fault."""
    _munmap(vm, level, claim, "middle", "--child=1")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.mlock_fixup, fn.unmap_page_range)
def test_munmap_locked(vm: VM, level: Level, claim: Claims) -> None:
    """munmap() of part of a mapping that was mlock()ed does what it does to one that was not."""
    _munmap(vm, level, claim, "middle", "--lock=1")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.unmap_page_range, fn.vfio_pci_mmap_huge_fault)
def test_mmap_over(vm: VM, level: Level, claim: Claims) -> None:
    """mmap(MAP_FIXED) of another part of the BAR into a leaf: it is zapped, old and new come back with their pfns."""
    _munmap(vm, level, claim, "over")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.remap_file_pages, fn.vfio_pci_mmap_huge_fault)
def test_remap_file_pages(vm: VM, level: Level, claim: Claims) -> None:
    """remap_file_pages() of part of a leaf is an mmap(MAP_FIXED) over it: old and new come back with their pfns."""
    _munmap(vm, level, claim, "remap")
