"""Finds the shared libraries that a program of the host needs in a guest, which has none."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from harness.errors import UsageError

_TIMEOUT_S = 10
#: "libz.so.1 => /lib/.../libz.so.1 (0x...)", or the loader itself: "/lib64/ld-linux-x86-64.so.2 (0x...)"
_FOUND = re.compile(r"^\s+(?:\S+ => )?(?P<path>/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_MISSING = re.compile(r"^\s+(?P<name>\S+) => not found$", re.MULTILINE)


def libraries(program: Path) -> tuple[Path, ...]:
    """The loader and libraries of a program, where ldd(1) finds them; empty for a static program or a script.

    :raises UsageError: one of them is not on this host.
    """
    try:
        done = subprocess.run(
            ["ldd", str(program)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"cannot find out which libraries {program} needs: {error}; link it statically") from error
    if missing := _MISSING.findall(done.stdout):
        raise UsageError(
            f"{program} needs {', '.join(missing)}, which this host lacks, too; install them, or link it statically"
        )
    return tuple(Path(path) for path in _FOUND.findall(done.stdout))
