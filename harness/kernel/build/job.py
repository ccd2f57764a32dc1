"""One build in a slot: source, configuration, make, and an explanation if it fails."""

from __future__ import annotations

import functools
import resource
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from harness.errors import KernelBuildError, MachineryError
from harness.events import Building, Built, Compiled, Note, Say, tell
from harness.host import cache
from harness.host.packages import how_to_install
from harness.host.process import find_program, follow, guarded
from harness.kernel.build.fragments import ConfigRequest, config_lines, unmet
from harness.kernel.build.offsets import built_offsets
from harness.kernel.build.output import Diagnostic, built, diagnostics, machine_fault
from harness.kernel.build.profile import ProfiledFiles, profile_variables
from harness.kernel.build.recipe import BaseConfig, Recipe
from harness.kernel.build.slot import Slot, check_disk
from harness.kernel.build.symbols import Symbols, explain, read_symbols
from harness.kernel.build.tools import jobs, make_compiler, make_environment
from harness.kernel.kconfig import Kconfig
from harness.kernel.offsets import BuiltOffsets

_TOLD = 5  # the number of errors to show of a failed build
_RECONFIGURING = ("scripts/", "kernel/configs/", "arch/x86/configs/")
# The same source gives the same bytes, no matter who builds it and when (Documentation/kbuild/reproducible-builds.rst).
_REPRODUCIBLE = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01 00:00:00 UTC",
    "KBUILD_BUILD_USER": "hugepfn",
    "KBUILD_BUILD_HOST": "hugepfn",
    "KBUILD_BUILD_VERSION": "1",
}


def children_cpu_s() -> float:
    """User and system time, in seconds, of all child processes that have been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def virtme_configure(objects: Path) -> list[str]:
    """The command that makes virtme-ng's default configuration in an O= folder, to be run in the source."""
    module = [sys.executable, "-P", "-m", "virtme.commands.configkernel", "--arch=x86_64", "--defconfig"]
    return [*module, f"O={objects}"]


def _environment() -> dict[str, str]:
    return {**make_environment(), **_REPRODUCIBLE}


