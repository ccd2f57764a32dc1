"""The kernel's own selftests (tools/testing/selftests): built from a source as static programs, outside the user's
tree.

They are built from a few folders of the source, which are written into the cache beside the headers that ``make
headers`` makes. Each program is a separate cache entry, made by the rule of its collection's own Makefile. The cache
keys depend on the content of those folders only: a change in mm/ does not rebuild any selftest.
"""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import KernelBuildError, MachineryError, PremiseNotMet, UsageError
from harness.events import Note, Say, tell
from harness.host import cache
from harness.host.packages import how_to_install
from harness.host.process import Finished, find_program, run
from harness.kernel.build.builder import digest, source_tree
from harness.kernel.build.output import Diagnostic, diagnostics, machine_fault, missing_library
from harness.kernel.build.recipe import Recipe
from harness.kernel.build.tools import SELFTEST_TOOLS, check_tools, compiler_identity, jobs, make_environment
from harness.kernel.kconfig import Kconfig

_SOURCES, _PROGRAMS = "selftest-sources", "selftests"
_SOURCES_KEPT, _PROGRAMS_KEPT = 4, 400  # 120 MB and 1 MB each
_SCHEMA = 2
_MAKE_TIMEOUT_S = 1800.0
_TOLD = 3  # the number of errors to show of a program that does not build
SELFTESTS = "tools/testing/selftests"
# What `make headers` reads, and what selftests include from outside their folder without a link.
_NEEDED = (
    *("Makefile", "Kbuild", "scripts", "arch/x86", "include/uapi", SELFTESTS),
    *("tools/arch/x86", "tools/build", "tools/include", "tools/lib", "tools/scripts"),
    *("mm/gup_test.h", "lib/test_hmm_uapi.h"),
)
_LISTED = ("TEST_GEN_PROGS", "TEST_CUSTOM_PROGS", "TEST_GEN_FILES", "TEST_PROGS")
_UNSAID = {"vfio": ("IOMMUFD", "VFIO_DEVICE_CDEV")}  # vfio has no config file; its default IOMMU mode is iommufd (7.x)
_RUN_TEST = re.compile(r"^\s*CATEGORY=\S+ run_test (?:\./)(?P<name>[\w.-]+)(?P<args>[^\n]*)$", re.MULTILINE)
_PT_INTERP = 3


@dataclass(frozen=True)
class Collection:
    """One folder of tools/testing/selftests, ready for building."""

    name: str
    spec: str  # spec of the source, as requested
    folder: Path  # the collection's own folder in our copy of the source
    headers: Path
    compiler: str
    key: str
    listed: dict[str, tuple[str, ...]]  # by variable of the Makefile: TEST_GEN_PROGS, ...

    @property
    def programs(self) -> tuple[str, ...]:
        """Everything that its Makefile builds."""
        return tuple(dict.fromkeys(name for variable in _LISTED[:3] for name in self.listed[variable]))

    @property
    def scripts(self) -> tuple[str, ...]:
        """Its shell scripts."""
        return self.listed["TEST_PROGS"]

    @property
    def timeout_s(self) -> float | None:
        """The timeout for a program in its ``settings`` file; None if there is none."""
        found = re.search(r"^timeout=(\d+)", self._text("settings"), re.MULTILINE)
        return float(found[1]) if found else None

    def lacking(self, config: Kconfig) -> list[str]:
        """The symbols of the collection's ``config`` file that a kernel's configuration lacks."""
        wishes = re.findall(r"^CONFIG_(\w+)=([ym])$", self._text("config"), re.MULTILINE)
        wishes += [(symbol, "y") for symbol in _UNSAID.get(self.name, ())]
        return [f"{symbol}={value}" for symbol, value in wishes if not config.is_set(symbol)]

    def commands(self) -> list[str]:
        """Each program with the arguments that the collection's own script gives it, if any.

        mm has its tests in TEST_GEN_FILES and runs them in run_vmtests.sh; elsewhere TEST_GEN_FILES are helpers.
        """
        given: dict[str, list[str]] = {}
        for script in self.scripts:
            for name, args in arguments(self._text(script)):
                given.setdefault(name, []).append(f"{name} {args}".strip())
        tests = [name for name in self.programs if name in given or name not in self.listed["TEST_GEN_FILES"]]
        return [command for name in tests for command in given.get(name, [name])]

    def _text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(errors="replace") if path.is_file() else ""

    def build(self, name: str, say: Say | None = None) -> Path:
        """Build the static ELF of one program, or take it from the cache.

        :raises PremiseNotMet: a library is missing on this host, or the program cannot be linked statically.
        :raises KernelBuildError: the program does not compile.
        :raises MachineryError: there is no room, or no make.
        """
        entry = cache.obtain(_PROGRAMS, f"{self.name}-{name}-{self.key}", lambda out: self._make(name, out), say)
        cache.prune(_PROGRAMS, _PROGRAMS_KEPT)
        return entry / name

    def _make(self, name: str, out: Path) -> None:
        done = run_make(self.folder, [*_variables(self.compiler, self.headers, out), str(out / name)])
        log = done.stdout.decode(errors="replace") + done.stderr
        if done.status != 0 or not (out / name).is_file():
            raise _explained(f"{self.name}/{name} of {self.spec}", log.splitlines(), str(self.folder))
        if not is_static((out / name).read_bytes()):
            raise PremiseNotMet(
                f"{self.name}/{name}: its Makefile links it dynamically, but the guest has no libraries"
            )
        for other in out.iterdir():  # its objects and libraries
            if other.name != name:
                shutil.rmtree(other) if other.is_dir() else other.unlink()


