"""What a kernel build needs on this host, and the identity of the compiler. Checked before anything is fetched."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from harness.errors import MachineryError
from harness.host.packages import Need, Part, find_command, has_header, how_to_install, needs
from harness.host.process import run

_ASK_TIMEOUT_S = 30.0
# None of these may be inherited from the environment, because they change what is built, or where.
_FOREIGN_PREFIXES = ("GIT_", "KBUILD_", "KCONFIG_", "MAKE", "INSTALL_", "LLVM", "RUST")
_FOREIGN = {"O", "V", "W", "C", "M", "CC", "HOSTCC", "LD", "ARCH", "SRCARCH", "CROSS_COMPILE", "LOCALVERSION"} | {
    *("MFLAGS", "GNUMAKEFLAGS", "KCFLAGS", "KCPPFLAGS", "KAFLAGS", "HOSTCFLAGS", "CFLAGS_KERNEL"),
}


TOOLS = needs(Part.BUILD)
LLVM_TOOLS = (*(tool for tool in TOOLS if tool.package not in ("gcc", "binutils")), *needs(Part.LLVM))
SELFTEST_TOOLS = tuple(tool for tool in TOOLS if tool.name in ("gcc", "make", "ld", "git", "xz"))


def missing_tools(needed: Sequence[Need] = TOOLS) -> list[Need]:
    """The tools that are missing on this host. Without a compiler to check with, a header counts as missing."""
    return [need for need in needed if not _is_here(need)]


def check_tools(cc: str = "gcc", needed: Sequence[Need] = TOOLS, what: str = "kernels") -> None:
    """Check for everything that would stop a build minutes later.

    :raises MachineryError: something is missing; one line with the command that installs it.
    """
    if missing := missing_tools(needed):
        names = ", ".join(need.name for need in missing)
        command = how_to_install(need.package for need in missing)
        raise MachineryError(f"cannot build {what}, because this host lacks {names}; install with: {command}")
    _compiler(cc)


def _is_here(need: Need) -> bool:
    if need.name.endswith(".h"):
        return has_header(need.name)
    return find_command(need.name) is not None


def compiler_identity(cc: str, *, llvm: bool = False) -> str:
    """The versions of compiler and linker, which are part of a built kernel's cache key.

    :param llvm: built with ``LLVM=1``.
    :raises MachineryError: the compiler is missing.
    """
    lines, linker = [_compiler(cc)], "ld.lld" if llvm else "ld"
    if find_command(linker):
        said = run([linker, "--version"], timeout_s=_ASK_TIMEOUT_S).stdout.decode(errors="replace")
        lines.append(said.splitlines()[0])
    return "\n".join([*lines, *["LLVM=1"] * llvm])


def _compiler(cc: str) -> str:
    words = shlex.split(cc)
    if not words or find_command(words[-1]) is None:
        raise MachineryError(f"there is no compiler {cc!r}; install it, or choose another with --cc")
    answer = run([*words, "--version"], timeout_s=_ASK_TIMEOUT_S).stdout.decode(errors="replace")
    return answer.splitlines()[0] if answer else words[-1]


def make_compiler(cc: str) -> str:
    """The value of CC for make: with ccache if it is installed and not disabled (CCACHE_DISABLE)."""
    through = find_command("ccache") and "ccache" not in cc and not os.environ.get("CCACHE_DISABLE")
    return f"ccache {cc}" if through else cc


def make_environment() -> dict[str, str]:
    """Our environment without the variables that would change a kernel build.

    CCACHE_DEPEND: ccache takes the included headers from the file that the kernel's make asks the compiler for. Without
    it, a file that is not in the cache is preprocessed twice, which takes a quarter of a build's time.
    """
    own = {n: v for n, v in os.environ.items() if not n.startswith(_FOREIGN_PREFIXES) and n not in _FOREIGN}
    return {"CCACHE_DEPEND": "1", **own}


def jobs() -> int:
    """The number of CPUs that we may use."""
    return len(os.sched_getaffinity(0))
