"""Tests for the nested tables at a stop, in simulated memory: what is seen, and that a witness that lies is noticed."""

from __future__ import annotations

import asyncio
import re
from typing import cast

import pytest

from harness.errors import NoEntry, ProtocolError
from harness.guest.protocol import (
    CountsEvent,
    GoneEvent,
    MappingEvent,
    SlotEvent,
    SlotGoneEvent,
    VmEvent,
    VmGoneEvent,
    WaitEvent,
    Where,
)
from harness.observe.nested import TableRoot
from harness.observe.snapshot import NestedLook, Snapshot
from harness.observe.stop_checks import violations_at
from harness.observe.witness import Witness
from harness.pagetable import Layout, Level
from harness.pagetable.memory import Memory
from harness.qemu.deadline import Deadline
from harness.qemu.process import Qemu
from harness.verdict import words
from harness.verdict.invariants import Invariant, Violation
from tests.hand_made_guest import BAR, BAR_VADDR, NONCE, STACK, FakeQemu, Guest, registers

GPA = 1 << 30
HOST = 0x80000000000002F7  # the process's leaf: P W U PCD A D PSE SPECIAL NX
TABLE, LEAF, HUGE = 0x827, 0xE67, 0xEE7  # as KVM writes them: NPT with accessed and dirty bits
CHECKPOINT = WaitEvent(Where.CHECKPOINT, "read", 77, 1, STACK, NONCE)


class Roots:
    """Finds the root that it was told."""

    def __init__(self, root: int | None) -> None:
        self.root = root
        self.asked: list[tuple[int, VmEvent]] = []

    def find(self, _memory: Memory, root: int, _layout: Layout, vm: VmEvent) -> TableRoot | None:
        self.asked.append((root, vm))
        return None if self.root is None else TableRoot(self.root, Layout.NPT)


def nested_map(guest: Guest, root: int, gpa: int, raw: int, level: Level) -> None:
    table = root
    for shift in (39, 30, 21, 12):
        slot = table + (gpa >> shift & 511) * 8
        if shift == level.shift:
            guest.store(slot, raw)
            return
        if not guest.load(slot):
            guest.store(slot, guest.page() | TABLE)
        table = guest.load(slot) & ~0xFFF


class Stop:
    """A process with a virtual machine: one page of code, and a 2 MiB leaf of the BAR."""

    def __init__(self, *, has_root: bool = True, has_kvm: bool = True) -> None:
        self.guest = guest = Guest()
        process = guest.process()
        self.root = guest.page()
        nested_map(guest, self.root, 0x1000, 0x5000 | LEAF, Level.PTE)
        nested_map(guest, self.root, GPA, BAR.start_paddr | HUGE, Level.PMD)
        self.entry = guest.map(process.root, BAR_VADDR, BAR.start_paddr | HOST, Level.PMD)
        self.roots = Roots(self.root if has_root else None)
        qemu = FakeQemu(guest, [registers(process.root)])
        self.process = process
        self.witness = Witness(cast(Qemu, qemu), [BAR], Layout.MODERN, self.roots if has_kvm else None)
        event = WaitEvent(Where.REGISTERING, "parent", 77, 1, STACK, NONCE)
        asyncio.run(self.witness.register(event, Deadline(5.0, None)))

    def declare(self, *, length: int = 2 << 20, prot: int = 3, counts: tuple[int, ...] = (1, 1, 0)) -> Stop:
        self.witness.note(VmEvent("vm", 77, 6, 7))
        self.witness.note(SlotEvent("vm", MappingEvent("bar", 77, GPA, length, prot, "bar", 0), BAR_VADDR))
        self.witness.note(CountsEvent("vm", 77, counts))
        return self

    def look(self) -> Snapshot:
        return self.witness.snapshot("read", 77)

    def violations(self) -> list[Violation]:
        return violations_at(self.look(), saved_dirty=True)


