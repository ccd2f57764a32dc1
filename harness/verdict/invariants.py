"""What must hold at every stop, on every leaf, in every scenario; and what the explorer sees that must not be."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from harness.errors import UsageError
from harness.pagetable import PAGE_SIZE_BYTES, Leaf, Level, PagemapWord
from harness.verdict.json_fields import JsonObject, strings, value_of
from harness.verdict.mismatch import EntrySeen, Place

_PROT_WRITE = 2


class Invariant(enum.Enum):
    """An invariant; the value is its name in messages and for ``@pytest.mark.waive``."""

    WALKABLE = "the tables can be walked"
    SPECIAL = "every leaf of a pfnmap is special"
    USER = "every leaf of a user mapping is reachable from user mode"
    BAR_PFN = "pfn is BAR + offset"
    INSIDE = "no leaf reaches past its vma"
    WRITE = "W only where the vma has it"
    SHADOW_STACK = "W=0 with D=1 never: a shadow stack to the CPU"
    SAVED_DIRTY = "SAVED_DIRTY never with W=1"
    HOLE = "pagemap shows a hole over a pfnmap"
    CACHE_BITS = "the same cache bits at every level"
    PRESENT = "walk and pagemap agree on present"
    SAME_PFN = "walk and pagemap agree on the pfn"
    SOFT_DIRTY = "a soft-dirty entry is soft-dirty in pagemap"
    BACKED = "a nested leaf maps what the process that made the virtual machine may reach there"
    NESTED_COUNTS = "the walk of nested tables finds as many leaves as KVM counts"
    DMA_SIZE = "the walk of the IOMMU's tables finds as many bytes as VFIO has mapped"

    @property
    def id(self) -> str:
        """Its name in JSON, "bar_pfn", which does not change with the words."""
        return self.name.lower()

    @property
    def calibrates(self) -> bool:
        """Whether it holds one witness against the other, wherever it is checked."""
        return self in (Invariant.NESTED_COUNTS, Invariant.DMA_SIZE)

    @property
    def other_witness(self) -> str:
        """What the walk is held against, in words."""
        others = {Invariant.NESTED_COUNTS: "KVM's statistics", Invariant.DMA_SIZE: "VFIO's account"}
        return others.get(self, "pagemap")

    @classmethod
    def of(cls, data: JsonObject) -> Self:
        """Return the invariant that an object of a result names.

        :raises UsageError: there is no such invariant.
        """
        word = value_of(data, "invariant", str)
        found = next((one for one in cls if one.id == word), None)
        if found is None:
            raise UsageError(f"'invariant' is {word!r}; expected one of: {', '.join(one.id for one in cls)}")
        return found


@dataclass(frozen=True, slots=True)
class Area:
    """A mapping as the guest program declared it."""

    process: str
    mapping: str
    start: int  # vaddr
    end: int
    prot: int
    bar_paddr: int | None  # paddr of the mapping's first byte; None for ordinary memory
    checkpoint: str = ""

    def at(self, leaf: Leaf) -> str:
        """Return the place of a leaf in the mapping, and its entry, for messages."""
        return f"{self.process} {self.mapping}+{self.offset(leaf):#x}: {leaf.entry}"

    def offset(self, leaf: Leaf) -> int:
        """Return where a leaf is, in bytes from the start of the mapping."""
        return max(leaf.vaddr, self.start) - self.start


@dataclass(frozen=True, slots=True)
class Violation:
    """A violation of an invariant at one leaf."""

    invariant: Invariant
    checkpoint: str
    process: str
    mapping: str
    message: str  # the leaf's place, the leaf, and what was expected
    entry: EntrySeen | None = None  # the leaf; None where there is none

    @classmethod
    def of(cls, invariant: Invariant, area: Area, message: str, leaf: Leaf | None = None) -> Self:
        """Make a violation from a mapping, and from the leaf if there is one."""
        here = area.checkpoint, area.process, area.mapping
        if leaf is None:
            return cls(invariant, *here, message)
        entry = EntrySeen(leaf.level.label, leaf.raw, leaf.bits.names(), Place(*here, area.offset(leaf)))
        return cls(invariant, *here, message, entry)

    def to_json(self) -> dict[str, Any]:
        """Return this violation as an object of schema hugepfn-run."""
        place = {"checkpoint": self.checkpoint, "process": self.process, "mapping": self.mapping}
        entry = self.entry.to_json() if self.entry is not None else None
        return {"invariant": self.invariant.id, **place, "message": self.message, "entry": entry}

    @classmethod
    def from_json(cls, data: JsonObject) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: data has another form.
        """
        entry = None if data.get("entry") is None else EntrySeen.from_json(data["entry"])
        checkpoint, process, mapping, message = strings(data, "checkpoint", "process", "mapping", "message")
        return cls(Invariant.of(data), checkpoint, process, mapping, message, entry)

    def __str__(self) -> str:
        return f"{self.invariant.value}: at {self.checkpoint!r}, {self.message}"


