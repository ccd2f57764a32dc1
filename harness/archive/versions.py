"""Debian versions: their order, and what "6.12" means among them. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from harness.errors import UsageError


class Versioned(Protocol):
    """Anything with a Debian version and the upstream part of it."""

    @property
    def version(self) -> str: ...
    @property
    def upstream(self) -> str: ...


V = TypeVar("V", bound=Versioned)

_WANTED = re.compile(r"\d+(\.\d+)*([~-]rc\d+)?([-+~][0-9A-Za-z.+~-]+)?")
_PIECES = re.compile(r"(\D*)(\d*)")


def upstream_of(version: str) -> str:
    """``6.12.117`` of ``6.12.117-1~bpo12+1``; ``7.3~rc7`` of ``7.3~rc7-1~exp1``."""
    return version.rpartition(":")[2].partition("-")[0]


def is_rc(upstream: str) -> bool:
    """Whether an upstream version is a release candidate (``7.3~rc7``)."""
    return "~rc" in upstream


def is_exact(wanted: str) -> bool:
    """Whether a requested version names only one upstream version: 6.12.95 and 7.3-rc7 do, 6.12 does not."""
    return wanted.count(".") >= 2 or "rc" in wanted


def series_of(upstream: str) -> str:
    """``6.12`` of ``6.12.117``; ``7.3`` of ``7.3~rc7``."""
    return ".".join(upstream.partition("~")[0].split(".")[:2])


def check_wanted(wanted: str) -> str:
    """Convert a version from the user to Debian's spelling (``7.3-rc7`` becomes ``7.3~rc7``).

    :raises UsageError: not a version.
    """
    if not _WANTED.fullmatch(wanted):
        raise UsageError(f"{wanted!r} is not a kernel version; expected 6.12, 6.12.95 or 7.3-rc7")
    return wanted.replace("-rc", "~rc")


def matches(wanted: str, candidate: Versioned) -> bool:
    """Whether a candidate matches the request: the whole Debian version, the upstream version, or its series.

    A series ends at a dot: 6.1 is neither 6.12 nor 6.16. A release candidate belongs to its series.
    """
    upstream = candidate.upstream
    return wanted in (candidate.version, upstream) or upstream.startswith((f"{wanted}.", f"{wanted}~rc"))


def choose(candidates: Iterable[V], wanted: str | None, at_least: str) -> V | None:
    """The newest match by Debian version; any release is preferred to a release candidate.

    :param wanted: None for anything at or above ``at_least``.
    :returns: the first of several equal ones; None if nothing matches.
    """
    if wanted is None:
        fitting = [c for c in candidates if compare(c.upstream, at_least) >= 0]
    else:
        fitting = [c for c in candidates if matches(wanted, c)]
    fitting.sort(key=sort_key, reverse=True)
    return fitting[0] if fitting else None


def sort_key(candidate: Versioned) -> tuple[bool, object]:
    """The key for sorting upwards: release candidates, then releases, each by Debian version."""
    return not is_rc(candidate.upstream), version_key(candidate.version)


def newest_of_each_series(candidates: Sequence[V]) -> list[V]:
    """The newest candidate of each series (6.1, 6.12, 7.3); newest series first."""
    series: dict[str, V] = {}
    for candidate in sorted(candidates, key=sort_key):
        series[series_of(candidate.upstream)] = candidate
    return sorted(series.values(), key=lambda c: version_key(c.version), reverse=True)


def compare(left: str, right: str) -> int:
    """Return <0, 0 or >0, in the order of dpkg --compare-versions (deb-version(7), lib/dpkg/version.c)."""
    for mine, theirs in zip(_split(left), _split(right), strict=True):
        if order := _compare_part(mine, theirs):
            return order
    return 0


version_key = functools.cmp_to_key(compare)


def _split(version: str) -> tuple[str, str, str]:
    epoch, _, rest = version.rpartition(":")
    upstream, dash, revision = rest.rpartition("-")
    return (epoch or "0", upstream, revision) if dash else (epoch or "0", rest, "")


def _compare_part(left: str, right: str) -> int:
    """Compare digits as numbers. Other characters: ``~`` sorts before the end, and letters before all others."""
    while left or right:
        mine, theirs = _PIECES.match(left), _PIECES.match(right)
        assert mine is not None, "the pattern matches the empty string"
        assert theirs is not None, "the pattern matches the empty string"
        for a, b in zip(_weights(mine[1], len(theirs[1])), _weights(theirs[1], len(mine[1])), strict=True):
            if a != b:
                return a - b
        if difference := int(mine[2] or 0) - int(theirs[2] or 0):
            return difference
        left, right = left[mine.end() :], right[theirs.end() :]
    return 0


def _weights(text: str, at_least: int) -> list[int]:
    """The weight of each character, padded with 0 (the end) to the length of the other side."""
    weights = [-1 if c == "~" else ord(c) if c.isalpha() else ord(c) + 256 for c in text]
    return weights + [0] * (at_least - len(text))
