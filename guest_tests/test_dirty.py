"""Page tracking and a pfnmap, which has no pages to track: its entries stay as they are, and every write completes."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.errors import PremiseNotMet
from harness.machine.vm import VM
from harness.observe.run import GuestRun
from harness.observe.snapshot import Snapshot
from harness.pagetable import Bits, Leaf, Level

pytestmark = pytest.mark.leaves_no_trace

#: What resolves a write to a write-protected leaf.
WRITE_FAULT = {
    Level.PTE: fn.wp_pfn_shared,
    Level.PMD: fn.wp_huge_pmd,
    Level.PUD: fn.wp_huge_pud,
}


#: hp_write_faults() of a write that was given up.
FOR_EVER = "-1"


def _need_soft_dirty(vm: VM) -> None:
    if not vm.caps.soft_dirty:
        raise PremiseNotMet("this kernel tracks no soft-dirty pages (CONFIG_MEM_SOFT_DIRTY)")


def _written(guest: GuestRun, claim: Claims, before: Leaf) -> Snapshot | None:
    """The stop after a write to a leaf that is read-only to catch it; None if the write never completes."""
    by = WRITE_FAULT[before.level]
    at = guest.until("written")
    with claim("a write to that leaf completes", by):
        guest.result.faults("write-faults", before="written")
    if guest.result.values["write-faults"] == FOR_EVER:
        return None
    with claim("after the write the leaf is writable and dirty", by):
        leaf = at["parent"].leaf("bar")
        assert leaf.write
        assert leaf.dirty
        assert leaf.pfn == before.pfn
    return at


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.clear_refs_write, fn.clear_refs_test_walk)
def test_dirty_clear_refs(vm: VM, level: Level, claim: Claims) -> None:
    """clear_refs 1, 2 and 3 leave a pfnmap's entry alone, and its child's: accessed and dirty bits stay set."""
    with vm.run("dirty", f"--level={level.label}", "--case=referenced") as guest:
        before = guest.until("before")
        with claim("parent and child have written: their leaves are young and dirty", fn.clear_refs_write):
            for process in before:
                assert process.leaf("bar").level is level
                assert process.leaf("bar").young
                assert process.leaf("bar").dirty
            assert before["parent"].leaf("control").young
        for what, checkpoint in ((1, "all"), (2, "anon"), (3, "file")):
            at = guest.until(checkpoint)
            with claim(f"clear_refs {what} leaves the parent's entry as it was", fn.clear_refs_test_walk):
                assert at["parent"].leaf("bar").entry == before["parent"].leaf("bar").entry
            with claim(f"clear_refs {what} leaves the child's entry as it was", fn.clear_refs_write):
                assert at["child"].leaf("bar").entry == before["child"].leaf("bar").entry
            if what == 1:
                with claim(
                    "clear_refs 1 makes an anonymous page old",
                    fn.clear_refs_pte_range,
                    clear=Bits.A,
                ):
                    assert not at["parent"].leaf("control").young


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.clear_refs_write, fn.clear_refs_test_walk, fn.pagemap_pte_hole)
def test_dirty_soft_dirty(vm: VM, level: Level, claim: Claims) -> None:
    """clear_refs 4 clears pagemap's bit 55 over a pfnmap for good, and leaves its entry writable."""
    _need_soft_dirty(vm)
    with vm.run("dirty", f"--level={level.label}", "--case=soft-dirty") as guest:
        before = guest.until("before")
        with claim("pagemap shows a new VMA soft-dirty as a whole, in parent and child", fn.pagemap_pte_hole):
            for process in before:
                assert all(word.soft_dirty for word in process.pagemap("bar"))

        at = guest.until("cleaned")
        with claim("clear_refs 4 clears bit 55 of every page of the parent's pfnmap", fn.clear_refs_write):
            assert not any(word.soft_dirty for word in at["parent"].pagemap("bar"))
        with claim("clear_refs 4 of the parent leaves bit 55 of the child's pages set", fn.clear_refs_write):
            assert all(word.soft_dirty for word in at["child"].pagemap("bar"))
        with claim("clear_refs 4 leaves the entry as it was, writable and dirty", fn.clear_refs_test_walk):
            for process in at:
                assert process.leaf("bar").entry == before[process.name].leaf("bar").entry
        with claim("clear_refs 4 write-protects an anonymous page", fn.clear_soft_dirty):
            assert not at["parent"].leaf("control").write
            assert not at["parent"].leaf("control").soft_dirty
            assert not at["parent"].pagemap("control")[0].soft_dirty

        at = guest.until("rewritten")
        with claim("a write after that is not tracked: entry and bit 55 stay as they were", fn.pagemap_pte_hole):
            assert at["parent"].leaf("bar").entry == before["parent"].leaf("bar").entry
            assert not any(word.soft_dirty for word in at["parent"].pagemap("bar"))
        with claim("a write to the anonymous page is seen by walk and pagemap", fn.wp_page_copy):
            assert at["parent"].leaf("control").soft_dirty
            assert at["parent"].pagemap("control")[0].soft_dirty
        with claim("a write after clear_refs 4 takes no fault", fn.clear_refs_test_walk):
            assert guest.result.values["write-faults"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vma_set_page_prot, fn.wp_pfn_shared, fn.wp_huge_pmd, fn.wp_huge_pud)
