"""Parses the output of make and the compiler during a kernel build: lines in, built files and errors out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from harness.host.packages import Part, how_to_install, needs

# kbuild's short form (scripts/Kbuild.include, "quiet_cmd_"): "  CC      mm/huge_memory.o", "  CC [M]  fs/x.o"
_BUILT = re.compile(r"  (?:CC|AS|HOSTCC|HOSTCXX|CXX)(?: \[M\])? +(\S+)")
_COMPILER = re.compile(r"(?P<file>[^\s:]+):(?P<line>\d+):(?:\d+:)? (?:fatal )?error: (?P<words>.+)", re.IGNORECASE)
_ASSEMBLER = re.compile(r"(?P<file>[^\s:]+):(?P<line>\d+): Error: (?P<words>.+)")
_KCONFIG = re.compile(r"(?P<file>[^\s:]*Kconfig[^\s:]*):(?P<line>\d+): ?(?:error: )?(?P<words>(?!warning).+)")
_LINKER = re.compile(r"(?:\S*ld(?:\.\w+)?: )?(?P<file>[^\s:]+):(?:\S+:)? ?(?P<words>(?:multiple|undefined).+)")
_OBJTOOL = re.compile(r"(?P<file>[^\s:]+): (?P<words>error: objtool: .+)")
_MODPOST = re.compile(r"ERROR: modpost: (?P<words>.+)")
_MAKE = re.compile(r"make(?:\[\d+\])?: \*\*\* (?P<words>.+)")
# Things that are missing on this host and not in the kernel, and the Debian package that has them.
_MISSING = (
    (re.compile(r"fatal error: (?:gelf|libelf)\.h: No such file"), "libelf-dev"),
    (re.compile(r"fatal error: openssl/\S+: No such file"), "libssl-dev"),
    (re.compile(r"\bbc: (?:command )?not found"), "bc"),
    (re.compile(r"\bflex: (?:command )?not found"), "flex"),
    (re.compile(r"\bbison: (?:command )?not found"), "bison"),
    (re.compile(r"\bperl: (?:command )?not found"), "perl"),
    (re.compile(r"\b(?:python3: (?:command )?not found|env: .python3.: No such file)"), "python3"),
)
_KILLED = re.compile(r"(?:fatal error: Killed signal|: Killed$|virtual memory exhausted|out of memory allocating)")
# GNU make's message about a recipe that a signal ended: a kill, or the kernel's OOM killer.
_ENDED = re.compile(r"make(?:\[\d+\])?: \*\*\* \[.+\] (?:Terminated|Killed|Hangup|Interrupt)")
_NO_ROOM = ("No space left on device", "Disk quota exceeded")


# What a selftest may include and link besides the C library.
_NO_HEADER = re.compile(r"fatal error: (\S+): No such file or directory")
_NO_LIBRARY = re.compile(r"cannot find -l([\w+-]+)")


@dataclass(frozen=True)
class Diagnostic:
    """One error: its place, and the tool's own message."""

    file: str  # relative to the source folder if inside it; empty for an error of make itself
    line: int | None
    words: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return place + self.words


def built(line: str) -> str | None:
    """The file that is being built according to a line of make's output; None for any other line."""
    match = _BUILT.fullmatch(line)
    return match[1] if match else None


def diagnostics(lines: Iterable[str], source: str) -> list[Diagnostic]:
    """The errors in a build's output, each once, in order; make's own errors only if no tool reported one.

    :param source: the source folder as make names it, which is removed from file names.
    """
    found: dict[Diagnostic, None] = {}
    make: Diagnostic | None = None
    for line in lines:
        for pattern in (_COMPILER, _ASSEMBLER, _KCONFIG, _OBJTOOL, _LINKER):
            if match := pattern.fullmatch(line):
                parts = match.groupdict()
                number = int(parts["line"]) if parts.get("line") else None
                found[Diagnostic(_relative(parts["file"], source), number, parts["words"].strip())] = None
                break
        else:
            if match := _MODPOST.fullmatch(line):
                found[Diagnostic("", None, match["words"])] = None
            elif (match := _MAKE.fullmatch(line)) and make is None:
                make = Diagnostic("", None, match["words"])
    return list(found) or ([make] if make else [])


def _relative(file: str, source: str) -> str:
    for prefix in (f"{source}/", "../../src/"):
        file = file.removeprefix(prefix)
    return file.removeprefix("./")


def machine_fault(lines: Iterable[str]) -> str | None:
    """The cause of a failed build if it is not the source: no room, no memory, a missing tool; otherwise None.

    :returns: "no room", "no memory", "ended" (by a signal), or the Debian package to install.
    """
    for line in lines:
        if any(words in line for words in _NO_ROOM):
            return "no room"
        if _KILLED.search(line):
            return "no memory"
        if _ENDED.fullmatch(line):
            return "ended"
        for pattern, package in _MISSING:
            if pattern.search(line):
                return package
    return None


def missing_library(lines: Iterable[str]) -> str | None:
    """The library that a selftest needs and this host lacks, with its package.

    Returns None for a header that is in no known package, which is an error of the source.
    """
    packages = {need.name: need.package for need in needs(Part.SELFTESTS, Part.RUN)}
    for line in lines:
        if (match := _NO_HEADER.search(line)) and (package := packages.get(match[1])):
            return f"the header {match[1]} is missing; install with: {how_to_install([package])}"
        if match := _NO_LIBRARY.search(line):
            package = packages.get(f"lib{match[1]}.a", f"the -dev package of lib{match[1]}")
            return f"lib{match[1]}.a is missing; install with: {how_to_install([package])}"
    return None
