"""Kernels from source: a git tree, a folder or Debian's source package is patched, configured, built and cached."""

from harness.kernel.build.builder import are_built, build, kconfigs_dir
from harness.kernel.build.debsrc import DebsrcOrigin
from harness.kernel.build.origins import SourceOrigin, TreeOrigin
from harness.kernel.build.recipe import BaseConfig, Recipe
from harness.kernel.build.source import BuiltSource, parse_origin
from harness.kernel.build.tools import TOOLS, missing_tools

__all__ = [
    "TOOLS",
    "BaseConfig",
    "BuiltSource",
    "DebsrcOrigin",
    "Recipe",
    "SourceOrigin",
    "TreeOrigin",
    "are_built",
    "build",
    "kconfigs_dir",
    "missing_tools",
    "parse_origin",
]
