"""Reads what page tables have for one mapping, up to a limit for all stops of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from harness.errors import ProtocolError
from harness.guest import bounds
from harness.guest.protocol import MappingEvent
from harness.observe.nested import TableRoot
from harness.observe.snapshot import MappingView
from harness.pagetable import Leaf, PagemapWord, Walk, WalkError, walk, walk_range
from harness.pagetable.memory import Memory

T = TypeVar("T")


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
            found = walk_range(memory, tables.paddr, start, end, tables.layout)
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


def _gaps(leaves: Sequence[Leaf], start: int, end: int) -> Iterator[int]:
    """Yield the first address of every gap between leaves."""
    for leaf in leaves:
        if start < leaf.vaddr:
            yield start
        start = leaf.vaddr + leaf.size_bytes
    if start < end:
        yield start
