"""Tests for the protocol between host and guest: frames and lines cut anywhere, every event, and what is refused."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ProtocolError
from harness.guest import bounds
from harness.guest.event_lines import LineDecoder
from harness.guest.protocol import (
    CountsEvent,
    DmaEvent,
    Event,
    Frame,
    FrameDecoder,
    GoneEvent,
    IommuEvent,
    MappingEvent,
    PagemapEvent,
    SlotEvent,
    SlotGoneEvent,
    UnmappingEvent,
    VmEvent,
    VmGoneEvent,
    WaitEvent,
    Where,
    parse_event,
    parse_ready,
    put_payload,
    run_payload,
)
from harness.printable import printable


def test_a_frame_on_the_wire() -> None:
    assert Frame("put", 7, b"a\nb").encode() == b"put 7 3\na\nb"
    assert Frame("ping", 0).encode() == b"ping 0 0\n"


def test_the_text_of_a_payload() -> None:
    assert Frame("error", 1, b"no such file \xff").text == "no such file \N{REPLACEMENT CHARACTER}"


frames = st.builds(
    Frame,
    verb=st.sampled_from(["out", "exit", "ready", "file"]),
    id=st.integers(0, 1 << 40),
    payload=st.binary(max_size=300) | st.sampled_from([b"\n", b"out 1 5\n", b"\n" * 200, bytes(5000)]),
)


@settings(max_examples=30)
@given(st.lists(frames, max_size=6), st.lists(st.integers(1, 400), max_size=12))
def test_frames_survive_any_cut(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(frame.encode() for frame in sent)
    decoder = FrameDecoder()
    received: list[Frame] = []
    for cut in cuts:
        received += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert received + decoder.feed(stream) == sent


def test_a_frame_is_decoded_with_its_last_byte_and_not_before() -> None:
    decoder = FrameDecoder()
    stream = Frame("out", 3, b"xy").encode()
    assert [decoder.feed(stream[at : at + 1]) for at in range(len(stream) - 1)] == [[]] * (len(stream) - 1)
    assert decoder.feed(stream[-1:]) == [Frame("out", 3, b"xy")]


@pytest.mark.parametrize(
    "header",
    [
        b"\n",
        b"out 1\n",
        b"out 1 2 3\n",
        b"out one 2\n",
        b"out 1 -2\n",
        b"out 1 2x\n",
        b"[    1.234567] Oops: general protection fault\n",
    ],
)
def test_a_malformed_header_is_quoted(header: bytes) -> None:
    with pytest.raises(ProtocolError, match="expected 'VERB ID LENGTH'") as caught:
        FrameDecoder().feed(header)
    assert repr(header[:-1]) in str(caught.value)


def test_a_stream_without_headers_is_limited() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(b"x" * 127) == []
    with pytest.raises(ProtocolError, match="b'xxx"):
        decoder.feed(b"x")


def test_a_good_frame_does_not_hide_the_bad_header_behind_it() -> None:
    with pytest.raises(ProtocolError):
        FrameDecoder().feed(Frame("out", 1, b"fine").encode() + b"garbage\n")


def test_run_payload() -> None:
    assert run_payload(["/tests/fork", "--level=pud"]) == b"\0/tests/fork\0--level=pud\0"
    assert run_payload(["p", ""], {"A": "1", "B": "x=y"}) == b"A=1\0B=x=y\0\0p\0\0"


@pytest.mark.parametrize(
    ("argv", "environment"), [([], {}), (["a\0b"], {}), (["a"], {"N": "x\0y"}), (["a"], {"N\0": "x"})]
)
def test_a_program_that_cannot_be_named(argv: list[str], environment: dict[str, str]) -> None:
    with pytest.raises(ProtocolError, match="is empty or contains a NUL"):
        run_payload(argv, environment)


def test_put_payload_has_an_octal_mode() -> None:
    assert put_payload("/tests/a b", b"\x7fELF") == b"755 /tests/a b\n\x7fELF"
    assert put_payload("/x", b"", 0o4640) == b"4640 /x\n"


def test_ready_words() -> None:
    said = "release=6.12.1\nversion=#1 SMP a=b\ntaint=0\nvfio_bdf=0000:00:05.0\nvfio_group=\nnoise\nvfio_why=no group\n"
    assert parse_ready(said) == {
        "release": "6.12.1",
        "version": "#1 SMP a=b",
        "taint": "0",
        "vfio_bdf": "0000:00:05.0",
        "vfio_group": "",
        "vfio_why": "no group",
    }


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("release=6.12.1", "release=", "'release=', expected release= and"),
        ("release=6.12.1", "release=6.12.1\nchannel=pigeon", "'channel=pigeon', expected channel= and"),
        ("release=6.12.1", "release=6.12.1\nmissing=" + 4001 * "x", r"'missing=x+'\.\.\. .* expected missing= and"),
        ("release=6.12.1", "release=6.12.1\n" + 9000 * "x", "has 90.. characters, expected at most 8192"),
        ("release=6.12.1", "release=6.12.1\x1b[2J", "'release=6.12.1.x1b.2J', expected release= and"),
        ("taint=0", "taint=W", "'taint=W', expected taint= and .0-9"),
        ("taint=0\n", "", "expected taint= and"),
        ("vfio_bdf=0000:00:05.0", "vfio_bdf=--help", "'vfio_bdf=--help', expected vfio_bdf= and"),
        ("vfio_group=1", "vfio_group=" + "1" * 1000, r"1'\.\.\. \(1011 characters\), expected vfio_group= and"),
    ],
)
def test_malformed_ready_words_are_refused(before: str, after: str, expected: str) -> None:
    said = "release=6.12.1\nversion=#1\ntaint=0\nvfio_bdf=0000:00:05.0\nvfio_group=1\nvfio_why=\n"
    assert parse_ready(said)
    with pytest.raises(ProtocolError, match=f"agent: ready .*{expected}"):
        parse_ready(said.replace(before, after))


# As guest_tests/lib/events.c prints them: pids in decimal, names as they are, everything else in hex without 0x.
@pytest.mark.parametrize(
    ("line", "event"),
    [
        (
            "process parent 77 1 7ffd12345678 4d00000003",
            WaitEvent(Where.REGISTERING, "parent", 77, 1, 0x7FFD12345678, 0x4D00000003),
        ),
        (
            "checkpoint child-written 78 77 7ffd12345670 4e00000005",
            WaitEvent(Where.CHECKPOINT, "child-written", 78, 77, 0x7FFD12345670, 0x4E00000005),
        ),
        (
            "mapping bar 77 7f4000000000 40000000 3 bar 80000000",
            MappingEvent("bar", 77, 0x7F4000000000, 0x40000000, 3, "bar", 0x80000000),
        ),
        (
            "mapping calibration 77 7f0000001000 1000 1 ram 0",
            MappingEvent("calibration", 77, 0x7F0000001000, 0x1000, 1, "ram", 0),
        ),
        (
            "mapping registers 77 7f0000001000 1000 3 bar0 0",
            MappingEvent("registers", 77, 0x7F0000001000, 0x1000, 3, "bar0", 0),
        ),
        ("unmapping bar 77", UnmappingEvent("bar", 77)),
        (
            "pagemap bar 77 80000000000000*1 0*1 a180000000012345*1",
            PagemapEvent("bar", 77, (1 << 55, 0, 0xA180000000012345)),
        ),
        ("pagemap bar 77", PagemapEvent("bar", 77, ())),
        ("gone 78", GoneEvent(78)),
        ("vm vm 77 6 7", VmEvent("vm", 77, 6, 7)),
        (
            "slot bar vm 77 40000000 200000 7f0000000000 1 bar 200000",
            SlotEvent("vm", MappingEvent("bar", 77, 0x40000000, 0x200000, 1, "bar", 0x200000), 0x7F0000000000),
        ),
        ("slot-gone bar vm 77", SlotGoneEvent("bar", "vm", 77)),
        ("counts vm 77 2 1 0", CountsEvent("vm", 77, (2, 1, 0))),
        ("vm-gone vm 77", VmGoneEvent("vm", 77)),
        ("iommu dma 77 0000:00:05.0", IommuEvent("dma", 77, "0000:00:05.0")),
        ("dma dma 77 40000000", DmaEvent("dma", 77, 1 << 30)),
    ],
)
def test_every_event(line: str, event: Event) -> None:
    assert parse_event(line) == event


@pytest.mark.parametrize(
    "line",
    [
        "",
        "  ",
        "hello",
        "checkpoint",
        "checkpoint two words 77 1 1000 5",
        "mapping bar 77 1000 1000 3 bar",
        "mapping bar 77 1000 1000 3 disk 0",
        "unmapping bar",
        "gone",
        "gone 1 2",
        "vm vm 77 6",
        "iommu dma 77",
        "dma dma 77",
        "slot bar vm 77 40000000 200000 7f0000000000 1 disk 0",
        "counts vm 77 2 1",
        "Checkpoint a 77 1 1000 5",
    ],
)
def test_a_malformed_event_is_quoted(line: str) -> None:
    with pytest.raises(ProtocolError, match=r"is not an event of docs/protocol\.md") as caught:
        parse_event(line)
    assert repr(line) in str(caught.value)


# Lines that a hostile or broken guest could send: (line, what the error says).
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("process parent x 1 1000 5", "pid 'x', expected a decimal number from 1 to 4194304"),
        ("process parent 4194305 1 1000 5", "pid '4194305', expected"),
        ("process parent 0 1 1000 5", "pid '0', expected"),
        ("process parent +77 1 1000 5", "pid '.77', expected"),
        ("process parent 7_7 1 1000 5", "pid '7_7', expected"),
        ("process parent \u0667 1 1000 5", "pid '\u0667', expected"),
        ("process parent 77 -1 1000 5", "pid '-1', expected a decimal number from 0"),
        ("process parent 77 1 stack 5", "address 'stack', expected 1 to 16 hexadecimal digits"),
        ("process parent 77 1 1004 5", "address 0x1004, expected the address of an aligned 8-byte word"),
        (
            "process parent 77 1 ffffffff81000000 5",
            "expected the address of an aligned 8-byte word below 0xfffffffffff000",
        ),
        ("process parent 77 1 0 5", "address 0x0, expected"),
        ("process parent 77 1 1000 0x5", "nonce '0x5', expected"),
        ("process p\x1b[2J 77 1 1000 5", "expected 1 to 31 printable ASCII characters without a space"),
        (f"checkpoint {'x' * 32} 77 1 1000 5", "expected 1 to 31 printable ASCII characters"),
        ("checkpoint \N{REPLACEMENT CHARACTER} 77 1 1000 5", "expected 1 to 31 printable ASCII characters"),
        ("iommu dma 77 00:05.0", "PCI address '00:05.0', expected one such as 0000:00:05.0"),
        ("iommu dma 77 0001:00:05.0", "PCI address '0001:00:05.0', expected"),
        ("iommu dma 77 0000:00:25.0", "PCI address '0000:00:25.0', expected"),
        ("dma dma 77 800", "size 0x800, expected a multiple of 0x1000"),
        ("mapping bar 77 1001 1000 3 bar 0", "address 0x1001, expected a multiple of 0x1000"),
        ("mapping bar 77 1000 1001 3 bar 0", "size 0x1001, expected a multiple of 0x1000"),
        ("mapping bar 77 1000 0 3 bar 0", "mapping of 0x0 bytes at 0x1000, expected pages that end below"),
        ("mapping bar 77 1000 ffffffffffff1000 3 bar 0", "bytes at 0x1000, expected pages that end below"),
        ("mapping bar 77 ffff800000000000 1000 3 bar 0", "at 0xffff800000000000, expected pages that end below"),
        ("mapping bar 77 1000 1000 8 bar 0", "prot 0x8, expected PROT_READ, PROT_WRITE and PROT_EXEC"),
        ("mapping bar 77 1000 1000 3 bar 800", "offset 0x800, expected a multiple of 0x1000"),
        ("pagemap bar 77 xyz*1", "pagemap word 'xyz', expected"),
        ("pagemap bar 77 0", "count '', expected a decimal number from 1 to 512"),
        ("pagemap bar 77 0*0", "count '0', expected"),
        ("pagemap bar 77 0*300000000", "count '300000000', expected a decimal number from 1 to 512"),
        ("pagemap bar 77 0*500 1*13", "count '13', expected a decimal number from 1 to 12"),
        ("pagemap bar 77 0*512 1*1", "expected at most 512 pagemap words"),
        ("pagemap bar 77 10000000000000000*1", "pagemap word '10000000000000000', expected 1 to 16"),
        ("vm vm 77 6 -1", "file descriptor '-1', expected a decimal number from 0 to 1048576"),
        ("slot bar vm 77 1 1000 1000 1 bar 0", "address 0x1, expected a multiple of 0x1000"),
        ("slot bar vm 77 fffffffff000 2000 1000 1 bar 0", "slot of 0x2000 bytes .* end below 0x1000000000000"),
        ("slot bar vm 77 0 0 1000 1 bar 0", "slot of 0x0 bytes"),
        ("slot bar vm 77 0 1000 1000 8 bar 0", "prot 0x8"),
        ("counts vm 77 0 0 -1", "count '-1', expected a decimal number"),
        ("gone " + "9" * 5000, r"pid '9{80}'\.\.\. \(5000 characters\), expected"),
    ],
)
def test_values_from_the_guest_are_bounded(line: str, expected: str) -> None:
    with pytest.raises(ProtocolError, match=expected) as caught:
        parse_event(line)
    assert len(str(caught.value)) < 400


# Lines that are almost events, with numbers of any size and form.
numbers = st.one_of(
    st.integers(-1, 1 << 70).map(str),
    st.integers(0, 1 << 70).map(lambda number: f"{number:x}"),
    st.sampled_from(["0", "1000", "7ffd12345678", "0x10", "+1", "1_0", "", "\u0663", "9" * 5000]),
)
runs = st.builds("{}*{}".format, numbers, numbers)
lines = st.one_of(
    st.text(max_size=200),
    st.builds(
        lambda verb, words: " ".join([verb, *words]),
        st.sampled_from(
            [
                *("process", "checkpoint", "mapping", "unmapping", "pagemap", "gone"),
                *("vm", "slot", "slot-gone", "counts", "vm-gone"),
            ]
        ),
        st.lists(st.one_of(st.sampled_from(["bar", "ram", "parent"]), numbers, runs), max_size=8),
    ),
)


@settings(max_examples=200)
@given(lines)
def test_any_line_is_an_event_within_bounds_or_refused(line: str) -> None:
    event, refused = None, ""
    try:
        event = parse_event(line)
    except ProtocolError as error:
        refused = str(error)
    assert len(refused) < 400
    match event:
        case PagemapEvent(words=words):
            assert len(words) <= bounds.PAGEMAP_WORDS_MAX
            assert all(0 <= word < 1 << 64 for word in words)
        case SlotEvent(slot=slot):
            assert 0 < slot.vaddr + slot.size_bytes <= bounds.GUEST_END
        case MappingEvent():
            assert 0 < event.vaddr + event.size_bytes <= bounds.USER_END
            assert event.vaddr % 4096 == event.size_bytes % 4096 == event.offset_bytes % 4096 == 0


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=300) | st.just(b"x" * 5000) | st.just(b"out 1 999999999\n"), max_size=12))
def test_any_bytes_are_decoded_or_refused_and_memory_is_bounded(stream: list[bytes]) -> None:
    for decoder, limit in ((LineDecoder(), bounds.LINE_MAX_BYTES), (FrameDecoder(), 128 + sum(map(len, stream)))):
        with contextlib.suppress(ProtocolError):
            for data in stream:
                decoder.feed(data)
        assert len(decoder._pending) <= limit


def test_an_endless_line_is_limited() -> None:
    decoder = LineDecoder()
    for _ in range(16):
        assert decoder.feed(b"x" * 1024) == []
    with pytest.raises(ProtocolError, match="events: a line begins with 'xxx"):
        decoder.feed(b"x")
    with pytest.raises(ProtocolError, match="expected at most 16384 bytes"):
        LineDecoder().feed(b"gone 1\n" + b"y" * 16385 + b"\n")


def test_a_too_large_frame_is_refused_at_its_header() -> None:
    with pytest.raises(ProtocolError, match="agent: a frame of 268435457 bytes, expected at most 268435456"):
        FrameDecoder().feed(b"out 1 268435457\n")


def test_both_sides_have_the_same_bounds() -> None:
    source = (Path(__file__).parents[1] / "guest_tests/lib/shared.h").read_text()
    said = {name: int(number) for name, number in re.findall(r"#define (HP_\w+) (\d+)$", source, re.MULTILINE)}
    assert said["HP_PAGEMAP_PAGES"] == bounds.PAGEMAP_WORDS_MAX
    assert said["HP_NAME"] == bounds.NAME_MAX + 1
    assert said["HP_MAPPINGS"] == bounds.MAPPINGS_MAX
    assert said["HP_PROCESSES"] < bounds.PROCESSES_MAX
    assert 128 + said["HP_PAGEMAP_PAGES"] * 23 < bounds.LINE_MAX_BYTES


@settings(max_examples=30)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1), max_size=6),
    st.lists(st.integers(1, 30), max_size=12),
)
def test_lines_survive_any_cut(sent: list[str], cuts: list[int]) -> None:
    stream = b"".join(line.encode() + b"\n" for line in sent)
    decoder = LineDecoder()
    received: list[str] = []
    for cut in cuts:
        received += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert received + decoder.feed(stream) == [printable(line) for line in sent]


def test_a_line_without_its_newline_waits_and_a_uart_adds_carriage_returns() -> None:
    decoder = LineDecoder()
    assert decoder.feed(b"gone 1\r\n\r\n\ngo") == ["gone 1"]
    assert decoder.feed(b"ne 2") == []
    assert decoder.feed(b"\n") == ["gone 2"]
