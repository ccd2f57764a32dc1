"""Processes that share their memory: one page table, so nothing is copied and both see every change."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.observe.snapshot import Snapshot
from harness.pagetable import Bits, Entry, Level

pytestmark = pytest.mark.leaves_no_trace


def _same(at: Snapshot) -> Entry:
    """The one entry that both have.

    :raises AssertionError: they have two that differ.
    """
    assert at["child"].leaf("bar").entry == at["parent"].leaf("bar").entry
    return at["parent"].leaf("bar").entry


def _shared(at: Snapshot, before: Entry, claim: Claims) -> None:
    with claim("the child has the parent's entry, accessed bit included: nothing was copied", fn.copy_mm):
        assert _same(at) == before


def _written(at: Snapshot, before: Entry, claim: Claims) -> None:
    with claim("the child's write shows in the parent's entry", fn.copy_mm):
        assert _same(at).bits ^ before.bits == Bits.D


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.copy_mm)
def test_vfork(vm: VM, level: Level, claim: Claims) -> None:
    """A vfork() child uses the parent's page table: no copy, its write shows in the parent, its exit zaps nothing."""
    with vm.run("share_mm", f"--level={level.label}", "--case=vfork") as guest:
        read = guest.until("read")["parent"].leaf("bar").entry
        _shared(guest.until("shared"), read, claim)
        _written(guest.until("child-written"), read, claim)
        at = guest.until("child-exited")
        with claim("the child's exit leaves the parent the entry, with the dirty bit of its write", fn.mmput):
            assert at["parent"].leaf("bar").bits ^ read.bits == Bits.D
            assert at["parent"].leaf("bar").level is level
        with claim("the child writes without a fault", fn.copy_mm):
            assert guest.result.values["child-write-faults"] == "0"
        with claim("the parent has as many page tables as before", fn.mmput):
            assert guest.result.values["tables-after"] == guest.result.values["tables-before"]


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.copy_mm, fn.unmap_page_range)
def test_clone_vm(vm: VM, level: Level, claim: Claims) -> None:
    """A clone(CLONE_VM) process uses the parent's page table: no copy, its write and its munmap show in the parent."""
    with vm.run("share_mm", f"--level={level.label}", "--case=clone_vm") as guest:
        read = guest.until("read")["parent"].leaf("bar").entry
        _shared(guest.until("shared"), read, claim)
        _written(guest.until("child-written"), read, claim)
        at = guest.until("child-unmapped")
        with claim("the child's munmap zaps the leaf of both", fn.unmap_page_range):
            assert not at["child"].leaves("bar")
            assert not at["parent"].leaves("bar")
        at = guest.until("parent-mapped")
        with claim("mapped again, a read faults in the leaf that was there at first", fn.unmap_page_range):
            assert at["parent"].leaf("bar").entry == read
        with claim("the child writes without a fault", fn.copy_mm):
            assert guest.result.values["child-write-faults"] == "0"
