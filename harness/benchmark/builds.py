"""``hugepfn bench --builds SOURCE``: CPU seconds of kernel builds, compared with virtme-ng's default configuration of
the same source. This takes an hour on two cores. ccache is not used."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.errors import MachineryError
from harness.host import cache
from harness.host.process import FOLLOW_TIMEOUT_S, guarded
from harness.kernel.build.builder import read_fragment, source_tree
from harness.kernel.build.fragments import merge, parse
from harness.kernel.build.job import BuildJob, children_cpu_s, virtme_configure
from harness.kernel.build.recipe import Recipe
from harness.kernel.build.slot import Slot
from harness.kernel.build.source import parse_origin
from harness.kernel.build.tools import jobs, make_environment

_CHANGED_FILE = "mm/huge_memory.c"
_WIDE = 200  # the terminal wraps the table; we do not cut it


@dataclass(frozen=True)
class BuildRow:
    """One build."""

    what: str
    cpu_s: float  # user + system time of all its processes
    files: int | None = None


def cpu_s(work: Callable[[], object]) -> float:
    """User and system time, in seconds, of the processes that ``work`` starts and waits for."""
    before_s = children_cpu_s()
    work()
    return children_cpu_s() - before_s


def full_build(recipe: Recipe, tree: str) -> BuildRow:
    """Build the minimal configuration in a separate, empty O= folder."""
    wanted = merge(parse(*read_fragment(name)) for name in recipe.fragments)
    job = BuildJob(recipe, recipe.origin.slot, tree, wanted, f"bench{os.getpid()}", None)
    with tempfile.TemporaryDirectory(prefix="hugepfn-bench-") as entry:
        try:
            job.run(Path(entry))
            note = cache.read_note(Path(entry) / "build.json") or {}
            return BuildRow(f"{recipe.spec}, the minimal configuration", note["cpu_s"], note["files"])
        finally:
            shutil.rmtree(job.objects, ignore_errors=True)


def virtme_build(slot: Slot, tree: str) -> BuildRow:
    """Build virtme-ng's default configuration of the same tree, as ``vng --build`` does, in an empty O= folder."""
    objects = slot.folder / "obj" / f"virtme{os.getpid()}"
    make = ["make", f"O={objects}", "LOCALVERSION=-virtme", f"-j{jobs()}"]
    with slot.locked("benchmark", None) as lock:
        slot.check_out(tree)
        objects.mkdir(parents=True)
        try:

            def build() -> None:
                for argv in (virtme_configure(objects), make):
                    _call(argv, slot.source, lock)

            return BuildRow("the same source, virtme-ng's default configuration", cpu_s(build))
        finally:
            shutil.rmtree(objects, ignore_errors=True)


def _call(argv: list[str], folder: Path, lock: int) -> None:
    done = subprocess.run(
        guarded(argv, signal.SIGTERM),
        cwd=folder,
        env=make_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        pass_fds=[lock],
        check=False,
        timeout=FOLLOW_TIMEOUT_S,
    )
    if done.returncode:
        raise MachineryError(f"{argv[0]} ended with status {done.returncode}: {done.stderr.strip()[-500:]}")


def _quietly(argv: list[str]) -> None:
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True, timeout=FOLLOW_TIMEOUT_S)


def incremental(recipe: Recipe, rounds: int) -> BuildRow:
    """Add one line to mm/huge_memory.c, build, boot, and get the verdict on fork at 2M and 1G."""
    slot = recipe.origin.slot
    first, *rest = (slot.source / _CHANGED_FILE).read_text().splitlines()[:4]
    times = []
    with tempfile.TemporaryDirectory(prefix="hugepfn-bench-") as folder:
        for number in range(rounds + 1):  # in the first round, the source folder may have another tree
            patch = Path(folder) / f"{number}.patch"
            added = f"/* {os.urandom(8).hex()} */"
            hunk = "".join(f"{line}\n" for line in (f" {first}", f"+{added}", *(f" {line}" for line in rest)))
            patch.write_text(f"--- a/{_CHANGED_FILE}\n+++ b/{_CHANGED_FILE}\n@@ -1,4 +1,5 @@\n{hunk}")
            argv = [sys.executable, "-m", "harness.entry", "run", "fork", "--level", "pmd", "--level", "pud", "--quiet"]
            argv += ["--kernel", f"{recipe.spec}+{patch}"]
            times.append(cpu_s(functools.partial(_quietly, argv)))
    return BuildRow(f"a change in {_CHANGED_FILE}, boot and fork's verdict", statistics.median(times[1:]))


def bench_builds(spec: str, rounds: int) -> None:
    """Measure and print one table."""
    console = Console(highlight=False, width=_WIDE)
    os.environ["CCACHE_DISABLE"] = "1"
    recipe = Recipe(parse_origin(spec))
    tree = source_tree(recipe, lambda line: console.print(line, style="dim", markup=False))
    ours = [full_build(recipe, tree)]
    console.print(f"{ours[0].what}: {ours[0].cpu_s:.0f} CPU s", soft_wrap=True)
    virtme = virtme_build(recipe.origin.slot, tree)
    console.print(f"{virtme.what}: {virtme.cpu_s:.0f} CPU s", soft_wrap=True)
    ours.append(full_build(recipe, tree))  # once before and once after, because the speed of the machine varies
    console.print(f"{ours[1].what}, again: {ours[1].cpu_s:.0f} CPU s", soft_wrap=True)
    rows = [replace(ours[0], cpu_s=statistics.mean(one.cpu_s for one in ours)), incremental(recipe, rounds), virtme]
    table = Table(box=None, pad_edge=False)
    for heading in ("build", "CPU s", "files", "of virtme-ng's"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(row.what, f"{row.cpu_s:.0f}", str(row.files or ""), f"{row.cpu_s / rows[-1].cpu_s:.3f}")
    console.print(table, soft_wrap=True)
