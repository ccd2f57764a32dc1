"""Processes that share their memory: one table, so nothing is copied and everything is seen."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.observe.snapshot import Snapshot
from harness.pagetable import Bits, Entry, Level


def _same(at: Snapshot) -> Entry:
    """The one entry that both have.

    :raises AssertionError: they have two that differ.
    """
    assert at["child"].leaf("bar").entry == at["parent"].leaf("bar").entry
    return at["parent"].leaf("bar").entry


def _shared(at: Snapshot, before: Entry, claim: Claims) -> None:
    with claim("the child has the parent's entry, young bit and all: nothing was copied", fn.copy_mm):
        assert _same(at) == before


def _written(at: Snapshot, before: Entry, claim: Claims) -> None:
    with claim("the child's write shows in the parent's entry", fn.copy_mm):
        assert _same(at).bits ^ before.bits == Bits.D


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.copy_mm)
def test_vfork(vm: VM, level: Level, claim: Claims) -> None:
    """A vfork() child has the parent's table: no copy, its write is the parent's, its exit takes nothing."""
    with vm.run("share_mm", f"--level={level.label}", "--case=vfork") as guest:
        read = guest.until("read")["parent"].leaf("bar").entry
        _shared(guest.until("shared"), read, claim)
        _written(guest.until("child-written"), read, claim)
        at = guest.until("child-exited")
        with claim("the child's exit leaves the entry, and the dirt of its write, to the parent", fn.mmput):
            assert at["parent"].leaf("bar").bits ^ read.bits == Bits.D
            assert at["parent"].leaf("bar").level is level
        with claim("the child writes without a fault", fn.copy_mm):
            assert guest.result.values["child-write-faults"] == "0"
        with claim("the parent's tables are as many as before", fn.mmput):
            assert guest.result.values["tables-after"] == guest.result.values["tables-before"]


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.copy_mm, fn.unmap_page_range)
def test_clone_vm(vm: VM, level: Level, claim: Claims) -> None:
    """A clone(CLONE_VM) process has the parent's table: no copy, its write and its munmap are the parent's."""
    with vm.run("share_mm", f"--level={level.label}", "--case=clone_vm") as guest:
        read = guest.until("read")["parent"].leaf("bar").entry
        _shared(guest.until("shared"), read, claim)
        _written(guest.until("child-written"), read, claim)
        at = guest.until("child-unmapped")
        with claim("the child's munmap takes the leaf from both", fn.unmap_page_range):
            assert not at["child"].leaves("bar")
            assert not at["parent"].leaves("bar")
        at = guest.until("parent-mapped")
        with claim("mapped again, a read makes the leaf that was there at first", fn.unmap_page_range):
            assert at["parent"].leaf("bar").entry == read
        with claim("the child writes without a fault", fn.copy_mm):
            assert guest.result.values["child-write-faults"] == "0"
