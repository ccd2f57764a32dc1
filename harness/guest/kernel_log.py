"""The log of a machine's kernel, from two sources: /dev/kmsg, which has everything, and the console.

Records of /dev/kmsg are numbered, so missing ones are noticed; but we have to ask for them, and a dead kernel does not
answer. The console arrives at once and shows how a kernel dies, but only messages that the console level lets through.

A session may run for weeks, so only the newest part of both is kept. What was dropped counts as lost only for programs
that were started before it was logged.
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
    """A position in the log, counted from its beginning, including what was dropped."""

    lines: int = 0
    console: int = 0  # characters


@dataclass(frozen=True, slots=True)
class SavedLog:
    """The log of a machine that was saved."""

    lines: tuple[str, ...]
    due: int  # the number of the next record
    console: str  # text that the lines may lack
    held: int | None = None  # the line at which the next run begins, if that is not the end

    @classmethod
    def read(cls, folder: Path) -> SavedLog:
        """Read what :meth:`write` wrote.

        :raises OSError, ValueError, TypeError: it is missing, or is something else.
        """
        saved = json.loads((folder / _FILE).read_text())
        return cls(**{**saved, "lines": tuple(saved["lines"])})

    def write(self, folder: Path) -> None:
        """Write it into a file in a folder."""
        (folder / _FILE).write_text(json.dumps(asdict(self)))


class KernelLog:
    """Everything that the kernel has logged, as printable text. It grows while the machine runs."""

    def __init__(self) -> None:
        self.reading = asyncio.Lock()  # one reader at a time asks for records
        self._lines: list[str] = []  # the records, as a console would show them
        self._lines_bytes = 0
        self._lines_dropped = 0  # lines that were before them
        self._known: set[str] = (
            set()
        )  # these lines, with and without the time, as a console without PRINTK_TIME shows them
        self._due = 0  # the number of the next record
        self._lost: list[tuple[int, int]] = []  # before this line, this many records are missing
        self._console_parts: list[str] = []
        self._console_bytes = 0
        self._console_dropped = 0  # characters that were before those
        self._covered = 0  # up to here, everything on the console is in a record
        self._decoder = PrintableDecoder()
        self._spoken = asyncio.Event()
        self.held: LogMark | None = None  # where the next run begins, if that is not where the log ends then

    # --- the console -----------------------------------------------------------------------------

    async def first_line(self) -> None:
        """Wait for the first output on the console."""
        await self._spoken.wait()

    async def more(self) -> None:
        """Wait for further output on the console."""
        self._spoken.clear()
        await self._spoken.wait()

    def write(self, data: bytes) -> None:
        """Take more output of the console."""
        part = self._decoder.feed(data)
        self._console_parts.append(part)
        self._console_bytes += len(part)
        if self._console_bytes > bounds.LOG_MAX_BYTES:
            self._drop_console()
        self._spoken.set()

    def _drop_console(self) -> None:
        """Drop the older half. The part that is in no record is lost."""
        console = self.console
        half = len(console) // 2
        start = console.find("\n", half) + 1 or half  # whole lines
        dropped, kept = console[:start], console[start:]
        unread = dropped[max(self._covered - self._console_dropped, 0) :].split("\n")[:-1]
        lost = sum(line.rstrip("\r") not in self._known for line in unread)
        self._console_parts, self._console_bytes = [kept], len(kept)
        self._console_dropped += len(dropped)
        if lost:
            self._lose(lost, "lines of the console were dropped here, to keep the newest")

    @property
    def console(self) -> str:
        """The output of the console, as far as it is kept."""
        if len(self._console_parts) > 1:
            self._console_parts = ["".join(self._console_parts)]
        return self._console_parts[0] if self._console_parts else ""

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines."""
        return "\n".join(self.text.splitlines()[-lines:])

    # --- records ---------------------------------------------------------------------------------

    def add(self, part: LogPart) -> int:
        """Add records that were read.

        :returns: how many are missing between them.
        """
        gaps = dict(part.gaps(self._due))
        for index, record in enumerate(part.records):
            if lost := gaps.get(index):
                self._lose(lost, "records of the kernel log are lost here")
            self._append(record.lines)
            self._due = record.sequence + 1
        return sum(gaps.values())

    def covered(self, console: int) -> None:
        """Everything that the console had shown at this length is now in the records."""
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
        """Drop the older half of the records."""
        count = -(-len(self._lines) // 2)
        kept = self._lines[count:]
        self._lines, self._lines_dropped, self._lines_bytes = [], self._lines_dropped + count, 0
        self._known.clear()
        self._lost = [(line, lost) for line, lost in self._lost if line >= self._lines_dropped]
        self._append(kept)

    # --- both ------------------------------------------------------------------------------------

    def mark(self) -> LogMark:
        """The current end of the log."""
        return LogMark(self._lines_dropped + len(self._lines), self._console_dropped + len(self.console))

    def begin_run(self) -> LogMark:
        """The position from which on the log belongs to a run that begins now."""
        held, self.held = self.held, None
        return held or self.mark()

    def since(self, mark: LogMark) -> str:
        """The log from a position on: the records, then what is only on the console."""
        console = self.console
        start = max(max(mark.console, self._covered) - self._console_dropped, 0)
        start = console.rfind("\n", 0, start) + 1  # whole lines
        shown = console[start:].split("\n")
        new = [line for line in shown[:-1] if line.rstrip("\r") not in self._known]
        if shown[-1] and not any(line.startswith(shown[-1]) for line in self._known):
            new.append(shown[-1])
        lines = self._lines[max(mark.lines - self._lines_dropped, 0) :] + new
        if dropped := self._dropped_since(mark):
            lines.insert(0, f"hugepfn: {dropped} lines of the kernel log were dropped here, to keep the newest")
        return "\n".join([*lines, ""]) if lines else ""

    def lost_since(self, mark: LogMark) -> int:
        """The number of records that were overwritten before they were read, and of lines that were dropped."""
        return self._dropped_since(mark) + sum(lost for line, lost in self._lost if line >= mark.lines)

    def _dropped_since(self, mark: LogMark) -> int:
        return max(self._lines_dropped - mark.lines, 0)

    @property
    def text(self) -> str:
        """The whole log so far."""
        return self.since(LogMark())

    # --- saved machines --------------------------------------------------------------------------

    def saved(self) -> SavedLog:
        """The log for a machine that is saved."""
        console = self.since(LogMark(self._lines_dropped + len(self._lines)))
        held = max(self.held.lines - self._lines_dropped, 0) if self.held is not None else None
        return SavedLog(tuple(self._lines), self._due, console, held)

    def restore(self, saved: SavedLog) -> None:
        """Take the log of a machine before it was saved."""
        self._append(saved.lines)
        self._due = saved.due
        if saved.console:
            self.write(saved.console.encode())
        if saved.held is not None:
            self.held = LogMark(saved.held)
