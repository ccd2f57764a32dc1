"""The kernel's own description of its types, /sys/kernel/btf/vmlinux: finds the offsets of struct members.

Pure: bytes in, offsets out. Source: Documentation/bpf/btf.rst, include/uapi/linux/btf.h. Only little-endian kernels are
supported.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from harness.errors import MachineryError

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MAX_NESTING = 64  # of types in types; a type that contains itself is invalid


class BtfError(MachineryError):
    """The data is not valid BTF, or has no such struct or member."""


class BtfKind(enum.IntEnum):
    """BTF_KIND_*."""

    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


#: Size in bytes of the data after a type of this kind: a fixed part, and a part for each of its members.
_TAIL = {
    BtfKind.INT: (4, 0),
    BtfKind.ARRAY: (12, 0),
    BtfKind.STRUCT: (0, 12),
    BtfKind.UNION: (0, 12),
    BtfKind.ENUM: (0, 8),
    BtfKind.FUNC_PROTO: (0, 8),
    BtfKind.VAR: (4, 0),
    BtfKind.DATASEC: (0, 12),
    BtfKind.DECL_TAG: (4, 0),
    BtfKind.ENUM64: (0, 12),
}
_COMPOSITE = (BtfKind.STRUCT, BtfKind.UNION)
#: Kinds that refer to another type without changing its size.
_TRANSPARENT = (BtfKind.TYPEDEF, BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG)


@dataclass(frozen=True, slots=True)
class Record:
    """One type: ``struct btf_type`` and the offset of the data after it."""

    name: str  # empty for an anonymous type
    kind: BtfKind
    count: int  # vlen: number of members, values or parameters
    flag: bool  # kind_flag
    size_or_type: int  # size in bytes of an INT, STRUCT, UNION, ENUM or FLOAT; otherwise the id of another type
    tail: int  # offset in the type section of the data after it


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct or union; bit_size is None unless it is a bitfield."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int | None


class Btf:
    """The types of one kernel.

    :param data: a whole .BTF section.
    :param base: the types of the kernel itself, if data is the section of a module ("split BTF"): its types and names
        are counted on from those of the kernel.
    :raises BtfError: data is not BTF, or is truncated.
    """

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        if len(data) < _HEADER.size:
            raise BtfError(f"BTF starts with a header of {_HEADER.size} bytes, got {len(data)} bytes")
        magic, version, _flags, header, type_at, type_bytes, name_at, name_bytes = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != 1:
            raise BtfError(f"no BTF: magic {magic:#x} version {version}, expected {_MAGIC:#x} version 1")
        if header < _HEADER.size or header + max(type_at + type_bytes, name_at + name_bytes) > len(data):
            raise BtfError(f"BTF is truncated: its header describes more than the {len(data)} bytes that it has")
        self._types: bytes = base._types if base is not None else b""
        self._names: bytes = base._names if base is not None else b""
        self._at: list[int] = list(base._at) if base is not None else [-1]
        first = len(self._types)
        self._types += data[header + type_at : header + type_at + type_bytes]
        self._names += data[header + name_at : header + name_at + name_bytes]
        self._index(first)
        self._named: dict[tuple[BtfKind, str], int] = {}

    def _index(self, at: int) -> None:
        """Add the offset of each type from ``at`` on, by its id; id 0 is void and has no offset."""
        starts = self._at
        end = len(self._types)
        tails = {int(kind): tail for kind, tail in _TAIL.items()}
        known = {int(kind) for kind in BtfKind}
        while at < end:
            if end - at < _TYPE.size:
                raise BtfError(f"BTF type {len(starts)} is truncated at byte {at} of the type section")
            _, info, _ = _TYPE.unpack_from(self._types, at)
            kind = info >> 24 & 0x1F
            if kind not in known:
                raise BtfError(f"BTF type {len(starts)} has the unknown kind {kind}; expected 1 to 19")
            fixed, each = tails.get(kind, (0, 0))
            starts.append(at)
            at += _TYPE.size + fixed + each * (info & 0xFFFF)
        if at != end:
            raise BtfError(f"the last BTF type ends at byte {at}, but the type section ends at {end}")

    def __len__(self) -> int:
        """The number of types, including void; ids go from 1 to this number, exclusive."""
        return len(self._at)

    def name(self, offset: int) -> str:
        """The name at an offset of the string section.

        :raises BtfError: the offset is outside, or the name is not terminated.
        """
        end = self._names.find(b"\0", offset)
        if not 0 <= offset < len(self._names) or end < 0:
            raise BtfError(f"a BTF name is at {offset:#x}, outside the string section of {len(self._names):#x} bytes")
        return self._names[offset:end].decode("ascii", "replace")

    def record(self, type_id: int) -> Record:
        """The type with this id, counted from 1.

        :raises BtfError: there is no such type.
        """
        if not 0 < type_id < len(self._at):
            raise BtfError(f"there is no BTF type {type_id}; ids go from 1 to {len(self._at) - 1}")
        at = self._at[type_id]
        name, info, size_or_type = _TYPE.unpack_from(self._types, at)
        kind = BtfKind(info >> 24 & 0x1F)
        return Record(self.name(name), kind, info & 0xFFFF, bool(info >> 31), size_or_type, at + _TYPE.size)

    def words(self, record: Record, count: int, index: int = 0) -> tuple[int, ...]:
        """``count`` 32-bit words of the data after a type, from the index-th group of that size."""
        return struct.unpack_from(f"<{count}I", self._types, record.tail + 4 * count * index)

    def members(self, record: Record) -> Iterator[Member]:
        """The members of a struct or union, in order; anonymous structs are not expanded."""
        for index in range(record.count):
            name, type_id, offset = self.words(record, 3, index)
            bit_size = (offset >> 24 if record.flag else 0) or None
            yield Member(self.name(name), type_id, offset & 0xFFFFFF if record.flag else offset, bit_size)

    def find(self, name: str, *kinds: BtfKind) -> int:
        """The id of a named type of one of these kinds, the first if there are several.

        :raises BtfError: there is no such type.
        """
        for kind in kinds:
            if (kind, name) in self._named:
                return self._named[kind, name]
        wanted = {int(kind) for kind in kinds}
        pattern = name.encode() + b"\0"
        for type_id in range(1, len(self._at)):
            offset, info, _ = _TYPE.unpack_from(self._types, self._at[type_id])
            if info >> 24 & 0x1F in wanted and self._names.startswith(pattern, offset):
                self._named[BtfKind(info >> 24 & 0x1F), name] = type_id
                return type_id
        raise BtfError(f"this kernel's BTF has no {'/'.join(kind.name.lower() for kind in kinds)} {name}")

    def bare(self, type_id: int) -> int:
        """The id behind typedefs and qualifiers; 0 is void."""
        for _ in range(_MAX_NESTING):
            if type_id == 0 or (record := self.record(type_id)).kind not in _TRANSPARENT:
                return type_id
            type_id = record.size_or_type
        raise BtfError(f"BTF type {type_id} is its own typedef")

    def offset(self, path: str) -> int:
        """Byte offset of a member, ``"task_struct.mm"`` or ``"mm_struct.mm_mt.ma_root"``.

        Members of anonymous structs and unions count as their parent's, as in C.

        :raises BtfError: there is no such struct or member, or it is a bitfield.
        """
        struct_name, *members = path.split(".")
        type_id = self.find(struct_name, *_COMPOSITE)
        bits = 0
        for name in members:
            found = self._member(self.bare(type_id), name, 0)
            if found is None:
                raise BtfError(f"this kernel's BTF has no member {path}: there is no {name!r}")
            if found.bit_size is not None or found.bit_offset % 8:
                raise BtfError(f"{path} is a bitfield, which has no byte offset")
            bits += found.bit_offset
            type_id = found.type_id
        return bits // 8

    def _member(self, type_id: int, name: str, depth: int) -> Member | None:
        """A member by name, with its offset from the start of the outermost type."""
        if depth > _MAX_NESTING:
            raise BtfError("a BTF struct contains itself")
        if type_id == 0 or (record := self.record(type_id)).kind not in _COMPOSITE:
            return None
        for member in self.members(record):
            if member.name == name:
                return member
            inner = None if member.name else self._member(self.bare(member.type_id), name, depth + 1)
            if inner is not None:
                return Member(inner.name, inner.type_id, member.bit_offset + inner.bit_offset, inner.bit_size)
        return None
