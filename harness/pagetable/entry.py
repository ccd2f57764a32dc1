"""One page-table entry: the raw word, and how the CPU and the kernel interpret it.

The names distinguish two kinds of answers. ``write``, ``dirty``, ``young`` and so on are single bits of the word.
``kernel_write`` and ``kernel_dirty`` are the kernel's predicates (pte_write() and similar, see
Documentation/mm/arch_pgtable_helpers.rst), which on x86 look at more than one bit.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import UsageError
from harness.pagetable.bits import (
    LEAF_LEVELS,
    PADDR_MASK,
    PAGE_SHIFT,
    Bits,
    Kind,
    Layout,
    Level,
    bit_positions,
)
from harness.pagetable.formats import CPU, PRESENT, TableFormat

#: The memory types of an EPT leaf (SDM volume 3, table 12-10); 2 and 3 are reserved.
MEMORY_TYPES = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB"}

HUGE_LEVELS = frozenset(LEAF_LEVELS) - {Level.PTE}

#: What of an entry is no address, with bit 12, which is PAT in a huge leaf.
_NOT_ADDRESS = ~PADDR_MASK | 1 << PAGE_SHIFT


def kind_of(raw: int, level: Level, fmt: TableFormat = CPU) -> Kind:
    """Return the kind of an entry: pte_none(), pte_present() and pmd_leaf() of arch/x86/include/asm/pgtable.h.

    A pmd or pud of a process with PSE is a leaf even while P and PROTNONE are clear: pmdp_invalidate() leaves it in
    that state. In KVM's tables, the rules are is_shadow_present_pte() and is_last_spte() of arch/x86/kvm/mmu/spte.h.
    """
    if raw & ~fmt.ignored == 0:
        return Kind.NONE
    if level is Level.PTE:
        return Kind.LEAF if raw & fmt.small_leaf else Kind.SWAP
    if level in HUGE_LEVELS and raw & fmt.huge_leaf == fmt.huge_leaf:
        return Kind.LEAF
    return Kind.TABLE if raw & fmt.table else Kind.SWAP


@functools.lru_cache(maxsize=4096)
def _bits_of(raw: int, level: Level, layout: Layout) -> Bits:
    """Return the named bits that are set. Entries of one mapping mostly differ in their address alone."""
    positions = bit_positions(kind_of(raw, level, layout.format), level, layout, bool(raw & PRESENT))
    return functools.reduce(operator.or_, (bit for position, bit in positions.items() if raw >> position & 1), Bits(0))


@dataclass(frozen=True, slots=True, repr=False)
class Entry:
    """A page-table entry of any kind: leaf, table, hole, or swap entry.

    Source: Intel SDM volume 3 section 4.5; arch/x86/include/asm/pgtable.h.

    :raises UsageError: raw is not a 64-bit word.
    """

    raw: int
    """The 64-bit word, as in memory."""
    level: Level
    """Of the table that contains the entry."""
    layout: Layout
    """Of the kernel that wrote the entry."""

    def __post_init__(self) -> None:
        if not 0 <= self.raw < 1 << 64:
            raise UsageError(f"a page-table entry has 64 bits, got {self.raw:#x}")

    # -- what it is --

    @property
    def kind(self) -> Kind:
        """NONE, TABLE, LEAF or SWAP."""
        return kind_of(self.raw, self.level, self.layout.format)

    @property
    def none(self) -> bool:
        """pte_none(): empty, except for accessed and dirty bits that an erratum may leave."""
        return self.kind is Kind.NONE

    @property
    def leaf(self) -> bool:
        """Maps memory itself, PROT_NONE included."""
        return self.kind is Kind.LEAF

    @property
    def table(self) -> bool:
        """Points to a table of the next lower level."""
        return self.kind is Kind.TABLE

    @property
    def swap(self) -> bool:
        """Neither empty nor present: swap, migration or marker entry; MMIO in KVM's tables. No pfn and no bits."""
        return self.kind is Kind.SWAP

    @property
    def present(self) -> bool:
        """Has an address: a table, or any kind of leaf (P, PROTNONE, or invalidated by pmdp_invalidate())."""
        return self.kind in (Kind.TABLE, Kind.LEAF)

    # -- its bits --

    @property
    def bits(self) -> Bits:
        """Named bits that are set; empty for an entry that is NONE or SWAP."""
        return _bits_of(self.raw & _NOT_ADDRESS, self.level, self.layout)

    def _positions(self) -> Mapping[int, Bits]:
        return bit_positions(self.kind, self.level, self.layout, bool(self.raw & PRESENT))

    def _has(self, bit: Bits) -> bool:
        return bit in self.bits

    def __or__(self, bits: Bits) -> Entry:
        """Return the entry with further bits set. To ignore some bits in a comparison, set them in both entries."""
        mask = sum(1 << position for position, bit in self._positions().items() if bit in bits)
        return dataclasses.replace(self, raw=self.raw | mask)

    @property
    def hardware_present(self) -> bool:
        """The hardware may use it: bit P; R, W or X of EPT."""
        return self.present and bool(self.raw & self.layout.format.usable)

    @property
    def write(self) -> bool:
        """Bit W."""
        return self._has(Bits.W)

    @property
    def user(self) -> bool:
        """Bit U."""
        return self._has(Bits.U)

    @property
    def young(self) -> bool:
        """Bit A: pte_young()."""
        return self._has(Bits.A)

    @property
    def dirty(self) -> bool:
        """Bit D alone; see kernel_dirty for pte_dirty()."""
        return self._has(Bits.D)

    @property
    def saved_dirty(self) -> bool:
        """Bit SAVED_DIRTY."""
        return self._has(Bits.SAVED_DIRTY)

    @property
    def special(self) -> bool:
        """Bit SPECIAL: pte_special(), pmd_special(), pud_special()."""
        return self._has(Bits.SPECIAL)

    @property
    def soft_dirty(self) -> bool:
        """Bit SOFT_DIRTY: pte_soft_dirty()."""
        return self._has(Bits.SOFT_DIRTY)

    @property
    def uffd_wp(self) -> bool:
        """Bit UFFD_WP: pte_uffd_wp()."""
        return self._has(Bits.UFFD_WP)

    @property
    def nx(self) -> bool:
        """Bit NX."""
        return self._has(Bits.NX)

    @property
    def protnone(self) -> bool:
        """A leaf with P clear and PROTNONE set: pte_protnone()."""
        return self._has(Bits.PROTNONE)

    @property
    def cache(self) -> int:
        """PAT index 0 to 7 (4 * PAT + 2 * PCD + PWT, SDM section 4.9.2), comparable across levels; not in EPT."""
        bits = self.bits
        return 4 * (Bits.PAT in bits) + 2 * (Bits.PCD in bits) + (Bits.PWT in bits)

    @property
    def pkey(self) -> int:
        """Protection key of a leaf, 0 to 15; 0 for anything else."""
        return self._field(self.layout.format.pkey) or 0

    @property
    def memory_type(self) -> int | None:
        """Memory type of an EPT leaf, 0 (UC) to 6 (WB); None for anything else."""
        return self._field(self.layout.format.memory_type)

    def _field(self, mask: int) -> int | None:
        """The value of several bits of a leaf, whose mask a format has; None if it has none."""
        return (self.raw & mask) // (mask & -mask) if mask and self.leaf else None

    @property
    def unnamed(self) -> int:
        """The bits of a leaf or table that nothing above names, as a mask: reserved bits, or a wrong Layout."""
        if not self.present:
            return 0
        fmt = self.layout.format
        known = self._paddr_mask() | (fmt.pkey | fmt.memory_type if self.leaf else 0)
        for position in self._positions():
            known |= 1 << position
        return self.raw & ~known

    # -- the kernel's predicates over several bits --

    @property
    def kernel_dirty(self) -> bool:
        """pte_dirty(), pmd_dirty(), pud_dirty() of a leaf: D or SAVED_DIRTY (_PAGE_DIRTY_BITS)."""
        return self.leaf and (self.dirty or self.saved_dirty)

    @property
    def kernel_write(self) -> bool:
        """pte_write(), pmd_write(), pud_write() of a leaf: W, or W=0 with D=1 if Layout.shadow_stack."""
        return self.leaf and (self.write or (self.layout.shadow_stack and self.shadow_stack_shape))

    @property
    def shadow_stack_shape(self) -> bool:
        """A leaf with W=0 and D=1, a shadow stack on x86 (SDM 4.6; pte_shstk() without the CPU feature)."""
        return self.leaf and self.dirty and not self.write

    # -- its address --

    @property
    def size_bytes(self) -> int:
        """Bytes that the entry spans."""
        return 1 << self.layout.shift(self.level)

    def _paddr_mask(self) -> int:
        """The bits of the word that are an address: pte_pfn_mask(), pmd_pfn_mask(), pud_pfn_mask()."""
        return PADDR_MASK & -self.size_bytes if self.leaf else PADDR_MASK

    @property
    def raw_flags(self) -> int:
        """The word without its address, so that leaves of one level with equal rights are equal: pte_flags()."""
        return self.raw & ~self._paddr_mask()

    @property
    def table_paddr(self) -> int:
        """Physical address of the next table.

        :raises UsageError: the entry is not a table.
        """
        if not self.table:
            raise UsageError(f"only a table entry has a table_paddr, this one is a {self.kind.value}: {self}")
        return self.raw & PADDR_MASK

    @property
    def pfn(self) -> int:
        """Page frame number (4 KiB units) of the first page that a leaf maps.

        The address of a leaf of a process whose P is clear is stored inverted against L1TF; this undoes it
        (protnone_mask() in arch/x86/include/asm/pgtable-invert.h, pte_pfn(), pmd_pfn(), pud_pfn() in pgtable.h).

        :raises UsageError: the entry is not a leaf, and has no pfn.
        """
        if not self.leaf:
            raise UsageError(f"only a leaf has a pfn, this one is a {self.kind.value}: {self}")
        stored = self.raw if self.raw & PRESENT or not self.layout.format.inverts else ~self.raw
        return (stored & self._paddr_mask()) >> PAGE_SHIFT

    def __str__(self) -> str:
        words = [self.level.label, f"{self.raw:#018x}"]
        if self.kind is Kind.NONE:
            return " ".join([*words, "none"])
        if self.kind is Kind.SWAP:
            what = "swap, migration or marker" if self.layout.format is CPU else "MMIO, or frozen"
            return " ".join([*words, f"not present ({what})"])
        words += self.bits.names()
        if self.pkey:
            words.append(f"pkey={self.pkey}")
        if self.memory_type is not None:
            words.append(f"memory-type={MEMORY_TYPES.get(self.memory_type, self.memory_type)}")
        if self.unnamed:
            words.append(f"unnamed={self.unnamed:#x}")
        words.append(f"table={self.table_paddr:#x}" if self.table else f"pfn={self.pfn:#x}")
        return " ".join(words)

    def __repr__(self) -> str:
        return f"<{self}>"  # pytest shows this for a broken claim
