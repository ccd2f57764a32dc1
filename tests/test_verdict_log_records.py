"""Tests for records of /dev/kmsg: escapes are decoded, properties are left out, and gaps are noticed."""

from __future__ import annotations

import pytest

from harness.errors import ProtocolError
from harness.verdict import LogPart, LogRecord, parse_log_part, scan

# Read on debian:6.12 (no PRINTK_CALLER), with a device's properties and a message of two lines.
REAL = rb"""1
4,0,0,-;Linux version 6.12.117 (gcc-14) #1 SMP
6,1,1017,-;pci 0000:00:05.0: [1b36:0005] type 00
 SUBSYSTEM=pci
 DEVICE=+pci:0000:00:05.0
12,2,2722452,-;hugepfn: checkpoint read pid 130
3,3,3000001,-,caller=T77;first\x0asecond \x5cx41 \xc3\xa4\x1b[31m
"""


def test_records() -> None:
    part = parse_log_part(REAL)
    assert part.ended
    assert [record.sequence for record in part.records] == [0, 1, 2, 3]
    assert part.records[2] == LogRecord(2, 2722452, "hugepfn: checkpoint read pid 130")
    assert part.records[2].lines == ("[    2.722452] hugepfn: checkpoint read pid 130",)
    assert part.records[3].text == "first\nsecond \\x41 \u00e4\\x1b[31m"
    assert part.records[3].lines == (
        "[    3.000001][   T77] first",
        "[    3.000001][   T77] second \\x41 \u00e4\\x1b[31m",
    )


def test_nothing_new() -> None:
    assert parse_log_part(b"1\n") == LogPart(True, ())
    assert not parse_log_part(b"0\n6,1,2,-;text\n").ended


@pytest.mark.parametrize("payload", [b"", b"2\n", b"1\nwords\n", b"1\n6,1,-;no time\n", b"6,1,2,-;no head\n"])
def test_malformed_records_are_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="kmsg"):
        parse_log_part(payload)


@pytest.mark.parametrize(
    ("numbers", "due", "gaps"),
    [([5, 6, 7], 5, ()), ([5, 6, 9], 5, ((2, 2),)), ([8, 9], 5, ((0, 3),)), ([], 5, ()), ([1, 3, 5], 0, None)],
)
def test_gaps(numbers: list[int], due: int, gaps: tuple[tuple[int, int], ...] | None) -> None:
    part = LogPart(True, tuple(LogRecord(number, 0, "x") for number in numbers))
    assert part.gaps(due) == (gaps if gaps is not None else ((0, 1), (1, 1), (2, 1)))


def test_decreasing_numbers_are_an_error() -> None:
    with pytest.raises(ProtocolError, match="go back"):
        LogPart(True, (LogRecord(4, 0, "x"),)).gaps(5)


def test_a_complaint_below_the_console_level_is_found() -> None:
    part = parse_log_part(b"1\n4,7,1000,-;rcu: INFO: rcu_sched self-detected stall on CPU\n")
    (complaint,) = scan("\n".join(part.records[0].lines))
    assert complaint.line == "rcu: INFO: rcu_sched self-detected stall on CPU"
