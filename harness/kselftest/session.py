"""One session with the kernel's own selftests: choose the source and the programs, run them, and give the verdict."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.archive.versions import series_of
from harness.campaign.pytest_session import run_pytest, told
from harness.config import MachineConfig
from harness.errors import ExitCode, UsageError
from harness.events import Note
from harness.kernel import Kernel, KernelImage
from harness.kernel.build import BuiltSource, DebsrcOrigin, Recipe
from harness.kernel.build.builder import source_tree
from harness.kernel.build.selftests import SELFTESTS, Collection, collection
from harness.kernel.debian import DebianSource
from harness.kselftest.items import KselftestPlugin, Runner
from harness.kselftest.report import KselftestReporter
from harness.machine import preparation
from harness.outputs import check_writable
from harness.qemu.accel import tell_why_tcg


def parse_selectors(words: Sequence[str]) -> dict[str, list[str]]:
    """Parse ``mm:soft-dirty`` ... into programs by collection; an empty list means the whole collection.

    A program may have arguments: ``"mm:gup_test -u"``. A collection that is named as a whole and in part runs as a
    whole.

    :raises UsageError: a word has no collection, or no program after its colon.
    """
    found: dict[str, list[str]] = {}
    for word in words:
        name, colon, program = word.partition(":")
        if not name or (colon and not program.strip()):
            raise UsageError(
                f"{word!r} is not a selftest; expected COLLECTION or COLLECTION:TEST, such as mm:soft-dirty"
            )
        found.setdefault(name, []).append(program.strip())
    return {name: [] if "" in programs else list(dict.fromkeys(programs)) for name, programs in found.items()}


def commands_of(found: Collection, asked: Sequence[str]) -> list[str]:
    """The programs of a collection with their arguments.

    :param asked: names, optionally with arguments; the default arguments are those of the collection's own script.
        Empty for all programs.
    :raises UsageError: there is no such program; lists the existing ones.
    """
    known = found.commands()
    commands: list[str] = []
    for one in asked:
        name = one.split()[0]
        if name in found.scripts:
            raise UsageError(f"{found.name}:{name} is a shell script, which the guest cannot run; name a program")
        if name not in found.programs:
            there = ", ".join(found.programs) or "none at all"
            raise UsageError(f"{found.name} of {found.spec} has no test {name!r}; expected one of: {there}")
        commands += [one] if one != name else [c for c in known if c.split()[0] == name] or [name]
    return list(dict.fromkeys(commands)) if asked else known


def recipes_of(kernel: Kernel, image: KernelImage, asked: str | None) -> list[Recipe]:
    """The possible sources of a kernel's selftests, in order of preference.

    For a stock kernel, this is Debian's source of the same release or else of the same series; for a built kernel, its
    own source.

    :raises UsageError: the source of a kernel given by path is not known.
    """
    if asked is not None:
        return [BuiltSource.parse(asked).recipe]
    if isinstance(kernel.source, BuiltSource):
        return [kernel.source.recipe]
    if isinstance(kernel.source, DebianSource):
        release = re.match(r"\d+\.\d+(\.[1-9]\d*)?", image.release)
        assert release is not None, "open_image() found a release"
        versions = dict.fromkeys((release[0], series_of(release[0])))
        return [Recipe(DebsrcOrigin(version)) for version in versions]
    raise UsageError(
        f"the source of {kernel.spec} is not known; give it with --source tree:PATH or --source debsrc:VERSION"
    )


def run_kselftest(
    pytest: ModuleType,
    reporter: KselftestReporter,
    words: Sequence[str],
    config: MachineConfig,
    options: Mapping[str, Any],
) -> ExitCode:
    """Build selftests, run them, and print the results.

    :raises UsageError: there is no such kernel, source, collection or test.
    :raises MachineryError: something is missing on this host.
    """
    selectors = parse_selectors(words)
    check_writable({"--junit": options["junit"]})
    why_tcg = preparation.preflight(config, reporter.live.say)
    image = preparation.resolve(config, reporter.live.say)
    recipe = _available(recipes_of(preparation.kernel_of(config), image, options["source"]), reporter)
    wanted = [
        _wanted(collection(recipe, name, reporter.live.say), asked, image, reporter)
        for name, asked in selectors.items()
    ]
    tell_why_tcg(why_tcg, reporter.live.say)
    reporter.live.say(Note(f"Linux {image.release} ({image.spec}), selftests of {recipe.spec}"))
    runner = Runner(config, image, options["timeout"], reporter.live.say)
    root = _root(wanted[0][0].folder)
    args = [*(str(found.folder) for found, _ in wanted), "--rootdir", str(root), "--noconftest"]
    args += [f"--junitxml={options['junit']}"] if options["junit"] else []
    args += options["pytest_args"]
    status = run_pytest(pytest, reporter, args, [KselftestPlugin(runner, wanted)])
    if status == pytest.ExitCode.USAGE_ERROR:
        return ExitCode.USAGE
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise UsageError("nothing was run, because none of the requested tests can be run")
    reporter.verdict()
    code = ExitCode.CLAIM_FAILED if runner.failed else ExitCode.OK
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not reporter.troubles:
        reporter.troubles.append(f"pytest ended with status {status}")
    return told(reporter, code.without(runner.broken))


def _wanted(
    found: Collection, asked: Sequence[str], image: KernelImage, reporter: KselftestReporter
) -> tuple[Collection, list[str]]:
    """The commands to run of a collection; prints what is left out, and what the kernel lacks for its tests."""
    commands = commands_of(found, asked)
    if image.config is None:
        reporter.live.say(
            Note(
                f"the configuration of {image.spec} is not known, so it may lack what selftests/{found.name} needs; "
                f"put it beside the image, as config-{image.release}"
            )
        )
    elif lacking := found.lacking(image.config):
        reporter.live.say(Note(f"this kernel lacks what selftests/{found.name} needs: {', '.join(lacking)}"))
    left = [*found.scripts, *(program for program in found.programs if not _named(program, commands))]
    if left and not asked:
        reporter.live.say(
            Note(f"not run of {found.name}, because they are scripts or need arguments: {', '.join(left)}")
        )
    return found, commands


def _named(program: str, commands: Sequence[str]) -> bool:
    return any(command.split()[0] == program for command in commands)


def _root(folder: Path) -> Path:
    return next(parent for parent in folder.parents if str(parent).endswith(SELFTESTS))


def _available(recipes: Sequence[Recipe], reporter: KselftestReporter) -> Recipe:
    for recipe in recipes[:-1]:
        try:
            source_tree(recipe, reporter.live.say)
        except UsageError as error:
            reporter.live.say(Note(f"{error}; using {recipes[-1].spec}"))
        else:
            return recipe
    return recipes[-1]
