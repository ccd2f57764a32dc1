"""The readers of a guest's bytes, each as a function of bytes, for tests/test_fuzz.py and tests/fuzz/run.py.

A target reads the bytes as hugepfn does, ignores the errors that the reader documents, and asserts what holds for
every input: the pieces in which a stream arrives do not matter, and what comes out is printable and bounded. Every
other exception is a finding.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from harness.errors import AgentRefused, ProtocolError
from harness.guest import bounds
from harness.guest.agent import Agent
from harness.guest.emulator import Emulator
from harness.guest.event_lines import LineDecoder
from harness.guest.job import ExitStatus, Job
from harness.guest.kernel_log import KernelLog, LogMark
from harness.guest.protocol import (
    Frame,
    FrameDecoder,
    PagemapEvent,
    parse_event,
    parse_ready,
    parse_refusal,
)
from harness.pagetable import PagemapWord
from harness.printable import PrintableDecoder, printable
from harness.verdict import parse_log_part
from harness.verdict.ktap.parse import MAX_DEPTH, KtapOutcome, Report, Test, parse
from harness.verdict.log.first_lines import TRIGGERS
from harness.verdict.log.rust_names import demangled
from harness.verdict.log.scanner import MAX_COMPLAINTS, ReportStream, Scanner, scan
from harness.verdict.log.titles import MAX_TITLE_CHARS
from tests.dmesg_logs import logs

DATA = Path(__file__).parents[1] / "data" / "verdict"
FINDINGS = Path(__file__).parent / "findings"
"""Inputs that a reader could not take once: TARGET-NAME. They are read again by every driver."""
MESSAGE_MAX_CHARS = 1000
"""Of an error about what a guest sent, without the agent's own reason: 80 characters of it, each an escape of ten."""
VISIBLE_FORMATS = {*map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD))}
"""Signs of Arabic, Syriac and Kaithi: of the category of controls, but seen (Prepended_Concatenation_Mark)."""


@dataclass(frozen=True)
class Target:
    """One reader."""

    name: str
    read: Callable[[bytes], None]
    own_seeds: Callable[[], Sequence[bytes]]
    """Inputs that it takes."""
    words: tuple[bytes, ...]
    """What its grammar is made of."""

    def seeds(self) -> list[bytes]:
        """The inputs with which mutation begins: inputs that the reader accepts, and former findings."""
        return [*self.own_seeds(), *(path.read_bytes() for path in sorted(FINDINGS.glob(f"{self.name}-*")))]


def pieces(data: bytes) -> Iterator[bytes]:
    """The data as a stream delivers it: in pieces of a size that depends on the data alone."""
    size = 1 + zlib.crc32(data) % 700
    yield from (data[start : start + size] for start in range(0, len(data), size))


@contextlib.contextmanager
def refusals(most_chars: int = MESSAGE_MAX_CHARS) -> Iterator[None]:
    """Ignore an error about what the guest sent, if its message is short enough to be shown."""
    said = ""
    try:
        yield
    except ProtocolError as error:
        said = str(error)
    assert len(said) <= most_chars, "the guest decides how long the message is"


