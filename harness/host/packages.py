"""The packages that hugepfn needs, by this distribution's names; from packages.tsv, which scripts/setup reads too."""

from __future__ import annotations

import enum
import functools
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import MachineryError

_TABLE = Path(__file__).with_name("packages.tsv")
_OS_RELEASE = (Path("/etc/os-release"), Path("/usr/lib/os-release"))  # os-release(5)
_SBIN = "/usr/sbin:/sbin"  # has depmod and dropbear, and is not in every user's PATH
_ASK_TIMEOUT_S = 30.0
#: openSUSE's busybox is linked dynamically, and a guest has no libraries; the static one has a different name.
_OTHER_NAMES = {"busybox": ("busybox-static",)}
_ELSEWHERE = {
    "apt-helper": ("/usr/lib/apt/apt-helper",),
    "virtiofsd": ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"),
}


class Part(enum.Enum):
    """What something is needed for: the second column of the table."""

    VENV = "venv"
    RUN = "run"
    MIRROR = "mirror"
    GUEST = "guest"
    ROOT = "root"
    BUILD = "build"
    FASTER = "faster"
    LLVM = "llvm"
    TESTS = "tests"
    SELFTESTS = "selftests"
    OTHER = "other"


class Manager(enum.Enum):
    """A family of distributions, named by its package manager; each has a column in the table."""

    APT = "apt"
    DNF = "dnf"
    ZYPPER = "zypper"
    PACMAN = "pacman"


@dataclass(frozen=True, slots=True)
class Need:
    """A command, library (``libc.a``), header (``gelf.h``) or Python module (``ensurepip.py``) that is needed."""

    name: str
    part: Part
    packages: Mapping[Manager, str]  # without the managers that have no such package, or do not need it
    why: str

    @property
    def package(self) -> str:
        """Its Debian package, the name that the rest of the code uses; empty if Debian has none."""
        return self.packages.get(Manager.APT, "")


def _rows() -> list[list[str]]:
    lines = _TABLE.read_text().splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")][1:]


def _row_packages(cells: list[str]) -> dict[Manager, str]:
    return {manager: cell for manager, cell in zip(Manager, cells, strict=True) if cell != "-"}


@functools.cache
def _settings() -> dict[str, dict[Manager, str]]:
    """The rows that belong to no part: how to install with each package manager."""
    return {name: _row_packages(cells) for name, part, *cells, _ in _rows() if part == "-"}


@functools.cache
def _table() -> tuple[Need, ...]:
    rows = [row for row in _rows() if row[1] != "-"]
    return tuple(Need(name, Part(part), _row_packages(cells), why) for name, part, *cells, why in rows)


def needs(*parts: Part) -> tuple[Need, ...]:
    """What these parts need, in the table's order; for all parts if none is given."""
    return tuple(need for need in _table() if not parts or need.part in parts)


def distribution() -> str:
    """The ID of os-release(5): "debian"; empty if there is none."""
    return next(iter(_os_release_words()), "")


def manager() -> Manager | None:
    """The package manager of this host, by ID and ID_LIKE of os-release(5); None if the table does not know it."""
    for word in _os_release_words():
        for each, families in _settings()["family"].items():
            if word in families.split():
                return each
    return None


def _os_release_words() -> list[str]:
    """ID, then the words of ID_LIKE."""
    path = next((path for path in _OS_RELEASE if path.is_file()), None)
    lines = path.read_text(errors="replace").splitlines() if path else []
    values = {name: value for name, _, value in (line.partition("=") for line in lines)}
    return [word for name in ("ID", "ID_LIKE") for part in shlex.split(values.get(name, "")) for word in part.split()]


def translated(packages: Iterable[str]) -> list[str]:
    """This distribution's names for Debian packages, each once; a name that is not in the table stays as it is."""
    here = manager()
    known = {need.package: need.packages for need in _table()}
    if here is None:
        return list(dict.fromkeys(packages))
    names = [known[package].get(here) if package in known else package for package in packages]
    return list(dict.fromkeys(name for name in names if name))


def how_to_install(packages: Iterable[str]) -> str:
    """The command that installs packages on this host: ``dnf install glibc-static``.

    :param packages: Debian's names for them.
    """
    here, names = manager(), translated(packages)
    if here is None:
        return f"your package manager (in Debian: {', '.join(names)})"
    return f"{_settings()['command'][here]} {' '.join(names)}"


def how_to_get(package: str) -> str:
    """What to do about a missing program: install its package, or avoid the Debian mirror if no package has it.

    :param package: Debian's name for it.
    """
    if translated([package]):
        return f"install it with: {how_to_install([package])}"
    return "only Debian has it; without a Debian mirror, use --kernel host, the path of a kernel, or tree:PATH"


def mending_command(packages: Iterable[str]) -> str:
    """The command that installs packages, with sudo unless we are root, and without recommended packages."""
    here, names = manager(), translated(packages)
    if here is None:
        return how_to_install(packages)
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}{_settings()['command'][here]} {_settings()['options'][here]} {' '.join(names)}"


def find_command(name: str) -> str | None:
    """The path of a command: in PATH or sbin, or under another name or in another folder, as some distributions do."""
    for other in (*_OTHER_NAMES.get(name, ()), name):
        path: str | None = shutil.which(other) or shutil.which(other, path=_SBIN)
        if path is not None:
            return path
    return next((place for place in _ELSEWHERE.get(name, ()) if os.access(place, os.X_OK)), None)


def find(need: Need) -> str | None:
    """The path of a command or library, or the name of a header; None if it is missing on this host."""
    if need.name.endswith(".a"):
        return static_library(need.name)
    if need.name.endswith(".h"):
        return need.name if has_header(need.name) else None
    return find_command(need.name)


def static_library(name: str) -> str | None:
    """The path at which the compiler finds a library; None if there is no compiler or no such library."""
    said = _ask_compiler(f"-print-file-name={name}")
    return os.path.realpath(said) if said is not None and Path(said).is_absolute() else None


def has_header(name: str) -> bool:
    """Whether the compiler finds a header; False if there is no compiler."""
    return _ask_compiler("-fsyntax-only", "-include", name, "-x", "c", "/dev/null") is not None


def _ask_compiler(*words: str) -> str | None:
    """What gcc prints on stdout; None if there is no gcc, or it fails."""
    gcc = find_command("gcc")
    if gcc is None:
        return None
    try:
        answer = subprocess.run([gcc, *words], check=False, timeout=_ASK_TIMEOUT_S, capture_output=True, text=True)
    except OSError as error:
        raise MachineryError(f"cannot start {gcc}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise MachineryError(f"{gcc} did not answer within {_ASK_TIMEOUT_S:g} s") from error
    return answer.stdout.strip() if answer.returncode == 0 else None
