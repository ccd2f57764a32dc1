"""The specification: what each operation answers, and what is mapped after it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.model.draw import draw
from harness.model.operation import ACCESSES, CHANGING, PMD, PTE, PUD, Backing, Operation, Verb
from harness.model.shrink import specified
from harness.model.state import NEW_WORLD, MappedRange, World
from harness.model.world import Reply, Unspecified, after

MAP = Operation(0, Verb.MAP, PUD, PUD, how="rw")
SLEEP = Operation(0, Verb.MEMORY, how="sleep")
MAP_ANON = Operation(0, Verb.MAP, 0, 4 * PTE, how="rw", memory=Backing.ANON)


def after_all(*ops: Operation, world: World = NEW_WORLD) -> tuple[World, Reply]:
    answer = Reply(())
    for step, op in enumerate(ops, start=1):
        world, answer = after(world, op, step)
    return world, answer


def read(at: int, process: int = 0) -> Operation:
    return Operation(process, Verb.READ, at)


def write(at: int, process: int = 0) -> Operation:
    return Operation(process, Verb.WRITE, at)


def ranged(verb: Verb, at: int, size: int, to: int = 0, how: str = "") -> Operation:
    return Operation(0, verb, at, size, to, how)


@pytest.mark.parametrize(
    ("ops", "allowed"),
    [
        ([read(0)], "SEGV.1"),
        ([MAP, read(PUD)], "0"),
        ([MAP, read(2 * PUD)], "SEGV.1"),
        ([replace(MAP, how="r"), read(PUD)], "0"),
        ([replace(MAP, how="r"), write(PUD)], "SEGV.2"),
        ([replace(MAP, how=""), read(PUD)], "SEGV.2"),
        ([MAP, Operation(0, Verb.MEMORY, how="off"), read(PUD)], "BUS.2"),
        ([MAP_ANON, Operation(0, Verb.MEMORY, how="off"), read(0)], "0"),
        ([MAP, Operation(0, Verb.MEMORY, how="off"), Operation(0, Verb.MEMORY, how="on"), read(PUD)], "0"),
        ([MAP, ranged(Verb.UNMAP, PUD, PMD), read(PUD)], "SEGV.1"),
        ([MAP, ranged(Verb.UNMAP, PUD, PMD), read(PUD + PMD)], "0"),
        ([MAP, ranged(Verb.SHRINK, PUD, PUD, PMD), read(PUD + PMD)], "SEGV.1"),
        ([MAP, ranged(Verb.MOVE, PUD, PUD, 2 * PUD), read(PUD)], "SEGV.1"),
        ([MAP, ranged(Verb.MOVE, PUD, PUD, 2 * PUD), read(2 * PUD)], "0"),
        ([MAP, ranged(Verb.MOVE, PUD, PUD, PUD + PMD)], "EINVAL"),
        ([MAP, ranged(Verb.PROTECT, PUD, PMD, how="r"), write(PUD)], "SEGV.2"),
        ([MAP, ranged(Verb.PROTECT, PUD, 2 * PUD, how="r")], "ENOMEM"),
        ([MAP, ranged(Verb.PROTECT, PUD, 2 * PUD, how="r"), write(PUD)], "SEGV.2"),
        ([MAP, ranged(Verb.PROTECT, 0, 2 * PUD, how="r"), write(PUD)], "0"),
        ([MAP, ranged(Verb.ADVISE, PUD, PUD, how="dontneed")], "EINVAL"),
        ([MAP, ranged(Verb.ADVISE, PUD, PUD, how="dofork")], "EINVAL"),
        ([MAP, ranged(Verb.ADVISE, PUD, 2 * PUD, how="random")], "ENOMEM"),
        ([MAP_ANON, ranged(Verb.ADVISE, 0, PTE, how="dontneed")], "0"),
        ([MAP, Operation(0, Verb.FORK, to=1), read(PUD, 1)], "0"),
        ([MAP, Operation(0, Verb.FORK, to=1), Operation(0, Verb.FORK, to=1)], "absent"),
        ([MAP, read(PUD, 3)], "absent"),
        ([MAP, Operation(0, Verb.FORK, to=1), Operation(1, Verb.EXIT), read(PUD, 1)], "absent"),
        (
            [MAP, ranged(Verb.ADVISE, PUD, PMD, how="dontfork"), Operation(0, Verb.FORK, to=1), read(PUD, 1)],
            "SEGV.1",
        ),
        (
            [MAP, ranged(Verb.ADVISE, PUD, PMD, how="dontfork"), Operation(0, Verb.FORK, to=1), read(PUD + PMD, 1)],
            "0",
        ),
        ([MAP, ranged(Verb.DMA, PUD, PMD)], "0"),
        ([Operation(0, Verb.FILL, 0)], "EFAULT"),
        ([MAP, Operation(0, Verb.FILL, PUD)], "0"),
        ([replace(MAP, how="r"), Operation(0, Verb.FILL, PUD)], "EFAULT"),
        ([replace(MAP, how="r"), Operation(0, Verb.SEND, PUD)], "0"),
        ([MAP, Operation(0, Verb.MEMORY, how="off"), Operation(0, Verb.SEND, PUD)], "EFAULT"),
        ([MAP, Operation(0, Verb.PEEK, PUD)], "EIO"),
        ([MAP_ANON, Operation(0, Verb.PEEK, 0)], "0"),
        ([MAP, ranged(Verb.GROW, PUD, PUD, 2 * PUD)], "EFAULT"),
        ([MAP, ranged(Verb.LOCK, PUD, PUD, how="on")], "0"),
        ([MAP, ranged(Verb.ADVISE, PUD, PUD, how="guard")], "EINVAL"),
        ([MAP, Operation(0, Verb.PEEK, PUD, how="vm_readv")], "EFAULT"),
        ([MAP, Operation(0, Verb.PEEK, PUD, how="vmsplice")], "EFAULT"),
        ([replace(MAP_ANON, how=""), Operation(0, Verb.PEEK, 0, how="vmsplice")], "EFAULT"),
        ([MAP, ranged(Verb.MINCORE, PUD, PUD)], "0"),
        ([MAP, ranged(Verb.MINCORE, PUD, 2 * PUD)], "ENOMEM"),
        ([MAP, SLEEP, read(PUD)], "BUS.2"),
        ([MAP, SLEEP, SLEEP], "EINVAL"),
        ([MAP, SLEEP, replace(SLEEP, how="wake"), read(PUD)], "0"),
        ([MAP, SLEEP, replace(SLEEP, how="on"), read(PUD)], "BUS.2"),
        ([MAP, replace(SLEEP, how="reset"), read(PUD)], "0"),
    ],
)
def test_what_an_operation_answers(ops: list[Operation], allowed: str) -> None:
    assert after_all(*ops)[1].allowed == (allowed,)


@pytest.mark.parametrize(
    ("ops", "word"),
    [
        ([MAP, read(PUD)], None),  # nobody has written there
        ([MAP, write(PUD), read(PUD)], 2),
        ([MAP, write(PUD), replace(MAP, at=2 * PUD), read(2 * PUD)], 2),
        ([MAP, write(PUD), replace(MAP, at=2 * PUD, to=PMD), read(2 * PUD)], None),
        ([MAP, write(PUD), ranged(Verb.MOVE, PUD, PUD, 2 * PUD), read(2 * PUD)], 2),
        ([MAP, Operation(0, Verb.FORK, to=1), write(PUD, 1), read(PUD)], 3),
        ([MAP_ANON, read(0)], 0),
        ([MAP_ANON, write(0), read(0)], 2),
        ([MAP_ANON, Operation(0, Verb.FORK, to=1), write(0, 1), read(0)], 0),
        ([MAP_ANON, write(0), Operation(0, Verb.FORK, to=1), read(0, 1)], 2),
        ([MAP_ANON, write(0), MAP_ANON, read(0)], 0),
        ([MAP_ANON, Operation(0, Verb.FILL, 0), read(0)], 2),
        ([MAP_ANON, write(0), Operation(0, Verb.SEND, 0)], 2),
        ([MAP, write(PUD), Operation(0, Verb.SEND, PUD)], 2),
        ([replace(MAP_ANON, how="r"), Operation(0, Verb.PEEK, 0)], 0),
        ([MAP_ANON, write(PTE), ranged(Verb.ADVISE, 0, PTE, how="dontneed"), read(PTE)], 2),
        ([MAP_ANON, write(PTE), ranged(Verb.ADVISE, PTE, PTE, how="dontneed"), read(PTE)], 0),
        ([replace(MAP_ANON, memory=Backing.SHM), Operation(0, Verb.FORK, to=1), write(0, 1), read(0)], 3),
        ([replace(MAP_ANON, memory=Backing.SHM), write(0), ranged(Verb.ADVISE, 0, PTE, how="dontneed"), read(0)], 2),
    ],
)
def test_what_a_read_gives(ops: list[Operation], word: int | None) -> None:
    assert after_all(*ops)[1] == Reply(("0",), word)


def test_a_pfnmap_is_passed_over_by_a_scan_and_refused_by_userfaultfd() -> None:
    assert after_all(MAP, ranged(Verb.SCAN, PUD, PUD))[1] == Reply(("0", "ENOTTY"), 0)
    assert after_all(MAP_ANON, ranged(Verb.SCAN, 0, PTE))[1] == Reply(("0", "ENOTTY"))
    assert after_all(MAP, ranged(Verb.UFFD, PUD, PUD, how="wp"))[1] == Reply(("EINVAL", "ENOSYS"))
    assert after_all(MAP_ANON, ranged(Verb.UFFD, 0, PTE, how="wp"))[1] == Reply(("0", "EINVAL", "ENOSYS"))


RACE = Operation(0, Verb.RACE, size=2)


@pytest.mark.parametrize(
    ("first", "second", "allowed"),
    [
        (write(PUD), read(PUD), ("0",)),
        (ranged(Verb.UNMAP, PUD, PUD), read(PUD), ("SEGV.1", "0")),
        (ranged(Verb.UNMAP, PUD, PUD), read(2 * PUD), ("SEGV.1",)),
        (ranged(Verb.PROTECT, PUD, PMD, how="r"), write(PUD), ("SEGV.2", "0")),
        (ranged(Verb.PROTECT, PUD, PMD, how="r"), write(PUD + PMD), ("0",)),
        (replace(MAP, at=2 * PUD), read(2 * PUD), ("0", "SEGV.1")),
    ],
)
def test_of_two_that_race_either_may_be_first(first: Operation, second: Operation, allowed: tuple[str, ...]) -> None:
    world, answer = after_all(MAP, RACE, first, second)
    assert answer == Reply(allowed)
    assert world.race is None
    assert world.processes == after_all(MAP, first)[0].processes


@pytest.mark.parametrize(
    ("first", "word"),
    [
        (ranged(Verb.ADVISE, 0, PTE, how="dontneed"), None),
        (ranged(Verb.ADVISE, PTE, PTE, how="dontneed"), 4),
        (replace(MAP_ANON, size=PTE), None),
        (ranged(Verb.LOCK, 2 * PTE, PTE, how="on"), 4),
    ],
)
def test_what_a_store_leaves_that_raced_with_a_change(first: Operation, word: int | None) -> None:
    assert after_all(MAP_ANON, RACE, first, write(0), read(0))[1] == Reply(("0",), word)


SHM = replace(MAP_ANON, memory=Backing.SHM)


@pytest.mark.parametrize(
    ("before", "first", "stored", "asked"),
    [
        # The same memory elsewhere, or in a child, may have been written to before its mapping here went.
        ([MAP, replace(MAP, at=2 * PUD)], ranged(Verb.UNMAP, PUD, PUD), PUD, read(2 * PUD)),
        ([MAP, replace(MAP, at=2 * PUD)], replace(MAP, to=PMD), PUD, read(2 * PUD)),
        ([SHM, Operation(0, Verb.FORK, to=1)], MAP_ANON, 0, read(0, 1)),
    ],
)
def test_a_store_may_come_before_the_memory_is_unmapped(
    before: list[Operation], first: Operation, stored: int, asked: Operation
) -> None:
    assert after_all(*before, write(stored), RACE, first, write(stored), asked)[1].word is None
    assert after_all(*before, write(stored), RACE, first, read(stored), asked)[1].word == 3


@given(st.integers(0, 2**32))
def test_no_process_maps_more_of_the_bar_than_it_may(number: int) -> None:
    world = NEW_WORLD
    for step, op in enumerate(draw(5, number, 12, tuple(Verb), 4 * PMD), start=1):
        world, _ = after(world, op, step)
        for process in world.processes.values():
            assert sum(vma.end - vma.start for vma in process.vmas if vma.memory is Backing.BAR) <= 4 * PMD


def test_what_races_with_a_change_meets_it() -> None:
    """Also where the first of the two unmaps: the second is drawn for what is there before or after it."""
    met = dict.fromkeys(CHANGING, 0)
    for number in range(600):
        ops = draw(4, number, 10, tuple(Verb))
        for race, first, second in zip(ops, ops[1:], ops[2:], strict=False):
            if race.verb is Verb.RACE and first.verb in CHANGING and second.verb in ACCESSES:
                met[first.verb] += first.at <= second.at < first.end
    assert all(met.values()), met


def test_whether_proc_mem_ignores_rights_is_the_kernels_configuration() -> None:
    """6.12.118 reads memory that is PROT_NONE, 7.3.4 of Debian answers EIO (proc_mem.force_override=)."""
    assert after_all(replace(MAP_ANON, how=""), Operation(0, Verb.PEEK, 0))[1] == Reply(("0", "EIO"))


def test_a_kernel_may_lack_a_file_of_proc() -> None:
    """6.12.117 with hugepfn's own configuration has no numa_maps (CONFIG_NUMA)."""
    assert after_all(Operation(0, Verb.LOOK, how="numa_maps"))[1] == Reply(("0", "ENOENT"))


