"""Tests for runs on several kernels: the child process of each, and the printed tables. The child is a script."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import logs
from harness.campaign import kernels
from harness.campaign.compare import Comparison, report_lines
from harness.campaign.event_stream import RunEnded, RunEvent, TestEnded, TestStarted, encode
from harness.campaign.kernels import RunOptions, choose_kernels, run_kernel, takes_modules
from harness.campaign.matrix import print_table, table_lines
from harness.config import MachineConfig
from harness.errors import ExitCode, MachineryError, UsageError
from harness.events import Compiled, Note
from harness.kernel import Offer
from harness.selection.selected import Selected
from harness.verdict import Outcome, Run, ScenarioResult
from harness.verdict.differences import compare_runs
from harness.verdict.table import TROUBLE, Column, Table
from tests.sample_pages import observation, run_of

PASSED = ScenarioResult("fork", "pud", Outcome.PASSED)
SKIPPED = ScenarioResult("fork", "pmd", Outcome.SKIPPED, "no huge pfnmap")


def silent(_event: object) -> None:
    """Ignore all events."""


# --- the child -----------------------------------------------------------------------------------


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in place of ``vm.py``. A test writes its content."""
    monkeypatch.setattr(kernels, "guest_tests_dir", lambda: tmp_path / "guest_tests")
    return tmp_path / "vm.py"


def write_results(*results: ScenarioResult) -> str:
    text = json.dumps(Run(results, {"argv": "ARGV"}).to_json())
    return (
        "import sys, json\nfile = sys.argv[sys.argv.index('--json') + 1]\n"
        f"open(file, 'w').write({text!r}.replace('\"ARGV\"', json.dumps(sys.argv[1:])))\n"
    )


EVENTS = "events = open([word for word in sys.argv if word.startswith('--events=')][0][9:], 'w')\n"


def write_events(*events: RunEvent) -> str:
    """Return the source lines of a child that writes these events."""
    return EVENTS + "".join(f"print({encode(event)!r}, file=events, flush=True)\n" for event in events)


def test_a_run_has_the_childs_results_and_its_events_are_passed_on(child: Path) -> None:
    told: list[RunEvent] = [Compiled("mm/memory.o", 7, 900, 1.5), TestStarted("test_fork[pud]"), TestEnded(PASSED)]
    child.write_text(write_results(PASSED, SKIPPED) + "print('fork pud: passed')\n" + write_events(*told))
    said: list[RunEvent] = []
    run = run_kernel("debian:6.12", [Selected(None, "fork", "pud")], RunOptions(), said.append)
    assert run.results == (PASSED, SKIPPED)
    assert TROUBLE not in run.context
    assert said == told, "what the child prints for people is not passed on"


def test_a_child_without_results_gives_the_reason_in_its_last_event(child: Path) -> None:
    words = "no kernel matches debian:6.99"
    child.write_text("import sys\n" + write_events(RunEnded(ExitCode.USAGE, words)) + "sys.exit(2)\n")
    assert run_kernel("debian:6.99", [Selected(None, "fork")], RunOptions()).context[TROUBLE] == words


def test_a_child_whose_events_are_garbage_is_an_error(child: Path) -> None:
    child.write_text("import sys\n" + EVENTS + "print('fork pud: passed', file=events)\n")
    with pytest.raises(MachineryError, match="a line of its events cannot be read: 'fork pud: passed'"):
        run_kernel("debian:6.12", [Selected(None, "fork")], RunOptions())


