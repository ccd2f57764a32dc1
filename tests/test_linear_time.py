"""Checks that every reader of a guest's bytes takes linear time, and that the log's reader takes bounded memory.

Where possible, work is counted: the calls of functions, in Python and in C, for n and for 4n of an input that was
made to be hard. A clock says little on a busy host. But work inside one call is not counted: an expression that tries
ever more ways to match, or a string that is copied for each piece. For these, the CPU time of n and 8n is compared.
A quadratic reader takes 64 times as long; the bound is 24, and the least of three measurements counts. The bound is so
generous because the ratio of a linear reader is between 6 and 12 here (caches, allocations). Inputs are so large that
each measurement takes more than a timer's tick, and a reader that is far too slow is stopped.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from harness.errors import ProtocolError
from harness.guest.event_lines import LineDecoder
from harness.guest.protocol import FrameDecoder, parse_event, parse_ready
from harness.printable import PrintableDecoder, printable
from harness.verdict import parse_log_part
from harness.verdict.ktap.parse import MAX_DEPTH, parse
from harness.verdict.log.blocks import MAX_CAUSES, MAX_LINE_CHARS
from harness.verdict.log.first_lines import RULES
from harness.verdict.log.frames import stacks
from harness.verdict.log.running_task import running_task
from harness.verdict.log.rust_names import demangled
from harness.verdict.log.scanner import MAX_COMPLAINTS, ReportStream, Scanner, scan
from tests.cpu_time import at_most
from tests.dmesg_logs import logs


def read_log(text: str) -> None:
    """Read a log, and everything in its complaints."""
    stream = ReportStream()
    for start in range(0, len(text), 5000):
        for one in stream.feed(text[start : start + 5000]):
            one.to_json()
    for one in stream.finish():
        one.to_json()


def read_kept_log(text: str) -> None:
    """Read a log whose complaints are kept."""
    scanner = Scanner()
    for start in range(0, len(text), 5000):
        scanner.feed(text[start : start + 5000])
    assert len(scanner.complaints) <= MAX_COMPLAINTS + 1


def read_ktap(text: str) -> None:
    """Read a report."""
    parse(text, headless=True)


def read_events(text: str) -> None:
    """Read the events channel."""
    decoder = LineDecoder()
    data = text.encode()
    try:
        for start in range(0, len(data), 5000):
            for line in decoder.feed(data[start : start + 5000]):
                parse_event(line)
    except ProtocolError:
        pass


def read_frames(text: str) -> None:
    """Read the agent's channel."""
    decoder = FrameDecoder()
    data = text.encode()
    try:
        for start in range(0, len(data), 5000):
            for frame in decoder.feed(data[start : start + 5000]):
                parse_ready(frame.text)
    except ProtocolError:
        pass


def read_kmsg(text: str) -> None:
    """Read records of /dev/kmsg."""
    try:
        for record in parse_log_part(b"1\n" + text.encode()).records:
            assert record.lines
    except ProtocolError:
        pass


def read_text(text: str) -> None:
    """Make text printable, at once and in pieces."""
    printable(text)
    decoder, data = PrintableDecoder(), text.encode()
    for start in range(0, len(data), 5000):
        decoder.feed(data[start : start + 5000])


def read_symbol(text: str) -> None:
    """Decode the name of a symbol."""
    assert demangled(text)


Reader = Callable[[str], None]
T1, C1 = "[    1.000000][    T1] ", "[    1.000000][    C1] "
OPEN = f"{T1}BUG: KASAN: use-after-free in f+0x1/0x2\n"


def nested(unit: str, last: str) -> Callable[[int], str]:
    """A KTAP report whose lines are indented more and more, up to 300 levels."""
    return lambda n: "KTAP version 1\n1..1\n" + "".join(unit * (i % 300) + last for i in range(1, n))


def callers(n: int) -> str:
    """A log in which every complaint comes from another caller."""
    return "".join(f"[    1.000000][{f'T{i}':>6}] BUG: scheduling while atomic\n f+0x1/0x2\n" for i in range(n))


