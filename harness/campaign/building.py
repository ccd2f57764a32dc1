"""``hugepfn build``: a recipe from the command line, and a progress bar during the build."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from harness.events import Compiled, Event, Sparing
from harness.kernel import KernelImage
from harness.kernel.build import BaseConfig, BuiltSource, Recipe, build


def recipe_of(
    tree: str,
    patches: Sequence[Path],
    fragments: Sequence[str],
    config: str = "tiny",
    lax: bool = False,
    cc: str = "gcc",
    llvm: bool = False,
) -> Recipe:
    """Make a recipe from the options of ``hugepfn build``.

    :param tree: a path, ``tree:PATH[@REV]`` or ``debsrc:VERSION[@SUITE]``; may include patches.
    :param fragments: added to the default fragments; the last setting of a symbol wins.
    """
    recipe = BuiltSource.parse(tree).recipe
    return dataclasses.replace(
        recipe,
        patches=(*recipe.patches, *patches),
        fragments=(*recipe.fragments, *fragments),
        config=BaseConfig(config),
        lax=lax,
        cc=cc,
        llvm=llvm,
    )


def build_shown(
    tree: str, patches: Sequence[Path], fragments: Sequence[str], config: str, lax: bool, cc: str, llvm: bool
) -> KernelImage:
    """Build with a progress bar on stderr: the files built so far, and the most that this configuration had."""
    recipe = recipe_of(tree, patches, fragments, config, lax, cc, llvm)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    write = Sparing(lambda line: console.print(f"hugepfn: {line}"))
    if not console.is_terminal:
        return build(recipe, write)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[file]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("building", total=None, file="", visible=False)

        def show(event: Event) -> None:
            match event:
                case Compiled(file, done, most):
                    bar.update(task, completed=done, total=max(most, done) if most else None, file=file, visible=True)
                case _:
                    write(event)

        return build(recipe, show)