def test_the_child_gets_the_options(child: Path) -> None:
    child.write_text(write_results(PASSED))
    options = RunOptions(
        MachineConfig(smp=2, append=("pti=on", "no5lvl"), modules=Path("/m"), boot_timeout_s=9, guest="host"),
        levels=("pmd", "pud"),
        strict=True,
    )
    words = run_kernel("./bzImage", [Selected(None, "fork"), Selected(None, "zap", "pmd")], options).context["argv"]
    assert words[0] == "run"
    assert "--kernel=./bzImage" in words
    assert words[-3:-1] == ["fork", "zap:pmd"]
    given = {"--level=pmd", "--level=pud", "--smp=2", "--append=pti=on no5lvl", "--strict", "--modules=/m"}
    assert given | {"--boot-timeout=9", "--guest=host"} <= set(words)
    assert {"--no-pvh", "--clone"} <= set(words)
    assert "--modules=/m" not in run_kernel("debian:6.12", [], options).context["argv"]


def test_the_child_shows_its_log_on_our_standard_error(child: Path, tmp_path: Path) -> None:
    logging_child = "import logging\nfrom harness import logs\nlogs.show_as_parent()\n"
    child.write_text(f"{logging_child}logging.getLogger('hugepfn.x').debug('of the child')\n{write_results(PASSED)}")
    with (tmp_path / "log").open("w") as log:
        logs.show(2, log.fileno())
        try:
            run = run_kernel("debian:6.12", [], RunOptions())
        finally:
            logs.hide()
    assert TROUBLE not in run.context
    assert (tmp_path / "log").read_text().endswith(" x] of the child\n")


@pytest.mark.parametrize(
    ("script", "trouble"),
    [
        ("import sys; sys.exit('Usage: hugepfn')", "Usage: hugepfn"),
        ("raise KeyError('typo')", "KeyError: 'typo'"),
        ("import os; os.kill(os.getpid(), 9)", "the run ended (killed by SIGKILL): it said nothing"),
        (write_results(), "nothing was run"),
        ("import sys; open(sys.argv[sys.argv.index('--json') + 1], 'w').write('{')", "no results"),
        ("", "no results"),
    ],
)
def test_a_failed_child_is_recorded_as_trouble(child: Path, script: str, trouble: str) -> None:
    child.write_text(script)
    run = run_kernel("debian:6.1", [], RunOptions())
    assert (run.results, run.context[TROUBLE]) == ((), trouble)


def test_a_child_killed_after_its_results_keeps_them_and_is_reported(child: Path) -> None:
    child.write_text(write_results(PASSED) + "import os; os.kill(os.getpid(), 11)\n")
    run = run_kernel("debian:6.1", [], RunOptions())
    assert run.results == (PASSED,)
    assert "SIGSEGV" in run.context[TROUBLE]


@pytest.mark.parametrize("status", [1, 2, 3])
def test_a_child_with_an_unexpected_status_has_lost_results(child: Path, status: int) -> None:
    child.write_text(write_results(PASSED) + f"sys.exit({status})\n")
    run = run_kernel("debian:6.1", [], RunOptions())
    assert run.results == (PASSED,)
    assert run.context[TROUBLE] == f"the run ended with exit status {status}: it said nothing"
    assert Table.of([Column("debian:6.1", (run,))]).exit_code() == 3
    child.write_text(write_results(SKIPPED) + "sys.exit(1)\n")
    assert TROUBLE not in run_kernel("debian:6.1", [], RunOptions(strict=True)).context


def test_an_interrupted_child_interrupts_the_campaign(child: Path) -> None:
    child.write_text("import sys; sys.exit(130)")
    with pytest.raises(KeyboardInterrupt):
        run_kernel("debian:6.1", [], RunOptions())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    """The child holds a pipe open until it ends, so the end of the pipe shows that it has ended."""
    (tmp_path / "vm.py").write_text("import signal, sys\n" + write_events(Note("up")) + "signal.pause()\n")
    reader, writer = os.pipe()
    parent = (
        "import pathlib, os, signal\nfrom harness.campaign import kernels\n"
        # If the tests run in the background of a shell, SIGINT is ignored, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"kernels.guest_tests_dir = lambda: pathlib.Path({str(tmp_path)!r}) / 'guest_tests'\n"
        "popen = kernels.subprocess.Popen\n"
        f"kernels.subprocess.Popen = lambda *a, **k: popen(*a, **{{**k, 'pass_fds': [{writer}, *k['pass_fds']]}})\n"
        "kernels.run_kernel('debian:6.1', [], kernels.RunOptions(), lambda event: print(event, flush=True))\n"
    )
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", parent],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=[writer],
    ) as process:
        os.close(writer)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
    assert select.select([reader], [], [], 60)[0], "the child has not ended: its end of the pipe is still open"
    assert os.read(reader, 1) == b""
    os.close(reader)


