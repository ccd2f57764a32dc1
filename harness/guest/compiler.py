"""Compiles guest programs: one C file and the library beside it become a static ELF, cached by content."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import CompileError, MachineryError, UsageError, did_you_mean
from harness.host import cache
from harness.host.cache_key import key_of
from harness.host.packages import find_command, how_to_install

_LOG = logging.getLogger("hugepfn.cache")
#: Static, so that the guest needs no loader. _GNU_SOURCE as the kernel's selftests have it (tools/testing/selftests/
#: lib.mk): empty, so that a program may begin with `#define _GNU_SOURCE` too.
_CFLAGS = ("-D_GNU_SOURCE=", "-O2", "-g", "-Wall", "-Wextra", "-static")
OUR_CFLAGS = (*_CFLAGS, "-std=c11", "-Werror")
#: For programs of the user's, in the C of the kernel: GNU C11, in which a warning is no error.
USERS_CFLAGS = (*_CFLAGS, "-std=gnu11")
_COMPILE_TIMEOUT_S = 120
#: Matches "error:" and "fatal error:" of gcc, "Error:" of as, and errors of ld, but not "error" in a file name.
_ERROR = re.compile(r"\berror: |undefined reference", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled guest program. ``elf`` has debug information; ``stripped`` is sent to the guest."""

    name: str
    elf: Path
    stripped: Path

    def read(self) -> bytes:
        """The bytes that are sent to the guest."""
        return self.stripped.read_bytes()


def guest_tests_dir() -> Path:
    """The folder of the scenarios and the guest library: beside the ``harness`` package, also in a wheel."""
    return Path(__file__).resolve().parents[2] / "guest_tests"


def find_source(name: str, search: tuple[Path, ...] = ()) -> Path:
    """The C file of a program: a path, or a name that is searched for in ``search`` and then among the scenarios.

    :raises UsageError: there is none. The message names similar programs, and where it was looked for.
    """
    if name.endswith(".c"):
        path = Path(name)
        if path.is_file():
            return path.resolve()
        raise UsageError(f"guest program {name}: no such file; expected the path of a C file")
    folders = (*search, guest_tests_dir())
    for folder in folders:
        if (path := folder / f"{name}.c").is_file():
            return path.resolve()
    known = sorted({path.stem for folder in folders for path in folder.glob("*.c")})
    places = " or ".join(map(str, folders))
    raise UsageError(
        f"no guest program {name!r}{did_you_mean(name, known)} expected {name}.c in {places}; "
        "write it there, or give the path of a C file"
    )


@functools.cache
def _compiler() -> tuple[str, str]:
    """The path of the compiler, and its identity."""
    path = find_command(os.environ.get("CC", "gcc")) or find_command("cc")
    if path is None:
        raise MachineryError(f"there is no C compiler; install it with: {how_to_install(['gcc', 'libc6-dev'])}")
    stat = Path(path).stat()
    return path, f"{path} {stat.st_size} {stat.st_mtime_ns}"


@functools.cache
def _library() -> tuple[tuple[Path, ...], bytes]:
    """The library's C files, and a digest of everything in its folder and of the flags that it is compiled with."""
    folder = guest_tests_dir() / "lib"
    files = sorted(folder.glob("*.[ch]"))
    digest = hashlib.sha256(" ".join(OUR_CFLAGS).encode())
    for file in files:
        digest.update(b"\0" + file.name.encode() + b"\0" + file.read_bytes())
    return tuple(file for file in files if file.suffix == ".c"), digest.digest()


def forget_library() -> None:
    """Read the library's files again next time; for a long-lived process while somebody edits them."""
    _library.cache_clear()


def compile_program(source: Path) -> Program:
    """Compile one C file with the guest library (``#include "lib/hugepfn.h"`` or ``"hugepfn.h"``).

    One of the user's may warn; ours may not. The result is cached by the content of the source, the headers beside it,
    the library, the flags and the compiler.

    :raises CompileError: with the compiler's first error.
    """
    library_files, library_digest = _library()
    own_headers = b"".join(header.read_bytes() for header in sorted(source.parent.glob("*.h")))
    parts = {"source": source.read_bytes(), "headers": own_headers, "library": library_digest}
    flags = OUR_CFLAGS if source.parent == guest_tests_dir() else USERS_CFLAGS
    return _compile(source.stem, lambda: (source, _archive(library_files, library_digest)), parts, flags)


