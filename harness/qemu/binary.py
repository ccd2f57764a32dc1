"""The QEMU of this host: found, asked for its version, and refused where it is too old."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache

from harness.archive.suites import PREFIX, SuiteProgram, unpacked_program
from harness.errors import MachineryError, UsageError
from harness.events import Event
from harness.host.packages import find_command

#: The oldest QEMU the harness was measured with: Debian 12's.
QEMU_MINIMUM = (7, 2)
#: Names the QEMU to use where nobody asks for one.
QEMU_VARIABLE = "HUGEPFN_QEMU"

_SUITE_QEMU = SuiteProgram(
    "qemu-system-x86",
    "qemu-system-x86_64",
    words='-L "$root/usr/share/qemu" -L "$root/usr/share/seabios"',
    more="export QEMU_MODULE_DIR=$lib/qemu",
)


@dataclass(frozen=True, slots=True)
class QemuBinary:
    """The QEMU on this host."""

    path: str
    version: str  # "7.2.22"
    package: str  # the whole version line


@cache
def find_qemu(asked: str | None = None) -> QemuBinary:
    """The QEMU that is used: what was asked for, else ``HUGEPFN_QEMU``, else qemu-system-x86_64 in PATH.

    :param asked: a path, a name, or debian:VERSION[@SUITE].

    :raises MachineryError: missing, not QEMU, or older than :data:`QEMU_MINIMUM`.
    :raises UsageError: the mirror has no such version.
    """
    wanted = asked or os.environ.get(QEMU_VARIABLE) or "qemu-system-x86_64"
    path = _unpacked(wanted) if wanted.startswith(PREFIX) else find_command(wanted)
    if path is None:
        raise MachineryError(f"no {wanted}: install qemu-system-x86 (`hugepfn doctor` says how)")
    try:
        done = subprocess.run([path, "--version"], capture_output=True, errors="replace", timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineryError(f"{path} --version: {error}") from error
    said = done.stdout
    match = re.search(r"QEMU emulator version ((\d+)\.(\d+)(\.\d+)?)", said)
    if match is None:
        raise MachineryError(f"{path} is no QEMU: --version says {said[:80]!r}")
    if (int(match[2]), int(match[3])) < QEMU_MINIMUM:
        least = ".".join(map(str, QEMU_MINIMUM))
        raise MachineryError(f"{path} is QEMU {match[1]}, {least} or newer is needed")
    return QemuBinary(path, match[1], said.splitlines()[0])


def _unpacked(spec: str) -> str:
    return os.fspath(unpacked_program(_SUITE_QEMU, spec, "--qemu", _stderr))


def _stderr(event: Event) -> None:
    print(f"hugepfn: {event}", file=sys.stderr, flush=True)


@cache
def check_cpu(binary: QemuBinary, cpu: str) -> None:
    """Has QEMU make the CPU, and nothing of it run; under TCG, since only ``host`` depends on the accelerator.

    :raises UsageError: there is no such model, or it has no such feature.
    """
    argv = [binary.path, "-nodefaults", "-no-user-config", "-display", "none", "-S", "-monitor", "stdio"]
    argv += ["-machine", "q35", "-m", "16M", "-accel", "tcg", "-cpu", cpu]
    try:
        done = subprocess.run(argv, input=b"quit\n", capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineryError(f"{binary.path} -cpu {cpu}: {error}") from error
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"status {done.returncode}"]
        raise UsageError(f"--cpu {cpu}: {words[-1]} ({binary.path} -cpu help lists the models)")
