"""Kernels to build as somebody writes them: ``tree:PATH[@REV][+PATCH...]``, ``debsrc:VERSION[@SUITE][+PATCH...]``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.cache import Progress
from harness.errors import UsageError
from harness.kernel.build.builder import build
from harness.kernel.build.debsrc import DebsrcOrigin
from harness.kernel.build.origins import Origin, TreeOrigin
from harness.kernel.build.recipe import Recipe
from harness.kernel.image import KernelImage

PATCH_SUFFIXES = (".patch", ".diff", ".mbox", ".mbx", ".eml")


@dataclass(frozen=True)
class BuiltSource:
    """A kernel that is built when it is asked for: harness.kernel.spec's Source."""

    recipe: Recipe

    @classmethod
    def parse(cls, text: str) -> BuiltSource:
        """A spec with its scheme.

        :raises UsageError: neither a tree nor a Debian source.
        """
        origin, patches = split_patches(text)
        return cls(Recipe(parse_origin(origin), patches))

    @property
    def spec(self) -> str:
        """The canonical string."""
        return self.recipe.spec

    def resolve(self, progress: Progress | None, offline: bool) -> KernelImage:
        """Build it, or take it from the cache."""
        return build(self.recipe, progress, offline=offline)


def parse_origin(text: str) -> Origin:
    """``tree:PATH[@REV]`` or ``debsrc:VERSION[@SUITE]``; without a scheme it is a tree's path.

    :raises UsageError: it makes no sense.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "debsrc":
        return DebsrcOrigin.parse(rest)
    return TreeOrigin.parse(rest if colon and scheme == "tree" else text)


def split_patches(text: str) -> tuple[str, tuple[Path, ...]]:
    """A spec and its patches. A ``+`` begins a patch where what follows it ends like a patch file's name.

    :raises UsageError: something that is no patch stands behind a patch.
    """
    first, *rest = text.split("+")
    patches: list[Path] = []
    for piece in rest:
        if piece.endswith(PATCH_SUFFIXES):
            patches.append(Path(piece))
        elif patches:
            raise UsageError(
                f"{text}: {piece!r} is no patch file; expected a name that ends in {', '.join(PATCH_SUFFIXES)}"
            )
        else:
            first += f"+{piece}"  # of a path, a branch or a Debian version
    return first, tuple(patches)
