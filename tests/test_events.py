"""Tests for the events that hugepfn reports while it works: their text, and their JSON lines between processes."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path

import pytest

from harness.campaign import event_stream
from harness.campaign.event_stream import RunEnded, RunEvent, TestEnded, TestStarted, decode, encode
from harness.errors import ExitCode, MachineryError, UsageError
from harness.events import Building, Built, Compiled, Event, Fetching, Note, Sparing, Waiting
from harness.host.cache import lock_holder
from harness.pagetable import Observation
from harness.verdict import Outcome, ScenarioResult

SAID: list[tuple[Event, str]] = [
    (Note("a word"), "a word"),
    (Waiting("builds debsrc:6.12"), "waiting for another hugepfn, which builds debsrc:6.12"),
    (Waiting("builds debsrc:6.12", 77), "waiting for another hugepfn (pid 77), which builds debsrc:6.12"),
    (Fetching("linux-source-6.12 6.12.117", 150_400_000), "fetching linux-source-6.12 6.12.117 (150 MB)"),
    (Building("debsrc:6.12", "/c/builds/x"), "building debsrc:6.12 in /c/builds/x"),
    (Compiled("mm/memory.o", 200, None, 61.2), "200 files compiled after 1 min 1 s"),
    (
        Compiled("mm/memory.o", 200, 1000, 30.0),
        "200 of at most 1000 files compiled after 30 s; at most 2 min 0 s more at this speed",
    ),
    (Compiled("mm/memory.o", 1000, 1000, 30.0), "1000 of at most 1000 files compiled after 30 s"),
    (Built("debsrc:6.12", 976, 340.4), "built 976 files of debsrc:6.12 in 340 CPU seconds"),
]


@pytest.mark.parametrize(("event", "words"), SAID)
def test_every_event_has_words_and_comes_back_from_its_line(event: Event, words: str) -> None:
    assert str(event) == words
    line = encode(event)
    assert "\n" not in line
    assert decode(line) == event


def test_the_result_of_a_test_travels_without_its_entries() -> None:
    seen = Observation("forked", "child", "bar", 0, "none", 0, (), "", None)
    result = ScenarioResult("fork", "pud", Outcome.FAILED, "it hung", observations=(seen,), log=("a line",))
    told = decode(encode(TestEnded(result)))
    assert told == TestEnded(ScenarioResult("fork", "pud", Outcome.FAILED, "it hung"))
    for event in (TestStarted("test_fork[pud]"), RunEnded(ExitCode.MACHINERY, "no QEMU")):
        assert decode(encode(event)) == event


@pytest.mark.parametrize(
    "line",
    [
        "",
        "fork pud: passed",
        "[]",
        "{}",
        '{"event": "dance"}',
        '{"event": "note"}',
        '{"event": "note", "words": "a"}',
        '{"event": "run-ended", "status": 77, "message": ""}',
        '{"event": "test-ended", "result": {}}',
    ],
)
def test_a_line_that_is_no_event_is_an_error(line: str) -> None:
    with pytest.raises(MachineryError, match="a line of its events cannot be read"):
        decode(line)


def test_plain_lines_are_not_repeated_and_show_every_200th_file() -> None:
    said: list[str] = []
    say = Sparing(said.append)
    for number in range(1, 401):
        say(Compiled(f"{number}.o", number, None, 1.0))
        say(Note("TCG"))
    assert said == ["TCG", "200 files compiled after 1 s", "400 files compiled after 1 s"]


def events_of(path: Path) -> list[RunEvent]:
    return [decode(line) for line in path.read_text().splitlines()]


def test_a_stream_ends_with_how_it_ended(tmp_path: Path) -> None:
    file = tmp_path / "events"

    def ends() -> None:
        with event_stream.writing(file) as say:
            assert say is not None
            say(Note("one"))
            assert events_of(file) == [Note("one")], "each event is written at once"
            sys.exit(ExitCode.CLAIM_FAILED)

    with pytest.raises(SystemExit):
        ends()
    assert events_of(file)[-1] == RunEnded(ExitCode.CLAIM_FAILED, "")
    with pytest.raises(KeyboardInterrupt), event_stream.writing(file):
        raise KeyboardInterrupt
    assert events_of(file) == [RunEnded(ExitCode.INTERRUPTED, "interrupted")]
    with pytest.raises(UsageError, match="no scenario"), event_stream.writing(file):
        raise UsageError("no scenario 'frok'")
    assert events_of(file) == [RunEnded(ExitCode.USAGE, "no scenario 'frok'")]


def test_a_file_that_cannot_be_written_is_refused_before_anything_happens(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"--events .* cannot be written: No such file or directory"),
        event_stream.writing(tmp_path / "nowhere" / "events"),
    ):
        pytest.fail("the block must not run")


def test_without_a_file_nothing_is_written() -> None:
    with event_stream.writing(None) as say:
        assert say is None


def test_the_holder_of_a_lock_is_found(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as file:
        assert lock_holder(path) is None
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lock_holder(path) == lock_holder(file.fileno()) == os.getpid()
    assert lock_holder(path) is None
    assert lock_holder(tmp_path / "nothing") is None


def test_the_lines_are_json_objects_with_a_kind() -> None:
    assert json.loads(encode(Waiting("builds x", 7))) == {"event": "waiting", "what": "builds x", "pid": 7}
