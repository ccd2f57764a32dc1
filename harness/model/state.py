"""What is mapped, and what memory holds: the state that the specification speaks of, as values. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from harness.model.operation import Backing, Operation


@dataclass(frozen=True, slots=True)
class MappedRange:
    """A part of the arena that is mapped in one way."""

    start: int
    end: int
    memory: Backing
    offset: int
    """Of its first byte in the BAR. Of other memory, in an object of its own: 0."""
    rights: str
    """"rw", "r" or ""."""
    advice: frozenset[str] = frozenset()
    """What madvise() told it to keep: "dontfork", "dontdump", and one of "random" and "sequential"."""
    locked: bool = False
    """mlock() of ordinary memory."""
    object: int = 0
    """Which piece of ordinary memory: the step that mapped it."""

    def word_at(self, at: int) -> tuple[int, int]:
        """Return what the word at an address is, the same for every mapping of it."""
        return self.object, self.offset + at - self.start

    def goes_on_in(self, other: MappedRange) -> bool:
        """Return whether nothing but its place tells this VMA from the next one."""
        return replace(self, end=other.end) == replace(other, start=self.start, offset=self.offset) and (
            self.word_at(other.start) == other.word_at(other.start) and self.end == other.start
        )

    def cut(self, start: int, end: int) -> MappedRange:
        """Return the part of it that lies in a range that it overlaps."""
        start, end = max(start, self.start), min(end, self.end)
        return replace(self, start=start, end=end, offset=self.offset + start - self.start)


@dataclass(frozen=True, slots=True)
class ModelProcess:
    """One process: its VMAs, in ascending order, and what its private memory holds."""

    vmas: tuple[MappedRange, ...] = ()
    words: Mapping[tuple[int, int], int | None] = field(default_factory=dict)
    """None where it is not known."""
    cuts: frozenset[int] = frozenset()
    """Addresses at which the kernel may have split a VMA that is one here: a VM_SPECIAL one is never merged again."""

    def at(self, address: int) -> MappedRange | None:
        """Return the VMA that has this address."""
        return next((vma for vma in self.vmas if vma.start <= address < vma.end), None)

    def within(self, start: int, end: int) -> Iterator[MappedRange]:
        """Yield the parts of VMAs in a range."""
        return (vma.cut(start, end) for vma in self.vmas if vma.start < end and start < vma.end)

    def hole(self, start: int, end: int) -> int:
        """Return the first address in a range that no VMA has; its end if there is none."""
        for vma in self.within(start, end):
            if vma.start > start:
                break
            start = vma.end
        return start

    def without(self, start: int, end: int) -> ModelProcess:
        """Return the process after munmap() of a range."""
        rest = self._around(start, end)
        return replace(rest, cuts=frozenset(cut for cut in self.cuts if not start < cut < end))

    def _around(self, start: int, end: int) -> ModelProcess:
        outside = (part for vma in self.vmas for part in _outside(vma, start, end))
        return replace(self, vmas=tuple(outside))

    def having(self, *vmas: MappedRange) -> ModelProcess:
        """Return the process with these VMAs in place of what was there, which may still be cut as it was."""
        rest = self
        for vma in vmas:
            rest = rest._around(vma.start, vma.end)
        merged = list[MappedRange]()
        for vma in sorted((*rest.vmas, *vmas), key=lambda vma: vma.start):
            if merged and merged[-1].goes_on_in(vma):
                merged[-1] = replace(merged[-1], end=vma.end)
            else:
                merged.append(vma)
        return replace(rest, vmas=tuple(merged))

    def may_be_several(self, start: int, end: int) -> bool:
        """Return whether a range may lie in several VMAs, or in none."""
        vmas = list(self.within(start, end))
        return self.hole(start, end) < end or len(vmas) > 1 or any(start < cut < end for cut in self.cuts)


def _outside(vma: MappedRange, start: int, end: int) -> Iterator[MappedRange]:
    if vma.start < start:
        yield vma.cut(vma.start, min(start, vma.end))
    if end < vma.end:
        yield vma.cut(max(end, vma.start), vma.end)


@dataclass(frozen=True, slots=True)
class World:
    """Every process, and the memory that they share."""

    processes: Mapping[int, ModelProcess]
    words: Mapping[tuple[int, int], int | None] = field(default_factory=dict)
    """What shared memory holds; None where that is not known."""
    device_memory: bool = True
    """The memory bit of PCI_COMMAND. Without it, the BAR answers nobody."""
    awake: bool = True
    """The device is not in low power, in which the BAR answers nobody either."""
    bar_holds: bool = True
    """Whether the BAR has RAM behind it, which holds what is written."""
    race: Race | None = None
    """Two operations that run against each other, until both are done."""

    @property
    def bar_answers(self) -> bool:
        """Whether the device can be reached through its BAR."""
        return self.device_memory and self.awake

    def of(self, number: int, process: ModelProcess) -> World:
        """Return the world with this process."""
        return replace(self, processes={**self.processes, number: process})


@dataclass(frozen=True, slots=True)
class Race:
    """What is known of a race so far."""

    first: Operation | None = None
    """The first of the two operations; None if it is still to come."""
    before: World | None = None
    """The world before it."""


NEW_WORLD = World({0: ModelProcess()})
