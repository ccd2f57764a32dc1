"""Checks that docs/truth.md names only scenarios that exist, and every known bug."""

from __future__ import annotations

import fnmatch
import functools
import re
from pathlib import Path

import pytest

from harness.campaign.scenarios import ScenarioLine, scenario_lines
from harness.selection.tests import ledger_of

ROOT = Path(__file__).resolve().parents[1]
TRUTH = (ROOT / "docs" / "truth.md").read_text()
#: The last cell of every row of the tables that have a column "scenario".
NAMED = [
    word
    for table in re.findall(r"^\|[^\n]*\| scenario \|\n\|[-|]+\|\n((?:\|.*\n)+)", TRUTH, re.MULTILINE)
    for row in table.splitlines()
    for word in row.rsplit("|", 2)[1].strip().split(", ")
]


def test_the_page_has_tables_with_scenarios() -> None:
    assert len(NAMED) > 50


@functools.cache
def lines() -> tuple[ScenarioLine, ...]:
    return tuple(scenario_lines())


@pytest.mark.parametrize("word", sorted(set(NAMED)))
def test_every_named_scenario_exists(word: str) -> None:
    names = [line.name for line in lines()]
    assert fnmatch.filter(names, word), f"docs/truth.md names {word}, but there is no such scenario"


def test_every_known_bug_is_named() -> None:
    assert set(re.findall(r"HP-\d+", TRUTH)) == {bug.id for bug in ledger_of(ROOT / "guest_tests")}


def test_every_known_bug_has_scenarios_and_a_command_with_one() -> None:
    levels_of = {line.name: line.levels.split() for line in lines()}
    for bug in ledger_of(ROOT / "guest_tests"):
        met = [name for name, levels in levels_of.items() for level in (levels or (None,)) if bug.covers(name, level)]
        assert met, bug.id
        words = bug.reproduce.split()
        assert words[:2] == ["hugepfn", "run"], bug.id
        level = words[words.index("--level") + 1] if "--level" in words else None
        assert bug.covers(words[2], level or next(iter(levels_of[words[2]]), None)), bug.id
