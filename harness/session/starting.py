"""Start a session: run its process and wait until its machine is up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from harness import logs
from harness.errors import MachineryError
from harness.events import Event, Say
from harness.guest.compiler import guest_tests_dir
from harness.host.process import guarded
from harness.session import wire
from harness.session.registry import SERVE, About
from harness.session.server import Start

_END_TIMEOUT_S = 20.0
#: The deadline between two progress messages: it may wait for another hugepfn that fetches or builds what it needs.
_SILENCE_TIMEOUT_S = 3600.0


def start_session(start: Start, say: Say, *, with_us: bool) -> About:
    """Start a session, and return when its machine is up.

    :param with_us: the session ends when this process ends, for whatever reason.
    :raises HugepfnError: it did not start; has the message of the session's process.
    """
    ours, theirs = Pipe()
    argv = [sys.executable, os.fspath(guest_tests_dir().parent / "vm.py"), SERVE, str(theirs.fileno())]
    environment, inherited = logs.for_child()
    with tempfile.TemporaryFile("w+") as words, ours:
        child = subprocess.Popen(
            guarded(argv, signal.SIGTERM) if with_us else argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=words,
            env=environment,
            pass_fds=[theirs.fileno(), *inherited],
            start_new_session=True,
        )
        theirs.close()
        try:
            ours.send(start)
            return _until_ready(ours, say)
        except EOFError:
            _end(child)
            words.seek(0)
            last = words.read().strip().splitlines()[-1:]
            raise MachineryError(f"the session's process ended: {' '.join(last) or child.returncode}") from None
        except BaseException:
            child.terminate()
            _end(child)
            raise


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process that was told to end; a stopped process is continued first."""
    child.send_signal(signal.SIGCONT)
    try:
        child.wait(_END_TIMEOUT_S)
    except BaseException as error:  # also a second Ctrl-C
        child.kill()
        child.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


def _until_ready(control: Connection, say: Say) -> About:
    while True:
        if not control.poll(_SILENCE_TIMEOUT_S):
            raise MachineryError(
                f"the session's process reported nothing for {_SILENCE_TIMEOUT_S:g} s, so it was ended"
            )
        match control.recv():
            case event if isinstance(event, Event):
                say(event)
            case wire.RemoteFailure() as failure:
                raise wire.RemoteError(failure)
            case wire.Answer(value=About() as about):
                return about
