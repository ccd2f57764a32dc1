"""What a kernel build needs on this machine, and which compiler it is. Looked at before anything is fetched."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import MachineryError
from harness.kernel.process import run

_ASK_TIMEOUT_S = 30.0
# Nothing of these may come in from outside: they change what is built, or where.
_FOREIGN_PREFIXES = ("GIT_", "KBUILD_", "KCONFIG_", "MAKE", "INSTALL_", "LLVM", "RUST")
_FOREIGN = {"O", "V", "W", "C", "M", "CC", "HOSTCC", "LD", "ARCH", "SRCARCH", "CROSS_COMPILE", "LOCALVERSION"} | {
    *("MFLAGS", "GNUMAKEFLAGS", "KCFLAGS", "KCPPFLAGS", "KAFLAGS", "HOSTCFLAGS", "CFLAGS_KERNEL"),
}


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
SELFTEST_TOOLS = tuple(tool for tool in TOOLS if tool.command in ("gcc", "make", "ld", "git", "xz"))
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


def check_tools(cc: str = "gcc", needed: Sequence[Tool] = (*TOOLS, LIBELF), what: str = "kernels") -> None:
    """Find out now what would stop a build minutes later.

    :raises MachineryError: something is missing; one line with the command that installs it.
    """
    missing = [tool for tool in needed if not _is_here(tool)]
    if missing:
        names = ", ".join(tool.command for tool in missing)
        packages = " ".join(dict.fromkeys(tool.package for tool in missing))
        raise MachineryError(f"cannot build {what}: {names} missing; install with: apt-get install {packages}")
    _compiler(cc)


def _is_here(tool: Tool) -> bool:
    if tool is LIBELF:  # a header: without a compiler nobody can say
        return path_of("gcc") is None or has_libelf()
    return path_of(tool.command) is not None


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
    """What make gets as CC: through ccache where there is one, and it is not told to do nothing (CCACHE_DISABLE)."""
    through = path_of("ccache") and "ccache" not in cc and not os.environ.get("CCACHE_DISABLE")
    return f"ccache {cc}" if through else cc


def make_environment() -> dict[str, str]:
    """Our environment without what would change a kernel's build."""
    return {n: v for n, v in os.environ.items() if not n.startswith(_FOREIGN_PREFIXES) and n not in _FOREIGN}


def jobs() -> int:
    """The CPUs that we may use."""
    return len(os.sched_getaffinity(0))
