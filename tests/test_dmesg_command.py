"""Tests for ``hugepfn dmesg``: its output, its exit status, and reading from an endless pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from harness.verdict import Taint
from harness.verdict.log.rust_names import demangled
from harness.verdict.log.scanner import MAX_WAITING, ReportStream
from harness.verdict.log.taint import letters, of_letters
from tests import schemas
from tests.dmesg_logs import FOLDER, GoldenLog, logs

UAF = FOLDER / "kasan_slab_uaf.log"


def run(*words: str, given: bytes = b"") -> tuple[int, str, str]:
    """Run the command, and return its exit status and its output."""
    done = subprocess.run(
        [hugepfn(), *words],
        input=given,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def hugepfn() -> str:
    return str(Path(sys.executable).with_name("hugepfn"))


def test_a_report_for_a_reader() -> None:
    status, out, _ = run("dmesg", str(UAF))
    assert status == 1
    title, *rows = out.splitlines()
    assert title == "KASAN: slab-use-after-free Read in probe_read"
    assert dict(row.split(maxsplit=1) for row in rows) == {
        "kind": "kasan",
        "function": "probe_read()",
        "process": "probe/612",
        "cpu": "0",
        "taint": "none",
        "lines": "9-52",
    }


def test_a_clean_log() -> None:
    clean = GoldenLog.read(FOLDER / "clean_quotes.log").text.encode()
    assert run("dmesg", "-", given=clean) == (0, "the log has no report\n", "")
    status, out, _ = run("dmesg", "-", "--json", given=clean)
    assert (status, json.loads(out)["reports"]) == (0, [])


@pytest.mark.parametrize(("name", "words"), [("nothing", "does not exist"), (".", "is a directory")])
def test_a_bad_file(tmp_path: Path, name: str, words: str) -> None:
    status, out, err = run("dmesg", str(tmp_path / name))
    assert (status, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_json_of_all_logs_fits_its_schema() -> None:
    text = "".join(log.text + "\n" for log in logs()).encode()
    status, out, _ = run("dmesg", "--json", "-", given=text)
    data = json.loads(out)
    assert (status, schemas.check(data)) == (1, "hugepfn-dmesg")
    assert len(data["reports"]) > len(logs())
    begins = [one["first_line"] for one in data["reports"]]
    assert begins == sorted(begins)


def test_control_characters_are_shown_as_their_codes() -> None:
    status, out, _ = run("dmesg", "-", given=b"BUG: \x1b]0;title\x07 \xe2\x80\xae gnp.exe\n\x00\xff\n")
    assert status == 1
    assert out.splitlines()[0] == "BUG: \\x1b]NUM;title\\x07 \\u202e gnp.exe"
    assert all(char.isprintable() or char == "\n" for char in out)


def test_a_report_is_printed_while_the_log_goes_on() -> None:
    ours, theirs = os.pipe()
    with subprocess.Popen([hugepfn(), "dmesg", "-"], stdin=ours, stdout=subprocess.PIPE) as process:
        os.close(ours)
        assert process.stdout is not None
        os.write(theirs, b"BUG: Bad rss-counter state mm:1 type:1 val:1\n")
        assert process.stdout.readline() == b"BUG: Bad rss-counter state\n"
        os.close(theirs)
    assert process.returncode == 1


def test_memory_is_bounded_on_a_flood() -> None:
    stream, found = ReportStream(), 0
    piece = ("BUG: x\n" + "y" * 200 + "\n") * 2000
    open_for_long = "[    1.000000][    T1] BUG: KASAN: use-after-free in f+0x1/0x2\n"
    tracemalloc.start()
    try:
        found += len(stream.feed(open_for_long))
        for _ in range(20):
            found += len(stream.feed(piece))
        assert tracemalloc.get_traced_memory()[1] < 20 * 1024 * 1024
    finally:
        tracemalloc.stop()
    found += len(stream.finish())
    assert found == 20 * 2000 + 1
    assert MAX_WAITING < 2000


@pytest.mark.parametrize("taint", [Taint(0), Taint.WARN, Taint.DIE | Taint.WARN | Taint.OOT_MODULE])
def test_letters_of_a_taint(taint: Taint) -> None:
    assert of_letters(f"G {letters(taint)} ") == taint


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("vfs_read", "vfs_read"),
        ("_RNvCs1_6kernel4init", "kernel::init"),
        ("_RNvMNtCs2b_6rprobe5queueNtB2_5Queue4push", "<rprobe::queue::Queue>::push"),
        ("_RNvXs_Cs1_1aNtB4_1TNtCs3c_6kernel2Op3run", "<a::T as kernel::Op>::run"),
        ("_RINvCs1_1a1fhReE", "a::f::<u8, &str>"),
        ("_RNCNvCs1_1a1f0", "a::f::{closure}"),
        ("_RINvCs1_1a1fTlmEAhj4_SbPdOfKj7_E", "a::f::<(i32, u32), [u8; 4], [bool], *const f64, *mut f32, 7>"),
        ("_RINvCs1_1a1fL_Qsp_E", "_RINvCs1_1a1fL_Qsp_E"),
        ("_RNvC3ab", "_RNvC3ab"),
        ("_RB_", "_RB_"),
        ("_R", "_R"),
        ("_RNvYhNtCs1_1a1T1f", "<u8 as a::T>::f"),
        ("_Z5probei", "probe"),
        ("_Z50probe", "_Z50probe"),
    ],
)
def test_names_of_other_languages(symbol: str, name: str) -> None:
    assert demangled(symbol) == name