def assert_printable(text: str) -> None:
    """Fail if a text contains anything that controls a terminal."""
    if not text.isprintable():
        found = {one for one in set(text) if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
        found -= {"\n", "\t", *VISIBLE_FORMATS, *map(chr, range(0x13430, 0x13440))}  # the last ones join hieroglyphs
        assert found == set(), ascii(found)


# --- text and the kernel's log -----------------------------------------------------------------------


def read_text(data: bytes) -> None:
    """harness.printable"""
    decoder = PrintableDecoder()
    shown = "".join(map(decoder.feed, pieces(data))) + decoder.feed(b"\n")
    assert shown == printable(data + b"\n")
    assert printable(shown) == shown
    assert_printable(shown)


def read_log(data: bytes) -> None:
    """harness.verdict.log"""
    text = printable(data)
    scanner, stream = Scanner(), ReportStream()
    told, handed_out = [], []
    for piece in (part.decode() for part in pieces(text.encode("ascii", "replace"))):
        told += scanner.feed(piece)
        handed_out += stream.feed(piece)
    told += scanner.finish()
    handed_out += stream.finish()
    found = scanner.complaints
    assert found == scan(text.encode("ascii", "replace").decode())
    assert len(told) == len(found)
    assert len(handed_out) == len(found) or len(found) >= MAX_COMPLAINTS
    for one in scan(text):
        assert len(one.title) <= MAX_TITLE_CHARS
        assert one.title.isascii()
        assert one.title.isprintable()
        assert 1 <= one.begin <= one.number <= one.end <= text.count("\n") + 1
        assert one.excerpt.count("\n") <= one.end - one.begin
        assert json.dumps(one.to_json())
        assert isinstance(one.stale_breakpoint, bool)
        assert one.where.count("(") <= 8


def read_symbol(data: bytes) -> None:
    """harness.verdict.log.rust_names"""
    name = data.decode("latin-1")
    for symbol in (name, f"_R{name}", f"_RN{name}", f"_Z{name}"):
        assert len(demangled(symbol)) <= 200 * max(len(symbol), 40)


def read_kmsg(data: bytes) -> None:
    """harness.verdict.log.records, harness.guest.kernel_log"""
    log = KernelLog()
    for answer in (data, b"1\n" + data):
        with refusals():
            part = parse_log_part(answer)
            lost = log.add(part)
            assert log.lost_since(LogMark()) >= lost
            for record in part.records:
                assert_printable(record.text)
                assert all(scan(line) is not None for line in record.lines)
    log.write(data)
    assert_printable(log.text)


# --- KTAP ------------------------------------------------------------------------------------------


def read_ktap(data: bytes) -> None:
    """harness.verdict.ktap"""
    text = printable(data)
    report = parse(text)
    check_report(report, text)
    if report.silent:
        check_report(parse(text, headless=True), text)
    assert not parse(f"KTAP version 1\n{text}\nnot ok 7 z").passed


def check_report(report: Report, text: str) -> None:
    """A report passes only if its plan was fulfilled, and no report is larger than its text."""
    tests = [*every(report.tests)]
    assert len(tests) <= (text.count("\n") + 1) * (MAX_DEPTH + 1)
    assert all(depth <= MAX_DEPTH + 1 for depth, _ in tests)
    assert repr(report)
    if report.passed:
        assert report.planned is not None
        assert {test.number for test in report.tests} == set(range(1, report.planned + 1))
        good = {KtapOutcome.PASSED, KtapOutcome.SKIPPED, KtapOutcome.TODO}
        assert {test.outcome for test in report.tests} <= good


def every(tests: tuple[Test, ...], depth: int = 1) -> Iterator[tuple[int, Test]]:
    """Yield each test with its depth."""
    for test in tests:
        yield depth, test
        yield from every(test.subtests, depth + 1)


# --- the channels ----------------------------------------------------------------------------------


def read_events(data: bytes) -> None:
    """harness.guest.protocol: LineDecoder and parse_event()"""
    decoder, lines = LineDecoder(), list[str]()
    with refusals():
        for piece in pieces(data):
            lines += decoder.feed(piece)
        assert lines == LineDecoder().feed(data)
    for line in lines:
        assert_printable(line)
        with refusals():
            event = parse_event(line)
            assert repr(event)
            if isinstance(event, PagemapEvent):
                assert len(event.words) <= bounds.PAGEMAP_WORDS_MAX
                assert all(str(PagemapWord(word)) for word in event.words)


def read_frames(data: bytes) -> None:
    """harness.guest.protocol: FrameDecoder and the texts in frames"""
    decoder, frames = FrameDecoder(), list[Frame]()
    with refusals():
        for piece in pieces(data):
            frames += decoder.feed(piece)
        assert frames == FrameDecoder().feed(data)
    assert sum(len(frame.payload) for frame in frames) <= len(data)
    for frame in frames:
        assert_printable(frame.text)
        with refusals():
            assert set(parse_ready(frame.text)) >= {"release", "taint"}
        with refusals():
            number, reason = parse_refusal(frame.text)
            assert 1 <= number <= bounds.ERRNO_MAX
            assert len(reason) <= bounds.REASON_MAX
        with refusals():
            assert str(ExitStatus.parse(frame.text))


class Machine:
    """Stores the function that receives the agent's channel."""

    def pump(self, channel: str, write: Callable[[bytes], None]) -> None:
        """See :class:`harness.guest.emulator.Emulator`."""
        if channel == "agent":
            self.say = write


LOOP = asyncio.new_event_loop()


def read_agent(data: bytes) -> None:
    """harness.guest.agent: frames at the host's end"""

    async def receive() -> None:
        machine = Machine()
        agent = Agent(cast(Emulator, machine))
        agent._write = lambda _frame: asyncio.get_running_loop().create_future()  # type: ignore[method-assign,assignment]
        job = Job(5, ("/tests/fork",), asyncio.get_running_loop().create_future())
        job.on_its_way_bytes = 100
        agent._jobs[5] = job
        agent._answers[6] = asyncio.get_running_loop().create_future()
        with refusals(MESSAGE_MAX_CHARS + bounds.REASON_MAX), contextlib.suppress(AgentRefused):
            for piece in pieces(data):
                machine.say(piece)
        assert len(job.stdout) + len(job.stderr) <= len(data)

    LOOP.run_until_complete(receive())


def read_pagemap(data: bytes) -> None:
    """harness.pagetable.pagemap"""
    for (raw,) in struct.iter_unpack("<Q", data[: len(data) // 8 * 8]):
        word = PagemapWord(raw)
        assert str(word).startswith(f"pagemap {raw:#018x}")
        assert (word.pfn is None) is not word.present
        assert (word.swap_type is None) is (word.swap_offset is None) is not word.swapped
        assert not (word.hole and (word.present or word.swapped))
        assert bool(word.names()) is any(raw >> bit & 1 for bit in (55, 56, 57, 58, 61, 62, 63))


# --- seeds -----------------------------------------------------------------------------------------


def _golden_logs() -> list[bytes]:
    return [log.text.encode() for log in logs()]


def _reports() -> list[bytes]:
    return [path.read_bytes() for path in sorted(DATA.rglob("*.ktap"))]


_READY = b"release=6.12.1\nversion=#1\ntaint=0\nvfio_bdf=0000:00:05.0\nvfio_group=1\nvfio_why=\n"
_FRAMES = b"".join(
    Frame(*words).encode()
    for words in (
        ("ready", 0, _READY),
        ("started", 6, b"77"),
        ("out", 5, b"KTAP version 1\n"),
        ("err", 5, b"x" * 200),
        ("took", 5, b"3"),
        ("error", 6, b"2 get /x: No such file"),
        ("read", 0, b"2048"),
        ("exit", 5, b"signal 9"),
        ("failed", 0, b"71 no header"),
    )
)
_EVENTS = (
    b"process parent 77 1 7ffd12345678 4d00000003\n"
    b"mapping bar 77 7f4000000000 40000000 3 bar 80000000\n"
    b"pagemap bar 77 80000000000000*1 0*1 a180000000012345*500\n"
    b"checkpoint child-written 78 77 7ffd12345670 4e00000005\r\n"
    b"vm vm 77 6 7\nslot bar vm 77 40000000 200000 7f4000000000 3 bar 0\ncounts vm 77 1 1 0\n"
    b"slot-gone bar vm 77\nvm-gone vm 77\n"
    b"iommu iommu 77 0000:00:05.0\nslot bar iommu 77 40000000 200000 7f4000000000 3 bar 0\ndma iommu 77 0\n"
    b"unmapping bar 77\ngone 78\n"
)
_KMSG = (
    rb"1" + b"\n" + rb"4,0,0,-;Linux version 6.12.117 (gcc-14) #1 SMP" + b"\n"
    rb"6,1,1017,-;pci 0000:00:05.0: [1b36:0005] type 00" + b"\n SUBSYSTEM=pci\n DEVICE=+pci:0000:00:05.0\n"
    rb"3,3,3000001,-,caller=T77;first\x0asecond \x5cx41 \xc3\xa4\x1b[31m" + b"\n"
)
_LOG_WORDS = (
    *(word.encode() for word in TRIGGERS),
    *(b"[    1.000000][    T7] ", b"[    1.000000][    C1] ", b"------------[ cut here ]------------\n", b"+0x1/0x2\n"),
    *(b"Call Trace:\n", b" <TASK>\n", b" </TASK>\n", b"---[ end trace 0000000000000000 ]---\n", b"RIP: 0010:f+0x1/0x2"),
    *(b"BUG: KASAN: use-after-free in f+0x1/0x2\n", b"Read of size 8 at addr ffff by task a/1\n", b"[#1]", b" at: "),
    *(b"BUG: scheduling while atomic: a/1/0x1\n", b"hugepfn: checkpoint a pid 1\n", b", CPU#1: a/1\n", b"BUG: "),
    *(b"CPU: 1 PID: 1 Comm: a Not tainted\n", b"Tainted: G        W", b"Sending NMI from CPU", b"Kernel panic - "),
    *(b"=" * 30, b"\\x1b[0m", b"\\x00", b"\r\n", b"? ", b"(unreliable)", b"_RNvC1a1b+0x1/0x2"),
)
_KTAP_WORDS = (
    *(b"KTAP version 1\n", b"TAP version 13\n", b"1..2\n", b"1..0 # SKIP x\n", b"ok 1 a\n", b"not ok 2 b\n"),
    *(
        b"Bail out! x\n",
        b"# Subtest: s\n",
        b"# selftests: mm: p\n",
        b"    ",
        b"\t",
        b"# ",
        b"# SKIP",
        b"# TODO",
        b"\\#",
    ),
    *(b"[    1.000000] ", b"999999999", b"1..999999999\n", b"\r\n"),
)
_EVENT_WORDS = (
    *(
        b"process ",
        b"checkpoint ",
        b"mapping ",
        b"unmapping ",
        b"pagemap ",
        b"gone ",
        b"vm ",
        b"slot ",
        b"counts ",
        b"iommu ",
        b"dma ",
        b"bar",
        b"ram",
        b"*1",
        b"*512",
    ),
    *(b"ffffffffffffffff", b"\n", b" 77 ", b"1000", b"\xe2\x80\xae"),
)
_FRAME_WORDS = (
    *(b"ready 0 ", b"out 5 3\nabc", b"err 5 ", b"took 5 1\n1", b"exit 5 8\nstatus 0", b"error 6 ", b"failed 0 4\n71 x"),
    *(b"started 6 1\n7", b"started 9 1\n7", b"done 6 0\n", b"read 0 1\n9", b"release=", b"signal 9", b"268435456\n"),
)
_KMSG_WORDS = (b"6,1,1,-;", b",caller=T7;", rb"\x0a", rb"\x1b", b"\n ", b"\n", b"18446744073709551616", b"1\n", b"0\n")
_SYMBOLS = (
    *(b"NvCs1_6kernel4init", b"NvMNtCs2b_6rprobe5queueNtB2_5Queue4push", b"NvYhNtCs1_1a1T1f", b"INvCs1_1a1fhReE"),
    *(b"INvCs1_1a1fTlmEAhj4_SbPdOfKj7_E", b"NvXs_Cs1_1aNtB4_1TNtCs3c_6kernel2Op3run", b"5probei"),
)

TARGETS = {
    one.name: one
    for one in (
        Target("log", read_log, _golden_logs, _LOG_WORDS),
        Target("ktap", read_ktap, _reports, _KTAP_WORDS),
        Target("frames", read_frames, lambda: [_FRAMES, Frame("ready", 0, _READY).encode()], _FRAME_WORDS),
        Target("agent", read_agent, lambda: [_FRAMES], _FRAME_WORDS),
        Target("events", read_events, lambda: [_EVENTS], _EVENT_WORDS),
        Target("pagemap", read_pagemap, lambda: [struct.pack("<4Q", 0, 1 << 55, 0xA1 << 56, 0x44 << 56)], ()),
        Target("kmsg", read_kmsg, lambda: [_KMSG], _KMSG_WORDS),
        Target("text", read_text, lambda: [b"\x1b[31m \xe2\x80\xae\xff\r\r\n\xf0\x9f\x92\xa9\r"], (b"\r\n", b"\xc2")),
        Target("symbols", read_symbol, lambda: list(_SYMBOLS), (b"B_", b"NvC1a", b"IC1a", b"KB_", b"T", b"s_", b"E")),
    )
}
