"""Checks that the fault campaign notices a wrong end, leftovers, and a fault that was never injected."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import ExitCode
from tests.faults.command import Command, Ended
from tests.faults.judge import problems
from tests.faults.kind import Ending, Kind, Moment
from tests.faults.leftovers import leftovers, look
from tests.faults.plan import KINDS, plan, sample
from tests.faults.world import MARKER, World

KIND = Kind("k", "g", "done", (Ending(1, ("the kernel died",), "failed", "died"), Ending(3, ("too busy",))))
ENDED = Ended(1, "fork: the kernel died: Oops\n", "", 1.0, injected=False)
RESULTS = {"results": [{"outcome": "failed", "end": {"kind": "died", "signal": ""}}]}


def test_a_right_end() -> None:
    assert problems(KIND, ENDED, RESULTS) == []
    assert problems(KIND, replace(ENDED, status=3, out="", err="hugepfn: too busy"), None) == []


@pytest.mark.parametrize(
    ("ended", "results", "words"),
    [
        (replace(ENDED, status=None), RESULTS, "did not end"),
        (replace(ENDED, status=0), RESULTS, "status 0, expected"),
        (replace(ENDED, status=3), RESULTS, "does not say 'too busy'"),
        (replace(ENDED, out="Traceback (most recent call last)\nthe kernel died"), RESULTS, "it says 'Traceback"),
        (replace(ENDED, out="[    0.100 qemu] the kernel died"), RESULTS, "does not say 'the kernel died'"),
        (replace(ENDED, terminal="the cursor is hidden"), RESULTS, "cursor"),
        (ENDED, None, r"the results are \[\]"),
        (ENDED, {"results": [{"outcome": "failed", "end": None}]}, "the results are"),
        (ENDED, {"results": [*RESULTS["results"], *RESULTS["results"]]}, "the results are"),
    ],
)
def test_a_wrong_end(ended: Ended, results: dict[str, object] | None, words: str) -> None:
    (problem,) = problems(KIND, ended, results)
    assert re.search(words, problem)


def test_a_fault_that_never_came() -> None:
    kind = replace(KIND, moment=Moment("QMP stop"))
    assert "before the moment" in problems(kind, ENDED, RESULTS)[0]
    assert problems(kind, replace(ENDED, injected=True), RESULTS) == []


def test_leftovers(tmp_path: Path) -> None:
    world = World(tmp_path, "debian:6.12")
    for name in ("home", "run/hugepfn", "tmp", "shm", "work", "cache/templates/good", "cache/locks"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "cache/templates/good/.complete").touch()
    before = look(world)
    assert leftovers(world, before, "m") == []
    (tmp_path / "tmp/hugepfn-xyz").mkdir()
    (tmp_path / "run/hugepfn/one.lock").touch()
    (tmp_path / "shm/hugepfn-ram-1").touch()
    (tmp_path / "cache/traceback.txt").touch()
    (tmp_path / "cache/templates/.new.tmp-7").mkdir()
    (tmp_path / "cache/templates/half").mkdir()
    found = leftovers(world, before, "m")
    assert sorted(found) == [
        "file cache/templates/.new.tmp-7",
        "file cache/traceback.txt",
        "file run/hugepfn/one.lock",
        "file shm/hugepfn-ram-1",
        "file tmp/hugepfn-xyz",
        "unfinished cache entry cache/templates/half",
    ]
    assert "file cache/traceback.txt" not in leftovers(world, before, "m", ("traceback.txt",))


def test_a_process_that_is_left_is_named_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.leftovers._ENDING_S", 0.1)
    world, marker = World(tmp_path, ""), f"left-{os.getpid()}"
    with subprocess.Popen(["sleep", "600"], env={**os.environ, MARKER: marker}) as child:
        try:
            found = leftovers(world, look(world), marker)
            assert child.wait(30) == -9
        finally:
            child.kill()
    assert f"process {child.pid} (sleep)" in found  # other tests may make and remove files meanwhile


def test_a_command_is_followed_to_its_moment_and_its_end() -> None:
    script = "import sys\nfor n in range(5): print('line', n, flush=True)\nprint(sys.stdin.readline())"
    reading, writing = os.pipe()
    command = Command([sys.executable, "-c", script], 60, stdin=reading)

    def act() -> bool:
        os.write(writing, b"injected\n")
        return True

    ended = command.follow("line [13]", 2, 0.0, act)
    assert (ended.status, ended.injected, ended.out.splitlines()[-2:]) == (0, True, ["injected", ""])


def test_a_command_that_does_not_end_is_killed() -> None:
    ended = Command(["sleep", "600"], 0.2).follow("", 0, 0.0, lambda: True)
    assert (ended.status, ended.injected) == (None, False)


def test_the_state_of_the_terminal() -> None:
    for script, words in (
        ("printf '\\033[?25l\\033[?25h'", ""),
        ("printf '\\033[?25l'", "cursor"),
        ("stty -echo", "termios"),
    ):
        ended = Command(["sh", "-c", script], 60, terminal=True).follow("", 0, 0.0, lambda: True)
        assert (ended.status, words in ended.terminal, bool(ended.terminal)) == (0, True, bool(words))


def test_the_plan_comes_from_its_seed() -> None:
    assert [fault.random().random() for fault in plan(KINDS, "1")] == [
        fault.random().random() for fault in plan(KINDS, "1")
    ]
    assert len({fault.random().random() for fault in plan(KINDS, "1")}) == sum(kind.runs for kind in KINDS)
    assert len(sample(40, "ci")) == 40


def test_the_kinds() -> None:
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names) >= 30
    for kind in KINDS:
        for status, end in ((ending.status, ending.end) for ending in kind.endings if ending.status >= 0):
            assert status in set(ExitCode) or (kind.argv[0] == "exec" and status > 128), kind.name
            assert status != ExitCode.CLAIM_FAILED or end or kind.argv[0] != "run", f"{kind.name}: a cause has a type"
