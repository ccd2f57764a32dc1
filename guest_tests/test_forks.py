"""fork() of a shared pfnmap after other operations on it, with many children, and in another order."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.observe.snapshot import ProcessView
from harness.pagetable import Bits, Entry, Level

pytestmark = pytest.mark.leaves_no_trace

SEGV_MAPERR, SEGV_ACCERR = "SEGV 1", "SEGV 2"
NO_SIGNAL = "0 0"


def _copy_of(entry: Entry, level: Level) -> Bits:
    """What fork() makes of an entry's bits: old; and clean at pte, where the dirty bit belongs to the file."""
    clean = Bits.D | Bits.SAVED_DIRTY if level is Level.PTE else Bits(0)
    return entry.bits & ~(Bits.A | clean)


def _holds_copy(process: ProcessView, entry: Entry, level: Level, early: Bits) -> None:
    leaf = process.leaf("bar")
    assert leaf.level is level
    assert leaf.bits | early == _copy_of(entry, level) | early
    assert leaf.pfn == entry.pfn


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.COPIED_BY)
def test_fork_many(vm: VM, level: Level, claim: Claims) -> None:
    """Twelve children alive at once: each has the parent's leaf, writes without a fault, and changes nobody else's."""
    names = [f"child-{number}" for number in range(12)]
    with vm.run("forks", f"--level={level.label}", "--case=many") as guest:
        written = guest.until("written-first")["parent"].leaf("bar").entry
        at = guest.until("forked")
        with claim("every child has its copy of the parent's leaf", fn.COPIED_BY[level]):
            assert {process.name for process in at} == {"parent", *names}
            for name in names:
                _holds_copy(at[name], written, level, vm.caps.early)
        with claim("twelve forks leave the parent's entry as it was", fn.COPIED_BY[level]):
            assert at["parent"].leaf("bar").entry == written
        at = guest.until("written")
        with claim(
            "every child's write sets the accessed and dirty bits in its own leaf, and changes no other", fn.CPU
        ):
            for process in at:
                assert process.leaf("bar").entry == written
        at = guest.until("exited")
        with claim("the parent's leaf outlives them all", fn.unmap_page_range):
            assert at["parent"].leaf("bar").entry == written
            assert [process.name for process in at] == ["parent"]
        values = guest.result.values
        with claim("no child's write faults", fn.COPIED_BY[level]):
            assert [values[f"faults-{number}"] for number in range(12)] == ["0"] * 12
        with claim("the parent has as many page tables as before", fn.unmap_page_range):
            assert values["tables-after"] == values["tables-before"]


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.COPIED_BY)
def test_fork_untouched(vm: VM, level: Level, claim: Claims) -> None:
    """fork() of a mapping that nobody touched copies nothing; the child and the parent each fault for themselves."""
    with vm.run("forks", f"--level={level.label}", "--case=untouched") as guest:
        at = guest.until("forked")
        with claim("there is nothing to copy", fn.COPIED_BY[level]):
            assert not at["child"].leaves("bar")
            assert not at["parent"].leaves("bar")
        at = guest.until("child-read")
        with claim("the child's read maps a leaf of the level, young and clean", fn.FAULTED_BY[level]):
            child = at["child"].leaf("bar")
            assert child.level is level
            assert child.write
            assert child.young
            assert not child.kernel_dirty
        with claim("the child's fault maps nothing in the parent", fn.FAULTED_BY[level]):
            assert not at["parent"].leaves("bar")
        at = guest.until("parent-read")
        with claim("the parent's own fault makes the same entry", fn.FAULTED_BY[level]):
            assert at["parent"].leaf("bar").entry == child.entry


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.COPIED_BY)
def test_fork_child_first(vm: VM, level: Level, claim: Claims) -> None:
    """After only a read and fork(), the child writes first: each write sets the writer's own dirty bit alone."""
    with vm.run("forks", f"--level={level.label}", "--case=child_first") as guest:
        read = guest.until("read")["parent"].leaf("bar").entry
        at = guest.until("forked")
        with claim("the child has its copy of the clean leaf", fn.COPIED_BY[level]):
            _holds_copy(at["child"], read, level, vm.caps.early)
        at = guest.until("child-written")
        with claim("the child's write sets its own accessed and dirty bits", fn.CPU):
            assert at["child"].leaf("bar").bits == read.bits | Bits.A | Bits.D
        with claim("the parent's entry is still clean", fn.CPU):
            assert at["parent"].leaf("bar").entry == read
        at = guest.until("parent-written")
        with claim("the parent's write sets its own dirty bit", fn.CPU):
            assert at["parent"].leaf("bar").bits ^ read.bits == Bits.D
        for who in ("child", "parent"):
            with claim(f"the {who} writes without a fault", fn.COPIED_BY[level]):
                assert guest.result.values[f"{who}-write-faults"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.unmap_page_range, fn.COPIED_BY)
