"""Tests for the complaints in a kernel log: golden logs, growing logs, and logs cut anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.verdict import ComplaintKind, Scanner, scan
from harness.verdict.log.blocks import MAX_BLOCK_LINES, MAX_LINE_CHARS, MAX_QUIET_LINES
from harness.verdict.log.first_lines import classify
from harness.verdict.log.scanner import MAX_COMPLAINTS
from tests.cpu_time import at_most

DATA = Path(__file__).parent / "data" / "verdict"
LOGS = sorted(path.name for path in DATA.glob("*.log"))

# (kind, checkpoint before it, line number, lines in its block)
Row = tuple[ComplaintKind, str, int, int]
K = ComplaintKind
GOLDEN: dict[str, list[Row]] = {
    "clean_boot.log": [],
    "null_deref_6_12.log": [(K.OOPS, "forked", 3, 15), (K.PANIC, "forked", 20, 3)],
    "stale_breakpoint_6_12.log": [(K.OOPS, "booted", 2, 11), (K.PANIC, "booted", 13, 2)],
    "two_oopses.log": [(K.OOPS, "", 1, 4), (K.GENERAL_PROTECTION, "", 5, 3)],
    "warning_6_12.log": [(K.WARNING, "mapped", 4, 10)],
    "warning_7_0.log": [(K.WARNING, "forked", 3, 4), (K.WARNING, "forked", 7, 3)],
    "bad_entries.log": [
        (K.BAD_PMD, "protected", 2, 1),
        (K.BAD_PUD, "protected", 3, 1),
        (K.BAD_PGD, "protected", 4, 1),
        (K.BAD_PAGE_MAP, "protected", 5, 7),
        (K.BAD_RSS, "unmapped", 13, 1),
        (K.PGTABLES_BYTES, "unmapped", 14, 1),
        (K.BAD_PAGE, "unmapped", 15, 3),
    ],
    "page_table_check.log": [(K.PAGE_TABLE_CHECK, "", 2, 5)],
    "stalls.log": [
        (K.SOFT_LOCKUP, "written", 2, 5),
        (K.RCU_STALL, "written", 7, 3),
        (K.HARD_LOCKUP, "written", 10, 2),
        (K.HUNG_TASK, "written", 12, 3),
    ],
    "sanitizers.log": [(K.KASAN, "", 2, 6), (K.UBSAN, "", 10, 4), (K.LOCKDEP, "", 14, 5)],
    "oom_and_segfault.log": [(K.OOM, "", 5, 4)],
}


def read(name: str) -> str:
    return (DATA / name).read_text()


def rows(text: str) -> list[Row]:
    return [(one.kind, one.after, one.number, one.excerpt.count("\n") + 1) for one in scan(text)]


def last_checkpoint_of(text: str) -> str:
    scanner = Scanner()
    scanner.feed(text)
    return scanner.last_checkpoint


def test_every_golden_log_has_an_expectation() -> None:
    assert sorted(GOLDEN) == LOGS


@pytest.mark.parametrize("name", LOGS)
def test_golden_log(name: str) -> None:
    assert rows(read(name)) == GOLDEN[name]


@pytest.mark.parametrize("name", LOGS)
def test_carriage_returns_change_nothing(name: str) -> None:
    text = read(name)
    assert scan(text.replace("\n", "\r\n")) == scan(text)


@pytest.mark.parametrize("name", LOGS)
def test_the_first_line_is_the_message_and_the_excerpt_keeps_the_log(name: str) -> None:
    lines = read(name).split("\n")
    for complaint in scan(read(name)):
        assert lines[complaint.number - 1].endswith(complaint.line)
        assert lines[complaint.number - 1] in complaint.excerpt.split("\n")
        assert not complaint.line.startswith(("[  ", "<"))


@given(name=st.sampled_from(LOGS), sizes=st.lists(st.integers(1, 200), min_size=1))
def test_a_log_read_in_pieces_gives_the_same_complaints(name: str, sizes: list[int]) -> None:
    text = read(name).replace("\n", "\r\n")
    scanner, handed_out, position, turn = Scanner(), 0, 0, 0
    while position < len(text):
        size = sizes[turn % len(sizes)]
        handed_out += len(scanner.feed(text[position : position + size]))
        position, turn = position + size, turn + 1
    handed_out += len(scanner.finish())
    assert scanner.complaints == scan(text)
    assert handed_out == len(scanner.complaints)
    assert scanner.last_checkpoint == last_checkpoint_of(text)


@given(st.text(alphabet=st.sampled_from("[]<>0123456789. \n\r#:-BUGOopsWARNINGmmKernelpanic")))
def test_no_text_raises(text: str) -> None:
    scan(text)


def test_a_breakpoint_is_stale_if_memory_has_no_int3() -> None:
    text = read("stale_breakpoint_6_12.log")
    oops, panic = scan(text)
    assert (oops.stale_breakpoint, panic.stale_breakpoint) == (True, False)
    assert scan(text.replace("Oops: int3", "int3"))[0].stale_breakpoint, "the form of older kernels is recognised, too"
    assert not scan(text.replace("66 <90>", "cc <90>"))[0].stale_breakpoint
    code = next(line for line in text.splitlines() if "Code: " in line)
    unread = text.replace(code, "[    1.712331] Code: Unable to access opcode bytes at 0xffffffffa2345678.")
    assert not scan(unread)[0].stale_breakpoint, "a breakpoint in unreadable memory counts as real"
    assert not scan(text.replace("int3: 0000", "invalid opcode: 0000"))[0].stale_breakpoint


def test_a_fatal_line_is_recognised_before_its_block_ends() -> None:
    scanner = Scanner()
    assert scanner.feed("[    1.000000] hugepfn: checkpoint forked pid 7\r\n[    1.1000") == []
    assert scanner.feed("00] BUG: unable to handle page fault for address: 0") == []
    (complaint,) = scanner.feed("\r\n")
    assert complaint.fatal
    assert (complaint.kind, complaint.after) == (ComplaintKind.OOPS, "forked")
    assert scanner.fatal == complaint
    assert scanner.feed("[    1.100001] Oops: 0002 [#1] SMP\n") == []
    assert scanner.complaints[0].excerpt.endswith("Oops: 0002 [#1] SMP")


def test_a_last_line_without_a_newline_counts_at_the_end() -> None:
    scanner = Scanner()
    assert scanner.feed("Kernel panic - not syncing: Attempted to kill init!") == []
    assert [one.kind for one in scanner.finish()] == [ComplaintKind.PANIC]
    assert scanner.finish() == []


def test_an_unclosed_block_ends() -> None:
    text = "BUG: sleeping function called from invalid context\n" + "noise\n" * 1000
    (complaint,) = scan(text)
    assert complaint.excerpt.count("\n") == MAX_QUIET_LINES
    (complaint,) = scan(text.replace("noise\n", " f+0x1/0x2\n" * 3))
    assert complaint.excerpt.count("\n") + 1 == MAX_BLOCK_LINES


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: " + "a:1 at b, CPU#1: c/1 " * 190,
        "WARNING: " + "a:1 at b, CPU#1: c/1 " * 190 + "x",
        "WARNING: " + "a:1 at b, CPU#1: c/1 " * 10_000,
        "WARNING: at b, CPU#" + "1" * 4000,
        "WARNING: a:" + "1" * 4000,
        "WARNING: at b, CPU#1: c/1" + " " * 4000 + "x",
        "[" * 4000,
        "\\x1b[" * 1000 + "BUG",
        "kernel BUG at " + ":1" * 2000,
        "INFO: task " + ":1 blocked" * 400,
        "UBSAN: " + "a in" * 1000,
    ],
)
def test_no_line_takes_long(line: str) -> None:
    with at_most(10):
        scan(f"{line}\n" * 10)


@pytest.mark.parametrize("unit", [" ", "'", "a", "1", "+0x1/0x2 ", " at: f", "[<1>] ", "Comm: ", "Read ", "last "])
def test_no_line_of_a_report_takes_long(unit: str) -> None:
    firsts = (
        "BUG: KASAN: use-after-free in f",
        "BUG: workqueue leaked atomic",
        "BUG: memory leak",
        "rust_kernel: panicked at ",
    )
    text = "".join(f"{first}\n" + f"{unit * MAX_LINE_CHARS}\n" * 30 for first in firsts)
    with at_most(10):
        assert all(one.title and one.to_json() and one.where is not None for one in scan(text * 8))


@pytest.mark.parametrize(("end", "found"), [("", True), ("x", False)])
def test_a_warning_is_matched_in_linear_time(end: str, found: bool) -> None:
    with at_most(10):
        assert (classify("WARNING: " + "a:1 at b, CPU#1: c/1 " * 3000 + end) is not None) is found


def test_a_log_without_a_newline_is_read_in_linear_time() -> None:
    scanner = Scanner()
    with at_most(10):
        for _ in range(200_000):
            scanner.feed("BUG: no end " * 4)


@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_a_line_is_cut_at_the_limit(size: int) -> None:
    text = "BUG: " + "x" * (MAX_LINE_CHARS + 100) + "\nBUG: y\n" + "BUG: " + "z" * (MAX_LINE_CHARS - 5)
    scanner = Scanner()
    for start in range(0, len(text), size):
        scanner.feed(text[start : start + size])
    scanner.finish()
    first, second, third = scanner.complaints
    assert first.line == first.excerpt == "BUG: " + "x" * (MAX_LINE_CHARS - 5)
    assert (second.line, second.number) == ("BUG: y", 2)
    assert len(third.line) == MAX_LINE_CHARS


def test_a_flood_of_complaints_does_not_fill_the_memory_or_hide_a_fatal_one() -> None:
    scanner = Scanner()
    told = scanner.feed("BUG: x\n" * (MAX_COMPLAINTS + 5) + "more of the last\n")
    assert len(told) == len(scanner.complaints) == MAX_COMPLAINTS
    assert scanner.complaints[-1].excerpt == "BUG: x"
    assert scanner.feed("BUG: y\n") == []
    panic, *others = scanner.feed("Kernel panic - not syncing: a\nits stack\nKernel panic - not syncing: b\n")
    assert (panic.line, others) == ("Kernel panic - not syncing: a", [])
    assert scanner.fatal is not None
    assert scanner.fatal.excerpt == "Kernel panic - not syncing: a\nits stack"


def test_skipped_lines_are_counted_too() -> None:
    text = "a\n\nb\nBUG: x\n</TASK>\nc\nd BUG\ne\nBUG: Bad rss-counter state mm:1\nf\nBUG: z\n"
    assert [one.number for one in scan(text)] == [4, 9, 11]
    assert [one.number for one in scan("BUG: x\n" + text)] == [1, 5, 10, 12]


def test_text_before_the_timestamp_does_not_hide_a_complaint() -> None:
    (complaint,) = scan("guest login: [    1.000000] BUG: Bad rss-counter state mm:1\r\n")
    assert complaint.line == "BUG: Bad rss-counter state mm:1"


def test_fatal_kinds() -> None:
    assert {kind for kind in ComplaintKind if kind.fatal} == {
        *(K.OOPS, K.PANIC, K.PAGE_TABLE_CHECK, K.KERNEL_BUG, K.GENERAL_PROTECTION, K.DIVIDE_ERROR, K.DOUBLE_FAULT),
        *(K.STACK_OVERFLOW, K.RUST_PANIC),
    }


def test_a_non_fatal_complaint_leaves_the_scanner_going() -> None:
    scanner = Scanner()
    scanner.feed(read("warning_6_12.log"))
    assert scanner.complaints
    assert scanner.fatal is None


def test_the_last_checkpoint() -> None:
    assert last_checkpoint_of(read("clean_boot.log")) == "done"
    assert last_checkpoint_of("") == ""


@pytest.mark.parametrize(
    "line",
    ["say hugepfn: checkpoint a pid 1", "hugepfn: checkpoint a b pid 1", "hugepfn: checkpoint a pid", "hugepfn: a"],
)
def test_lines_that_are_not_checkpoints(line: str) -> None:
    assert last_checkpoint_of(f"{line}\n") == ""


OOPS = """\
[    1.0] BUG: unable to handle page fault for address: ffc171ef84000028
[    1.0] RIP: 0010:_raw_spin_lock+0x17/0x30
[    1.0] Call Trace:
[    1.0]  <TASK>
[    1.0]  {sure}__split_huge_pmd+0xc1/0x160
[    1.0]  {sure}vma_adjust_trans_huge+0xdb/0x1a0
[    1.0]  ? pagemap_read+0xef/0x3b0
[    1.0] RIP: 0033:0x43fb07
[    1.0]  </TASK>
[    1.0] ---[ end trace 0000000000000000 ]---
"""


@pytest.mark.parametrize(
    ("sure", "where"),
    [
        ("", "in _raw_spin_lock(), from __split_huge_pmd(), vma_adjust_trans_huge()"),
        ("? ", "in _raw_spin_lock(), from __split_huge_pmd(), vma_adjust_trans_huge(), pagemap_read()"),
    ],
)
def test_guessed_functions_are_used_only_if_there_are_no_others(sure: str, where: str) -> None:
    (complaint,) = scan(OOPS.format(sure=sure))
    assert complaint.where == where


def test_a_complaint_without_a_trace_has_no_functions() -> None:
    (complaint,) = scan("[    1.0] BUG: Bad rss-counter state mm:1 type:2 val:3\n")
    assert complaint.where == ""


@pytest.mark.parametrize("count", [1, 8, 9, 12])
def test_the_innermost_eight_functions_are_kept(count: int) -> None:
    frames = "".join(f"[    1.0]  f{number}+0x1/0x2\n" for number in range(count))
    end = "[    1.0]  </TASK>\n[    1.0] ---[ end trace 0000000000000000 ]---\n"
    (complaint,) = scan(f"[    1.0] BUG: kernel NULL pointer dereference, address: 0\n[    1.0]  <TASK>\n{frames}{end}")
    assert complaint.trace == tuple(f"f{number}" for number in range(count))
    others = ", ".join(f"f{number}()" for number in range(1, min(count, 8)))
    assert complaint.where == "in f0()" + (f", from {others}" if others else "")


def test_a_trace_begins_with_the_first_rip_alone() -> None:
    text = (
        "[    1.0] BUG: kernel NULL pointer dereference, address: 0\n[    1.0] RIP: 0010:inner+0x1/0x2\n"
        "[    1.0] Call Trace:\n[    1.0]  <TASK>\n[    1.0]  outer+0x1/0x2\n[    1.0]  </TASK>\n"
        "[    1.0] RIP: 0010:another+0x1/0x2\n[    1.0] ---[ end trace 0000000000000000 ]---\n"
    )
    assert scan(text)[0].trace == ("inner", "outer")
