"""Files of a kernel whose lines it counts (GCOV_KERNEL): how they are built, and what the counts are read with.

The compiler writes a note (.gcno) beside each object, with the lines that belong to each counter. The kernel shows the
counters below /sys/kernel/debug/gcov, under the path that the object had on this host.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness.errors import MachineryError
from harness.host import cache

_NOTE = "profile.json"
_FOLDER = "profile"


def profile_variables(files: Iterable[str]) -> list[str]:
    """Return the variables for make that have these C files counted.

    As a variable of make's command line, this reaches the Makefile of each directory, and no file is changed. kbuild
    calls an object by its path from that Makefile, or in older kernels by its name (scripts/Makefile.lib).
    """
    paths = [PurePosixPath(file).with_suffix(".o") for file in files]
    names = dict.fromkeys(name for path in paths for name in (path.name, f"{path.parent.name}/{path.name}"))
    return [f"GCOV_PROFILE_{name}=y" for name in names]


@dataclass(frozen=True)
class ProfiledFiles:
    """Where the profiled objects of a kernel were built, and from which source."""

    objects: Path
    source: Path

    def keep(self, files: Iterable[str], entry: Path) -> None:
        """Copy the compiler's notes into a cache entry, as far as these files are part of the kernel."""
        for file in files:
            note = PurePosixPath(file).with_suffix(".gcno")
            if (self.objects / note).is_file():
                target = entry / _FOLDER / note
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.objects / note, target)
        cache.write_note(entry / _NOTE, {"objects": str(self.objects), "source": str(self.source)})

    @classmethod
    def of(cls, entry: Path) -> ProfiledFiles:
        """Return what :meth:`keep` wrote.

        :raises MachineryError: the entry is not of a kernel with profiled files.
        """
        note = cache.read_note(entry / _NOTE)
        if note is None:
            raise MachineryError(f"{entry} has no {_NOTE}: its kernel does not count which lines it executes")
        return cls(Path(note["objects"]), Path(note["source"]))


def notes_of(entry: Path) -> Path:
    """Return the folder of the compiler's notes in a cache entry: mm/memory.gcno."""
    return entry / _FOLDER