def test_fork_parent_exits(vm: VM, level: Level, claim: Claims) -> None:
    """A process whose parent exits first, and which is reparented, keeps its leaf."""
    early = vm.caps.early
    with vm.run("forks", f"--level={level.label}", "--case=parent_exits") as guest:
        at = guest.until("forked")
        grandchild, parent = at["grandchild"].leaf("bar").entry, at["parent"].leaf("bar").entry
        with claim("the grandchild has the child's leaf", fn.COPIED_BY[level]):
            assert grandchild | early == at["child"].leaf("bar").entry | early
        at = guest.until("child-exited")
        with claim("its parent's exit leaves the grandchild's entry as it was", fn.unmap_page_range):
            assert "child" not in at
            assert at["grandchild"].leaf("bar").entry | early == grandchild | early
            assert at["parent"].leaf("bar").entry == parent
        at = guest.until("grandchild-written")
        with claim("the orphan may still write", fn.COPIED_BY[level]):
            assert at["grandchild"].leaf("bar").bits == grandchild.bits | Bits.A | Bits.D
            assert guest.result.values["grandchild-write-faults"] == "0"
        with claim("it was reparented", fn.find_new_reaper):
            assert guest.result.values["adopted"] == guest.result.values["parent"]


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.COPIED_BY)
def test_fork_readonly(vm: VM, level: Level, claim: Claims) -> None:
    """fork() of a dirty leaf that was made read-only: the child may not write, and a huge leaf keeps its dirty bit."""
    with vm.run("forks", f"--level={level.label}", "--case=readonly") as guest:
        readonly = guest.until("readonly")["parent"].leaf("bar").entry
        with claim("mprotect() clears the write bit and keeps the dirty bit", fn.CHANGED_BY[level]):
            assert not readonly.write
            assert readonly.kernel_dirty
        at = guest.until("forked")
        with claim("the parent's entry is as it was before fork", fn.COPIED_BY[level]):
            assert at["parent"].leaf("bar").entry == readonly
        with claim("the child's entry is not writable", fn.COPIED_BY[level]):
            assert not at["child"].leaf("bar").write
        sentence = (
            "the child's pte is clean"
            if level is Level.PTE
            else f"the child's {level.label} is as dirty as the parent's"
        )
        with claim(sentence, fn.COPIED_BY[level]):
            assert at["child"].leaf("bar").kernel_dirty is (readonly.kernel_dirty and level is not Level.PTE)
        with claim("the child has its copy of the read-only leaf", fn.COPIED_BY[level]):
            _holds_copy(at["child"], readonly, level, vm.caps.early)
        tried = guest.until("tried")
        with claim("a refused write leaves the child's entry as it was, but for the accessed bit of the read", fn.CPU):
            assert tried["child"].leaf("bar").bits == at["child"].leaf("bar").bits | Bits.A
        with claim("the child may read, but not write", fn.access_error):
            assert guest.result.values["child-write"] == SEGV_ACCERR
            assert guest.result.values["child-read"] == NO_SIGNAL


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.CHANGED_BY)
def test_fork_readonly_writable(vm: VM, level: Level, claim: Claims) -> None:
    """Read-only, fork(), writable again in the child, then in the parent: each regains its write and dirty bit."""
    with vm.run("forks", f"--level={level.label}", "--case=readonly_writable") as guest:
        readonly = guest.until("readonly")["parent"].leaf("bar").entry
        forked = guest.until("forked")["child"].leaf("bar").entry
        at = guest.until("child-writable")
        with claim("the child's entry is writable again", fn.CHANGED_BY[level]):
            assert at["child"].leaf("bar").write
        sentence = (
            "no dirty bit was inherited, none comes back"
            if level is Level.PTE
            else "the inherited dirty bit is D again"
        )
        with claim(sentence, fn.CHANGED_BY[level]):
            child = at["child"].leaf("bar")
            assert child.dirty is forked.kernel_dirty
            assert not child.saved_dirty
        with claim("the child's mprotect leaves the parent's entry as it was", fn.CHANGED_BY[level]):
            assert at["parent"].leaf("bar").entry == readonly
        at = guest.until("child-written")
        with claim("the child's write sets its accessed and dirty bits", fn.CPU):
            assert at["child"].leaf("bar").bits == child.bits | Bits.A | Bits.D
        at = guest.until("parent-writable")
        with claim("the parent's entry is writable again, and dirty by D, not by SAVED_DIRTY", fn.CHANGED_BY[level]):
            parent = at["parent"].leaf("bar")
            assert parent.write
            assert parent.dirty
            assert not parent.saved_dirty
        with claim("the child writes without a fault", fn.CHANGED_BY[level]):
            assert guest.result.values["child-write-faults"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.dup_mmap, fn.madvise_vma_behavior)