# (reader, function that makes the input of size n)
LINES: dict[str, tuple[Reader, Callable[[int], str]]] = {
    "ordinary lines": (read_log, lambda n: "[    1.000000] usb 1-1: new device\n" * n),
    "first lines": (read_log, lambda n: "BUG: x\n" * n),
    "first lines of one caller": (read_log, lambda n: f"{T1}BUG: scheduling while atomic\n" * n),
    "warnings of one caller": (read_log, lambda n: f"{T1}------------[ cut here ]------------\n" * n),
    "many callers": (read_log, callers),
    "an open complaint": (read_log, lambda n: OPEN + f"{C1}usb 1-1: new device\n" * n),
    "an open complaint and others": (read_log, lambda n: OPEN + f"{C1}BUG: Bad rss-counter state mm:1\n" * n),
    "frames": (read_log, lambda n: OPEN + f"{T1} f+0x1/0x2\n" * n),
    "headings": (read_log, lambda n: (OPEN + f"{T1}Call Trace:\n" * 20) * (n // 20)),
    "golden logs": (read_log, lambda n: "".join(log.text + "\n" for log in logs()[:8]) * (n // 100)),
    "panics": (read_kept_log, lambda n: "BUG: x\n" * MAX_COMPLAINTS + "Kernel panic - not syncing: x\n" * n),
    "literals without a first line": (read_log, lambda n: "a BUG WARNING [#1] VFS: UBSAN: \n" * n),
    "empty lines": (read_log, lambda n: "\n" * n),
    "results": (read_ktap, lambda n: "KTAP version 1\n1..9\n" + "ok 1 a\n" * n),
    "results in order": (read_ktap, lambda n: "KTAP version 1\n" + "".join(f"ok {i} a\n" for i in range(1, n))),
    "huge plans": (read_ktap, lambda n: "KTAP version 1\n" + "1..999999999\n" * n),
    "huge plans of subtests": (read_ktap, lambda n: "KTAP version 1\n1..9\n" + "  1..999999999\nok 1 a\n" * n),
    "huge numbers": (read_ktap, lambda n: "KTAP version 1\n1..999999999\n" + "ok 999999999 a\n" * n),
    "open subtests": (read_ktap, lambda n: "KTAP version 1\n1..9\n" + "  KTAP version 1\n  ok 1 a\n" * n),
    "open subtests of kunit": (read_ktap, lambda n: "KTAP version 1\n1..9\n" + "    # Subtest: s\n    1..3\n" * n),
    "levels of blanks": (read_ktap, nested(" ", "KTAP version 1\n")),
    "levels of tabs": (read_ktap, nested("\t", "1..2\n")),
    "levels of kselftest": (read_ktap, nested("# ", "KTAP version 1\n")),
    "levels that bail out": (read_ktap, lambda n: "KTAP version 1\n" + ("  KTAP version 1\n  ok 1\nBail out!\n") * n),
    "deep levels and no result": (
        read_ktap,
        lambda n: "KTAP version 1\n" + "".join(" " * i + "1..1\n" for i in range(MAX_DEPTH)) + " " * 40 + "x\n" * n,
    ),
    "diagnostics": (read_ktap, lambda n: "KTAP version 1\n1..1\n" + "# x\n" * n),
    "strangers": (read_ktap, lambda n: "[    1.0] KTAP version 1\n[    1.0] 1..1\n" + "x\n" * n),
    "events": (read_events, lambda n: "gone 1\n" * n),
    "pagemap words": (read_events, lambda n: ("pagemap bar 1 " + "0*1 " * 511 + "0*1\n") * (n // 100)),
    "runs of pagemap words": (read_events, lambda n: "pagemap bar 1 0*512\n" * (n // 10)),
    "frames of nothing": (read_frames, lambda n: "x 1 0\n" * n),
    "records": (read_kmsg, lambda n: "6,1,1,-;x\n" * n),
    "properties": (read_kmsg, lambda n: " A=B\n" * n),
    "escapes": (read_kmsg, lambda n: "6,1,1,-;" + "\\x41" * n + "\n"),
}


def calls(function: Callable[[], object]) -> int:
    """Count the calls of functions, in Python and in C."""
    count = 0

    def count_one(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count_one)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("name", LINES)
def test_work_is_proportional_to_the_input(name: str) -> None:
    read, made = LINES[name]
    few, many = made(300), made(1200)
    assert 3 <= len(many) / len(few) <= 5 or "levels" in name or read is read_kept_log
    read(few)  # compiles the expressions, which happens only once
    assert calls(lambda: read(many)) <= 4.4 * calls(lambda: read(few)) + 500


def cpu_s(function: Callable[[], object]) -> float:
    """The smallest of three measurements, or the first one if it is long enough."""
    times = []
    for _ in range(3):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
        if times[0] > 0.5:
            break
    return min(times)


RATIO_MAX = 24
NOISE_S = 0.01
"""Less than this is measured as this: eight times it is far below the bound."""


def assert_linear(function: Callable[[int], object], n: int) -> None:
    """Compare the CPU time of n and 8n."""
    with at_most(20):
        few = max(cpu_s(lambda: function(n)), NOISE_S)
        assert cpu_s(lambda: function(8 * n)) <= RATIO_MAX * few


# One line of n characters, or a stream without a newline.
LONG: dict[str, tuple[Reader, Callable[[int], str], int]] = {
    "no newline": (read_log, lambda n: "BUG: no end " * n, 30_000),
    "an event without a newline": (read_events, lambda n: "x" * n, 500_000),
    "a header without a newline": (read_frames, lambda n: "x" * n, 500_000),
    "a frame in pieces": (read_frames, lambda n: f"x 1 {n}\n" + "x" * n, 500_000),
    "frames of nothing": (read_frames, lambda n: "x 1 0\n" * n, 3000),
    "carriage returns": (read_text, lambda n: "\r" * n, 50_000),
    "carriage returns and text": (read_text, lambda n: "\r" * n + "x", 50_000),
    "carriage returns and a newline": (read_text, lambda n: "\r" * n + "\n", 50_000),
    "escapes": (read_text, lambda n: "\x1b[" * n, 50_000),
    "a record without an end": (read_kmsg, lambda n: "6,1,1,-" + "x" * n + "\n", 4000),
    "a record of commas": (read_kmsg, lambda n: "6,1,1" + ",x" * n + "\n", 4000),
    "a record of digits": (read_kmsg, lambda n: "6," + "1" * n + ",1,-;x\n", 4000),
    "callers of a record": (read_kmsg, lambda n: "6,1,1,-" + ",caller=T" * n + ";x\n", 4000),
    "a word of pagemap": (read_events, lambda n: "pagemap bar 1 " + "0" * n + "\n", 1500),
    "blanks before a version": (read_ktap, lambda n: " " * n + "x\n", 20_000),
    "hashes before a version": (read_ktap, lambda n: "# " * n + "x\n", 20_000),
    "tabs": (read_ktap, lambda n: "KTAP version 1\n" + "\t" * n + "1..1\n" + "\t" * n + "ok 1\n", 20_000),
    "blanks after a version": (read_ktap, lambda n: "KTAP version 1" + " " * n + "x\n", 20_000),
    "blanks after a plan": (read_ktap, lambda n: "KTAP version 1\n1..1" + " " * n + "x\n", 20_000),
    "a plan of hashes": (read_ktap, lambda n: "KTAP version 1\n1..1" + " #" * n + "\n", 20_000),
    "blanks in a result": (read_ktap, lambda n: "KTAP version 1\nok 1" + " " * n + "# " * n + "x\n", 20_000),
    "hashes in a result": (read_ktap, lambda n: "KTAP version 1\nok 1 " + "\\#" * n + "x\n", 20_000),
    "a name of back references": (read_symbol, lambda n: "_RT" + "T" * n + "B_" * n, 20_000),
    "a name of constants": (read_symbol, lambda n: "_RINvC1a1b" + "Kh0_" * n, 20_000),
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_line_takes_linear_time(name: str) -> None:
    read, made, n = LONG[name]
    assert_linear(lambda size: read(made(size)), n)


#: Starts of lines that match the beginning of many rules, and text to repeat after them.
BEGINNINGS = (
    *("", "WARNING: ", "WARNING: at ", "WARNING: CPU: 1 PID: 1 at ", "WARNING: a:1 at b, CPU#1: ", "BUG: "),
    *("BUG: KCSAN: ", "kernel BUG at ", "INFO: task ", "UBSAN: ", "Oops: ", "Oops: stack segment", "BUG a (Not "),
    *("BUG: Dentry ", "[ INFO: ", "EXT4-fs error (device ", "XFS (", "BTRFS critical (device ", "BUG "),
    *("Kernel panic - not syncing: ", "CPU: 1 PID: 1 Comm: ", "Tainted: ", " ? f.", "RIP: 0010:", "#0:  at: [<"),
    *(" a at: f.", "[<", "Freed by task 1"),
)
REPEATED = (
    *(" ", "a", "1", "/", ":", ".", "a ", "1 ", ":1", "/1", "/:1 at ", ": ", ", ", "[", "[#", " in ", " at: ", "a.b"),
    *("a:1 at b, CPU#1: c/1 ", ":1 blocked for ", "/1 is trying to ", "(x) ", "->", "x\t", "\\x1b[0m", "A ", "? f.a"),
)


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_no_expression_of_the_log_backtracks(beginning: str) -> None:
    """The longest line that the reader looks at has MAX_LINE_CHARS, eight times the shorter one here."""
    details = {rule.detail for rule in RULES if rule.detail is not None}

    def read(length: int) -> None:
        for part in REPEATED:
            line = (beginning + part * length)[: length - 1] + "x"
            scan(f"{line}\n")
            stacks([line])
            running_task([line])
            for detail in details:
                detail.search(line)

    assert_linear(read, MAX_LINE_CHARS // 8)


def test_the_open_complaints_of_one_caller_are_limited() -> None:
    """Each complaint waits for the stack of the next one. Without a limit, 1,000 of them ended in RecursionError."""
    count = 3000
    stream = ReportStream()
    found = stream.feed(f"{T1}BUG: scheduling while atomic\n" * count)
    assert count - MAX_CAUSES - 1 <= len(found) <= count
    found += stream.feed(f"{T1}Call Trace:\n{T1} f+0x1/0x2\n") + stream.finish()
    assert len(found) == count
    assert [one.number for one in found] == [*range(1, count + 1)]
    with_stack = [one for one in found if "f+0x1" in one.excerpt]
    assert with_stack == found[-MAX_CAUSES:]


def test_fifty_megabytes_are_read_in_bounded_memory() -> None:
    """The input is mostly ordinary lines with a few reports, then one line without an end."""
    piece = (logs()[20].text + "\n" + "[    1.000000] usb 1-1: new high-speed device number 7\n" * 9000)[:500_000]
    endless = "BUG: no end " * 40_000
    stream, scanner, found = ReportStream(), Scanner(), 0
    tracemalloc.start()
    try:
        for one in (piece, endless):
            for _ in range(50_000_000 // 2 // len(one)):
                found += len(stream.feed(one))
                scanner.feed(one)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found >= 40
    assert peak < 8 << 20
