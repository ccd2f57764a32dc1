"""The recipe of a kernel, as a value."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from harness.kernel.build.origins import SourceOrigin

DEFAULT_FRAGMENTS = ("base", "pfnmap")


class BaseConfig(enum.Enum):
    """The configuration below the fragments."""

    TINY = "tiny"  # the kernel's tinyconfig
    VIRTME = "virtme"  # virtme-ng's configuration: defconfig plus its options


@dataclass(frozen=True)
class Recipe:
    """Everything that determines what is built. A value: nothing is read before :func:`build`."""

    origin: SourceOrigin
    patches: tuple[Path, ...] = ()
    fragments: tuple[str, ...] = DEFAULT_FRAGMENTS  # names in kconfigs/, or paths
    config: BaseConfig = BaseConfig.TINY
    lax: bool = False  # continue if a symbol of a fragment was dropped
    cc: str = "gcc"
    profiled: tuple[str, ...] = ()  # mm/memory.c: the kernel counts how often each line is executed
    llvm: bool = False  # clang and the LLVM tools for everything (Documentation/kbuild/llvm.rst)

    @property
    def compiler(self) -> str:
        """The command of the compiler."""
        return "clang" if self.llvm and self.cc == "gcc" else self.cc

    @property
    def spec(self) -> str:
        """``debsrc:6.12+fix.patch``; fragments and compiler are not part of it."""
        return "+".join([self.origin.spec, *(str(path) for path in self.patches)])
