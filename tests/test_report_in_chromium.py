"""Tests for the pages of ``--html`` in a browser. Chromium runs headless; the results are simulated."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import NoSuchElementException
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from harness.campaign.mail import COLUMNS
from harness.verdict.table import Column, Table
from tests.sample_pages import EVIL, SUBJECT, comparison, kernel, observation, run_of, series_of, whole_page

GOOD, BAD = "debian:6.12", "debsrc:6.12+my patches/a 'quoted' and rather long name of a patch, for a long line.patch"
#: Each page with the cell that the tests open.
OPENED = {
    "matrix": f"case=fork:pud&kernel={GOOD}",
    "compare": "case=fork:pud",
    "series": "case=fork:pud&kernel=1/1",
}
OTHER_TABLES = (
    observation("P W U A D PSE SPECIAL NX", 0x80000001000002E7, process="parent"),
    observation("P W U A D PSE HOST_WRITABLE MMU_WRITABLE MMU_PRESENT", 0x0000000100000EE7, process="vm", format="NPT"),
    observation("W A PSE", 0x0000000100000182, process="iommu", format="VT-d second level"),
)
WIDTHS = pytest.mark.parametrize("width", [1400, 480])
KINDS = pytest.mark.parametrize("kind", list(OPENED))
WAIT_S = 60


class Browser:
    """Chromium, with the pages that it can open."""

    def __init__(self, driver: Chrome, folder: Path) -> None:
        self.driver = driver
        self._folder = folder

    def open(self, kind: str, address: str = "", *, width: int = 1400, dark: bool = False) -> None:
        """Load a page, also if it is open already.

        :param address: the part after the ``#``.
        """
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        self.driver.get("about:blank")  # another fragment alone would not load the page again
        self.driver.get((self._folder / f"{kind}.html").as_uri() + (f"#{address}" if address else ""))

    def run(self, script: str, *values: Any) -> Any:
        """Run a script and return its value."""
        return self.driver.execute_script(script, *values)

    def all(self, selector: str) -> list[WebElement]:
        """Return every visible element."""
        return [one for one in self.driver.find_elements(By.CSS_SELECTOR, selector) if one.is_displayed()]

    def one(self, selector: str) -> WebElement:
        """Return the only visible element."""
        found = self.all(selector)
        if not found:
            raise NoSuchElementException(selector)  # wait() tries again after this error
        (only,) = found
        return only

    def cell(self, label: str) -> WebElement:
        """Return the cell whose label starts with this text: "fork pud on 6.12"."""
        return self.one(f'.matrix a[aria-label^="{label}"]')

    def press(self, *keys: str) -> None:
        """Press keys, one after another."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def focused(self) -> str:
        """Return the label or the text of the focused element."""
        element = self.driver.switch_to.active_element
        return element.get_attribute("aria-label") or element.text

    @property
    def address(self) -> str:
        """The part of the address after the ``#``."""
        return self.driver.current_url.partition("#")[2]

    def wait(self, until: Callable[[], object]) -> None:
        """Wait until the condition holds."""
        WebDriverWait(self.driver, WAIT_S).until(lambda _: until())

    def copied(self, button: str) -> str:
        """Return the text that a button copies."""
        self.one(button).click()
        self.wait(lambda: self.one(".mail p").text)
        return self.one(".mail textarea").get_property("value") or ""  # type: ignore[return-value]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    good, bad = kernel(GOOD), kernel(BAD, broken=True)
    (folder / "matrix.html").write_text(whole_page(Table.of([kernel("debian:6.1"), good, bad]), {"7.0": EVIL}))
    (folder / "compare.html").write_text(comparison(good, bad))
    (folder / "series.html").write_text(series_of(good, bad))
    (folder / "evil.html").write_text(series_of(good, bad, subject=EVIL))
    (folder / "tables.html").write_text(whole_page(Table.of([Column(GOOD, (run_of(*OTHER_TABLES),))])))
    (folder / "same.html").write_text(comparison(good, Column(BAD, good.runs)))
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chrome]:
    """One browser for all tests of this file. It cannot resolve host names."""
    driver, browser = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("chromium-browser")
    assert driver, "chromedriver is not installed; run scripts/setup tests"
    assert browser, "chromium is not installed; run scripts/setup tests"
    options = Options()
    options.binary_location = browser
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{word}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = Chrome(options, Service(driver))
    try:
        yield running
    finally:
        running.quit()


