"""Evaluates Kconfig's dependency expressions, and finds out what is missing if one does not hold. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.kernel.kconfig import Kconfig

# $(cc-option,-m...) is one word. The answer of the compiler or shell is not known here, so it counts as true.
_TOKEN = re.compile(r"\s*(\$\((?:[^()]|\([^()]*\))*\)|&&|\|\||!=|<=|>=|[!()=<>]|\"[^\"]*\"|'[^']*'|[\w.-]+)")
_RELATIONS = ("=", "!=", "<", ">", "<=", ">=")


def conjunction(parts: Iterable[str]) -> str:
    """An expression that holds if all parts do."""
    return " && ".join(f"({part})" for part in parts if part) or "y"


def value_of(expression: str, config: Kconfig) -> bool:
    """Whether an expression is y or m."""
    return not why_false(expression, config)


def why_false(expression: str, config: Kconfig) -> list[str]:
    """What is missing for an expression to hold, in the notation of the file; empty if it holds.

    For ``A && B`` each missing part, for ``A || B`` the alternatives as one word, for ``!A`` that A has to be off.
    """
    return _Parser(expression, config).missing()


class _Parser:
    """Recursive descent: or := and (|| and)*; and := not (&& not)*; not := ! not | ( or ) | word [relation word]."""

    def __init__(self, expression: str, config: Kconfig) -> None:
        self.tokens = _TOKEN.findall(expression)
        self.at = 0
        self.config = config

    def missing(self) -> list[str]:
        return list(dict.fromkeys(self._or(True)))

    def _peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self.at += 1
        return token

    def _or(self, wanted: bool) -> list[str]:
        parts = [self._and(wanted)]
        while self._peek() == "||":
            self.at += 1
            parts.append(self._and(wanted))
        return _any(parts) if wanted else _all(parts)

    def _and(self, wanted: bool) -> list[str]:
        parts = [self._not(wanted)]
        while self._peek() == "&&":
            self.at += 1
            parts.append(self._not(wanted))
        return _all(parts) if wanted else _any(parts)

    def _not(self, wanted: bool) -> list[str]:
        token = self._next()
        if token == "!":
            return self._not(not wanted)
        if token == "(":
            inside = self._or(wanted)
            self.at += 1  # skip the closing parenthesis
            return inside
        if self._peek() in _RELATIONS:
            relation, right = self._next(), self._next()
            holds = self._compare(self._word(token), relation, self._word(right))
            return [] if holds == wanted else [f"{'' if wanted else '!'}({token} {relation} {right})"]
        holds = token.startswith("$(") == wanted if token.startswith("$(") else (self._word(token) != "n") == wanted
        return [] if holds else [token if wanted else f"!{token}"]

    def _word(self, token: str) -> str:
        if token[:1] in "\"'" or token in ("y", "m", "n") or re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", token):
            return token.strip("\"'")
        return self.config.get(token) or "n"

    @staticmethod
    def _compare(left: str, relation: str, right: str) -> bool:
        if relation in ("=", "!="):
            return (left == right) == (relation == "=")
        try:
            order = int(left, 0) - int(right, 0)
        except ValueError:
            return True  # not known here
        return {"<": order < 0, ">": order > 0, "<=": order <= 0, ">=": order >= 0}[relation]


def _all(parts: list[list[str]]) -> list[str]:
    return [each for part in parts for each in part]


def _any(parts: list[list[str]]) -> list[str]:
    """Nothing is missing if one alternative holds; otherwise the alternatives as one word."""
    if any(not part for part in parts):
        return []
    if len(parts) == 1:
        return parts[0]
    return ["(" + " or ".join(" and ".join(part) for part in parts) + ")"]
