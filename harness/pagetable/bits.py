"""The parts of an x86-64 page-table entry: its level, its named bits, and which of them a kernel has.

A bit position alone has no meaning: bit 7 is the page size in a pmd and a cache bit in a pte, bit 8 is "global" in
a present entry and "PROT_NONE" in one that is not, bit 58 is DEVMAP on 6.1, SAVED_DIRTY since 6.6 and NOPTISHADOW in a
root table. So :class:`Bits` are names, and only :func:`bit_positions` says at which position a name is.

Sources: arch/x86/include/asm/pgtable_types.h (_PAGE_BIT_*), Intel SDM volume 3 section 4.5 (4- and 5-level paging) and
29.3.2 (EPT), arch/x86/kvm/mmu/spte.h (KVM's own bits), drivers/iommu/intel/iommu.h (DMA_PTE_*).
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from harness.errors import UsageError
from harness.pagetable.formats import CPU, EPT, FIRST_LEVEL, NPT, SECOND_LEVEL, TableFormat

PAGE_SHIFT = 12
PAGE_SIZE_BYTES = 1 << PAGE_SHIFT
ENTRIES_PER_TABLE = 512
PADDR_MASK = ((1 << 52) - 1) & ~(PAGE_SIZE_BYTES - 1)
"""Bits 12 to 51: where an entry, or CR3, keeps a physical address (SDM 4.5, MAXPHYADDR at its architectural limit)."""


class Level(enum.IntEnum):
    """Level of a page table, named as the kernel names its entries; 1 is the lowest."""

    PTE = 1
    PMD = 2
    PUD = 3
    P4D = 4
    PGD = 5

    @property
    def shift(self) -> int:
        """Log2 of the bytes that one entry of this level spans, with five levels. See also :meth:`Layout.shift`."""
        return PAGE_SHIFT + 9 * (self - 1)

    @property
    def size_bytes(self) -> int:
        """Bytes that one entry of this level spans, with five levels: 4096 (pte), 2 MiB (pmd), 1 GiB (pud)."""
        return 1 << self.shift

    @property
    def label(self) -> str:
        """``"pte"``, ``"pmd"``, ``"pud"``, ``"p4d"`` or ``"pgd"``."""
        return self.name.lower()

    @classmethod
    def from_label(cls, label: str) -> Level:
        """Return the level that a label names, in either case.

        :raises UsageError: no level has that name.
        """
        for level in cls:
            if level.label == label.lower():
                return level
        valid = ", ".join(level.label for level in cls)
        raise UsageError(f"no page-table level is called {label!r}; valid values: {valid}")


LEAF_LEVELS = (Level.PTE, Level.PMD, Level.PUD)
"""Levels whose entry can be a leaf. x86 has none at p4d or pgd: bit 7 is reserved there (SDM 4.5)."""
LEAF_LABELS = tuple(level.label for level in LEAF_LEVELS)


class Bits(enum.Flag):
    """The meanings of an entry's bits, independent of their positions: ``Bits.SAVED_DIRTY in entry.bits``.

    Source: _PAGE_BIT_* in arch/x86/include/asm/pgtable_types.h; Intel SDM volume 3 section 4.5.
    """

    # A Flag and not an IntFlag, so that the mistake ``entry.raw & Bits.NX`` is a TypeError.

    P = enum.auto()
    """present: the CPU may use the entry"""
    R = enum.auto()
    """readable (EPT, IOMMU)"""
    W = enum.auto()
    """writable"""
    X = enum.auto()
    """executable (EPT)"""
    U = enum.auto()
    """reachable from user mode"""
    PWT = enum.auto()
    """cache: write-through"""
    PCD = enum.auto()
    """cache: disabled"""
    A = enum.auto()
    """accessed, set by the CPU"""
    D = enum.auto()
    """dirty, set by the CPU"""
    PSE = enum.auto()
    """a pmd or pud that is a leaf"""
    PAT = enum.auto()
    """cache: bit 7 of a pte, bit 12 (PAT_LARGE) of a huge leaf"""
    IPAT = enum.auto()
    """cache: the guest's PAT is ignored (EPT)"""
    G = enum.auto()
    """global, if P is set"""
    PROTNONE = enum.auto()
    """mapped with PROT_NONE, or a NUMA hint, if P is clear"""
    SPECIAL = enum.auto()
    """no struct page behind it: pfnmap"""
    UFFD_WP = enum.auto()
    """write-protected by userfaultfd"""
    SOFT_DIRTY = enum.auto()
    """written since 4 was written to /proc/PID/clear_refs"""
    DEVMAP = enum.auto()
    """ZONE_DEVICE page (until 6.16)"""
    SAVED_DIRTY = enum.auto()
    """dirty, kept here while W is clear (since 6.6)"""
    NOPTISHADOW = enum.auto()
    """root table only: no copy for the PTI user root"""
    HOST_WRITABLE = enum.auto()
    """KVM: the host's own mapping may be written (DEFAULT_SPTE_HOST_WRITABLE, EPT_SPTE_HOST_WRITABLE)"""
    MMU_WRITABLE = enum.auto()
    """KVM: W may be set without its MMU lock (DEFAULT_SPTE_MMU_WRITABLE, EPT_SPTE_MMU_WRITABLE)"""
    MMU_PRESENT = enum.auto()
    """KVM: it made this entry for the hardware to use (SPTE_MMU_PRESENT_MASK)"""
    SNP = enum.auto()
    """accesses are snooped, whatever the device asks for (IOMMU)"""
    SUPPRESS_VE = enum.auto()
    """a violation is no #VE (EPT)"""
    NX = enum.auto()
    """not executable"""

    def names(self) -> tuple[str, ...]:
        """Return the names of the bits that are set, from the lowest to the highest position."""
        return tuple(bit.name for bit in Bits if bit in self and bit.name is not None)

    def __str__(self) -> str:
        return " ".join(self.names())


