"""The process of a session. It holds the machine and serves the requests of commands, each in its own thread."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from harness import logs
from harness.campaign.session import Stopping
from harness.config import MachineConfig
from harness.ending import explain
from harness.errors import ExitCode, HugepfnError, MachineryError, UsageError
from harness.events import Event, Note, Say
from harness.guest.job import Job
from harness.machine import preparation
from harness.machine.vm import VM
from harness.session import handshake, registry, wire
from harness.session.registry import About
from harness.session.session import Session
from harness.session.state import halt_words

_CALL_TIMEOUT_S = 60.0  # between a connection and its request


@dataclass(frozen=True)
class Start:
    """The kind of session to start."""

    name: str  # see :func:`registry.claim`
    config: MachineConfig
    kept: str | None = None  # name of a kept machine to use instead of a new one


class _Caller:
    """A command that waits for the answer to its call. It gets one answer, whoever gives it first."""

    def __init__(self, connection: Connection, verb: str) -> None:
        self.connection = connection
        self.verb = verb
        self._finished = False
        self._sending = threading.Lock()

    def send(self, said: object, descriptors: Sequence[int] = ()) -> None:
        """Send something before the answer."""
        with self._sending:
            if not self._finished:
                self.connection.send(said)
                wire.send_descriptors(self.connection, descriptors)

    def finish(self, answer: wire.Answer | wire.RemoteFailure) -> None:
        """Send the answer."""
        with self._sending:
            if not self._finished:
                self._finished = True
                self.connection.send(answer)


class Server:
    """A session, from its start to its end."""

    def __init__(self, start: Start, folder: Path, say: Say) -> None:
        self._start = start
        self._folder = folder
        self._key = registry.make_key(folder)
        self._say = say
        self._stopping = threading.Event()
        self._shell_taken = threading.Lock()
        self._callers: dict[_Caller, None] = {}
        self._session: Session

    def run(self, ready: Callable[[About], None]) -> None:
        """Bring the machine up, report that it is ready, and serve until somebody stops it.

        If the machine dies, the session remains, and can tell how it died.
        """
        vm = self._machine()
        try:
            vm.sockets.use(self._folder)
            self._session = Session(vm, self._folder.name)
            asked = str(self._start.config.kernel) if self._start.kept is None else f"kept machine {self._start.kept}"
            about = About(self._folder.name, os.getpid(), asked, vm.ready["release"], time.time())
            with Listener(str(self._folder / registry.SOCKET), "AF_UNIX") as listener:
                registry.publish(self._folder, about)
                threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
                ready(about)
                self._stopping.wait()
        finally:
            self._dismiss()
            vm.close()

    def _dismiss(self) -> None:
        """Tell the waiting commands that the session ends, before its machine does."""
        self._stopping.set()
        said = wire.RemoteFailure(f"the session {self._folder.name} was stopped", int(ExitCode.MACHINERY))
        for caller in list(self._callers):
            with contextlib.suppress(OSError):
                caller.finish(said)

    def _machine(self) -> VM:
        config = self._start.config
        if self._start.kept is not None:
            return VM.revive(self._start.kept, config.qemu, config.ram_dir)
        return VM(preparation.resolve(config, self._say), config=config, say=self._say).start()

    def stop(self) -> None:
        """End the session."""
        self._stopping.set()

    def _accept(self, listener: Listener) -> None:
        while True:
            try:
                connection = listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        descriptors: list[int] = []
        gone = contextlib.suppress(EOFError, OSError, AuthenticationError)  # disconnects clients without the key, too
        with connection, gone:
            handshake.accept(connection, self._key)
            if not connection.poll(_CALL_TIMEOUT_S):
                return
            call = connection.recv()
            descriptors = wire.receive_descriptors(connection, call.descriptors)
            caller = _Caller(connection, call.verb)
            if call.verb == "stop":
                self.stop()
                caller.finish(wire.Answer())
                return
            self._callers[caller] = None
            if self._stopping.is_set():
                self._dismiss()
            try:
                answer = self._answer(caller, call, descriptors)
            except HugepfnError as error:
                caller.finish(wire.RemoteFailure(str(error), int(error.exit_code)))
                return
            except Exception as error:
                caller.finish(wire.RemoteFailure(f"{call.verb}: {explain(error)}", int(ExitCode.MACHINERY)))
                return  # explain() has kept the traceback
            finally:
                del self._callers[caller]
                for descriptor in descriptors:
                    os.close(descriptor)
            caller.finish(wire.Answer(answer))
            if call.verb in ("pause", "gdb"):
                self._tell_commands_that_it_stands_still()

    def _tell_commands_that_it_stands_still(self) -> None:
        """Tell the commands that wait for a program in the guest that the machine stands still."""
        if (halt := self._session.state().halt) is not None:
            for caller in list(self._callers):
                if caller.verb == "exec":
                    caller.send(Note(halt_words(halt, self._folder.name)))

    def _answer(self, caller: _Caller, call: wire.Call, descriptors: list[int]) -> Any:
        connection = caller.connection
        match call.verb:
            case "attend":  # the caller leaves, or is dismissed
                with contextlib.suppress(EOFError, OSError):
                    connection.recv()
                return None
            case "shell":
                return self._shell(caller)
            case "exec":
                signals: queue.SimpleQueue[int | None] = queue.SimpleQueue()
                with _hearing(connection, lambda: _listen(connection, signals)):
                    return self._session.exec(**call.arguments, streams=descriptors, signals=signals)
            case "rerun":
                stopping = Stopping()
                with _hearing(connection, lambda: _end_with_caller(connection, stopping)):
                    return self._session.rerun(**call.arguments, stdout=descriptors[0], stopping=stopping)
            case _:
                return getattr(self._session, call.verb)(**call.arguments)

    def _shell(self, caller: _Caller) -> None:
        """Lend the serial line to one user, until they leave or the shell ends."""
        connection = caller.connection
        if not self._shell_taken.acquire(blocking=False):
            raise UsageError("this session's shell is in use; `hugepfn ssh` opens another one")
        try:
            self._session.check_runs()
            self._session.prepare_for_people()
            line, job = self._session.vm.shell()
            with line:
                caller.send(wire.Answer(), [line.fileno()])
            they_leave = contextlib.suppress(EOFError, ConnectionError)
            with self._telling(job, caller), they_leave:
                while True:
                    said = connection.recv()
                    if isinstance(said, wire.Size):
                        self._session.vm.resize_shell(said.rows, said.columns)
        finally:
            self._shell_taken.release()

    @contextlib.contextmanager
    def _telling(self, job: Job, caller: _Caller) -> Iterator[None]:
        """Tell the caller when the shell ends, while the block runs."""

        def tell(_exited: object) -> None:
            with contextlib.suppress(OSError):
                caller.finish(wire.Answer())

        async def add() -> None:
            job.exited.add_done_callback(tell)

        async def remove() -> None:
            job.exited.remove_done_callback(tell)

        vm = self._session.vm
        vm.on_loop(add())
        try:
            yield
        finally:
            with contextlib.suppress(HugepfnError):
                vm.on_loop(remove())


@contextlib.contextmanager
def _hearing(connection: Connection, receive: Callable[[], None]) -> Iterator[None]:
    """Receive from a caller in a thread, while the block runs.

    The thread has ended before the connection is closed. A thread that still reads then would read what the next
    caller sends, because that connection may get the same descriptor.
    """
    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    try:
        yield
    finally:
        wire.end_reading(connection)
        thread.join(_CALL_TIMEOUT_S)


def _end_with_caller(connection: Connection, stopping: Stopping) -> None:
    """End a rerun after the current test if nobody waits for it any longer."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    stopping.stop()


def _listen(connection: Connection, signals: queue.SimpleQueue[int | None]) -> None:
    """Receive signals for the command in the guest; the caller's disconnection counts as one."""
    try:
        while isinstance(said := connection.recv(), wire.Signal):
            signals.put(said.number)
    except (EOFError, OSError):
        signals.put(signal.SIGKILL)


def serve(control: Connection) -> None:
    """Run a session's process; ``control`` connects to the command that started it, until the session is ready.

    If that command is killed, nobody knows of the session, and it ends.
    """

    def say(event: Event) -> None:
        with contextlib.suppress(OSError):
            control.send(event)

    def ready(about: About) -> None:
        logs.hide()  # where our caller showed it, who goes now
        try:
            control.send(wire.Answer(about))
        except OSError as error:
            raise MachineryError("the command that started this session has gone") from error
        control.close()

    try:
        start: Start = control.recv()
        with registry.claim(start.name) as folder:
            Server(start, folder, say).run(ready)
    except HugepfnError as error:
        with contextlib.suppress(OSError):
            control.send(wire.RemoteFailure(str(error), int(error.exit_code)))
    except (KeyboardInterrupt, EOFError):
        pass
