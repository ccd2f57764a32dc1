"""Part a kernel log into complaints and the rest.

A complaint is a block: a first line, and a last line that ends it ("---[ end trace", "</TASK>", a ruler, the next
complaint). Several first lines can belong to one event: a page fault in the kernel prints "BUG: unable to handle" and
then "Oops: 0002 [#1]", which is one complaint. Where the log tells who printed a line (CONFIG_PRINTK_CALLER), each
caller has its own block, so the output of CPUs that print at the same time is separated.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.verdict.log.complaint_kinds import DYING, ComplaintKind, Rule
from harness.verdict.log.complaints import Complaint
from harness.verdict.log.first_lines import TRIGGERS, classify
from harness.verdict.log.lines import split_caller

MAX_QUIET_LINES = 200
"""A block that nothing closes ends after so many lines without a function: the longest lists of registers, pages and
tasks are shorter."""

MAX_BLOCK_LINES = 2000
"""A block ends after so many lines: a stack that overflowed has up to a thousand."""

MAX_BLOCK_CHARS = 128 * 1024
"""The same for its length, so that lines of the greatest length do not fill the memory."""

MAX_SILENT_LINES = 1000
"""A block ends once others have printed so many lines since its caller last did."""

MAX_CALLERS = 64
"""So many blocks are open at once."""

MAX_CAUSES = 8
"""So many complaints of one caller wait for the same stack."""

MAX_LEAD_LINES = 16
"""So many lines between "cut here" and the first line proper belong to it: the text of a WARN() of older kernels."""

MAX_LINE_CHARS = 4096
"""What a line has beyond this is dropped: printk's longest record has a quarter of it (PRINTKRB_RECORD_MAX)."""

_CUT_HERE = re.compile(r"-+\[ cut here \]-+$")
_LITERALS = (*TRIGGERS, "[ cut here ]", "hugepfn: checkpoint ")
"""A line without any of these begins nothing."""
_DIE_COUNTER = re.compile(r".*\[#\d+\]")
_CHECKPOINT = re.compile(r"hugepfn: checkpoint (?P<name>\S+) pid (?P<pid>\d{1,10})$")
_TELLING = re.compile(r" ?</|---\[ end |R[A-Z0-9]{2}: |Code: |CPU: \d|[A-Z][A-Z0-9]{1,2}: {1,2}[0-9a-f]{4,}")
_ALL_CPUS = "Sending NMI from CPU"
_CALL_TRACE = re.compile(r" *Call [Tt]race:")


@dataclass
class Block:
    """A complaint whose block is still being read."""

    rule: Rule
    line: str
    number: int
    after: str
    begin: int
    lines: list[str] = field(default_factory=list)
    size_chars: int = 0
    end: int = 0
    died: bool = False
    """True once the block has a line with a die counter, "[#1]": the next such line is another oops."""
    traced: bool = False
    """True once it has a call trace."""
    all_cpus: bool = False
    """True once it asked the other CPUs for their stacks, which they print themselves."""
    quiet_lines: int = 0
    mixed: bool = False
    telling: tuple[int, int] = (0, 0)
    """How many lines there are up to the last one that has to do with a stack, and where that one stands."""
    cause: Block | None = None
    """A complaint that has led to this one before it had a stack; the stack is of both."""

    def take(self, line: str, text: str, number: int) -> None:
        """Take one more line."""
        self.lines.append(line)
        self.end = number
        self.size_chars += len(line) + 1
        self.quiet_lines = 0 if "+0x" in text else self.quiet_lines + 1
        if not self.quiet_lines or _TELLING.match(text):
            self.telling = len(self.lines), number
        self.died = self.died or _DIE_COUNTER.match(text) is not None
        self.traced = self.traced or _CALL_TRACE.match(text) is not None
        self.all_cpus = self.all_cpus or _ALL_CPUS in text
        if self.cause:
            self.cause.take(line, text, number)

    def cut(self) -> None:
        """Leave out what follows the last stack, as nothing ended the block: anybody may have printed it."""
        keep, end = self.telling
        if keep and keep < len(self.lines):
            del self.lines[keep:]
            self.end = end

    @property
    def full(self) -> bool:
        """True if no more is read."""
        return (
            len(self.lines) >= MAX_BLOCK_LINES
            or self.quiet_lines >= MAX_QUIET_LINES
            or self.size_chars >= MAX_BLOCK_CHARS
        )

    def freeze(self) -> Complaint:
        kind, lines = self.rule.kind, "\n".join(self.lines)
        return Complaint(kind, self.line, lines, self.after, self.number, self.begin, self.end, self.mixed)


