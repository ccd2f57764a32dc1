#!/usr/bin/env python3
"""An executable that stands in for QEMU and never does what is waited for. ``FAKE_QEMU`` says which way.

silent: says nothing on QMP. deaf: greets, and answers no command. answers: answers every command, and its guest says
nothing. stopped: stops itself at once, as SIGSTOP does. orphan: ends, and leaves a child behind that keeps standard
error and every channel open.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}


def main(mode: str, argv: list[str]) -> int:
    """Until it is killed, but for orphan."""
    if mode == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if mode == "orphan":
        fds = sorted(int(fd) for fd in re.findall(r"fd=(\d+)", " ".join(argv)))
        subprocess.Popen(["sleep", "100"], pass_fds=fds, stdout=subprocess.DEVNULL)
        print("fake: cannot go on", file=sys.stderr)
        return 7
    found = re.search(r"id=qmp,fd=(\d+)", " ".join(argv))
    assert found
    with socket.socket(fileno=int(found[1])) as qmp:
        if mode != "silent":
            qmp.sendall(json.dumps(GREETING).encode() + b"\n")
        said = ""
        while data := qmp.recv(65536):
            said += data.decode()
            while said.strip():
                try:
                    asked, end = json.JSONDecoder().raw_decode(said.lstrip())
                except ValueError:  # more of it comes
                    break
                said = said.lstrip()[end:]
                if mode == "answers" or asked["execute"] == "qmp_capabilities":
                    said_back = {"fdset-id": 1, "fd": 1} if asked["execute"] == "add-fd" else {}
                    answer = {"return": said_back, **({"id": asked["id"]} if "id" in asked else {})}
                    qmp.sendall(json.dumps(answer).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ["FAKE_QEMU"], sys.argv[1:]))
