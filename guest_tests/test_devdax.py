"""device-dax: shared mappings with huge leaves, which fork() copies only where userfaultfd has the VMA."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.observe.run import GuestRun
from harness.observe.snapshot import ProcessView
from harness.pagetable import Bits, Leaf, Level

TIMEOUT_S = 60.0
WRITE_BACK = 0  # PAT index
WRITTEN = 4096  # the page that the program outliers writes first
MACHINE = {"memory_mib": 4096, "append": ("memmap=2G!4G",), "load": ("nd_e820", "nd_pmem", "dax_pmem", "device_dax")}


def _leaf(process: ProcessView) -> Leaf:
    """Return the leaf of the page that is written first."""
    return process.leaf("memory", WRITTEN)


def _same_place(leaf: Leaf, before: Leaf) -> bool:
    """Whether a leaf maps what another one maps, as large, and with the same memory type."""
    return (leaf.level, leaf.pfn, leaf.cache) == (before.level, before.pfn, before.cache)


def _write_protected(claim: Claims, process: ProcessView, level: Level, saved_dirty: bool, offset: int) -> None:
    with claim("mprotect() clears the write bit and keeps the dirty bit", fn.CHANGED_BY[level]):
        assert not process.leaf("memory", offset).write
        assert process.leaf("memory", offset).kernel_dirty
    if saved_dirty:
        with claim("no shadow stack: a dirty bit without W is SAVED_DIRTY", fn.CHANGED_BY[level]):
            assert not process.leaf("memory", offset).dirty


def _life(vm: VM, claim: Claims, level: Level) -> None:
    """Reads, writes, two forks, mprotect() there and back."""
    args = ("--map=devdax", f"--level={level.label}")
    with vm.run("outliers", *args, timeout_s=TIMEOUT_S) as guest:
        with claim("mmap() makes no entry", fn.dev_dax_huge_fault):
            assert guest.until("mapped")["parent"].leaves("memory") == ()
        read = _leaf(guest.until("read")["parent"])
        with claim(f"a read makes a writable, clean {level.label}, write-back", fn.dev_dax_huge_fault):
            assert read.level is level
            assert read.write
            assert not read.kernel_dirty
            assert read.cache == WRITE_BACK
        written = _leaf(guest.until("written")["parent"])
        with claim("a write sets the dirty bit and nothing else", fn.CPU):
            assert written.bits ^ read.bits == Bits.D
        _first_fork(guest, claim, written)
        _readonly(guest, claim, written, vm.caps.saved_dirty, level)
        values = guest.result.values
        with claim("only a process's first access faults", fn.dev_dax_huge_fault):
            faults = [values[f"{name}-faults"] for name in ("read", "write", "child", "parent", "second", "again")]
            assert faults == ["1", "0", "1", "0", "1", "0"]
        with claim("the child sees what the parent writes", fn.dev_dax_huge_fault):
            assert values["child-has"] == "3"


def _first_fork(guest: GuestRun, claim: Claims, written: Leaf) -> None:
    at = guest.until("forked")
    with claim("fork() leaves the parent's entry as it was", fn.vma_needs_copy):
        assert _leaf(at["parent"]).entry == written.entry
    with claim("the child has no entry, because a fault finds it again", fn.vma_needs_copy):
        assert at["child"].leaves("memory") == ()
    at = guest.until("child-written")
    with claim("the child's first write makes the same leaf, writable and dirty", fn.dev_dax_huge_fault):
        assert _same_place(_leaf(at["child"]), written)
        assert _leaf(at["child"]).write
        assert _leaf(at["child"]).dirty
    with claim("the child's first write leaves the parent's entry alone", fn.dev_dax_huge_fault):
        assert _leaf(at["parent"]).entry == written.entry
    at = guest.until("parent-written")
    with claim("the parent's first write after the fork changes no entry", fn.CPU):
        assert _leaf(at["parent"]).entry == written.entry


def _readonly(guest: GuestRun, claim: Claims, written: Leaf, saved_dirty: bool, level: Level) -> None:
    readonly = guest.until("readonly")["parent"]
    with claim("mprotect() leaves level, pfn and cache bits as they were", fn.CHANGED_BY[level]):
        assert _same_place(_leaf(readonly), written)
    _write_protected(claim, readonly, level, saved_dirty, WRITTEN)
    at = guest.until("readonly-forked")
    with claim("the second child has no entry either", fn.vma_needs_copy):
        assert at["second"].leaves("memory") == ()
    at = guest.until("second-written")
    with claim("made writable there, and written to, the second child has its own leaf", fn.dev_dax_huge_fault):
        assert _same_place(_leaf(at["second"]), written)
        assert _leaf(at["second"]).write
        assert _leaf(at["second"]).dirty
    at = guest.until("writable")
    with claim("writable again: W and D are back", fn.CHANGED_BY[level]):
        assert _leaf(at["parent"]).entry == written.entry
    at = guest.until("rewritten")
    with claim("a write after that changes nothing", fn.CPU):
        assert _leaf(at["parent"]).entry == written.entry


@pytest.mark.machine(**MACHINE)
@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.dev_dax_huge_fault, fn.vma_needs_copy)
def test_devdax_pte(vm: VM, claim: Claims) -> None:
    """device-dax with 4K alignment has ptes, of which fork() copies none."""
    _life(vm, claim, Level.PTE)


@pytest.mark.machine(**MACHINE)
@pytest.mark.levels("pmd")
@pytest.mark.decided_by(fn.dev_dax_huge_fault, fn.vma_needs_copy)
def test_devdax_pmd(vm: VM, claim: Claims) -> None:
    """device-dax with 2M alignment is a shared mapping of huge devmap leaves, of which fork() copies none."""
    _life(vm, claim, Level.PMD)


@pytest.mark.machine(**MACHINE)
@pytest.mark.levels("pud")
@pytest.mark.decided_by(fn.dev_dax_huge_fault, fn.vma_needs_copy, fn.change_huge_pud)
def test_devdax_pud(vm: VM, claim: Claims) -> None:
    """device-dax with 1G alignment is a shared mapping of pud leaves, of which fork() copies none."""
    _life(vm, claim, Level.PUD)


def _watched(vm: VM, claim: Claims, level: Level) -> None:
    """fork() while a userfaultfd with UFFD_FEATURE_EVENT_FORK has the VMA: VM_UFFD_WP is set, and nothing protected."""
    args = ("--memory=devdax", f"--level={level.label}", "--events=yes")
    with vm.run("uffd_fork", *args, timeout_s=TIMEOUT_S) as guest:
        written = guest.until("written")["parent"].leaf("memory")
        with claim(f"the leaf is a writable, dirty {level.label}", fn.dev_dax_huge_fault):
            assert written.level is level
            assert written.write
            assert written.dirty
        at = guest.until("readonly")
        _write_protected(claim, at["parent"], level, vm.caps.saved_dirty, 0)
        readonly = at["parent"].leaf("memory")
        with claim("mprotect() back leaves W to the next write, since userfaultfd waits for it", fn.vma_set_page_prot):
            assert guest.until("writable")["parent"].leaf("memory").entry == readonly.entry
        at = guest.until("forked")
        with claim("fork() leaves the parent's entry as it was", fn.COPIED_BY[level]):
            assert at["parent"].leaf("memory").entry == readonly.entry
        if level is Level.PMD:
            with claim("fork() copies no pmd of a file, special ones apart", fn.copy_huge_pmd):
                assert at["child"].leaves("memory") == ()
        elif level is Level.PTE or at["child"].leaves("memory"):  # a pud may be left to a fault, too (vma_needs_copy())
            with claim(f"fork() copies the {level.label}, read-only", fn.COPIED_BY[level]):
                assert _same_place(at["child"].leaf("memory"), readonly)
                assert not at["child"].leaf("memory").write
            with claim(
                "the child's pte is clean" if level is Level.PTE else "the child's pud keeps its dirty bit",
                fn.COPIED_BY[level],
            ):
                assert at["child"].leaf("memory").kernel_dirty is (level is Level.PUD)
        for who in ("child", "parent"):
            at = guest.until(f"{who}-written")
            with claim(f"the {who}'s first write makes its entry writable and dirty", fn.dev_dax_huge_fault):
                assert _same_place(at[who].leaf("memory"), written)
                assert at[who].leaf("memory").write
                assert at[who].leaf("memory").dirty
        with claim("no write gets a signal", fn.dev_dax_huge_fault):
            assert (guest.result.values["write-child"], guest.result.values["write-parent"]) == ("0", "0")


@pytest.mark.machine(**MACHINE)
@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.dup_userfaultfd, fn.vma_needs_copy, fn.copy_pte_range)
def test_devdax_uffd_pte(vm: VM, claim: Claims) -> None:
    """fork() copies ptes of device-dax if a userfaultfd that follows fork() has the VMA: clean in the child."""
    _watched(vm, claim, Level.PTE)


@pytest.mark.machine(**MACHINE)
@pytest.mark.levels("pmd")
@pytest.mark.decided_by(fn.dup_userfaultfd, fn.vma_needs_copy, fn.copy_huge_pmd)
def test_devdax_uffd_pmd(vm: VM, claim: Claims) -> None:
    """fork() leaves a devmap pmd to a fault of the child, also if a userfaultfd that follows fork() has the VMA."""
    _watched(vm, claim, Level.PMD)


@pytest.mark.machine(**MACHINE)
@pytest.mark.levels("pud")
@pytest.mark.decided_by(fn.dup_userfaultfd, fn.vma_needs_copy, fn.copy_huge_pud)
def test_devdax_uffd_pud(vm: VM, claim: Claims) -> None:
    """A devmap pud keeps its dirty bit if fork() copies it, because a userfaultfd that follows fork() has the VMA."""
    _watched(vm, claim, Level.PUD)
