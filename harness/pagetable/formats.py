"""The formats of page tables that a walk can read: which bits of an entry say what kind of entry it is.

A format is a record of masks, so that :func:`harness.pagetable.walk.walk` and
:func:`harness.pagetable.bulk.walk_arrays` read all of them. The names of the other bits are in
:func:`harness.pagetable.bits.bit_positions`.

The nested formats are those that KVM writes. In them, bit 11 (SPTE_MMU_PRESENT_MASK) tells an entry that maps
memory or leads to a table from one that only looks so: with NPT, an entry for MMIO has P set, and a reserved address
bit.

The IOMMU has two formats: the second level, which VFIO's mappings use, and in scalable mode a first level, which is
that of the CPU. An entry that the IOMMU may not use is empty, whatever else it has.

Sources: Intel SDM volume 3 section 4.5 (CPU) and 29.3.2 (EPT), AMD APM volume 2 section 15.25 (NPT), Intel VT-d
specification 9.7 and 9.8 (IOMMU), arch/x86/kvm/mmu/spte.h, drivers/iommu/intel/iommu.h.
"""

from __future__ import annotations

from dataclasses import dataclass

PRESENT = 1 << 0
PSE = 1 << 7
PROTNONE = 1 << 8
MMU_PRESENT = 1 << 11
"""SPTE_MMU_PRESENT_MASK: KVM sets it in each entry that it made for the hardware to use."""
KNL_ERRATUM_MASK = (1 << 5) | (1 << 6)
"""Accessed and dirty: Knights Landing may set them in an empty entry (_PAGE_KNL_ERRATUM_MASK in pgtable_64.h)."""
SUPPRESS_VE = 1 << 63
"""SHADOW_NONPRESENT_VALUE: recent kernels set it in each empty entry of KVM's tables, with NPT as well."""
READ_OR_WRITE = 0b11
"""dma_pte_present(): an entry of the IOMMU's second level with neither is not present."""
_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class TableFormat:
    """How the kind of an entry follows from its bits. Each member that is an int is a mask."""

    name: str
    small_leaf: int  # a pte with any of these bits is a leaf
    huge_leaf: int  # a pmd or pud that is not empty and has all of these bits is a leaf
    table: int  # an entry that is no leaf and has any of these bits leads to a table
    ignored: int  # what an empty entry may have set
    usable: int  # the hardware uses an entry with any of these bits
    pkey: int = 0  # protection key of a leaf
    memory_type: int = 0  # memory type of a leaf
    inverts: bool = False  # the address of a leaf whose P is clear is stored inverted (against L1TF)
    signed: bool = False  # the top bit of an address is repeated up to bit 63


CPU = TableFormat(
    "CPU",
    small_leaf=PRESENT | PROTNONE,
    huge_leaf=PSE,  # pmdp_invalidate() clears P of a leaf for a moment
    table=PRESENT,
    ignored=KNL_ERRATUM_MASK,
    usable=PRESENT,
    pkey=0xF << 59,
    inverts=True,
    signed=True,
)
NPT = TableFormat(
    "NPT",
    small_leaf=MMU_PRESENT,
    huge_leaf=MMU_PRESENT | PSE,
    table=MMU_PRESENT,
    ignored=SUPPRESS_VE,
    usable=PRESENT,
)
EPT = TableFormat(
    "EPT",
    small_leaf=MMU_PRESENT,
    huge_leaf=MMU_PRESENT | PSE,
    table=MMU_PRESENT,
    ignored=SUPPRESS_VE,
    usable=0b111,  # R, W, X
    memory_type=0b111 << 3,
)
SECOND_LEVEL = TableFormat(
    "VT-d second level",
    small_leaf=READ_OR_WRITE,
    huge_leaf=PSE,
    table=READ_OR_WRITE,
    ignored=_WORD & ~READ_OR_WRITE,
    usable=READ_OR_WRITE,
)
FIRST_LEVEL = TableFormat(
    "VT-d first level",
    small_leaf=PRESENT,
    huge_leaf=PSE,
    table=PRESENT,
    ignored=_WORD & ~PRESENT,
    usable=PRESENT,
    signed=True,
)
#: All of them, by their names.
FORMATS = {one.name: one for one in (CPU, NPT, EPT, SECOND_LEVEL, FIRST_LEVEL)}
