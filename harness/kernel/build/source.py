"""Specs of kernels to build: ``tree:PATH[@REV][+PATCH...]``, ``debsrc:VERSION[@SUITE][+PATCH...]``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.events import Say
from harness.kernel.build.builder import build
from harness.kernel.build.debsrc import DebsrcOrigin
from harness.kernel.build.origins import SourceOrigin, TreeOrigin
from harness.kernel.build.recipe import Recipe
from harness.kernel.image import KernelImage

PATCH_SUFFIXES = (".patch", ".diff", ".mbox", ".mbx", ".eml")


@dataclass(frozen=True)
class BuiltSource:
    """A kernel that is built on request; implements harness.kernel.spec.Source."""

    recipe: Recipe

    @classmethod
    def parse(cls, text: str) -> BuiltSource:
        """Parse a spec with its scheme.

        :raises UsageError: it is neither a tree nor a Debian source.
        """
        origin, patches = split_patches(text)
        return cls(Recipe(parse_origin(origin), patches))

    @property
    def spec(self) -> str:
        """The canonical string of this source."""
        return self.recipe.spec

    @property
    def anywhere(self) -> bool:
        """Whether every machine can get this source: it needs no file of this one."""
        return isinstance(self.recipe.origin, DebsrcOrigin) and not self.recipe.patches

    def resolve(self, say: Say | None, offline: bool) -> KernelImage:
        """Build it, or take it from the cache."""
        return build(self.recipe, say, offline=offline)


def parse_origin(text: str) -> SourceOrigin:
    """Parse ``tree:PATH[@REV]`` or ``debsrc:VERSION[@SUITE]``; without a scheme it is the path of a tree.

    :raises UsageError: it cannot be parsed.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "debsrc":
        return DebsrcOrigin.parse(rest)
    return TreeOrigin.parse(rest if colon and scheme == "tree" else text)


def split_patches(text: str) -> tuple[str, tuple[Path, ...]]:
    """Split a spec from its patches. A ``+`` starts a patch if the text after it ends like the name of a patch file.

    :raises UsageError: a patch is followed by something else.
    """
    first, *rest = text.split("+")
    patches: list[Path] = []
    for piece in rest:
        if piece.endswith(PATCH_SUFFIXES):
            patches.append(Path(piece))
        elif patches:
            raise UsageError(
                f"{text}: {piece!r} is not a patch file; expected a name that ends in {', '.join(PATCH_SUFFIXES)}"
            )
        else:
            first += f"+{piece}"  # the + belongs to a path, a branch or a Debian version
    return first, tuple(patches)
