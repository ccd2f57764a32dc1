"""What a user expects of a case or of one of its claims, as ``--expect`` says it. Pure.

Grammar::

    fork=fail                                         a scenario, at every level
    fork:pmd=fail                                     at one level, also as 2M
    fork:pmd:the child's pmd keeps its dirty bit=fail one claim; its name may have : and = in it
    ./mine/test_mine.py::test_mine:pmd:a claim=skip   the same of a test of the user's own
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Any, Self

from harness.errors import UsageError, did_you_mean
from harness.levels import checked_level, is_level, level_label
from harness.verdict.json_fields import as_object, member, value_of

FORM = "TEST[:LEVEL][:CLAIM]=pass|fail|skip"
_IN_FILE = re.compile(r"(?P<test>.+?\.py(?:::[A-Za-z_]\w*)*(?:\[[^\]]*\])?)(?::(?P<rest>.*))?", re.DOTALL)
_BY_NAME = re.compile(r"(?P<test>[A-Za-z_]\w*(?:\[[^\]]*\])?)(?::(?P<rest>.*))?", re.DOTALL)
#: A word that is meant to be a level, so that a mistake in one is not taken for a claim: "pdm", "p4d", "4M".
_LIKE_A_LEVEL = re.compile(r"p\w\w|\d+[kmgt]i?b?|", re.IGNORECASE)


class Expected(enum.Enum):
    """How it is to end."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"


class ExpectationAnswer(enum.Enum):
    """What became of an expectation."""

    MET = "met"
    UNMET = "unmet"
    NO_CLAIM = "no_claim"
    """Unmet: the case makes no claim of this name."""
    UNKNOWN = "unknown"
    """Neither: it is not known how it would have ended."""


@dataclass(frozen=True)
class Expectation:
    """How some cases, or one claim of each, are to end."""

    test: str
    """The word that selects them, without a level: a scenario, or FILE[::TEST]."""
    level: str | None
    """"pte", "pmd" or "pud"; None for all."""
    claim: str
    """Its name; "" for the whole case."""
    outcome: Expected

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what a user said.

        :raises UsageError: text has another form, or no such level or outcome.
        """
        said, equals, word = text.strip().rpartition("=")
        words = [one.value for one in Expected]
        if not equals:
            raise UsageError(f"{text!r}: an expectation ends in {' or '.join(f'={one}' for one in words)}: {FORM}")
        if word.strip() not in words:
            close = did_you_mean(word.strip(), words)
            raise UsageError(f"{text!r}: no outcome {word.strip()!r}{close} the outcomes are {', '.join(words)}")
        found = _BY_NAME.fullmatch(said.strip()) or _IN_FILE.fullmatch(said.strip())
        if found is None or (found["rest"] or "").startswith(":"):
            raise UsageError(f"{text!r}: expected {FORM}, where TEST is a scenario or FILE.py[::TEST]")
        level, claim = (None, "") if found["rest"] is None else _level_and_claim(text, found["rest"].strip())
        return cls(found["test"], level, claim, Expected(word.strip()))

    def __str__(self) -> str:
        """The text that means this."""
        return f"{self.selects}{f':{self.claim}' if self.claim else ''}={self.outcome.value}"

    @property
    def selects(self) -> str:
        """The word that selects the cases, with the level."""
        return self.test if self.level is None else f"{self.test}:{self.level}"

    def to_json(self) -> dict[str, Any]:
        """This expectation as an object of schema hugepfn-run."""
        return {"test": self.test, "level": self.level, "claim": self.claim, "expected": self.outcome.value}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value has another form.
        """
        data = as_object(value, "an expectation")
        level = None if data.get("level") is None else value_of(data, "level", str)
        return cls(value_of(data, "test", str), level, value_of(data, "claim", str), member(data, "expected", Expected))


def _level_and_claim(text: str, rest: str) -> tuple[str | None, str]:
    first, colon, claim = (part.strip() for part in rest.partition(":"))
    if not is_level(first):
        if _LIKE_A_LEVEL.fullmatch(first):
            checked_level(text, first)
        return None, rest
    if colon and not claim:
        raise UsageError(f"{text!r}: the name of a claim is missing after the last colon")
    return level_label(first), claim
