"""What must hold at every stop, on every leaf, whatever the scenario."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.pagetable import Leaf, PagemapWord

_PAGE_SIZE_BYTES = 4096
_PROT_WRITE = 2


@dataclass(frozen=True, slots=True)
class Area:
    """A mapping as the guest program declared it."""

    process: str
    mapping: str
    start: int  # vaddr
    end: int
    prot: int
    bar_paddr: int | None  # of the mapping's first byte; None for ordinary memory
    checkpoint: str = ""

    def at(self, leaf: Leaf) -> str:
        """How a message names a place in it."""
        offset = max(leaf.vaddr, self.start) - self.start
        return f"{self.process} {self.mapping}+{offset:#x}: {leaf.entry}"


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold at one leaf."""

    invariant: str
    area: Area
    message: str

    @property
    def mapping(self) -> str:
        """The mapping's name."""
        return self.area.mapping

    def __str__(self) -> str:
        return f"{self.invariant}: at {self.area.checkpoint!r}, {self.message}"


def pfnmap_violations(
    area: Area, leaves: Sequence[Leaf], pagemap: Sequence[PagemapWord], saved_dirty: bool
) -> Iterator[Violation]:
    """Checks the leaves of one pfnmap.

    :param saved_dirty: the kernel has SAVED_DIRTY (x86 since 6.6), so that W=0 with D=1 must never be seen:
        the CPU reads it as a shadow stack (SDM 4.6; arch/x86/mm/pgtable.c, pte_mkwrite()).
    """
    assert area.bar_paddr is not None
    for leaf in leaves:
        where = area.at(leaf)
        if not leaf.special:
            yield Violation("every leaf of a pfnmap is special", area, f"SPECIAL is clear: {where}")
        if not leaf.user and not leaf.protnone:  # PAGE_NONE has no U: nobody may use it
            yield Violation("every leaf of a user mapping is reachable from user mode", area, f"U is clear: {where}")
        expected = area.bar_paddr + leaf.vaddr - area.start
        if leaf.pfn * _PAGE_SIZE_BYTES != expected:
            yield Violation("pfn is BAR + offset", area, f"expected pfn {expected // _PAGE_SIZE_BYTES:#x}: {where}")
        if leaf.vaddr < area.start or leaf.vaddr + leaf.size_bytes > area.end:
            yield Violation(
                "no leaf reaches past its vma",
                area,
                f"vma {area.start:#x}-{area.end:#x}, leaf at {leaf.vaddr:#x}: {where}",
            )
        if leaf.write and not area.prot & _PROT_WRITE:
            yield Violation("W only where the vma has it", area, where)
        if saved_dirty and leaf.shadow_stack_shape:
            yield Violation("W=0 with D=1 never: a shadow stack to the CPU", area, where)
        if leaf.saved_dirty and leaf.write:
            yield Violation("SAVED_DIRTY never with W=1", area, where)
    for number, word in enumerate(pagemap):
        if not word.hole:
            yield Violation(
                "pagemap shows a hole over a pfnmap", area, f"{area.process} {area.mapping} page {number}: {word}"
            )


def cache_violations(area: Area, leaves: Sequence[Leaf], expected: int) -> Iterator[Violation]:
    """Checks that every leaf of a BAR has the cache bits (PAT index 0 to 7) that its other leaves have."""
    for leaf in leaves:
        if leaf.cache != expected:
            yield Violation(
                "the same cache bits at every level",
                area,
                f"PAT index {leaf.cache}, elsewhere {expected}: {area.at(leaf)}",
            )


def calibration_violations(area: Area, leaves: Sequence[Leaf], pagemap: Sequence[PagemapWord]) -> Iterator[Violation]:
    """Checks the walk against pagemap where both can see: ordinary memory.

    Soft-dirty is compared one way only: pagemap also says so for a whole new vma (fs/proc/task_mmu.c,
    pte_to_pagemap_entry(), VM_SOFTDIRTY).
    """
    by_address = iter(leaves)
    leaf = next(by_address, None)
    for number, word in enumerate(pagemap):
        vaddr = area.start + number * _PAGE_SIZE_BYTES
        while leaf is not None and leaf.vaddr + leaf.size_bytes <= vaddr:
            leaf = next(by_address, None)
        here = leaf if leaf is not None and leaf.covers(vaddr) else None
        where = f"{area.process} {area.mapping} page {number}: pagemap {word}; walk {here.entry if here else 'a hole'}"
        if word.present != (here is not None):
            yield Violation("walk and pagemap agree on present", area, where)
        elif here is not None and word.pfn != here.pfn_at(vaddr):
            yield Violation("walk and pagemap agree on the pfn", area, where)
        elif here is not None and here.soft_dirty and not word.soft_dirty:
            yield Violation("a soft-dirty entry is soft-dirty in pagemap", area, where)