NO_BITS = Bits(0)


class Kind(enum.Enum):
    """The kind of an entry, which determines what can be decoded from it."""

    NONE = "none"  # empty
    TABLE = "table"  # the address of the next table
    LEAF = "leaf"  # maps memory, or would without PROT_NONE: has a pfn
    SWAP = "swap"  # not present and not empty: swap, migration, marker or garbage; its number is not a pfn


@dataclass(frozen=True)
class Layout:
    """The format of page tables, the software bits that a kernel has in them, and their depth.

    Probe it (kernel configuration, CR4, a dirty page made read-only); do not derive it from a version number.

    :raises UsageError: DEVMAP and SAVED_DIRTY claim the same bit, no kernel has used devmap_bit, another format than
        the CPU's has software bits of the process's tables, or another than the IOMMU's has three levels.
    """

    MODERN: ClassVar[Layout]
    """SAVED_DIRTY at 58, DEVMAP at 57: 6.6 to 6.16."""
    CLASSIC: ClassVar[Layout]
    """No SAVED_DIRTY, DEVMAP at 58: before 6.6."""
    NO_DEVMAP: ClassVar[Layout]
    """SAVED_DIRTY at 58 and no DEVMAP: from 6.17, where CONFIG_ARCH_HAS_PTE_DEVMAP is gone."""
    NPT: ClassVar[Layout]
    """The tables of KVM on AMD, four levels."""
    EPT: ClassVar[Layout]
    """The tables of KVM on Intel, four levels."""
    SECOND_LEVEL: ClassVar[Layout]
    """The second level of an Intel IOMMU, four levels."""
    FIRST_LEVEL: ClassVar[Layout]
    """The first level of an Intel IOMMU in scalable mode, four levels."""

    saved_dirty: bool = True  # bit 58 of a leaf is SAVED_DIRTY
    devmap_bit: int | None = 57  # position of DEVMAP, None if the kernel has none
    five_level: bool = False  # CR4.LA57: 57-bit addresses
    three_level: bool = False  # the IOMMU's second level with 39-bit addresses: the root is a table of puds
    shadow_stack: bool = False  # X86_FEATURE_SHSTK: the kernel's *_write() treat W=0 D=1 as writable
    nopti_shadow: bool = False  # bit 58 of a root-table entry is NOPTISHADOW
    format: TableFormat = CPU

    def __post_init__(self) -> None:
        if self.devmap_bit not in (None, 57, 58):
            raise UsageError(f"no kernel has DEVMAP at bit {self.devmap_bit}; valid values: 57, 58, None")
        if self.saved_dirty and self.devmap_bit == 58:
            raise UsageError("bit 58 is DEVMAP or SAVED_DIRTY, not both: give another devmap_bit, or saved_dirty=False")
        if self.format is not CPU and (self.saved_dirty or self.devmap_bit or self.shadow_stack or self.nopti_shadow):
            raise UsageError(f"{self.format.name} has no software bits of a process's tables: start from Layout.NPT")
        if self.three_level and (self.format is not SECOND_LEVEL or self.five_level):
            raise UsageError(f"three_level: {self.format.name} has four or five levels")

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels of a walk, root first. With four levels the p4d is folded, and the root is the pgd."""
        if self.five_level:
            return (Level.PGD, Level.P4D, Level.PUD, Level.PMD, Level.PTE)
        if self.three_level:
            return LEAF_LEVELS[::-1]
        return (Level.PGD, Level.PUD, Level.PMD, Level.PTE)

    def shift(self, level: Level) -> int:
        """Return log2 of the bytes that an entry of this level spans: a pgd of four levels spans 2**39 bytes."""
        return Level.P4D.shift if level is Level.PGD and not self.five_level else level.shift

    @property
    def address_bits(self) -> int:
        """Width of an address that is looked up: 48 or 57; 39 with three levels."""
        return self.shift(self.levels[0]) + 9

    @property
    def end(self) -> int:
        """One past the last address of the lower half, or of all if addresses have no sign."""
        return 1 << self.address_bits - self.format.signed

    def is_canonical(self, vaddr: int) -> bool:
        """Return whether vaddr is a 64-bit address whose top bits repeat bit 47 (or 56).

        In nested tables, which translate guest-physical addresses, and in an IOMMU's second level the top bits are 0.
        """
        if not self.format.signed:
            return 0 <= vaddr < 1 << self.address_bits
        top = vaddr >> (self.address_bits - 1)
        return top in (0, (1 << (65 - self.address_bits)) - 1)


Layout.MODERN = Layout()
Layout.CLASSIC = Layout(saved_dirty=False, devmap_bit=58)
Layout.NO_DEVMAP = Layout(devmap_bit=None)
Layout.NPT = Layout(saved_dirty=False, devmap_bit=None, format=NPT)
Layout.EPT = Layout(saved_dirty=False, devmap_bit=None, format=EPT)
Layout.SECOND_LEVEL = Layout(saved_dirty=False, devmap_bit=None, format=SECOND_LEVEL)
Layout.FIRST_LEVEL = Layout(saved_dirty=False, devmap_bit=None, format=FIRST_LEVEL)


@functools.cache
def bit_positions(kind: Kind, level: Level, layout: Layout, present: bool) -> Mapping[int, Bits]:
    """Return the meaning of each bit position in such an entry; positions without a name are left out.

    :param present: bit 0 of the entry. It determines whether bit 8 is G or PROTNONE.

    Nothing is named in an entry that is NONE or SWAP: its bits belong to the swap format (asm/pgtable_64.h).
    """
    if kind in (Kind.NONE, Kind.SWAP):
        return MappingProxyType({})
    if layout.format is EPT:
        return MappingProxyType(_ept_positions(kind, level))
    if layout.format is SECOND_LEVEL:
        return MappingProxyType(_second_level_positions(kind, level))
    named = {0: Bits.P, 1: Bits.W, 2: Bits.U, 3: Bits.PWT, 4: Bits.PCD, 5: Bits.A, 6: Bits.D, 63: Bits.NX}
    if layout.format is NPT:
        named |= {11: Bits.MMU_PRESENT}
        if kind is Kind.LEAF:
            named |= {9: Bits.HOST_WRITABLE, 10: Bits.MMU_WRITABLE}
            named |= {7: Bits.PAT} if level is Level.PTE else {7: Bits.PSE, 12: Bits.PAT}
        return MappingProxyType(named)
    if kind is Kind.TABLE:
        if layout.nopti_shadow and level is Level.PGD:
            named[58] = Bits.NOPTISHADOW
        return MappingProxyType(named)
    if level is Level.PTE:
        named[7] = Bits.PAT
    else:
        named |= {7: Bits.PSE, 12: Bits.PAT}
    if layout.format is FIRST_LEVEL:
        return MappingProxyType(named)
    named |= {8: Bits.G if present else Bits.PROTNONE, 9: Bits.SPECIAL, 10: Bits.UFFD_WP, 11: Bits.SOFT_DIRTY}
    if layout.devmap_bit is not None:
        named[layout.devmap_bit] = Bits.DEVMAP
    if layout.saved_dirty:
        named[58] = Bits.SAVED_DIRTY
    return MappingProxyType(named)


def _second_level_positions(kind: Kind, level: Level) -> dict[int, Bits]:
    named = {0: Bits.R, 1: Bits.W}
    if kind is Kind.LEAF:
        named |= {8: Bits.A, 9: Bits.D, 11: Bits.SNP}
        if level is not Level.PTE:
            named[7] = Bits.PSE
    return named


def _ept_positions(kind: Kind, level: Level) -> dict[int, Bits]:
    named = {0: Bits.R, 1: Bits.W, 2: Bits.X, 8: Bits.A, 11: Bits.MMU_PRESENT}
    if kind is Kind.LEAF:
        named |= {6: Bits.IPAT, 9: Bits.D, 57: Bits.HOST_WRITABLE, 58: Bits.MMU_WRITABLE, 63: Bits.SUPPRESS_VE}
        if level is not Level.PTE:
            named[7] = Bits.PSE
    return named
