"""From a recipe to a kernel: source, patches, configuration, make, cache."""

from __future__ import annotations

import enum
import functools
import hashlib
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import cache
from harness.cache import Progress, say
from harness.errors import KernelBuildError, MachineryError, UsageError
from harness.kernel.build import patches as patch_files
from harness.kernel.build.fragments import Wanted, config_lines, merge, parse, unmet
from harness.kernel.build.origins import Origin
from harness.kernel.build.output import Diagnostic, built, diagnostics, machine_fault
from harness.kernel.build.patches import Patch
from harness.kernel.build.slot import BUILD_TIMEOUT_S, Slot, check_disk
from harness.kernel.build.symbols import Symbols, explain, read_symbols
from harness.kernel.build.tools import check_tools, compiler_identity, jobs, make_compiler
from harness.kernel.image import KernelImage, open_image
from harness.kernel.kconfig import Kconfig
from harness.kernel.process import find_program, follow

Counter = Callable[[int, int | None, str], None]
"""Called with the files built so far, how many the last build of this configuration had in all, and the file."""

_KIND = "built"
_SCHEMA = 1  # of a cache entry
DEFAULT_FRAGMENTS = ("base", "pfnmap")
_TOLD = 5  # errors of a failed build
_SAY_EVERY = 250  # files
_RECONFIGURING = ("scripts/", "kernel/configs/", "arch/x86/configs/")
# Nothing of these may come in from outside: they change what is built, or where.
_FOREIGN_PREFIXES = ("GIT_", "KBUILD_", "KCONFIG_", "MAKE", "INSTALL_", "LLVM", "RUST")
_FOREIGN = {"O", "V", "W", "C", "M", "CC", "HOSTCC", "LD", "ARCH", "SRCARCH", "CROSS_COMPILE", "LOCALVERSION"} | {
    *("MFLAGS", "GNUMAKEFLAGS", "KCFLAGS", "KCPPFLAGS", "KAFLAGS", "HOSTCFLAGS", "CFLAGS_KERNEL"),
}
# The same source gives the same bytes, whoever builds it and when (Documentation/kbuild/reproducible-builds.rst).
_REPRODUCIBLE = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01 00:00:00 UTC",
    "KBUILD_BUILD_USER": "hugepfn",
    "KBUILD_BUILD_HOST": "hugepfn",
    "KBUILD_BUILD_VERSION": "1",
}


