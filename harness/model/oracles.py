"""What must hold of the page tables after each operation, whatever levels the kernel chose. Pure.

Beside the invariants that hold in every scenario (harness/verdict/invariants.py), an entry stays as it is unless the
operation concerns it, and what was written stays dirty until something drops it that may.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.model.operation import ACCESSES, ARENA_VADDR, CHANGING, PMD, PTE, RANGED, STORES, Backing, Operation, Verb
from harness.model.state import NEW_WORLD, MappedRange, ModelProcess, World
from harness.model.world import DONE, KEPT_ADVICE, Reply, after, bounds
from harness.pagetable import Bits, Leaf, Level
from harness.verdict.invariants import AGAINST, Area, Deviation, Invariant, Oracle, Violation, pfnmap_violations

FOREVER = "forever"
_RIGHTS = {"": 0, "r": 1, "w": 2, "rw": 3}
#: What may differ in an entry that nobody concerned: the CPU, and the aging of pages, set and clear A when they like.
_AT_ANY_TIME = Bits.A
#: How vfio maps a BAR, at every level: PCD alone (pgprot_noncached() in vfio_pci_core_mmap(); mm/pat/memtype.c).
UC_MINUS = 2

Found = Deviation | Violation


@dataclass(frozen=True, slots=True)
class Stop:
    """What was seen after an operation."""

    said: str
    """What the operation answered, see :class:`harness.model.world.Reply`; :data:`FOREVER` for an endless access."""
    word: int | None
    """What a read gave; of mremap(), how many pages are present at the new address and not soft-dirty."""
    leaves: Mapping[int, tuple[Leaf, ...]]
    """The leaves of each process in the arena, in ascending order."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all stops of a sequence have in common."""

    bar_paddr: int
    """Guest-physical address of the BAR."""
    saved_dirty: bool
    """The kernel has SAVED_DIRTY, see :func:`pfnmap_violations`."""
    bar_holds: bool = True
    """See :class:`World`."""
    soft_dirty: bool = False
    """The kernel has soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)."""
    zaps_split: bool = False
    """A VMA of a BAR loses its entries when it is split (vfio_pci_mmap_open(), of kernels without huge leaves)."""
    early: bool = False
    """The CPU may set A without an access, see :class:`harness.verdict.capabilities.Capabilities`."""