def _archive(files: Sequence[Path], digest: bytes) -> Path:
    """Compile the library once for all programs: a program takes 0.2 s then, instead of 2 s."""
    compiler, identity = _compiler()
    keyed = {"library": digest, "compiler": identity.encode()}
    name = "libhugepfn.a"

    def build(folder: Path) -> None:
        _call([compiler, *OUR_CFLAGS, *_includes(), "-c", *map(str, files)], "lib/*.c", cwd=folder)
        objects = [f"{file.stem}.o" for file in files]
        _call(["ar", "rcs", name, *objects], name, cwd=folder)
        for each in objects:
            (folder / each).unlink()

    return cache.obtain("programs", f"{name}-{key_of(name, keyed)}", build, summed=(name,)) / name


def _includes() -> list[str]:
    return [f"-I{guest_tests_dir()}", f"-I{guest_tests_dir() / 'lib'}"]


def compile_init() -> Program:
    """Compile PID 1 of the guest, which includes the agent: guest_tests/lib/init and guest_tests/lib/agent.

    :raises CompileError: with the compiler's first error.
    """
    library = guest_tests_dir() / "lib"
    files = sorted((*library.glob("init/*.[ch]"), *library.glob("agent/*.[ch]")))
    named = {folder: [file for file in files if file.parent.name == folder] for folder in ("agent", "init")}
    parts = {
        folder: b"\0".join(part for file in members for part in (file.name.encode(), file.read_bytes()))
        for folder, members in named.items()
    }
    return _compile("init", lambda: [file for file in files if file.suffix == ".c"], parts, OUR_CFLAGS)


def _compile(
    name: str, files: Callable[[], Sequence[Path]], parts: Mapping[str, bytes], flags: Sequence[str]
) -> Program:
    """Make one program of C files and archives, once for the same ``parts``, flags and compiler."""
    compiler, identity = _compiler()
    keyed = {**parts, "flags": " ".join(flags).encode(), "compiler": identity.encode()}
    key = key_of(f"program {name}", keyed)

    def build(folder: Path) -> None:
        elf = folder / f"{name}.debug"
        _call([compiler, *flags, *_includes(), *map(str, files()), "-o", str(elf)], f"{name}.c")
        _call(["strip", "-o", str(folder / name), str(elf)], f"{name}.c")

    folder = cache.obtain("programs", f"{name}-{key}", build, summed=(name,))
    return Program(name, folder / f"{name}.debug", folder / name)


def _call(argv: list[str], what: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMPILE_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise MachineryError(
            f"{argv[0]} is missing on this host; install gcc and binutils (`hugepfn doctor` shows how)"
        ) from None
    except subprocess.TimeoutExpired:
        raise CompileError(f"{what}: {argv[0]} took more than {_COMPILE_TIMEOUT_S} s") from None
    if done.stderr.strip() and not done.returncode:
        _LOG.info("%s: the compiler warns: %s", what, done.stderr.strip())
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if _ERROR.search(line)]
        first = (errors or done.stderr.splitlines() or ["no message"])[0]
        raise CompileError(f"guest program {what} does not compile: {first}")


def assemble_rom(name: str) -> Path:
    """Assemble guest_tests/lib/NAME.S to a flat binary, cached by content.

    :raises CompileError: with the assembler's first error.
    """
    compiler, identity = _compiler()
    source = guest_tests_dir() / "lib" / f"{name}.S"
    key = hashlib.sha256(source.read_bytes() + identity.encode()).hexdigest()[:32]

    def build(folder: Path) -> None:
        elf = folder / f"{name}.o"
        _call([compiler, "-c", str(source), "-o", str(elf)], source.name)
        _call(["objcopy", "-O", "binary", "-j", ".text", str(elf), str(folder / f"{name}.rom")], source.name)

    return cache.obtain("programs", f"{name}-{key}", build) / f"{name}.rom"