@dataclass
class _Lead:
    """Lines after "cut here", before the first line proper."""

    begin: int
    lines: list[str]


class _Hits:
    """Where the literals that can begin a block are in a text; every literal reads the text once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._next = [(self._find(literal, 0), literal) for literal in _LITERALS]

    def after(self, start: int) -> int:
        """The first position from `start` on, which never decreases; the length of the text if there is none."""
        if min(self._next)[0] < start:
            self._next = [(at if at >= start else self._find(one, start), one) for at, one in self._next]
        return min(self._next)[0]

    def _find(self, literal: str, start: int) -> int:
        found = self._text.find(literal, start)
        return len(self._text) if found < 0 else found


class BlockReader:
    """Read a log that arrives in pieces, and hand out each block once it has ended."""

    def __init__(self, begun: Callable[[Block], bool], ended: Callable[[Block], None]) -> None:
        """Begin with an empty log.

        :param begun: called with each new block, which has its first line by then; False to pass over its other lines.
        :param ended: called with each of the others, once it is whole.
        """
        self._begun = begun
        self._ended = ended
        self._partial = ""
        self._number = 0
        self._open: dict[str, Block] = {}
        self._leads: dict[str, _Lead] = {}
        self.checkpoint = ""

    def feed(self, chunk: str) -> None:
        """Take the next piece of the log, cut anywhere. A line counts once its newline has arrived."""
        whole, newline, rest = chunk.rpartition("\n")
        if newline:
            self._take_lines(self._partial + whole + newline)
            self._partial = ""
        self._partial = (self._partial + rest)[:MAX_LINE_CHARS]

    def finish(self) -> None:
        """End the log: a last line without a newline counts too, and every block ends."""
        if self._partial:
            self.feed("\n")
        for caller in list(self._open):
            self._close(caller)

    def _take_lines(self, text: str) -> None:
        """Take complete lines. Outside of a block, those that cannot begin one are only counted.

        :param text: ends with a newline.
        """
        hits = _Hits(text)
        start = 0
        while start < len(text):
            hit = hits.after(start)
            if not self._open and not self._leads:
                first = text.rfind("\n", start, hit) + 1 or start
                self._number += text.count("\n", start, first)
                start = first
                if start == len(text):
                    return
            end = text.index("\n", start)
            self._take(text[start : min(end, start + MAX_LINE_CHARS)].rstrip("\r"), may_begin=hit < end)
            start = end + 1

    def _take(self, line: str, *, may_begin: bool) -> None:
        self._number += 1
        caller, text = split_caller(line)
        if not may_begin:
            self._continue(caller, line, text)
            return
        if _CUT_HERE.match(text) and not self._may_cut(caller):
            if self._untraced(caller) is None or not caller:
                self._close(caller)
            self._leads[caller] = _Lead(self._number, [line])
            self._forget(self._leads)
            return
        if match := _CHECKPOINT.match(text):
            self.checkpoint = match["name"]
        rule = classify(text)
        if rule is not None and not self._continues(caller, rule, text):
            self._begin(caller, rule, line, text)
        else:
            self._continue(caller, line, text)

    def _may_cut(self, caller: str) -> bool:
        """True if "cut here" stands in the middle of the open block: Rust's panic() ends in BUG()."""
        block = self._open.get(caller)
        return block is not None and block.rule.kind is ComplaintKind.RUST_PANIC and not block.died

    def _continue(self, caller: str, line: str, text: str) -> None:
        block = self._open.get(caller)
        if block is None and caller.startswith("C"):
            caller, block = next(((who, one) for who, one in self._open.items() if one.all_cpus), (caller, None))
        if lead := self._leads.get(caller):
            lead.lines.append(line)
            if len(lead.lines) > MAX_LEAD_LINES:
                del self._leads[caller]
        if block is not None:
            self._extend(caller, block, line, text)
        self._forget_silent()

    def _begin(self, caller: str, rule: Rule, line: str, text: str) -> None:
        cause = None
        if rule.end is not None:
            cause = self._cause(caller, rule)
            self._close(caller)
        lead = self._leads.pop(caller, _Lead(self._number, []))
        block = Block(rule, text, self._number, self.checkpoint, lead.begin, [*lead.lines, line])
        block.end = self._number
        block.size_chars = sum(map(len, block.lines))
        block.died = _DIE_COUNTER.match(text) is not None
        if not self._begun(block):
            if cause:
                self._ended(cause)
            return
        block.cause = cause
        if cause:
            cause.take(line, text, self._number)
        if rule.end is None:
            self._ended(block)
            return
        self._open[caller] = block
        if len(self._open) > MAX_CALLERS:
            self._close(next(iter(self._open)))

    def _cause(self, caller: str, rule: Rule) -> Block | None:
        """The open block that has led to a new one: what it has not told yet comes with the new one.

        With panic_on_warn, a warning's stack is printed by panic(). A caller that has more to say in the middle of
        something says it about the same event, too; from a log without callers that cannot be known.
        """
        block = self._untraced(caller)
        if block is None:
            return None
        if caller or rule.kind is ComplaintKind.PANIC:
            self._end_first_cause(block)
            return self._open.pop(caller)
        block.mixed = True
        return None

    def _end_first_cause(self, block: Block) -> None:
        """End the oldest complaint that waits for the stack of this one, if there are too many."""
        later = block
        for _ in range(MAX_CAUSES - 1):
            if block.cause is None:
                return
            later, block = block, block.cause
        later.cause = None
        block.cut()
        self._ended(block)

    def _untraced(self, caller: str) -> Block | None:
        """The open block if it needs a stack and has none yet."""
        block = self._open.get(caller)
        return block if block is not None and block.rule.sources and not block.traced else None

    def _extend(self, caller: str, block: Block, line: str, text: str) -> None:
        block.take(line, text, self._number)
        ended = block.rule.end is not None and block.rule.end.match(text) is not None
        if ended or block.full:
            self._close(caller, whole=ended)

    def _close(self, caller: str, *, whole: bool = False) -> None:
        """End a caller's block.

        :param whole: its own last line has ended it.
        """
        block = self._open.pop(caller, None)
        while block:
            if not whole:
                block.cut()
            self._ended(block)
            block = block.cause

    def _forget_silent(self) -> None:
        """End blocks and leads whose caller has said nothing for long."""
        since = self._number - MAX_SILENT_LINES
        if since > 0 and any(block.end < since for block in self._open.values()):
            for caller in [who for who, block in self._open.items() if block.end < since]:
                self._close(caller)
        if since > 0 and any(lead.begin < since for lead in self._leads.values()):
            self._leads = {who: lead for who, lead in self._leads.items() if lead.begin >= since}

    @staticmethod
    def _forget(leads: dict[str, _Lead]) -> None:
        if len(leads) > MAX_CALLERS:
            del leads[next(iter(leads))]

    def _continues(self, caller: str, rule: Rule, text: str) -> bool:
        """True if this first line belongs to the open block, because both report the same event."""
        block = self._open.get(caller)
        if block is None:
            return False
        if block.rule.kind in DYING and rule.kind in DYING:
            # "BUG: unable to handle ..." continues with "Oops: 0002 [#1]"; what follows after that is a new event.
            return not block.died
        match block.rule.kind, rule.kind:
            case ComplaintKind.OOM, ComplaintKind.OOM:
                return block.rule.end is not None and block.rule.end.match(text) is not None
            case ComplaintKind.KMEMLEAK, ComplaintKind.KMEMLEAK:
                return len(block.lines) == 1
        return False
