"""Compares how a command ended with how it had to end. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.faults.command import Ended
from tests.faults.kind import Ending, Kind

LOG_LINE = re.compile(r"^\[ *\d+\.\d{3} [\w.]+\] .*$", re.MULTILINE)
#: Words that no user should ever see.
_NEVER = (
    "Traceback (most recent call last)",
    "INTERNALERROR",
    "a bug of hugepfn",
    "ResourceWarning",
    "Exception ignored",
)


def problems(kind: Kind, ended: Ended, results: Mapping[str, Any] | None) -> list[str]:
    """What is wrong with the end of a command; empty if nothing is.

    :param results: the content of the file of ``--json``; None if there is none.
    """
    if ended.status is None:
        return [f"it did not end within {ended.took_s:.0f} s"]
    if kind.moment is not None and not ended.injected:
        return [f"it ended with status {ended.status} before the moment of the fault came"]
    said = LOG_LINE.sub("", ended.out + ended.err)
    found = [f"it says {word!r}" for word in _NEVER if word in said]
    if ended.terminal:
        found.append(ended.terminal)
    alike = [ending for ending in kind.endings if ending.status == ended.status]
    if not alike:
        expected = " or ".join(str(ending.status) for ending in kind.endings)
        return [*found, f"status {ended.status}, expected {expected}"]
    differences = [_differences(ending, said, results) for ending in alike]
    return found + (min(differences, key=len) if all(differences) else [])


def _differences(ending: Ending, said: str, results: Mapping[str, Any] | None) -> list[str]:
    """In what an end differs from an expected one with its status."""
    found = [f"it does not say {words!r}" for words in ending.words if not re.search(words, said)]
    if ending.outcome:
        cases: Sequence[Mapping[str, Any]] = (results or {}).get("results", ())
        got = [_case(one) for one in cases]
        if got != [(ending.outcome, ending.end, ending.signal)]:
            found.append(f"the results are {got}, expected {(ending.outcome, ending.end, ending.signal)}")
    return found


def _case(result: Mapping[str, Any]) -> tuple[str, str, str]:
    end = result["end"] or {}
    return result["outcome"], end.get("kind", ""), end.get("signal", "")
