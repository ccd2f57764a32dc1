"""Checks that output without colour has the same information: a pipe, a CI log and a mail have no colour."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from harness import cli, doctor
from harness.campaign import reporter as reporting
from harness.campaign.compare import Comparison, report_lines
from harness.campaign.matrix import print_table
from harness.campaign.reporter import RunReporter, entry_lines
from harness.campaign.series import PatchStep, change_lines
from harness.commands.walk_view import process_line, range_lines, vma_lines, walk_lines
from harness.host import packages
from harness.introspect.processes import ProcessRoot, ProcessVmas
from harness.introspect.vmas import Vma, VmaLine
from harness.kernel import Offer
from harness.kselftest import items
from harness.kselftest.report import KselftestReporter
from harness.pagetable import Bits, Entry, Layout, Level, Observation, Walk
from harness.qemu.binary import find_qemu
from harness.session.state import MachineState
from harness.verdict import Claim, Outcome, Run, ScenarioResult
from harness.verdict.claims import BugSeen
from harness.verdict.differences import compare_runs
from harness.verdict.entries import as_text, rows
from harness.verdict.series import changes
from harness.verdict.table import Column, Mark, Table

PAGE = Path(reporting.__file__).parent / "page"
ANSI = re.compile(r"\x1b\[[0-9;]*m")
NAMES = ("P", "W", "U", "PCD", "A", "D", "PSE", "SPECIAL", "SAVED_DIRTY", "NX")
Print = Callable[[Console], None]


def rendered(draw: Print) -> str:
    """Return the output for a pipe. The output with colour must have the same words."""
    plain, coloured = io.StringIO(), io.StringIO()
    draw(Console(file=plain, width=200, highlight=False, force_terminal=False))
    draw(Console(file=coloured, width=200, highlight=False, force_terminal=True, color_system="truecolor"))
    assert "\x1b" not in plain.getvalue()
    assert ANSI.search(coloured.getvalue()), "nothing was coloured, so nothing was compared"
    assert ANSI.sub("", coloured.getvalue()) == plain.getvalue()
    return plain.getvalue()


def printer(lines: Any) -> Print:
    kept = list(lines)

    def draw(console: Console) -> None:
        for line in kept:
            console.print(line, soft_wrap=True)

    return draw


def seen(checkpoint: str, bits: tuple[str, ...], raw: int = 1, level: str = "pud") -> Observation:
    return Observation(checkpoint, "parent", "bar", 0, level, raw, bits, "bar+0x0", None)


# --- entries -------------------------------------------------------------------------------------


def test_a_cleared_bit_does_not_look_set() -> None:
    table = rows([seen("forked", ("P", "W", "D")), seen("cleaned", ("P", "SAVED_DIRTY")), seen("gone", (), 0, "none")])
    lines = rendered(printer(entry_lines(table))).splitlines()
    bits = [line.split("0x00")[1].split(" ", 1)[1].split("bar+")[0].split() for line in lines if " 0x" in line]
    assert bits[:2] == [["P", "W", "D"], ["P", "+SAVED_DIRTY", "-D", "-W"]]
    assert bits[2][:2] == ["-P", "-SAVED_DIRTY"]


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy host
@given(st.lists(st.frozensets(st.sampled_from(NAMES)), min_size=1, max_size=4))
def test_set_bits_are_visible_without_colour(stops: list[frozenset[str]]) -> None:
    found = [seen(f"stop{n}", tuple(name for name in NAMES if name in bits), n) for n, bits in enumerate(stops)]
    table = rows(found)
    printed = [line.plain for line in entry_lines(table) if " 0x" in line.plain]
    before = stops[0]
    for one, line, message in zip(stops, printed, as_text(table).splitlines(), strict=True):
        for words in (line.split(), message.split()):
            assert {name for name in NAMES if name in words or f"+{name}" in words} == one
            assert {name for name in NAMES if f"+{name}" in words} == one - before
            assert {name for name in NAMES if f"-{name}" in words} == before - one
        before = one


def walk(raw: int, vaddr: int = 0x7F0000003000) -> Walk:
    raws = zip((0x3067, 0x4067, 0x5067, raw), (Level.PGD, Level.PUD, Level.PMD, Level.PTE), strict=True)
    return Walk(vaddr, tuple(Entry(word, level, Layout.MODERN) for word, level in raws))


def test_watched_walks_ranges_and_vmas() -> None:
    line = next(
        line
        for line in rendered(printer(walk_lines(walk(0x8400000000006025), walk(0x8000000000005067)))).splitlines()
        if "pte[" in line
    )
    assert line.split()[2:] == ["P", "U", "A", "+SAVED_DIRTY", "NX", "-W", "-D", "pfn=0x6", "(was", "pfn=0x5)"]
    root = ProcessRoot(100, 100, "sleeper", 0x2000, Layout.MODERN)

    def vma(start: int) -> Vma:
        return Vma(VmaLine(start, start + 4096, "rw-p", 0, ""), {Level.PTE: 1}, 0, {Bits.W: 1})

    now, before = ProcessVmas(root, (vma(0x5000),), 0), ProcessVmas(root, (vma(0x9000),), 0)
    words = rendered(printer([process_line(root), *vma_lines(now, before)]))
    assert [line.split()[0] for line in words.splitlines()[2:]] == ["+5000-6000", "-9000-a000"]
    assert list(range_lines.__annotations__) == [
        "now",
        "previous",
        "return",
    ]  # its cells are the same as those of a walk


def test_watching_through_a_pipe_prints_every_reading(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = ProcessRoot(100, 100, "sleeper", 0x2000, Layout.MODERN)
    looks = iter([(root, walk(0x8000000000005067)), (root, walk(0x8400000000005025))])

    def call(verb: str, **_arguments: object) -> object:
        if verb == "state":
            return MachineState()
        try:
            return next(looks)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("harness.commands.inspect.client_of", lambda _name: SimpleNamespace(call=call))
    with pytest.raises(SystemExit):
        cli.main(["walk", "100", "7f0000003000", "--watch", "--every", "0.05"])
    said = capfd.readouterr().out
    assert said.count("pte[3]") == 2
    assert "P U A +SAVED_DIRTY NX -W -D" in said


# --- verdicts ------------------------------------------------------------------------------------


def run_report(result: ScenarioResult) -> str:
    def draw(console: Console) -> None:
        shown = RunReporter(console)
        shown.replay(Run((result,), {"kernel": None}))

    return rendered(draw)


def test_each_outcome_has_its_own_word() -> None:
    whole = {run_report(ScenarioResult("fork", "pud", outcome, "why")) for outcome in Outcome}
    claims = {
        run_report(ScenarioResult("fork", "pud", Outcome.PASSED, "", (Claim("keeps D", outcome, "f()"),))).split()[3]
        for outcome in Outcome
    }
    assert len(whole) == len(claims) == len(Outcome)


def test_a_known_bug_is_named_once() -> None:
    known = ScenarioResult("fork", "pud", Outcome.KNOWN_BUG, known_bugs=(BugSeen("HP-7", "D is lost"),))
    assert run_report(known).splitlines()[0] == "fork pud: known bug HP-7: D is lost"
    passed = ScenarioResult("fork", "pud", Outcome.PASSED)
    (comparison,) = compare_runs(Run((passed,)), Run((known,)))
    assert [one.after for one in comparison.differences] == ["known bug HP-7: D is lost"]


def test_tables_of_several_kernels() -> None:
    def column(name: str, outcome: Outcome, bits: tuple[str, ...], raw: int) -> Column:
        one = seen("forked", bits, raw)
        return Column(name, (Run((ScenarioResult("fork", "pud", outcome, "", (), (one,)),)),))

    columns = [column("a", Outcome.PASSED, ("P", "W"), 3), column("b", Outcome.FAILED, ("P", "D"), 0x41)]
    table = Table.of(columns)
    assert "pass  FAIL" in rendered(lambda console: print_table(console, table, {}))
    assert len({mark.value for mark in Mark}) == len(Mark)
    steps = [PatchStep("base", "", "a"), PatchStep("1/1", "x", "b")]
    assert "fork pud: pass -> FAIL at 1/1 x" in rendered(printer(change_lines(steps, table, changes(table))))
    runs = (columns[0].runs[0], columns[1].runs[0])
    lines = report_lines(Comparison(("a", "b"), runs, compare_runs(*runs)))
    assert "parent at forked, bar+0x0: pud 0000000000000003 -> 0000000000000041 +D -W" in rendered(printer(lines))


@pytest.mark.parametrize("outcome", ["passed", "failed", "skipped"])
def test_selftests(outcome: Any) -> None:
    def draw(console: Console) -> None:
        shown = KselftestReporter(console)
        for nodeid in ("mm::soft-dirty::point", "mm::soft-dirty"):
            report = pytest.TestReport(nodeid, ("", 0, ""), {}, outcome, ("", 0, "Skipped: no"), "call")
            setattr(report, items._ATTRIBUTE, items.Told(items.Verdict(outcome), "Skipped: no"))
            shown.pytest_runtest_logreport(report)
        shown.verdict()

    assert f"mm::soft-dirty: {outcome}" in rendered(draw)


# --- commands ------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Return what a command prints. The words must be the same with and without colour."""
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho 'QEMU emulator version 8.2.1 (fake)'\n")
    qemu.chmod(0o755)
    for name, value in {"HUGEPFN_QEMU": str(qemu), "HUGEPFN_CACHE_DIR": str(tmp_path), "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    find_qemu.cache_clear()

    def run(*args: str) -> str:
        said = []
        for colour in ("NO_COLOR", "FORCE_COLOR"):
            with monkeypatch.context() as patch:
                patch.delenv("NO_COLOR", raising=False)
                patch.delenv("FORCE_COLOR", raising=False)
                patch.setenv(colour, "1")
                patch.setenv("TERM", "xterm-256color")
                with pytest.raises(SystemExit):
                    cli.main(args)
            said.append(capfd.readouterr().out)
        assert ANSI.search(said[1])
        assert ANSI.sub("", said[1]) == said[0]
        return said[0]

    yield run
    find_qemu.cache_clear()


def test_commands(command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fork  pte pmd pud" in command("list")
    monkeypatch.setattr(packages, "find", lambda need: None if need.name in ("gcc", "busybox") else f"/bin/{need.name}")
    monkeypatch.setattr(doctor, "kvm_proof", lambda *_: SimpleNamespace(works=True, reason=""))
    said = command("doctor")
    assert {line.split()[0] for line in said.splitlines() if ": " in line} == {"ok", "note", "missing", "To"}
    offers = [Offer("", f"6.{n}", f"6.{n}-amd64", "sid", f"6.{n}", bool(n)) for n in (0, 1)]
    monkeypatch.setattr("harness.kernel.available", lambda *_args, **_more: offers)
    assert [line.split()[-1] for line in command("kernels").splitlines()[1:]] == ["sid", "yes"]


# --- the page ------------------------------------------------------------------------------------


def test_the_page_does_not_depend_on_colour() -> None:
    style = (PAGE / "page.css").read_text()
    assert not re.search(r"[ {]content:", style), "text that CSS adds is neither copied nor read by a screen reader"
    assert "line-through" not in style
    assert "forced-colors: active" in style
    for state in ("changed", "pfn"):
        assert re.search(rf"\.strip i\.{state} \{{ height: ", style), f"{state} is shown by colour alone"


def test_nothing_is_struck_through() -> None:
    for path in Path(cli.__file__).parent.rglob("*.py"):
        assert not re.search(r"[\"' ]strike\b", path.read_text()), f"{path}: strike-through is lost in a pipe"
