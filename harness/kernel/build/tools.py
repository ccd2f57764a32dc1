"""What a kernel build needs on this machine, and which compiler it is. Looked at before anything is fetched."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass

from harness.errors import MachineryError
from harness.kernel.process import run

_ASK_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Tool:
    """A command that a kernel build needs, and the Debian package that brings it."""

    command: str
    package: str
    why: str


TOOLS = (
    Tool("gcc", "gcc", "compiles kernels"),
    Tool("make", "make", "drives a kernel's build"),
    Tool("ld", "binutils", "links kernels"),
    Tool("flex", "flex", "makes the reader of Kconfig files"),
    Tool("bison", "bison", "makes the reader of Kconfig files"),
    Tool("bc", "bc", "computes a kernel's timeconst.h"),
    Tool("git", "git", "keeps kernel sources, applies patches"),
    Tool("xz", "xz-utils", "unpacks Debian's kernel source"),
)
LIBELF = Tool("gelf.h", "libelf-dev", "objtool reads object files with it")


def path_of(command: str) -> str | None:
    """Where a command is; sbin is no place for any of these."""
    return shutil.which(command)


@functools.cache
def has_libelf() -> bool:
    """Whether gcc finds libelf's header, wherever it is installed."""
    if path_of("gcc") is None:
        return False
    argv = ["gcc", "-fsyntax-only", "-include", "gelf.h", "-x", "c", "/dev/null"]
    answer = subprocess.run(argv, check=False, timeout=_ASK_TIMEOUT_S, capture_output=True)
    return answer.returncode == 0


def check_tools(cc: str = "gcc") -> None:
    """Find out now what would stop a build minutes later.

    :raises MachineryError: something is missing; one line with the command that installs it.
    """
    missing = [tool for tool in TOOLS if path_of(tool.command) is None]
    if path_of("gcc") is not None and not has_libelf():
        missing.append(LIBELF)
    if missing:
        names = ", ".join(tool.command for tool in missing)
        packages = " ".join(dict.fromkeys(tool.package for tool in missing))
        raise MachineryError(f"cannot build kernels: {names} missing; install with: apt-get install {packages}")
    _compiler(cc)


def compiler_identity(cc: str) -> str:
    """The versions of compiler and linker: part of what a built kernel is known by.

    :raises MachineryError: the compiler is missing.
    """
    lines = [_compiler(cc)]
    if path_of("ld"):
        lines.append(run(["ld", "--version"], timeout_s=_ASK_TIMEOUT_S).stdout.decode(errors="replace").splitlines()[0])
    return "\n".join(lines)


def _compiler(cc: str) -> str:
    words = shlex.split(cc)
    if not words or path_of(words[-1]) is None:
        raise MachineryError(f"the compiler {cc!r} is missing; install it, or choose another with --cc")
    answer = run([*words, "--version"], timeout_s=_ASK_TIMEOUT_S).stdout.decode(errors="replace")
    return answer.splitlines()[0] if answer else words[-1]


def make_compiler(cc: str) -> str:
    """What make gets as CC: through ccache where there is one."""
    return f"ccache {cc}" if path_of("ccache") and "ccache" not in cc else cc


def jobs() -> int:
    """The CPUs that we may use."""
    return len(os.sched_getaffinity(0))
