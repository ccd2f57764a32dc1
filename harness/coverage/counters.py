"""The counters of machines whose kernel counts the lines that it executes: reset, fetched, and added up in a folder.

The folder has the compiler's note of each file (mm/memory.gcno), and beside it what was counted (mm/memory.gcda).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Protocol

from harness.coverage.counts import counts_of
from harness.coverage.report import Counts
from harness.errors import HugepfnError
from harness.host import cache
from harness.host.process import find_program, run
from harness.kernel.build.profile import ProfiledFiles, notes_of

_DEBUGFS = "/sys/kernel/debug/gcov"
_ORIGIN = "origin.json"
_LOST = "lost"
_TIMEOUT_S = 60.0


class CountingMachine(Protocol):
    """A machine: the files of its guest."""

    def get(self, path: str) -> bytes:
        """Return the contents of a file of the guest."""

    def put(self, path: str, data: bytes, mode: int = 0o755) -> None:
        """Write a file of the guest."""


class Counters:
    """What the kernels of several machines have counted. Several processes may add to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sum = folder / "sum"
        known = cache.read_note(folder / _ORIGIN) or {}
        self._built = ProfiledFiles(Path(known["objects"]), Path(known["source"]))

    @classmethod
    def create(cls, folder: Path, entry: Path) -> Counters:
        """Return new counters in a folder, all zero.

        :param entry: the cache entry of a kernel with profiled files.
        """
        built = ProfiledFiles.of(entry)
        shutil.copytree(notes_of(entry), folder / "sum")
        cache.write_note(folder / _ORIGIN, {"objects": str(built.objects), "source": str(built.source)})
        return cls(folder)

    @property
    def files(self) -> list[Path]:
        """The paths of the files, without a suffix: mm/memory."""
        notes = sorted(self._sum.rglob("*.gcno"))
        return [note.relative_to(self._sum).with_suffix("") for note in notes]

    def reset(self, machine: CountingMachine) -> None:
        """Let a machine begin at zero. What its boot has executed is then not counted."""
        machine.put(f"{_DEBUGFS}/reset", b"0\n")

    def take(self, machine: CountingMachine, what: str) -> None:
        """Add what a machine has counted.

        :param what: what ran there, which is noted if the machine no longer answers: its counts are lost.
        """
        with tempfile.TemporaryDirectory(prefix="take.", dir=self._folder) as scratch:
            fetched = Path(scratch) / "fetched"
            try:
                for file in self.files:
                    target = fetched / f"{file}.gcda"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(machine.get(f"{_DEBUGFS}{self._built.objects}/{file}.gcda"))
            except HugepfnError as error:
                (Path(tempfile.mkdtemp(prefix=f"{_LOST}.", dir=self._folder)) / "what").write_text(f"{what}: {error}")
                return
            with cache.locked("coverage", "adds up what a kernel has counted"):
                self._add(fetched, Path(scratch) / "added")

    def _add(self, fetched: Path, added: Path) -> None:
        """gcov-tool merges all files of two folders; the first counts are taken as they are."""
        if any(self._sum.rglob("*.gcda")):
            merge: list[str | Path] = [find_program("gcov-tool", "gcc"), "merge", self._sum, fetched, "-o", added]
            run(merge, timeout_s=_TIMEOUT_S)
            fetched = added
        shutil.copytree(fetched, self._sum, dirs_exist_ok=True)

    @property
    def lost(self) -> list[str]:
        """What ran in machines that did not answer in the end, and why."""
        return sorted(path.read_text().splitlines()[0] for path in self._folder.glob(f"{_LOST}.*/what"))

    def read(self) -> Counts:
        """Return how often each line was executed.

        :raises MachineryError: gcov is missing, or does not understand the compiler's notes.
        """
        words = [str(find_program("gcov", "gcc")), "--json-format", "--stdout"]
        answers = (run([*words, f"{self._sum / file}.gcda"], timeout_s=_TIMEOUT_S).stdout for file in self.files)
        return counts_of(answers, str(self._built.source))
