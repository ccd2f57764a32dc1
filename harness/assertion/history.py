"""The stops of a run so far: whose entry it is, and what it was before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.observe.run_result import RunResult
from harness.observe.snapshot import CALIBRATION_MAPPING, MappingView, ProcessView, Snapshot
from harness.pagetable import Entry, Leaf
from harness.verdict.mismatch import EntrySeen, Mismatch, Place


def seen(one: Leaf | Entry, place: Place | None, count: int = 1) -> EntrySeen:
    """Return a leaf or an entry as a claim shows it."""
    entry = one.entry if isinstance(one, Leaf) else one
    return EntrySeen(entry.level.label, entry.raw, entry.bits.names(), place, count)


def absent(place: Place) -> EntrySeen:
    """Return a place at which there is no entry."""
    return EntrySeen("none", 0, (), place)


@dataclass(frozen=True)
class History:
    """The stops of a run, in order."""

    stops: Sequence[Snapshot] = ()
    earlier: Sequence[Snapshot] = ()
    """The stops of earlier runs of the same test, whose entries the test may also use."""
    result: RunResult | None = None
    """How the program ended, if it has."""

    @property
    def checkpoint(self) -> str:
        """The last checkpoint; "" before the first."""
        return self.stops[-1].checkpoint if self.stops else ""

    def place_of(self, one: Leaf | Entry) -> Place | None:
        """Return where an entry was seen. Equal entries are distinguished by their identity as objects."""
        for at in (*reversed(self.stops), *self.earlier):
            for process in at:
                for name, view in process.mappings.items():
                    for leaf in view.leaves:
                        if leaf is one or leaf.entry is one:
                            return Place(at.checkpoint, process.name, name, _offset(view, leaf))
        return None

    def seen(self, one: Leaf | Entry, count: int = 1) -> EntrySeen:
        """Return an entry, with its place if that is known."""
        return seen(one, self.place_of(one), count)

    def complete(self, mismatch: Mismatch) -> Mismatch:
        """Return a mismatch with what earlier stops tell: since when it is so, and what the entry was before."""
        entry = mismatch.entry
        if entry is None or entry.place is None:
            return mismatch
        index = self._index(entry.place)
        if index is None:
            return mismatch
        if mismatch.reference is not None:  # it may have changed at any stop after that one
            first = index
            while first and _is_so(self.at(first - 1, entry.place), mismatch):
                first -= 1
            since = self.stops[first].checkpoint
            return replace(mismatch, since=since) if first < index else mismatch
        return replace(mismatch, reference=self._before(index, entry.place))

    def at(self, index: int, place: Place) -> EntrySeen | None:
        """Return what was at a place at a stop; None if the process or its mapping did not exist."""
        stop = self.stops[index]
        if place.process not in stop or place.mapping not in stop[place.process].mappings:
            return None
        here = replace(place, checkpoint=stop.checkpoint)
        leaf = stop[place.process].find_leaf(place.mapping, place.offset)
        return absent(here) if leaf is None else seen(leaf, here)

    def reported(self, name: str) -> tuple[str, str]:
        """Return the checkpoints before and after the program reported a value."""
        return self.result.checkpoints_around(name) if self.result is not None else ("", "")

    def around(self, mismatch: Mismatch, limit: int) -> list[EntrySeen]:
        """Return the entries at the stop that a value belongs to; only those of its process, if its name has one."""
        stop = next((at for at in reversed(self.stops) if at.checkpoint == (mismatch.after or mismatch.before)), None)
        named = [process for process in stop or () if mismatch.name.startswith(f"{process.name}-")]
        return _rows(named or stop or (), limit)

    def last(self, limit: int) -> list[EntrySeen]:
        """Return the entries at the last stop."""
        return _rows(self.stops[-1] if self.stops else (), limit)

    def _index(self, place: Place) -> int | None:
        places = range(len(self.stops) - 1, -1, -1)
        return next((one for one in places if self.stops[one].checkpoint == place.checkpoint), None)

    def _before(self, index: int, place: Place) -> EntrySeen | None:
        """Return the entry at the previous stop; for a new process, the same byte of the mapping that was copied."""
        if not index:
            return None
        if (own := self.at(index - 1, place)) is not None:
            return own
        others = (self.at(index - 1, replace(place, process=process.name)) for process in self.stops[index - 1])
        return next((one for one in others if one is not None and one.bits), None)


def _rows(processes: Iterable[ProcessView], limit: int) -> list[EntrySeen]:
    """Return the entries of processes, with equal neighbours as one."""
    found: list[EntrySeen] = []
    for process in processes:
        for name, view in process.mappings.items():
            first, start = 0, Place(process.checkpoint, process.name, name, 0)
            while first < len(view.leaves) and len(found) < limit and name != CALIBRATION_MAPPING:
                count = neighbours(view.leaves[first:])
                leaf = view.leaves[first]
                found.append(seen(leaf, replace(start, offset=_offset(view, leaf)), count))
                first += count
            found += [absent(start)] if not view.leaves else []
    return found[:limit]


def neighbours(leaves: Sequence[Leaf]) -> int:
    """Return how many of the first leaves are neighbours of one level with the same bits."""
    first = leaves[0]
    for number, leaf in enumerate(leaves):
        same = leaf.level is first.level and leaf.bits == first.bits
        if not same or leaf.vaddr != first.vaddr + number * first.size_bytes:
            return number
    return len(leaves)


def _offset(view: MappingView, leaf: Leaf) -> int:
    return max(leaf.vaddr, view.declared.vaddr) - view.declared.vaddr


def _is_so(one: EntrySeen | None, mismatch: Mismatch) -> bool:
    """Return whether an entry of another stop is wrong in the same way."""
    if one is None or mismatch.entry is None:
        return False
    if one.level == "none" or mismatch.entry.level == "none":
        return one.level == mismatch.entry.level
    signed = [word for word in mismatch.wrong if word[0] in "+-"]
    bits = all((word[1:] in one.bits) is (word[0] == "+") for word in signed)
    return bits and (len(signed) == len(mismatch.wrong) or one.raw == mismatch.entry.raw)
