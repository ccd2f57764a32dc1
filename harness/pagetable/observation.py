"""What was seen of one page at one checkpoint, in a form in which two runs can be compared.

Everything is relative: an offset in a named mapping, and a pfn as BAR + offset. As a JSON object, an observation has
these keys:

* ``checkpoint``, ``process``, ``mapping``: strings; ``offset``: a number of bytes
* ``level``: ``"pte"``, ``"pmd"``, ``"pud"``, or ``"none"`` if there is no leaf
* ``raw``: ``"0x..."``, the entry at which the walk ended
* ``bits``: names of :class:`~harness.pagetable.bits.Bits`, in bit order
* ``pfn``: region and byte offset, ``"bar+0x0"``; ``""`` if there is no leaf
* ``pagemap``: ``"0x..."``, or null if it was not read
* ``format``: the name of the format of its tables (:mod:`harness.pagetable.formats`); left out for those of a process
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import UsageError
from harness.pagetable.bits import LEAF_LABELS, PAGE_SHIFT, Bits
from harness.pagetable.formats import CPU, FORMATS

LEVEL_LABELS = (*LEAF_LABELS, "none")
ORDINARY_MEMORY = "ram"
_ACCESSED = 1 << 5  # in entries of every level

_BIT_NAMES = frozenset(bit.name for bit in Bits)
_KEYS: Mapping[str, tuple[type, ...]] = {
    "checkpoint": (str,),
    "process": (str,),
    "mapping": (str,),
    "offset": (int,),
    "level": (str,),
    "raw": (str,),
    "bits": (list,),
    "pfn": (str,),
    "pagemap": (str, type(None)),
    "format": (str,),
}


@dataclass(frozen=True, slots=True)
class Region:
    """A named piece of the guest-physical address space: a BAR."""

    name: str
    """"bar", as it appears before the "+" in :attr:`Observation.pfn`."""
    start_paddr: int
    """Guest-physical address of its first byte."""
    size_bytes: int


def relative_pfn(pfn: int, regions: Sequence[Region] = ()) -> str:
    """Return the place of a pfn (4 KiB units) as region and offset: ``"bar+0x1000"``; ``"ram+0x..."`` elsewhere."""
    paddr = pfn << PAGE_SHIFT
    for region in regions:
        if 0 <= paddr - region.start_paddr < region.size_bytes:
            return f"{region.name}+{paddr - region.start_paddr:#x}"
    return f"{ORDINARY_MEMORY}+{paddr:#x}"


@dataclass(frozen=True, slots=True)
class Observation:
    """One page of one mapping of one process at one checkpoint.

    :raises UsageError: a level or a bit has a name that does not exist, or a number is out of range.
    """

    checkpoint: str
    """The name that the guest program gave it."""
    process: str
    """"parent", "child", "grandchild" or any other name."""
    mapping: str
    """The name of the mapping, "bar"."""
    offset: int
    """In bytes, from the start of the mapping."""
    level: str
    """"pte", "pmd", "pud"; "none" if there is no leaf."""
    raw: int
    """The 64-bit entry at which the walk ended."""
    bits: tuple[str, ...]
    """Names of the bits that are set, in bit order; empty if there is no leaf."""
    pfn: str
    """Region and offset in bytes, "bar+0x0"; "" if there is no leaf."""
    pagemap: int | None
    """The pagemap word of this page; None if it was not read."""
    format: str = CPU.name
    """Of its tables: nested ones and the IOMMU's have other bits than a process's."""

    def __post_init__(self) -> None:
        if self.level not in LEVEL_LABELS:
            raise UsageError(f"no level of a leaf is called {self.level!r}; valid values: {', '.join(LEVEL_LABELS)}")
        unknown = [name for name in self.bits if name not in _BIT_NAMES]
        if unknown:
            valid = " ".join(bit.name for bit in Bits if bit.name)
            raise UsageError(f"no bit is called {unknown[0]!r}; valid values: {valid}")
        if self.format not in FORMATS:
            raise UsageError(f"no format of tables is called {self.format!r}; valid values: {', '.join(FORMATS)}")
        for name, word in (("raw", self.raw), ("pagemap", self.pagemap or 0)):
            if not 0 <= word < 1 << 64:
                raise UsageError(f"{name} is a 64-bit word, got {word:#x}")
        if self.offset < 0:
            raise UsageError(f"offset is a number of bytes from the start of the mapping, got {self.offset}")

    def aged(self) -> Observation:
        """Return the observation with A cleared, to compare CPUs that may set A before any access."""
        if Bits.A.name not in self.bits:
            return self
        bits = tuple(name for name in self.bits if name != Bits.A.name)
        return dataclasses.replace(self, raw=self.raw & ~_ACCESSED, bits=bits)

    def to_json(self) -> dict[str, object]:
        """Return the JSON object, with the keys listed at the top of this module."""
        return {
            "checkpoint": self.checkpoint,
            "process": self.process,
            "mapping": self.mapping,
            "offset": self.offset,
            "level": self.level,
            "raw": f"{self.raw:#018x}",
            "bits": list(self.bits),
            "pfn": self.pfn,
            "pagemap": None if self.pagemap is None else f"{self.pagemap:#018x}",
            **({} if self.format == CPU.name else {"format": self.format}),
        }

    @classmethod
    def from_json(cls, data: object) -> Observation:
        """Read the JSON object.

        :raises UsageError: data is not what :meth:`to_json` writes.
        """
        if not isinstance(data, dict):
            raise UsageError(f"expected an object, got {type(data).__name__}")
        given = {"format": CPU.name, **data}
        if given.keys() != _KEYS.keys():
            wrong = sorted(str(key) for key in given.keys() ^ _KEYS.keys())
            raise UsageError(f"missing or unknown keys: {', '.join(wrong)}")
        for key, types in _KEYS.items():
            if not isinstance(given[key], types) or isinstance(given[key], bool):
                expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
                raise UsageError(f"{key} is {given[key]!r}, expected {expected}")
        if not all(isinstance(name, str) for name in data["bits"]):
            raise UsageError(f"bits is {data['bits']!r}, expected a list of names")
        return cls(
            checkpoint=data["checkpoint"],
            process=data["process"],
            mapping=data["mapping"],
            offset=data["offset"],
            level=data["level"],
            raw=_from_hex("raw", data["raw"]),
            bits=tuple(data["bits"]),
            pfn=data["pfn"],
            pagemap=None if data["pagemap"] is None else _from_hex("pagemap", data["pagemap"]),
            format=given["format"],
        )

    @property
    def answer(self) -> str:
        """What was found there: level, raw entry, bits and pfn."""
        return " ".join([self.level, f"{self.raw:#018x}", *self.bits, self.pfn]).rstrip()

    @property
    def place(self) -> str:
        """The pfn in a form that two runs can compare: any frame of ordinary memory is just ``"ram"``."""
        return ORDINARY_MEMORY if self.pfn.startswith(f"{ORDINARY_MEMORY}+") else self.pfn

    def __str__(self) -> str:
        return f"{self.checkpoint} {self.process} {self.mapping}+{self.offset:#x}: {self.answer}"


def comparable(observations: Iterable[Observation]) -> list[tuple[object, ...]]:
    """Return what two machines with one kernel have in common: everything except the frames of ordinary memory."""
    return [
        (o.checkpoint, o.process, o.mapping, o.offset, o.level, o.bits, o.place, o.pagemap is None)
        for o in observations
    ]


def _from_hex(key: str, text: str) -> int:
    if not re.fullmatch(r"0x[0-9a-f]{1,16}", text):
        raise UsageError(f'{key} is {text!r}, expected a 64-bit number as "0x..."')
    return int(text, 16)
