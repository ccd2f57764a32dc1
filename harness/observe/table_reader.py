"""Reads what page tables have for one mapping, up to a limit for all stops of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from harness import pagetable
from harness.errors import ProtocolError, UsageError
from harness.guest import bounds
from harness.guest.protocol import MappingEvent
from harness.observe.nested import TableRoot
from harness.observe.snapshot import MappingView
from harness.pagetable import Layout, Leaf, PagemapWord, Walk, WalkError, walk
from harness.pagetable.memory import Memory

T = TypeVar("T")

#: Up to so many entries of one level, walks one by one are as fast as one in bulk, and need no numpy.
_FEW_ENTRIES = 32


class TableReader:
    """The reader of one run."""

    def __init__(self) -> None:
        self._leaves_left = bounds.LEAVES_MAX

    def mapping(
        self,
        memory: Memory,
        tables: TableRoot,
        declared: MappingEvent,
        words: tuple[PagemapWord, ...],
        check: Callable[[], None],
    ) -> tuple[MappingView, tuple[Walk, ...]]:
        """Return what tables have for a mapping, and the walk to each gap in it.

        :param tables: of a process, or nested ones; their root was verified.
        :param words: the mapping's pagemap words.
        :param check: called for each leaf; it may raise to end the walk.
        :raises ProtocolError: there are more leaves and holes than all stops of a run may have.
        """
        start, end = declared.vaddr, declared.vaddr + declared.size_bytes
        leaves: tuple[Leaf, ...] = ()
        holes: tuple[Walk, ...] = ()
        broken = ""
        try:
            found = leaves_in(memory, tables.paddr, start, end, tables.layout)
            leaves = tuple(self._counted(found, declared.name, check))
            gaps = _gaps(leaves, start, end)
            walks = (walk(memory, tables.paddr, vaddr, tables.layout) for vaddr in gaps)
            holes = tuple(self._counted(walks, declared.name, check))
        except WalkError as error:  # the root was verified, so the kernel made these tables
            broken = str(error)
        return MappingView(declared, leaves, words, broken), holes

    def _counted(self, found: Iterable[T], mapping: str, check: Callable[[], None]) -> Iterator[T]:
        for one in found:
            check()
            if not self._leaves_left:
                raise ProtocolError(
                    f"mapping {mapping}: all stops of this run have more than {bounds.LEAVES_MAX} leaves and holes; "
                    "declare less with hp_map(), or look at a large mapping with leaf_arrays()"
                )
            self._leaves_left -= 1
            yield one


def leaves_in(memory: Memory, root: int, start: int, end: int, layout: Layout) -> Iterable[Leaf]:
    """Return every leaf that overlaps [start, end), as :func:`harness.pagetable.walk_range` does."""
    found: list[Leaf] = []
    with contextlib.suppress(WalkError, UsageError):  # the walk in bulk says what is wrong
        vaddr = start
        while vaddr < end:
            way = walk(memory, root, vaddr, layout)
            size_bytes = way.terminal.size_bytes
            if end - vaddr > _FEW_ENTRIES * size_bytes:
                break
            found += [] if way.leaf is None else [way.leaf]
            vaddr = (vaddr & -size_bytes) + size_bytes
        else:
            return found
    return pagetable.walk_range(memory, root, start, end, layout)


def _gaps(leaves: Sequence[Leaf], start: int, end: int) -> Iterator[int]:
    """Yield the first address of every gap between leaves."""
    for leaf in leaves:
        if start < leaf.vaddr:
            yield start
        start = leaf.vaddr + leaf.size_bytes
    if start < end:
        yield start