def test_fork_dontfork(vm: VM, level: Level, claim: Claims) -> None:
    """After MADV_DONTFORK the child has neither VMA nor leaf, and MADV_DOFORK is refused: it is device memory."""
    with vm.run("forks", f"--level={level.label}", "--case=dontfork") as guest:
        written = guest.until("written-first")["parent"].leaf("bar").entry
        at = guest.until("forked")
        with claim("the child has no leaf", fn.dup_mmap):
            assert not at["child"].leaves("bar")
        with claim("the child has no VMA: a read gets SIGSEGV, SEGV_MAPERR", fn.dup_mmap):
            assert guest.result.values["child-read"] == SEGV_MAPERR
        with claim("the parent's entry is as it was", fn.dup_mmap):
            assert at["parent"].leaf("bar").entry == written
        with claim("MADV_DOFORK is refused with EINVAL", fn.madvise_vma_behavior):
            assert guest.result.values["dofork"] == "EINVAL"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.madvise_vma_behavior)
def test_fork_wipeonfork(vm: VM, level: Level, claim: Claims) -> None:
    """MADV_WIPEONFORK is refused, since this is not anonymous memory; fork() still copies the leaf."""
    with vm.run("forks", f"--level={level.label}", "--case=wipeonfork") as guest:
        written = guest.until("written-first")["parent"].leaf("bar").entry
        at = guest.until("forked")
        with claim("the child has its copy of the leaf", fn.COPIED_BY[level]):
            _holds_copy(at["child"], written, level, vm.caps.early)
        with claim("the parent's entry is as it was", fn.madvise_vma_behavior):
            assert at["parent"].leaf("bar").entry == written
        with claim("MADV_WIPEONFORK is refused with EINVAL", fn.madvise_vma_behavior):
            assert guest.result.values["wipeonfork"] == "EINVAL"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_core_mmap)
def test_map_private(vm: VM, level: Level, claim: Claims) -> None:
    """A private mapping of the BAR is refused, so that fork() never has to write-protect a pfnmap."""
    with vm.run("forks", f"--level={level.label}", "--case=private") as guest:
        at = guest.until("tried")
        with claim("the shared mapping beside it has its leaf", fn.FAULTED_BY[level]):
            assert at["parent"].leaf("bar").level is level
        with claim("MAP_PRIVATE is refused with EINVAL", fn.vfio_pci_core_mmap):
            assert guest.result.values["map-private"] == "EINVAL"
