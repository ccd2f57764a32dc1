"""What the explorer calls wrong: each oracle on leaves made by hand, with the case that it must let pass beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.model.operation import ARENA_VADDR, PMD, PTE, PUD, Backing, Operation, Verb
from harness.model.oracles import FOREVER, Found, Judge, Setting, Stop
from harness.pagetable import Bits, Entry, Layout, Leaf, Level
from harness.verdict.invariants import Deviation, Invariant, Oracle, Violation

BAR_PADDR = 0x1_0000_0000
USED = Bits.P | Bits.W | Bits.U | Bits.PCD | Bits.A | Bits.D | Bits.SPECIAL | Bits.NX
POSITIONS = {
    **{Bits.P: 0, Bits.W: 1, Bits.U: 2, Bits.PCD: 4, Bits.A: 5, Bits.D: 6, Bits.PSE: 7, Bits.SPECIAL: 9, Bits.NX: 63},
    **{Bits.SOFT_DIRTY: 11, Bits.SAVED_DIRTY: 58},
}
Step = tuple[Operation, str, Mapping[int, Sequence[Leaf]]]
MAP = Operation(0, Verb.MAP, PUD, PUD, how="rw")
WRITE = Operation(0, Verb.WRITE, PUD)


def leaf(at: int, level: Level = Level.PUD, offset: int = 0, bits: Bits = USED) -> Leaf:
    if level is not Level.PTE:
        bits |= Bits.PSE
    raw = BAR_PADDR + offset + sum(1 << POSITIONS[bit] for bit in Bits if bit in bits)
    return Leaf(Entry(raw, level, Layout.MODERN), ARENA_VADDR + at)


OLD = leaf(PUD, bits=USED & ~Bits.A)


def judged(*steps: Step, soft_dirty: bool = False) -> list[Found]:
    """Return what is found after the last step. Nothing may be found before."""
    judge, found = Judge(Setting(BAR_PADDR, saved_dirty=True, soft_dirty=soft_dirty)), list[Found]()
    for op, said, leaves in steps:
        assert found == []
        found = judge.step(op, Stop(said, None, {number: tuple(some) for number, some in leaves.items()}))
    return found


def told(found: list[Found]) -> list[tuple[str, ...]]:
    return [
        (one.oracle.value, one.cause, one.level, one.got) if isinstance(one, Deviation) else (one.invariant.id,)
        for one in found
    ]


WRITTEN: list[tuple[Operation, str, Mapping[int, Sequence[Leaf]]]] = [
    (MAP, "0", {0: []}),
    (WRITE, "0", {0: [leaf(PUD)]}),
]


def test_a_write_that_makes_a_leaf_is_right() -> None:
    assert judged(*WRITTEN) == []


def test_an_answer_that_is_not_allowed() -> None:
    assert told(judged((WRITE, "0", {0: []}))) == [("access", "write", "none", "0")]
    assert told(judged((MAP, "ENOMEM", {0: []}))) == [("errno", "map", "", "ENOMEM")]


def test_an_access_that_never_ends() -> None:
    read_only = leaf(PUD, bits=USED & ~Bits.W & ~Bits.D)
    assert told(judged(WRITTEN[0], (WRITE, FOREVER, {0: [read_only]}))) == [
        ("progress", "write", "pud", "endless faults")
    ]


def test_a_read_that_gives_something_else() -> None:
    judge = Judge(Setting(BAR_PADDR, saved_dirty=True))
    for op, said, leaves in WRITTEN:
        judge.step(op, Stop(said, None, {0: tuple(leaves[0])}))
    found = judge.step(replace(WRITE, verb=Verb.READ), Stop("0", 7, {0: (leaf(PUD),)}))
    assert told(found) == [("data", "read", "pud", "0x7")]


def test_a_leaf_where_no_vma_is() -> None:
    (found,) = judged((Operation(0, Verb.LOOK, how="maps"), "0", {0: [leaf(0)]}))
    assert isinstance(found, Violation)
    assert found.invariant is Invariant.INSIDE


def test_a_leaf_that_reaches_past_its_vma() -> None:
    split = Operation(0, Verb.ADVISE, PUD, PMD, how="dontfork")
    found = judged(*WRITTEN, (split, "0", {0: [leaf(PUD)]}))
    assert ("inside",) in told(found)
    assert judged(*WRITTEN, (split, "0", {0: []})) == []  # taken apart, and dropped


def test_a_leaf_of_another_place_of_the_bar() -> None:
    assert ("bar_pfn",) in told(judged(WRITTEN[0], (WRITE, "0", {0: [leaf(PUD, offset=PUD)]})))


def test_write_where_the_vma_is_read_only() -> None:
    read_only = replace(MAP, how="r")
    found = judged((read_only, "0", {0: []}), (replace(WRITE, verb=Verb.READ), "0", {0: [leaf(PUD)]}))
    assert told(found) == [("write",)]


def test_ordinary_memory_that_is_a_shadow_stack_to_the_cpu() -> None:
    anon = replace(MAP, size=PTE, memory=Backing.ANON)
    page = leaf(PUD, Level.PTE, bits=Bits.P | Bits.U | Bits.A | Bits.D | Bits.NX)
    assert told(judged((anon, "0", {0: []}), (WRITE, "0", {0: [page]}))) == [("shadow_stack",)]


@pytest.mark.parametrize("how", ["smaps", "maps"])
def test_a_reader_that_changes_an_entry(how: str) -> None:
    found = judged(*WRITTEN, (Operation(0, Verb.LOOK, how=how), "0", {0: []}))
    assert told(found) == [("untouched", how, "pud", "gone"), ("dirt", how, "pud", "no entry")]


def test_a_fork_that_takes_write_from_shared_memory() -> None:
    protected = leaf(PUD, bits=USED & ~Bits.W & ~Bits.D | Bits.SAVED_DIRTY)
    fork = Operation(0, Verb.FORK, to=1)
    assert told(judged(*WRITTEN, (fork, "0", {0: [protected], 1: [OLD]}))) == [
        ("untouched", "fork", "pud", "-W -D +SAVED_DIRTY")
    ]
    assert judged(*WRITTEN, (fork, "0", {0: [leaf(PUD)], 1: [OLD]})) == []


def test_fork_may_write_protect_private_memory() -> None:
    anon = replace(MAP, size=PTE, memory=Backing.ANON)
    page = leaf(PUD, Level.PTE, bits=USED & ~Bits.SPECIAL)
    protected = leaf(PUD, Level.PTE, bits=USED & ~Bits.SPECIAL & ~Bits.W & ~Bits.D | Bits.SAVED_DIRTY)
    fork = Operation(0, Verb.FORK, to=1)
    assert judged((anon, "0", {0: []}), (WRITE, "0", {0: [page]}), (fork, "0", {0: [protected], 1: [protected]})) == []


def test_a_huge_page_that_is_taken_apart_may_get_the_zero_page_beside_the_range() -> None:
    """6.12.117: MADV_COLD of a part of a huge page, whose other pages hold zeros, and are mapped by ptes."""
    anon = replace(MAP, size=PMD, memory=Backing.ANON)
    pages = [leaf(PUD, Level.PTE, bits=USED & ~Bits.SPECIAL), leaf(PUD + PTE, Level.PTE, bits=USED & ~Bits.SPECIAL)]
    zero = leaf(PUD + PTE, Level.PTE, bits=USED & ~Bits.W & ~Bits.D)
    cold = Operation(0, Verb.ADVISE, PUD, PTE, how="cold")
    begin: list[Step] = [(anon, "0", {0: []}), (WRITE, "0", {0: pages})]
    assert judged(*begin, (cold, "0", {0: [pages[0], zero]})) == []
    look = Operation(0, Verb.LOOK, how="maps")
    assert told(judged(*begin, (look, "0", {0: [pages[0], zero]}))) == [("untouched", "maps", "pte", "-W -D +SPECIAL")]


def test_a_page_that_was_moved_away_from_its_huge_page_may_become_the_zero_page_with_the_others() -> None:
    """6.12.118, found by the explorer: MADV_PAGEOUT of one page of a huge page, whose last page mremap() had moved."""
    anon = replace(MAP, size=PMD, memory=Backing.ANON)
    pages = [leaf(PUD, Level.PTE, bits=USED & ~Bits.SPECIAL), leaf(3 * PUD, Level.PTE, bits=USED & ~Bits.SPECIAL)]
    zero = leaf(3 * PUD, Level.PTE, bits=USED & ~Bits.W & ~Bits.D)
    moved = Operation(0, Verb.MOVE, PUD + PMD - PTE, PTE, to=3 * PUD)
    begin: list[Step] = [(anon, "0", {0: []}), (WRITE, "0", {0: pages[:1]}), (moved, "0", {0: pages})]
    out = Operation(0, Verb.ADVISE, PUD, PTE, how="pageout")
    assert judged(*begin, (out, "0", {0: [pages[0], zero]})) == []
    gone = told(judged(*begin, (out, "0", {0: pages[:1]})))
    assert gone == [("untouched", "madvise pageout", "pte", "gone")]


def test_advice_that_a_vma_keeps_splits_it() -> None:
    split = Operation(0, Verb.ADVISE, PUD, PMD, how="random")
    assert ("inside",) in told(judged(*WRITTEN, (split, "0", {0: [leaf(PUD)]})))


def test_the_cpu_may_set_the_accessed_bit_at_any_time() -> None:
    look = Operation(0, Verb.LOOK, how="maps")
    assert judged(*WRITTEN, (look, "0", {0: [leaf(PUD, bits=USED & ~Bits.A)]})) == []


def test_rights_that_lose_the_dirty_bit() -> None:
    protect = Operation(0, Verb.PROTECT, PUD, PUD, how="r")
    clean, dirty = USED & ~Bits.W & ~Bits.D, USED & ~Bits.W & ~Bits.D | Bits.SAVED_DIRTY
    found = judged(*WRITTEN, (protect, "0", {0: [leaf(PUD, bits=clean)]}))
    assert told(found) == [("dirt", "mprotect", "pud", "clean")]
    assert judged(*WRITTEN, (protect, "0", {0: [leaf(PUD, bits=dirty)]})) == []


def test_a_move_that_loses_the_dirty_bit() -> None:
    move = Operation(0, Verb.MOVE, PUD, PUD, 2 * PUD)
    assert told(judged(*WRITTEN, (move, "0", {0: []}))) == [("dirt", "mremap", "pud", "no entry")]
    assert judged(*WRITTEN, (move, "0", {0: [leaf(2 * PUD)]})) == []


def test_a_move_to_where_the_leaf_does_not_fit_may_drop_it() -> None:
    assert judged(*WRITTEN, (Operation(0, Verb.MOVE, PUD, PUD, 2 * PUD + PMD), "0", {0: []})) == []


def test_a_move_that_is_refused_leaves_everything() -> None:
    refused = Operation(0, Verb.MOVE, PUD, PUD, PUD + PMD)
    assert judged(*WRITTEN, (refused, "EINVAL", {0: [leaf(PUD)]})) == []


def test_a_device_without_memory_that_is_still_mapped() -> None:
    off = Operation(0, Verb.MEMORY, how="off")
    assert told(judged(*WRITTEN, (off, "0", {0: [leaf(PUD)]}))) == [("revoked", "memory off", "pud", "an entry")]
    assert judged(*WRITTEN, (off, "0", {0: []})) == []


@pytest.mark.parametrize("how", ["sleep", "reset"])
def test_a_device_that_sleeps_or_was_reset_is_mapped_nowhere(how: str) -> None:
    operation = Operation(0, Verb.MEMORY, how=how)
    found = told(judged(*WRITTEN, (operation, "0", {0: [leaf(PUD)]})))
    assert found == [("revoked", f"memory {how}", "pud", "an entry")]
    assert judged(*WRITTEN, (operation, "0", {0: []})) == []
    refused = (operation, "ENOTTY", {0: [leaf(PUD)]})
    assert (judged(*WRITTEN, refused) == []) == (how == "reset"), "a device may be one that cannot be reset"


def test_after_a_reset_the_bar_is_mapped_again() -> None:
    reset = (Operation(0, Verb.MEMORY, how="reset"), "0", {0: list[Leaf]()})
    assert judged(*WRITTEN, reset, (WRITE, "0", {0: [leaf(PUD)]})) == []


def test_fork_copies_what_is_mapped_and_the_copy_is_old() -> None:
    fork = Operation(0, Verb.FORK, to=1)
    assert judged(*WRITTEN, (fork, "0", {0: [leaf(PUD)], 1: [OLD]})) == []
    assert told(judged(*WRITTEN, (fork, "0", {0: [leaf(PUD)], 1: []}))) == [("copy", "fork", "pud", "no entry")]
    assert told(judged(*WRITTEN, (fork, "0", {0: [leaf(PUD)], 1: [leaf(PUD)]}))) == [("copy", "fork", "pud", "young")]
    dontfork = (Operation(0, Verb.ADVISE, PUD, PUD, how="dontfork"), "0", {0: [leaf(PUD)]})
    assert judged(*WRITTEN, dontfork, (fork, "0", {0: [leaf(PUD)], 1: []})) == []


@pytest.mark.parametrize(
    ("to", "got"), [(2 * PUD, "clean, moved by 2M"), (2 * PUD + PMD, "clean, moved by 2M"), (2 * PUD + PTE, "clean")]
)
def test_what_is_moved_is_soft_dirty(to: int, got: str) -> None:
    """If it moves by a multiple of 2M, a page table may have moved as a whole."""
    move = Operation(0, Verb.MOVE, PUD, PUD, to)

    def moved(clean_pages: int, *, soft_dirty: bool = True) -> list[tuple[str, ...]]:
        judge = Judge(Setting(BAR_PADDR, saved_dirty=True, soft_dirty=soft_dirty))
        judge.step(MAP, Stop("0", None, {0: ()}))
        return told(judge.step(move, Stop("0", clean_pages, {0: ()})))

    assert moved(3) == [("moved", "mremap", "none", got)]
    assert moved(0) == []
    assert moved(3, soft_dirty=False) == [], "a kernel may have no such bits"


def test_who_pins_a_shared_page_may_get_a_clean_copy() -> None:
    """process_vm_readv() of what fork() shared gives the reader a page of his own (mm/gup.c gup_must_unshare())."""
    ordinary = USED & ~Bits.PCD & ~Bits.SPECIAL
    anon, write = replace(MAP, size=PTE, memory=Backing.ANON), (WRITE, "0", {0: [leaf(PUD, Level.PTE, bits=ordinary)]})
    clean = {0: [leaf(PUD, Level.PTE, bits=ordinary & ~Bits.D)]}
    before: list[Step] = [(anon, "0", {0: []}), write]
    for how, dirt in (("vm_readv", []), ("vmsplice", [("dirt", "vmsplice", "pte", "clean")])):
        found = told(judged(*before, (Operation(0, Verb.PEEK, PUD, how=how), "0", clean)))
        assert [one for one in found if one[0] == "dirt"] == dirt
    gone = (Operation(0, Verb.PEEK, PUD, how="vm_readv"), "EFAULT", {0: list[Leaf]()})
    assert ("dirt", "vm_readv", "pud", "no entry") in told(judged(*WRITTEN, gone)), "a BAR has no such pages"


@pytest.mark.parametrize(
    "op",
    [
        Operation(0, Verb.UFFD, PUD, PUD, how="wp"),
        Operation(0, Verb.MEMORY, how="on"),
        Operation(0, Verb.MEMORY, how="wake"),
        Operation(0, Verb.MINCORE, PUD, PUD),
    ],
)
def test_what_leaves_a_bar_alone(op: Operation) -> None:
    said = "EINVAL" if op.verb is Verb.UFFD else "0"
    assert judged(*WRITTEN, (op, said, {0: [leaf(PUD)]})) == []
    found = [one[0] for one in told(judged(*WRITTEN, (op, said, {0: []})))]
    assert found == ["untouched", "dirt"]


def test_every_answer_of_a_race_is_judged() -> None:
    race, unmap = (Operation(0, Verb.RACE, size=2), "0", {0: list[Leaf]()}), Operation(0, Verb.UNMAP, PUD, PUD)
    between: list[Step] = [race, (unmap, "0", {0: []})]
    assert judged(*WRITTEN, *between, (WRITE, "0|SEGV.1", {0: []})) == []
    found = told(judged(*WRITTEN, *between, (WRITE, "BUS.2|0|SEGV.1", {0: []})))
    assert found == [("access", "munmap against write", "pud", "BUS.2")]
    assert told(judged(*WRITTEN, *between, (WRITE, "0|forever", {0: []})))[0][3] == "endless faults"


def test_an_old_vfio_empties_a_vma_that_is_split() -> None:
    """6.1.192: vfio_pci_mmap_open() zaps the new VMA, and the next access maps all of it again."""
    unmap = Operation(0, Verb.UNMAP, 2 * PUD - PTE, PTE)
    far = leaf(PUD, Level.PTE)
    for zaps_split in (False, True):
        judge = Judge(Setting(BAR_PADDR, saved_dirty=True, zaps_split=zaps_split))
        for op, _, _ in WRITTEN:
            judge.step(op, Stop("0", None, {0: (far,) if op.verb is Verb.WRITE else ()}))
        found = judge.step(unmap, Stop("0", None, {0: ()}))
        assert [one[0] for one in told(found)] == ([] if zaps_split else ["untouched", "dirt"])


def test_a_bar_that_is_cached() -> None:
    cached = leaf(PUD, bits=USED & ~Bits.PCD)
    found = judged(WRITTEN[0], (WRITE, "0", {0: [cached]}))
    assert told(found) == [("cache", "write", "pud", "PAT index 0")]


def test_another_process_that_changes() -> None:
    fork = Operation(0, Verb.FORK, to=1)
    unmap = Operation(1, Verb.UNMAP, PUD, PUD)
    both = {0: [leaf(PUD)], 1: [OLD]}
    assert judged(*WRITTEN, (fork, "0", both), (unmap, "0", {0: [leaf(PUD)], 1: []})) == []
    found = judged(*WRITTEN, (fork, "0", both), (unmap, "0", {0: [], 1: []}))
    assert told(found)[0] == ("untouched", "munmap", "pud", "gone")


def test_a_race_is_judged_when_both_are_quiet() -> None:
    """The leaf may come and go between the two, as a write and a reader may; at the end it has to be there."""
    race = Operation(0, Verb.RACE, size=2)
    look = Operation(0, Verb.LOOK, how="smaps")
    between: list[Step] = [(race, "0", {0: []}), (WRITE, "0", {0: []})]
    assert judged(*WRITTEN, *between, (look, "0", {0: [leaf(PUD)]})) == []
    assert told(judged(*WRITTEN, *between, (look, "0", {0: []}))) == [
        ("dirt", "smaps against write", "pud", "no entry")
    ]
    assert told(judged(*WRITTEN, between[0], (WRITE, FOREVER, {0: []}))) == [
        ("progress", "write", "none", "endless faults")
    ]


def test_what_a_change_of_the_mapping_raced_with_may_be_gone() -> None:
    """munmap() and a write in any order: the write works or is refused, and what it wrote is not owed."""
    race, unmap = Operation(0, Verb.RACE, size=2), Operation(0, Verb.UNMAP, PUD, PUD)
    between: list[Step] = [(race, "0", {0: []}), (unmap, "0", {0: []})]
    for said in ("0", "SEGV.1"):
        assert judged(*WRITTEN, *between, (WRITE, said, {0: []})) == []
    assert told(judged(*WRITTEN, *between, (WRITE, "SEGV.2", {0: []})))[0][3] == "SEGV.2"
    assert told(judged(*WRITTEN, *between, (WRITE, "0", {0: [leaf(PUD)]}))) == [("inside",)]
    again = (MAP, "0", {0: list[Leaf]()})
    assert judged(*WRITTEN, between[0], again, (WRITE, "0", {0: []})) == [], "it was mapped anew after the last write"


def test_every_oracle_is_tested_here_but_the_teardown() -> None:
    text = Path(__file__).read_text()
    assert [one.value for one in Oracle if f'("{one.value}", ' not in text] == ["teardown"]
