"""``hugepfn coverage``: builds a kernel that counts its lines, runs something on it, and says what was executed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import kernel_functions
from harness.campaign.scenarios import scenario_lines
from harness.coverage.changes import LineChanges, changes_of
from harness.coverage.counters import Counters
from harness.coverage.report import Counts, CoverageReport, CoverageSubject, report_of
from harness.errors import UsageError
from harness.events import Say
from harness.kernel import Kernel
from harness.kernel.build import BuiltSource, Recipe
from harness.kernel.build.builder import build, source_tree
from harness.kernel.build.slot import Slot
from harness.kernel_function import KernelFunction
from harness.selection.selected import Selected

FRAGMENT = "coverage"


@dataclass(frozen=True)
class CoverageRequest:
    """What is to be measured."""

    kernel: str
    words: tuple[Selected, ...] = ()
    """Their functions are of interest; empty for those of every scenario."""
    files: tuple[str, ...] = ()
    """All functions of these files are of interest, too."""
    removed: bool = False
    """Whether to measure the lines that the patch takes away, on the kernel without it."""
    fragments: tuple[str, ...] = ()

    def recipe(self) -> Recipe:
        """Return the recipe of the kernel that was asked for.

        :raises UsageError: it is not one that is built.
        """
        source = Kernel.parse(self.kernel).source
        if not isinstance(source, BuiltSource):
            raise UsageError(
                f"{self.kernel} is not built here, so its lines cannot be counted; "
                "expected debsrc:VERSION[+PATCH...] or tree:PATH[@REV][+PATCH...]"
            )
        if self.removed and not source.recipe.patches:
            raise UsageError(f"--removed needs a kernel with a patch: {self.kernel}+FILE.patch")
        return source.recipe


@dataclass(frozen=True)
class MeasuredKernel:
    """What was executed of a kernel."""

    release: str
    tree: str
    report: CoverageReport
    counts: Counts
    patched: bool
    """Whether there is a patch."""
    what: str
    """"added" or "taken away": which lines of the patch the report is about."""
    lost: tuple[str, ...]
    """What ran in machines whose counts are lost."""
    slot: Slot

    def export(self, folder: Path) -> None:
        """Write the source of all files that have counts into a folder."""
        self.slot.export(self.tree, sorted(self.counts), folder)


def measure(request: CoverageRequest, execute: Callable[[Path, Path], None], say: Say) -> MeasuredKernel:
    """Build, run and read.

    :param execute: runs what is to be measured; gets the kernel's image, and the folder of the counters.
    :raises UsageError: there is no such kernel, file or test.
    :raises MachineryError: this host failed.
    """
    asked = request.recipe()
    slot, changes = asked.origin.slot, LineChanges({}, {})
    base = source_tree(replace(asked, patches=()), say)
    patched = source_tree(asked, say)
    if patched != base:
        changes = changes_of(slot.diff(base, patched))
    taken_away = request.removed or bool(changes.removed and not changes.added)
    tree, patch = (base, changes.removed) if taken_away else (patched, changes.added)
    functions = functions_of_interest(request.words)
    files = _existing(slot, tree, [*patch, *request.files, *(one.file for one in functions)], request.files)
    counted = tuple(file for file in files if file.endswith(".c"))
    if not counted:
        raise UsageError("there is no C file to count lines in; name one with --file mm/memory.c")
    recipe = replace(
        asked,
        patches=() if taken_away else asked.patches,
        fragments=(*asked.fragments, *request.fragments, FRAGMENT),
        profiled=counted,
    )
    image = build(recipe, say)
    with tempfile.TemporaryDirectory(prefix="hugepfn-coverage-") as scratch:
        counters = Counters.create(Path(scratch), image.image.parent)
        execute(image.image, Path(scratch))
        counts, lost = counters.read(), tuple(counters.lost)
    texts = {file: slot.text(tree, file) for file in {*files, *counts}}
    names = tuple((one.file, one.name) for one in functions)
    report = report_of(CoverageSubject(patch, names, request.files), counts, lambda file: texts.get(file, ""))
    what = "taken away" if taken_away else "added"
    return MeasuredKernel(image.release, tree, report, counts, bool(asked.patches), what, lost, slot)


def functions_of_interest(words: Iterable[Selected]) -> tuple[KernelFunction, ...]:
    """Return the functions that decide the claims of some scenarios; of all of them if there is no word."""
    wanted = list(words)
    named = {
        function
        for line in scenario_lines()
        if not wanted or any(word.matches(Selected(line.file, line.name, word.level)) for word in wanted)
        for function in line.decided_by
    }
    known = [one for one in vars(kernel_functions).values() if isinstance(one, KernelFunction) and str(one) in named]
    elsewhere = [one.elsewhere for one in known if one.elsewhere is not None]
    return tuple(sorted({*known, *elsewhere}, key=lambda one: (one.file, one.name)))


def _existing(slot: Slot, tree: str, files: Iterable[str], asked: Sequence[str]) -> list[str]:
    """Return the files that a tree has, each once.

    :param asked: those that the user named; they must be there.
    """
    wanted = list(dict.fromkeys(files))
    here = slot.identities(tree, wanted)
    if missing := [file for file in asked if file not in here or not re.search(r"\.[ch]$", file)]:
        raise UsageError(f"--file {missing[0]}: this source has no such C file; expected a path such as mm/mremap.c")
    return [file for file in wanted if file in here]
