"""Tests for the handshake of a session: only clients with its key are let in, and silent ones block nobody."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from multiprocessing import AuthenticationError, Pipe
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import pytest

from harness.errors import MachineryError
from harness.session import handshake, registry, server
from harness.session.client import SessionClient
from harness.session.registry import About
from harness.session.server import Server

KEY = bytes(range(32))
ABOUT = About("one", 1, "debian", "6.12", 0.0)


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPFN_RUNTIME_DIR", str(tmp_path / "rt"))


def both(accept: Callable[[Connection], Any], prove: Callable[[Connection], Any]) -> list[BaseException]:
    """Return the exceptions of both ends."""
    raised: list[BaseException] = []

    def run(work: Callable[[Connection], Any], end: Connection) -> None:
        try:
            work(end)
        except (OSError, EOFError, AuthenticationError) as error:
            raised.append(error)
            end.close()

    ours, theirs = Pipe()
    other = threading.Thread(target=run, args=(accept, theirs))
    other.start()
    run(prove, ours)
    other.join()
    return raised


def test_a_client_with_the_key_is_accepted_without_a_later_deadline() -> None:
    def after(end: Connection) -> None:
        handshake.prove(end, KEY, 1)
        end.send("hello")

    said: list[str] = []

    def listen(end: Connection) -> None:
        handshake.accept(end, KEY, 1)
        said.append(end.recv())

    assert both(listen, after) == []
    assert said == ["hello"]


def test_another_key_is_refused_on_both_sides() -> None:
    raised = both(lambda end: handshake.accept(end, KEY), lambda end: handshake.prove(end, bytes(32)))
    assert {type(error) for error in raised} <= {AuthenticationError, EOFError, ConnectionResetError, BrokenPipeError}
    assert any(isinstance(error, AuthenticationError) for error in raised)


def test_a_silent_client_is_disconnected() -> None:
    ours, theirs = Pipe()
    with ours, theirs, pytest.raises(BlockingIOError):
        handshake.accept(theirs, KEY, 1)


class Evil:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (Path("/tmp/hugepfn-evil"),)


def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Server, Listener]:
    """A session without a machine. It answers the request "state"."""
    one = Server(server.Start("one", None), folder, print)  # type: ignore[arg-type]
    monkeypatch.setattr(one, "_answer", lambda _connection, call, _descriptors: f"{call.verb} done")
    listener = Listener(str(folder / registry.SOCKET), "AF_UNIX")
    threading.Thread(target=one._accept, args=(listener,), daemon=True).start()
    return one, listener


def test_a_silent_client_does_not_block_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    from multiprocessing.connection import Client

    with registry.claim("one") as folder:
        _, listener = serving(folder, monkeypatch)
        with listener, Client(str(folder / registry.SOCKET), "AF_UNIX") as silent:
            assert SessionClient(ABOUT).call("state") == "state done"
            silent.recv_bytes()  # reads the session's challenge
            silent.send_bytes(pickle.dumps(Evil()))
            assert silent.recv_bytes() == b"#FAILURE#"
            assert not Path("/tmp/hugepfn-evil").exists(), "the stranger's message was unpickled"
            assert (folder / "key").stat().st_mode & 0o777 == 0o600
            assert len((folder / "key").read_bytes()) == 32


def test_a_command_with_another_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with registry.claim("one") as folder:
        _, listener = serving(folder, monkeypatch)
        (folder / "key").write_bytes(bytes(32))
        with listener, pytest.raises(MachineryError, match=r"the session one \(pid \d+\) does not answer: "):
            SessionClient(ABOUT).call("state")


def test_a_session_without_a_key_does_not_answer() -> None:
    with registry.claim("one"), pytest.raises(MachineryError, match="does not answer: No such file"):
        SessionClient(ABOUT).call("state")
