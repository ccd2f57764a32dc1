"""Tests for the registry of sessions: names, the remains of killed sessions, and the session that a command means."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from harness.errors import ExitCode, UsageError
from harness.session import registry, wire
from harness.session.registry import About


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUGEPFN_RUNTIME_DIR", str(tmp_path / "rt"))
    return tmp_path / "rt"


def about(name: str) -> About:
    return About(name, os.getpid(), "debian:6.12", "6.12.1", time.time())


def test_a_session_is_listed_while_it_lives_and_leaves_nothing(runtime: Path) -> None:
    assert registry.sessions() == []
    with registry.claim("one") as folder:
        assert registry.sessions() == [], "a session is listed only when it accepts requests"
        registry.publish(folder, about("one"))
        assert [one.name for one in registry.sessions()] == ["one"]
        assert folder.stat().st_mode & 0o777 == 0o700
    assert registry.sessions() == []
    assert list(runtime.iterdir()) == []


def test_a_session_gets_the_requested_or_a_numbered_name() -> None:
    with registry.claim("one"), registry.claim("one*") as second, registry.claim("one*") as third:
        assert (second.name, third.name) == ("one-2", "one-3")
        with pytest.raises(UsageError, match="there is already a session 'one'"), registry.claim("one"):
            pass


@pytest.mark.parametrize("name", ["", ".", "..", "..*", "a/b", "a b", "a..b", ".a", "x.lock", "x" * 41])
def test_invalid_names_are_refused(name: str, runtime: Path) -> None:
    with pytest.raises(UsageError, match="is not a session name"), registry.claim(name):
        pass
    assert not runtime.exists()


def test_a_folder_that_others_can_write_to_is_refused(runtime: Path) -> None:
    runtime.mkdir(mode=0o777)
    runtime.chmod(0o777)
    for ask in (registry.sessions, lambda: registry.claim("one").__enter__()):
        with pytest.raises(UsageError, match="must be a directory owned by you with mode 0700"):
            ask()


def test_a_path_too_long_for_a_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HUGEPFN_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(UsageError, match="is too long; set HUGEPFN_RUNTIME_DIR"), registry.claim("one"):
        pass


def _live(name: str, ready: Connection) -> None:
    with registry.claim(name) as folder:
        registry.publish(folder, about(name))
        ready.send("up")
        time.sleep(1000)


def test_leftovers_of_a_killed_session_are_removed(runtime: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_live, args=("one", theirs))
    child.start()
    assert ours.recv() == "up"
    assert [one.name for one in registry.sessions()] == ["one"]
    child.kill()
    child.join()
    assert (runtime / "one" / "about.json").exists()
    assert registry.sessions() == []
    assert list(runtime.iterdir()) == []


def test_the_only_session_is_the_default() -> None:
    with pytest.raises(UsageError, match="no session is running; start one with `hugepfn start`"):
        registry.choose(None)
    with registry.claim("one") as one, registry.claim("two") as two:
        registry.publish(one, about("one"))
        assert registry.choose(None).name == "one"
        registry.publish(two, about("two"))
        assert registry.choose("two").name == "two"
        with pytest.raises(UsageError, match="several sessions are running: one, two; name one with -s"):
            registry.choose(None)
        with pytest.raises(UsageError, match="there is no session 'three'; expected one of: one, two"):
            registry.choose("three")


def test_a_remote_error_has_the_message_and_the_exit_status() -> None:
    error = wire.RemoteError(wire.RemoteFailure("the kernel died: BUG", 1))
    assert str(error) == "the kernel died: BUG"
    assert error.exit_code is ExitCode.CLAIM_FAILED


def test_descriptors_are_passed() -> None:
    ours, theirs = multiprocessing.Pipe()
    readable, writable = os.pipe()
    wire.send_descriptors(ours, [writable])
    (received,) = wire.receive_descriptors(theirs, 1)
    os.write(received, b"there")
    assert os.read(readable, 10) == b"there"
    for descriptor in (readable, writable, received):
        os.close(descriptor)
