"""Checks that every wait has a deadline and ends at Ctrl-C, with peers that never answer (tests/waiting.py).

docs/waits.md has the table of waits. The last test finds calls that wait in the sources of harness/: a new one needs a
deadline, or a line in UNLIMITED that says who ends it.
"""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.waiting import CASES

ROOT = Path(__file__).resolve().parents[1]
GENEROUS_S = 90.0  # beside CPU hogs; the deadlines of the long form are 60 s and more, the short ones half a second

# The error with which each wait ends after its deadline.
ERRORS = {
    "qmp-greeting": r"MachineryError: QEMU \(pid \d+\) is running, but there was no greeting on QMP within 0.5 s",
    "qmp-greeting-stopped": r"MachineryError: QEMU \(pid \d+\) was stopped by SIGSTOP .*`kill -CONT \d+`",
    "qmp-command": r"MachineryError: QEMU \(pid \d+\) is running, but there was no answer to stop within 0.5 s",
    "qmp-migration": r"MachineryError: QEMU \(pid \d+\) is running, but there was no end of migrate within 0.5 s",
    "qemu-stderr": r"MachineryError: .*QEMU ended with status 7: fake: cannot go on",
    "guest": r"DeadlineError: waiting for a guest: nothing within 0.5 s",
    "guest-internal-error": r"MachineStopped: waiting for a guest: QEMU stopped the machine \(internal-error\), so "
    r"this says nothing about the kernel; it printed: KVM internal error. Suberror: 1\nemulation failure",
    "guest-stopped": r"MachineryError: QEMU \(pid \d+\) was stopped by SIGSTOP",
    "host-work": r"DeadlineError: waiting for the end of host work: nothing within 0.5 s",
    "cache-lock": r"MachineryError: another hugepfn still prepares x after 0.5 s",
    "build-lock": r"MachineryError: another build in x has not ended after 0.5 s",
    "command": r"MachineryError: sh took more than 0.5 s",
    "followed-command": r"MachineryError: sleep took more than 0.5 s and was killed",
    "matrix-child": r"MachineryError: hugepfn run took more than 0.5 s and was killed",
    "session-stopped": r"MachineryError: the session one \(pid \d+\) does not answer: its process is stopped",
    "session-silent": r"MachineryError: the session one .* nothing within 0.5 s; `hugepfn stop -s one` ends it",
    "session-stop": r"ended",
    "session-stop-no-socket": r"ended",
    "session-start": r"MachineryError: the session's process reported nothing for 0.5 s",
    "ssh-channel": r"MachineryError: cut off: Channel (closed|is not open)",  # the second on a busy host
}
# Cases with only this form: they end by themselves.
NO_CTRL_C = {"qemu-stderr", "session-stopped", "session-stop", "session-stop-no-socket"}
NO_DEADLINE = {"cleanup", "session-exec"}  # a coroutine that is cancelled; a person's program


def _start(case: str, form: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", str(ROOT / "tests/waiting.py"), case, form],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HUGEPFN_CACHE_DIR": str(folder / "c")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _output(child: subprocess.Popen[str]) -> str:
    try:
        return child.communicate(timeout=GENEROUS_S)[0]
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGABRT)  # faulthandler prints where it waits
        pytest.fail(f"it still waits after {GENEROUS_S:g} s: {child.communicate(timeout=GENEROUS_S)[0]}")
    finally:
        child.kill()


@pytest.mark.parametrize("case", ERRORS)
def test_a_wait_ends_at_its_deadline(case: str, tmp_path: Path) -> None:
    with _start(case, "short", tmp_path) as child:
        said = _output(child)
    assert re.fullmatch(rf"waiting\n{ERRORS[case]}.*\n", said), said


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