def test_dirty_soft_dirty_first(vm: VM, level: Level, claim: Claims) -> None:
    """An entry that is made after clear_refs 4 is read-only to catch the first write, and that write completes."""
    _need_soft_dirty(vm)
    with vm.run("dirty", f"--level={level.label}", "--case=soft-dirty-first") as guest:
        read = guest.until("read")["parent"].leaf("bar")
        with claim(
            "a first read after clear_refs 4 maps the leaf read-only, to catch the first write", fn.vma_set_page_prot
        ):
            assert read.level is level
            assert not read.write
            assert not read.soft_dirty
        written = _written(guest, claim, read)
        if written is not None:
            with claim("the write made the entry soft-dirty", WRITE_FAULT[level]):
                assert written["parent"].leaf("bar").soft_dirty


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vma_set_page_prot, fn.wp_pfn_shared, fn.wp_huge_pmd, fn.wp_huge_pud)
def test_dirty_soft_dirty_mprotect(vm: VM, level: Level, claim: Claims) -> None:
    """After clear_refs 4, a leaf set read-only and writable again stays read-only to catch a write, which completes."""
    _need_soft_dirty(vm)
    with vm.run("dirty", f"--level={level.label}", "--case=soft-dirty-mprotect") as guest:
        back = guest.until("back")["parent"].leaf("bar")
        with claim("mprotect to writable leaves the leaf read-only, to catch the first write", fn.vma_set_page_prot):
            assert back.level is level
            assert not back.write
        _written(guest, claim, back)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.pagemap_scan_test_walk)
def test_dirty_pagemap_scan(vm: VM, level: Level, claim: Claims) -> None:
    """PAGEMAP_SCAN finds no page in a pfnmap, write-protects none, and leaves its entry alone."""
    if not vm.caps.pagemap_scan:
        raise PremiseNotMet("this kernel has no PAGEMAP_SCAN")
    with vm.run("dirty", f"--level={level.label}", "--case=scan") as guest:
        before = guest.until("before")["parent"].leaf("bar")
        after = guest.until("after")["parent"]
        with claim("no scan changed the entry, the write-protecting one included", fn.pagemap_scan_test_walk):
            assert after.leaf("bar").entry == before.entry
        values = guest.result.values
        with claim("a scan for any category, or none, reports no range", fn.pagemap_scan_test_walk):
            assert values["all"] == "none"
        with claim("a scan for present pages reports no range", fn.pagemap_scan_test_walk):
            assert values["present"] == "none"
        with claim("PM_SCAN_WP_MATCHING reports no range", fn.pagemap_scan_test_walk):
            assert values["protect"] == "none"
        with claim("PM_SCAN_CHECK_WPASYNC is refused: EPERM", fn.pagemap_scan_test_walk):
            assert values["check"] == "EPERM"
        with claim("a scan finds an anonymous page", fn.pagemap_scan_pmd_entry):
            pages, categories = values["control"].split(":")
            assert pages == "0-1"
            assert {"PRESENT", "SOFT_DIRTY"} <= set(categories.split("+"))


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.userfaultfd_register)
def test_dirty_uffd_register(vm: VM, level: Level, claim: Claims) -> None:
    """userfaultfd registers no pfnmap, in any mode: EINVAL, and the entry stays as it was."""
    with vm.run("dirty", f"--level={level.label}", "--case=uffd") as guest:
        before = guest.until("before")["parent"].leaf("bar")
        after = guest.until("after")["parent"].leaf("bar")
        with claim("the entry is as it was, also after a write", fn.userfaultfd_register):
            assert after.entry == before.entry
        values = guest.result.values
        for mode in ("wp", "missing", "minor"):
            with claim(f"UFFDIO_REGISTER for {mode.upper()} is refused: EINVAL", fn.userfaultfd_register):
                assert values[mode] == "EINVAL"
        with claim("UFFDIO_REGISTER for WP accepts an anonymous page", fn.userfaultfd_register):
            assert values["control"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.userfaultfd_register)
def test_dirty_uffd_register_async(vm: VM, level: Level, claim: Claims) -> None:
    """userfaultfd registers no pfnmap for asynchronous WP either, which it accepts for memory with pages: EINVAL."""
    with vm.run("dirty", f"--level={level.label}", "--case=uffd-async") as guest:
        before = guest.until("before")["parent"].leaf("bar")
        after = guest.until("after")["parent"].leaf("bar")
        with claim("the entry is as it was, also after a write", fn.userfaultfd_register):
            assert after.entry == before.entry
        with claim("UFFDIO_REGISTER for asynchronous WP is refused: EINVAL", fn.userfaultfd_register):
            assert guest.result.values["wp"] == "EINVAL"
        with claim("UFFDIO_REGISTER for asynchronous WP accepts an anonymous page", fn.userfaultfd_register):
            assert guest.result.values["control"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.change_protection, fn.handle_pte_marker)
def test_dirty_uffd_protect(vm: VM, level: Level, claim: Claims) -> None:
    """Where userfaultfd does accept a pfnmap for asynchronous WP, a write to what it protects completes."""
    protect, marker = fn.change_protection, fn.handle_pte_marker
    with vm.run("dirty", f"--level={level.label}", "--case=uffd-protect") as guest:
        before = guest.until("before")["parent"].leaf("bar")
        leaf = guest.until("protected")["parent"].find_leaf("bar")
        with claim("what is protected is not writable: its leaf is marked, or gone", protect):
            assert leaf is None or (leaf.uffd_wp and not leaf.write)
        at = guest.until("written")
        with claim("a write to a protected leaf completes", marker):
            guest.result.faults("write-faults", before="written")
        if level is Level.PTE:
            with claim("a write to a page that was not mapped when protected completes", marker):
                guest.result.faults("hole-write-faults", before="hole-written")
        if guest.result.values["write-faults"] == FOR_EVER:
            return
        with claim("after the write the leaf is writable, dirty and unmarked", marker):
            leaf = at["parent"].leaf("bar")
            assert leaf.write
            assert leaf.dirty
            assert not leaf.uffd_wp
            assert leaf.pfn == before.pfn