def pfnmap_violations(
    area: Area, leaves: Sequence[Leaf], pagemap: Sequence[PagemapWord], saved_dirty: bool
) -> Iterator[Violation]:
    """Check the leaves of one pfnmap.

    :param saved_dirty: the kernel has SAVED_DIRTY (x86 since 6.6), so W=0 with D=1 must never occur, because the CPU
        takes it for a shadow stack (SDM 4.6; arch/x86/mm/pgtable.c, pte_mkwrite()).
    """
    assert area.bar_paddr is not None
    sound = set[tuple[Level, int]]()  # a BAR has up to 2^18 leaves of a GiB, and most differ only in their address
    for leaf in leaves:
        kind = leaf.level, leaf.entry.raw_flags
        if kind not in sound:
            wrong = [*_flag_violations(area, leaf, saved_dirty)]
            yield from wrong
            if not wrong:
                sound.add(kind)
        yield from _place_violations(area, leaf, "vma")
    for number, word in enumerate(pagemap):
        if not word.hole:
            yield Violation.of(Invariant.HOLE, area, f"{area.process} {area.mapping} page {number}: {word}")


def _flag_violations(area: Area, leaf: Leaf, saved_dirty: bool) -> Iterator[Violation]:
    """Check the bits of a leaf of a pfnmap, its address apart."""
    if not leaf.special:
        yield Violation.of(Invariant.SPECIAL, area, f"SPECIAL is clear: {area.at(leaf)}", leaf)
    if not leaf.user and not leaf.protnone:  # PAGE_NONE has no U: no access is allowed
        yield Violation.of(Invariant.USER, area, f"U is clear: {area.at(leaf)}", leaf)
    if saved_dirty and leaf.shadow_stack_shape:
        yield Violation.of(Invariant.SHADOW_STACK, area, area.at(leaf), leaf)
    if leaf.saved_dirty and leaf.write:
        yield Violation.of(Invariant.SAVED_DIRTY, area, area.at(leaf), leaf)


def _place_violations(area: Area, leaf: Leaf, what: str) -> Iterator[Violation]:
    """Check where a leaf is, where it points to, and whether it may be written.

    :param what: what it must not reach past, for messages.
    """
    if area.bar_paddr is not None:
        expected = area.bar_paddr + leaf.vaddr - area.start
        if leaf.pfn * PAGE_SIZE_BYTES != expected:
            message = f"expected pfn {expected // PAGE_SIZE_BYTES:#x}: {area.at(leaf)}"
            yield Violation.of(Invariant.BAR_PFN, area, message, leaf)
    if leaf.vaddr < area.start or leaf.vaddr + leaf.size_bytes > area.end:
        message = f"{what} {area.start:#x}-{area.end:#x}, leaf at {leaf.vaddr:#x}: {area.at(leaf)}"
        yield Violation.of(Invariant.INSIDE, area, message, leaf)
    if not area.prot & _PROT_WRITE and leaf.write:
        yield Violation.of(Invariant.WRITE, area, area.at(leaf), leaf)


def slot_violations(area: Area, leaves: Sequence[Leaf]) -> Iterator[Violation]:
    """Check the nested leaves of one slot of a virtual machine's memory."""
    for leaf in leaves:
        yield from _place_violations(area, leaf, "slot")


def backing_violations(
    area: Area, leaves: Sequence[Leaf], behind: Sequence[Leaf], behind_vaddr: int
) -> Iterator[Violation]:
    """Check the nested leaves of one slot against the tables of the process: the same pfn, and no more rights.

    That is what MMU notifiers are for: what leaves the tables of the process leaves KVM's before
    (kvm_mmu_notifier_invalidate_range_start() of virt/kvm/kvm_main.c).

    :param behind: the leaves of the process over the slot's memory, in ascending order.
    :param behind_vaddr: where that memory starts in the process.
    """
    candidates = iter(behind)
    candidate = next(candidates, None)
    for leaf in leaves:
        vaddr = leaf.vaddr - area.start + behind_vaddr
        while candidate is not None and candidate.vaddr + candidate.size_bytes <= vaddr:
            candidate = next(candidates, None)
        here = candidate if candidate is not None and candidate.covers(vaddr) else None
        if not (
            here is not None
            and here.hardware_present
            and here.covers(vaddr + leaf.size_bytes - 1)
            and here.pfn_at(vaddr) == leaf.pfn
            and (here.write or not leaf.write)
        ):
            own = here.entry if here is not None else "no leaf"
            yield Violation.of(Invariant.BACKED, area, f"{area.at(leaf)}; the process has {own}", leaf)


def count_violations(area: Area, walked: Sequence[int], counted: Sequence[int] | None) -> Iterator[Violation]:
    """Check the walk of all nested tables of a virtual machine against KVM's own count.

    :param walked: leaves of 4 KiB, 2 MiB and 1 GiB.
    :param counted: the same, as KVM counts them (kvm_update_page_stats() of arch/x86/kvm/mmu.h); None if not known.
    """
    if counted is not None and tuple(walked) != tuple(counted):
        said = [
            " ".join(f"{size}={n}" for size, n in zip(("4k", "2m", "1g"), one, strict=True))
            for one in (walked, counted)
        ]
        yield Violation.of(Invariant.NESTED_COUNTS, area, f"{area.process}: walk {said[0]}; KVM counts {said[1]}")