def test_a_bar_without_ram_holds_nothing() -> None:
    assert after_all(MAP, write(PUD), read(PUD), world=replace(NEW_WORLD, bar_holds=False))[1].word is None


def test_equal_rights_do_not_split_a_vma() -> None:
    """mprotect() to the rights that a VMA has leaves it whole (mm/mprotect.c mprotect_fixup())."""
    world, _ = after_all(MAP, ranged(Verb.PROTECT, PUD + PMD, PMD, how="rw"))
    assert world.processes[0].vmas == (MappedRange(PUD, 2 * PUD, Backing.BAR, 0, "rw", frozenset({"dontdump"})),)


def test_a_pfnmap_is_not_dumped_from_the_start() -> None:
    """So MADV_DONTDUMP changes no flag, and splits no VMA (remap_pfn_range_notrack(), madvise_update_vma())."""
    world, _ = after_all(MAP, ranged(Verb.ADVISE, PUD + PMD, PMD, how="dontdump"))
    assert len(world.processes[0].vmas) == 1
    ordinary, _ = after_all(MAP_ANON, ranged(Verb.ADVISE, PTE, PTE, how="dontdump"))
    assert len(ordinary.processes[0].vmas) == 3


def test_what_may_be_cut_stays_so_until_it_is_unmapped() -> None:
    """NOHUGEPAGE may have split the VMA of a BAR, which is never merged again: whether it moves is not known."""
    cut = ranged(Verb.ADVISE, PUD, PMD, how="nohugepage")
    same, move = ranged(Verb.PROTECT, PUD, PUD, how="rw"), ranged(Verb.MOVE, PUD, PUD, 2 * PUD)
    assert not specified((MAP, cut, same, move))
    assert specified((MAP, cut, MAP, move))


