"""Draws sequences of operations. The same seed gives the same sequences. Pure.

An operation is drawn for the world in which it happens, so that it mostly has something to act on; but nothing here
knows what kernels do wrong. Sizes and addresses are those at which a leaf of some level begins, ends, or is cut.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from harness.model.operation import (
    ARENA_BYTES,
    BY_A_THREAD,
    CHANGING,
    OTHER_THREAD,
    PMD,
    PROCESSES_MAX,
    PTE,
    PUD,
    RACING,
    STORES,
    VFORK,
    Backing,
    Operation,
    Verb,
)
from harness.model.state import NEW_WORLD, MappedRange, ModelProcess, World
from harness.model.world import ADVICE, Unspecified, after

LOOKS = ("smaps", "smaps_rollup", "numa_maps", "maps", "pagemap")
ALONE = tuple(verb for verb in Verb if verb is not Verb.RACE)
CLEARS = ("1", "2", "3", "4")
RIGHTS = ("rw", "rw", "rw", "r", "")
BAR_BYTES = 2 << 30
#: Ordinary memory of more than this would fill the guest's RAM once it is touched.
_ORDINARY_MAX = 2 * PMD
_FEW_PAGES = 2 * PMD
_TRIES = 50

_Draw = Callable[[random.Random, int, ModelProcess], Operation | None]

#: How often each is drawn.
WEIGHTS: Mapping[Verb, int] = {
    Verb.MAP: 14,
    Verb.READ: 10,
    Verb.WRITE: 22,
    Verb.FORK: 7,
    Verb.EXIT: 2,
    Verb.PROTECT: 8,
    Verb.UNMAP: 6,
    Verb.MOVE: 7,
    Verb.SHRINK: 2,
    Verb.ADVISE: 12,
    Verb.CLEAR: 4,
    Verb.LOOK: 5,
    Verb.MEMORY: 3,
    Verb.DMA: 2,
    Verb.FILL: 3,
    Verb.SEND: 2,
    Verb.PEEK: 2,
    Verb.LOCK: 2,
    Verb.GROW: 1,
    Verb.RACE: 6,
    Verb.SCAN: 2,
    Verb.MINCORE: 1,
    Verb.UFFD: 2,
}
ROUNDS = 40


def draw(
    seed: int, number: int, length: int = 10, verbs: Collection[Verb] = ALONE, bar_most: int = ARENA_BYTES
) -> tuple[Operation, ...]:
    """Return a sequence.

    :param seed: of all sequences.
    :param number: of this one among them.
    :param length: how many operations.
    :param verbs: those that may be drawn.
    :param bar_most: how many bytes of the BAR a process may map. A kernel without huge leaves maps 262,144 pages of 1G.
    """
    dice = random.Random(f"{seed}/{number}")
    world, found = NEW_WORLD, list[Operation]()
    while len(found) < length:
        op, world = _next(dice, world, len(found) + 1, verbs, bar_most=bar_most)
        found.append(op)
        if op.verb is Verb.RACE:
            racing = _allowed((*RACING, *CHANGING), verbs)
            first, world = _next(dice, world, len(found) + 1, racing, op.process, bar_most=bar_most)
            found.append(first)
            others = RACING if first.verb in CHANGING else [verb for verb in RACING if verb not in STORES]
            before = world.race.before if world.race is not None and dice.random() < 0.5 else None
            second, world = _next(dice, world, len(found) + 1, _allowed(others, verbs), op.process, before)
            found.append(second)
    return tuple(found)


def _allowed(racing: Sequence[Verb], verbs: Collection[Verb]) -> Sequence[Verb]:
    return [verb for verb in racing if verb in verbs] or (Verb.LOOK,)


def _next(
    dice: random.Random,
    world: World,
    step: int,
    verbs: Collection[Verb],
    process_number: int | None = None,
    seen: World | None = None,
    bar_most: int = ARENA_BYTES,
) -> tuple[Operation, World]:
    """Draw one operation.

    :param process_number: who has to do it; None: anybody.
    :param seen: the world in which it is to have something to act on, if that is another one.
    """
    known = [verb for verb in WEIGHTS if verb in verbs]
    weights = [WEIGHTS[verb] for verb in known]
    for _ in range(_TRIES):
        number = dice.choice(sorted(world.processes)) if process_number is None else process_number
        process = (seen or world).processes[number]
        if not process.vmas and process_number is not None:
            break  # nothing to run against
        verb = Verb.MAP if not process.vmas else dice.choices(known, weights)[0]
        op = _DRAWN[verb](dice, number, process)
        if op is None or (verb is Verb.EXIT and number == 0):
            continue
        if Verb.RACE in verbs and op.verb in BY_A_THREAD and dice.random() < 0.4:  # what its TLB knows may be stale
            op = replace(op, how=OTHER_THREAD)
        elif op.verb in BY_A_THREAD and dice.random() < 0.05:
            op = replace(op, how=VFORK)
        try:
            then, _ = after(world, op, step)
        except Unspecified:
            continue
        if _fits(then.processes.get(number), bar_most):
            return op, then
    return Operation(min(world.processes) if process_number is None else process_number, Verb.LOOK, how="maps"), world


def _fits(process: ModelProcess | None, bar_most: int) -> bool:
    """Whether the memory of a process is little enough to be touched."""
    bar = ordinary = 0
    for vma in process.vmas if process is not None else ():
        size = vma.end - vma.start
        bar, ordinary = (bar + size, ordinary) if vma.memory is Backing.BAR else (bar, ordinary + size)
    return ordinary <= 2 * _ORDINARY_MAX and bar <= bar_most


def _unit(dice: random.Random) -> int:
    return dice.choice((PTE, PMD, PUD))


def _map(dice: random.Random, number: int, _process: ModelProcess) -> Operation:
    memory = dice.choices((Backing.BAR, Backing.ANON, Backing.SHM), (8, 2, 1))[0]
    if memory is not Backing.BAR:
        size = dice.choice((PTE, 4 * PTE, PMD, 2 * PMD))
        at = _place(dice, size, min(size, PMD))
        return Operation(number, Verb.MAP, at, size, how=dice.choice(RIGHTS), memory=memory)
    unit = _unit(dice)
    size = unit * dice.choice((1, 1, 2 if unit is PUD else 4))
    offset = dice.randrange(0, (BAR_BYTES - size) // unit + 1) * unit if dice.random() < 0.5 else 0
    skew = dice.choice((0, 0, 0, PTE, PMD)) if offset + size + PMD <= BAR_BYTES else 0
    return Operation(number, Verb.MAP, _place(dice, size, unit), size, offset + skew, dice.choice(RIGHTS))


def _place(dice: random.Random, size: int, unit: int) -> int:
    """Return an address for a new mapping: mostly one at which a leaf of the unit can begin, in one of four places."""
    at = dice.randrange(4) * PUD + (dice.randrange(4) * unit if unit is not PUD else 0)
    at += dice.choice((0, 0, 0, 0, PTE, PMD))
    return min(at, (ARENA_BYTES - size) // PTE * PTE)


def _vma(dice: random.Random, process: ModelProcess) -> MappedRange:
    return dice.choice(process.vmas)


def _within(dice: random.Random, vma: MappedRange) -> tuple[int, int]:
    """Return a range in a VMA, as start and size: all of it, its head, its tail, or something between."""
    whole = vma.end - vma.start
    unit = min(_unit(dice), whole)
    pages = whole // unit
    if dice.random() < 0.5 or pages < 2:
        return vma.start, whole
    match dice.randrange(3):
        case 0:
            return vma.start, unit * dice.randrange(1, min(pages, 4))
        case 1:
            return vma.end - unit, unit
        case _:
            return vma.start + unit * dice.randrange(1, pages), unit


def _address(dice: random.Random, process: ModelProcess) -> int:
    vma = _vma(dice, process)
    span = vma.end - vma.start
    steps = [one for one in (0, PTE, PMD - PTE, PMD, span // 2, span - PTE) if one < span]
    return vma.start + dice.choice(steps) // PTE * PTE


def _access(verb: Verb, hows: Sequence[str] = ("",)) -> _Draw:
    return lambda dice, number, process: Operation(number, verb, _address(dice, process), how=dice.choice(hows))


def _fork(dice: random.Random, number: int, _process: ModelProcess) -> Operation:
    return Operation(number, Verb.FORK, to=dice.randrange(1, PROCESSES_MAX))


def _ranged(verb: Verb, hows: Sequence[str] = ("",)) -> _Draw:
    def drawn(dice: random.Random, number: int, process: ModelProcess) -> Operation:
        start, size = _within(dice, _vma(dice, process))
        return Operation(number, verb, start, size, how=dice.choice(hows))

    return drawn


def _move(dice: random.Random, number: int, process: ModelProcess) -> Operation:
    start, size = _within(dice, _vma(dice, process))
    unit = next(one for one in (PUD, PMD, PTE) if size >= one)
    to = _place(dice, size, unit) + start % unit
    return Operation(number, Verb.MOVE, start, size, min(to, (ARENA_BYTES - size) // PTE * PTE))


def _shrink(dice: random.Random, number: int, process: ModelProcess) -> Operation | None:
    vma = _vma(dice, process)
    size = vma.end - vma.start
    smaller = [one for one in (PTE, PMD, size // 2, size - PTE, size - PMD) if 0 < one < size and one % PTE == 0]
    return Operation(number, Verb.SHRINK, vma.start, size, dice.choice(smaller)) if smaller else None


def _few_pages(verb: Verb) -> _Draw:
    """Draw what takes time for every page, also of a BAR."""

    def drawn(dice: random.Random, number: int, process: ModelProcess) -> Operation:
        start, size = _within(dice, _vma(dice, process))
        return Operation(number, verb, start, min(size, _FEW_PAGES))

    return drawn


def _grow(dice: random.Random, number: int, process: ModelProcess) -> Operation:
    vma = _vma(dice, process)
    size = vma.end - vma.start
    return Operation(number, Verb.GROW, vma.start, size, size + _unit(dice))


def _race(_dice: random.Random, number: int, _process: ModelProcess) -> Operation:
    return Operation(number, Verb.RACE, size=ROUNDS)


def _worded(verb: Verb, hows: Sequence[str]) -> _Draw:
    return lambda dice, number, _process: Operation(number, verb, how=dice.choice(hows))


_DRAWN: Mapping[Verb, _Draw] = {
    Verb.MAP: _map,
    Verb.READ: _access(Verb.READ),
    Verb.WRITE: _access(Verb.WRITE),
    Verb.FORK: _fork,
    Verb.EXIT: _worded(Verb.EXIT, ("",)),
    Verb.PROTECT: _ranged(Verb.PROTECT, RIGHTS),
    Verb.UNMAP: _ranged(Verb.UNMAP),
    Verb.MOVE: _move,
    Verb.SHRINK: _shrink,
    Verb.ADVISE: _ranged(Verb.ADVISE, ADVICE),
    Verb.CLEAR: _worded(Verb.CLEAR, CLEARS),
    Verb.LOOK: _worded(Verb.LOOK, LOOKS),
    Verb.MEMORY: _worded(Verb.MEMORY, ("off", "on", "sleep", "wake", "reset")),
    Verb.DMA: _few_pages(Verb.DMA),
    Verb.FILL: _access(Verb.FILL),
    Verb.SEND: _access(Verb.SEND),
    Verb.PEEK: _access(Verb.PEEK, ("", "vm_readv", "vmsplice")),
    Verb.LOCK: _ranged(Verb.LOCK, ("on", "on", "off")),
    Verb.GROW: _grow,
    Verb.RACE: _race,
    Verb.SCAN: _ranged(Verb.SCAN),
    Verb.MINCORE: _few_pages(Verb.MINCORE),
    Verb.UFFD: _ranged(Verb.UFFD, ("missing", "wp", "async")),
}