@dataclass
class Judge:
    """Follows a sequence from its start: give each operation with what was seen after it to :meth:`step`."""

    setting: Setting
    world: World = NEW_WORLD
    number: int = 0
    before: Mapping[int, tuple[Leaf, ...]] = field(default_factory=dict)
    owed: set[tuple[int, int]] = field(default_factory=set)
    """Process and page of what was written, and may not be dropped."""
    raced: list[Operation] = field(default_factory=list)
    """The first of two operations that run against each other."""

    def __post_init__(self) -> None:
        self.world = replace(self.world, bar_holds=self.setting.bar_holds)

    def step(self, op: Operation, stop: Stop) -> list[Found]:
        """Return what is wrong after one operation, the most telling first.

        :raises harness.model.world.Unspecified: the operation says nothing.
        """
        self.number += 1
        old = self.world
        self.world, answer = after(old, op, self.number)
        found: list[Found] = [*self._answer(op, stop, answer)]
        if self.world.race is not None:  # what it does to the entries cannot be told yet from what the next one does
            self.raced += [op] if op.verb is not Verb.RACE else []
            return found
        found += self._entries(op, stop)
        found += self._revoked(op, stop)
        found += self._copied(op, stop)
        found += self._moved(op, stop)
        found += self._untouched(op, old, stop)
        found += self._dirt(op, old, stop)
        self.before, self.raced = stop.leaves, []
        return found

    # --- what it answered ------------------------------------------------------------------------

    def _answer(self, op: Operation, stop: Stop, answer: Reply) -> Iterator[Deviation]:
        leaf = _covering(self.before.get(op.process, ()), op.at)
        level = leaf.level.label if leaf is not None else "none"
        access = op.verb in ACCESSES
        wrong = [one for one in stop.said.split("|") if one not in answer.allowed]
        if FOREVER in wrong:
            now = _covering(stop.leaves.get(op.process, ()), op.at)
            level = now.level.label if now is not None else "none"
            yield self._deviation(Oracle.PROGRESS, op, level, "an end", "endless faults")
        elif wrong:
            oracle = Oracle.ACCESS if access else Oracle.ERRNO
            yield self._deviation(oracle, op, level if access else "", " or ".join(answer.allowed), " and ".join(wrong))
        elif answer.word is not None and stop.said == DONE and stop.word != answer.word:
            yield self._deviation(Oracle.DATA, op, level, f"{answer.word:#x}", f"{stop.word or 0:#x}")

    # --- the entries -----------------------------------------------------------------------------

    def _entries(self, op: Operation, stop: Stop) -> Iterator[Found]:
        for number, process in self.world.processes.items():
            leaves = stop.leaves.get(number, ())
            for leaf in leaves:
                if not any(vma.start < _end(leaf) and _start(leaf) < vma.end for vma in process.vmas):
                    yield self._violation(Invariant.INSIDE, number, leaf, "no vma is there")
            for vma in process.vmas:
                yield from self._of_vma(op, number, vma, leaves)

    def _of_vma(self, op: Operation, number: int, vma: MappedRange, leaves: Sequence[Leaf]) -> Iterator[Found]:
        here = [leaf for leaf in leaves if vma.start < _end(leaf) and _start(leaf) < vma.end]
        if vma.memory is Backing.BAR:
            area = self._area(number, vma.start, vma.end, vma.rights, self.setting.bar_paddr + vma.offset)
            yield from pfnmap_violations(area, here, (), self.setting.saved_dirty)
            for leaf in here:
                if leaf.cache != UC_MINUS:
                    got, detail = f"PAT index {leaf.cache}", f"p{number} {_start(leaf):#x}: {leaf.entry}"
                    yield self._deviation(Oracle.CACHE, op, leaf.level.label, "uncached-minus", got, detail)
            return
        for leaf in here:
            if leaf.write and "w" not in vma.rights:
                yield self._violation(Invariant.WRITE, number, leaf, f"the vma has {vma.rights or 'no rights'}")
            if self.setting.saved_dirty and leaf.shadow_stack_shape:
                yield self._violation(Invariant.SHADOW_STACK, number, leaf, "")
            if leaf.saved_dirty and leaf.write:
                yield self._violation(Invariant.SAVED_DIRTY, number, leaf, "")

    def _revoked(self, op: Operation, stop: Stop) -> Iterator[Deviation]:
        """While the BAR answers nobody, and right after a reset, no process maps it."""
        if self.world.bar_answers and not (op.verb is Verb.MEMORY and op.how == "reset" and stop.said == DONE):
            return
        for number, process in self.world.processes.items():
            for leaf in stop.leaves.get(number, ()):
                vma = process.at(max(_start(leaf), 0))
                if vma is not None and vma.memory is Backing.BAR:
                    detail = f"p{number} {_start(leaf):#x}: {leaf.entry}"
                    yield self._deviation(Oracle.REVOKED, op, leaf.level.label, "no entry", "an entry", detail)

    def _area(self, number: int, start: int, end: int, rights: str, paddr: int | None) -> Area:
        place = (ARENA_VADDR + start, ARENA_VADDR + end)
        return Area(f"p{number}", "arena", *place, _RIGHTS[rights], paddr, str(self.number))

    def _violation(self, invariant: Invariant, number: int, leaf: Leaf, why: str) -> Violation:
        area = self._area(number, 0, 0, "", None)
        where = f"p{number} {_start(leaf):#x}: {leaf.entry}"
        return Violation.of(invariant, area, f"{where}{'; ' * bool(why)}{why}", leaf)

    # --- what the operation does not concern -----------------------------------------------------

    def _zaps(self, op: Operation, number: int, leaf: Leaf, process: ModelProcess) -> bool:
        """Whether the operation takes a leaf because it splits the VMA, see :attr:`Setting.zaps_split`."""
        return self.setting.zaps_split and number == op.process and _splits_vma(op, leaf, process)

    def _may_change(self, op: Operation, number: int, leaf: Leaf, process: ModelProcess) -> bool:
        return self._zaps(op, number, leaf, process) or _concerns(op, number, leaf, process)

    def _untouched(self, op: Operation, old: World, stop: Stop) -> Iterator[Deviation]:
        ops = (op, *self.raced)
        for number, leaves in self.before.items():
            if number not in self.world.processes or number not in old.processes:
                continue
            now, process = {leaf.vaddr: leaf for leaf in stop.leaves.get(number, ())}, old.processes[number]
            for leaf in leaves:
                if any(self._may_change(one, number, leaf, process) for one in ops):
                    continue
                left = now.get(leaf.vaddr)
                if left is not None and any(_zeroes(one, leaf, left, process) for one in ops):
                    continue
                if left is None or left.level is not leaf.level:
                    got = "gone" if left is None else left.level.label
                elif wrong := (leaf.bits ^ left.bits) & ~_AT_ANY_TIME:
                    got = " ".join(f"{'+' if bit in left.bits else '-'}{bit.name}" for bit in Bits if bit in wrong)
                elif leaf.pfn != left.pfn:
                    got = "another pfn"
                else:
                    continue
                detail = f"p{number} {_start(leaf):#x}: {leaf.entry}"
                yield self._deviation(Oracle.UNTOUCHED, op, leaf.level.label, "no change", got, detail)

    # --- what the operation makes ----------------------------------------------------------------

    def _copied(self, op: Operation, stop: Stop) -> Iterator[Deviation]:
        """fork() copies a pfnmap (mm/memory.c vma_needs_copy()), and the copies are old (pte_mkold() and its like)."""
        if op.verb is not Verb.FORK or stop.said != DONE:
            return
        child = {leaf.vaddr: leaf for leaf in stop.leaves.get(op.to, ())}
        for leaf in stop.leaves.get(op.process, ()):
            vma, copy = self.world.processes[op.to].at(max(_start(leaf), 0)), child.get(leaf.vaddr)
            if vma is None or vma.memory is not Backing.BAR or (copy and not (copy.young and not self.setting.early)):
                continue
            got = "no entry" if copy is None else "young"
            yield self._deviation(Oracle.COPY, op, leaf.level.label, "an old copy", got, f"{leaf.entry}")

    def _moved(self, op: Operation, stop: Stop) -> Iterator[Deviation]:
        """What mremap() moves is soft-dirty (admin-guide/mm/soft-dirty.rst; mm/mremap.c move_soft_dirty_pte())."""
        if op.verb is Verb.MOVE and stop.said == DONE and self.setting.soft_dirty and stop.word:
            leaf = _covering(stop.leaves.get(op.process, ()), op.to)
            got = "clean, moved by 2M" if (op.to - op.at) % PMD == 0 else "clean"  # a page table may move as a whole
            level, detail = leaf.level.label if leaf is not None else "none", f"{stop.word} pages"
            yield self._deviation(Oracle.MOVED, op, level, "soft-dirty", got, detail)

    # --- what was written ------------------------------------------------------------------------

    def _dirt(self, op: Operation, old: World, stop: Stop) -> Iterator[Deviation]:
        for one in (*self.raced, op):
            self._drop(one, old, stop.said == DONE)
        for number, page in sorted(self.owed):
            leaf = _covering(stop.leaves.get(number, ()), page)
            if leaf is None or not leaf.entry.kernel_dirty:
                came_from = page - op.to + op.at if op.verb is Verb.MOVE and op.to <= page < op.to + op.size else page
                was = _covering(self.before.get(number, ()), came_from)
                got = "no entry" if leaf is None else "clean"
                level = was.level.label if was is not None else "none"
                yield self._deviation(Oracle.DIRT, op, level, "dirty", got, f"p{number} {page:#x}")
                self.owed.discard((number, page))
        dropped = any(one.verb in CHANGING and one.at <= op.at < one.end for one in self.raced)
        if op.verb in STORES and stop.said == DONE and not dropped:
            self.owed.add((op.process, op.at // PTE * PTE))

    def _drop(self, op: Operation, old: World, done: bool) -> None:
        """Forget what the operation may drop: what is no longer mapped, and a leaf that has to be taken apart."""
        kept = set()
        for number, page in self.owed:
            leaf = _covering(self.before.get(number, ()), page)
            process = self.world.processes.get(number)
            place = _place(op, page, leaf, done) if number == op.process else page
            still = process.at(place) if process is not None and place is not None else None
            revoked = _revokes(op) and still is not None and still.memory is Backing.BAR
            before = old.processes.get(number)
            zapped = leaf is not None and before is not None and self._zaps(op, number, leaf, before)
            if leaf is not None and still is not None and place is not None and not revoked and not zapped:
                kept.add((number, place))
        self.owed = kept

    def _deviation(
        self, oracle: Oracle, op: Operation, level: str, expected: str, got: str, detail: str = ""
    ) -> Deviation:
        cause = AGAINST.join(sorted(one.cause for one in (op, *self.raced)))
        return Deviation(oracle, cause, level, expected, got, f"step {self.number}, {op}{': ' * bool(detail)}{detail}")


def _start(leaf: Leaf) -> int:
    return leaf.vaddr - ARENA_VADDR


def _end(leaf: Leaf) -> int:
    return _start(leaf) + leaf.size_bytes


def _covering(leaves: Sequence[Leaf], at: int) -> Leaf | None:
    return next((leaf for leaf in leaves if leaf.covers(ARENA_VADDR + at)), None)


def _splits(op: Operation, leaf: Leaf) -> bool:
    """Whether a VMA is split inside the leaf, which then has to be taken apart, and of a pfnmap may be dropped."""
    return any(_start(leaf) < bound < _end(leaf) for bound in bounds(op))


def _splits_vma(op: Operation, leaf: Leaf, process: ModelProcess) -> bool:
    """Whether the VMA of a leaf is split, anywhere, and is one of a BAR."""
    vma = process.at(max(_start(leaf), 0))
    return vma is not None and vma.memory is Backing.BAR and any(vma.start < at < vma.end for at in bounds(op))


def _revokes(op: Operation) -> bool:
    """Whether a device may be taken from all who map it, even if the operation then fails (vfio_pci_core.c)."""
    return op.verb is Verb.MEMORY and op.how in ("off", "sleep", "reset")


def _place(op: Operation, page: int, leaf: Leaf | None, done: bool) -> int | None:
    """Return where a page is after an operation of its process; None if what is there may have been dropped."""
    inside = op.at <= page < op.end
    match op.verb:
        case Verb.UFFD if leaf is not None and leaf.special:  # it is refused
            return page
        case _ if leaf is None or _splits(op, leaf):
            return None
        case Verb.PEEK if op.how == "vm_readv" and page == op.at // PTE * PTE and not leaf.special:
            return None  # who pins a shared page may get a copy of his own, clean (mm/gup.c gup_must_unshare())
        case Verb.MOVE if not done:
            return page
        case Verb.MOVE if inside:
            return page - op.at + op.to if (op.to - op.at) % leaf.size_bytes == 0 else None
        case Verb.MOVE if op.to <= page < op.to + op.size:
            return None
        case Verb.MAP if inside:
            return None
        case Verb.ADVISE if inside and op.how not in KEPT_ADVICE:
            return None
    return page


def _takes_apart(op: Operation) -> bool:
    """Return whether a huge page of ordinary memory may be taken apart for an operation, in every process."""
    return op.verb is Verb.ADVISE and op.how not in KEPT_ADVICE


def _zeroes(op: Operation, leaf: Leaf, left: Leaf, process: ModelProcess) -> bool:
    """Return whether the zero page took the place of a page that belongs to a huge page, and holds zeros.

    mm/huge_memory.c __folio_split(), RMP_USE_SHARED_ZEROPAGE. mremap() may have moved the page away from the others.
    """
    became = Bits.SPECIAL in left.bits and Bits.W not in left.bits and left.level is Level.PTE is leaf.level
    if not (_takes_apart(op) and became):
        return False
    vma = process.at(_start(leaf))
    return vma is not None and vma.memory is Backing.ANON


def _concerns(op: Operation, number: int, leaf: Leaf, process: ModelProcess) -> bool:
    """Return whether the operation may change a leaf."""
    start, end = _start(leaf), _end(leaf)
    vma = process.at(start)
    if op.verb is Verb.MEMORY:
        return _revokes(op) and (vma is None or vma.memory is Backing.BAR)
    if op.verb is Verb.UFFD and vma is not None and vma.memory is Backing.BAR:
        return False
    if _takes_apart(op) and vma is not None and vma.memory is not Backing.BAR:
        return start < -(-op.end // PMD) * PMD and op.at // PMD * PMD < end
    if number != op.process:
        return False
    match op.verb:
        case _ if op.verb in ACCESSES:
            return start <= op.at < end
        case Verb.FORK:  # wrprotect for copy-on-write (mm/memory.c __copy_present_ptes())
            return vma is None or not vma.memory.shared
        case Verb.CLEAR:
            return True
        case Verb.LOOK:
            return False
        case Verb.ADVISE if op.how in KEPT_ADVICE and (vma is None or vma.memory is Backing.BAR):
            return _splits(op, leaf)
        case Verb.MOVE if start < op.to + op.size and op.to < end:
            return True
    return op.verb in RANGED and start < op.end and op.at < end
