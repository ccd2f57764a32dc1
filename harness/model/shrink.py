"""Makes a sequence that fails as short and as plain as it can be. Pure: who calls it runs the candidates.

A candidate counts only if it fails in the same way. Operations are left out in runs of halving length, as delta
debugging does it (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002), then each that is
left is made plainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from harness.model.operation import ACCESSES, CHANGING, PMD, PTE, PUD, RACING, RANGED, STORES, Backing, Operation, Verb
from harness.model.state import NEW_WORLD
from harness.model.world import Unspecified, after

Sequence = tuple[Operation, ...]


def shrink(sequence: Sequence, fails: Callable[[Sequence], bool], budget: int = 200) -> Sequence:
    """Return the shortest and plainest sequence that was found to fail as this one does.

    :param fails: runs a candidate, and returns whether it fails in the same way.
    :param budget: how many candidates may be run.
    """
    tried = {sequence}

    def still(candidate: Sequence) -> bool:
        if candidate in tried or len(tried) > budget or not specified(candidate):
            return False
        tried.add(candidate)
        return fails(candidate)

    changed = True
    while changed:
        before = sequence
        sequence = _shorter(sequence, still)
        sequence = _plainer(sequence, still)
        changed = sequence != before
    return sequence


def until(sequence: Sequence, step: int) -> Sequence:
    """Return the operations up to one that has a number, from 1 on. A race and its two operations stay together."""
    ends = [index + 3 for index, op in enumerate(sequence[:step]) if op.verb is Verb.RACE]
    return sequence[: max([step, *ends])]


def specified(sequence: Sequence) -> bool:
    """Return whether the specification says what each operation does."""
    world = NEW_WORLD
    for index, op in enumerate(sequence):
        racers = sequence[index + 1 : index + 3] if op.verb is Verb.RACE else ()
        if op.verb is Verb.RACE and not _can_race(op, racers):
            return False
    try:
        for step, op in enumerate(sequence, start=1):
            world, _ = after(world, op, step)
    except Unspecified:
        return False
    return True


def _can_race(race: Operation, racers: Sequence) -> bool:
    """Return whether two operations can run against each other: at most one stores, or changes what is mapped."""
    if len(racers) < 2 or any(one.process != race.process for one in racers):
        return False
    first, second = racers
    stores = first.verb in STORES and second.verb in STORES
    return first.verb in (*RACING, *CHANGING) and second.verb in RACING and not stores


def _shorter(sequence: Sequence, still: Callable[[Sequence], bool]) -> Sequence:
    length = max(1, len(sequence) // 2)
    while True:
        start = len(sequence) - length  # the last operations are the most likely ones to be of no use
        while start >= 0:
            candidate = (*sequence[:start], *sequence[start + length :])
            if candidate and still(candidate):
                sequence = candidate
            start -= length
        if length == 1:
            return sequence
        length //= 2


def _plainer(sequence: Sequence, still: Callable[[Sequence], bool]) -> Sequence:
    for index in range(len(sequence)):
        for plain in _plain_forms(sequence[index], sequence[:index]):
            candidate = (*sequence[:index], plain, *sequence[index + 1 :])
            if still(candidate):
                sequence = candidate
                break
    return sequence


def _plain_forms(op: Operation, before: Sequence) -> Iterator[Operation]:
    """Yield plainer forms of one operation, the plainest first.

    :param before: the operations before it. The last mapping is where it can be with the fewest of them.
    """
    forms = [replace(op, process=0)]
    mapped = next((one for one in reversed(before) if one.verb is Verb.MAP), None)
    if mapped is not None and op.verb in ACCESSES:
        forms.append(replace(op, at=mapped.at))
    elif mapped is not None and op.verb in (*RANGED, Verb.SCAN, Verb.MINCORE) and op.verb is not Verb.MAP:
        forms.append(replace(op, at=mapped.at, size=mapped.size))
    if op.verb in ACCESSES and op.how:
        forms.append(replace(op, how=""))
    if op.verb is Verb.FORK:
        forms.append(replace(op, to=1))
    if op.verb is Verb.MAP:
        forms += [replace(op, to=0, how="rw"), replace(op, to=0), replace(op, how="rw")]
        forms += [replace(op, size=unit) for unit in (PTE, PMD, PUD) if unit < op.size]
        forms += [replace(op, memory=Backing.ANON)] if op.memory is Backing.SHM else []
    if op.verb is Verb.ADVISE:
        forms.append(replace(op, how="dontfork"))
    yield from (form for form in forms if form != op)
