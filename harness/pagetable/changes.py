"""Compare the observations of two runs: the same program on two kernels, line by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from harness.errors import UsageError
from harness.pagetable.bits import Bits
from harness.pagetable.observation import Observation
from harness.pagetable.pagemap import PagemapWord

_BIT_ORDER = {bit.name: number for number, bit in enumerate(Bits)}


class Key(NamedTuple):
    """The key by which the observations of two runs are matched."""

    checkpoint: str
    process: str
    mapping: str
    offset: int  # bytes
    turn: int = 0  # 0 for the first time that a program reached this checkpoint, 1 for the second, ...


@dataclass(frozen=True, slots=True)
class EntryChange:
    """An observation that differs between two runs, or that only one of them has.

    :raises UsageError: neither run has it.
    """

    key: Key
    before: Observation | None  # in the first run, None if only the second has it
    after: Observation | None  # in the second run, None if only the first has it

    def __post_init__(self) -> None:
        if self.before is None and self.after is None:
            raise UsageError("a change needs an observation on one side at least")

    @property
    def only_before(self) -> bool:
        """Only the first run has this observation."""
        return self.after is None

    @property
    def only_after(self) -> bool:
        """Only the second run has this observation."""
        return self.before is None

    @property
    def appeared(self) -> tuple[str, ...]:
        """Names of the bits that only the second run has, in bit order; empty if one side is missing."""
        if self.before is None or self.after is None:
            return ()
        return _in_bit_order(set(self.after.bits) - set(self.before.bits))

    @property
    def vanished(self) -> tuple[str, ...]:
        """Names of the bits that only the first run has, in bit order; empty if one side is missing."""
        if self.before is None or self.after is None:
            return ()
        return _in_bit_order(set(self.before.bits) - set(self.after.bits))

    @property
    def level(self) -> tuple[str, str] | None:
        """Level in both runs, None if it is the same."""
        if self.before is None or self.after is None or self.before.level == self.after.level:
            return None
        return self.before.level, self.after.level

    @property
    def pfn(self) -> tuple[str, str] | None:
        """Region and offset in both runs, None if they are the same.

        The frames of ordinary memory differ between any two runs, so two different ``ram+0x...`` count as equal.
        """
        if self.before is None or self.after is None or self.before.place == self.after.place:
            return None
        return self.before.pfn, self.after.pfn

    @property
    def pagemap(self) -> tuple[str, str] | None:
        """Pagemap flags in both runs, None if they are the same; the pfn in pagemap is not compared."""
        if self.before is None or self.after is None:
            return None
        flags = _pagemap_flags(self.before), _pagemap_flags(self.after)
        return None if flags[0] == flags[1] else flags

    @property
    def empty(self) -> bool:
        """The two runs do not differ."""
        if self.only_before or self.only_after:
            return False
        return not (self.appeared or self.vanished or self.level or self.pfn or self.pagemap)

    def __str__(self) -> str:
        again = f" (time {self.key.turn + 1})" if self.key.turn else ""
        words = [f"{self.key.checkpoint} {self.key.process} {self.key.mapping}+{self.key.offset:#x}{again}:"]
        if self.before is None or self.after is None:
            sides = ("first", self.before), ("second", self.after)
            return " ".join([*words, *(f"only in the {which} run: {one.answer}" for which, one in sides if one)])
        words += [f"+{name}" for name in self.appeared] + [f"-{name}" for name in self.vanished]
        for what, pair in (("level", self.level), ("pfn", self.pfn), ("pagemap", self.pagemap)):
            if pair:
                words.append(f"{what} {pair[0] or 'none'} -> {pair[1] or 'none'}")
        return " ".join([*words, f"[{self.before.answer} | {self.after.answer}]"])


def diff(before: Iterable[Observation], after: Iterable[Observation]) -> list[EntryChange]:
    """Return the differences of two runs in the order of the first, then what only the second has, in its order.

    Observations are matched by checkpoint, process, mapping and offset; if a program reaches a checkpoint more
    than once, the n-th time in one run is matched with the n-th in the other. The raw entry is not compared, because
    it has absolute addresses.
    """
    first, second = by_key(before), by_key(after)
    changes = [EntryChange(key, one, second.get(key)) for key, one in first.items()]
    changes += [EntryChange(key, None, one) for key, one in second.items() if key not in first]
    return [change for change in changes if not change.empty]


def by_key(observations: Iterable[Observation]) -> dict[Key, Observation]:
    """Return each observation by its key, in order."""
    seen: Counter[Key] = Counter()
    result: dict[Key, Observation] = {}
    for one in observations:
        key = Key(one.checkpoint, one.process, one.mapping, one.offset)
        result[key._replace(turn=seen[key])] = one
        seen[key] += 1
    return result


def _in_bit_order(names: set[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=_BIT_ORDER.__getitem__))


def _pagemap_flags(one: Observation) -> str:
    if one.pagemap is None:
        return "not read"
    return " ".join(PagemapWord(one.pagemap).names()) or "hole"
