"""A person at a guest's shell: the terminal's bytes there and back, until Ctrl-]."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty

from harness.errors import UsageError

LEAVE = 0x1D  # Ctrl-]


def interact(line: socket.socket) -> None:
    """Connects this process's terminal to a serial line. Ctrl-C and the like go to the guest.

    :raises UsageError: there is no terminal.
    """
    if not sys.stdin.isatty():
        raise UsageError("the shell needs a terminal; for scripts there is `VM.console()`")
    stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
    before = termios.tcgetattr(stdin)
    line.setblocking(True)
    try:
        tty.setraw(stdin)
        while True:
            ready, _, _ = select.select([stdin, line], [], [])
            if line in ready:
                data = line.recv(65536)
                if not data:
                    return
                os.write(stdout, data)
            if stdin in ready:
                typed = os.read(stdin, 4096)
                if not typed or LEAVE in typed:
                    return
                line.sendall(typed)
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
