"""What must hold at every stop of a run, held against what was seen there."""

from __future__ import annotations

from collections.abc import Iterator

from harness.guest.protocol import ORDINARY
from harness.machine.snapshot import CALIBRATION_MAPPING, MappingView, ProcessView, Snapshot
from harness.verdict.invariants import (
    Area,
    Violation,
    cache_violations,
    calibration_violations,
    pfnmap_violations,
)


class Invariants:
    """The invariants of one run: its first leaf of a BAR says which cache bits all its leaves of BARs have."""

    def __init__(self, saved_dirty: bool) -> None:
        self._saved_dirty = saved_dirty
        self._cache_bits: int | None = None

    def violations(self, at: Snapshot) -> list[Violation]:
        """What does not hold at a stop."""
        return [
            violation
            for process in at
            for name, view in process.mappings.items()
            for violation in self._of_mapping(at, process, name, view)
        ]

    def _of_mapping(self, at: Snapshot, process: ProcessView, name: str, view: MappingView) -> Iterator[Violation]:
        declared = view.declared
        is_bar = declared.backing != ORDINARY
        start = at.bar(declared.backing).start_paddr + declared.offset_bytes if is_bar else None
        area = Area(process.name, name, declared.vaddr, view.end, declared.prot, start, at.checkpoint)
        if view.broken:
            yield Violation("the tables can be walked", area, view.broken)
        # Another process may run on between the guest's reading of its pagemap and the stop. The page
        # that is mapped for calibration, nobody touches again.
        settled = process.pid == at.pid or name == CALIBRATION_MAPPING
        if is_bar:
            yield from pfnmap_violations(area, view.leaves, view.pagemap, self._saved_dirty)
            if view.leaves and self._cache_bits is None:
                self._cache_bits = view.leaves[0].cache
            if self._cache_bits is not None:
                yield from cache_violations(area, view.leaves, self._cache_bits)
        elif settled:
            yield from calibration_violations(area, view.leaves, view.pagemap)
