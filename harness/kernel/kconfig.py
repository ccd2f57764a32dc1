"""A kernel's configuration as a value: ``CONFIG_X=y`` lines in, answers out. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property

_ASSIGNMENT = re.compile(r"^CONFIG_(\w+)=(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Kconfig:
    """The text of a ``.config`` file; parsed on first use."""

    text: str = field(repr=False)

    @cached_property
    def symbols(self) -> dict[str, str]:
        """Every symbol that is set, without ``CONFIG_``; strings without their quotes."""
        return {name: _unquoted(value) for name, value in _ASSIGNMENT.findall(self.text)}

    @cached_property
    def sha256(self) -> str:
        """Sha256 of the text, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def get(self, symbol: str) -> str | None:
        """The value of a symbol (``"y"``, ``"m"``, a number or a string), or None if it is not set.

        :param symbol: with or without ``CONFIG_``.
        """
        return self.symbols.get(symbol.removeprefix("CONFIG_"))

    def is_set(self, symbol: str) -> bool:
        """Whether a symbol is ``y`` or ``m``."""
        return self.get(symbol) in ("y", "m")

    def is_builtin(self, symbol: str) -> bool:
        """Whether a symbol is ``y``, that is, built into the image."""
        return self.get(symbol) == "y"


def _unquoted(value: str) -> str:
    """A Kconfig value without its quotes; only ``\\"`` and ``\\\\`` are escaped there (scripts/kconfig/symbol.c)."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value
