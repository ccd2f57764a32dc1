"""Find the complaints in a kernel log, either all at once or while the log is still growing.

A complaint is a block. Its first line says what it is, later lines have registers and a stack, and a last line ends it
("---[ end trace", "</TASK>", a ruler, the next complaint). Several first lines can belong to one event: a page fault in
the kernel prints "BUG: unable to handle" and then "Oops: 0002 [#1]", which is one complaint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from harness.verdict.log.complaint_kinds import TRIGGERS, ComplaintKind, Rule, classify
from harness.verdict.log.lines import message

MAX_BLOCK_LINES = 120
"""A block that nothing closes ends after so many lines: lockdep's longest reports are shorter."""

MAX_LEAD_LINES = 16
"""So many lines between "cut here" and the first line proper belong to it: the text of a WARN() of older kernels."""

MAX_LINE_CHARS = 4096
"""What a line has beyond this is dropped: printk's longest record has a quarter of it (PRINTKRB_RECORD_MAX)."""

MAX_COMPLAINTS = 1000
"""So many complaints are kept, and the first fatal one: a guest must not fill the host's memory."""

_CUT_HERE = re.compile(r"-+\[ cut here \]-+$")
_LITERALS = (*TRIGGERS, "[ cut here ]", "hugepfn: checkpoint ")
"""A line without any of these begins nothing."""
_RIP = re.compile(r"RIP: 0010:([\w.]+)\+0x")
_FRAME = re.compile(r"(\? )?([A-Za-z_][\w.]*)\+0x[0-9a-f]+/0x[0-9a-f]+")
_FRAMES = 8
"""So many functions tell one bug from another, some of them guesses."""

_INT3 = re.compile(r"(?:Oops: )?int3: ")
_CODE = re.compile(r"Code: .*\b(?P<before>[0-9a-f]{2}) <[0-9a-f]{2}>")  # after a breakpoint, RIP points behind it
_DIE_COUNTER = re.compile(r".*\[#\d+\]")
_CHECKPOINT = re.compile(r"hugepfn: checkpoint (?P<name>\S+) pid (?P<pid>\d{1,10})$")


@dataclass(frozen=True)
class Complaint:
    """One thing the kernel complained about."""

    kind: ComplaintKind
    line: str
    """The message that gave it away, without printk's prefix."""
    excerpt: str
    """The whole block as the log has it, timestamps included, lines parted by newlines."""
    after: str
    """Name of the last checkpoint written to the log before it; "" if there was none."""
    number: int
    """Where `line` stands in the log, counted from 1."""

    @property
    def trace(self) -> tuple[str, ...]:
        """The functions of the trace, innermost first: that of RIP, then the call trace.

        Guesses ("? ...") are left out unless there is nothing else (CONFIG_UNWINDER_GUESS).
        """
        own = [message(line).strip() for line in self.excerpt.splitlines()]
        rip = [match[1] for line in own if (match := _RIP.match(line))][:1]
        called = [(match[1], match[2]) for line in own if (match := _FRAME.match(line))]
        sure = [name for guess, name in called if not guess]
        return tuple(dict.fromkeys([*rip, *(sure or [name for _, name in called])]))

    @property
    def where(self) -> str:
        """The innermost functions, in words: "in f(), from g(), h()"; "" if the log has no trace."""
        names = [f"{name}()" for name in self.trace[:_FRAMES]]
        return f"in {names[0]}" + (f", from {', '.join(names[1:])}" if names[1:] else "") if names else ""

    @property
    def stale_breakpoint(self) -> bool:
        """True for a breakpoint exception without a breakpoint in memory: the CPU ran a replaced instruction.

        Code patching ends with an IPI to every CPU (arch/x86/kernel/alternative.c, text_poke_sync()), after which a
        processor sees what is in memory. QEMU's TCG before 8.1 sometimes does not, with several vCPUs.
        """
        if not _INT3.match(self.line):
            return False
        code = next((match for line in self.excerpt.splitlines() if (match := _CODE.match(message(line)))), None)
        return code is not None and code["before"] != "cc"

    @property
    def fatal(self) -> bool:
        """True if nothing more can be expected from the guest (:attr:`ComplaintKind.fatal`)."""
        return self.kind.fatal


@dataclass
class _Block:
    """A complaint whose block is still being read."""

    rule: Rule
    line: str
    number: int
    after: str
    lines: list[str] = field(default_factory=list)
    died: bool = False
    """True once the block has a line with a die counter, "[#1]": the next such line is another oops."""

    def freeze(self) -> Complaint:
        return Complaint(self.rule.kind, self.line, "\n".join(self.lines), self.after, self.number)


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


