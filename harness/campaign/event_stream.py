"""The events of a run as lines of JSON, from the process that runs scenarios to the one that shows them.

docs/events.md describes the format. ``hugepfn run --events FILE`` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import pytest

from harness.ending import explain
from harness.errors import ExitCode, HugepfnError, MachineryError, UsageError
from harness.events import Building, Built, Compiled, Event, Fetching, Note, Waiting
from harness.plugin.carried import carried_by
from harness.verdict import ScenarioResult


@dataclass(frozen=True)
class TestStarted:
    """A test begins."""

    __test__ = False  # not a test of pytest's

    name: str
    """``test_fork[pud]``"""


@dataclass(frozen=True)
class TestEnded:
    """A test has a result. If its teardown fails, the same test ends again, with a worse outcome."""

    __test__ = False

    result: ScenarioResult
    """Without the observations and the kernel log, which are in the file of ``--json``."""


@dataclass(frozen=True)
class RunEnded:
    """The last event. A stream without it comes from a process that was killed."""

    status: ExitCode
    message: str
    """Why there is no verdict; "" if there is one."""


RunEvent = Event | TestStarted | TestEnded | RunEnded

_PLAIN: dict[str, Callable[..., Event | TestStarted]] = {
    "note": Note,
    "waiting": Waiting,
    "fetching": Fetching,
    "building": Building,
    "compiled": Compiled,
    "built": Built,
    "test-started": TestStarted,
}
_NAMES: dict[object, str] = {kind: name for name, kind in _PLAIN.items()}


def encode(event: RunEvent) -> str:
    """Return an event as one line of JSON, without the newline."""
    data: dict[str, Any]
    match event:
        case TestEnded(result):
            data = {"event": "test-ended", "result": replace(result, observations=(), log=()).to_json()}
        case RunEnded(status, message):
            data = {"event": "run-ended", "status": int(status), "message": message}
        case _:
            data = {"event": _NAMES[type(event)], **asdict(event)}
    return json.dumps(data)


def decode(line: str) -> RunEvent:
    """Read what :func:`encode` wrote.

    :raises MachineryError: line is something else.
    """
    try:
        data = json.loads(line)
        match data.pop("event"):
            case "test-ended":
                return TestEnded(ScenarioResult.from_json(data["result"]))
            case "run-ended":
                return RunEnded(ExitCode(data["status"]), str(data["message"]))
            case name:
                event: Event | TestStarted = _PLAIN[name](**data)
                return event
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise MachineryError(
            f"a line of its events cannot be read: {line.strip()[:80]!r}; expected JSON as in docs/events.md"
        ) from error


class EventWriter:
    """Writes events as they happen. As a plugin of pytest, it adds the starts and ends of tests."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, event: RunEvent) -> None:
        """Write one event."""
        self._file.write(encode(event) + "\n")
        self._file.flush()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self(TestStarted(nodeid.rpartition("::")[2]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has a result."""
        if (carried := carried_by(report)) is not None:
            self(TestEnded(carried.result))


@contextmanager
def writing(path: Path | None) -> Iterator[Callable[[RunEvent], None] | None]:
    """Write the events of a block to a file, and at its end how it ended. Yield None if there is no file.

    :raises UsageError: the file cannot be written.
    """
    if path is None:
        yield None
        return
    try:
        file = path.open("w")
    except OSError as error:
        raise UsageError(f"--events {path} cannot be written: {error.strerror}; name another file") from error
    with file:
        writer = EventWriter(file)
        try:
            yield writer
        except SystemExit as ended:
            writer(RunEnded(ExitCode(int(ended.code or 0)), ""))
            raise
        except KeyboardInterrupt:
            writer(RunEnded(ExitCode.INTERRUPTED, "interrupted"))
            raise
        except BaseException as error:
            status = error.exit_code if isinstance(error, HugepfnError) else ExitCode.MACHINERY
            writer(RunEnded(status, explain(error)))
            raise
