"""Mappings that vfio does not make, and fork(): a BAR through sysfs, and a packet ring, shared and private."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.errors import PremiseNotMet
from harness.kernel_functions import KernelFunction
from harness.machine.vm import VM
from harness.observe.run import GuestRun
from harness.observe.snapshot import ProcessView, Snapshot
from harness.pagetable import Bits, Entry, Leaf, Level

TIMEOUT_S = 60.0
#: The page that is written before the fork; the first one of a mapping of 4K pages stays clean.
WRITTEN = 4096
#: PAT indexes (arch/x86/mm/pat/memtype.c, pat_bp_init()).
WRITE_BACK, WRITE_COMBINING, UC_MINUS = 0, 1, 2
#: What fork() and mprotect() leave alone.
PLACE = Bits.PSE | Bits.SPECIAL | Bits.DEVMAP | Bits.PWT | Bits.PCD | Bits.NX | Bits.U | Bits.P


@dataclass(frozen=True)
class Life:
    """One run of the program outliers, and what it stops at."""

    guest: GuestRun
    claim: Claims
    saved_dirty: bool

    def at(self, checkpoint: str) -> Snapshot:
        """Go on to a checkpoint."""
        return self.guest.until(checkpoint)

    def parent(self, checkpoint: str) -> Leaf:
        """Go on to a checkpoint, and return the leaf of the written page."""
        return written_page(self.at(checkpoint)["parent"])

    def value(self, name: str) -> str:
        """Return what the program measured."""
        return self.guest.result.values[name]

    def dirty_elsewhere(self, entry: Entry) -> bool:
        """Whether the dirty bit of a write-protected entry is where this kernel keeps it."""
        return entry.saved_dirty and not entry.dirty if self.saved_dirty else entry.dirty


def written_page(process: ProcessView) -> Leaf:
    """Return the leaf of the page that was written before the fork."""
    return process.leaf("memory", WRITTEN)


def same_place(leaf: Leaf, before: Leaf) -> bool:
    """Whether a leaf maps what another one maps, as large, and with the same memory type."""
    return (leaf.level, leaf.pfn, leaf.bits & PLACE) == (before.level, before.pfn, before.bits & PLACE)


def _live(vm: VM, claim: Claims, mapped: str, then: Callable[[Life], Any], level: Level = Level.PTE) -> None:
    args = (f"--map={mapped}", f"--level={level.label}")
    with vm.run("outliers", *args, timeout_s=TIMEOUT_S) as guest:
        then(Life(guest, claim, vm.caps.saved_dirty))


# --- shared, and copied by fork() ----------------------------------------------------------------


def _shared(mapped_by: KernelFunction, cache: int, special: bool) -> Callable[[Life], None]:
    """What holds for shared memory whose entries fork() copies."""

    def then(life: Life) -> None:
        claim = life.claim
        mapped = life.parent("mapped")
        with claim("mmap() makes writable, clean ptes, before any access", mapped_by):
            assert mapped.level is Level.PTE
            assert mapped.write
            assert not mapped.kernel_dirty
            assert mapped.special is special
        with claim("the cache bits are those that were asked for", mapped_by):
            assert mapped.cache == cache
        with claim("a read changes nothing", fn.CPU):
            assert life.parent("read").entry == mapped.entry
        written = life.parent("written")
        with claim("a write sets the dirty bit and nothing else", fn.CPU):
            assert written.bits ^ mapped.bits == Bits.D
        _fork_of_shared(life, written)
        _mprotect_of_shared(life, written)

    return then


def _fork_of_shared(life: Life, written: Leaf) -> None:
    claim = life.claim
    at = life.at("forked")
    copied, clean = at["child"].find_leaf("memory", WRITTEN), at["child"].find_leaf("memory")
    with claim("fork() leaves the parent's entry as it was", fn.copy_pte_range):
        assert written_page(at["parent"]).entry == written.entry
    with claim("the child has copies of both entries: same page, same cache bits, writable", fn.copy_pte_range):
        assert copied is not None
        assert clean is not None
        assert same_place(copied, written)
        assert copied.write
        assert clean.write
    if copied is None or clean is None:
        return
    with claim("the child's copies are clean, and no dirty bit moved to SAVED_DIRTY", fn.copy_pte_range):
        assert not copied.kernel_dirty
        assert not clean.kernel_dirty
    with claim("the child's copy is old", fn.copy_pte_range, clear=Bits.A):
        assert not copied.young
    at = life.at("child-written")
    with claim("the child's first write sets its own accessed and dirty bits", fn.CPU):
        assert written_page(at["child"]).entry == written.entry
    with claim("the child's first write leaves the parent's entry alone", fn.CPU):
        assert written_page(at["parent"]).entry == written.entry
    with claim("the parent's first write after the fork changes no entry", fn.CPU):
        assert written_page(life.at("parent-written")["parent"]).entry == written.entry


def _mprotect_of_shared(life: Life, written: Leaf) -> None:
    claim = life.claim
    readonly = life.parent("readonly")
    with claim("mprotect() to read-only clears W and keeps the dirty bit", fn.change_pte_range):
        assert same_place(readonly, written)
        assert not readonly.write
        assert life.dirty_elsewhere(readonly.entry)
    at = life.at("readonly-forked")
    with claim("fork() leaves the parent's read-only entry as it was", fn.copy_pte_range):
        assert written_page(at["parent"]).entry == readonly.entry
    with claim("the child's copy is read-only and clean: neither D nor SAVED_DIRTY", fn.copy_pte_range):
        assert same_place(written_page(at["second"]), readonly)
        assert not written_page(at["second"]).write
        assert not written_page(at["second"]).kernel_dirty
    at = life.at("second-writable")
    with claim("mprotect() in the child brings no dirty bit back", fn.change_pte_range):
        assert not written_page(at["second"]).kernel_dirty
    at = life.at("second-written")
    with claim("the child's write makes its entry writable and dirty, and leaves the parent's alone", fn.CPU):
        second = written_page(at["second"])
        assert second.write
        assert second.dirty
        assert same_place(second, written)
        assert written_page(at["parent"]).entry == readonly.entry
    with claim("mprotect() back brings W and D back", fn.change_pte_range):
        assert life.parent("writable").entry == written.entry
    with claim("a write after that changes nothing", fn.CPU):
        assert life.parent("rewritten").entry == written.entry
    with claim("no write faults, in neither process, after fork() and after mprotect() back", fn.copy_pte_range):
        for name in ("read", "write", "child", "child-clean", "parent", "again"):
            assert life.value(f"{name}-faults") == "0", name
    with claim("the child sees what the parent writes", fn.copy_pte_range):
        assert life.value("child-has") == "3"


@pytest.mark.machine(device="ivshmem-plain")
@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.pci_mmap_resource_range, fn.vma_needs_copy, fn.copy_pte_range)
def test_resource_shared(vm: VM, claim: Claims) -> None:
    """A BAR mapped through sysfs is a pfnmap of ptes, uncached-minus, which fork() copies as it copies vfio's."""
    _live(vm, claim, "resource", _shared(fn.pci_mmap_resource_range, UC_MINUS, special=True))


