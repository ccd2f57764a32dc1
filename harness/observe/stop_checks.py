"""Check what was seen at a stop against the invariants."""

from __future__ import annotations

from collections.abc import Iterator

from harness.guest.protocol import ORDINARY
from harness.observe.snapshot import CALIBRATION_MAPPING, IommuLook, MappingView, ProcessView, Snapshot
from harness.pagetable import Leaf
from harness.verdict.invariants import (
    Area,
    Invariant,
    Violation,
    backing_violations,
    cache_violations,
    calibration_violations,
    count_violations,
    dma_violations,
    pfnmap_violations,
    slot_violations,
)


def violations_at(at: Snapshot, saved_dirty: bool) -> list[Violation]:
    """Return what violates an invariant at a stop.

    :param saved_dirty: the kernel has SAVED_DIRTY, see :func:`pfnmap_violations`.
    """
    mappings = [
        (process, _area(at, process, name, view), view) for process in at for name, view in process.mappings.items()
    ]
    found = [one for process, area, view in mappings for one in _of_mapping(at, process, area, view, saved_dirty)]
    found += [one for process in at for one in _of_all_tables(at, process)]
    bars: list[tuple[Area, Leaf]] = [
        (area, leaf)
        for process, area, view in mappings
        if area.bar_paddr is not None and process.nested is None
        for leaf in view.leaves
    ]
    return [*found, *cache_violations(bars)]


def _of_all_tables(at: Snapshot, process: ProcessView) -> Iterator[Violation]:
    """Check the nested tables of a virtual machine, or the IOMMU's of a device, as a whole."""
    if (look := process.nested) is None:
        return
    area = Area(process.name, "", 0, 0, 0, None, at.checkpoint)
    if look.broken:
        yield Violation.of(Invariant.WALKABLE, area, look.broken)
    elif isinstance(look, IommuLook):
        yield from dma_violations(area, look.walked_bytes, look.mapped_bytes)
    else:
        yield from count_violations(area, look.walked, look.counted)


def _area(at: Snapshot, process: ProcessView, name: str, view: MappingView) -> Area:
    declared = view.declared
    is_bar = declared.backing != ORDINARY
    start = at.bar(declared.backing).start_paddr + declared.offset_bytes if is_bar else None
    return Area(process.name, name, declared.vaddr, view.end, declared.prot, start, at.checkpoint)


def _of_mapping(
    at: Snapshot, process: ProcessView, area: Area, view: MappingView, saved_dirty: bool
) -> Iterator[Violation]:
    if view.broken:
        yield Violation.of(Invariant.WALKABLE, area, view.broken)
    # Another process may run between the guest's read of its pagemap and the stop. Nothing touches the page of the
    # calibration again.
    settled = process.pid == at.pid or area.mapping == CALIBRATION_MAPPING
    if process.nested is not None:
        yield from slot_violations(area, view.leaves)
        if view.behind is not None:
            yield from backing_violations(area, view.leaves, view.behind, view.behind_vaddr)
    elif area.bar_paddr is not None:
        yield from pfnmap_violations(area, view.leaves, view.pagemap, saved_dirty)
    elif settled:
        yield from calibration_violations(area, view.leaves, view.pagemap)
