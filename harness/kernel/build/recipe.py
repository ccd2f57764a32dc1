"""What decides how a kernel is built, as a value."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from harness.kernel.build.origins import Origin

DEFAULT_FRAGMENTS = ("base", "pfnmap")


class BaseConfig(enum.Enum):
    """What the fragments are put on top of."""

    TINY = "tiny"  # the kernel's tinyconfig
    VIRTME = "virtme"  # virtme-ng's own: defconfig and what it adds


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is built. A value: nothing is read before :func:`build`."""

    origin: Origin
    patches: tuple[Path, ...] = ()
    fragments: tuple[str, ...] = DEFAULT_FRAGMENTS  # names of kconfigs/, or paths
    config: BaseConfig = BaseConfig.TINY
    lax: bool = False  # go on where a fragment's symbol was dropped
    cc: str = "gcc"
    llvm: bool = False  # clang and the LLVM tools for everything (Documentation/kbuild/llvm.rst)

    @property
    def compiler(self) -> str:
        """The compiler that is called."""
        return "clang" if self.llvm and self.cc == "gcc" else self.cc

    @property
    def spec(self) -> str:
        """``debsrc:6.12+fix.patch``; fragments and compiler are not in it."""
        return "+".join([self.origin.spec, *(str(path) for path in self.patches)])
