"""Tests with golden kernel logs: the complaints read from each, however the log is cut or quoted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.printable import PrintableDecoder
from harness.verdict import ComplaintKind
from harness.verdict.log import blocks
from harness.verdict.log.complaints import Complaint
from harness.verdict.log.first_lines import TRIGGERS
from harness.verdict.log.lines import split_caller
from harness.verdict.log.scanner import ReportStream, scan
from harness.verdict.log.titles import MAX_TITLE_CHARS, canonical
from tests.dmesg_logs import GoldenLog, logs, summary

ROOT = Path(__file__).parents[1]
LOGS = logs()
named = pytest.mark.parametrize("log", LOGS, ids=lambda log: log.path.stem)


def titles(text: str) -> list[tuple[str, str]]:
    return [(one.title, one.frame) for one in scan(text)]


def without_prefix(text: str) -> str:
    return "\n".join(split_caller(line)[1] for line in text.split("\n"))


@named
def test_the_complaints_of_each_log(log: GoldenLog, request: pytest.FixtureRequest) -> None:
    found = scan(log.text)
    if request.config.getoption("--update"):
        log.write(found)
    assert [json.loads(summary(one)) for one in found] == [
        json.loads(line) for line in GoldenLog.read(log.path).expected
    ]


def test_there_are_enough_logs_of_every_kind() -> None:
    kinds = {json.loads(line)["kind"] for log in LOGS for line in log.expected}
    assert {kind.value for kind in ComplaintKind} - kinds == set()
    assert len(LOGS) >= 80
    assert all(re.match(r"(debian:|hand-written|built )", log.origin) for log in LOGS)


def test_the_boot_of_each_stock_kernel_in_the_documents_has_no_report() -> None:
    (head,) = re.findall(r"^ {20,}(\d+\..*)$", (ROOT / "docs/matrix.md").read_text(), re.MULTILINE)
    boots = {
        match[1]: log
        for log in LOGS
        if (match := re.fullmatch(r"debian:(\S+) \(stock\) in QEMU, its boot", log.origin))
    }
    assert boots.keys() == set(head.split())
    for version, log in boots.items():
        assert re.search(rf"Linux version .*{re.escape(version)}-\d", log.text), version
        assert "Run /init as init process" in log.text, "it is the whole boot"
        assert scan(log.text) == ()


@named
def test_a_report_read_again_has_the_same_title(log: GoldenLog) -> None:
    for one in scan(log.text):
        assert titles(one.excerpt)[:1] == [(one.title, one.frame)], one.excerpt


@named
def test_a_stream_gives_the_same_complaints(log: GoldenLog) -> None:
    stream = ReportStream()
    pieces = [log.text[start : start + 700] for start in range(0, len(log.text), 700)]
    found = [one for piece in pieces for one in stream.feed(piece)] + stream.finish()
    assert [summary(one) for one in found] == [summary(one) for one in scan(log.text)]


PREFIXES = [
    "[    1.000000] ",
    "[123456.000001] ",
    "<4>[    1.000000] ",
    "[Thu Nov 26 22:55:09 2026] ",
    "[  +0.000012] ",
    "kern  :warn  : [    1.000000] ",
    "Nov 26 22:55:09 host kernel: ",
    "Nov 26 22:55:09 host kernel: [    1.000000] ",
    "2026-11-26T22:55:09,123456+00:00 ",
    "4,1234,1000000,-;",
    "4,1234,1000000,-,caller=T7;",
    "[    1.000000][    T7] ",
    "[    T7] ",
    "<0>",
    "\x1b[0m[    1.000000] ",
    "\x00\x00[    1.000000] ",
]


@named
def test_any_prefix_gives_the_same_titles(log: GoldenLog) -> None:
    callers = {split_caller(line)[0] for line in log.text.split("\n")} - {""}
    if len(callers) > 1:
        pytest.skip("its prefix tells callers apart, so another prefix changes its blocks")
    bare, expected = without_prefix(log.text), titles(log.text)
    for prefix in PREFIXES:
        text = "\n".join(prefix + line for line in bare.split("\n"))
        assert titles(text) == expected, ascii(prefix)
        shown = PrintableDecoder().feed(text.replace("\n", "\r\n").encode())
        assert titles(shown) == expected, ascii(prefix)


def test_interleaved_callers_are_separated() -> None:
    one, two = (log.text for log in LOGS if log.path.stem in ("kasan_slab_uaf", "warning_6_19"))
    rows = [
        "".join(f"[    1.000000][   {caller:>3}] {line}\n" for line in without_prefix(text).split("\n"))
        for caller, text in (("T7", one), ("C1", two))
    ]
    mixed = "".join(
        line
        for pair in zip(*(row.splitlines(keepends=True) * 3 for row in rows), strict=False)
        for line in pair
        if line
    )
    assert {title for title, _ in titles(mixed)} >= {title for text in (one, two) for title, _ in titles(text)}


def test_without_callers_a_report_in_another_is_corrupted() -> None:
    text = "BUG: KASAN: use-after-free in f+0x1/0x2\nBUG: sleeping function called from invalid context at a.c:1\n"
    first, _ = scan(text)
    assert first.mixed
    assert first.corrupted


line = st.one_of(
    st.text(max_size=60),
    st.sampled_from([row for log in LOGS[:40] for row in log.text.split("\n")] or [""]),
    st.builds(lambda a, b: a + b, st.sampled_from(TRIGGERS), st.text(max_size=40)),
)


@given(st.lists(line, max_size=30), st.sampled_from(PREFIXES))
def test_no_text_raises_an_exception(lines: list[str], prefix: str) -> None:
    for one in scan("\n".join(prefix + line for line in lines)):
        assert len(one.title) <= 120
        assert summary(one)
        assert one.begin <= one.number <= one.end


@given(st.lists(line, max_size=30))
def test_each_line_is_read_once(lines: list[str]) -> None:
    """Counts work instead of time: the lines that were split, and the lines that rules were tried on."""
    text = "\n".join(lines) + "\n"
    with pytest.MonkeyPatch.context() as patch:
        split, tried = counted(patch, "split_caller"), counted(patch, "classify")
        scan(text)
    assert len(split) <= text.count("\n")
    assert len(tried) <= len(split)


def counted(patch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Count the calls of a function of the reader."""
    calls: list[str] = []
    function = getattr(blocks, name)

    def count(text: str) -> Any:
        calls.append(text)
        return function(text)

    patch.setattr(blocks, name, count)
    return calls


@named
def test_a_log_three_times_has_three_times_the_reports(log: GoldenLog) -> None:
    once, thrice = scan(log.text + "\n"), scan((log.text + "\n") * 3)
    assert len(thrice) <= 3 * len(once)
    assert sum(len(one.excerpt) for one in thrice) <= 6 * (len(log.text) + 1)


def test_a_report_names_its_process() -> None:
    (one,) = scan("BUG: Bad page state in process my prog  pfn:00001\n")
    assert isinstance(one, Complaint)
    assert (one.task.comm, one.task.pid, one.task.cpu, one.task.taint) == ("my prog", None, None, None)


def test_a_title_is_shortened_after_its_addresses_were_replaced() -> None:
    assert canonical("at 0xffff888012345678 in f") == "at ADDR in f"
    assert canonical("at 0xffff888012345678 " * 10) == ("at ADDR " * 10).strip()
    assert len(canonical("x" * 10_000)) == MAX_TITLE_CHARS