class BaseConfig(enum.Enum):
    """What the fragments are put on top of."""

    TINY = "tiny"  # the kernel's tinyconfig
    VIRTME = "virtme"  # virtme-ng's own: defconfig and what it adds


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is built. A value: nothing is read before :func:`build`."""

    origin: Origin
    patches: tuple[Path, ...] = ()
    fragments: tuple[str, ...] = DEFAULT_FRAGMENTS  # names of kconfigs/, or paths
    config: BaseConfig = BaseConfig.TINY
    lax: bool = False  # go on where a fragment's symbol was dropped
    cc: str = "gcc"

    @property
    def spec(self) -> str:
        """``debsrc:6.12+fix.patch``; fragments and compiler are not in it."""
        return "+".join([self.origin.spec, *(str(path) for path in self.patches)])


def kconfigs_dir() -> Path:
    """Where the fragments are: beside the ``harness`` package, in a wheel too."""
    return Path(__file__).resolve().parents[3] / "kconfigs"


def read_fragment(name: str) -> tuple[str, str]:
    """File name and text of a fragment: a name of kconfigs/ or a path.

    :raises UsageError: there is none; lists those there are.
    """
    ours = kconfigs_dir() / f"{name}.config"
    path = ours if ours.is_file() and "/" not in name else Path(name).expanduser()
    try:
        return path.name if path == ours else str(path), path.read_text()
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(p.stem for p in kconfigs_dir().glob("*.config")))
        raise UsageError(f"no fragment {name!r}; expected a file, or one of: {known}") from error


def read_patches(paths: Sequence[Path]) -> list[Patch]:
    """The patches of all files, in order.

    :raises UsageError: a file cannot be read or has no patch in it.
    """
    found = []
    for path in paths:
        try:
            data = path.expanduser().read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the patch {path}: {error.strerror}") from error
        found += patch_files.split(str(path), data)
    return found


def build(
    recipe: Recipe, progress: Progress | None = None, counter: Counter | None = None, offline: bool = False
) -> KernelImage:
    """The kernel of a recipe, from the cache where it was built before.

    :param counter: called for every file built; None: ``progress`` hears of every 250th.
    :raises UsageError: no such source, patch or fragment; a patch that does not apply.
    :raises KernelBuildError: the source does not compile, or not with this configuration.
    :raises MachineryError: this machine lacks something, or its disk is full.
    """
    wanted = merge(parse(*read_fragment(name)) for name in recipe.fragments)
    patches = read_patches(recipe.patches)
    check_tools(recipe.cc)
    compiler = compiler_identity(recipe.cc)
    slot = recipe.origin.slot
    with cache.locked(f"builds.{slot.name}", f"reads the source of {recipe.origin.spec}", progress, BUILD_TIMEOUT_S):
        tree = slot.apply(recipe.origin.tree(progress, offline), patches)
    configuration = _digest(recipe.config.value, config_lines(wanted), str(recipe.lax), compiler)
    job = _Job(recipe, slot, tree, wanted, configuration, progress, counter)
    entry = cache.obtain(_KIND, _digest(str(_SCHEMA), tree, configuration), job.run, progress, BUILD_TIMEOUT_S)
    return open_image(entry / "vmlinux", spec=recipe.spec, config=entry / "config")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@dataclass
class _Job:
    """One build in a slot."""

    recipe: Recipe
    slot: Slot
    tree: str
    wanted: list[Wanted]
    configuration: str  # names the O= folder
    progress: Progress | None
    counter: Counter | None

    @functools.cached_property
    def objects(self) -> Path:
        return self.slot.folder / "obj" / self.configuration[:12]

    def run(self, entry: Path) -> None:
        """Fill a cache entry: ``vmlinux``, ``config``, ``System.map``, ``build.log``, ``build.json``."""
        with self.slot.locked(self.progress) as lock, cache.room_errors(self.slot.folder):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            self.slot.check_out(self.tree)
            self.objects.mkdir(parents=True, exist_ok=True)
            log = self.objects / "build.log"
            say(self.progress, f"building {self.recipe.spec} in {self.slot.folder}")
            log.unlink(missing_ok=True)
            self._configure(lock)
            files = self._compile(lock)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            for name, kept in (("vmlinux", "vmlinux"), (".config", "config"), ("System.map", "System.map")):
                if (self.objects / name).is_file() or name != "System.map":
                    shutil.copyfile(self.objects / name, entry / kept)
            shutil.copyfile(log, entry / "build.log")
            note = {"spec": self.recipe.spec, "tree": self.tree, "files": files, "cpu_s": round(cpu_s, 1)}
            cache.write_note(entry / "build.json", note)
            say(self.progress, f"built {files} files in {cpu_s:.0f} CPU seconds")

    def _configure(self, lock: int) -> None:
        """Make .config, where source or wishes have changed since the last one, and hold it against the wishes."""
        note = self.objects / "configured.json"
        known = cache.read_note(note)
        if known and (self.objects / ".config").is_file():
            changed = self.slot.changed(known["tree"], self.tree) if known["tree"] != self.tree else []
            if not any(p.rpartition("/")[2].startswith("Kconfig") or p.startswith(_RECONFIGURING) for p in changed):
                return
        note.unlink(missing_ok=True)
        if self.recipe.config is BaseConfig.VIRTME:
            (self.objects / ".config").unlink(missing_ok=True)
            module = [sys.executable, "-m", "virtme.commands.configkernel", "--arch=x86_64", "--defconfig"]
            self._follow([*module, f"O={self.objects}"], lock, "configuring")
        else:
            self._make(["tinyconfig"], lock, "configuring")
        with (self.objects / ".config").open("a") as file:
            file.write("\n" + config_lines(self.wanted))
        self._make(["olddefconfig"], lock, "configuring")
        self._verify(Kconfig((self.objects / ".config").read_text(errors="replace")))
        cache.write_note(note, {"tree": self.tree})

    def _verify(self, config: Kconfig) -> None:
        """Every symbol asked for is as asked for.

        :raises KernelBuildError: one is not; says which dependency is missing, or that there is no such symbol.
        """
        dropped = unmet(self.wanted, config)
        if not dropped and all(each.value != "n" for each in self.wanted):
            return
        symbols = read_symbols(self._source_text, {"SRCARCH": "x86"})
        unknown = (
            [each for each in self.wanted if each.symbol not in symbols.definitions] if symbols.definitions else []
        )
        if unknown:
            first = unknown[0]
            more = f" (and {', '.join(each.symbol for each in unknown[1:])})" if unknown[1:] else ""
            line = f"{first.place}: no Kconfig file of {self.recipe.spec} has a symbol {first.symbol}{more}"
            self._complain(line)
        if dropped := [each for each in dropped if each not in unknown]:
            self._complain(self._explained(dropped, symbols, config))

    def _explained(self, dropped: list[Wanted], symbols: Symbols, config: Kconfig) -> str:
        reasons = [
            f"{d.place}: CONFIG_{d.symbol}={d.value}: {explain(d.symbol, d.value, symbols, config)}" for d in dropped
        ]
        return f"{self.recipe.spec}: the configuration lacks what was asked for:\n  " + "\n  ".join(reasons)

    def _complain(self, line: str) -> None:
        if not self.recipe.lax:
            raise KernelBuildError(
                f"{line}\n--lax builds it all the same" if "\n" in line else f"{line}; --lax ignores it"
            )
        say(self.progress, line)

    def _source_text(self, path: str) -> str | None:
        try:
            return (self.slot.source / path).read_text(errors="replace")
        except OSError:
            return None

    def _compile(self, lock: int) -> int:
        """Make vmlinux; how many files were built."""
        note = self.objects / "files.json"
        known = (cache.read_note(note) or {}).get("files")
        files = self._make([f"-j{jobs()}", "vmlinux"], lock, "building", known)
        if known is None or files > known:
            cache.write_note(note, {"files": files})
        return files

    def _make(self, words: list[str], lock: int, doing: str, total: int | None = None) -> int:
        cc = make_compiler(self.recipe.cc)
        variables = [f"O={self.objects}", "ARCH=x86_64", f"CC={cc}", "LOCALVERSION="]
        argv = [str(find_program("make", "make")), "-C", str(self.slot.source), *variables, *words]
        return self._follow(argv, lock, doing, total)

    def _follow(self, argv: list[str], lock: int, doing: str, total: int | None = None) -> int:
        """Run a step of the build, count files, keep the log; explain a failure."""
        counted = 0
        env = {n: v for n, v in os.environ.items() if not n.startswith(_FOREIGN_PREFIXES) and n not in _FOREIGN}
        with (self.objects / "build.log").open("a") as log:

            def on_line(line: str) -> None:
                nonlocal counted
                log.write(line + "\n")
                if doing == "building" and (file := built(line)) is not None:
                    counted += 1
                    self._count(counted, total, file)

            # SIGTERM when we are killed: make ends its children and deletes the targets that they were writing.
            guard = [str(find_program("setpriv", "util-linux")), "--pdeathsig", "TERM"]
            status = follow(
                [*guard, *argv], on_line, cwd=self.slot.source, env={**env, **_REPRODUCIBLE}, keep_open=[lock]
            )
        if status != 0:
            self._failed(doing, status)
        return counted

    def _count(self, counted: int, total: int | None, file: str) -> None:
        if self.counter is not None:
            self.counter(counted, total, file)
        elif counted % _SAY_EVERY == 0:
            say(self.progress, f"{counted} files built" + (f" of {total} at most" if total else ""))

    def _failed(self, doing: str, status: int) -> None:
        """:raises KernelBuildError: or MachineryError, where it is not the source's fault."""
        log = self.objects / "build.log"
        lines = log.read_text(errors="replace").splitlines()
        fault = machine_fault(lines)
        if fault == "no room":
            check_disk(self.slot.folder, Path(tempfile.gettempdir()))
            raise MachineryError(
                f"no room left while {doing} in {self.slot.folder}; free some, or set HUGEPFN_CACHE_DIR"
            )
        if fault == "no memory":
            raise MachineryError(
                f"a compiler ran out of memory or was killed while {doing} {self.recipe.spec}; see {log}"
            )
        if fault is not None:
            raise MachineryError(f"cannot build {self.recipe.spec}: install with: apt-get install {fault}; see {log}")
        found = diagnostics(lines, str(self.slot.source)) or [Diagnostic("", None, f"make ended with status {status}")]
        shown = [str(each) for each in found[:_TOLD]]
        if len(found) > _TOLD:
            shown.append(f"and {len(found) - _TOLD} more")
        text = f"{self.recipe.spec} does not build:\n  " + "\n  ".join(shown) + f"\nthe whole log: {log}"
        raise KernelBuildError(text, log)
