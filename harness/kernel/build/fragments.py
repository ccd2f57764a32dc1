"""Configuration fragments: ``CONFIG_X=y  # reason`` lines in; wishes, and what a ``.config`` lacks of them, out. Pure.

The line format is the kernel's own (scripts/kconfig/merge_config.sh), and a reason may follow on the same line. If it
begins with "where there is one", a kernel without such a symbol will do: it came later, or is gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from harness.errors import UsageError
from harness.kernel.kconfig import Kconfig

_SET = re.compile(r'CONFIG_(\w+)=("(?:[^"\\]|\\.)*"|[^\s#"]+)\s*(?:#\s*(?P<reason>.*))?')
_OPTIONAL = "where there is one"
_UNSET = re.compile(r"#\s*CONFIG_(\w+) is not set\b.*")


@dataclass(frozen=True)
class Wanted:
    """One symbol that a fragment asks for."""

    symbol: str  # without CONFIG_
    value: str  # as in a .config: y, m, n, 42, "text" with its quotes
    file: str
    line: int
    optional: bool = False  # a kernel whose Kconfig files do not have it will do

    @property
    def assignment(self) -> str:
        """The line of a .config that asks for it."""
        return f"# CONFIG_{self.symbol} is not set" if self.value == "n" else f"CONFIG_{self.symbol}={self.value}"

    @property
    def place(self) -> str:
        """``base.config:12``."""
        return f"{self.file}:{self.line}"

    def holds_in(self, config: Kconfig) -> bool:
        """Whether a configuration has it so."""
        return (config.get(self.symbol) or "n") == self.value.removeprefix('"').removesuffix('"').replace("\\", "")


def parse(file: str, text: str) -> list[Wanted]:
    """What a fragment asks for, in order.

    :param file: its name, for messages.
    :raises UsageError: a line that is neither an assignment nor a comment; names file and line.
    """
    wanted = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if match := _SET.fullmatch(words):
            optional = (match["reason"] or "").startswith(_OPTIONAL)
            wanted.append(Wanted(match[1], match[2], file, number, optional))
        elif match := _UNSET.fullmatch(words):
            wanted.append(Wanted(match[1], "n", file, number, optional=True))
        elif words and not words.startswith("#"):
            raise UsageError(f"{file}:{number}: {words!r} is not understood; expected CONFIG_NAME=VALUE  # reason")
    return wanted


def merge(fragments: Iterable[Iterable[Wanted]]) -> list[Wanted]:
    """One wish per symbol: a later fragment has the last word."""
    merged: dict[str, Wanted] = {}
    for fragment in fragments:
        for wanted in fragment:
            merged[wanted.symbol] = wanted
    return list(merged.values())


def config_lines(wanted: Iterable[Wanted]) -> str:
    """The text to put behind a .config; there the last line about a symbol counts."""
    return "".join(f"{each.assignment}\n" for each in wanted)


def unmet(wanted: Iterable[Wanted], config: Kconfig) -> list[Wanted]:
    """The wishes that a finished configuration does not fulfil."""
    return [each for each in wanted if not each.holds_in(config)]
