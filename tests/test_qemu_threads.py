"""Tests for what the host says about QEMU's threads."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from harness.qemu.threads import disk_waiters

#: The parent of a vfork() cannot be interrupted until the child ends, which is the state of a thread at a disk.
VFORK = r"""
#include <unistd.h>
int main(void) { if (vfork() == 0) { char c = '\n'; (void)!write(1, &c, 1); (void)!read(0, &c, 1); _exit(0); } }
"""


def test_a_thread_that_cannot_be_interrupted_waits_for_a_disk(tmp_path: Path) -> None:
    program = tmp_path / "program"
    subprocess.run(["gcc", "-x", "c", "-o", program, "-"], input=VFORK.encode(), check=True)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdin is not None
        started.stdout.read(1)
        assert disk_waiters(started.pid) == {started.pid}
        started.stdin.close()
        started.wait()
    assert disk_waiters(started.pid) == set()
    assert disk_waiters(os.getpid()) == set()