@pytest.mark.machine(device="ivshmem-plain")
@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.pci_mmap_resource_range, fn.vma_needs_copy, fn.copy_pte_range)
def test_resource_wc(vm: VM, claim: Claims) -> None:
    """A prefetchable BAR through resource2_wc is write-combining, in the parent, in the child, and after mprotect()."""
    _live(vm, claim, "resource-wc", _shared(fn.pci_mmap_resource_range, WRITE_COMBINING, special=True))


@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.packet_mmap, fn.vma_needs_copy, fn.copy_pte_range)
def test_packet_shared(vm: VM, claim: Claims) -> None:
    """fork() copies the entries of a packet ring (VM_MIXEDMAP): writable, old and clean, as those of a pfnmap."""
    _live(vm, claim, "packet", _shared(fn.packet_mmap, WRITE_BACK, special=False))


# --- private: copy on write ----------------------------------------------------------------------


def _private(mapped_by: KernelFunction, cache: int) -> Callable[[Life], None]:
    """What holds for a private mapping that mmap() filled with entries."""

    def then(life: Life) -> None:
        claim = life.claim
        mapped = life.parent("mapped")
        with claim("mmap() makes read-only ptes, with the cache bits that were asked for", mapped_by):
            assert mapped.level is Level.PTE
            assert not mapped.write
            assert mapped.cache == cache
        with claim("a read changes nothing", fn.CPU):
            assert life.parent("read").entry == mapped.entry
        at = life.at("written")
        written, clean = written_page(at["parent"]), at["parent"].leaf("memory")
        with claim("a write gets a page of its own, writable and dirty", fn.wp_page_copy):
            assert written.pfn != mapped.pfn
            assert written.write
            assert written.dirty
            assert not written.special
        with claim("the page of its own has the cache bits of the mapping", fn.wp_page_copy):
            assert written.cache == cache
        with claim("the page beside it is still the device's, and read-only", fn.wp_page_copy):
            assert clean.pfn == mapped.pfn - 1 or not clean.special
            assert not clean.write
        _fork_of_private(life, written, clean)
        _mprotect_of_private(life, written)

    return then


