"""The command under a fault: starts it, follows its output, injects the fault at its moment, and waits for its end."""

from __future__ import annotations

import contextlib
import os
import re
import select
import selectors
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_SETTLE_S = 5.0
_CHUNK_BYTES = 1 << 16
_OUTPUT_MAX_BYTES = 8 << 20


@dataclass(frozen=True)
class Ended:
    """How the command ended.

    :ivar status: None if it did not end in time and was killed.
    :ivar injected: whether the moment of the fault came.
    :ivar terminal: what is wrong with the terminal's state; "" if nothing is, or if there was no terminal.
    """

    status: int | None
    out: str
    err: str
    took_s: float
    injected: bool
    terminal: str = ""


class Command:
    """A command that runs.

    :param deadline_s: after which it is killed.
    :param terminal: whether its three streams are a terminal.
    """

    def __init__(self, argv: list[str], deadline_s: float, *, terminal: bool = False, **how: Any) -> None:
        self._begin_s = time.monotonic()
        self._deadline_s = deadline_s
        self._lines: dict[int, bytes] = {}
        self._output: dict[int, bytearray] = {}
        self._at: float | None = None
        self._terminal = os.openpty() if terminal else None
        if self._terminal is not None:
            mine, theirs = self._terminal
            self._before = termios.tcgetattr(theirs)
            how |= {"stdin": theirs, "stdout": theirs, "stderr": theirs}
            argv = ["setsid", "--ctty", *argv]
            self._ends: tuple[int, ...] = (mine,)
        self._process = subprocess.Popen(
            argv, **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
        )
        if self._terminal is None:
            self._ends = tuple(
                stream.fileno() for stream in (self._process.stdout, self._process.stderr) if stream is not None
            )

    @property
    def pid(self) -> int:
        """Of the command."""
        return self._process.pid

    @property
    def terminal(self) -> int | None:
        """Our end of its terminal, if it has one."""
        return self._terminal[0] if self._terminal is not None else None

    def follow(self, after: str, nth: int, delay_s: float, act: Callable[[], bool]) -> Ended:
        """Wait for its end.

        :param after: a regular expression; at the n-th line that matches, a time begins after which ``act`` is called.
            The time begins at once if this is "" and n is 1, and never if n is 0.
        :param act: injects the fault; returns False if it came too late.
        """
        matched = 0
        injected = False
        if nth == 1 and not after:
            self._at = self._begin_s + delay_s
        ended = os.pidfd_open(self.pid)
        with selectors.DefaultSelector() as selector:
            for end in (*self._ends, ended):
                selector.register(end, selectors.EVENT_READ)
            while True:
                now_s = time.monotonic()
                if self._at is not None and now_s >= self._at:
                    self._at, injected = None, act()
                    nth = 0
                left_s = self._begin_s + self._deadline_s - now_s
                if left_s <= 0:
                    break
                until = left_s if self._at is None else min(left_s, max(self._at - time.monotonic(), 0))
                ready = [key.fd for key, _ in selector.select(until)]
                for end in (fd for fd in ready if fd != ended):
                    lines = self._read(end)
                    if lines is None:
                        selector.unregister(end)
                        continue
                    for line in lines:
                        matched += bool(after and nth and re.search(after, line))
                        if nth and matched == nth and self._at is None:
                            self._at = time.monotonic() + delay_s
                if ready == [ended]:
                    break
        os.close(ended)
        return self._end(injected)

    def _read(self, end: int) -> list[str] | None:
        """The lines that are complete now; None if there will be no more."""
        try:
            data = os.read(end, _CHUNK_BYTES)
        except OSError:  # EIO: nobody has the terminal open
            return None
        if not data:
            return None
        kept = self._output.setdefault(end, bytearray())
        kept += data[: max(_OUTPUT_MAX_BYTES - len(kept), 0)]
        *lines, self._lines[end] = (self._lines.get(end, b"") + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def _end(self, injected: bool) -> Ended:
        took_s = time.monotonic() - self._begin_s
        late = self._process.poll() is None
        if late:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        self._process.wait(_SETTLE_S)
        for end in self._ends:  # what a leftover process holds open is not waited for
            while select.select([end], [], [], 0)[0] and self._read(end) is not None:
                pass
        terminal = self._state_of_terminal()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        texts = [bytes(self._output.get(end, b"")).decode(errors="replace") for end in self._ends]
        out, err = [*texts, "", ""][:2]
        return Ended(None if late else self._process.returncode, out, err, took_s, injected, terminal)

    def _state_of_terminal(self) -> str:
        if self._terminal is None:
            return ""
        mine, theirs = self._terminal
        wrong = []
        with contextlib.suppress(termios.error):  # it was closed, and has no state
            if termios.tcgetattr(theirs) != self._before:
                wrong.append("the terminal's settings (termios) have changed")
            text = bytes(self._output.get(mine, b""))
            for on, off, what in (
                (b"?25l", b"?25h", "has no cursor"),
                (b"?1049h", b"?1049l", "shows its other screen"),
            ):
                if text.rfind(b"\x1b[" + on) > text.rfind(b"\x1b[" + off):
                    wrong.append(f"the terminal {what}")
        for end in self._terminal:
            os.close(end)
        return "; ".join(wrong)
