"""The words between host and guest: frames and lines cut anywhere, every event, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ProtocolError
from harness.guest.protocol import (
    Event,
    Frame,
    FrameDecoder,
    GoneEvent,
    LineDecoder,
    MappingEvent,
    PagemapEvent,
    UnmappingEvent,
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
    assert Frame("poweroff", 0).encode() == b"poweroff 0 0\n"


def test_a_payload_is_text_where_it_is_words() -> None:
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


def test_a_frame_comes_out_with_its_last_byte_and_not_before() -> None:
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
def test_a_header_that_is_none_is_quoted(header: bytes) -> None:
    with pytest.raises(ProtocolError, match="expected 'VERB ID LENGTH'") as caught:
        FrameDecoder().feed(header)
    assert repr(header[:-1]) in str(caught.value)


def test_a_stream_without_headers_is_not_collected_for_ever() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(b"x" * 127) == []
    with pytest.raises(ProtocolError, match="no header in b'xxx"):
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
    with pytest.raises(ProtocolError, match="is empty or holds a NUL"):
        run_payload(argv, environment)


def test_put_payload_has_an_octal_mode() -> None:
    assert put_payload("/tests/a b", b"\x7fELF") == b"755 /tests/a b\n\x7fELF"
    assert put_payload("/x", b"", 0o4640) == b"4640 /x\n"


def test_ready_words() -> None:
    assert parse_ready("release=6.12.1\nempty=\nnoise\ncmdline=a=b c\n") == {
        "release": "6.12.1",
        "empty": "",
        "cmdline": "a=b c",
    }


# As guest_tests/lib/checkpoint.c prints them: pids and names in decimal and plain, the rest in bare hex.
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
        "process parent x 1 1000 5",
        "process parent 77 1 stack 5",
        "mapping bar 77 1000 1000 3 bar",
        "mapping bar 77 1000 1000 3 disk 0",
        "unmapping bar",
        "pagemap bar 77 xyz",
        "gone",
        "gone 1 2",
        "Checkpoint a 77 1 1000 5",
    ],
)
def test_what_is_no_event_is_quoted(line: str) -> None:
    with pytest.raises(ProtocolError, match=r"is no event of docs/protocol\.md") as caught:
        parse_event(line)
    assert repr(line) in str(caught.value)


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
