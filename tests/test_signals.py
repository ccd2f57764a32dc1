"""Checks that signals ignored at the start of the command stay ignored, and that the others end it with one line."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.host import signals
from harness.host.process import run
from harness.session.client import passing_signals

ROOT = Path(__file__).resolve().parents[1]
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

# The command itself, with subcommands that print "ready" and read a line, one of them while Python ends.
COMMAND = """
import atexit, sys
sys.path.insert(0, sys.argv.pop(1))
import click
from harness import cli, entry

def read():
    print("ready", flush=True)
    print("read", sys.stdin.readline().strip())

@cli.cli.command()
def wait() -> None:
    read()

@cli.cli.command()
def leave() -> None:
    atexit.register(read)

entry.main()
"""


def _command(ignored: list[signal.Signals], name: str = "wait") -> subprocess.Popen[str]:
    """Start the command with signals ignored, as nohup and a background shell do."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(ROOT), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_signals_ignored_at_the_start_do_not_end_the_command(number: signal.Signals) -> None:
    with _command([number]) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        out, err = child.communicate("a line\n", timeout=60)
    assert (out, err, child.returncode) == ("read a line\n", "", 0)


@pytest.mark.parametrize("number", ENDING)
def test_every_other_signal_ends_the_command_with_one_line(number: signal.Signals) -> None:
    with _command([]) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    assert (err.strip(), child.returncode) == ("hugepfn: interrupted", 130)


@pytest.mark.parametrize("number", ENDING)
def test_a_command_that_is_leaving_has_its_status(number: signal.Signals) -> None:
    with _command([], "leave") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        out, err = child.communicate("a line\n", timeout=60)
    assert (out, err, child.returncode) == ("read a line\n", "", 0)


@pytest.fixture
def ignored() -> Iterator[None]:
    """Ignore SIGINT and SIGHUP in this process during a test."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("ignored")
def test_an_ignored_signal_is_not_passed_to_the_guest_either() -> None:
    sent: list[int] = []
    with passing_signals(sent.append):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert sent == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("ignored")
def test_children_inherit_what_is_ignored() -> None:
    said = run([sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT).name)"], timeout_s=60)
    assert said.stdout == b"SIG_IGN\n"


def test_signals_are_blocked_while_a_child_starts() -> None:
    heard: list[int] = []
    with signals.handling(ENDING, lambda number, _frame: heard.append(number)):
        held = signals.HeldSignals()
        for number in ENDING:
            os.kill(os.getpid(), number)
        assert heard == []
        held.release()
    assert heard == ENDING


def test_only_one_module_installs_handlers() -> None:
    found = set()
    for path in (ROOT / "harness").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in ("add_signal_handler", "sigaction", "siginterrupt"):
                found.add(path.name)
            if isinstance(called, ast.Attribute) and ast.unparse(called) == "signal.signal":
                found.add(path.name)
    assert found == {"signals.py"}