def collection(recipe: Recipe, name: str, say: Say | None = None, offline: bool = False) -> Collection:
    """One collection of a source.

    :param recipe: only its source, patches and compiler are used.
    :raises UsageError: there is no such source or collection.
    :raises KernelBuildError: the headers of the source cannot be made.
    :raises MachineryError: something is missing on this host, or its disk is full.
    """
    check_tools(recipe.cc, SELFTEST_TOOLS, "selftests")
    slot, tree = recipe.origin.slot, source_tree(recipe, say, offline)
    place = f"{SELFTESTS}/{name}"
    if not re.fullmatch(r"\w[\w/-]*", name) or f"{place}/Makefile" not in slot.identities(tree, [f"{place}/Makefile"]):
        raise UsageError(f"{recipe.spec} has no selftests {name!r}; they are the folders of {SELFTESTS}: mm, vfio, ...")
    links = slot.links(tree, [SELFTESTS, "tools/include"])
    needed = slot.identities(tree, [*_NEEDED, *links])
    key = digest(str(_SCHEMA), recipe.cc, compiler_identity(recipe.cc), *(f"{p} {i}" for p, i in needed.items()))

    def fill(entry: Path) -> None:
        tell(say, Note(f"making the headers of {recipe.spec} for its selftests (only this once)"))
        (entry / "src").mkdir()
        slot.export(tree, list(needed), entry / "src")
        _make_headers(recipe, entry)

    entry = cache.obtain(_SOURCES, key, fill, say)
    cache.prune(_SOURCES, _SOURCES_KEPT)
    folder = entry / "src" / SELFTESTS / name
    with cache.locked(f"{_SOURCES}.{key}.{name}", f"reads the selftests {name}", say):
        listed = _list_programs(recipe, folder, entry / "headers")
    # What its Makefile found on this host (mm: whether there is liburing) is built in.
    probed = [path.read_text(errors="replace") for path in sorted(folder.glob("local_config.*"))]
    return Collection(name, recipe.spec, folder, entry / "headers", recipe.cc, digest(key, *probed), listed)


def _make_headers(recipe: Recipe, entry: Path) -> None:
    """Run ``make headers``, which needs neither rsync nor a configuration."""
    objects = entry / "objects"
    objects.mkdir()
    words = [f"O={objects}", "ARCH=x86_64", f"CC={recipe.cc}", f"-j{jobs()}", "headers"]
    done = run_make(entry / "src", words)
    if done.status != 0:
        log = done.stdout.decode(errors="replace") + done.stderr
        raise _explained(f"the headers of {recipe.spec}", log.splitlines(), str(entry / "src"))
    (objects / "usr/include").rename(entry / "headers")
    shutil.rmtree(objects)