def dma_violations(area: Area, walked_bytes: int, mapped_bytes: int | None) -> Iterator[Violation]:
    """Check the walk of all of the IOMMU's tables of a device against VFIO's own account.

    :param walked_bytes: what all leaves map together.
    :param mapped_bytes: what VFIO_IOMMU_MAP_DMA mapped, without what VFIO_IOMMU_UNMAP_DMA gave back
        (drivers/vfio/vfio_iommu_type1.c vfio_dma_do_unmap()); None if not known.
    """
    if mapped_bytes is not None and walked_bytes != mapped_bytes:
        said = f"{area.process}: walk {walked_bytes:#x} bytes; VFIO has mapped {mapped_bytes:#x}"
        yield Violation.of(Invariant.DMA_SIZE, area, said)


def cache_violations(seen: Sequence[tuple[Area, Leaf]]) -> Iterator[Violation]:
    """Check that all leaves of BARs at one stop, in every process, have the same cache bits (PAT index 0 to 7).

    A leaf that differs from the majority is named together with the first leaf of the majority.
    """
    counts = Counter(leaf.cache for _, leaf in seen)
    if len(counts) < 2:
        return
    ((usual, _),) = counts.most_common(1)
    place = next(area.at(leaf) for area, leaf in seen if leaf.cache == usual)
    for area, leaf in seen:
        if leaf.cache != usual:
            message = f"PAT index {leaf.cache} at {area.at(leaf)}; PAT index {usual} at {place}"
            yield Violation.of(Invariant.CACHE_BITS, area, message, leaf)


def calibration_violations(area: Area, leaves: Sequence[Leaf], pagemap: Sequence[PagemapWord]) -> Iterator[Violation]:
    """Check the walk against pagemap on ordinary memory, which both can see.

    Soft-dirty is compared in one direction only: pagemap also reports it for a whole new VMA (fs/proc/task_mmu.c,
    pte_to_pagemap_entry(), VM_SOFTDIRTY).
    """
    by_address = iter(leaves)
    leaf = next(by_address, None)
    for number, word in enumerate(pagemap):
        vaddr = area.start + number * PAGE_SIZE_BYTES
        while leaf is not None and leaf.vaddr + leaf.size_bytes <= vaddr:
            leaf = next(by_address, None)
        here = leaf if leaf is not None and leaf.covers(vaddr) else None
        if word.present != (here is not None):
            wrong = Invariant.PRESENT
        elif here is not None and word.pfn != here.pfn_at(vaddr):
            wrong = Invariant.SAME_PFN
        elif here is not None and here.soft_dirty and not word.soft_dirty:
            wrong = Invariant.SOFT_DIRTY
        else:
            continue
        seen = f"pagemap {word}; walk {here.entry if here else 'a hole'}"
        yield Violation.of(wrong, area, f"{area.process} {area.mapping} page {number}: {seen}", here)


#: Between two operations of a cause.
AGAINST = " against "


class Oracle(enum.Enum):
    """What says that it is wrong."""

    ACCESS = "access"  # a load or store ends as the VMA and the device say
    DATA = "data"  # a load gives what was stored
    ERRNO = "errno"  # a system call answers as it is documented
    PROGRESS = "progress"  # an access ends
    UNTOUCHED = "untouched"  # an entry that the operation does not concern stays as it is
    REVOKED = "revoked"  # a device that answers nobody is mapped nowhere
    CACHE = "cache"  # a BAR is uncached
    COPY = "copy"  # fork() copies each leaf of a pfnmap, and makes the copy old
    MOVED = "moved"  # what mremap() moved is soft-dirty
    DIRT = "dirt"  # what was written is dirty until something drops it that may
    TEARDOWN = "teardown"  # what was mapped leaves no page table behind


@dataclass(frozen=True, slots=True)
class Deviation:
    """One thing that is wrong after an operation."""

    oracle: Oracle
    cause: str
    """The operation, without its addresses: "mprotect", "smaps", "madvise dontfork", "munmap against write"."""
    level: str
    """Of the leaf that it is about: "pte", "pmd", "pud"; "none" if there is none, "" if it is about none."""
    expected: str
    got: str
    detail: str = ""
    """Which step, where, and the entry: for people, and not part of what tells one finding from another."""

    @property
    def causes(self) -> tuple[str, ...]:
        """The operations, of which two may have run against each other."""
        return tuple(self.cause.split(AGAINST))

    def __str__(self) -> str:
        place = f" ({self.level})" if self.level not in ("", "none") else ""
        return f"{self.oracle.value}: {self.cause}{place}: expected {self.expected}, got {self.got}"
