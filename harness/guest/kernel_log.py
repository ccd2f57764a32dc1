"""The log of a machine's kernel, from its two sources: /dev/kmsg, which has all of it, and the console.

Records are numbered, so what is missing is known; but they have to be asked for, and a dead kernel does not answer.
The console is there at once, and shows what the console level lets through: it tells how a kernel dies.

A session may run for weeks, so only the newest is kept of both. What was dropped counts as lost for a program that
began before it, and for no other.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.guest import bounds
from harness.printable import PrintableDecoder
from harness.verdict import LogPart, log_message

_TAIL_LINES = 25
_FILE = "log.json"


@dataclass(frozen=True, slots=True)
class LogMark:
    """A place in the log, counted from its beginning, dropped or not."""

    lines: int = 0
    console: int = 0  # characters


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
        self._lines_bytes = 0
        self._lines_dropped = 0  # that came before them
        self._known: set[str] = set()  # the same; without time as well, as a console without PRINTK_TIME shows them
        self._due = 0  # the next record's number
        self._lost: list[tuple[int, int]] = []  # before which line, how many records
        self._console_parts: list[str] = []
        self._console_bytes = 0
        self._console_dropped = 0  # characters that came before those
        self._covered = 0  # so far the console shows nothing that is not in a record
        self._decoder = PrintableDecoder()
        self._spoken = asyncio.Event()

    # --- the console -----------------------------------------------------------------------------

    async def first_line(self) -> None:
        """Waits for the console's first words."""
        await self._spoken.wait()

    def write(self, data: bytes) -> None:
        """The console shows more."""
        part = self._decoder.feed(data)
        self._console_parts.append(part)
        self._console_bytes += len(part)
        if self._console_bytes > bounds.LOG_MAX_BYTES:
            self._drop_console()
        self._spoken.set()

    def _drop_console(self) -> None:
        """Drops the older half. What of it no record has is lost."""
        console = self.console
        half = len(console) // 2
        start = console.find("\n", half) + 1 or half  # whole lines
        dropped, kept = console[:start], console[start:]
        unread = dropped[max(self._covered - self._console_dropped, 0) :].split("\n")[:-1]
        lost = sum(line.rstrip("\r") not in self._known for line in unread)
        self._console_parts, self._console_bytes = [kept], len(kept)
        self._console_dropped += len(dropped)
        if lost:
            self._lose(lost, "lines of the kernel's console were dropped here, so that the newest have room")

    @property
    def console(self) -> str:
        """What it showed, as far as that is kept."""
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
                self._lose(lost, "records of the kernel's log are lost here")
            self._append(record.lines)
            self._due = record.sequence + 1
        return sum(gaps.values())

    def covered(self, console: int) -> None:
        """Everything that the console had shown when it was so long is in the records now."""
        self._covered = console

    def _lose(self, count: int, what: str) -> None:
        self._lost.append((self._lines_dropped + len(self._lines), count))
        self._append([f"hugepfn: {count} {what}"])

    def _append(self, lines: Sequence[str]) -> None:
        self._lines += lines
        self._known.update(lines)
        self._known.update(map(log_message, lines))
        self._lines_bytes += sum(map(len, lines))
        if self._lines_bytes > bounds.LOG_MAX_BYTES:
            self._drop_lines()

    def _drop_lines(self) -> None:
        """Drops the older half."""
        count = -(-len(self._lines) // 2)
        kept = self._lines[count:]
        self._lines, self._lines_dropped, self._lines_bytes = [], self._lines_dropped + count, 0
        self._known.clear()
        self._lost = [(line, lost) for line, lost in self._lost if line >= self._lines_dropped]
        self._append(kept)

    # --- both ------------------------------------------------------------------------------------

    def mark(self) -> LogMark:
        """Where it ends now."""
        return LogMark(self._lines_dropped + len(self._lines), self._console_dropped + len(self.console))

    def since(self, mark: LogMark) -> str:
        """From a place on: the records, then what the console shows and no record that was read has."""
        console = self.console
        start = max(max(mark.console, self._covered) - self._console_dropped, 0)
        start = console.rfind("\n", 0, start) + 1  # whole lines
        shown = console[start:].split("\n")
        new = [line for line in shown[:-1] if line.rstrip("\r") not in self._known]
        if shown[-1] and not any(line.startswith(shown[-1]) for line in self._known):
            new.append(shown[-1])
        lines = self._lines[max(mark.lines - self._lines_dropped, 0) :] + new
        if dropped := self._dropped_since(mark):
            lines.insert(0, f"hugepfn: {dropped} lines of the kernel's log were dropped here; the newest are kept")
        return "\n".join([*lines, ""]) if lines else ""

    def lost_since(self, mark: LogMark) -> int:
        """How many records were overwritten before anybody read them, and how many lines were not kept."""
        return self._dropped_since(mark) + sum(lost for line, lost in self._lost if line >= mark.lines)

    def _dropped_since(self, mark: LogMark) -> int:
        return max(self._lines_dropped - mark.lines, 0)

    @property
    def text(self) -> str:
        """All of it so far."""
        return self.since(LogMark())

    # --- saved machines --------------------------------------------------------------------------

    def saved(self) -> SavedLog:
        """For a machine that comes back later."""
        return SavedLog(tuple(self._lines), self._due, self.since(LogMark(self._lines_dropped + len(self._lines))))

    def restore(self, saved: SavedLog) -> None:
        """What it said before it was saved."""
        self._append(saved.lines)
        self._due = saved.due
        if saved.console:
            self.write(saved.console.encode())
