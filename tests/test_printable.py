"""Tests for making a guest's bytes printable: every way in, streams cut anywhere, and text converted twice."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.guest.event_lines import LineDecoder
from harness.guest.kernel_log import KernelLog
from harness.guest.protocol import Frame, MappingEvent, parse_event
from harness.kernel.build.patches import split
from harness.printable import PrintableDecoder, printable
from harness.verdict import ComplaintKind, scan
from harness.verdict.log.records import parse_records

#: Control sequences (ECMA-48 in C0 and C1, a title by OSC), invisible characters, and bidirectional overrides.
HOSTILE = "\x1b[31m\x1b]0;title\x07 \x9b31m \x85 \r\b\x7f\x00 \u202etxt\u2066 \u200b \u2028 \U000e0041 \ufeff"
SHOWN = r"\x1b[31m\x1b]0;title\x07 \x9b31m \x85 \x0d\x08\x7f\x00 \u202etxt\u2066 \u200b \u2028 \U000e0041 \ufeff"


def unprintable(text: str) -> list[str]:
    """Return the characters that no output may contain."""
    return [one for one in text if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") and one not in "\n\t"]


def test_control_characters_are_shown_by_code_and_text_is_unchanged() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("grüße\t→ 日本語\n") == "grüße\t→ 日本語\n"
    assert printable("\ud800") == r"\ud800", "a surrogate cannot be printed"
    assert printable(b"\xff\x1b") == "\ufffd\\x1b"
    assert printable("a\r\nb\r\r\nc\rd") == "a\nb\nc\\x0dd"
    assert printable("\U0001d173\u3164\u034fx") == r"\U0001d173\u3164\u034fx", (
        "invisible characters of music notation and Hangul"
    )
    assert printable("\u0602") == "\u0602", "a visible sign stays as it is"


def test_extra_carriage_returns_are_not_part_of_a_line_end() -> None:
    assert printable("\r" * 8 + "\n") == "\n"
    assert printable("\r" * 10 + "\n") == r"\x0d\x0d" + "\n"
    decoder = PrintableDecoder()
    assert decoder.feed(b"\r" * 1000) == r"\x0d" * 992
    assert decoder.feed(b"\r") == r"\x0d"
    assert decoder.feed(b"\n") == "\n"


@given(st.text(st.sampled_from(HOSTILE + "\n\t日")))
def test_no_control_character_is_left_and_a_second_pass_changes_nothing(text: str) -> None:
    once = printable(text)
    assert unprintable(once) == []
    assert printable(once) == once


@given(st.text(st.sampled_from(HOSTILE + "\n日")), st.lists(st.integers(1, 5), max_size=30))
def test_a_stream_may_be_cut_anywhere(text: str, cuts: list[int]) -> None:
    data, decoder, shown = text.encode(), PrintableDecoder(), ""
    for cut in cuts:
        shown += decoder.feed(data[:cut])
        data = data[cut:]
    assert shown + decoder.feed(data) + decoder.feed(b"\n") == printable(f"{text}\n")


def test_the_kernel_log_the_agents_words_and_event_lines_are_printable() -> None:
    log = KernelLog()
    for byte in HOSTILE.encode():
        log.write(bytes([byte]))
    assert log.console == SHOWN
    assert log.tail() == SHOWN
    assert Frame("error", 1, HOSTILE.encode()).text == SHOWN
    (line,) = LineDecoder().feed(b"mapping a\x1b[31m\xe2\x80\xaeb 7 1000 1000 3 ram 0\n")
    event = parse_event(line)
    assert isinstance(event, MappingEvent)
    assert event.name == r"a\x1b[31m\u202eb"


def test_a_decoded_record_of_dev_kmsg_is_printable() -> None:
    (record,) = parse_records([rb"4,7,1500000,-;evil\x1b[31m\x07\xc2\x9b\xe2\x80\xae \x5cx1b"])
    assert record.text == r"evil\x1b[31m\x07\x9b\u202e \x1b"


def test_a_saved_log_is_the_same_when_it_is_read_again() -> None:
    first, again = KernelLog(), KernelLog()
    first.write(HOSTILE.encode() + b"\r\n")
    again.write(first.text.encode())
    assert again.text == first.text


@pytest.mark.parametrize("noise", ["\x1b[0m", "\x1b[1;31m", "\0", "\0\0\x1b[m"])
@pytest.mark.parametrize(
    "where", ["{}[    1.5] BUG: Bad rss-counter state mm:0", "[    1.5] {}BUG: Bad rss-counter state mm:0"]
)
def test_a_colour_or_a_nul_before_a_complaint_does_not_hide_it(noise: str, where: str) -> None:
    log = KernelLog()
    log.write(f"{noise}[    1.0] hugepfn: checkpoint here pid 7\r\n".encode())
    log.write(f"{where.format(noise)} type:0 val:1\r\n".encode())
    assert [(one.kind, one.after) for one in scan(log.text)] == [(ComplaintKind.BAD_RSS, "here")]


def test_the_subject_of_a_mail_is_printable() -> None:
    (patch,) = split("x", b"Subject: \x1b[31mred\n\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n")
    assert unprintable(patch.subject) == []
