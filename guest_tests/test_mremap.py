"""mremap(): entries move along with their dirty bits, or are zapped and come back; nothing stays behind."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.kernel import has_symbol
from harness.machine.vm import VM
from harness.observe.snapshot import ProcessView
from harness.pagetable import Bits, Leaf, Level

pytestmark = pytest.mark.leaves_no_trace

MOVED_BY = {
    Level.PTE: fn.move_ptes,
    Level.PMD: fn.move_huge_pmd,
    Level.PUD: fn.move_huge_pud,
}
TABLE_MOVED_BY = {
    Level.PTE: fn.move_normal_pmd,
    Level.PMD: fn.move_normal_pud,
}
LOWER = {Level.PUD: Level.PMD, Level.PMD: Level.PTE}


def _went_along(leaf: Leaf, before: Leaf) -> None:
    """The same entry, but for the soft-dirty mark of a move."""
    assert leaf.pfn == before.pfn
    assert leaf.level is before.level
    assert leaf.bits & ~Bits.SOFT_DIRTY == before.bits & ~Bits.SOFT_DIRTY


def _nothing_stays(claim: Claims, process: ProcessView, values: dict[str, str], by: fn.KernelFunction) -> None:
    with claim("no entry is left at the old address", by):
        assert process.leaves("old") == ()
    with claim("access to the old address gets SIGSEGV at once: the TLB was flushed", by):
        assert values["old-read"] == "SEGV"


def _kept(
    vm: VM, level: Level, claim: Claims, case: str, *options: str, by: fn.KernelFunction, soft_dirty: bool | None
) -> None:
    """Moves that take the entries along. :param soft_dirty: what the move makes of that bit; None: not known."""
    with vm.run("mremap", f"--level={level.label}", f"--case={case}", *options, timeout_s=20.0) as guest:
        before = guest.until("written")["parent"].leaf("bar")
        with claim(f"the mapping begins as a dirty {level.label}", fn.vfio_pci_mmap_huge_fault):
            assert before.level is level
            assert before.dirty
        if case == "readonly":
            before = guest.until("readonly")["parent"].leaf("bar")
        forked = guest.until("forked")["child"].leaf("bar") if "--child=1" in options else None
        at = guest.until("moved")
        with claim("the entry moves along, bit by bit", by):
            _went_along(at["parent"].leaf("moved"), before)
        with claim("its dirty bit moves along", by):
            assert at["parent"].leaf("moved").kernel_dirty == before.kernel_dirty
        if soft_dirty is not None and vm.caps.soft_dirty:
            with claim(f"the move makes the entry {'' if soft_dirty else 'not '}soft-dirty", by):
                assert at["parent"].leaf("moved").soft_dirty == soft_dirty
        if forked is not None:
            with claim("the child's entry stays where it was", by):
                assert at["child"].leaf("bar").entry | vm.caps.early == forked.entry | vm.caps.early
            child = guest.until("child-written")["child"].leaf("bar")
            with claim("the child writes there as before", fn.CPU):
                assert child.bits & ~(Bits.A | Bits.D) == forked.bits & ~(Bits.A | Bits.D)
                assert child.dirty
        used = guest.until("used")["parent"]
        with claim("an access at the new address changes nothing", by):
            assert at["parent"].leaf("moved").entry == used.leaf("moved").entry
        if case == "readonly":
            back = guest.until("back")["parent"].leaf("moved")
            # Whether mprotect() keeps the dirty bit is another scenario's claim; here, what it left is not lost.
            with claim("writable again, the moved entry is as dirty as it was", fn.pte_mkwrite):
                assert back.write
                assert back.dirty == before.kernel_dirty
                assert not back.saved_dirty
        values = guest.result.values
        _nothing_stays(claim, at["parent"], values, by)
        with claim("the new address needs no fault", by):
            assert values["moved-faults"] == "0"
        if case == "readonly":
            with claim("the move gives no right to write", by):
                assert values["readonly-write"] == "SEGV"
        if forked is not None:
            with claim("the child writes without a fault", by):
                assert values["child-write-faults"] == "0"
        with claim("the program passed", by):
            assert guest.result.passed, guest.result.reason


def _dropped(vm: VM, level: Level, claim: Claims, case: str, comes_back_as: Level) -> None:
    """Moves to where a leaf of this level does not fit."""
    by = fn.SPLIT_BY[level]
    with vm.run("mremap", f"--level={level.label}", f"--case={case}", timeout_s=20.0) as guest:
        before = guest.until("written")["parent"].leaf("bar")
        with claim(f"the mapping begins as {level.label}", fn.vfio_pci_mmap_huge_fault):
            assert before.level is level
        moved = guest.until("moved")["parent"]
        names = [name for name in ("low", "moved", "high") if name in moved.mappings]
        with claim("the whole leaf is zapped", by):
            assert [leaf for name in names for leaf in moved.leaves(name)] == []
        used = guest.until("used")["parent"]
        with claim(f"the new address comes back as {comes_back_as.label}, clean", fn.vfio_pci_mmap_huge_fault):
            leaves = used.leaves("moved")
            assert {leaf.level for leaf in leaves} == {comes_back_as}
            assert not any(leaf.kernel_dirty for leaf in leaves)
            dirt = Bits.D | Bits.SOFT_DIRTY  # a write fault may have set both
            assert {leaf.bits for leaf in leaves} == {before.bits & ~(dirt | Bits.PSE) | (leaves[0].bits & Bits.PSE)}
        if case == "part":
            with claim(f"what stayed comes back as {comes_back_as.label}", fn.vfio_pci_mmap_huge_fault):
                assert {leaf.level for name in ("low", "high") for leaf in used.leaves(name)} == {comes_back_as}
                assert used.leaves("low")
                assert used.leaves("high")
        values = guest.result.values
        _nothing_stays(claim, moved, values, by)
        with claim("the new address needs a fault", fn.vfio_pci_mmap_huge_fault):
            assert values["moved-faults"] == "1"
        with claim("the program passed", by):
            assert guest.result.passed, guest.result.reason


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.move_ptes, fn.move_huge_pmd, fn.move_huge_pud)
def test_mremap_leaf(vm: VM, level: Level, claim: Claims) -> None:
    """mremap() to where a leaf of the same level fits moves the entry with its dirty bit; nothing stays behind."""
    _kept(vm, level, claim, "leaf", by=MOVED_BY[level], soft_dirty=None if level is Level.PUD else True)


@pytest.mark.levels("pte", "pmd")
@pytest.mark.decided_by(fn.move_normal_pmd, fn.move_normal_pud)
def test_mremap_table(vm: VM, level: Level, claim: Claims) -> None:
    """mremap() of a whole page table moves the table: no entry in it changes a bit."""
    _kept(vm, level, claim, "table", by=TABLE_MOVED_BY[level], soft_dirty=False)


@pytest.mark.levels("pud")
@pytest.mark.decided_by(fn.move_page_tables)
def test_mremap_less(vm: VM, level: Level, claim: Claims) -> None:
    """mremap() of a 1G leaf to where only 2M leaves fit zaps it; 2M leaves come back."""
    _dropped(vm, level, claim, "less", Level.PMD)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.move_page_tables, fn.move_ptes)
def test_mremap_page(vm: VM, level: Level, claim: Claims) -> None:
    """mremap() to where only pages fit: a page's entry moves along, a larger leaf is zapped and comes back as pages."""
    if level is Level.PTE:
        _kept(vm, level, claim, "page", by=MOVED_BY[level], soft_dirty=True)
    else:
        _dropped(vm, level, claim, "page", Level.PTE)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.move_page_tables)