class Scanner:
    """Scan a log that arrives in pieces.

    Each complaint is returned once, by the :meth:`feed` that completed its first line, with as much of its block as has
    arrived; :attr:`complaints` has the whole blocks. A line counts once its newline has arrived.
    """

    def __init__(self) -> None:
        self._partial = ""
        self._number = 0
        self._checkpoint = ""
        self._blocks: list[_Block] = []
        self._open: _Block | None = None
        self._lead: list[str] | None = None

    @property
    def complaints(self) -> tuple[Complaint, ...]:
        """Every complaint so far, in the order of the log, with its block as far as it is known."""
        return tuple(block.freeze() for block in self._blocks)

    @property
    def last_checkpoint(self) -> str:
        """Name of the last checkpoint seen; "" if there was none."""
        return self._checkpoint

    @property
    def fatal(self) -> Complaint | None:
        """The first fatal complaint so far, or None."""
        return next((block.freeze() for block in self._blocks if block.rule.kind.fatal), None)

    def feed(self, chunk: str) -> list[Complaint]:
        """Take the next piece of the log, cut anywhere.

        :returns: the complaints whose first line ended in this piece.
        """
        known = len(self._blocks)
        whole, newline, rest = chunk.rpartition("\n")
        if newline:
            self._take_lines(self._partial + whole + newline)
            self._partial = ""
        self._partial = (self._partial + rest)[:MAX_LINE_CHARS]
        return [block.freeze() for block in self._blocks[known:]]

    def finish(self) -> list[Complaint]:
        """End the log: a last line without a newline counts too.

        :returns: the complaints that this line added.
        """
        return self.feed("\n") if self._partial else []

    def _take_lines(self, text: str) -> None:
        """Take complete lines. Outside of a block, those that cannot begin one are only counted.

        :param text: ends with a newline.
        """
        hits = _Hits(text)
        start = 0
        while start < len(text):
            hit = hits.after(start)
            if self._open is None and self._lead is None:
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
        text = message(line)
        if not may_begin:
            self._continue(line, text)
            return
        if _CUT_HERE.match(text):
            self._open = None
            self._lead = [line]
            return
        if match := _CHECKPOINT.match(text):
            self._checkpoint = match["name"]
        rule = classify(text)
        if rule is not None and not self._continues(rule, text):
            self._begin(rule, line, text)
        else:
            self._continue(line, text)

    def _continue(self, line: str, text: str) -> None:
        if self._open is not None:
            self._extend(self._open, line, text)
        elif self._lead is not None:
            self._lead.append(line)
            if len(self._lead) > MAX_LEAD_LINES:
                self._lead = None

    def _begin(self, rule: Rule, line: str, text: str) -> None:
        block = _Block(rule, text, self._number, self._checkpoint, [*(self._lead or ()), line])
        block.died = _DIE_COUNTER.match(text) is not None
        self._lead = None
        if len(self._blocks) >= MAX_COMPLAINTS and (not rule.kind.fatal or self.fatal):
            self._open = None
            return
        self._blocks.append(block)
        self._open = None if rule.end is None else block

    def _extend(self, block: _Block, line: str, text: str) -> None:
        block.lines.append(line)
        block.died = block.died or _DIE_COUNTER.match(text) is not None
        ended = block.rule.end is not None and block.rule.end.match(text) is not None
        if ended or len(block.lines) >= MAX_BLOCK_LINES:
            self._open = None

    def _continues(self, rule: Rule, text: str) -> bool:
        """True if this first line belongs to the open block, because both report the same event."""
        block = self._open
        if block is None:
            return False
        match block.rule.kind, rule.kind:
            case ((ComplaintKind.OOPS | ComplaintKind.PAGE_TABLE_CHECK), ComplaintKind.OOPS):
                # "BUG: unable to handle ..." continues with "Oops: 0002 [#1]"; what follows after that is a new event.
                return not block.died
            case ComplaintKind.OOM, ComplaintKind.OOM:
                return block.rule.end is not None and block.rule.end.match(text) is not None
        return False


def scan(text: str) -> tuple[Complaint, ...]:
    """All complaints of a whole kernel log, in order; empty if the log is clean."""
    scanner = Scanner()
    scanner.feed(text)
    scanner.finish()
    return scanner.complaints
