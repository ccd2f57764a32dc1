"""What both witnesses saw at one stop, as frozen values: every process of the run, every mapping that it declared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.errors import NoEntry, UsageError
from harness.guest.protocol import MappingEvent
from harness.pagetable import PAGE_SIZE_BYTES, Leaf, Observation, PagemapWord, Region, Walk, relative_pfn
from harness.pagetable.vtd import Access

#: The page that guest_tests/lib/checkpoint.c maps, by which every stop calibrates the walk. Scenarios ignore it.
CALIBRATION_MAPPING = "calibration"


@dataclass(frozen=True, slots=True)
class MappingView:
    """One mapping of one process: its declaration by the guest program, its leaves, and its pagemap words."""

    declared: MappingEvent
    """``vaddr``, ``size_bytes``, protection and backing, as the guest program declared them with hp_map()."""
    leaves: tuple[Leaf, ...]
    """In ascending order of address; holes are left out."""
    pagemap: tuple[PagemapWord, ...]
    """One word per 4096-byte page from the start of the mapping; empty if the guest read none."""
    broken: str = ""
    """Why the page tables cannot be walked; "" if they can."""
    behind: tuple[Leaf, ...] | None = None
    """Of a slot: the leaves of the process that made the virtual machine, over the same memory. None of a mapping."""
    behind_vaddr: int = 0
    """Of a slot: where that memory starts in the process."""

    @property
    def end(self) -> int:
        """First virtual address after the mapping."""
        return self.declared.vaddr + self.declared.size_bytes

    def leaf_at(self, offset: int) -> Leaf | None:
        """Return the leaf that maps byte ``offset`` of the mapping; None for a hole."""
        vaddr = self.declared.vaddr + offset
        return next((leaf for leaf in self.leaves if leaf.covers(vaddr)), None)


@dataclass(frozen=True, slots=True)
class NestedLook:
    """What both witnesses say about the nested tables of one virtual machine, all of them."""

    owner: str
    """The name of the process that made it."""
    walked: tuple[int, ...]
    """Leaves of 4 KiB, 2 MiB and 1 GiB that the walk found."""
    counted: tuple[int, ...] | None
    """The same, as KVM counts them (KVM_GET_STATS_FD); None if the guest did not tell them for this stop."""
    broken: str = ""
    """Why the nested tables cannot be walked; "" if they can."""


@dataclass(frozen=True, slots=True)
class IommuLook:
    """What both witnesses say about the IOMMU's tables of one device, all of them."""

    owner: str
    """The name of the process that watches it."""
    access: Access
    """How the IOMMU treats the device. Only if it is TRANSLATED are there page tables."""
    walked_bytes: int
    """What all leaves that the walk found map together."""
    mapped_bytes: int | None
    """What VFIO has mapped by its own account; None if the guest did not tell it for this stop."""
    broken: str = ""
    """Why the tables cannot be walked; "" if they can."""


