"""Runs a unit in a child process, which can be ended at any moment: ``hugepfn run-unit FOLDER``."""

from __future__ import annotations

import json
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness.campaign.event_stream import RunEvent
from harness.campaign.kernels import Started, last_words, run_child, troubled
from harness.campaign.units.local import LocalExecutor
from harness.campaign.units.unit import Unit, UnitAnswer, UnitEvent, UnitStarted, run_one
from harness.errors import HugepfnError
from harness.guest.compiler import guest_tests_dir

_UNIT, _ANSWER = "unit", "answer.json"


def run_in_child(unit: Unit, say: Callable[[RunEvent], None], started: Started) -> UnitAnswer:
    """Run a unit in a child process.

    Never fails because of the unit: an answer that is missing is a run with a trouble.

    :param started: called with the child as soon as it runs.
    """
    with tempfile.TemporaryDirectory(prefix="hugepfn-") as name:
        folder = Path(name)
        (folder / _UNIT).write_bytes(pickle.dumps(unit))
        argv = [sys.executable, os.fspath(guest_tests_dir().parent / "vm.py"), "run-unit", name]
        with (folder / "stderr").open("w+") as stderr:
            status, message = run_child(argv, stderr.fileno(), say, started)
            words = last_words(stderr, message)
        try:
            return UnitAnswer.from_json(json.loads((folder / _ANSWER).read_text()))
        except (OSError, ValueError, HugepfnError):
            return UnitAnswer(run=troubled(unit.spec, words or f"its process ended with exit status {status}"))


def run_unit(folder: Path, say: Callable[[RunEvent], None]) -> None:
    """Run the unit in a folder, and write its answer there. The child's side of :func:`run_in_child`."""

    def show(_unit: Unit, event: UnitEvent) -> None:
        if not isinstance(event, UnitStarted):
            say(event)

    unit: Unit = pickle.loads((folder / _UNIT).read_bytes())  # which the parent wrote, in a folder of its own
    answer = run_one(LocalExecutor(show), unit)
    temporary = folder / f"{_ANSWER}.tmp"
    temporary.write_text(json.dumps(answer.to_json()))
    temporary.rename(folder / _ANSWER)
