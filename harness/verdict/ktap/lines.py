"""The kinds of KTAP lines, each as a value (Documentation/dev-tools/ktap.rst, TAP 13).

There is no state here: the kind of a line does not depend on its place. :mod:`harness.verdict.ktap.parse` finds out to
which test it belongs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Numbers have at most nine digits: longer ones are noise, and int() rejects numbers with thousands of digits.
_VERSION = re.compile(r"(?P<indent>(?:# |[ \t])*)(?P<what>K?TAP) version (?P<version>\d{1,9})\s*$")
_PLAN = re.compile(r"(?P<indent>[ \t]*)1\.\.(?P<count>\d{1,9})\s*(?:#\s*(?P<comment>.*))?$")
_RESULT = re.compile(r"(?P<verdict>ok|not ok) (?P<number>\d{1,9})(?=\s|$)\s*(?P<rest>.*)$")
_BAIL_OUT = re.compile(r"Bail out!\s*(?P<reason>.*)$")
_SUBTEST = re.compile(r"(?P<indent>[ \t]*)# Subtest: (?P<name>.*)$")
_PROGRAM = re.compile(r"# selftests: (?P<name>.*)$")
_COMMENT_START = re.compile(r"(?:^|\s)(?<!\\)#\s*")
_DIRECTIVE = re.compile(r"(?P<word>SKIP|TODO|XFAIL)\b:?\s*(?P<reason>.*)$", re.IGNORECASE)

KNOWN_VERSIONS = frozenset({("KTAP", 1), ("TAP", 13), ("TAP", 14)})


@dataclass(frozen=True)
class Version:
    """``KTAP version 1``: a level of results starts at this indentation."""

    indent: str
    known: bool


@dataclass(frozen=True)
class Plan:
    """``1..4`` or ``1..0 # SKIP reason``."""

    indent: str
    """Not empty for the plan of an inner level that has neither a version line nor a ``# Subtest``."""
    count: int
    reason: str


@dataclass(frozen=True)
class Result:
    """``not ok 3 - name # SKIP reason``."""

    ok: bool
    number: int
    name: str
    directive: str
    """"SKIP", "TODO", "XFAIL", or "" for none or an unknown one."""
    reason: str


@dataclass(frozen=True)
class BailOut:
    """``Bail out! reason``."""

    reason: str


@dataclass(frozen=True)
class Subtest:
    """``# Subtest: name``: names the test whose level this is (kunit) or that comes next (TAP 14)."""

    indent: str
    name: str


@dataclass(frozen=True)
class SelftestHeader:
    """``# selftests: mm: mkdirty``: the kselftest runner names the program that it is about to start."""

    name: str


Line = Plan | Result | BailOut | Subtest | SelftestHeader


def version(text: str) -> Version | None:
    """Recognise a version line at any indentation."""
    match = _VERSION.match(text)
    if not match:
        return None
    return Version(match["indent"], (match["what"], int(match["version"])) in KNOWN_VERSIONS)


def classify(text: str) -> Line | None:
    """Recognise a line without the indentation of its level; None for diagnostics and for other text."""
    if match := _RESULT.match(text):
        return _result(match)
    if match := _PLAN.match(text):
        skip = _DIRECTIVE.match(match["comment"] or "")
        return Plan(match["indent"], int(match["count"]), (skip["reason"] if skip else match["comment"] or "").strip())
    if match := _BAIL_OUT.match(text):
        return BailOut(match["reason"].strip())
    if match := _SUBTEST.match(text):
        return Subtest(match["indent"], match["name"].strip())
    if match := _PROGRAM.match(text):
        return SelftestHeader("selftests: " + match["name"].strip())
    return None


def _result(match: re.Match[str]) -> Result:
    name, comment = match["rest"], ""
    if cut := _COMMENT_START.search(name):
        name, comment = name[: cut.start()], name[cut.end() :]
    name = name.strip().removeprefix("- ").strip() if name.strip() != "-" else ""
    directive = _DIRECTIVE.match(comment)
    return Result(
        ok=match["verdict"] == "ok",
        number=int(match["number"]),
        name=name.replace("\\#", "#"),
        directive=directive["word"].upper() if directive else "",
        reason=(directive["reason"] if directive else comment).strip(),
    )
