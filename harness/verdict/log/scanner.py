"""Find the complaints in a kernel log, either all at once or while the log is still growing."""

from __future__ import annotations

from harness.verdict.log.blocks import Block, BlockReader
from harness.verdict.log.complaints import Complaint

MAX_COMPLAINTS = 1000
"""So many complaints are kept, and the first fatal one: a guest must not fill the host's memory."""

MAX_WAITING = 100
"""So many complaints wait for one that began before them and has not ended."""


class Scanner:
    """Scan a log that arrives in pieces.

    Each complaint is returned once, by the :meth:`feed` that completed its first line, with as much of its block as has
    arrived; :attr:`complaints` has the whole blocks. A line counts once its newline has arrived.
    """

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._fatal: Block | None = None
        self._reader = BlockReader(self._begun, self._ended)

    @property
    def complaints(self) -> tuple[Complaint, ...]:
        """Every complaint so far, in the order of the log, with its block as far as it is known."""
        return tuple(block.freeze() for block in self._blocks)

    @property
    def last_checkpoint(self) -> str:
        """Name of the last checkpoint seen; "" if there was none."""
        return self._reader.checkpoint

    @property
    def fatal(self) -> Complaint | None:
        """The first fatal complaint so far, or None."""
        return self._fatal.freeze() if self._fatal else None

    def feed(self, chunk: str) -> list[Complaint]:
        """Take the next piece of the log, cut anywhere.

        :returns: the complaints whose first line ended in this piece.
        """
        known = len(self._blocks)
        self._reader.feed(chunk)
        return [block.freeze() for block in self._blocks[known:]]

    def finish(self) -> list[Complaint]:
        """End the log: a last line without a newline counts too.

        :returns: the complaints that this line added.
        """
        known = len(self._blocks)
        self._reader.finish()
        return [block.freeze() for block in self._blocks[known:]]

    def _begun(self, block: Block) -> bool:
        first_fatal = block.rule.kind.fatal and self._fatal is None
        if first_fatal:
            self._fatal = block
        kept = len(self._blocks) < MAX_COMPLAINTS or first_fatal
        if kept:
            self._blocks.append(block)
        return kept

    def _ended(self, block: Block) -> None:
        """It is in the list already."""


class ReportStream:
    """Hand out the complaints of a log of any length, each once and whole, in bounded memory."""

    def __init__(self) -> None:
        self._waiting: list[Block] = []
        self._ended_blocks: set[int] = set()
        self._reader = BlockReader(self._begun, self._ended)

    def feed(self, chunk: str) -> list[Complaint]:
        """Take the next piece of the log, cut anywhere.

        :returns: the complaints that have ended, in the order of their first lines.
        """
        self._reader.feed(chunk)
        return self._take()

    def finish(self) -> list[Complaint]:
        """End the log.

        :returns: the complaints that are left.
        """
        self._reader.finish()
        return self._take()

    def _begun(self, block: Block) -> bool:
        self._waiting.append(block)
        return True

    def _ended(self, block: Block) -> None:
        self._ended_blocks.add(id(block))

    def _take(self) -> list[Complaint]:
        """The complaints that wait for no earlier one; if too many do, those that have ended."""
        ready: list[Block] = []
        left: list[Block] = []
        for block in self._waiting:
            ended = id(block) in self._ended_blocks
            whole = ended and (not left or len(self._waiting) > MAX_WAITING)
            (ready if whole else left).append(block)
        self._waiting = left
        self._ended_blocks -= {id(block) for block in ready}
        return [block.freeze() for block in ready]


def scan(text: str) -> tuple[Complaint, ...]:
    """All complaints of a whole kernel log, in order; empty if the log is clean."""
    scanner = Scanner()
    scanner.feed(text)
    scanner.finish()
    return scanner.complaints
