"""Fixtures of the tests with a real machine: run the command, and check that it leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def own_qemus(marker: str) -> list[int]:
    """The QEMUs and file servers with ``marker`` in their environment: those that this test started, in any way."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        program = command.split(b"\0")[0]
        ours = b"qemu" in program or b"virtiofsd" in program
        if marker.encode() in environment and ours and state != "Z":
            found.append(int(process.name))
    return found


def wait_for(there: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    """Wait for something outside of this process, which nobody announces."""
    end = time.monotonic() + timeout_s
    while not there():
        assert time.monotonic() < end, f"{what}: nothing within {timeout_s} s"
        time.sleep(0.1)


@dataclass
class Command:
    """Run ``hugepfn`` as a user does, with a marker in its environment and a folder for RAM."""

    marker: str
    ram_dir: Path

    def environment(self, **extra: str) -> dict[str, str]:
        return {**os.environ, "HUGEPFN_TEST_MARKER": self.marker, "HUGEPFN_RAM_DIR": str(self.ram_dir), **extra}

    def argv(self, *args: str) -> list[str]:
        return [sys.executable, str(ROOT / "vm.py"), *args]

    def __call__(self, *args: str, timeout_s: float = 300, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*args),
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def left_behind(self) -> list[str]:
        """Return the QEMUs that still run, and the files in the RAM folder."""
        return [f"qemu pid {pid}" for pid in own_qemus(self.marker)] + [str(path) for path in self.ram_dir.iterdir()]


@pytest.fixture
def hugepfn(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Command]:
    """The command. The test fails if it leaves anything behind."""
    ram_dir = tmp_path / "ram"
    ram_dir.mkdir()
    command = Command(f"{os.getpid()}-{request.node.nodeid}", ram_dir)
    yield command
    assert command.left_behind() == []


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a guest program for one test, from its name and the body of main()."""

    def write(name: str, body: str) -> Path:
        path = tmp_path / f"{name}.c"
        path.write_text(
            "#include <signal.h>\n#include <stdlib.h>\n#include <sys/mman.h>\n#include <unistd.h>\n"
            '#include "lib/hugepfn.h"\n'
            f"int main(int argc, char **argv)\n{{\n\thp_start(argc, argv);\n{body}\n\treturn ktap_finish();\n}}\n"
        )
        return path

    return write