@pytest.mark.parametrize("case", sorted(CASES.keys() - NO_CTRL_C))
def test_ctrl_c_ends_a_wait(case: str, tmp_path: Path) -> None:
    with _start(case, "long", tmp_path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        deadline = time.monotonic() + GENEROUS_S
        while not _sleeps(child.pid):
            assert time.monotonic() < deadline
        at = time.monotonic()
        child.send_signal(signal.SIGINT)
        said = _output(child)
        took_s = time.monotonic() - at
    if case == "session-exec" and said != "interrupted\n":  # while the program runs, Ctrl-C is passed on to it
        assert re.match(r"MachineryError: the session one .* its process is stopped", said), said
    else:
        assert said.startswith("interrupted\n"), said
    assert took_s < 30, "Ctrl-C must end the wait before its deadline, which is 60 s or more"


def test_every_case_is_in_the_table() -> None:
    assert set(ERRORS) | NO_DEADLINE == set(CASES)
    table = (ROOT / "docs/waits.md").read_text()
    assert [case for case in CASES if f"`{case}`" not in table] == []


# --- the sources ----------------------------------------------------------------------------------

#: Calls that wait without a deadline of their own: (file below harness/, call), and who ends the wait.
UNLIMITED = {
    ("host/cache.py", "fcntl.flock(descriptor, fcntl.LOCK_EX)"): "a thread's, for cache.flock(), which has a deadline",
    ("benchmark/bare.py", "end.recv(65536)"): "the end of the rival's QEMU, which has a deadline",
    ("benchmark/bare.py", "process.wait()"): "SIGKILL, just before",
    ("benchmark/bare.py", "agent.recv(1)"): "the timeout of the socket",
    ("campaign/units/parallel.py", "inbox.get()"): "ended_after(), of each unit's child; its end is in the queue",
    ("campaign/units/parallel.py", "message.result()"): "it is done",
    ("campaign/kernels.py", "child.wait()"): "ended_after(); SIGKILL, just before",
    ("host/process.py", "process.wait()"): "ended_after()",
    ("qemu/accel.py", "process.wait()"): "SIGKILL, just before",
    ("guest/agent.py", "job.took.wait()"): "Qemu.expect(): QEMU's end, or Ctrl-C",
    ("qemu/hostroot.py", "self._process.wait()"): "asyncio.wait_for()",
    ("host/event_loop.py", "future.result()"): "what runs on the loop has deadlines; it is done in the main thread",
    ("host/event_loop.py", "woken.recv(4096)"): "what runs on the loop has deadlines; any signal",
    ("guest/agent.py", "self._room.wait()"): "Qemu.expect(), of whoever waits for the frame; quit() cancels the rest",
    ("guest/kernel_log.py", "self._spoken.wait()"): "Qemu.expect()",
    ("qemu/process.py", "self._resumed.wait()"): "Qemu.expect()",
    ("outputs.py", "capture.get()"): "text that rich has already captured",
    ("qemu/process.py", "self._ended.result()"): "it is done",
    ("qemu/process.py", "self._failure.result()"): "it is done",
    ("qemu/process.py", "task.result()"): "it is done",
    ("qemu/process.py", "process.wait()"): "a task of its own, that quit() cancels",
    ("observe/run.py", "asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)"): "Qemu.expect()",
    ("observe/run.py", "self._events.get()"): "Qemu.expect()",
    ("observe/run.py", "getting.result()"): "it is done",
    ("guest/terminal.py", "select.select([*wanted, resized], [], [])"): "a person, by Ctrl-]; the line's end",
    ("guest/terminal.py", "line.recv(_READ_BYTES)"): "select() said that it does not wait",
    ("session/client.py", "connection.recv()"): "poll() said so; SO_RCVTIMEO for the rest of a message",
    ("session/server.py", "control.recv()"): "who started us has sent it, or is gone",
    ("session/server.py", "connection.recv()"): "the caller's end; each in a thread of its own",
    ("session/server.py", "self._stopping.wait()"): "a session lives until `hugepfn stop` or a signal",
    ("session/server.py", "handshake.accept(connection, self._key)"): "SO_RCVTIMEO, in the handshake",
    ("session/server.py", "listener.accept()"): "the end of the listener; a thread of its own",
    ("session/session.py", "thread.join()"): "each thread is told to end just before",
    ("session/session.py", "signals.get()"): "None in the queue, at the end of the command",
    ("session/session.py", "select.select([stdin, wake], [], [])"): "wake, at the end of the command",
    ("outputs.py", "select.select([], [self], [])"): "whoever reads our standard output, and Ctrl-C",
    ("outputs.py", "select.select([], [descriptor], [])"): "its reader's end; a thread of its own",
    ("explorer/campaign.py", "one.result()"): "it is done",
    ("explorer/worker.py", "parent.join()"): "the end of the process that started it; a thread of its own",
    ("session/starting.py", "control.recv()"): "poll() said so",
    ("session/starting.py", "child.wait()"): "SIGKILL, just before",
}


def _waiting_calls() -> list[tuple[str, str]]:
    found = []
    for path in sorted((ROOT / "harness").rglob("*.py")):
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        found += [(str(path.relative_to(ROOT / "harness")), ast.unparse(call)) for call in calls if _is_unlimited(call)]
    return found


def _is_unlimited(call: ast.Call) -> bool:
    """Whether this is a call of a function that waits, without an argument that looks like a deadline."""
    if not isinstance(call.func, ast.Attribute):
        return False
    name, owner = call.func.attr, ast.unparse(call.func.value)
    limited = any(keyword.arg in ("timeout", "timeout_s") for keyword in call.keywords)
    match name:
        case "run" if owner == "subprocess":
            return not limited
        case "wait" if owner == "asyncio":
            return not limited
        case "wait" | "result" | "join" | "get" | "poll" | "communicate":
            return not call.args and not limited
        case "select":
            return len(call.args) == 3
        case "flock":
            return "LOCK_EX" in ast.unparse(call) and "LOCK_NB" not in ast.unparse(call)
        case "recv" | "accept":
            return True
    return False


def test_every_other_call_has_a_deadline() -> None:
    assert set(_waiting_calls()) == set(UNLIMITED)
