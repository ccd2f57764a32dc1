"""Simulated stops of a run: the leaves of a mapping "bar" in each process."""

from __future__ import annotations

from harness.guest.protocol import MappingEvent
from harness.observe.snapshot import MappingView, ProcessView, Snapshot
from harness.pagetable import Bits, Entry, Kind, Layout, Leaf, Level, bit_positions
from tests.hand_made_guest import BAR, BAR_VADDR

PLAIN = Bits.P | Bits.W | Bits.U | Bits.PCD | Bits.A | Bits.SPECIAL | Bits.NX
DIRTY = PLAIN | Bits.D


def leaf(bits: Bits = PLAIN, level: Level = Level.PMD, number: int = 0, page: int | None = None) -> Leaf:
    """A leaf of the BAR, the ``number``-th of its level in the mapping.

    :param page: which page of the BAR it maps, in leaves of this level; the same number if not given.
    """
    bits |= Bits.PSE if level is not Level.PTE else Bits(0)
    positions = bit_positions(Kind.LEAF, level, Layout.MODERN, Bits.P in bits)
    flags = sum(1 << position for position, bit in positions.items() if bit in bits)
    offset = (number if page is None else page) * level.size_bytes
    entry = Entry(BAR.start_paddr + offset | flags, level, Layout.MODERN)
    return Leaf(entry, BAR_VADDR + number * level.size_bytes)


def stop(checkpoint: str, **processes: Leaf | tuple[Leaf, ...] | None) -> Snapshot:
    """A stop at which each process has one leaf, several, or none in its mapping "bar"."""
    views = {}
    for pid, (name, leaves) in enumerate(processes.items(), start=30):
        own = (leaves,) if isinstance(leaves, Leaf) else leaves or ()
        declared = MappingEvent("bar", pid, BAR_VADDR, 1 << 30, 3, "bar", 0)
        views[name] = ProcessView(name, pid, checkpoint, {"bar": MappingView(declared, own, ())}, {})
    return Snapshot(checkpoint, 30, views, (BAR,))
