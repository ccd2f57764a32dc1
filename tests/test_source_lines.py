"""File and line of the places in a trace: from a report's text to the lines of a program that was compiled here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from harness.errors import PremiseNotMet
from harness.introspect.source_lines import SourceLine, SourceLines, told
from harness.kernel.vmlinux import Vmlinux
from harness.plugin import evidence
from harness.verdict.log.trace import TracePlace, places
from tests import schemas

SOURCE = """\
static volatile int sink;
static inline __attribute__((always_inline)) void inner(int a)
{
	if (a > 3)
		__builtin_trap();
	sink = a;
}
__attribute__((noinline)) void outer(int a)
{
	inner(a);
	sink++;
}
__attribute__((noinline)) void start_kernel(void)
{
	outer(1);
	sink++;
}
void _start(void)
{
	start_kernel();
	sink++;
}
"""
BLOCK = [
    "WARNING: mm/a.c:1 at outer+0x5/0x30, CPU#0: fork/85",
    "RIP: 0010:outer+0x5/0x30",
    "Code: 00 <0f> 0b",
    "Call Trace:",
    " <TASK>",
    " ? guess+0x0/0x10",
    " start_kernel+0x10/0x20",
    " [<ffffffff81000000>] f.isra.0+0x1f/0x40",
    " in_a_module+0x1/0x2 [vfio_pci]",
    " other+0x1/0x2 [vfio-pci 1234]",
    "RAX: 0000000000000000",
]


@pytest.fixture(scope="module")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linux")
    (folder / "init").mkdir()
    (folder / "init/main.c").write_text(SOURCE)
    options = ("-g", "-O2", "-nostdlib", "-static", "-no-pie", "-fno-optimize-sibling-calls", "-fcf-protection=none")
    argv = ["gcc", *options, "-o", str(folder / "vmlinux"), str(folder / "init/main.c")]
    subprocess.run(argv, check=True, timeout=120)
    subprocess.run(["strip", "-o", str(folder / "stripped"), str(folder / "vmlinux")], check=True, timeout=120)
    return folder / "vmlinux"


def symbols(vmlinux: Path) -> dict[str, tuple[int, int]]:
    """The address and size of each function, as nm says."""
    said = subprocess.run(["nm", "-S", vmlinux], check=True, capture_output=True, text=True, timeout=120).stdout
    rows = (re.match(r"([0-9a-f]+) ([0-9a-f]+) [tT] (\S+)", line) for line in said.splitlines())
    return {row[3]: (int(row[1], 16), int(row[2], 16)) for row in rows if row}


def returns(vmlinux: Path, caller: str) -> int:
    """The offset at which the only call in a function returns, as objdump says."""
    said = subprocess.run(
        ["objdump", "-d", f"--disassemble={caller}", vmlinux], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    after = re.search(r"\tcall .*\n +([0-9a-f]+):", said)
    assert after, said
    return int(after[1], 16) - symbols(vmlinux)[caller][0]


def test_places_are_read_as_the_kernel_prints_them() -> None:
    assert places(BLOCK) == (
        TracePlace("outer", 0x5, 0x30, returns=False),
        TracePlace("guess", 0, 0x10, guess=True),
        TracePlace("start_kernel", 0x10, 0x20),
        TracePlace("f.isra.0", 0x1F, 0x40),
        TracePlace("in_a_module", 1, 2, module="vfio_pci"),
        TracePlace("other", 1, 2, module="vfio-pci"),
    )
    assert [str(one) for one in places(BLOCK)][1:5:3] == ["? guess+0x0/0x10", "in_a_module+0x1/0x2 [vfio_pci]"]


def test_a_place_in_an_inline_function_has_two_lines(vmlinux: Path) -> None:
    lines, size = SourceLines(vmlinux), symbols(vmlinux)["outer"][1]
    inner, outer = lines.of(TracePlace("outer", 0, size, returns=False))
    assert (inner.function, inner.file, outer) == ("inner", "init/main.c", SourceLine("outer", "init/main.c", 10))
    assert inner.line in (2, 4, 6)


def test_a_call_is_where_it_was_made_and_not_where_it_returns(vmlinux: Path) -> None:
    lines, size = SourceLines(vmlinux), symbols(vmlinux)["start_kernel"][1]
    offset = returns(vmlinux, "start_kernel")
    assert lines.of(TracePlace("start_kernel", offset, size)) == (SourceLine("start_kernel", "init/main.c", 15),)
    assert lines.of(TracePlace("start_kernel", offset, size, returns=False))[-1].line == 16


def test_the_evidence_of_a_failure_has_the_lines(vmlinux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = symbols(vmlinux)["outer"][1]
    log = f"[ 1.0] WARNING: CPU: 0 PID: 7 at init/main.c:5 outer+0x0/{size:#x}\n[ 1.0] RIP: 0010:outer+0x0/{size:#x}\n"
    found = Vmlinux(vmlinux, {}, has_dwarf=True, build_id=None)
    monkeypatch.setattr(evidence, "find_vmlinux", lambda _kernel, _running: found)
    title, *lines = evidence._traces(log, cast(Any, None)).splitlines()
    assert title == "WARNING in outer"
    assert re.fullmatch(r"  inner init/main.c:\d \(inlined\)", lines[0])
    assert lines[1:] == [f"  outer+0x0/{size:#x} init/main.c:10"]
    assert evidence._traces("[ 1.0] all is well\n", cast(Any, None)) == ""
    found = replace(found, has_dwarf=False)
    assert evidence._traces(log, cast(Any, None)) == ""


@pytest.mark.parametrize("offset", [0x1000, (1 << 64) - 1])
def test_a_place_beyond_its_function_has_no_line(vmlinux: Path, offset: int) -> None:
    assert SourceLines(vmlinux).of(TracePlace("outer", offset, symbols(vmlinux)["outer"][1])) == ()


def test_the_start_of_a_function_is_not_the_end_of_the_one_before(vmlinux: Path) -> None:
    (line,) = SourceLines(vmlinux).of(TracePlace("start_kernel", 0, symbols(vmlinux)["start_kernel"][1], guess=True))
    assert line.function == "start_kernel"


@pytest.mark.parametrize(
    "place",
    [
        TracePlace("outer", 0, 0x1000),
        TracePlace("nobody", 0, 16),
        TracePlace("outer", 0, 16, module="vfio"),
    ],
    ids=str,
)
def test_what_is_not_in_this_kernel_has_no_line(vmlinux: Path, place: TracePlace) -> None:
    assert SourceLines(vmlinux).of(place) == ()
    assert list(told([place], SourceLines(vmlinux))) == [str(place)]


def test_a_vmlinux_without_debug_information_says_what_to_do(vmlinux: Path) -> None:
    with pytest.raises(PremiseNotMet, match=r"no debug information.*--fragment debuginfo"):
        SourceLines(vmlinux.parent / "stripped")


def log_of(vmlinux: Path) -> str:
    """The log of a kernel that warned in outer()."""
    found = symbols(vmlinux)
    outer = f"outer+0x0/{found['outer'][1]:#x}"
    caller = f"start_kernel+{returns(vmlinux, 'start_kernel'):#x}/{found['start_kernel'][1]:#x}"
    head = f"WARNING: init/main.c:5 at {outer}, CPU#0: swapper/1\nRIP: 0010:{outer}\n"
    return f"{head}Call Trace:\n <TASK>\n {caller}\n gone+0x1/0x2 [vfio]\n </TASK>\n---[ end trace 0 ]---\n"


def dmesg(log: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [Path(sys.executable).with_name("hugepfn"), "dmesg", log, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_shows_the_lines(vmlinux: Path) -> None:
    log = vmlinux.parent / "console.log"
    log.write_text(log_of(vmlinux))
    done = dmesg(log, "--vmlinux", vmlinux)
    assert (done.returncode, done.stderr) == (1, "")
    shown = [line.strip() for line in done.stdout.splitlines()]
    begin = next(number for number, line in enumerate(shown) if line.startswith("trace"))
    assert [re.sub(r"\+\S+", "", line) for line in shown[begin:]] == [
        "trace      inner init/main.c:4 (inlined)",
        "outer init/main.c:10",
        "start_kernel init/main.c:15",
        "gone [vfio]",
    ]
    data = json.loads(dmesg(log, "--vmlinux", vmlinux, "--json").stdout)
    schemas.check(data)
    assert [[one["line"] for one in place["source"]] for place in data["reports"][0]["trace"]] == [[4, 10], [15], []]


def test_without_debug_information_the_command_says_so_once(vmlinux: Path) -> None:
    log = vmlinux.parent / "twice.log"
    log.write_text(log_of(vmlinux) * 2)
    done = dmesg(log, "--vmlinux", vmlinux.parent / "stripped")
    assert done.returncode == 1
    assert done.stderr.count("no debug information") == 1
    assert done.stdout == dmesg(log).stdout


def test_no_such_kernel_is_a_usage_error(vmlinux: Path) -> None:
    done = dmesg(vmlinux.parent / "console.log", "--vmlinux", vmlinux.parent / "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