def _fork_of_private(life: Life, written: Leaf, clean: Leaf) -> None:
    claim = life.claim
    at = life.at("forked")
    with claim("fork() clears W in the parent, and keeps the dirty bit", fn.copy_pte_range):
        assert same_place(written_page(at["parent"]), written)
        assert not written_page(at["parent"]).write
        assert life.dirty_elsewhere(written_page(at["parent"]).entry)
    with claim("the child has the same page, read-only, and as dirty", fn.copy_pte_range):
        assert same_place(written_page(at["child"]), written)
        assert not written_page(at["child"]).write
        assert life.dirty_elsewhere(written_page(at["child"]).entry)
    with claim("the page that nobody wrote is read-only and clean in both", fn.copy_pte_range):
        for process in at:
            assert same_place(process.leaf("memory"), clean)
            assert not process.leaf("memory").write
            assert not process.leaf("memory").kernel_dirty
    before = written_page(at["parent"])
    at = life.at("child-written")
    with claim("the child's first write to each gets a page of its own", fn.wp_page_copy):
        for offset in (0, WRITTEN):
            assert at["child"].leaf("memory", offset).pfn not in (written.pfn, clean.pfn)
            assert at["child"].leaf("memory", offset).write
    with claim("the child's first write leaves the parent's entries alone", fn.wp_page_copy):
        assert written_page(at["parent"]).entry == before.entry
        assert at["parent"].leaf("memory").entry == clean.entry
    with claim("the parent's first write after that makes its page writable again, without a copy", fn.wp_page_reuse):
        assert written_page(life.at("parent-written")["parent"]).entry == written.entry


