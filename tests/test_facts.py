"""Checks that the documents say of kernels what was measured. A hand edit that contradicts it fails here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.campaign.facts import DOCUMENTS
from harness.campaign.facts_text import PIECES, Grid, Known, command_shows, fill
from harness.campaign.scenarios import scenario_lines
from harness.selection.tests import facts_of, ledger_of
from harness.verdict.known_bugs import KnownBug
from harness.verdict.seen import dump_facts, series_of

ROOT = Path(__file__).resolve().parents[1]
LIST = "guest_tests/known_bugs.toml"
FACTS, LEDGER = facts_of(ROOT / "guest_tests"), ledger_of(ROOT / "guest_tests")
TEXTS = {name: (ROOT / name).read_text() for name in (*DOCUMENTS, LIST, "docs/matrix.md")}
KNOWN = Known(FACTS, Grid.parse(TEXTS["docs/matrix.md"]), LEDGER)
TODO = "run `make facts`, or edit what it is made of"


def unmarked(name: str) -> str:
    """Return a document without its generated pieces."""
    text = TEXTS.get(name) or (ROOT / name).read_text()
    return re.sub(r"<!-- facts:begin.*?facts:end -->", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_marked_pieces_match_the_measurements(name: str) -> None:
    assert fill(TEXTS[name], KNOWN, name) == TEXTS[name], TODO


def test_every_piece_is_in_a_document() -> None:
    marked = [piece for name in DOCUMENTS for piece in re.findall(r"facts:begin (\w+) -->", TEXTS[name])]
    assert set(marked) == set(PIECES)


def test_the_file_of_sightings_is_in_canonical_form() -> None:
    assert dump_facts(FACTS) == (ROOT / "guest_tests" / "known_bugs_seen.toml").read_text()


def test_the_matrix_is_that_of_the_facts() -> None:
    measured = FACTS.measured
    assert measured is not None
    assert KNOWN.grid.columns == tuple(FACTS.kernels), TODO
    assert f"`make facts` on {measured.date}: QEMU {measured.qemu} ({measured.accel})" in TEXTS["docs/matrix.md"]
    assert len(KNOWN.grid.cells) == measured.cases
    names = {case.split()[0] for case in KNOWN.grid.cells}
    assert len(names) == measured.scenarios
    assert names <= {line.name for line in scenario_lines()}


@pytest.mark.parametrize("bug", LEDGER, ids=lambda bug: bug.id)
def test_the_matrix_and_the_sightings_agree(bug: KnownBug) -> None:
    for column, version in enumerate(KNOWN.grid.columns):
        shown = any(re.search(rf"bug.*\b{bug.id}\b", KNOWN.grid.word(case, column)) for case in KNOWN.grid.cells)
        assert not shown or version in FACTS.of(bug.id).present, TODO


@pytest.mark.parametrize("bug", LEDGER, ids=lambda bug: bug.id)
def test_a_bugs_command_names_a_kernel_that_has_it(bug: KnownBug) -> None:
    seen = FACTS.of(bug.id)
    assert seen.present, f"{bug.id} was seen on no kernel: make facts FACTS='--also FILE' with results of your own"
    assert command_shows(bug.reproduce, seen), f"{bug.id}: {bug.reproduce}: {TODO}"


def test_every_bug_that_was_seen_is_in_the_list() -> None:
    assert FACTS.bugs.keys() <= {bug.id for bug in LEDGER}
    for seen in FACTS.bugs.values():
        assert not seen.present.keys() & seen.absent.keys()


@pytest.mark.parametrize("name", ["docs/truth.md", LIST])
def test_every_kernel_that_is_named_was_measured(name: str) -> None:
    text = unmarked(name)
    assert set(re.findall(r"\b\d\.\d+\.\d+\b", text)) <= FACTS.versions, TODO
    series = {series_of(version) for version in FACTS.versions}
    since = {"6.6", "6.10"}  # named as the release in which mainline changed; not measured
    assert set(re.findall(r"(?<![\d.:])[67]\.\d+(?![\d.]*\d)", text)) <= series | since, TODO


#: Pages for new users. The other pages are records with a date, or have a test of their own above.
PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("how-to/*.md"))


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "docs/tutorial.md", "docs/index.md", *PAGES])
def test_measured_values_are_generated(name: str) -> None:
    typed = re.findall(r"\b\d\.\d+\.\d+\b|\b\d+ (?:scenarios|cases)\b", unmarked(name))
    assert [word for word in typed if word != "0.1.0"] == [], (
        "generate this version: put it between <!-- facts:begin NAME --> marks"
    )
    assert not re.search(
        r"(?i)\b(\d+|ten|eleven|twelve|thirteen|fourteen|fifteen) (known bugs|so far)\b", unmarked(name)
    )
