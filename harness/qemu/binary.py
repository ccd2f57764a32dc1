"""Finds QEMU on this host, reads its version, and refuses one that is too old."""

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
from harness.printable import printable

#: The oldest supported QEMU: that of Debian 12.
QEMU_MINIMUM = (7, 2)
#: The variable that names the QEMU if no option does.
QEMU_VARIABLE = "HUGEPFN_QEMU"

_SHOWN_MAX = 80
_SUITE_QEMU = SuiteProgram(
    "qemu-system-x86",
    "qemu-system-x86_64",
    words='-L "$root/usr/share/qemu" -L "$root/usr/share/seabios"',
    more="export QEMU_MODULE_DIR=$lib/qemu",
)


@dataclass(frozen=True, slots=True)
class QemuBinary:
    """A QEMU program on this host."""

    path: str
    version: str  # "7.2.22"
    package: str  # the complete version line


@cache
def find_qemu(asked: str | None = None) -> QemuBinary:
    """Find the QEMU to use: the requested one, that of ``HUGEPFN_QEMU``, or qemu-system-x86_64 in PATH.

    :param asked: a path, a name, or debian:VERSION[@SUITE].
    :raises UsageError: the one that the user named is missing, not QEMU, or older than :data:`QEMU_MINIMUM`.
    :raises MachineryError: the same of the one in PATH.
    """
    named = asked or os.environ.get(QEMU_VARIABLE)
    family = UsageError if named else MachineryError
    wanted = named or "qemu-system-x86_64"
    path = _unpacked(wanted) if wanted.startswith(PREFIX) else find_command(wanted)
    if path is None:
        raise family(f"there is no {wanted}; install qemu-system-x86 (`hugepfn doctor` shows how)")
    try:
        done = subprocess.run([path, "--version"], capture_output=True, errors="replace", timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise family(f"cannot run {path} --version: {error}") from error
    said = done.stdout
    match = re.search(r"QEMU emulator version ((\d+)\.(\d+)(\.\d+)?)", said)
    if match is None:
        first = printable(said).partition("\n")[0].strip()[:_SHOWN_MAX]
        printed = f"prints '{first}'" if first else "prints nothing"
        raise family(f"{path} is not QEMU: --version {printed}, expected 'QEMU emulator version ...'")
    if (int(match[2]), int(match[3])) < QEMU_MINIMUM:
        least = ".".join(map(str, QEMU_MINIMUM))
        raise family(f"{path} is QEMU {match[1]}; expected {least} or newer")
    return QemuBinary(path, match[1], said.splitlines()[0])


def _unpacked(spec: str) -> str:
    return os.fspath(unpacked_program(_SUITE_QEMU, spec, "--qemu", _stderr))


def _stderr(event: Event) -> None:
    print(f"hugepfn: {event}", file=sys.stderr, flush=True)


@cache
def check_cpu(binary: QemuBinary, cpu: str) -> None:
    """Let QEMU create the CPU without running it; under TCG, because only ``host`` depends on the accelerator.

    :raises UsageError: there is no such model, or it has no such feature.
    """
    argv = [binary.path, "-nodefaults", "-no-user-config", "-display", "none", "-S", "-monitor", "stdio"]
    argv += ["-machine", "q35", "-m", "16M", "-accel", "tcg", "-cpu", cpu]
    try:
        done = subprocess.run(argv, input=b"quit\n", capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineryError(f"cannot run {binary.path} -cpu {cpu}: {error}") from error
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"status {done.returncode}"]
        raise UsageError(f"--cpu {cpu}: {words[-1]}; `{binary.path} -cpu help` lists the models")