@dataclass
class BuildJob:
    """One build in a slot."""

    recipe: Recipe
    slot: Slot
    tree: str
    wanted: list[ConfigRequest]
    configuration: str  # key of the O= folder
    say: Say | None

    @functools.cached_property
    def objects(self) -> Path:
        return self.slot.folder / "obj" / self.configuration[:12]

    def run(self, entry: Path) -> None:
        """Fill a cache entry: vmlinux, config, System.map, offsets.json, build.log, build.json."""
        with self.slot.locked(self.recipe.spec, self.say) as lock, cache.room_errors(self.slot.folder):
            before_s = children_cpu_s()
            self.slot.check_out(self.tree)
            self.objects.mkdir(parents=True, exist_ok=True)
            self._mend()
            log = self.objects / "build.log"
            tell(self.say, Building(self.recipe.spec, str(self.slot.folder)))
            log.unlink(missing_ok=True)
            self._configure(lock)
            files = self._compile(lock)
            self._offsets().write(entry)
            cpu_s = children_cpu_s() - before_s
            for name, kept in (("vmlinux", "vmlinux"), (".config", "config"), ("System.map", "System.map")):
                if (self.objects / name).is_file() or name != "System.map":
                    shutil.copyfile(self.objects / name, entry / kept)
            shutil.copyfile(log, entry / "build.log")
            if self.recipe.profiled:
                ProfiledFiles(self.objects, self.slot.source).keep(self.recipe.profiled, entry)
            note = {"spec": self.recipe.spec, "tree": self.tree, "files": files, "cpu_s": round(cpu_s, 1)}
            cache.write_note(entry / "build.json", note)
            tell(self.say, Built(self.recipe.spec, files, cpu_s))

    def _mend(self) -> None:
        """Clean up after a make that got SIGKILL: its files may be incomplete, and newer than their sources."""
        mark = self.objects / "building"
        if mark.exists():
            since_ns = mark.stat().st_mtime_ns
            for path in self.objects.rglob("*"):
                if path.is_file() and not path.is_symlink() and path.stat().st_mtime_ns >= since_ns:
                    path.unlink()

    def _configure(self, lock: int) -> None:
        """Make .config if source or requests have changed, and compare it with the requests."""
        note = self.objects / "configured.json"
        known = cache.read_note(note)
        if known and (self.objects / ".config").is_file():
            changed = self.slot.changed(known["tree"], self.tree) if known["tree"] != self.tree else []
            if not any(p.rpartition("/")[2].startswith("Kconfig") or p.startswith(_RECONFIGURING) for p in changed):
                return
        note.unlink(missing_ok=True)
        if self.recipe.config is BaseConfig.VIRTME:
            (self.objects / ".config").unlink(missing_ok=True)
            self._follow(virtme_configure(self.objects), lock, "configuring")
        else:
            self._make(["tinyconfig"], lock, "configuring")
        with (self.objects / ".config").open("a") as file:
            file.write("\n" + config_lines(self.wanted))
        self._make(["olddefconfig"], lock, "configuring")
        self._verify(Kconfig((self.objects / ".config").read_text(errors="replace")))
        cache.write_note(note, {"tree": self.tree})

    def _verify(self, config: Kconfig) -> None:
        """Check that every requested symbol has its value.

        :raises KernelBuildError: one does not; names the missing dependency, or says that there is no such symbol.
        """
        dropped = unmet(self.wanted, config)
        if not dropped and all(each.value != "n" for each in self.wanted):
            return
        symbols = read_symbols(self._source_text, {"SRCARCH": "x86"})
        doubtful = [each for each in self.wanted if each in dropped or each.value == "n"]  # a symbol that is set exists
        unknown = [each for each in doubtful if each.symbol not in symbols.definitions]
        for each in unknown:
            line = f"{each.place}: no Kconfig file of {self.recipe.spec} has a symbol {each.symbol}"
            if each.optional:
                off = ", so it is off anyway" if each.value == "n" else ""
                tell(self.say, Note(f"{line}{off}"))  # probably of another version
            else:
                self._complain(line)
        if dropped := [each for each in dropped if each not in unknown]:
            self._complain(self._explained(dropped, symbols, config))

    def _explained(self, dropped: list[ConfigRequest], symbols: Symbols, config: Kconfig) -> str:
        reasons = [
            f"{d.place}: CONFIG_{d.symbol}={d.value}: {explain(d.symbol, d.value, symbols, config)}" for d in dropped
        ]
        return f"{self.recipe.spec}: the configuration lacks requested symbols:\n  " + "\n  ".join(reasons)

    def _complain(self, line: str) -> None:
        if not self.recipe.lax:
            raise KernelBuildError(
                f"{line}\nuse --lax to build it anyway" if "\n" in line else f"{line}; use --lax to ignore this"
            )
        tell(self.say, Note(line))

    def _source_text(self, path: str) -> str | None:
        try:
            return (self.slot.source / path).read_text(errors="replace")
        except OSError:
            return None

    def _compile(self, lock: int) -> int:
        """Make vmlinux, and return the number of files built."""
        note = self.objects / "files.json"
        known = (cache.read_note(note) or {}).get("files")
        files = self._make([f"-j{jobs()}", "vmlinux"], lock, "building", known)
        if known is None or files > known:
            cache.write_note(note, {"files": files})
        return files

    def _offsets(self) -> BuiltOffsets:
        """Find the struct offsets that walks need. If this fails, the kernel is usable, but `walk` is not."""
        found = built_offsets(self.objects, _environment())
        if found.problem:
            line = f"`walk` will not work on this kernel, because its struct offsets were not found: {found.problem}"
            with (self.objects / "build.log").open("a") as log:
                log.write(f"hugepfn: {line}\n")
            tell(self.say, Note(line))
        return found

    def _make(self, words: list[str], lock: int, doing: str, total: int | None = None) -> int:
        cc = make_compiler(self.recipe.compiler)
        variables = [f"O={self.objects}", "ARCH=x86_64", f"CC={cc}", "LOCALVERSION=", *["LLVM=1"] * self.recipe.llvm]
        variables += profile_variables(self.recipe.profiled)
        argv = [str(find_program("make", "make")), "-C", str(self.slot.source), *variables, *words]
        return self._follow(argv, lock, doing, total)

    def _follow(self, argv: list[str], lock: int, doing: str, total: int | None = None) -> int:
        """Run a step of the build, count files, keep the log, and explain a failure."""
        counted, began = 0, time.monotonic()
        mark = self.objects / "building"
        with (self.objects / "build.log").open("a", buffering=1) as log:

            def on_line(line: str) -> None:
                nonlocal counted
                log.write(line + "\n")
                if doing == "building" and (file := built(line)) is not None:
                    counted += 1
                    tell(self.say, Compiled(file, counted, total, time.monotonic() - began))

            def on_end(status: int) -> None:
                if status != -signal.SIGKILL:  # make has deleted the files that it was writing, also on Ctrl-C
                    mark.unlink(missing_ok=True)

            mark.touch()
            status = follow(
                guarded(argv, signal.SIGTERM),
                on_line,
                cwd=self.slot.source,
                env=_environment(),
                keep_open=[lock],
                on_end=on_end,
            )
        if status != 0:
            self._failed(doing, status)
        return counted

    def _failed(self, doing: str, status: int) -> None:
        """:raises KernelBuildError: always, or MachineryError if it is not the source's fault."""
        log = self.objects / "build.log"
        lines = log.read_text(errors="replace").splitlines()
        fault = machine_fault(lines) or ("ended" if status < 0 else None)  # it may not have had time to report it
        if fault == "no room":
            check_disk(self.slot.folder, Path(tempfile.gettempdir()))
            raise MachineryError(
                f"no space left while {doing} in {self.slot.folder}; free some, or set "
                "HUGEPFN_CACHE_DIR to a folder on another disk"
            )
        if fault == "no memory":
            raise MachineryError(
                f"a compiler ran out of memory or was killed while {doing} {self.recipe.spec}; see {log}"
            )
        if fault == "ended":
            raise MachineryError(
                f"make was killed while {doing} {self.recipe.spec}; build again to continue where it stopped"
            )
        if fault is not None:
            command = how_to_install([fault])
            raise MachineryError(
                f"cannot build {self.recipe.spec}: a tool is missing; install with: {command}; see {log}"
            )
        found = diagnostics(lines, str(self.slot.source)) or [Diagnostic("", None, f"make ended with status {status}")]
        shown = [str(each) for each in found[:_TOLD]]
        if len(found) > _TOLD:
            shown.append(f"and {len(found) - _TOLD} more")
        text = f"{self.recipe.spec} does not build:\n  " + "\n  ".join(shown) + f"\nthe complete log: {log}"
        raise KernelBuildError(text, log)
