"""Runs hugepfn selfcheck on this host, and interrupts it."""

from __future__ import annotations

import signal
import subprocess

from .conftest import Command


def test_this_host_can_be_trusted(hugepfn: Command) -> None:
    done = hugepfn("selfcheck", "--kernel", "debian:6.12", timeout_s=600)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith(" ")]
    assert lines[0].startswith("hugepfn selfcheck with debian:6.12, Linux 6.12.")
    assert lines[-1].startswith("hugepfn can be trusted on this host: ")
    marks = {line.split(": ")[0][6:]: line.split()[0] for line in lines[1:-1]}
    assert "FAIL" not in marks.values()
    for what in ("calibration", "fork", "clone, 1 vCPU", "clone, 4 vCPUs", "machines", "nvme"):
        assert marks[what] == "ok"
    assert len(done.stdout.splitlines()) < 50, "the output must fit on one page"


def test_ctrl_c_ends_it_and_leaves_nothing(hugepfn: Command) -> None:
    argv = hugepfn.argv("selfcheck", "--kernel", "debian:6.12")
    process = subprocess.Popen(
        argv, env=hugepfn.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    with process, process.stdout:
        for line in process.stdout:
            if " fork: " in line:  # machines were made, and the next one starts
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