@pytest.fixture
def browser(chromium: Chrome, pages: Path) -> Iterator[Browser]:
    """The browser of one test. Fails if there is an error in the browser's console."""
    yield Browser(chromium, pages)
    assert [one["message"] for one in chromium.get_log("browser")] == []  # type: ignore[no-untyped-call]


# --- appearance ----------------------------------------------------------------------------------


@WIDTHS
@KINDS
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_beyond_the_edge_of_the_screen(browser: Browser, kind: str, width: int, dark: bool) -> None:
    browser.open(kind, OPENED[kind], width=width, dark=dark)
    assert "fork pud" in browser.one("dialog h2").text
    for button in browser.all("dialog header button"):
        box = button.rect
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width, button.text
        assert 0 <= box["y"] <= box["y"] + box["height"] <= 200, button.text
    assert browser.run("return document.querySelector('dialog .body').scrollWidth") <= width
    browser.one("dialog .close").click()
    browser.wait(lambda: not browser.all("dialog"))
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)"
    )


CONTRAST = """
const light = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255)
  .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
  .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
const paper = (node) => {
  const own = getComputedStyle(node).backgroundColor;
  return /, 0\\)$/.test(own) ? paper(node.parentElement) : own;
};
const hasText = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
return [...document.querySelectorAll("main *, dialog *")]
  .filter((node) => node.checkVisibility() && !node.disabled && hasText(node)).map((node) => {
    const lights = [getComputedStyle(node).color, paper(node)].map(light);
    return [node.outerHTML.slice(0, 80), (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05)];
  }).filter(([, ratio]) => ratio < 4.5);
"""


@KINDS
@pytest.mark.parametrize("dark", [False, True])
def test_every_text_has_contrast(browser: Browser, kind: str, dark: bool) -> None:
    """The contrast is at least 4.5 to 1, as WCAG 2 requires (1.4.3)."""
    browser.open(kind, OPENED[kind], dark=dark)
    assert browser.run(CONTRAST) == []


CENTRES = """
const box = (node) => node.getBoundingClientRect();
const centre = (node) => box(node).x + box(node).width / 2;
const ruler = [...document.querySelectorAll(".stops .ruler")].find((one) => one.checkVisibility());
const labels = [...ruler.children].filter((one) => one.textContent && one.className !== "pfn");
const named = (strip, name) => [...strip.children].find((one) => one.title.split(":")[0].endsWith(` ${name}`));
return [...document.querySelectorAll(".stops .strip")].filter((one) => box(ruler).x === box(one).x)
  .map((strip) => labels.map((one) => [one.textContent, centre(one) - centre(named(strip, one.textContent))]));
"""


@WIDTHS
@KINDS
def test_the_names_of_the_bits_stand_above_their_boxes(browser: Browser, kind: str, width: int) -> None:
    browser.open(kind, OPENED[kind], width=width)
    strips = browser.run(CENTRES)
    assert len(strips) >= 2
    for strip in strips:
        assert {"P", "D", "SAVED_DIRTY", "NX"} <= {name for name, _ in strip}
        assert max(abs(away) for _, away in strip) < 1


def test_the_names_are_those_of_the_entrys_tables(browser: Browser) -> None:
    browser.open("tables", OPENED["matrix"])
    titles = browser.run(
        """
        const titles = (strip) => [...strip.children].map((one) => one.title.split(":")[0].split(" ")[2] || "");
        return [...document.querySelectorAll(".stops .strip")].map((strip) => titles(strip).reverse());
        """
    )
    assert [(one[0], one[2], one[8], one[11]) for one in titles] == [
        ("P", "U", "G", "SOFT_DIRTY"),
        ("P", "U", "", "MMU_PRESENT"),
        ("R", "", "A", "SNP"),
    ]
    lowest = "return [...document.querySelectorAll('.stops .who .ruler')].map((one) => one.lastChild.textContent);"
    assert browser.run(lowest) == ["P", "P", "R"]


def test_a_changed_bit_has_a_sign_and_a_shape(browser: Browser) -> None:
    """A change is not shown by colour alone."""
    browser.open("compare", OPENED["compare"])
    assert {"+W", "+D", "+SAVED_DIRTY"} <= {one.text for one in browser.all("dialog ins")}
    assert {"-W", "-D", "-SAVED_DIRTY"} <= {one.text for one in browser.all("dialog del")}
    heights = "return [...document.querySelectorAll(arguments[0])].map((one) => one.offsetHeight)"
    changed, same = (browser.run(heights, f"dialog .seen .strip i{which}") for which in (".changed", ":not(.changed)"))
    assert min(changed) > max(same)


