"""What a kernel can do, probed from its configuration, a module's symbols and trials in the guest, not its version."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.pagetable import NO_BITS, Bits, Layout, Level

#: The configuration symbol that enables huge pfnmaps at each level (mm/Kconfig, ARCH_SUPPORTS_HUGE_PFNMAP).
LEVEL_SYMBOLS = {Level.PMD: "ARCH_SUPPORTS_PMD_PFNMAP", Level.PUD: "ARCH_SUPPORTS_PUD_PFNMAP"}
#: The handler that makes huge entries (drivers/vfio/pci/vfio_pci_core.c).
HUGE_FAULT_SYMBOL = "vfio_pci_mmap_huge_fault"


@dataclass(frozen=True, slots=True)
class ImageCapabilities:
    """What the kernel's own files show without a boot; a field is None if they do not show it."""

    huge_fault: bool | None
    """The kernel defines vfio_pci_mmap_huge_fault() (drivers/vfio/pci/vfio_pci_core.c)."""
    pfnmap_levels: frozenset[Level] | None
    """The levels that a leaf of a pfnmap can have, by the configuration."""
    devmap: bool | None
    """CONFIG_ARCH_HAS_PTE_DEVMAP, by the configuration."""

    def why_not(self, level: Level) -> str:
        """Return why a pfnmap cannot have a leaf of this level on this kernel; "" if it can, as far as is known."""
        if level is Level.PTE:
            return ""
        reasons = []
        if self.pfnmap_levels is not None and level not in self.pfnmap_levels:
            reasons.append(f"CONFIG_{LEVEL_SYMBOLS[level]} is not set")
        if self.huge_fault is False:
            reasons.append(f"it has no {HUGE_FAULT_SYMBOL}()")
        return f"no huge pfnmap in this kernel: {', '.join(reasons)}" if reasons else ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the kernel can do: the fixture ``caps``. Probed, never derived from a version."""

    image: ImageCapabilities
    """What the kernel's own files show."""
    saved_dirty: bool
    """Making a dirty page read-only moves its dirty bit to SAVED_DIRTY."""
    soft_dirty: bool
    """Bit 55 of the pagemap word of a fresh anonymous page is set."""
    pagemap_scan: bool
    """The PAGEMAP_SCAN ioctl works."""
    guard_regions: bool
    """madvise(MADV_GUARD_INSTALL) works."""
    thp: str
    """The selected word of /sys/kernel/mm/transparent_hugepage/enabled; "" if there is no such file."""
    five_level: bool
    """CR4.LA57: page tables have five levels."""
    kvm_clock: bool = False
    """The guest has kvm-clock, by which KVM reports that the guest was stopped."""
    early: Bits = NO_BITS
    """Bits that the CPU may set without an access: A under KVM."""
    bar_misses: Bits = NO_BITS
    """Bits that the CPU leaves clear in entries of the BAR (harness/observe/bar_bits.py)."""

    def why_not(self, level: Level) -> str:
        """Return why a pfnmap cannot have a leaf of this level on this kernel; "" if it can, as far as is known."""
        return self.image.why_not(level)

    @property
    def fault_fills_vma(self) -> bool:
        """One fault maps the whole VMA of a BAR, as vfio_pci_mmap_fault() did before there was a huge_fault handler."""
        return self.image.huge_fault is False

    @property
    def why_no_thp(self) -> str:
        """Why anonymous memory cannot have transparent huge pages; "" if it can, also if only with MADV_HUGEPAGE."""
        if self.thp and self.thp != "never":
            return ""
        return f"transparent huge pages are off in this kernel ({self.thp or 'not built in'})"

    @property
    def layout(self) -> Layout:
        """The layout of this kernel's page-table entries."""
        devmap_bit = None if self.image.devmap is False else 57 if self.saved_dirty else 58
        return Layout(saved_dirty=self.saved_dirty, devmap_bit=devmap_bit, five_level=self.five_level)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Capabilities:
        """Read what :meth:`to_json` wrote.

        :raises KeyError, TypeError: data is something else.
        """
        levels = data["pfnmap_levels"]
        pfnmap_levels = None if levels is None else frozenset(Level.from_label(label) for label in levels)
        image = ImageCapabilities(data["huge_fault"], pfnmap_levels, data["devmap"])
        own = {
            name: data[name]
            for name in ("saved_dirty", "soft_dirty", "pagemap_scan", "guard_regions", "thp", "five_level", "kvm_clock")
        }
        return cls(image=image, early=_bits(data["early"]), bar_misses=_bits(data["bar_misses"]), **own)

    def to_json(self) -> dict[str, object]:
        """Return the capabilities as an object of schema hugepfn-run."""
        levels = self.image.pfnmap_levels
        return {
            "saved_dirty": self.saved_dirty,
            "soft_dirty": self.soft_dirty,
            "pagemap_scan": self.pagemap_scan,
            "guard_regions": self.guard_regions,
            "thp": self.thp,
            "five_level": self.five_level,
            "kvm_clock": self.kvm_clock,
            "early": list(self.early.names()),
            "bar_misses": list(self.bar_misses.names()),
            "huge_fault": self.image.huge_fault,
            "pfnmap_levels": None if levels is None else [level.label for level in sorted(levels)],
            "devmap": self.image.devmap,
        }


def _bits(names: list[str]) -> Bits:
    return functools.reduce(lambda bits, name: bits | Bits[name], names, NO_BITS)
