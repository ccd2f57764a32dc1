"""The kernel log from /dev/kmsg: numbered records, so that no loss goes unnoticed.

A record is one line, ``PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,NAME=VALUE...];TEXT``; its device's properties follow in
lines that begin with a blank (Documentation/ABI/testing/dev-kmsg; kernel/printk/printk.c, info_print_ext_header() and
msg_add_ext_text()). In TEXT, the backslash and every byte that is not printable ASCII are written as ``\\xNN``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import ProtocolError
from harness.printable import printable

#: The kernel prints both numbers as 64-bit words. int() refuses thousands of digits.
_HEADER = re.compile(
    rb"\d{1,20},(?P<sequence>\d{1,20}),(?P<time_us>\d{1,20}),[^,;]*(?P<more>(?:,[^;]*)?);(?P<text>.*)", re.DOTALL
)
_CALLER = re.compile(rb"(?:^|,)caller=([TC]\d+)(?:,|$)")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record of the kernel log."""

    sequence: int
    """Its number: the kernel counts every record since it booted, kept or not."""
    time_us: int
    """Since it booted."""
    text: str
    """Without escapes; several lines where the kernel printed them at once."""
    caller: str = ""
    """``T12`` for a task, ``C0`` for a CPU, with CONFIG_PRINTK_CALLER."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The record as a console with CONFIG_PRINTK_TIME shows it: every line has the prefix (info_print_prefix())."""
        seconds, micros = divmod(self.time_us, 1_000_000)
        caller = f"[{self.caller:>6}]" if self.caller else ""
        return tuple(f"[{seconds:5d}.{micros:06d}]{caller} {line}" for line in self.text.split("\n"))


@dataclass(frozen=True, slots=True)
class LogPart:
    """Records that were read together."""

    ended: bool
    """There were no more then."""
    records: tuple[LogRecord, ...]

    def gaps(self, due: int) -> tuple[tuple[int, int], ...]:
        """Find where records are missing because they were overwritten before anybody read them.

        :param due: the expected sequence number of the first record.
        :returns: for each gap, the index in :attr:`records` before which it lies, and the number of missing records.
        :raises ProtocolError: the sequence numbers decrease.
        """
        expected = [due, *(record.sequence + 1 for record in self.records)]
        missing = [record.sequence - number for record, number in zip(self.records, expected, strict=False)]
        if any(count < 0 for count in missing):
            raise ProtocolError(f"kmsg: sequence numbers that go back, {due} was due")
        return tuple((index, count) for index, count in enumerate(missing) if count)


def parse_log_part(payload: bytes) -> LogPart:
    """Parse the agent's answer to ``kmsg``: ``1`` or ``0``, a newline, and the records as they were read.

    :raises ProtocolError: the payload has another form.
    """
    ended, _, body = payload.partition(b"\n")
    if ended not in (b"0", b"1"):
        raise ProtocolError(f"kmsg: {ended[:80]!r}, expected 0 or 1")
    return LogPart(ended == b"1", parse_records(body.split(b"\n")[:-1]))


def parse_records(lines: Sequence[bytes]) -> tuple[LogRecord, ...]:
    """Parse records of /dev/kmsg; the properties of devices are left out.

    :raises ProtocolError: a line is neither a record nor a property.
    """
    return tuple(_record(line) for line in lines if not line.startswith(b" "))


def _record(line: bytes) -> LogRecord:
    match = _HEADER.fullmatch(line)
    if match is None:
        raise ProtocolError(f"kmsg: {line[:80]!r} is not a record of /dev/kmsg")
    text = printable(_ESCAPED.sub(lambda escape: bytes([int(escape[1], 16)]), match["text"]))
    caller = _CALLER.search(match["more"])
    return LogRecord(int(match["sequence"]), int(match["time_us"]), text, caller[1].decode() if caller else "")
