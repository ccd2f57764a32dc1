"""The log of a machine's kernel, from its two sources: /dev/kmsg, which has all of it, and the console.

Records are numbered, so what is missing is known; but they have to be asked for, and a dead kernel does not answer.
The console is there at once, and shows what the console level lets through: it tells how a kernel dies.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.errors import ProtocolError
from harness.guest import bounds
from harness.printable import PrintableDecoder
from harness.verdict import LogPart, log_message

_TAIL_LINES = 25
_FILE = "log.json"


@dataclass(frozen=True, slots=True)
class LogMark:
    """A place in the log."""

    lines: int = 0
    console: int = 0


@dataclass(frozen=True, slots=True)
class SavedLog:
    """The log of a machine that was saved."""

    lines: tuple[str, ...]
    due: int  # the number of the record that comes after them
    console: str  # what the lines may lack

    @classmethod
    def read(cls, folder: Path) -> SavedLog:
        """What :meth:`write` wrote.

        :raises OSError, ValueError, TypeError: it is not there, or something else is.
        """
        saved = json.loads((folder / _FILE).read_text())
        return cls(**{**saved, "lines": tuple(saved["lines"])})

    def write(self, folder: Path) -> None:
        """Into a file of a folder."""
        (folder / _FILE).write_text(json.dumps(asdict(self)))


class KernelLog:
    """Everything that the kernel said, as printable text; grows while the machine runs."""

    def __init__(self) -> None:
        self.reading = asyncio.Lock()  # one reader at a time asks for records
        self._lines: list[str] = []  # of records, as a console would show them
        self._known: set[str] = set()  # the same; without time as well, as a console without PRINTK_TIME shows them
        self._due = 0  # the next record's number
        self._lost: list[tuple[int, int]] = []  # before which line, how many records
        self._console_parts: list[str] = []
        self._size_bytes = 0
        self._covered = 0  # so far the console shows nothing that is not in a record
        self._decoder = PrintableDecoder()
        self._spoken = asyncio.Event()

    # --- the console -----------------------------------------------------------------------------

    async def first_line(self) -> None:
        """Waits for the console's first words."""
        await self._spoken.wait()

    def write(self, data: bytes) -> None:
        """The console shows more.

        :raises ProtocolError: it is more than is kept.
        """
        self._size_bytes += len(data)
        if self._size_bytes > bounds.LOG_MAX_BYTES:
            raise ProtocolError(f"the kernel's log is longer than the {bounds.LOG_MAX_BYTES >> 20} MiB that are kept")
        self._console_parts.append(self._decoder.feed(data))
        self._spoken.set()

    @property
    def console(self) -> str:
        """All that it showed."""
        if len(self._console_parts) > 1:
            self._console_parts = ["".join(self._console_parts)]
        return self._console_parts[0] if self._console_parts else ""

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines."""
        return "\n".join(self.text.splitlines()[-lines:])

    # --- records ---------------------------------------------------------------------------------

    def add(self, part: LogPart) -> int:
        """Records that were read.

        :returns: how many are missing among them.
        """
        gaps = dict(part.gaps(self._due))
        for index, record in enumerate(part.records):
            if lost := gaps.get(index):
                self._lost.append((len(self._lines), lost))
                self._append([f"hugepfn: {lost} records of the kernel's log are lost here"])
            self._append(record.lines)
            self._due = record.sequence + 1
        return sum(gaps.values())

    def covered(self, console: int) -> None:
        """Everything that the console had shown when it was so long is in the records now."""
        self._covered = console

    def _append(self, lines: Sequence[str]) -> None:
        self._lines += lines
        self._known.update(lines)
        self._known.update(map(log_message, lines))

    # --- both ------------------------------------------------------------------------------------

    def mark(self) -> LogMark:
        """Where it ends now."""
        return LogMark(len(self._lines), len(self.console))

    def since(self, mark: LogMark) -> str:
        """From a place on: the records, then what the console shows and no record that was read has."""
        console = self.console
        start = max(mark.console, self._covered)
        start = console.rfind("\n", 0, start) + 1  # whole lines
        shown = console[start:].split("\n")
        new = [line for line in shown[:-1] if line.rstrip("\r") not in self._known]
        if shown[-1] and not any(line.startswith(shown[-1]) for line in self._known):
            new.append(shown[-1])
        lines = self._lines[mark.lines :] + new
        return "\n".join([*lines, ""]) if lines else ""

    def lost_since(self, mark: LogMark) -> int:
        """How many records were overwritten before anybody read them."""
        return sum(lost for line, lost in self._lost if line >= mark.lines)

    @property
    def text(self) -> str:
        """All of it so far."""
        return self.since(LogMark())

    # --- saved machines --------------------------------------------------------------------------

    def saved(self) -> SavedLog:
        """For a machine that comes back later."""
        return SavedLog(tuple(self._lines), self._due, self.since(LogMark(len(self._lines))))

    def restore(self, saved: SavedLog) -> None:
        """What it said before it was saved."""
        self._append(saved.lines)
        self._due = saved.due
        if saved.console:
            self.write(saved.console.encode())
