"""The end of a process that holds leaves, by exit, exec or a signal: a survivor keeps its own, the device its order."""

import signal

import pytest

from harness.claims import Claims
from harness.machine.vm import VM
from harness.observe.run import GuestRun
from harness.pagetable import Bits, Entry, Level

UNMAPPED_BY = "mm/memory.c unmap_page_range()"
FREED_BY = "mm/memory.c free_pgtables()"
EXIT_MMAP = "mm/mmap.c exit_mmap()"
EXEC_MMAP = "fs/exec.c exec_mmap()"
ZAPPED_BY = "drivers/vfio/pci/vfio_pci_core.c vfio_pci_zap_bars()"
FAULTED_BY = {
    Level.PTE: "drivers/vfio/pci/vfio_pci_core.c vfio_pci_mmap_fault()",
    Level.PMD: "drivers/vfio/pci/vfio_pci_core.c vfio_pci_mmap_huge_fault()",
    Level.PUD: "drivers/vfio/pci/vfio_pci_core.c vfio_pci_mmap_huge_fault()",
}


def _survivor(guest: GuestRun, name: str, before: Entry, level: Level, claim: Claims) -> None:
    """From the checkpoint "gone" on: one process is left, with what it had."""
    at = guest.until("gone")
    early = guest.vm.caps.early
    with claim("the survivor's leaf is as it was", UNMAPPED_BY):
        assert at[name].leaf("bar").entry | early == before | early
    at = guest.until("off")
    with claim("the device's memory off takes the survivor's leaf, past the vma that is gone", ZAPPED_BY):
        assert not at[name].leaves("bar")
    at = guest.until("on")
    with claim("on again, a read maps a fresh leaf of the level", FAULTED_BY[level]):
        fresh = at[name].leaf("bar")
        assert fresh.level is level
        assert fresh.pfn == before.pfn
        assert fresh.bits == (before.bits | Bits.A) & ~Bits.D
    values = guest.result.values
    with claim("a read while it is off is SIGBUS", FAULTED_BY[level]):
        assert values["off-read"] == "BUS"
    with claim("the survivor's tables are as many as before", FREED_BY):
        assert values["tables-after"] == values["tables-before"]


def _held(guest: GuestRun, level: Level, claim: Claims) -> Entry:
    """At "held", both hold a leaf of the level. Returns the parent's."""
    at = guest.until("held")
    with claim("before the end, both hold a leaf", FAULTED_BY[level]):
        assert [process.leaf("bar").level for process in at] == [level, level]
        assert at["child"].leaf("bar").pfn == at["parent"].leaf("bar").pfn
    return at["parent"].leaf("bar").entry


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by("mm/mmap.c exit_mmap()", "mm/memory.c unmap_page_range()")
def test_exit(vm: VM, level: Level, claim: Claims) -> None:
    """A child that exits with a dirty leaf takes nothing of its parent's, and leaves no vma behind."""
    with vm.run("teardown", f"--level={level.label}", "--case=exit") as guest:
        before = _held(guest, level, claim)
        _survivor(guest, "parent", before, level, claim)
        with claim("the child exited", EXIT_MMAP):
            assert guest.result.values["status"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by("mm/mmap.c exit_mmap()", "mm/memory.c unmap_page_range()")
def test_kill(vm: VM, level: Level, claim: Claims) -> None:
    """A child that SIGKILL ends with a dirty leaf takes nothing of its parent's, and leaves no vma behind."""
    with vm.run("teardown", f"--level={level.label}", "--case=kill") as guest:
        before = _held(guest, level, claim)
        _survivor(guest, "parent", before, level, claim)
        with claim("the child was killed", EXIT_MMAP):
            assert guest.result.values["status"] == str(int(signal.SIGKILL))


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by("fs/exec.c exec_mmap()", "mm/memory.c unmap_page_range()")
def test_exec_child(vm: VM, level: Level, claim: Claims) -> None:
    """A child that execs has neither leaf nor vma of the old program's; its parent keeps its own."""
    with vm.run("teardown", f"--level={level.label}", "--case=exec_child") as guest:
        before = _held(guest, level, claim)
        at = guest.until("execed")
        with claim("the new program has no leaf where the old one had it", EXEC_MMAP):
            assert at["child"].find_leaf("old") is None
        with claim("the parent's leaf is as it was when the new program runs", EXEC_MMAP):
            assert at["parent"].leaf("bar").entry == before
        _survivor(guest, "parent", before, level, claim)
        with claim("the new program has no vma where the old one had it", EXEC_MMAP):
            assert guest.result.values["old-vma"] == "ENOMEM"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by("fs/exec.c exec_mmap()", "mm/memory.c unmap_page_range()")
def test_exec_parent(vm: VM, level: Level, claim: Claims) -> None:
    """A parent that execs leaves its child the leaf, and the child goes on with the device."""
    with vm.run("teardown", f"--level={level.label}", "--case=exec_parent") as guest:
        _held(guest, level, claim)
        child = guest.snapshots[-1]["child"].leaf("bar").entry
        _survivor(guest, "child", child, level, claim)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by("mm/mmap.c exit_mmap()", "mm/memory.c unmap_page_range()")
def test_kill_faulting(vm: VM, level: Level, claim: Claims) -> None:
    """A child killed in the middle of a loop of faults and unmappings takes nothing of its parent's."""
    with vm.run("teardown", f"--level={level.label}", "--case=kill_faulting") as guest:
        before = guest.until("held")["parent"].leaf("bar").entry
        _survivor(guest, "parent", before, level, claim)
        with claim("the child was killed in its loop", EXIT_MMAP):
            assert guest.result.values["status"] == str(int(signal.SIGKILL))


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by("mm/mmap.c exit_mmap()", "kernel/fork.c dup_mmap()")
def test_kill_forking(vm: VM, level: Level, claim: Claims) -> None:
    """A child killed in the middle of a storm of forks, and its orphans, take nothing of the parent's."""
    with vm.run("teardown", f"--level={level.label}", "--case=kill_forking") as guest:
        before = guest.until("held")["parent"].leaf("bar").entry
        _survivor(guest, "parent", before, level, claim)
        with claim("the child was killed in its storm", EXIT_MMAP):
            assert guest.result.values["status"] == str(int(signal.SIGKILL))