def test_mremap_part(vm: VM, level: Level, claim: Claims) -> None:
    """mremap() of part of a leaf: a page's entry moves along, a larger leaf is zapped, and all of it stays usable."""
    if level is Level.PTE:
        with vm.run("mremap", "--level=pte", "--case=part", timeout_s=20.0) as guest:
            written = guest.until("written")["parent"]
            at = guest.until("moved")["parent"]
            offset = at.mapping("moved").declared.offset_bytes
            with claim("the entry moves along, bit by bit", MOVED_BY[level]):
                _went_along(at.leaf("moved"), written.leaf("bar", offset))
            with claim("what stayed before it keeps its entries", MOVED_BY[level]):
                assert at.leaf("low").entry == written.leaf("bar").entry
            last = at.mapping("high").declared.size_bytes - 4096
            if has_symbol(vm.kernel, "vfio_pci_core", "vfio_pci_mmap_open"):  # 6.1
                with claim("vfio-pci zaps the VMA that the split made", fn.vfio_pci_mmap_open):
                    assert at.leaves("high") == ()
            else:
                with claim("what stayed behind it keeps its entries", MOVED_BY[level]):
                    assert at.leaf("high", last).entry == written.leaf("bar", offset + 4096 + last).entry
            with claim("all that stayed is usable", fn.vfio_pci_mmap_huge_fault):
                used = guest.until("used")["parent"]
                assert used.leaf("low").pfn == written.leaf("bar").pfn
                assert used.leaf("high", last).covers(used.mapping("high").end - 1)
            _nothing_stays(claim, at, guest.result.values, MOVED_BY[level])
            with claim("the program passed", MOVED_BY[level]):
                assert guest.result.passed, guest.result.reason
    else:
        _dropped(vm, level, claim, "part", LOWER[level])


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.move_ptes, fn.move_huge_pmd, fn.move_huge_pud)
def test_mremap_readonly(vm: VM, level: Level, claim: Claims) -> None:
    """mremap() of a read-only leaf that was written: no right to write is gained, and no saved dirty bit is lost."""
    _kept(vm, level, claim, "readonly", by=MOVED_BY[level], soft_dirty=None)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.move_ptes, fn.move_huge_pmd, fn.move_huge_pud)