def test_a_slot_is_seen_as_a_mapping_of_the_virtual_machine() -> None:
    stop = Stop().declare()
    at = stop.look()
    view = at["vm"]
    assert stop.roots.asked == [(stop.process.root, VmEvent("vm", 77, 6, 7))]
    assert isinstance(view.nested, NestedLook)
    assert (view.nested.owner, view.nested.walked, view.nested.counted) == ("parent", (1, 1, 0), (1, 1, 0))
    leaf = view.leaf("bar")
    assert (leaf.level, leaf.vaddr, leaf.dirty) == (Level.PMD, GPA, True)
    assert violations_at(at, saved_dirty=True) == []
    (seen,) = [str(one) for one in at.observations() if one.process == "vm"]
    assert seen == (
        f"read vm bar+0x0: pmd {BAR.start_paddr | HUGE:#018x} P W U A D PSE HOST_WRITABLE MMU_WRITABLE MMU_PRESENT "
        "bar+0x0"
    )


def test_a_leaf_that_is_not_there_is_a_broken_claim() -> None:
    stop = Stop().declare(length=4 << 20)
    with pytest.raises(NoEntry, match=r"vm has no entry for bar\+0x200000 at 'read'\nwalk of"):
        stop.look()["vm"].leaf("bar", 2 << 20)


def test_before_the_vcpu_has_run_there_are_no_tables() -> None:
    stop = Stop(has_root=False).declare(counts=(0, 0, 0))
    view = stop.look()["vm"]
    assert isinstance(view.nested, NestedLook)
    assert (view.nested.walked, view.leaves("bar")) == ((0, 0, 0), ())
    assert stop.violations() == []


# --- a witness that lies -------------------------------------------------------------------------


def test_counts_of_another_virtual_machine_make_the_walk_void() -> None:
    (found,) = Stop().declare(counts=(5, 1, 0)).violations()
    assert found.invariant is Invariant.NESTED_COUNTS
    assert found.invariant.calibrates
    assert found.message == "vm: walk 4k=1 2m=1 1g=0; KVM counts 4k=5 2m=1 1g=0"
    assert words.uncalibrated(found).startswith("the walk and KVM's statistics disagree, so the walk proves nothing: ")


def test_a_walk_with_a_wrong_root_is_void() -> None:
    stop = Stop().declare()
    stop.roots.root = stop.guest.page()
    (found,) = stop.violations()
    assert (found.invariant, found.process) == (Invariant.NESTED_COUNTS, "vm")


def test_a_walk_that_leaves_ram_is_a_violation() -> None:
    stop = Stop().declare()
    stop.guest.store(stop.root, 0x7FFFFFF000 | TABLE)
    assert {one.invariant for one in stop.violations()} == {Invariant.WALKABLE}


def test_a_leaf_outside_all_slots_is_counted() -> None:
    stop = Stop().declare(counts=(2, 1, 0))
    nested_map(stop.guest, stop.root, 40 << 30, 0x6000 | LEAF, Level.PTE)
    assert stop.violations() == []


def test_counts_that_are_older_than_the_tables_are_not_compared() -> None:
    stop = Stop().declare(counts=(9, 9, 9))
    stop.witness.forget_pagemap()
    assert stop.violations() == []
    stop.witness.verify(CHECKPOINT)  # it is the same checkpoint


def test_a_checkpoint_has_to_come_with_counts() -> None:
    stop = Stop().declare()
    stop.witness.verify(CHECKPOINT)
    stop.witness.release(CHECKPOINT)
    stop.guest.store(stop.process.release_word, NONCE)
    with pytest.raises(ProtocolError, match=r"checkpoint 'read' came without KVM's counts of vm"):
        stop.witness.verify(CHECKPOINT)
    stop.witness.note(CountsEvent("vm", 77, (1, 1, 0)))
    stop.witness.verify(CHECKPOINT)


