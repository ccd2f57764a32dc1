"""Checksums of files in the cache: they tell a damaged file from a broken kernel. They detect accidents, not attacks.

The marker of a finished entry, ``.complete``, has the size and the CRC of the files that are worth it, by their names
in the entry. It is empty in an entry that has none, and in one that an older hugepfn has made.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

MARKER = ".complete"
_PART_BYTES = 1 << 20

Sums = dict[str, tuple[int, int]]


def write(entry: Path, names: Sequence[str]) -> None:
    """Complete an entry, with the checksums of these files of it."""
    found: Sums = {name: (file.stat().st_size, _crc(file)) for name in names if (file := entry / name).is_file()}
    (entry / MARKER).write_text(json.dumps(found) if found else "")


def changed(entry: Path) -> str:
    """Return the name of a file that is not what was put there; "" if there is none."""
    sums = _read(entry)
    if sums is None:
        return MARKER
    for name, (size_bytes, crc) in sums.items():
        file = entry / name
        try:
            if file.stat().st_size != size_bytes or _crc(file) != crc:
                return name
        except OSError:
            return name
    return ""


def _read(entry: Path) -> Sums | None:
    """Return the checksums; None if the marker is damaged."""
    try:
        found = json.loads((entry / MARKER).read_text() or "{}")
        return {str(name): (int(size_bytes), int(crc)) for name, (size_bytes, crc) in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _crc(file: Path) -> int:
    crc = 0
    with file.open("rb") as opened:
        while part := opened.read(_PART_BYTES):
            crc = zlib.crc32(part, crc)
    return crc