@dataclass(frozen=True, slots=True, repr=False)
class ProcessView:
    """One process at one stop: ``at["child"]`` of a :class:`Snapshot`.

    A virtual machine is one as well: its mappings are the slots of its memory, at guest-physical addresses. So is a
    device behind the IOMMU: its mappings are ranges of IO virtual addresses.
    """

    name: str
    """"parent", "child", or the name that the guest program gave it."""
    pid: int
    """In the guest."""
    checkpoint: str
    """At which the run was stopped."""
    mappings: Mapping[str, MappingView]
    """By the names that the guest program gave them."""
    holes: Mapping[str, tuple[Walk, ...]]
    """For each mapping, the walk to the first byte of every gap between leaves."""
    nested: NestedLook | IommuLook | None = None
    """What is known of the nested tables, or of the IOMMU's; None for a process."""

    def __repr__(self) -> str:
        return f"<{self.name} (pid {self.pid}) at {self.checkpoint!r}>"

    def mapping(self, name: str) -> MappingView:
        """Return a mapping by its name.

        :raises UsageError: the process has no such mapping; names those that it has.
        """
        if name not in self.mappings:
            raise UsageError(
                f"{self.name} has no mapping {name!r} at {self.checkpoint!r}; it has {sorted(self.mappings)}"
            )
        return self.mappings[name]

    def find_leaf(self, mapping: str, offset: int = 0) -> Leaf | None:
        """Return the leaf that maps byte ``offset`` of a mapping; None for a hole.

        :raises UsageError: the process has no such mapping.
        """
        return self.mapping(mapping).leaf_at(offset)

    def leaf(self, mapping: str, offset: int = 0) -> Leaf:
        """Return the leaf that maps byte ``offset`` of a mapping.

        :raises NoEntry: nothing is mapped there; the message shows the walk up to the hole. It is an AssertionError, so
            a claim that asks for the leaf is broken.
        :raises UsageError: the process has no such mapping.
        """
        found = self.find_leaf(mapping, offset)
        if found is None:
            view = self.mapping(mapping)
            before = [walk for walk in self.holes.get(mapping, ()) if walk.vaddr <= view.declared.vaddr + offset]
            way = f": {view.broken}" if view.broken else f"\n{before[-1]}" if before else ""
            if before and len(before[-1].path) == 1 and self.nested is None:
                way += (
                    "\nnothing is mapped near it, so the process has probably exited; let it wait at a gate (hp_gate)"
                )
            raise NoEntry(
                f"{self.name} has no entry for {mapping}+{offset:#x} at {self.checkpoint!r}{way}",
                checkpoint=self.checkpoint,
                process=self.name,
                mapping=mapping,
                offset=offset,
            )
        return found

    def leaves(self, mapping: str) -> tuple[Leaf, ...]:
        """Return all leaves of a mapping, in ascending order of address.

        :raises UsageError: the process has no such mapping.
        """
        return self.mapping(mapping).leaves

    def pagemap(self, mapping: str) -> tuple[PagemapWord, ...]:
        """Return the pagemap words that the guest read for a mapping, one per 4096-byte page from its start.

        :raises UsageError: the process has no such mapping.
        """
        return self.mapping(mapping).pagemap


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every registered process of a run at one stop, as :meth:`GuestRun.until` returns it.

    ``at["child"]`` is a process by its name (UsageError if there is none), ``"child" in at`` asks for it, and iteration
    yields the processes.
    """

    checkpoint: str
    """The name of the checkpoint."""
    pid: int
    """Of the process that is at the checkpoint."""
    processes: Mapping[str, ProcessView]
    """By name."""
    bars: tuple[Region, ...]
    """Where the memory BARs of the device are."""
    stopped_s: float = 0.0
    """How long the machine stood still, in seconds of the host."""

    def __getitem__(self, name: str) -> ProcessView:
        if name not in self.processes:
            raise UsageError(
                f"there is no process {name!r} at {self.checkpoint!r}; expected one of {sorted(self.processes)}"
            )
        return self.processes[name]

    def bar(self, name: str) -> Region:
        """Return a BAR of the device by its name: "bar" (BAR 2), "bar0", ...

        :raises UsageError: the device has no such BAR, or it is not memory.
        """
        for bar in self.bars:
            if bar.name == name:
                return bar
        raise UsageError(f"the device has no BAR {name!r}; expected one of {[bar.name for bar in self.bars]}")

    def __contains__(self, name: object) -> bool:
        return name in self.processes

    def __iter__(self) -> Iterator[ProcessView]:
        return iter(self.processes.values())

    def observations(self) -> tuple[Observation, ...]:
        """Return every leaf and hole, relative to its mapping and to the BAR, so that two runs can be compared."""
        return tuple(
            row
            for process in self
            for name, view in process.mappings.items()
            if name != CALIBRATION_MAPPING
            for row in _observe(self, process, name, view)
        )


def _observe(at: Snapshot, process: ProcessView, name: str, view: MappingView) -> Iterator[Observation]:
    start = view.declared.vaddr

    def pagemap(offset: int) -> int | None:
        page = offset // PAGE_SIZE_BYTES
        return view.pagemap[page].raw if page < len(view.pagemap) else None

    found: list[Leaf | Walk] = [*view.leaves, *process.holes.get(name, ())]
    for one in sorted(found, key=lambda one: one.vaddr):
        vaddr = max(one.vaddr, start)
        offset = vaddr - start
        if isinstance(one, Leaf):
            level, raw, bits = one.level.label, one.raw, one.bits.names()
            pfn, entry = relative_pfn(one.pfn_at(vaddr), at.bars), one.entry
        else:
            level, raw, bits, pfn, entry = "none", one.terminal.raw, (), "", one.terminal
        tables = entry.layout.format.name
        yield Observation(at.checkpoint, process.name, name, offset, level, raw, bits, pfn, pagemap(offset), tables)
