"""Tests for the content of an ``--html`` page: its data is escaped, and it loads nothing from elsewhere."""

from __future__ import annotations

import importlib.metadata
import json
import re
from html.parser import HTMLParser
from typing import Any

from harness.campaign.mail import COLUMNS, narrow
from harness.campaign.report import ROWS_MAX, PageRequest
from harness.pagetable.formats import FORMATS
from harness.verdict import Claim, Outcome, Run, ScenarioResult
from harness.verdict.table import Column, Table
from tests.sample_pages import EVIL, comparison, observation, run_of, series_of, whole_page


class Page(HTMLParser):
    """A page's tags, and the data in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._inside = ""
        self._json = ""
        self.feed(text)
        self.data = json.loads(self._json)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [str(given[name]) for name in ("src", "href") if given.get(name)]
        self._inside = "json" if given.get("type") == "application/json" else ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self._json += data


ROW = ("count", "checkpoint", "process", "place", "level", "raw", "changed", "bits", "appeared", "vanished", "pfn")


def first_row(page: Page, column: int = 0, number: int = 0) -> dict[str, Any]:
    row = page.data["cells"][0][column]["runs"][0]["rows"][number]
    strings = page.data["strings"]
    return {name: value if name == "count" else strings[value] for name, value in zip(ROW, row, strict=False)}


def test_the_page_loads_nothing_from_anywhere() -> None:
    text = whole_page(Table.of([Column("debian:6.12", (run_of(observation("P W", 0x83)),))]), {"7.0": "gone"})
    page = Page(text)
    assert page.addresses == []
    assert not re.search(
        r"@import|url\(|https?://|\bfetch\(|XMLHttpRequest|@(TITLE|STYLE|SCRIPT|PLAIN|DATA|VERSION|DATE|COMMAND|HASH)@",
        text,
    )
    assert page.data["lists"] == [["Not available", ["7.0: gone"]]]


def test_nothing_in_the_data_ends_the_script_or_becomes_a_tag() -> None:
    run = run_of(observation("P", 1), claims=(Claim(EVIL, Outcome.FAILED, EVIL, EVIL),), log=(EVIL,))
    page = Page(whole_page(Table.of([Column(EVIL, (run,))]), {EVIL: EVIL}, PageRequest(command=EVIL)))
    assert "img" not in page.tags
    assert EVIL in page.data["strings"]
    assert page.data["columns"][0]["name"] == EVIL


def test_a_cell_has_claims_log_and_entries_with_what_changed() -> None:
    claim = Claim("keeps its dirty bit", Outcome.FAILED, "copy_huge_pud()", "D=0")
    run = run_of(observation("P W", 0x83), observation("P W D", 0xC3, "written"), claims=(claim,), log=("[ 1.0] BUG",))
    page = Page(whole_page(Table.of([Column("debian:6.12", (run,))])))
    ((cell,),) = page.data["cells"]
    strings = page.data["strings"]
    assert [[strings[n] for n in one] for one in cell["runs"][0]["claims"]] == [
        ["keeps its dirty bit", "failed", "copy_huge_pud()", "D=0"]
    ]
    assert [strings[n] for n in cell["runs"][0]["log"]] == ["[ 1.0] BUG"]
    assert first_row(page)["changed"] == "0" * 16
    assert first_row(page, number=1) == {
        "count": 1,
        "checkpoint": "written",
        "process": "child",
        "place": "bar+0x0",
        "level": "pud",
        "raw": "0x00000000000000c3",
        "changed": "0000000000000040",
        "bits": "P W D",
        "appeared": "D",
        "vanished": "",
        "pfn": "bar+0x0",
    }
    bits = page.data["columns"][0]["bits"]["pud"]
    assert (bits[0], bits[6], bits[7], bits[58], bits[63]) == ("P", "D", "PSE", "SAVED_DIRTY", "NX")


def test_entries_of_other_tables_say_so_and_have_their_own_names() -> None:
    nested = observation("P W A D PSE MMU_PRESENT", 0x1000008E7, process="vm", format="NPT")
    iommu = observation("R W PSE", 0x100000083, process="iommu", format="VT-d second level")
    page = Page(whole_page(Table.of([Column("debian:6.12", (run_of(observation("P W", 0x83), nested, iommu),))])))
    rows, strings = page.data["cells"][0][0]["runs"][0]["rows"], page.data["strings"]
    assert [strings[row[-1]] for row in rows] == ["CPU", "NPT", "VT-d second level"]
    names = {format: levels["pud"] for format, levels in page.data["bits"].items()}
    assert set(names) == {*FORMATS} - {"CPU"}
    assert (names["NPT"][0], names["NPT"][11], names["NPT"][58]) == ("P", "MMU_PRESENT", "")
    assert (names["VT-d second level"][0], names["VT-d second level"][2]) == ("R", "")


def test_equal_repeats_are_stored_once_and_flakes_completely() -> None:
    failed = Run((ScenarioResult("fork", "pud", Outcome.FAILED, "x"),))
    same = Column("a", (run_of(), run_of()))
    flaky = Column("b", (run_of(), failed))
    page = Page(whole_page(Table.of([same, flaky])))
    assert [len(cell["runs"]) for cell in page.data["cells"][0]] == [1, 2]


def test_a_comparison_shows_only_differences_with_marked_bits() -> None:
    same = ScenarioResult("zap", None, Outcome.PASSED)
    broken = Claim("keeps W", Outcome.FAILED, "copy_huge_pud()", "W=0")
    before, after = run_of(observation("P W", 0x83)), run_of(observation("P", 0x81), claims=(broken,))
    runs = (Run((*before.results, same)), Run((*after.results, same)))
    page = Page(comparison(Column("debian:6.1", runs[:1]), Column("debian:6.1", runs[1:])))
    assert [case["name"] for case in page.data["cases"]] == ["fork:pud"]
    assert page.data["about"] == "1 of 2 cases differ."
    assert page.data["cases"][0]["entries"] == [["forked", "child bar+0x0", [], ["W"], ""]]
    assert page.data["cases"][0]["differs"] == [["claim", "keeps W", "copy_huge_pud()", "not claimed", "failed"]]
    rows = [first_row(page, column) for column in (0, 1)]
    assert [(row["appeared"], row["vanished"], row["changed"]) for row in rows] == [
        ("W", "", "0000000000000002"),
        ("", "W", "0000000000000002"),
    ]


def test_a_hundred_cases_on_ten_kernels_stay_small() -> None:
    """Every case has a checkpoint with 512 entries of parent and child. No two log lines are equal."""
    stops = [
        observation("P W D", 0x43 | number << 12, f"stop{stop}", process=process, level="pte", offset=4096 * number)
        for stop in range(4)
        for process in ("parent", "child")
        for number in range(512)
    ]
    claims = tuple(Claim(f"claim {number}", Outcome.PASSED, "copy_pte_range()") for number in range(20))
    (shared,) = run_of(*stops, claims=claims).results

    def result(kernel: int, case: int) -> ScenarioResult:
        log = tuple(f"[ {kernel}.{case}{line:04}] hugepfn: checkpoint stop{line} pid 77" for line in range(30))
        return ScenarioResult(f"s{case}", "pte", Outcome.PASSED, "", shared.claims, shared.observations, log)

    few = [Column(f"debian:6.{k}", (Run(tuple(result(k, case) for case in range(4))),)) for k in range(5)]
    size = len(whole_page(Table.of(few))) - len(whole_page(Table.of([])))
    assert size / 20 * 1000 < 8e6, "the page is larger than 8 MB"


def test_rows_beyond_the_limit_are_counted() -> None:
    ragged = [observation("P W" if n % 2 else "P", n, level="pte", offset=4096 * n) for n in range(ROWS_MAX + 5)]
    page = Page(whole_page(Table.of([Column("a", (run_of(*ragged),))])))
    (shown,) = page.data["cells"][0][0]["runs"]
    assert (len(shown["rows"]), shown["beyond"]) == (ROWS_MAX, 5)


def test_a_page_says_how_it_was_made() -> None:
    text = whole_page(Table.of([]), request=PageRequest(command="hugepfn matrix -k '<x>'"))
    assert f"Made by hugepfn {importlib.metadata.version('hugepfn')} on 20" in text
    assert "<code>hugepfn matrix -k &#x27;&lt;x&gt;&#x27;</code>" in text


def test_a_series_has_the_subjects_and_the_changes() -> None:
    failed = Run((ScenarioResult("fork", "pud", Outcome.FAILED, "why"),))
    page = Page(series_of(Column("", (run_of(),)), Column("", (failed,)), subject=EVIL))
    assert [(one["name"], one["subject"]) for one in page.data["columns"]] == [("base", "debsrc:6.12"), ("1/1", EVIL)]
    assert page.data["changes"] == [[0, 1, f"fork pud: pass -> FAIL at 1/1 {EVIL}", "why"]]
    assert "img" not in page.tags


def test_the_text_for_a_mail_has_72_columns() -> None:
    lines = ["fork pud: a", f"  {'word ' * 40}", "x" * 200, "", "last"]
    made = narrow(lines).split("\n")
    assert max(map(len, made)) <= COLUMNS
    assert made[0] == "fork pud: a"
    assert made[2].startswith("    word"), "a continued line has a deeper indent"
    assert made[-2:] == ["", "last"]
    assert "".join("".join(made).split()) == "".join("".join(lines).split())


def test_the_command_for_a_users_case_has_its_file() -> None:
    file = "/home/me/test_mine.py"
    results = (
        ScenarioResult("mine[thp]", "pmd", Outcome.PASSED, file=file),
        ScenarioResult("zap", None, Outcome.PASSED),
    )
    page = whole_page(Table.of([Column("debian:6.12", (Run(results),))]))
    assert f'"word":"{file}::test_mine[thp]:pmd"' in page
    assert '"word":"zap"' in page
