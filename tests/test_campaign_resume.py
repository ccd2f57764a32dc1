"""Campaigns that were interrupted go on from their journal. The kernels are simulated."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from harness import cli
from harness.campaign.kernels import RunOptions, troubled
from harness.campaign.units import local
from harness.campaign.units.journal import Journal, NotedAnswer, NotingExecutor
from harness.campaign.units.unit import Answers, Unit, UnitAnswer
from harness.machine import preparation
from harness.selection.selected import Selected
from harness.verdict import Outcome, Run, ScenarioResult

MATRIX = ("matrix", "-k", "debian:6.1", "-k", "debian:6.12", "--repeat", "2", "fork:pud")
COMPARE = ("compare", "debian:6.1", "debian:6.12", "fork:pud")
P, F = Outcome.PASSED, Outcome.FAILED


class World:
    """Kernels that pass or fail; after some runs, somebody presses Ctrl-C."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.keys = {"debian:6.1": "old", "debian:6.12": "new"}
        self.fails = {"debian:6.12"}
        self.trouble: set[str] = set()
        self.most = 1000

    def run_kernel(self, spec: str, _tests: object, _options: object, _say: object) -> Run:
        if len(self.ran) == self.most:
            raise KeyboardInterrupt
        self.ran.append(spec)
        if spec in self.trouble:
            return troubled(spec, "no QEMU")
        return Run((ScenarioResult("fork", "pud", F if spec in self.fails else P, "why"),), {"kernel": {"spec": spec}})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    found = World()

    class Image:
        def __init__(self, spec: str) -> None:
            self.key = found.keys[spec]

    monkeypatch.setattr(local, "run_kernel", found.run_kernel)
    monkeypatch.setattr(preparation, "preflight", lambda *_: None)
    monkeypatch.setattr(preparation, "resolve", lambda config, _say: Image(config.kernel))
    return found


@pytest.fixture
def hugepfn(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str, str]]:
    def run(*words: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return run


Hugepfn = Callable[..., tuple[object, str, str]]


@pytest.mark.parametrize("command", [MATRIX, COMPARE])
@pytest.mark.parametrize("most", [0, 1, 3])
def test_after_an_interruption_the_answer_is_the_same_and_nothing_runs_twice(
    world: World, hugepfn: Hugepfn, command: Sequence[str], most: int
) -> None:
    whole = hugepfn(*command)
    runs, world.ran, world.most = world.ran, [], most
    assert hugepfn(*command)[0] == 130
    world.most = 1000
    status, out, err = hugepfn(*command, "--resume")
    assert (status, out) == whole[:2]
    assert world.ran == runs
    assert f"{most} units are done already" in err
    world.ran = []
    assert hugepfn(*command)[:2] == whole[:2]
    assert world.ran == runs, "without --resume, everything runs again"


def test_another_kernel_or_another_question_is_not_resumed(world: World, hugepfn: Hugepfn) -> None:
    hugepfn(*MATRIX)
    world.ran, world.keys = [], {**world.keys, "debian:6.12": "newer"}
    assert "0 units are done" in hugepfn(*MATRIX, "--resume")[2]
    assert "0 units are done" in hugepfn(*MATRIX, "--smp", "2", "--resume")[2]
    assert len(world.ran) == 8


def test_what_had_no_result_runs_again(world: World, hugepfn: Hugepfn) -> None:
    world.trouble = {"debian:6.1"}
    hugepfn(*MATRIX)
    world.ran, world.trouble = [], set()
    hugepfn(*MATRIX, "--resume")
    assert world.ran == ["debian:6.1", "debian:6.1"]


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.test_campaign_resume import Simulated, UNITS, journal_in
from harness.campaign.units.journal import NotingExecutor
journal = journal_in(Path(sys.argv[1]))
journal.start()
for number, _ in NotingExecutor(Simulated(), journal, {}).run(UNITS):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""
UNITS = [Unit(f"debian:6.{number}", (Selected(None, "fork"),), RunOptions()) for number in range(5)]


class Simulated:
    """Answers every unit at once."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(self, units: Sequence[Unit]) -> Answers:
        for number, unit in enumerate(units):
            self.ran.append(unit.spec)
            yield number, UnitAnswer(unit.spec, run=Run((ScenarioResult("fork", "pud", P),)))


def journal_in(folder: Path) -> Journal[NotedAnswer]:
    return Journal(folder / "x.jsonl", {"command": "matrix"}, NotedAnswer.from_json)


def test_sigkill_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path], cwd=root, env={"PYTHONPATH": str(root)}, check=False
    )
    assert done.returncode == -9
    journal = journal_in(tmp_path)
    noted = {one.number: one.answer for one in journal.resume()}
    assert list(noted) == [0, 1, 2]
    executor = Simulated()
    answers = dict(NotingExecutor(executor, journal, noted).run(UNITS))
    assert {number: answer.key for number, answer in answers.items()} == {
        number: unit.spec for number, unit in enumerate(UNITS)
    }
    assert executor.ran == ["debian:6.3", "debian:6.4"]
