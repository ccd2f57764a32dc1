"""fork() after a change to a part of a leaf: every process has the rights of each part's VMA, and no more."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.kernel import has_symbol
from harness.machine.vm import VM
from harness.observe.run import GuestRun
from harness.observe.snapshot import ProcessView
from harness.pagetable import Bits, Level

pytestmark = pytest.mark.leaves_no_trace

#: What takes a leaf apart when only a part of it changes.
SPLIT_BY = {
    Level.PTE: fn.change_pte_range,
    Level.PMD: fn.__split_huge_pmd,
    Level.PUD: fn.__split_huge_pud,
}
#: What a part of a leaf is mapped with when it is touched again.
BELOW = {Level.PTE: Level.PTE, Level.PMD: Level.PTE, Level.PUD: Level.PMD}
SEGV_MAPERR, SEGV_ACCERR = "SEGV 1", "SEGV 2"
NO_SIGNAL = "0 0"
TIMEOUT_S = 20.0


def _parts(process: ProcessView) -> list[int]:
    """The addresses of the leaves of both parts.

    :raises AssertionError: a leaf reaches out of its part.
    """
    parts = [process.mapping(name) for name in ("low", "high")]
    for view in parts:
        for leaf in view.leaves:
            assert view.declared.vaddr <= leaf.vaddr, leaf
            assert leaf.vaddr + leaf.size_bytes <= view.end, leaf
    return [leaf.vaddr for view in parts for leaf in view.leaves]


def _zaps_new_vma(vm: VM) -> bool:
    """Whether vfio zaps a new VMA, so that a fault registers it (vfio_pci_mmap_open(), removed in 6.10)."""
    return has_symbol(vm.kernel, "vfio_pci_core", "vfio_pci_mmap_open") is True


def _dontfork(vm: VM, guest: GuestRun, level: Level, claim: Claims) -> None:
    written = guest.until("written-first")["parent"].leaves("bar")
    at = guest.until("parted")
    with claim("two VMAs share no leaf", fn.vma_adjust_trans_huge):
        low_end = at["parent"].mapping("low").end
        stays = [leaf for leaf in written if level is Level.PTE and (not _zaps_new_vma(vm) or leaf.vaddr < low_end)]
        assert _parts(at["parent"]) == [leaf.vaddr for leaf in stays]
    at = guest.until("forked")
    with claim("the child has no leaf where it has no VMA", fn.COPIED_BY[level]):
        assert not at["child"].leaves("low")
    with claim("the child has a copy of the other part's leaves", fn.COPIED_BY[level]):
        assert [leaf.pfn for leaf in at["child"].leaves("high")] == [leaf.pfn for leaf in at["parent"].leaves("high")]
    at = guest.until("child-tried")
    with claim("the child's write maps and dirties the other part", fn.vfio_pci_mmap_huge_fault):
        assert at["child"].leaf("high").write
        assert at["child"].leaf("high").dirty
    at = guest.until("child-mapped")
    with claim("what the child maps there is memory of its own", fn.do_anonymous_page):
        own = at["child"].leaf("own")
        assert own.level is Level.PTE
        assert not own.special
    at = guest.until("parent-tried")
    with claim("the parent may write both parts", fn.dup_mmap):
        for part in ("low", "high"):
            assert at["parent"].leaf(part).dirty
            assert guest.result.values[f"parent-{part}"] == NO_SIGNAL
    with claim("a write where the child has no VMA gets SIGSEGV, SEGV_MAPERR", fn.dup_mmap):
        assert guest.result.values["child-low"] == SEGV_MAPERR
    with claim("the child may write the other part", fn.dup_mmap):
        assert guest.result.values["child-high"] == NO_SIGNAL
    with claim("what the child writes to its own memory is there", fn.do_anonymous_page):
        assert guest.result.values["own-value"] == "7"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vma_adjust_trans_huge, fn.COPIED_BY)
def test_fork_dontfork_part(vm: VM, level: Level, claim: Claims) -> None:
    """MADV_DONTFORK of half a leaf: the child has the other half, and nothing where it has no VMA."""
    with vm.run("forks", f"--level={level.label}", "--case=dontfork_part", timeout_s=TIMEOUT_S) as guest:
        _dontfork(vm, guest, level, claim)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vma_adjust_trans_huge, fn.COPIED_BY)
def test_fork_dontfork_page(vm: VM, level: Level, claim: Claims) -> None:
    """MADV_DONTFORK of one page of a leaf: the child has the rest, and nothing where it has no VMA."""
    with vm.run("forks", f"--level={level.label}", "--case=dontfork_page", timeout_s=TIMEOUT_S) as guest:
        _dontfork(vm, guest, level, claim)


def _protected(guest: GuestRun, level: Level, claim: Claims) -> None:
    """Claims what holds from the checkpoint "forked" on: the low part is read-only, the high part writable."""
    at = guest.until("child-tried")
    with claim(
        "the child's write maps the writable part again, as large as fits, with its own dirty bit",
        fn.vfio_pci_mmap_huge_fault,
    ):
        high = at["child"].leaf("high")
        assert high.level is BELOW[level]
        assert high.write
        assert high.dirty
    with claim("no leaf of the read-only part is writable", SPLIT_BY[level]):
        for process in at:
            assert not any(leaf.write for leaf in process.leaves("low"))
    guest.until("parent-tried")
    for who in ("child", "parent"):
        with claim(f"the {who} may write only the writable part", fn.handle_mm_fault):
            assert guest.result.values[f"{who}-low"] == SEGV_ACCERR
            assert guest.result.values[f"{who}-high"] == NO_SIGNAL


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.change_pte_range, fn.__split_huge_pmd, fn.__split_huge_pud, fn.COPIED_BY)
def test_fork_mprotect_part(vm: VM, level: Level, claim: Claims) -> None:
    """Half a leaf read-only, then fork(): the huge leaf is gone, and each half comes back with its own rights."""
    with vm.run("forks", f"--level={level.label}", "--case=mprotect_part", timeout_s=TIMEOUT_S) as guest:
        guest.until("written-first")
        at = guest.until("parted")
        if level is Level.PTE:
            with claim("each page has the rights of its own VMA", SPLIT_BY[level]):
                assert [leaf.write for leaf in at["parent"].leaves("low")] == [False, False]
                high = [] if _zaps_new_vma(vm) else [True, True]
                assert [leaf.write for leaf in at["parent"].leaves("high")] == high
        else:
            with claim("the leaf is gone, because device memory is not split", SPLIT_BY[level]):
                assert not _parts(at["parent"])
        forked = guest.until("forked")
        with claim("the child has what the parent has", fn.COPIED_BY[level]):
            for part in ("low", "high"):
                copied = [(leaf.pfn, leaf.write) for leaf in forked["child"].leaves(part)]
                assert copied == [(leaf.pfn, leaf.write) for leaf in at["parent"].leaves(part)]
        with claim("fork() leaves the parent's entries as they were", fn.COPIED_BY[level]):
            assert [leaf.entry for leaf in forked["parent"].leaves("low")] == [
                leaf.entry for leaf in at["parent"].leaves("low")
            ]
        _protected(guest, level, claim)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.change_pte_range, fn.__split_huge_pmd, fn.__split_huge_pud, fn.COPIED_BY)
def test_fork_mprotect_part_touched(vm: VM, level: Level, claim: Claims) -> None:
    """Half a leaf read-only, both halves touched again, then fork(): the child has the smaller leaves, old."""
    below = BELOW[level]
    with vm.run("forks", f"--level={level.label}", "--case=mprotect_part_touched", timeout_s=TIMEOUT_S) as guest:
        guest.until("written-first")
        at = guest.until("touched")
        low, high = at["parent"].leaf("low"), at["parent"].leaf("high")
        with claim(
            "each half is mapped again, as large as fits, with the rights of its VMA", fn.vfio_pci_mmap_huge_fault
        ):
            assert (low.level, high.level) == (below, below)
            assert (low.write, high.write) == (False, True)
        at = guest.until("forked")
        with claim("the child has the same leaves, with the same rights", fn.COPIED_BY[below]):
            for part, leaf in (("low", low), ("high", high)):
                child = at["child"].leaf(part)
                assert (child.level, child.pfn, child.write) == (below, leaf.pfn, leaf.write)
        with claim("the child's leaves are old", fn.COPIED_BY[below], clear=Bits.A):
            assert not any(at["child"].leaf(part).young for part in ("low", "high"))
        sentence = (
            "the child's pte is clean" if below is Level.PTE else f"the child's {below.label} keeps its dirty bit"
        )
        with claim(sentence, fn.COPIED_BY[below]):
            assert at["child"].leaf("high").kernel_dirty is (below is not Level.PTE)
        with claim("fork() leaves the parent's entries as they were", fn.COPIED_BY[below]):
            assert at["parent"].leaf("low").entry == low.entry
            assert at["parent"].leaf("high").entry == high.entry
        _protected(guest, level, claim)
