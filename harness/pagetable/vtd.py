"""The tables in which an Intel IOMMU looks a device up, and which lead to the device's own page tables.

Legacy mode: root table (by bus), context table (by device and function), second level. Scalable mode: root table,
context table, PASID directory, PASID table, and then first or second level. Requests without a PASID, which are those
of a plain device, use the PASID that the context entry names (RID_PASID).

Source: Intel VT-d specification 9.1 to 9.6 and 11.4.5 (RTADDR_REG), drivers/iommu/intel/iommu.h and pasid.h.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from dataclasses import dataclass
from typing import Self

from harness.errors import UsageError
from harness.pagetable.bits import PADDR_MASK, Layout
from harness.pagetable.memory import Memory, WalkError

_BDF = re.compile(r"(?:0000:)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)
_LEGACY, _SCALABLE, _ABORT = 0, 1, 3  # RTADDR_REG.TTM
_PRESENT = 1 << 0
_PASS_THROUGH = 0b10  # context entry, translation type
_FIRST, _SECOND, _NESTED, _PASS = 1, 2, 3, 4  # PASID table entry, PGTT
_PASID_TABLE_SHIFT = 6
#: Levels of the second level by "address width": 39, 48 and 57 bits.
_SECOND_LEVELS = {
    1: dataclasses.replace(Layout.SECOND_LEVEL, three_level=True),
    2: Layout.SECOND_LEVEL,
    3: dataclasses.replace(Layout.SECOND_LEVEL, five_level=True),
}
#: Levels of the first level by "first-level paging mode".
_FIRST_LEVELS = {0: Layout.FIRST_LEVEL, 1: dataclasses.replace(Layout.FIRST_LEVEL, five_level=True)}


class Access(enum.Enum):
    """How the IOMMU treats what a device reads and writes."""

    TRANSLATED = "translated by page tables"
    BLOCKED = "blocked"
    UNTRANSLATED = "passed through untranslated"


@dataclass(frozen=True, slots=True)
class SourceId:
    """The PCI address of a device in segment 0."""

    bus: int
    devfn: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "0000:00:05.0" or "00:05.0".

        :raises UsageError: text has another form.
        """
        match = _BDF.fullmatch(text)
        if match is None:
            raise UsageError(f"{text!r} is not the address of a PCI device; expected one such as 0000:00:05.0")
        bus, device, function = (int(part, 16) for part in match.groups())
        return cls(bus, device << 3 | function)

    def __str__(self) -> str:
        return f"0000:{self.bus:02x}:{self.devfn >> 3:02x}.{self.devfn & 7}"


@dataclass(frozen=True, slots=True)
class LookUp:
    """One entry that the IOMMU reads on the way to a device's page tables."""

    table: str
    """"root", "context", "pasid-directory" or "pasid"."""
    index: int
    raw: tuple[int, ...]
    """Its 64-bit words, the lowest first."""

    def __str__(self) -> str:
        words = " ".join(f"{word:#018x}" for word in self.raw)
        return f"{self.table}[{self.index}] {words}"


@dataclass(frozen=True, slots=True)
class DeviceTables:
    """What the IOMMU has for a device."""

    access: Access
    path: tuple[LookUp, ...]
    """From the root table down; empty if the IOMMU blocks all devices."""
    root: int = 0
    """Physical address of the root of the device's page tables, if its access is TRANSLATED."""
    layout: Layout = Layout.SECOND_LEVEL
    """Their format and depth."""


def device_tables(memory: Memory, rtaddr: int, device: SourceId) -> DeviceTables:
    """Return where the IOMMU's page tables of a device start.

    :param rtaddr: RTADDR_REG of the IOMMU.
    :raises WalkError: a table lies outside RAM, or an entry has a reserved value.
    """
    mode = rtaddr >> 10 & 0b11
    if mode == _ABORT:
        return DeviceTables(Access.BLOCKED, ())
    if mode not in (_LEGACY, _SCALABLE):
        raise WalkError(f"the IOMMU's RTADDR_REG is {rtaddr:#x}: its translation table mode {mode} is reserved")
    return _DeviceSearch(memory, rtaddr & PADDR_MASK, device).run(scalable=mode == _SCALABLE)


