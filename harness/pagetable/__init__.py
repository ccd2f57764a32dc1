"""Page-table entries of a guest, read on the host: decode, walk, describe, compare.

Pure: bytes, integers and numpy arrays in, values out. No I/O, no printing, and no dependency on the machine that they
come from.
What works on arrays is imported when it is first used, because numpy takes a tenth of a second of CPU time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from harness.pagetable.bits import (
    LEAF_LABELS,
    LEAF_LEVELS,
    NO_BITS,
    PAGE_SIZE_BYTES,
    Bits,
    Kind,
    Layout,
    Level,
    bit_positions,
)
from harness.pagetable.changes import EntryChange, Key, diff
from harness.pagetable.entry import Entry, kind_of
from harness.pagetable.memory import Memory, PhysicalMemory, SplitMemory, WalkError
from harness.pagetable.observation import Observation, Region, comparable, relative_pfn
from harness.pagetable.pagemap import PagemapWord
from harness.pagetable.walk import Leaf, Walk, root_paddr, translate, walk

if TYPE_CHECKING:
    from harness.pagetable.bulk import LeafArrays, entry_arrays, has_bit, pfns, walk_arrays, walk_range
    from harness.pagetable.entry_runs import EntryRun, hole_mask, leaf_mask, only, runs

__all__ = [
    "LEAF_LABELS",
    "LEAF_LEVELS",
    "NO_BITS",
    "PAGE_SIZE_BYTES",
    "Bits",
    "Entry",
    "EntryChange",
    "EntryRun",
    "Key",
    "Kind",
    "Layout",
    "Leaf",
    "LeafArrays",
    "Level",
    "Memory",
    "Observation",
    "PagemapWord",
    "PhysicalMemory",
    "Region",
    "SplitMemory",
    "Walk",
    "WalkError",
    "bit_positions",
    "comparable",
    "diff",
    "entry_arrays",
    "has_bit",
    "hole_mask",
    "kind_of",
    "leaf_mask",
    "only",
    "pfns",
    "relative_pfn",
    "root_paddr",
    "runs",
    "translate",
    "walk",
    "walk_arrays",
    "walk_range",
]

_OF_ARRAYS = {
    **dict.fromkeys(("LeafArrays", "entry_arrays", "has_bit", "pfns", "walk_arrays", "walk_range"), "bulk"),
    **dict.fromkeys(("EntryRun", "hole_mask", "leaf_mask", "only", "runs"), "entry_runs"),
}


def __getattr__(name: str) -> object:
    """Import a name that needs numpy."""
    if name not in _OF_ARRAYS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_OF_ARRAYS[name]}"), name)
