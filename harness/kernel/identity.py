"""The content identity of a kernel. It is stored, so that 14 MB are not hashed at every start."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from harness.host import cache

#: Size in bytes, mtime in ns, inode and device.
Stamp = tuple[int, int, int, int]


def stamp_of(path: Path) -> Stamp:
    """Identifies a file without reading it; a file that replaces it has another stamp.

    :raises OSError: there is no such file.
    """
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_dev


def content_key(image: Path, modules_dir: Path | None) -> str:
    """Sha256 hex of an image's bytes and of its modules' listing.

    The listing has path, size and mtime of each module. A rebuilt module of equal size must give another key, while a
    key that changes for no reason costs only time.
    """
    digest = hashlib.sha256(_file_sha256(image).encode())
    if modules_dir is not None:
        for path, size_bytes, mtime_ns in sorted(_listing(modules_dir)):
            digest.update(f"{path}\0{size_bytes}\0{mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _listing(modules_dir: Path) -> list[tuple[str, int, int]]:
    found = []
    skip = len(str(modules_dir)) + 1
    for folder, _, names in os.walk(modules_dir):  # does not follow "build", a symlink to a whole tree
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 - thousands of files at every start: Path costs 5 times more
            if ".ko" in name:  # the others, such as modules.dep, are generated
                with contextlib.suppress(FileNotFoundError):  # a dangling link
                    stat = os.stat(path)  # noqa: PTH116
                    found.append((path[skip:], stat.st_size, stat.st_mtime_ns))
    return found


def _file_sha256(path: Path) -> str:
    """Sha256 hex of a file, stored by its size, mtime and inode."""
    stamp = [str(path.absolute()), *stamp_of(path)]
    name = hashlib.sha256(str(path.absolute()).encode(errors="surrogateescape")).hexdigest()[:32]
    note = cache.root() / "hashes" / f"{name}.json"
    try:
        remembered = json.loads(note.read_text())
        if remembered["stamp"] == stamp:
            return str(remembered["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not stored, or stored by an older version: hash again
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    cache.write_note(note, {"stamp": stamp, "sha256": sha256})
    return sha256