class _DeviceSearch:
    def __init__(self, memory: Memory, root_table: int, device: SourceId) -> None:
        self._memory = memory
        self._root_table = root_table
        self._device = device
        self._path: list[LookUp] = []

    def run(self, *, scalable: bool) -> DeviceTables:
        devfn = self._device.devfn
        root = self._read("root", self._root_table, self._device.bus, 2)
        if not scalable:
            return self._legacy(root[0])
        half = root[devfn >> 7]  # each half of the devices has a context table of its own
        return self._scalable(half)

    def _legacy(self, root: int) -> DeviceTables:
        if not root & _PRESENT:
            return self._found(Access.BLOCKED)
        low, high = self._read("context", root & PADDR_MASK, self._device.devfn, 2)
        if not low & _PRESENT:
            return self._found(Access.BLOCKED)
        if low >> 2 & 0b11 == _PASS_THROUGH:
            return self._found(Access.UNTRANSLATED)
        return self._second_level(low, high & 0b111)

    def _scalable(self, root: int) -> DeviceTables:
        if not root & _PRESENT:
            return self._found(Access.BLOCKED)
        context = self._read("context", root & PADDR_MASK, self._device.devfn & 0x7F, 4)
        if not context[0] & _PRESENT:
            return self._found(Access.BLOCKED)
        pasid = context[1] & 0xFFFFF
        (directory,) = self._read("pasid-directory", context[0] & PADDR_MASK, pasid >> _PASID_TABLE_SHIFT, 1)
        if not directory & _PRESENT:
            return self._found(Access.BLOCKED)
        entry = self._read("pasid", directory & PADDR_MASK, pasid & (1 << _PASID_TABLE_SHIFT) - 1, 8)
        if not entry[0] & _PRESENT:
            return self._found(Access.BLOCKED)
        kind = entry[0] >> 6 & 0b111
        if kind == _PASS:
            return self._found(Access.UNTRANSLATED)
        if kind == _SECOND:
            return self._second_level(entry[0], entry[0] >> 2 & 0b111)
        if kind == _FIRST:
            mode = entry[2] >> 2 & 0b11
            if mode not in _FIRST_LEVELS:
                raise WalkError(f"{self._path[-1]}: first-level paging mode {mode} is reserved")
            return self._found(Access.TRANSLATED, entry[2] & PADDR_MASK, _FIRST_LEVELS[mode])
        what = "nested translation, which is not walked" if kind == _NESTED else "a reserved type of translation"
        raise WalkError(f"{self._path[-1]}: {what} ({kind})")

    def _second_level(self, pointer: int, width: int) -> DeviceTables:
        if width not in _SECOND_LEVELS:
            raise WalkError(f"{self._path[-1]}: address width {width} is reserved")
        return self._found(Access.TRANSLATED, pointer & PADDR_MASK, _SECOND_LEVELS[width])

    def _found(self, access: Access, root: int = 0, layout: Layout = Layout.SECOND_LEVEL) -> DeviceTables:
        return DeviceTables(access, tuple(self._path), root, layout)

    def _read(self, name: str, table: int, index: int, words: int) -> tuple[int, ...]:
        """Read an entry of so many words, and keep it in the path."""
        paddr = table + 8 * words * index
        if paddr + 8 * words > self._memory.size_bytes:
            raise WalkError(
                f"the IOMMU's {name} table at paddr {table:#x} lies outside guest RAM, which ends at "
                f"{self._memory.size_bytes:#x}; is the VM stopped?"
            )
        found = tuple(self._memory.read_u64(paddr + 8 * word) for word in range(words))
        self._path.append(LookUp(name, index, found))
        return found
