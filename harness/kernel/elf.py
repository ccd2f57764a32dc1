"""Reads a kernel ELF file, an object or vmlinux: its sections, symbols and build ID.

Source: the System V ABI, "Object Files"; include/uapi/linux/elf.h.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import MachineryError

_SHT_SYMTAB, _SHT_STRTAB, _SHT_NOBITS, _SHN_UNDEF = 2, 3, 8, 0
_SHF_ALLOC, _SHF_EXEC = 2, 4
_STB_GLOBAL, _STT_OBJECT, _STT_FUNC = 1, 1, 2
_ET_EXEC, _EM_X86_64 = 2, 62
_NT_GNU_BUILD_ID = 3
_SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr: name, type, flags, addr, offset, size, link, info, align, entsize
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, shndx, value, size


@dataclass(frozen=True, slots=True)
class Section:
    """The fields of a section header that we need."""

    name: str
    type: int
    offset: int
    size_bytes: int
    link: int


class Elf:
    """A 64-bit little-endian ELF file.

    :param data: the whole file.
    :param what: its name in messages: "a module".
    :raises MachineryError: data is not such a file, or is truncated.
    """

    def __init__(self, data: bytes | mmap.mmap, what: str) -> None:
        self._data = data
        self._what = what
        if data[:6] != b"\x7fELF\x02\x01":
            raise MachineryError(f"{what} is not a 64-bit little-endian ELF file")
        try:
            self.sections = self._read_sections()
        except (struct.error, IndexError, ValueError) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> MachineryError:
        return MachineryError(f"{self._what}: the ELF file is truncated or corrupt: {error}")

    def _read_sections(self) -> list[Section]:
        table_at = struct.unpack_from("<Q", self._data, 0x28)[0]
        size, count, names_index = struct.unpack_from("<HHH", self._data, 0x3A)
        headers = [_SECTION.unpack_from(self._data, table_at + size * index) for index in range(count)]
        if not headers:
            return []
        names = self._slice(*headers[names_index][4:6])  # without names: section 0, SHN_UNDEF, is empty
        return [
            Section(_string(names, name) if names else "", kind, offset, size_bytes, link)
            for name, kind, _, _, offset, size_bytes, link, _, _, _ in headers
        ]

    def _slice(self, offset: int, size_bytes: int) -> bytes:
        return bytes(self._data[offset : offset + size_bytes])

    def has_section(self, name: str) -> bool:
        """Whether there is a section with this name: ``.BTF``, ``.debug_info``."""
        return any(section.name == name for section in self.sections)

    def content(self, name: str) -> bytes | None:
        """The contents of a section, before any relocation; None if there is no such section."""
        for section in self.sections:
            if section.name == name and section.type != _SHT_NOBITS:
                return self._slice(section.offset, section.size_bytes)
        return None

    def symbols(self) -> dict[str, int]:
        """Every symbol that the file defines, including local ones, with its value; the last one if a name is repeated.

        :raises MachineryError: the file is truncated.
        """
        found: dict[str, int] = {}
        try:
            for section in self.sections:
                if section.type != _SHT_SYMTAB:
                    continue
                names = self.sections[section.link]
                strings = self._slice(names.offset, names.size_bytes)
                table = self._slice(section.offset, section.size_bytes)
                for name, _, _, index, value, _ in _SYMBOL.iter_unpack(table):
                    if index != _SHN_UNDEF and name:
                        found[_string(strings, name)] = value
        except (struct.error, IndexError, ValueError) as error:
            raise self._broken(error) from error
        return found

    def build_id(self) -> bytes | None:
        """NT_GNU_BUILD_ID of any of its notes; None if there is none."""
        for section in self.sections:
            if section.name.startswith(".note") and section.type != _SHT_NOBITS:
                found = build_id(self._slice(section.offset, section.size_bytes))
                if found is not None:
                    return found
        return None


def _string(strings: bytes, at: int) -> str:
    return strings[at : strings.index(b"\0", at)].decode("ascii", "replace")


def build_id(notes: bytes) -> bytes | None:
    """NT_GNU_BUILD_ID among ELF notes, as in /sys/kernel/notes; None if there is none, or they are truncated."""
    at = 0
    while at + 12 <= len(notes):
        name_bytes, data_bytes, kind = struct.unpack_from("<III", notes, at)
        name_at = at + 12
        data_at = name_at + (name_bytes + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + name_bytes] == b"GNU\0":
            return notes[data_at : data_at + data_bytes]
        at = data_at + (data_bytes + 3 & ~3)
    return None


def symbols_as_elf(functions: Mapping[str, int], data: Mapping[str, int]) -> bytes:
    """Make an ELF program that has only symbols, for debugging a kernel without a vmlinux.

    :param functions: names and addresses of code; never empty.
    :param data: names and addresses of everything else.
    """
    strings, table = bytearray(b"\0"), bytearray(_SYMBOL.size)
    for symbols, kind in ((functions, _STT_FUNC), (data, _STT_OBJECT)):
        for name, address in symbols.items():
            table += _SYMBOL.pack(len(strings), _STB_GLOBAL << 4 | kind, 0, 1, address, 0)
            strings += name.encode() + b"\0"
    start, last = min(functions.values()), max([*functions.values(), *data.values()])
    names = b"\0.text\0.symtab\0.strtab\0"
    symtab_at, strtab_at = 64, 64 + len(table)
    names_at = strtab_at + len(strings)
    headers_at = names_at + len(names) + 7 & ~7
    sections = [
        bytes(_SECTION.size),
        _SECTION.pack(1, _SHT_NOBITS, _SHF_ALLOC | _SHF_EXEC, start, 0, last + 1 - start, 0, 0, 16, 0),
        _SECTION.pack(7, _SHT_SYMTAB, 0, 0, symtab_at, len(table), 3, 1, 8, _SYMBOL.size),
        _SECTION.pack(15, _SHT_STRTAB, 0, 0, strtab_at, len(strings), 0, 0, 1, 0),
        _SECTION.pack(15, _SHT_STRTAB, 0, 0, names_at, len(names), 0, 0, 1, 0),
    ]
    header = (_ET_EXEC, _EM_X86_64, 1, start, 0, headers_at, 0, 64, 0, 0, _SECTION.size, len(sections), 4)
    body = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", *header) + table + strings + names
    return body + bytes(headers_at - len(body)) + b"".join(sections)
