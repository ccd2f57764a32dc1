"""Tests for the IOMMU's tables at a stop, in simulated memory: what is seen, and that a lie of a witness is noticed."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from harness.errors import MachineryError, PremiseNotMet, ProtocolError
from harness.guest.protocol import (
    CountsEvent,
    DmaEvent,
    GoneEvent,
    IommuEvent,
    MappingEvent,
    SlotEvent,
    VmGoneEvent,
    WaitEvent,
    Where,
)
from harness.observe.iommu import read_rtaddr
from harness.observe.snapshot import IommuLook, Snapshot
from harness.observe.stop_checks import violations_at
from harness.observe.witness import Witness
from harness.pagetable import Layout, Level
from harness.pagetable.vtd import Access
from harness.qemu.deadline import Deadline
from harness.qemu.process import Qemu
from harness.verdict import words
from harness.verdict.invariants import Invariant, Violation
from tests.hand_made_guest import BAR, BAR_VADDR, NONCE, STACK, FakeQemu, Guest, registers

IOVA = 1 << 30
RIGHTS = 0x3
HUGE = 0x83
BDF = "0000:00:05.0"
CHECKPOINT = WaitEvent(Where.CHECKPOINT, "mapped", 77, 1, STACK, NONCE)


class Stop:
    """A process that watches a device, for which a 2 MiB leaf of the BAR is mapped."""

    def __init__(self) -> None:
        self.guest = guest = Guest()
        self.process = guest.process()
        self.root_table, self.context_table, self.root = guest.page(), guest.page(), guest.page()
        guest.store(self.root_table, self.context_table | 1)
        self.context(self.root | 1, 1)
        self.map(IOVA, BAR.start_paddr | HUGE, Level.PMD)
        self.qemu = FakeQemu(guest, [registers(self.process.root)])
        self.qemu.registers_of_iommu[0xFED90020] = self.root_table
        self.witness = Witness(cast(Qemu, self.qemu), [BAR], Layout.MODERN)
        event = WaitEvent(Where.REGISTERING, "parent", 77, 1, STACK, NONCE)
        asyncio.run(self.witness.register(event, Deadline(5.0, None)))

    def context(self, low: int, high: int) -> None:
        self.guest.store(self.context_table + 16 * 0x28, low)
        self.guest.store(self.context_table + 16 * 0x28 + 8, high)

    def map(self, iova: int, raw: int, level: Level) -> None:
        table = self.root
        for shift in (30, 21, 12):
            slot = table + (iova >> shift & 511) * 8
            if shift == level.shift:
                self.guest.store(slot, raw)
                return
            if not self.guest.load(slot):
                self.guest.store(slot, self.guest.page() | RIGHTS)
            table = self.guest.load(slot) & ~0xFFF

    def declare(self, *, length: int = 2 << 20, prot: int = 3, mapped: int = 2 << 20) -> Stop:
        self.witness.note(IommuEvent("iommu", 77, BDF))
        self.witness.note(SlotEvent("iommu", MappingEvent("bar", 77, IOVA, length, prot, "bar", 0), BAR_VADDR))
        self.witness.note(DmaEvent("iommu", 77, mapped))
        return self

    def look(self) -> Snapshot:
        asyncio.run(self.witness.stop())
        return self.witness.snapshot("mapped", 77)

    def violations(self) -> list[Violation]:
        return violations_at(self.look(), saved_dirty=True)


def test_a_range_is_seen_as_a_mapping_of_the_iommu() -> None:
    stop = Stop().declare()
    at = stop.look()
    view = at["iommu"]
    assert view.nested == IommuLook("parent", Access.TRANSLATED, 2 << 20, 2 << 20)
    leaf = view.leaf("bar")
    assert (leaf.level, leaf.vaddr, leaf.write) == (Level.PMD, IOVA, True)
    assert violations_at(at, saved_dirty=True) == []
    (seen,) = [str(one) for one in at.observations() if one.process == "iommu"]
    assert seen == f"mapped iommu bar+0x0: pmd {BAR.start_paddr | HUGE:#018x} R W PSE bar+0x0"


@pytest.mark.parametrize(
    ("context", "access"), [((0, 0), Access.BLOCKED), ((0b1001, 1), Access.UNTRANSLATED)], ids=["blocked", "passed"]
)
def test_a_device_without_tables_has_no_leaves(context: tuple[int, int], access: Access) -> None:
    stop = Stop().declare(mapped=0)
    stop.context(*context)
    view = stop.look()["iommu"]
    assert view.nested == IommuLook("parent", access, 0, 0)
    assert view.leaves("bar") == ()
    assert stop.violations() == []


# --- a witness that lies -------------------------------------------------------------------------


def test_another_size_makes_the_walk_void() -> None:
    (found,) = Stop().declare(mapped=4 << 20).violations()
    assert found.invariant is Invariant.DMA_SIZE
    assert found.invariant.calibrates
    assert found.message == "iommu: walk 0x200000 bytes; VFIO has mapped 0x400000"
    assert words.uncalibrated(found).startswith("the walk and VFIO's account disagree, so the walk proves nothing: ")


def test_a_walk_with_a_wrong_root_is_void() -> None:
    stop = Stop().declare()
    stop.context(stop.guest.page() | 1, 1)
    (found,) = stop.violations()
    assert (found.invariant, found.process) == (Invariant.DMA_SIZE, "iommu")


def test_a_leaf_outside_all_ranges_is_counted() -> None:
    stop = Stop().declare(mapped=(2 << 20) + 4096)
    stop.map(40 << 30, 0x6000 | RIGHTS, Level.PTE)
    assert stop.violations() == []


@pytest.mark.parametrize("where", ["root", "context", "pud"])
def test_tables_that_make_no_sense_are_a_violation(where: str) -> None:
    stop = Stop().declare()
    if where == "root":
        stop.guest.store(stop.root_table, 0x7FFFFFF001)
    elif where == "context":
        stop.context(stop.root | 1, 7)
    else:
        stop.guest.store(stop.root, 0x7FFFFFF000 | RIGHTS)
    assert [one.invariant for one in stop.violations()] == [Invariant.WALKABLE]


def test_a_size_that_is_older_than_the_tables_is_not_compared() -> None:
    stop = Stop().declare(mapped=4096)
    stop.witness.forget_pagemap()
    assert stop.violations() == []


def test_a_checkpoint_has_to_come_with_the_size() -> None:
    stop = Stop().declare()
    stop.witness.verify(CHECKPOINT)
    stop.witness.release(CHECKPOINT)
    stop.guest.store(stop.process.release_word, NONCE)
    with pytest.raises(ProtocolError, match=r"checkpoint 'mapped' came without VFIO's size of iommu"):
        stop.witness.verify(CHECKPOINT)


@pytest.mark.parametrize(
    ("raw", "length", "prot", "invariant"),
    [
        (BAR.start_paddr + (2 << 20) | HUGE, 2 << 20, 3, Invariant.BAR_PFN),
        (BAR.start_paddr | HUGE, 1 << 20, 3, Invariant.INSIDE),
        (BAR.start_paddr | HUGE, 2 << 20, 1, Invariant.WRITE),
    ],
)
def test_an_invariant_of_a_range(raw: int, length: int, prot: int, invariant: Invariant) -> None:
    stop = Stop().declare(length=length, prot=prot)
    stop.map(IOVA, raw, Level.PMD)
    assert [(one.invariant, one.process, one.mapping) for one in stop.violations()] == [(invariant, "iommu", "bar")]


# --- what a guest may not say --------------------------------------------------------------------


def test_a_name_belongs_to_one() -> None:
    stop = Stop().declare()
    for name in ("iommu", "parent"):
        with pytest.raises(ProtocolError, match=f"a second '{name}'"):
            stop.witness.note(IommuEvent(name, 77, BDF))


def test_only_the_owner_speaks_of_an_iommu_and_only_vfio_of_its_size() -> None:
    stop = Stop().declare()
    for event in (DmaEvent("iommu", 78, 0), DmaEvent("other", 77, 0), VmGoneEvent("iommu", 78)):
        with pytest.raises(ProtocolError, match="no virtual machine and no IOMMU"):
            stop.witness.note(event)
    with pytest.raises(ProtocolError, match="iommu is an IOMMU, and KVM counts nothing there"):
        stop.witness.note(CountsEvent("iommu", 77, (0, 0, 0)))


def test_what_is_gone_is_not_shown() -> None:
    stop = Stop().declare()
    stop.witness.note(GoneEvent(77))
    assert "iommu" not in stop.look()


# --- the registers -------------------------------------------------------------------------------


def test_the_root_comes_from_the_register() -> None:
    stop = Stop()
    asyncio.run(stop.qemu.stop())
    assert asyncio.run(read_rtaddr(stop.qemu)) == stop.root_table
    assert [line for line in stop.qemu.lines if line.startswith("xp")] == [
        "xp /1wx 0xfed90000",
        "xp /1wx 0xfed9001c",
        "xp /1gx 0xfed90020",
    ]


@pytest.mark.parametrize(
    ("at", "answer", "words"),
    [
        (0xFED90000, 0, "QEMU was started without intel-iommu"),
        (0xFED90000, None, "QEMU was started without intel-iommu"),
        (0xFED9001C, 0x40000000, r"the IOMMU is off: .*intel_iommu=off"),
    ],
)
def test_an_iommu_that_is_off_is_a_skip_with_the_reason(at: int, answer: int | None, words: str) -> None:
    stop = Stop()
    stop.qemu.registers_of_iommu[at] = answer
    with pytest.raises(PremiseNotMet, match=words):
        stop.declare().look()


def test_an_answer_of_qemu_that_makes_no_sense_is_an_error() -> None:
    class Babbling(FakeQemu):
        def _register(self, line: str) -> str:
            return f"unknown command: {line!r}"

    qemu = Babbling(Guest(), [], ["stop"])
    with pytest.raises(MachineryError, match="expected an address and a word"):
        asyncio.run(read_rtaddr(qemu))
