"""Walk page tables from the root down for one address, as the CPU does: a process's, or nested ones.

Source: Intel SDM volume 3 section 4.5, and walk_page_range() of mm/pagewalk.c for the kernel's names of the steps. For
many addresses at once, see :mod:`harness.pagetable.bulk`.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import UsageError
from harness.pagetable.bits import ENTRIES_PER_TABLE, PADDR_MASK, PAGE_SHIFT, PAGE_SIZE_BYTES, Bits, Layout, Level
from harness.pagetable.entry import HUGE_LEVELS, Entry
from harness.pagetable.formats import PSE
from harness.pagetable.memory import Memory, WalkError

PTI_USER_ROOT = 1 << PAGE_SHIFT
"""With page-table isolation the user root is the page after the kernel root (PTI_PGTABLE_SWITCH_BIT, asm/pgtable.h)."""


def root_paddr(cr3: int, *, pti: bool = False) -> int:
    """Return the physical address of the root table in CR3, without PCID (bits 0-11), LAM (61, 62) and NOFLUSH (63).

    :param pti: the guest runs with page-table isolation. Bit 12 then selects the user copy of the root; the kernel's
        root, which maps the user half as well, is returned in either case.
    """
    root = cr3 & PADDR_MASK
    return root & ~PTI_USER_ROOT if pti else root


@dataclass(frozen=True, slots=True, repr=False)
class Leaf:
    """An entry that maps memory, and its virtual address. Claims are about leaves.

    ``write``, ``dirty``, ``young`` and so on are single bits of the word. ``kernel_write`` and ``kernel_dirty`` are the
    kernel's predicates, which on x86 look at more than one bit (Documentation/mm/arch_pgtable_helpers.rst).
    """

    entry: Entry
    """The entry, of level pte, pmd or pud."""
    vaddr: int
    """Virtual address of the first byte that the entry maps, a multiple of size_bytes."""

    @property
    def level(self) -> Level:
        """PTE, PMD or PUD."""
        return self.entry.level

    @property
    def raw(self) -> int:
        """The 64-bit word."""
        return self.entry.raw

    @property
    def bits(self) -> Bits:
        """Named bits that are set."""
        return self.entry.bits

    @property
    def pfn(self) -> int:
        """Page frame number (4 KiB units) of the first page; see :attr:`Entry.pfn`."""
        return self.entry.pfn

    @property
    def size_bytes(self) -> int:
        """Bytes that the leaf maps: 4096, 2 MiB or 1 GiB."""
        return self.entry.size_bytes

    @property
    def present(self) -> bool:
        """Always true for a leaf, also for one with PROT_NONE; bit P alone is hardware_present."""
        return self.entry.present

    @property
    def hardware_present(self) -> bool:
        """Bit P: the CPU may use the entry."""
        return self.entry.hardware_present

    @property
    def protnone(self) -> bool:
        """P is clear and PROTNONE is set: pte_protnone()."""
        return self.entry.protnone

    @property
    def write(self) -> bool:
        """Bit W."""
        return self.entry.write

    @property
    def user(self) -> bool:
        """Bit U."""
        return self.entry.user

    @property
    def young(self) -> bool:
        """Bit A, accessed: pte_young()."""
        return self.entry.young

    @property
    def dirty(self) -> bool:
        """Bit D alone; kernel_dirty is pte_dirty()."""
        return self.entry.dirty

    @property
    def saved_dirty(self) -> bool:
        """Bit SAVED_DIRTY: the dirty bit of an entry with W=0 (since 6.6)."""
        return self.entry.saved_dirty

    @property
    def special(self) -> bool:
        """Bit SPECIAL: pte_special(), pmd_special(), pud_special()."""
        return self.entry.special

    @property
    def soft_dirty(self) -> bool:
        """Bit SOFT_DIRTY: pte_soft_dirty()."""
        return self.entry.soft_dirty

    @property
    def uffd_wp(self) -> bool:
        """Bit UFFD_WP: pte_uffd_wp()."""
        return self.entry.uffd_wp

    @property
    def nx(self) -> bool:
        """Bit NX: not executable."""
        return self.entry.nx

    @property
    def cache(self) -> int:
        """PAT index, 0 to 7 (4 * PAT + 2 * PCD + PWT, SDM volume 3 section 4.9.2), comparable across levels."""
        return self.entry.cache

    @property
    def kernel_write(self) -> bool:
        """pte_write(), pmd_write(), pud_write(): W, or W=0 with D=1 if the kernel has shadow stacks."""
        return self.entry.kernel_write

    @property
    def kernel_dirty(self) -> bool:
        """pte_dirty(), pmd_dirty(), pud_dirty(): D or SAVED_DIRTY."""
        return self.entry.kernel_dirty

    @property
    def shadow_stack_shape(self) -> bool:
        """W=0 and D=1, which the CPU takes for a shadow stack (SDM volume 3 section 4.6)."""
        return self.entry.shadow_stack_shape

    def covers(self, vaddr: int) -> bool:
        """Return whether the leaf maps this address."""
        return 0 <= vaddr - self.vaddr < self.size_bytes

    def paddr_at(self, vaddr: int) -> int:
        """Return the physical address that a virtual address maps to.

        :raises UsageError: the leaf does not map vaddr.
        """
        if not self.covers(vaddr):
            raise UsageError(f"vaddr {vaddr:#x} is not in the {self.size_bytes:#x} bytes at {self.vaddr:#x}")
        return (self.pfn << PAGE_SHIFT) + (vaddr - self.vaddr)

    def pfn_at(self, vaddr: int) -> int:
        """Return the page frame number (4 KiB units) that a virtual address maps to.

        :raises UsageError: the leaf does not map vaddr.
        """
        return self.paddr_at(vaddr) >> PAGE_SHIFT

    def __str__(self) -> str:
        return f"{self.vaddr:#018x} {self.entry}"

    def __repr__(self) -> str:
        return f"<{self}>"  # pytest shows this for a broken claim


@dataclass(frozen=True, slots=True)
class Walk:
    """The path of a walk from the root table to the entry that decides for an address."""

    vaddr: int
    """The virtual address that was looked up."""
    path: tuple[Entry, ...]
    """One entry per level, root first; never empty."""

    @property
    def terminal(self) -> Entry:
        """The entry at which the walk ended: a leaf, a hole (none) or a swap entry. Its level is the depth."""
        return self.path[-1]

    @property
    def hole(self) -> bool:
        """Nothing is mapped: the terminal entry is empty."""
        return self.terminal.none

    @property
    def leaf(self) -> Leaf | None:
        """The leaf that maps vaddr; None for a hole or a swap entry."""
        if not self.terminal.leaf:
            return None
        return Leaf(self.terminal, self.vaddr & -self.terminal.size_bytes)

    def __str__(self) -> str:
        return "\n".join([f"walk of {self.vaddr:#018x}", *(f"  {entry}" for entry in self.path)])


def walk(memory: Memory, root: int, vaddr: int, layout: Layout) -> Walk:
    """Walk from the root to the entry that decides for one address.

    :param root: physical address of the root table, see :func:`root_paddr`.
    :param vaddr: any canonical address, user or kernel half; in nested tables a guest-physical address.
    :raises UsageError: vaddr is not canonical.
    :raises WalkError: a table lies outside RAM, or a p4d or pgd entry claims to be a leaf.
    """
    if not layout.is_canonical(vaddr):
        raise UsageError(f"vaddr {vaddr:#x} is not a canonical {layout.address_bits}-bit address")
    table_paddr = root
    path: list[Entry] = []
    for level in layout.levels:
        index = (vaddr >> layout.shift(level)) % ENTRIES_PER_TABLE
        require_table(memory, table_paddr, level, f"on the way to {vaddr:#x}")
        entry = Entry(memory.read_u64(table_paddr + 8 * index), level, layout)
        path.append(entry)
        if not entry.table:
            break
        require_no_reserved_leaf(entry.raw, level)
        table_paddr = entry.table_paddr
    return Walk(vaddr, tuple(path))


def translate(memory: Memory, root: int, vaddr: int, layout: Layout) -> int:
    """Return the physical address that a virtual address maps to, for access to guest memory from the host.

    A PROT_NONE page has one too. The address may lie outside RAM, in a BAR.

    :raises UsageError: vaddr is not canonical.
    :raises WalkError: nothing is mapped there; the message has the whole walk.
    """
    way = walk(memory, root, vaddr, layout)
    if way.leaf is None:
        raise WalkError(f"nothing is mapped at {vaddr:#x}: expected a leaf, but the walk ended without one\n{way}")
    return way.leaf.paddr_at(vaddr)


def require_table(memory: Memory, table_paddr: int, level: Level, where: str) -> None:
    """Check that a table of this level can be read.

    :raises WalkError: the table is not aligned, or lies outside RAM.
    """
    if table_paddr % PAGE_SIZE_BYTES:
        raise WalkError(f"the {level.label} table at paddr {table_paddr:#x} {where} is not on a 4096-byte boundary")
    if table_paddr + PAGE_SIZE_BYTES > memory.size_bytes:
        raise WalkError(
            f"the {level.label} table at paddr {table_paddr:#x} {where} lies outside guest RAM, which ends at "
            f"{memory.size_bytes:#x}; is the root that of this process, and the VM stopped?"
        )


def require_no_reserved_leaf(raw: int, level: Level) -> None:
    """Check that an entry above pud does not claim to be a leaf: bit 7 is reserved there (SDM 4.5).

    :raises WalkError: it does.
    """
    if level not in HUGE_LEVELS and raw & PSE:
        raise WalkError(f"reserved bit 7 is set in {level.label} entry {raw:#018x}; is the layout right (CR4.LA57)?")