def test_other_rights_split_a_vma_in_three() -> None:
    world, _ = after_all(MAP, ranged(Verb.PROTECT, PUD + PMD, PMD, how="r"))
    assert [(vma.start, vma.end, vma.offset, vma.rights) for vma in world.processes[0].vmas] == [
        (PUD, PUD + PMD, 0, "rw"),
        (PUD + PMD, PUD + 2 * PMD, PMD, "r"),
        (PUD + 2 * PMD, 2 * PUD, 2 * PMD, "rw"),
    ]


@pytest.mark.parametrize(
    "ops",
    [
        [MAP, ranged(Verb.PROTECT, PUD, PMD, how="r"), ranged(Verb.MOVE, PUD, PUD, 2 * PUD)],
        [MAP, ranged(Verb.ADVISE, PUD, PMD, how="random"), ranged(Verb.MOVE, PUD, PUD, 2 * PUD)],  # several VMAs
        [ranged(Verb.MOVE, PUD, PUD, 2 * PUD)],
        [MAP, ranged(Verb.SHRINK, PUD, PMD, 2 * PMD)],
        [replace(MAP, how="r"), ranged(Verb.DMA, PUD, PMD)],
        [MAP_ANON, ranged(Verb.ADVISE, 0, PTE, how="free")],
        [MAP_ANON, ranged(Verb.LOCK, 0, PTE, how="on"), ranged(Verb.ADVISE, 0, PTE, how="dontneed")],
        [MAP_ANON, ranged(Verb.GROW, 0, PTE, 2 * PTE)],
        [MAP, ranged(Verb.LOCK, 0, 2 * PUD, how="on")],
        [MAP, Operation(0, Verb.RACE, size=2), write(PUD)],
        [MAP, Operation(0, Verb.RACE, size=2), write(PUD), write(PUD)],
        [MAP, Operation(0, Verb.RACE, size=2), write(PUD), ranged(Verb.UNMAP, PUD, PUD)],
        [MAP, RACE, MAP, MAP],
        [MAP, RACE, ranged(Verb.MOVE, PUD, PUD, 2 * PUD), read(PUD)],
        [MAP, RACE, replace(MAP, at=PUD + PMD, size=PMD, to=PMD), ranged(Verb.DMA, PUD, 2 * PMD)],
        [MAP, RACE, read(PUD), read(PUD, 1)],
        [MAP, ranged(Verb.UFFD, PUD, 2 * PUD, how="wp")],
    ],
)
def test_what_is_documented_nowhere_is_not_run(ops: list[Operation]) -> None:
    assert not specified(tuple(ops))
    if not any(op.verb is Verb.RACE for op in ops):
        with pytest.raises(Unspecified):
            after_all(*ops)


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_vmas_are_in_order_and_apart_after_any_sequence(seed: int, number: int) -> None:
    world = NEW_WORLD
    for step, op in enumerate(draw(seed, number, 20, tuple(Verb)), start=1):
        world, _ = after(world, op, step)
        for process in world.processes.values():
            places = [edge for vma in process.vmas for edge in (vma.start, vma.end)]
            assert places == sorted(places)
            assert all(vma.start < vma.end for vma in process.vmas)


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_the_same_seed_draws_the_same_sequence(seed: int, number: int) -> None:
    assert draw(seed, number) == draw(seed, number)
    assert specified(draw(seed, number, 10, tuple(Verb)))


def test_only_the_operations_that_are_asked_for_are_drawn() -> None:
    drawn = {op.verb for number in range(50) for op in draw(1, number, 10, (Verb.MAP, Verb.WRITE))}
    assert drawn == {Verb.MAP, Verb.WRITE}
