#!/usr/bin/env python3
"""An executable in place of QEMU that never does what the harness waits for. ``FAKE_QEMU`` selects how:

silent: sends nothing on QMP. deaf: greets, and answers no command. answers: answers every command, but its guest sends
nothing. stopped: stops itself at once with SIGSTOP. orphan: ends, and leaves a child behind that keeps standard error
and every channel open. internal-error: like answers, but KVM has stopped the machine with an internal error.
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


def _answer(mode: str, command: str) -> object:
    if command == "add-fd":
        return {"fdset-id": 1, "fd": 1}
    if command == "query-status":
        return {"running": mode == "answers", "status": "running" if mode == "answers" else mode}
    return {}


def main(mode: str, argv: list[str]) -> int:
    """Run until killed; orphan ends by itself."""
    if "-sandbox" in argv:  # the trial of a sandbox, which this QEMU does not have
        return 1
    if mode == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if mode == "orphan":
        fds = sorted(int(fd) for fd in re.findall(r"fd=(\d+)", " ".join(argv)))
        subprocess.Popen(["sleep", "100"], pass_fds=fds, stdout=subprocess.DEVNULL)
        print("fake: cannot go on", file=sys.stderr)
        return 7
    if mode == "internal-error":  # accel/kvm/kvm-all.c, kvm_handle_internal_error()
        print("KVM internal error. Suberror: 1\nemulation failure", file=sys.stderr, flush=True)
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
                except ValueError:  # the rest is still to come
                    break
                said = said.lstrip()[end:]
                if mode in ("answers", "internal-error") or asked["execute"] == "qmp_capabilities":
                    answer = {
                        "return": _answer(mode, asked["execute"]),
                        **({"id": asked["id"]} if "id" in asked else {}),
                    }
                    qmp.sendall(json.dumps(answer).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ["FAKE_QEMU"], sys.argv[1:]))