def test_mremap_over(vm: VM, level: Level, claim: Claims) -> None:
    """mremap(MREMAP_FIXED) onto another mapping of the BAR replaces its leaf: the new one has the moved pfn."""
    _kept(vm, level, claim, "over", by=MOVED_BY[level], soft_dirty=None)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.move_ptes, fn.move_huge_pmd, fn.move_huge_pud)
def test_mremap_child(vm: VM, level: Level, claim: Claims) -> None:
    """mremap() in the parent leaves the child's leaf where and as it is."""
    _kept(vm, level, claim, "leaf", "--child=1", by=MOVED_BY[level], soft_dirty=None)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.mremap, fn.__split_huge_pud_locked)
def test_mremap_shrink(vm: VM, level: Level, claim: Claims) -> None:
    """mremap() to fewer bytes is munmap() of the end: the rest comes back at the largest level that fits."""
    by = fn.SPLIT_BY.get(level, fn.zap_pte_range)
    with vm.run("mremap", f"--level={level.label}", "--case=shrink", timeout_s=20.0) as guest:
        written = guest.until("written")["parent"].leaf("bar")
        at = guest.until("moved")["parent"]
        if level is Level.PTE:
            with claim("what is left keeps its entries", by):
                assert at.leaf("moved").entry == written.entry
        else:
            with claim("a leaf that lost a part is zapped as a whole", by):
                assert at.leaves("moved") == ()
        used = guest.until("used")["parent"]
        with claim("what is left is usable, at the largest level that fits", fn.vfio_pci_mmap_huge_fault):
            expected = LOWER.get(level, Level.PTE)
            assert {leaf.level for leaf in used.leaves("moved")} == {expected}
            last = used.mapping("moved").declared.size_bytes - 4096
            assert used.leaf("moved").pfn == written.pfn
            assert used.leaf("moved", last).covers(used.mapping("moved").end - 1)
        values = guest.result.values
        _nothing_stays(claim, at, values, by)
        with claim("the program passed", by):
            assert guest.result.passed, guest.result.reason


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vma_to_resize, fn.mremap_to)
def test_mremap_refused(vm: VM, level: Level, claim: Claims) -> None:
    """mremap() refuses to grow, to copy, to keep the old mapping or to overlap, and the leaf stays as it is."""
    refusals = {
        "grow": ("EFAULT", fn.vma_to_resize),
        "grow-maymove": ("EFAULT", fn.vma_to_resize),
        "dontunmap": ("EINVAL", fn.vma_to_resize),
        "duplicate": ("EFAULT", fn.vma_to_resize),
        "onto-itself": ("EINVAL", fn.mremap_to),
        "odd-address": ("EINVAL", fn.mremap_to),
    }
    with vm.run("mremap", f"--level={level.label}", "--case=refused", timeout_s=20.0) as guest:
        before = guest.until("written")["parent"].leaf("bar")
        with claim(f"the mapping begins as {level.label}", fn.vfio_pci_mmap_huge_fault):
            assert before.level is level
        for name, (_, by) in refusals.items():
            at = guest.until(name)["parent"]
            with claim(f"{name}: the entry stays as it is", by):
                assert at.leaf("bar").entry == before.entry
        for name, (error, by) in refusals.items():
            with claim(f"{name}: {error}", by):
                assert guest.result.values[name] == error
        with claim("a write needs no fault after all of this", fn.vma_to_resize):
            assert guest.result.values["write-faults"] == "0"