def test_a_cell_is_a_link(browser: Browser) -> None:
    browser.open("matrix")
    cell = browser.cell("fork pud on 6.12")
    assert (cell.tag_name, cell.value_of_css_property("cursor")) == ("a", "pointer")
    assert "underline" in cell.value_of_css_property("text-decoration")
    assert str(cell.get_attribute("href")).endswith(f"#case=fork:pud&kernel={GOOD}")


@pytest.mark.parametrize("width", [1400, 480])
def test_a_comparison_shows_the_entries_first(browser: Browser, width: int) -> None:
    browser.open("compare", width=width)
    told = browser.one(".told").text.splitlines()
    assert told[:2] == ["Entries, in B against A:", "at forked: child bar+0x0 +SAVED_DIRTY -W -A -D"]
    assert told.index("Claims: A passed, B failed") > 1
    browser.cell("fork pud on 6.12").click()
    assert browser.one("dialog h3:first-of-type").text == "Entries"


def test_a_comparison_without_a_difference(browser: Browser) -> None:
    browser.open("same")
    assert browser.one(".about").text.startswith("0 of 63 cases differ.")
    assert browser.all("table") == []


@WIDTHS
def test_a_series_names_the_patch_and_a_command_that_exists(browser: Browser, width: int) -> None:
    browser.open("series", width=width)
    assert SUBJECT in browser.one("thead th:last-child").text
    browser.one(".changes a").click()
    assert browser.one("dialog h2").text == "fork pud on 1/1: FAIL"
    assert SUBJECT in browser.one("dialog header").text
    assert browser.one(".again").text == "hugepfn series debsrc:6.12 --mbox 'my series.mbox' fork:pud"
    browser.one("dialog .buttons button:nth-of-type(2)").click()
    assert browser.one(".again").text == "hugepfn run fork:pud --kernel=debsrc:6.12"


@KINDS
def test_a_kernel_function_is_a_link_to_its_source(browser: Browser, kind: str) -> None:
    browser.open(kind, OPENED[kind])
    if kind == "matrix":
        browser.one("dialog summary").click()
    link = browser.all("dialog .claims a")[-1]
    assert link.text == "mm/huge_memory.c copy_huge_pud()"
    assert link.get_attribute("href") == "https://elixir.bootlin.com/linux/v6.12.118/A/ident/copy_huge_pud"
    assert link.get_attribute("rel") == "noopener noreferrer"


# --- scripts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["matrix", "compare", "evil"])
def test_what_a_guest_or_a_patch_says_is_only_text(browser: Browser, kind: str) -> None:
    browser.open(kind, OPENED.get(kind, OPENED["series"]))
    assert EVIL in browser.run("return document.querySelector('dialog').textContent")
    assert browser.driver.title != "1"
    assert browser.all("img") == []


def test_no_other_script_runs_and_nothing_is_loaded(browser: Browser) -> None:
    browser.open("matrix")
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"document.title=1\">');"
        "document.body.append(Object.assign(document.createElement('script'), { text: 'document.title=1' }));"
    )
    refused = browser.driver.get_log("browser")  # type: ignore[no-untyped-call]
    assert len(refused) >= 2
    assert all("Content Security Policy" in one["message"] for one in refused)
    assert browser.driver.title == "hugepfn: scenarios on kernels"


# --- keys and addresses --------------------------------------------------------------------------


@pytest.mark.parametrize("key", [Keys.ENTER, Keys.SPACE])
def test_the_keys(browser: Browser, key: str) -> None:
    browser.open("matrix")
    browser.press(Keys.TAB, Keys.TAB, Keys.TAB, Keys.TAB)
    assert browser.focused() == "fork pud on 6.1: pass"
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert browser.focused() == "zap on 6.12: pass"
    browser.press(Keys.ARROW_UP, key)
    assert browser.one("dialog h2").text == "fork pud on 6.12: pass"
    assert browser.focused() == "close"
    browser.press(Keys.ESCAPE)
    browser.wait(lambda: browser.focused() == "fork pud on 6.12: pass")
    assert browser.address == ""


