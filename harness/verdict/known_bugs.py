"""The ledger of known bugs: what a kernel is known to do wrong, and how it shows. Pure; the file is TOML.

::

    [[bug]]
    id = "HP-001"
    title = "one sentence: what the kernel does, and what it should do"
    scenario = "mprotect_part"          # regular expression: "munmap_(page|across)" is both
    levels = ["pud"]                    # left out: every level; a scenario that knows none is always meant
    function = "mm/mprotect.c change_pud_range()"
    kernels = ["6.12.117", "7.3.4"]     # on which it was measured
    sometimes = true                    # left out: it shows each time; else one pass says nothing
    config = ["DEBUG_VM"]               # left out: every kernel; else it shows only where all of these symbols are set
    reproduce = "hugepfn run mprotect_part --level pud --kernel debian:6.12.117"

    [[bug.symptom]]
    claim = "the other half keeps its entries"  # regular expression: the broken claim's name, "invariant" for what
                                                # must hold at every stop, "kernel log", or "end" for what ended the run
    message = "no entry for bar"                # regular expression, found in what was seen

A scenario has a known bug when each thing that went wrong in it is a symptom of the ledger, and no other does.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError

_LEVELS = {"pte", "pmd", "pud"}
_BUG_KEYS = {"id": str, "title": str, "scenario": str, "function": str, "kernels": list, "reproduce": str}


@dataclass(frozen=True, slots=True)
class Failure:
    """One thing that went wrong in a scenario."""

    what: str  # a claim's name, or "invariant", "kernel log", "end"
    message: str  # what was seen


@dataclass(frozen=True, slots=True)
class Symptom:
    """How a bug shows."""

    claim: re.Pattern[str]
    message: re.Pattern[str]

    def shows_in(self, failure: Failure) -> bool:
        """Whether this is what went wrong."""
        return self.claim.fullmatch(failure.what) is not None and self.message.search(failure.message) is not None


@dataclass(frozen=True, slots=True)
class KnownBug:
    """One entry of the ledger."""

    id: str
    title: str
    scenario: re.Pattern[str]
    levels: frozenset[str]  # empty: whatever the level
    function: str
    kernels: tuple[str, ...]
    reproduce: str
    symptoms: tuple[Symptom, ...]
    config: tuple[str, ...] = ()
    sometimes: bool = False  # a race: that it did not show once proves nothing

    def shows(self, is_set: Callable[[str], bool]) -> bool:
        """Whether a kernel is configured so that the bug shows.

        :param is_set: whether the kernel has a symbol.
        """
        return all(map(is_set, self.config))

    def covers(self, scenario: str, level: str | None) -> bool:
        """Whether it is about this scenario at this level."""
        meant = not self.levels or level is None or level in self.levels
        return meant and self.scenario.fullmatch(scenario) is not None

    def explains(self, failure: Failure) -> bool:
        """Whether the failure is one of its symptoms."""
        return any(symptom.shows_in(failure) for symptom in self.symptoms)


@dataclass(frozen=True, slots=True)
class Finding:
    """What the ledger says about one result."""

    bugs: tuple[KnownBug, ...]  # that explain every failure; empty where one is not explained, or there is none
    absent: tuple[KnownBug, ...]  # that cover the scenario, which passed

    @property
    def known(self) -> bool:
        """Everything that went wrong is known."""
        return bool(self.bugs)

    @property
    def reason(self) -> str:
        """For the result: "known bug HP-001: ...", "fixed here: HP-001", or nothing."""
        if self.bugs:
            return "; ".join(f"known bug {bug.id}: {bug.title}" for bug in self.bugs)
        return f"fixed here: {', '.join(bug.id for bug in self.absent)}" if self.absent else ""


def judge(ledger: Sequence[KnownBug], scenario: str, level: str | None, failures: Sequence[Failure]) -> Finding:
    """Holds what went wrong in a scenario that ran to its verdict against the ledger."""
    covering = [bug for bug in ledger if bug.covers(scenario, level)]
    if not failures:
        return Finding((), tuple(bug for bug in covering if not bug.sometimes))
    explained = [[bug for bug in covering if bug.explains(failure)] for failure in failures]
    if not all(explained):
        return Finding((), ())
    return Finding(tuple(bug for bug in covering if any(bug in bugs for bugs in explained)), ())


def parse_ledger(text: str) -> list[KnownBug]:
    """Read a ledger.

    :raises UsageError: it is none; says which entry, and what is wrong with it.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the ledger of known bugs is no TOML: {error}") from None
    bugs = [_bug(entry, number) for number, entry in enumerate(data.get("bug", []), start=1)]
    ids = [bug.id for bug in bugs]
    if doubled := sorted({one for one in ids if ids.count(one) > 1}):
        raise UsageError(f"the ledger of known bugs has two entries {doubled[0]}")
    return bugs


def _bug(entry: dict[str, Any], number: int) -> KnownBug:
    where = f"the ledger's entry {entry.get('id', number)}"
    for key, kind in _BUG_KEYS.items():
        if not entry.get(key) or not isinstance(entry[key], kind):
            raise UsageError(f"{where}: {key!r} is missing, empty or not a {kind.__name__}")
    unknown = entry.keys() - _BUG_KEYS.keys() - {"levels", "config", "sometimes", "symptom"}
    levels = entry.get("levels", [])
    if unknown or not set(levels) <= _LEVELS:
        raise UsageError(f"{where}: {sorted(unknown) or levels} not understood")
    config = entry.get("config", [])
    if not isinstance(config, list) or not all(isinstance(symbol, str) for symbol in config):
        raise UsageError(f"{where}: 'config' is a list of symbols")
    if not isinstance(entry.get("sometimes", False), bool):
        raise UsageError(f"{where}: 'sometimes' is true or left out")
    if not entry.get("symptom"):
        raise UsageError(f"{where} has no [[bug.symptom]]: nothing would tell it from another bug")
    try:
        symptoms = tuple(Symptom(re.compile(one["claim"]), re.compile(one["message"])) for one in entry["symptom"])
    except (KeyError, TypeError, re.error) as error:
        raise UsageError(f"{where}: a symptom has 'claim' and 'message', both regular expressions: {error}") from None
    try:
        scenario = re.compile(entry["scenario"])
    except re.error as error:
        raise UsageError(f"{where}: 'scenario' is no regular expression: {error}") from None
    given = {key: entry[key] for key in ("id", "title", "function", "reproduce")}
    return KnownBug(
        **given,
        scenario=scenario,
        levels=frozenset(levels),
        kernels=tuple(entry["kernels"]),
        symptoms=symptoms,
        config=tuple(config),
        sometimes=entry.get("sometimes", False),
    )
