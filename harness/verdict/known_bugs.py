"""The list of known bugs: what kernels do wrong, and how it shows. Pure; the file is TOML.

::

    [[bug]]
    id = "HP-001"
    title = "one sentence: what the kernel does, and what it should do"
    scenario = "mprotect_part"          # regular expression: "munmap_(page|across)" is both
    levels = ["pud"]                    # default: every level; a scenario without levels always matches
    function = "mm/mprotect.c change_pud_range()"
    sometimes = true                    # default: it shows every time; if true, a pass proves nothing
    config = ["DEBUG_VM"]               # default: every kernel; else only kernels with all of these symbols set
    reproduce = "hugepfn run mprotect_part --level pud --kernel debian:6.12.117"

    [[bug.symptom]]
    claim = "the other half keeps its entries"
    subject = "presence"
    level = "none"

The keys of a symptom: :mod:`harness.verdict.symptoms`.

The outcome of a scenario is "known bug" only if each of its failures is a symptom in the list. Which kernels were seen
to have a bug is measured: :mod:`harness.verdict.seen`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError
from harness.verdict.claims import BugFixed, BugReturned, BugSeen
from harness.verdict.seen import NO_FACTS, Facts
from harness.verdict.symptoms import Failure, Shown, Symptom, symptom

_LEVELS = {"pte", "pmd", "pud"}
_BUG_KEYS = {"id": str, "title": str, "scenario": str, "function": str, "reproduce": str}


@dataclass(frozen=True, slots=True)
class KnownBug:
    """One entry of the list."""

    id: str
    title: str
    scenario: re.Pattern[str]
    levels: frozenset[str]  # empty: every level
    function: str
    reproduce: str
    symptoms: tuple[Symptom, ...]
    config: tuple[str, ...] = ()
    sometimes: bool = False  # a race: a run in which it does not show proves nothing

    def shows(self, is_set: Callable[[str], bool]) -> bool:
        """Return whether the bug can show on a kernel with this configuration.

        :param is_set: tells whether a symbol is set in the kernel's configuration.
        """
        return all(map(is_set, self.config))

    def covers(self, scenario: str, level: str | None) -> bool:
        """Return whether the bug affects this scenario at this level."""
        meant = not self.levels or level is None or level in self.levels
        return meant and self.scenario.fullmatch(scenario) is not None

    def explains(self, failure: Shown) -> bool:
        """Return whether the failure is one of the bug's symptoms."""
        return any(symptom.shows_in(failure) for symptom in self.symptoms)


@dataclass(frozen=True, slots=True)
class KnownBugFinding:
    """What the list says about one result."""

    known: tuple[BugSeen, ...] = ()  # bugs that explain every failure; empty if one is unexplained, or there are none
    fixed: tuple[BugFixed, ...] = ()  # bugs of an older kernel of the series in this scenario, which passed
    returned: tuple[BugReturned, ...] = ()  # bugs that would explain a failure, but the kernel was measured without


def judge(
    ledger: Sequence[KnownBug],
    scenario: str,
    level: str | None,
    failures: Sequence[Failure],
    facts: Facts = NO_FACTS,
    release: str = "",
) -> KnownBugFinding:
    """Compare the failures of a scenario that reached its verdict with the list of known bugs.

    :param facts: which kernels were seen to have which bugs.
    :param release: the release or the version of this kernel; "" if it is not known.
    """
    covering = [bug for bug in ledger if bug.covers(scenario, level)]
    if not failures:
        version = facts.version_of(release)
        older = [(bug.id, facts.of(bug.id).had_it(version)) for bug in covering if release and not bug.sometimes]
        return KnownBugFinding(fixed=tuple(BugFixed(bug, version) for bug, version in older if version is not None))
    returned = {bug.id: one for bug in covering if (one := _returned(bug, facts, release)) is not None}
    explained = [[bug for bug in covering if bug.explains(failure)] for failure in failures]
    believed = [[bug for bug in bugs if bug.id not in returned] for bugs in explained]
    if all(believed):
        return KnownBugFinding(
            tuple(BugSeen(bug.id, bug.title) for bug in covering if any(bug in bugs for bugs in believed))
        )
    doubted = {bug.id for bugs, left in zip(explained, believed, strict=True) if not left for bug in bugs}
    return KnownBugFinding(returned=tuple(one for bug, one in returned.items() if bug in doubted))


def possible(ledger: Sequence[KnownBug], facts: Facts, release: str) -> tuple[KnownBug, ...]:
    """Return the bugs that a kernel may have: not those that it or an older one of its series was measured without."""
    return tuple(bug for bug in ledger if _returned(bug, facts, release) is None)


def _returned(bug: KnownBug, facts: Facts, release: str) -> BugReturned | None:
    """The measurement by which this kernel should not have the bug. That a race was not seen means nothing."""
    if not release or bug.sometimes:
        return None
    lacked = facts.of(bug.id).lacked_it(facts.version_of(release))
    return BugReturned(bug.id, *lacked) if lacked is not None else None


def parse_ledger(text: str) -> list[KnownBug]:
    """Read a list of known bugs.

    :raises UsageError: the text is not such a list; names the entry and what is wrong with it.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the list of known bugs is no TOML: {error}") from None
    bugs = [_bug(entry, number) for number, entry in enumerate(data.get("bug", []), start=1)]
    ids = [bug.id for bug in bugs]
    if doubled := sorted({one for one in ids if ids.count(one) > 1}):
        raise UsageError(f"the list of known bugs has two entries {doubled[0]}")
    return bugs


def _bug(entry: dict[str, Any], number: int) -> KnownBug:
    where = f"the list of known bugs, entry {entry.get('id', number)}"
    for key, kind in _BUG_KEYS.items():
        if not entry.get(key) or not isinstance(entry[key], kind):
            raise UsageError(f"{where}: {key!r} is missing, empty or not a {kind.__name__}")
    if "kernels" in entry:
        raise UsageError(f"{where}: 'kernels' is not typed but measured: delete it, and see known_bugs_seen.toml")
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
        symptoms = tuple(map(symptom, entry["symptom"]))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    try:
        scenario = re.compile(entry["scenario"])
    except re.error as error:
        raise UsageError(f"{where}: 'scenario' is no regular expression: {error}") from None
    given = {key: entry[key] for key in ("id", "title", "function", "reproduce")}
    return KnownBug(
        **given,
        scenario=scenario,
        levels=frozenset(levels),
        symptoms=symptoms,
        config=tuple(config),
        sometimes=entry.get("sometimes", False),
    )
