"""A finding as a C file: a plain gcc takes it without a warning, whatever its operations and its symptom are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.bugs.__main__ import PARTS
from harness.bugs.compose import parts
from harness.explorer.reproducer import reproducer
from harness.model.draw import draw
from harness.model.operation import Operation, Verb
from harness.verdict.invariants import Deviation, Oracle
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.troubles import End, EndKind, KernelComplaint
from harness.verdict.symptoms import Ended, Shown

AVAILABLE = parts(PARTS.read_text())
#: Until every operation has been drawn.
LONG = tuple(op for number in range(300) for op in draw(1, number, 12, tuple(Verb)))
MOVED = "0:map:0:40000000:0:bar:rw 0:write:1000:0:0:bar: 0:mremap:0:40000000:80000000:bar:"


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (Deviation(Oracle.UNTOUCHED, "smaps", "pud", "no change", "gone"), "say(turn->refaults > 0, "),
        (Deviation(Oracle.UNTOUCHED, "fork", "pud", "no change", "-W"), 'cannot_tell("user space cannot see the bits'),
        (Deviation(Oracle.DATA, "read", "pmd", "0x1", "0x2"), "say(turn->word != 0x1ul, "),
        (
            Deviation(Oracle.ERRNO, "madvise cold", "", "0 or EINVAL", "ENOMEM"),
            'say(strcmp((char *)turn->said, "0") && strcmp((char *)turn->said, "EINVAL"), ',
        ),
        (
            Deviation(Oracle.PROGRESS, "write", "pmd", "an end", "endless faults"),
            'say(strcmp((char *)turn->said, "0"), ',
        ),
        (
            KernelComplaint(ComplaintKind.BAD_PUD, "mm/pgtable-generic.c:42: bad pud 0(1)", (), "bad pud"),
            'say(logged("bad pud") > before, ',
        ),
        (Ended(End(EndKind.DIED)), 'say(0, "the kernel lives")'),
    ],
)
def test_a_plain_gcc_builds_it_without_a_warning(shown: Shown, words: str, tmp_path: Path) -> None:
    assert {op.verb for op in LONG} == set(Verb)
    source = tmp_path / "finding.c"
    source.write_text(reproducer(LONG, shown, "6.12.118", AVAILABLE))
    assert words in source.read_text()
    assert max(map(len, source.read_text().partition("*/")[0].splitlines())) <= 120
    argv = ["gcc", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o", str(tmp_path / "program"), str(source)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_leaf_that_was_moved_is_asked_for_where_it_is_now() -> None:
    operations = tuple(map(Operation.parse, MOVED.split()))
    lost = Deviation(Oracle.DIRT, "mremap", "pud", "dirty", "no entry")
    assert "faults_of_read(ARENA + 0x80001000ul)" in reproducer(operations, lost, "6.12.118", AVAILABLE)
