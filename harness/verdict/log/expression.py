"""A regular expression that is compiled when it is first used."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Expression:
    """An expression of the tables of complaints.

    Most runs meet no complaint and use none of them; compiling them all took a twentieth of the time of a short run.
    """

    pattern: str

    @functools.cached_property
    def compiled(self) -> re.Pattern[str]:
        """:raises re.error: it is not a regular expression."""
        return re.compile(self.pattern)

    def match(self, text: str) -> re.Match[str] | None:
        """Match it at the start of a text."""
        return self.compiled.match(text)

    def search(self, text: str) -> re.Match[str] | None:
        """Search a text for it."""
        return self.compiled.search(text)