def _list_programs(recipe: Recipe, folder: Path, headers: Path) -> dict[str, tuple[str, ...]]:
    """The programs in the collection's Makefile, found by a make rule of our own."""
    echoes = "; ".join(f"echo {name}: $(patsubst $(OUTPUT)/%,%,$({name}))" for name in _LISTED)
    rule = f"--eval=hugepfn-list: ; @{echoes}"
    # -W, because what the Makefile probes for may have been installed since.
    words = [*_variables(recipe.cc, headers, folder), "-s", "-W", "check_config.sh", rule, "hugepfn-list"]
    done = run_make(folder, words)
    rows = (line.partition(":") for line in done.stdout.decode(errors="replace").splitlines())
    found = {name: tuple(names.split()) for name, _, names in rows if name in _LISTED}
    if done.status != 0 or len(found) != len(_LISTED):
        log = done.stdout.decode(errors="replace") + done.stderr
        raise _explained(f"the selftests {folder.name} of {recipe.spec}", log.splitlines(), str(folder))
    return found


def _variables(cc: str, headers: Path, out: Path) -> list[str]:
    """The variables that lib.mk provides for users (tools/testing/selftests/lib.mk)."""
    # A failed assertion names its file: use its path in the kernel tree, not in our cache.
    names = f"-fmacro-prefix-map={headers.parent}/src/="
    return [
        *(f"OUTPUT={out}", "ARCH=x86_64", f"CC={cc}", "building_out_of_srctree=1"),
        *(f"KHDR_INCLUDES=-isystem {headers}", f"USERCFLAGS=-static {names}", "USERLDFLAGS=-static"),
    ]


def run_make(folder: Path, words: Sequence[str]) -> Finished:
    """Run make in a folder; the caller judges the result."""
    argv: list[str | Path] = [find_program("make", "make"), "-C", folder, *words]
    return run(argv, timeout_s=_MAKE_TIMEOUT_S, check=False, env=make_environment())


def _explained(what: str, lines: list[str], folder: str) -> PremiseNotMet | MachineryError | KernelBuildError:
    """The error to raise for a failed build, by whose fault it is."""
    if missing := missing_library(lines):
        return PremiseNotMet(f"{what} was not built: {missing}")
    if fault := machine_fault(lines):
        command = "" if fault in ("no room", "no memory", "ended") else f"install with: {how_to_install([fault])}"
        return MachineryError(f"cannot build {what}: {command or fault}")
    found = diagnostics(lines, folder) or [Diagnostic("", None, (lines or ["make printed nothing"])[-1])]
    return KernelBuildError(f"{what} does not build: " + "; ".join(str(each) for each in found[:_TOLD]))


def arguments(script: str) -> list[tuple[str, str]]:
    """The programs that a run_vmtests.sh runs, each with its arguments; commands with shell expansions are left out."""
    found = [(match["name"], match["args"].strip()) for match in _RUN_TEST.finditer(script)]
    return [pair for pair in dict.fromkeys(found) if not re.search(r"[$`|&;<>\\]", pair[1])]


def is_static(elf: bytes) -> bool:
    """Whether a 64-bit ELF needs no loader (it has no PT_INTERP).

    :raises MachineryError: elf is not a 64-bit ELF.
    """
    try:
        offset = struct.unpack_from("<Q", elf, 0x20)[0]
        size, count = struct.unpack_from("<HH", elf, 0x36)
        if elf[:5] != b"\x7fELF\x02":
            raise MachineryError("a selftest is not a 64-bit ELF program")
        return all(struct.unpack_from("<I", elf, offset + n * size)[0] != _PT_INTERP for n in range(count))
    except struct.error as error:
        raise MachineryError(f"a selftest's ELF file is truncated: {error}") from error
