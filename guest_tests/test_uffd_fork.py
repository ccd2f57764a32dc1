"""fork() of shared memory that a userfaultfd has write-protected."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.observe.snapshot import Snapshot
from harness.pagetable import Bits, Leaf, Level

TIMEOUT_S = 60.0
COPIED_BY = {Level.PTE: fn.copy_pte_range, Level.PMD: fn.copy_hugetlb_page_range}
REFUSED_BY = {Level.PTE: fn.do_wp_page, Level.PMD: fn.hugetlb_fault}
CHANGED_BY = {Level.PTE: fn.change_pte_range, Level.PMD: fn.hugetlb_change_protection}
WRITE_BACK = 0  # PAT index


def _protected(leaf: Leaf) -> bool:
    return leaf.uffd_wp and not leaf.write


def _fork(vm: VM, claim: Claims, level: Level, events: bool) -> None:
    """Protect, mprotect() there and back, fork(), and the first write in each."""
    memory = "shmem" if level is Level.PTE else "hugetlb"
    args = (f"--memory={memory}", f"--level={level.label}", f"--events={'yes' if events else 'no'}")
    with vm.run("uffd_fork", *args, timeout_s=TIMEOUT_S) as guest:
        written = guest.until("written")["parent"].leaf("memory")
        protected = guest.until("protected")["parent"].leaf("memory")
        with claim("UFFDIO_WRITEPROTECT sets UFFD_WP, clears W, and keeps the dirty bit", CHANGED_BY[level]):
            assert protected.level is level
            assert protected.pfn == written.pfn
            assert _protected(protected)
            assert protected.kernel_dirty
        with claim("the memory is write-back, as before", CHANGED_BY[level]):
            assert protected.cache == WRITE_BACK
        for step in ("readonly", "writable"):
            leaf = guest.until(step)["parent"].leaf("memory")
            with claim(f"mprotect(), {step}: the protected entry stays as it is", CHANGED_BY[level]):
                assert leaf.entry == protected.entry
        at = guest.until("forked")
        with claim("fork() leaves the parent's entry as it was", COPIED_BY[level]):
            assert at["parent"].leaf("memory").entry | Bits.A == protected.entry | Bits.A
        if events:
            _followed(claim, level, at, protected)
        else:
            with claim("the child has no entry: its VMA is no longer write-protected", fn.vma_needs_copy):
                assert at["child"].leaves("memory") == ()
        for who in ("child", "parent"):
            at = guest.until(f"{who}-written")
            with claim(f"the {who}'s write, once it may, makes its entry writable and dirty", fn.mwriteprotect_range):
                assert at[who].leaf("memory").write
                assert at[who].leaf("memory").dirty
                assert not at[who].leaf("memory").uffd_wp
                assert at[who].leaf("memory").pfn == written.pfn
            if who == "child":
                with claim("the child's write leaves the parent's entry protected", fn.mwriteprotect_range):
                    assert _protected(at["parent"].leaf("memory"))
        values = guest.result.values
        with claim("the parent's first write after the fork is refused", REFUSED_BY[level]):
            assert values["write-parent"] == "BUS"
        with claim("the child's first write is refused exactly if userfaultfd follows the fork", fn.dup_userfaultfd):
            assert values["write-child"] == ("BUS" if events else "0")


def _followed(claim: Claims, level: Level, at: Snapshot, protected: Leaf) -> None:
    child = at["child"].find_leaf("memory")
    with claim("the child has a copy of the entry, with UFFD_WP and without W", COPIED_BY[level]):
        assert child is not None
        assert child.level is level
        assert child.pfn == protected.pfn
        assert child.cache == protected.cache
        assert _protected(child)
    if child is None:
        return
    if level is Level.PTE:
        with claim("the child's copy is clean", COPIED_BY[level]):
            assert not child.kernel_dirty
    else:
        with claim("the child's copy is as dirty as the parent's entry", COPIED_BY[level]):
            assert child.kernel_dirty


@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.dup_userfaultfd, fn.vma_needs_copy, fn.copy_pte_range)
def test_uffd_fork_shmem(vm: VM, claim: Claims) -> None:
    """fork() copies write-protected ptes of shared memory, protection included, if the userfaultfd follows fork()."""
    _fork(vm, claim, Level.PTE, events=True)


@pytest.mark.levels("pmd")
@pytest.mark.decided_by(fn.dup_userfaultfd, fn.vma_needs_copy, fn.copy_hugetlb_page_range)
def test_uffd_fork_hugetlb(vm: VM, claim: Claims) -> None:
    """fork() copies a write-protected huge page of hugetlbfs, dirty bit included, if the userfaultfd follows fork()."""
    _fork(vm, claim, Level.PMD, events=True)


@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.dup_userfaultfd, fn.vma_needs_copy)
def test_uffd_fork_ignored_shmem(vm: VM, claim: Claims) -> None:
    """Without UFFD_FEATURE_EVENT_FORK, fork() copies no entry of write-protected shared memory, and no protection."""
    _fork(vm, claim, Level.PTE, events=False)


@pytest.mark.levels("pmd")
@pytest.mark.decided_by(fn.dup_userfaultfd, fn.vma_needs_copy)
def test_uffd_fork_ignored_hugetlb(vm: VM, claim: Claims) -> None:
    """Without UFFD_FEATURE_EVENT_FORK, fork() copies no entry of write-protected hugetlbfs, and no protection."""
    _fork(vm, claim, Level.PMD, events=False)