# --- what must hold on every nested leaf ---------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "length", "prot", "invariant"),
    [
        (BAR.start_paddr + (2 << 20) | HUGE, 2 << 20, 3, Invariant.BAR_PFN),
        (BAR.start_paddr | HUGE, 1 << 20, 3, Invariant.INSIDE),
        (BAR.start_paddr | HUGE, 2 << 20, 1, Invariant.WRITE),
    ],
)
def test_an_invariant_of_a_slot(raw: int, length: int, prot: int, invariant: Invariant) -> None:
    stop = Stop().declare(length=length, prot=prot)
    nested_map(stop.guest, stop.root, GPA, raw, Level.PMD)
    found = [one for one in stop.violations() if one.invariant is not Invariant.BACKED]
    assert [(one.invariant, one.process, one.mapping) for one in found] == [(invariant, "vm", "bar")]


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (0, "the process has no leaf"),
        (BAR.start_paddr | HOST & ~2, "the process has pmd .* P U PCD"),  # read-only, and the nested leaf is not
        (BAR.start_paddr + (2 << 20) | HOST, "the process has pmd"),  # another pfn
        (~BAR.start_paddr & (1 << 52) - (2 << 20) | 0x3B0, "the process has pmd .* PROTNONE"),
    ],
    ids=["gone", "read-only", "another pfn", "PROT_NONE"],
)
def test_a_nested_leaf_needs_a_leaf_of_the_process(host: int, words: str) -> None:
    stop = Stop().declare()
    stop.guest.store(stop.entry, host)
    (found,) = stop.violations()
    assert (found.invariant, found.process, found.mapping) == (Invariant.BACKED, "vm", "bar")
    assert re.search(words, found.message)


def test_a_nested_leaf_may_be_a_part_of_the_processs_leaf_and_no_larger() -> None:
    stop = Stop().declare(counts=(3, 0, 0))
    nested_map(stop.guest, stop.root, GPA, 0, Level.PMD)
    for page in (0, 5):
        nested_map(stop.guest, stop.root, GPA + page * 4096, BAR.start_paddr + page * 4096 | LEAF, Level.PTE)
    assert stop.violations() == []
    smaller = Stop().declare()
    smaller.guest.store(smaller.entry, 0)
    smaller.guest.map(smaller.process.root, BAR_VADDR, BAR.start_paddr | HOST & ~0x80, Level.PTE)
    assert [one.invariant for one in smaller.violations()] == [Invariant.BACKED]


# --- what a guest may not say --------------------------------------------------------------------


def test_a_machine_without_kvm_has_no_virtual_machines() -> None:
    with pytest.raises(ProtocolError, match=r"was not started for KVM; .*machine\(kvm=True\)"):
        Stop(has_kvm=False).declare()


def test_a_name_belongs_to_one_process_or_virtual_machine() -> None:
    stop = Stop().declare()
    for name in ("vm", "parent"):
        with pytest.raises(ProtocolError, match=f"a second '{name}'"):
            stop.witness.note(VmEvent(name, 77, 8, 9))
    child = WaitEvent(Where.REGISTERING, "vm", 78, 77, STACK, NONCE)
    with pytest.raises(ProtocolError, match="registers as 'vm', which is no process"):
        asyncio.run(stop.witness.register(child, Deadline(5.0, None)))


def test_only_the_owner_speaks_of_a_virtual_machine() -> None:
    stop = Stop().declare()
    slot = MappingEvent("low", 78, 0, 0x1000, 3, "ram", 0)
    for event in (
        CountsEvent("vm", 78, (0, 0, 0)),
        SlotEvent("vm", slot, 0x1000),
        SlotGoneEvent("bar", "vm", 78),
        VmGoneEvent("vm", 78),
        VmGoneEvent("other", 77),
    ):
        with pytest.raises(ProtocolError, match="has no virtual machine"):
            stop.witness.note(event)


def test_a_slot_ends_where_its_bar_ends() -> None:
    stop = Stop().declare()
    slot = MappingEvent("bar", 77, GPA, 1 << 30, 3, "bar", 2 << 30)
    with pytest.raises(ProtocolError, match="mapping bar of pid 77 ends at bar"):
        stop.witness.note(SlotEvent("vm", slot, BAR_VADDR))


def test_what_is_gone_is_not_shown() -> None:
    stop = Stop().declare()
    stop.witness.note(SlotGoneEvent("bar", "vm", 77))
    assert stop.look()["vm"].mappings == {}
    stop.witness.note(VmGoneEvent("vm", 77))
    assert "vm" not in stop.look()
    stop.declare()
    stop.witness.note(GoneEvent(77))
    assert [process.name for process in stop.look()] == []
