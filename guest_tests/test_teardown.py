"""A process that holds leaves ends by exit, exec or a signal: a survivor keeps its own, and the device still works."""

import signal

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.observe.run import GuestRun
from harness.pagetable import Bits, Entry, Level

pytestmark = pytest.mark.leaves_no_trace


def _survivor(guest: GuestRun, name: str, before: Entry, level: Level, claim: Claims) -> None:
    """From the checkpoint "gone" on: one process is left, with what it had."""
    at = guest.until("gone")
    early = guest.vm.caps.early
    with claim("the survivor's leaf is as it was", fn.unmap_page_range):
        assert at[name].leaf("bar").entry | early == before | early
    at = guest.until("off")
    with claim("the device's memory off zaps the survivor's leaf, past the VMA that is gone", fn.vfio_pci_zap_bars):
        assert not at[name].leaves("bar")
    at = guest.until("on")
    with claim("on again, a read maps a fresh leaf of the level", fn.FAULTED_BY[level]):
        fresh = at[name].leaf("bar")
        assert fresh.level is level
        assert fresh.pfn == before.pfn
        assert fresh.bits == (before.bits | Bits.A) & ~Bits.D
    values = guest.result.values
    with claim("a read while it is off gets SIGBUS", fn.FAULTED_BY[level]):
        assert values["off-read"] == "BUS"
    with claim("the survivor has as many page tables as before", fn.free_pgtables):
        assert values["tables-after"] == values["tables-before"]


def _held(guest: GuestRun, level: Level, claim: Claims) -> Entry:
    """At "held", both hold a leaf of the level. Returns the parent's."""
    at = guest.until("held")
    with claim("before the exit, both hold a leaf", fn.FAULTED_BY[level]):
        assert [process.leaf("bar").level for process in at] == [level, level]
        assert at["child"].leaf("bar").pfn == at["parent"].leaf("bar").pfn
    return at["parent"].leaf("bar").entry


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.exit_mmap, fn.unmap_page_range)
def test_exit(vm: VM, level: Level, claim: Claims) -> None:
    """A child that exits with a dirty leaf changes nothing of its parent, and leaves no VMA behind."""
    with vm.run("teardown", f"--level={level.label}", "--case=exit") as guest:
        before = _held(guest, level, claim)
        _survivor(guest, "parent", before, level, claim)
        with claim("the child exited", fn.exit_mmap):
            assert guest.result.values["status"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.exit_mmap, fn.unmap_page_range)
def test_kill(vm: VM, level: Level, claim: Claims) -> None:
    """A child that SIGKILL ends with a dirty leaf changes nothing of its parent, and leaves no VMA behind."""
    with vm.run("teardown", f"--level={level.label}", "--case=kill") as guest:
        before = _held(guest, level, claim)
        _survivor(guest, "parent", before, level, claim)
        with claim("the child was killed", fn.exit_mmap):
            assert guest.result.values["status"] == str(int(signal.SIGKILL))


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.exec_mmap, fn.unmap_page_range)
def test_exec_child(vm: VM, level: Level, claim: Claims) -> None:
    """A child that execs has neither leaf nor VMA of the old program; its parent keeps its own."""
    with vm.run("teardown", f"--level={level.label}", "--case=exec_child") as guest:
        before = _held(guest, level, claim)
        at = guest.until("execed")
        with claim("the new program has no leaf where the old one had it", fn.exec_mmap):
            assert at["child"].find_leaf("old") is None
        with claim("the parent's leaf is as it was when the new program runs", fn.exec_mmap):
            assert at["parent"].leaf("bar").entry == before
        _survivor(guest, "parent", before, level, claim)
        with claim("the new program has no VMA where the old one had it", fn.exec_mmap):
            assert guest.result.values["old-vma"] == "ENOMEM"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.exec_mmap, fn.unmap_page_range)
def test_exec_parent(vm: VM, level: Level, claim: Claims) -> None:
    """A parent that execs leaves its child the leaf, and the child can still use the device."""
    with vm.run("teardown", f"--level={level.label}", "--case=exec_parent") as guest:
        _held(guest, level, claim)
        child = guest.snapshots[-1]["child"].leaf("bar").entry
        _survivor(guest, "child", child, level, claim)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.exit_mmap, fn.unmap_page_range)
def test_kill_faulting(vm: VM, level: Level, claim: Claims) -> None:
    """A child killed in the middle of a loop of faults and unmappings changes nothing of its parent."""
    with vm.run("teardown", f"--level={level.label}", "--case=kill_faulting") as guest:
        before = guest.until("held")["parent"].leaf("bar").entry
        _survivor(guest, "parent", before, level, claim)
        with claim("the child was killed in its loop", fn.exit_mmap):
            assert guest.result.values["status"] == str(int(signal.SIGKILL))


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.exit_mmap, fn.dup_mmap)
def test_kill_forking(vm: VM, level: Level, claim: Claims) -> None:
    """A child killed in the middle of a storm of forks, and its orphans, change nothing of the parent."""
    with vm.run("teardown", f"--level={level.label}", "--case=kill_forking") as guest:
        before = guest.until("held")["parent"].leaf("bar").entry
        _survivor(guest, "parent", before, level, claim)
        with claim("the child was killed in its storm", fn.exit_mmap):
            assert guest.result.values["status"] == str(int(signal.SIGKILL))