def test_an_address_opens_a_cell_and_a_cell_has_an_address(browser: Browser) -> None:
    browser.open("matrix", OPENED["matrix"])
    assert browser.one("dialog h2").text == "fork pud on 6.12: pass"
    browser.one("dialog .buttons button:nth-of-type(3)").click()
    assert browser.address == f"case=fork:pud&kernel={BAD}".replace("+", "%2B").replace(" ", "%20")
    assert "FAIL" in browser.one("dialog h2").text
    browser.driver.refresh()
    assert "FAIL" in browser.one("dialog h2").text
    browser.one("dialog .close").click()
    browser.wait(lambda: browser.address == "")
    browser.cell("zap on 6.1:").click()
    assert browser.address == "case=zap&kernel=debian:6.1"
    browser.driver.back()
    browser.wait(lambda: not browser.all("dialog"))
    browser.driver.forward()
    browser.wait(lambda: browser.all("dialog"))
    assert browser.one("dialog h2").text == "zap on 6.1: pass"


@pytest.mark.parametrize(
    "address", ["case=none&kernel=debian:6.12", "case=fork:pud&kernel=debian:5.4", "case=fork:pud"]
)
def test_an_address_without_a_cell_on_this_page_is_reported(browser: Browser, address: str) -> None:
    browser.open("matrix", address)
    assert browser.all("dialog") == []
    assert browser.one(".filters output").text.startswith("This page has no ")


def test_the_filters_are_in_the_address(browser: Browser) -> None:
    browser.open("matrix")
    assert len(browser.all("tbody tr")) == 63
    browser.one("[name=scenario]").send_keys("fork")
    assert browser.address == "scenario=fork"
    assert browser.one(".filters output").text == "1 of 63 rows"
    browser.cell("fork pud on 6.12").click()
    assert browser.address == f"scenario=fork&{OPENED['matrix']}"
    browser.driver.refresh()
    browser.press(Keys.ESCAPE)
    browser.wait(lambda: browser.address == "scenario=fork")
    assert len(browser.all("tbody tr")) == 1
    browser.open("matrix", "rows=differing")
    assert [one.text for one in browser.all("tbody th")] == ["fork pud"]
    browser.open("matrix", "rows=nonsense&scenario=ZAP")
    assert [one.text for one in browser.all("tbody th")] == ["zap"]
    assert browser.one("[name=rows]").get_property("value") == "all"


# --- text for a mail -----------------------------------------------------------------------------


@KINDS
def test_a_page_is_copied_as_text(browser: Browser, kind: str) -> None:
    browser.open(kind)
    lines = browser.copied("main .copy").split("\n")
    assert max(map(len, lines)) <= COLUMNS
    assert any(line.startswith("fork pud") for line in lines)
    assert browser.one(".mail p").text == f"Copied: {len(lines)} lines."
    browser.one("[name=scenario]").click()
    ActionChains(browser.driver).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()
    pasted = str(browser.one("[name=scenario]").get_property("value"))
    assert pasted.strip().startswith(lines[0].strip())


@WIDTHS
@KINDS
def test_a_cell_is_copied_as_text(browser: Browser, kind: str, width: int) -> None:
    browser.open(kind, OPENED[kind].replace(GOOD, BAD.replace("+", "%2B")), width=width)
    text = browser.copied("dialog .copy")
    assert max(map(len, text.split("\n"))) <= COLUMNS
    assert "the child's pud keeps its dirty bit" in text
    assert "mm/huge_memory.c copy_huge_pud()" in text
    assert "child bar+0x0 pud 0x8400000100000285" in text
    assert "BUG: Bad page map" in text
    assert "SAVED_DIRTY" in text
    assert "all is well" not in text


def test_the_command_in_a_mail_is_valid_shell(browser: Browser, tmp_path: Path) -> None:
    """The command is longer than a line, and has a space and a quote."""
    browser.open("compare", OPENED["compare"])
    text = browser.copied("dialog .copy")
    command = text.partition("To run it again:\n")[2].partition("\n\n")[0]
    (tmp_path / "hugepfn").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    (tmp_path / "hugepfn").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=True)
    same = ["run", "fork:pud"]
    assert said.stdout.split("\0")[:-1] == [*same, f"--kernel={GOOD}", *same, f"--kernel={BAD}"]
    shown = browser.one(".again").text
    assert shlex.split(shown.replace("\n", " "))[1:] == [*same, f"--kernel={GOOD}", "hugepfn", *same, f"--kernel={BAD}"]