def _mprotect_of_private(life: Life, written: Leaf) -> None:
    claim = life.claim
    readonly = life.parent("readonly")
    with claim("mprotect() to read-only clears W and keeps the dirty bit", fn.change_pte_range):
        assert same_place(readonly, written)
        assert not readonly.write
        assert life.dirty_elsewhere(readonly.entry)
    at = life.at("readonly-forked")
    with claim("fork() of it copies it as it is, dirty bit included", fn.copy_pte_range):
        assert written_page(at["parent"]).entry == readonly.entry
        assert same_place(written_page(at["second"]), readonly)
        assert life.dirty_elsewhere(written_page(at["second"]).entry)
    at = life.at("second-writable")
    with claim(
        "mprotect() back in the child gives no write bit to a page that the parent has as well", fn.change_pte_range
    ):
        assert not written_page(at["second"]).write
    at = life.at("second-written")
    with claim("the child's write gets a page of its own", fn.wp_page_copy):
        assert written_page(at["second"]).pfn != written.pfn
        assert written_page(at["parent"]).entry == readonly.entry
    life.at("writable")
    with claim("mprotect() back and a write: the parent's page is as it was", fn.wp_page_reuse):
        assert life.parent("rewritten").entry == written.entry
    with claim("each first write of a page faults, the child's and the parent's", fn.do_wp_page):
        for name in ("write", "child", "parent"):
            assert life.value(f"{name}-faults") == "1", name
        # The kernel's own read of an old entry sets A there, and wp_page_copy() then finds the entry changed.
        assert life.value("child-clean-faults") in ("1", "2")
    with claim("a copy has what was behind it, and what is written to it goes nowhere else", fn.wp_page_copy):
        assert (life.value("child-copied"), life.value("child-has"), life.value("behind")) == ("0x77", "2", "0")


@pytest.mark.machine(device="ivshmem-plain")
@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.remap_pfn_range, fn.copy_pte_range, fn.wp_page_copy)
def test_resource_private(vm: VM, claim: Claims) -> None:
    """A private mapping of a BAR has real copy-on-write: each writer gets a page of RAM, which is mapped uncached."""
    _live(vm, claim, "resource-private", _private(fn.remap_pfn_range, UC_MINUS))


@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.packet_mmap, fn.copy_pte_range, fn.wp_page_copy)
def test_packet_private(vm: VM, claim: Claims) -> None:
    """A private mapping of a packet ring has copy-on-write, and fork() write-protects it in parent and child."""
    _live(vm, claim, "packet-private", _private(fn.packet_mmap, WRITE_BACK))


@pytest.mark.machine(device="ivshmem-plain")
@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.track_pfn_copy)
def test_resource_private_first(vm: VM, claim: Claims) -> None:
    """fork() works after a write to the very first page of a private mapping of a BAR."""
    with vm.run("outliers", "--map=resource-private", "--case=first", timeout_s=TIMEOUT_S) as guest:
        written = guest.until("written")["parent"].leaf("memory")
        with claim("the first page was copied", fn.wp_page_copy):
            assert written.write
            assert not written.special
        with claim("fork() is done", fn.track_pfn_copy):
            assert guest.result.values["fork"] == "done"


@pytest.mark.machine(device="ivshmem-plain")
@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.revoke_iomem)
def test_resource_revoked(vm: VM, claim: Claims) -> None:
    """Once vfio reserves the BAR, what was mapped through sysfs is gone in every process, and gives SIGBUS."""
    config = vm.kernel.config
    if config is not None and not config.is_set("IO_STRICT_DEVMEM"):
        raise PremiseNotMet("this kernel revokes no mapping of a BAR: CONFIG_IO_STRICT_DEVMEM is not set")
    with vm.run("outliers", "--case=revoked", timeout_s=TIMEOUT_S) as guest:
        written = guest.until("written")
        with claim("parent and child have the BAR through sysfs", fn.pci_mmap_resource_range):
            assert {process.leaf("memory").pfn for process in written} == {written["parent"].leaf("memory").pfn}
        revoked = guest.until("revoked")
        with claim("neither parent nor child has an entry of it any more", fn.revoke_iomem):
            for process in revoked:
                assert process.leaves("memory") == ()
        with claim("vfio's own mapping of the same BAR works", fn.vfio_pci_core_mmap):
            assert revoked["parent"].leaf("bar").pfn == written["parent"].leaf("memory").pfn
        with claim("an access through sysfs gets SIGBUS in parent and child", fn.revoke_iomem):
            assert (guest.result.values["parent-access"], guest.result.values["child-access"]) == ("BUS", "BUS")
