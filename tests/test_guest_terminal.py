"""Tests for a user at a guest's terminal, with a pseudo-terminal for the user and a socket pair for the guest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pexpect

PROGRAM = """
import socket, sys
sys.path.insert(0, {root!r})
from harness.guest.terminal import interact
ours, theirs = socket.socketpair()
print("ready", flush=True)
def resize(rows, columns):
    theirs.sendall(f"{{rows}}x{{columns}}\\r\\n".encode())
import threading
def guest():
    while data := theirs.recv(100):
        theirs.sendall(b"<" + data.hex().encode() + b">")
        if data == b"q":
            theirs.close()
            return
threading.Thread(target=guest, daemon=True).start()
interact(ours, resize)
print("left", flush=True)
"""
ROOT = Path(__file__).resolve().parents[1]


def spawn() -> pexpect.spawn:
    program = PROGRAM.format(root=str(ROOT))
    child = pexpect.spawn(sys.executable, ["-c", program], encoding="utf-8", timeout=30, dimensions=(20, 70))
    child.expect("ready")
    child.expect("20x70")
    return child


def test_every_key_but_one_goes_to_the_guest() -> None:
    child = spawn()
    for key, seen in (("\x03", "03"), ("\x1a", "1a"), ("\x04", "04"), ("é", "c3a9")):
        child.send(key)
        child.expect(f"<{seen}>")
    child.send("\x1d")
    child.expect("left")
    child.expect(pexpect.EOF)


def test_a_new_size_is_reported() -> None:
    child = spawn()
    child.setwinsize(31, 90)
    child.expect("31x90")
    child.send("\x1d")
    child.expect("left")


def test_the_guest_may_end_the_connection() -> None:
    child = spawn()
    child.send("q")
    child.expect("<71>")
    child.expect("left")


def test_without_a_terminal_it_is_refused() -> None:
    program = PROGRAM.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert "must be a terminal" in done.stderr
