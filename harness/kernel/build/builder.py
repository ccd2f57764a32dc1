"""Makes a kernel from a recipe: computes the cache key, and builds only on a miss."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from harness.errors import UsageError
from harness.events import Say
from harness.host import cache
from harness.kernel.build import patches as patch_files
from harness.kernel.build.fragments import ConfigRequest, config_lines, merge, parse
from harness.kernel.build.job import BuildJob
from harness.kernel.build.offsets import SOURCE as OFFSETS_SOURCE
from harness.kernel.build.patches import Patch
from harness.kernel.build.recipe import Recipe
from harness.kernel.build.slot import BUILD_TIMEOUT_S
from harness.kernel.build.tools import LLVM_TOOLS, TOOLS, check_tools, compiler_identity
from harness.kernel.image import KernelImage, open_image

_LOG = logging.getLogger("hugepfn.cache")
_KIND = "built"
_SCHEMA = 1  # version of the cache entries
_KEPT = 64  # kernels of 20 MB each, enough for a series or a run of mutants


def kconfigs_dir() -> Path:
    """The folder of the fragments: beside the ``harness`` package, also in a wheel."""
    return Path(__file__).resolve().parents[3] / "kconfigs"


def read_fragment(name: str) -> tuple[str, str]:
    """File name and text of a fragment, given as a name in kconfigs/ or as a path.

    :raises UsageError: there is no such fragment; lists the existing ones.
    """
    ours = kconfigs_dir() / f"{name}.config"
    path = ours if ours.is_file() and "/" not in name else Path(name).expanduser()
    try:
        return path.name if path == ours else str(path), path.read_text()
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(p.stem for p in kconfigs_dir().glob("*.config")))
        raise UsageError(f"there is no fragment {name!r}; expected a file, or one of: {known}") from error


def read_patches(paths: Sequence[Path]) -> list[Patch]:
    """The patches of all files, in order.

    :raises UsageError: a file cannot be read, or has no patch in it.
    """
    found = []
    for path in paths:
        try:
            data = path.expanduser().read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the patch {path}: {error.strerror}") from error
        found += patch_files.split(str(path), data)
    return found


def build(recipe: Recipe, say: Say | None = None, offline: bool = False) -> KernelImage:
    """Build the kernel of a recipe, or take it from the cache.

    :param say: called with one event per file compiled, among others.
    :raises UsageError: there is no such source, patch or fragment, or a patch does not apply.
    :raises KernelBuildError: the source does not compile, at least not with this configuration.
    :raises MachineryError: something is missing on this host, or its disk is full.
    """
    wanted = _wanted(recipe)
    check_tools(recipe.compiler, LLVM_TOOLS if recipe.llvm else TOOLS)
    compiler = compiler_identity(recipe.compiler, llvm=recipe.llvm)
    slot = recipe.origin.slot
    tree = source_tree(recipe, say, offline)
    configuration = _configuration(recipe, wanted, compiler)
    job = BuildJob(recipe, slot, tree, wanted, configuration, say)
    name = _entry_name(tree, configuration, recipe)
    _LOG.debug(
        "key of kernel %s: tree %s, config %s, fragments %s, %s",
        *(name[:12], tree[:12], recipe.config.value, ", ".join(recipe.fragments) or "none", compiler.splitlines()[0]),
    )
    entry = cache.obtain(_KIND, name, job.run, say, BUILD_TIMEOUT_S, what=f"builds {recipe.spec}")
    cache.prune(_KIND, _KEPT)
    return replace(open_image(entry / "vmlinux", spec=recipe.spec, config=entry / "config"), tree=tree)


def are_built(recipe: Recipe, trees: Iterable[str]) -> Iterator[bool]:
    """Return for each tree whether the cache has its kernel, built as a recipe says.

    :raises MachineryError: there is no compiler.
    """
    compiler = compiler_identity(recipe.compiler, llvm=recipe.llvm)
    configuration = _configuration(recipe, _wanted(recipe), compiler)
    return (cache.has(_KIND, _entry_name(tree, configuration, recipe)) for tree in trees)


def _wanted(recipe: Recipe) -> list[ConfigRequest]:
    return merge(parse(*read_fragment(name)) for name in recipe.fragments)


def _configuration(recipe: Recipe, wanted: Sequence[ConfigRequest], compiler: str) -> str:
    """The key of the O= folder."""
    return digest(recipe.config.value, config_lines(wanted), str(recipe.lax), compiler)


def _entry_name(tree: str, configuration: str, recipe: Recipe) -> str:
    """The key of a kernel, which is not that of the O= folder: that is kept."""
    return digest(str(_SCHEMA), OFFSETS_SOURCE, tree, configuration, *recipe.profiled)


def source_tree(recipe: Recipe, say: Say | None = None, offline: bool = False) -> str:
    """The tree id of a recipe's source with its patches applied; the tree is then in the slot's repository.

    :raises UsageError: there is no such source or patch, or a patch does not apply.
    """
    slot, patches = recipe.origin.slot, read_patches(recipe.patches)
    with cache.locked(f"builds.{slot.name}", f"reads the source of {recipe.origin.spec}", say, BUILD_TIMEOUT_S):
        return slot.apply(recipe.origin.tree(say, offline), patches)


def digest(*parts: str) -> str:
    """A name for a cache entry, from everything that it depends on."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