# --- the kernels -----------------------------------------------------------------------------------


def test_all_stock_is_the_newest_of_each_series_and_names_incomplete_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    offers = [Offer("i", f"{v}-1", v, "sid", v) for v in ("6.12.1", "6.12.9", "6.1.4")]
    offers.append(Offer("linux-image-7.0.1", "7.0.1-1", "7.0.1", "sid", "7.0.1", gone=("linux-modules-7.0.1",)))
    monkeypatch.setattr(kernels, "available", lambda *_, **__: offers)
    chosen = choose_kernels(["./bzImage", "all-stock", "debian:6.1.4"], silent)
    assert chosen.specs == ("bzImage", "debian:6.1.4", "debian:6.12.9")
    assert list(chosen.missing) == ["7.0"]
    assert "without linux-modules-7.0.1" in chosen.missing["7.0"]


def test_only_a_kernel_given_by_path_takes_modules() -> None:
    assert takes_modules("./bzImage")
    assert not takes_modules("debian:6.12")
    with pytest.raises(UsageError):
        takes_modules("fedora:40")


# --- what is printed -----------------------------------------------------------------------------


def printed(table: Table, width: int | None = None, **more: Any) -> str:
    console = Console(record=True, width=200, force_terminal=False)
    if width is not None:
        return "\n".join(line.plain for line in table_lines(table, width))
    with console.capture() as captured:
        print_table(console, table, **more)
    return captured.get()


def test_the_table_with_its_footnotes() -> None:
    table = Table.of(
        [
            Column("debian:6.1", (Run((SKIPPED, PASSED)),)),
            Column("debian:6.12", (Run((ScenarioResult("fork", "pmd", Outcome.PASSED), PASSED)),)),
            Column("./bzImage", (Run((), {TROUBLE: "it is [bold] gone"}),)),
        ]
    )
    assert printed(table, missing={"7.0": "only in part"}).splitlines() == [
        "          6.1     6.12  ./bzImage",
        "fork pmd  skip 1  pass  error 2",
        "fork pud  pass    pass  error 2",
        "",
        "  1  no huge pfnmap",
        "  2  it is [bold] gone",
        "not available: 7.0: only in part",
        "",
        "3 kernels, 2 cases: 3 pass, 1 skip, 2 error",
    ]


def test_a_narrow_terminal_gets_the_columns_in_blocks() -> None:
    table = Table.of([Column(f"debian:6.{number}", (Run((PASSED,)),)) for number in range(5)])
    assert printed(table, width=24).splitlines() == [
        *("          6.0   6.1", "fork pud  pass  pass", ""),
        *("          6.2   6.3", "fork pud  pass  pass", ""),
        *("          6.4", "fork pud  pass"),
    ]
    assert len(printed(table, width=10).splitlines()) == 14, (
        "each block has at least one column, however narrow the terminal is"
    )


def test_a_difference_is_printed_with_both_entries() -> None:
    runs = (run_of(observation("P W D", 0xC3)), run_of(observation("P SAVED_DIRTY", 1 << 58 | 0x81)))
    lines = [line.plain for line in report_lines(Comparison(("debian:6.12", "./bzImage"), runs, compare_runs(*runs)))]
    assert lines == [
        "A  debian:6.12",
        "B  ./bzImage",
        "\nfork pud",
        "  child at forked, bar+0x0: pud 00000000000000c3 -> 0400000000000081 +SAVED_DIRTY -W -D",
        "\n1 of 1 cases differ",
    ]
