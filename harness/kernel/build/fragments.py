"""Configuration fragments: reads ``CONFIG_X=y  # reason`` lines and finds out which a ``.config`` does not fulfil.
Pure.

The line format is that of the kernel (scripts/kconfig/merge_config.sh), with an optional reason on the same line. If
the reason begins with "where there is one", the symbol may be missing: it was added later, or has been removed.
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
class ConfigRequest:
    """One symbol that a fragment requests."""

    symbol: str  # without CONFIG_
    value: str  # as in a .config: y, m, n, 42, "text" with its quotes
    file: str
    line: int
    optional: bool = False  # the symbol may be missing in the kernel's Kconfig files

    @property
    def assignment(self) -> str:
        """The line of a .config that requests it."""
        return f"# CONFIG_{self.symbol} is not set" if self.value == "n" else f"CONFIG_{self.symbol}={self.value}"

    @property
    def place(self) -> str:
        """File and line of the request: ``base.config:12``."""
        return f"{self.file}:{self.line}"

    def holds_in(self, config: Kconfig) -> bool:
        """Whether a configuration has the requested value."""
        return (config.get(self.symbol) or "n") == self.value.removeprefix('"').removesuffix('"').replace("\\", "")


def parse(file: str, text: str) -> list[ConfigRequest]:
    """The requests of a fragment, in order.

    :param file: its name, for messages.
    :raises UsageError: a line is neither an assignment nor a comment; names file and line.
    """
    wanted = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if match := _SET.fullmatch(words):
            optional = (match["reason"] or "").startswith(_OPTIONAL)
            wanted.append(ConfigRequest(match[1], match[2], file, number, optional))
        elif match := _UNSET.fullmatch(words):
            wanted.append(ConfigRequest(match[1], "n", file, number, optional=True))
        elif words and not words.startswith("#"):
            raise UsageError(f"{file}:{number}: {words!r} is not a request; expected CONFIG_NAME=VALUE  # reason")
    return wanted


def merge(fragments: Iterable[Iterable[ConfigRequest]]) -> list[ConfigRequest]:
    """One request per symbol; a later fragment overrides an earlier one."""
    merged: dict[str, ConfigRequest] = {}
    for fragment in fragments:
        for wanted in fragment:
            merged[wanted.symbol] = wanted
    return list(merged.values())


def config_lines(wanted: Iterable[ConfigRequest]) -> str:
    """The text to append to a .config, in which the last line about a symbol wins."""
    return "".join(f"{each.assignment}\n" for each in wanted)


def unmet(wanted: Iterable[ConfigRequest], config: Kconfig) -> list[ConfigRequest]:
    """The requests that a finished configuration does not fulfil."""
    return [each for each in wanted if not each.holds_in(config)]
