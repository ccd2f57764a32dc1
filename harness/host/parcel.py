"""Files of another machine: packed there, unpacked here. A parcel is a tar archive, compressed with zstd."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import zstandard

from harness.errors import MachineryError, UsageError

_LEVEL = 1  # modules are compressed already, and the rest is sent only once

#: The files of a parcel by their names in it, and their contents or where they are.
Files = Mapping[str, Path | bytes]


def files_below(folder: Path, prefix: str = "") -> dict[str, Path]:
    """Return the files in a folder and its subfolders, apart from hidden ones and Python's caches.

    Links to folders are not followed: in lib/modules/RELEASE, "build" is one to a whole tree.

    :param prefix: for their names, "lib/".
    """
    found: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        if entry.is_dir() and not entry.is_symlink():
            found |= files_below(entry, f"{prefix}{entry.name}/")
        elif entry.is_file():
            found[prefix + entry.name] = entry
    return found


def digest(files: Files) -> str:
    """Return a name for files, which depends on their names, contents and whether they can be executed."""
    whole = hashlib.sha256()
    for name, content in sorted(files.items()):
        whole.update(f"{name}\0{_mode(content):o}\0".encode(errors="surrogateescape"))
        whole.update(hashlib.sha256(content if isinstance(content, bytes) else content.read_bytes()).digest())
    return whole.hexdigest()[:32]


def pack(files: Files) -> bytes:
    """Put files into a parcel. A link is followed; the times of changes are kept.

    :raises UsageError: a file cannot be read.
    """
    packed = io.BytesIO()
    with (
        zstandard.ZstdCompressor(_LEVEL).stream_writer(packed, closefd=False) as stream,
        tarfile.open(fileobj=stream, mode="w|", dereference=True) as tar,
    ):
        for name, content in sorted(files.items()):
            try:
                _add(tar, name, content)
            except OSError as error:
                raise UsageError(f"{content!s} cannot be read, so it cannot be sent: {error.strerror}") from error
    return packed.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: Path | bytes) -> None:
    member = tarfile.TarInfo(name)
    member.mode = _mode(content)
    if isinstance(content, bytes):
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
        return
    with content.open("rb") as file:
        status = os.fstat(file.fileno())
        member.size, member.mtime = status.st_size, status.st_mtime
        tar.addfile(member, file)


def _mode(content: Path | bytes) -> int:
    return 0o755 if isinstance(content, Path) and os.access(content, os.X_OK) else 0o644


def unpack(parcel: bytes, folder: Path) -> None:
    """Write the files of a parcel into a folder.

    :raises MachineryError: it is damaged, or has a file that belongs elsewhere.
    """
    try:
        with (
            zstandard.ZstdDecompressor().stream_reader(parcel) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for member in tar:
                _write(tar, member, folder)
    except (tarfile.TarError, zstandard.ZstdError, EOFError) as error:
        raise MachineryError(f"a parcel from another machine is damaged: {error}; run again") from error


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    name = PurePosixPath(member.name)
    source = tar.extractfile(member) if member.isreg() else None
    if source is None or name.is_absolute() or ".." in name.parts:
        raise MachineryError(f"a parcel from another machine has {member.name!r}; expected plain files below a folder")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with source, path.open("wb") as file:
        while block := source.read(1 << 20):
            file.write(block)
    path.chmod(member.mode & 0o777)
    os.utime(path, (member.mtime, member.mtime))
