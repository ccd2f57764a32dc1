"""The parts of pages that are made from the code: each function returns Markdown.

A page has ``<!-- generated: NAME -->`` where the piece with that name belongs. The header of guest programs, fixtures,
markers and options are documented where they are defined, and nowhere else.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from harness.plugin import fixtures as plugin_fixtures
from harness.plugin.options import MARKERS, pytest_addoption

LIBRARY = Path(__file__).resolve().parents[1] / "guest_tests" / "lib"
HEADER = LIBRARY / "hugepfn.h"
_HEADING = re.compile(r"/\* -+ (.*?) -+ \*/")
_COMMENT = re.compile(r"/\*\s?(.*?)\s*\*/\n?", re.DOTALL)


def guest_header(path: Path = HEADER) -> str:
    """Every declaration of a header under its own headings, with the comment before it as its text."""
    text = path.read_text()
    body = text[text.rindex("#include ") :].partition("\n")[2].rpartition("#endif")[0]
    return "\n\n".join(part for block in _blocks(body) for part in _documented(block))


def _blocks(body: str) -> Iterator[str]:
    """The declarations, each with its comment; a struct may have blank lines."""
    lines: list[str] = []
    for line in body.splitlines():
        if line or "\n".join(lines).count("{") > "\n".join(lines).count("}"):
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def _documented(block: str) -> Iterator[str]:
    if heading := _HEADING.fullmatch(block):
        yield f"## {heading[1][0].upper()}{heading[1][1:]}"
        return
    if comment := _COMMENT.match(block):
        words = re.sub(r"^ \* ?", "", comment[1], flags=re.MULTILINE)
        block = block[comment.end() :]
    if block:
        yield f"```c\n{block}\n```"
    if comment:
        yield re.sub(r"([<>*_])", r"\\\1", words)


def kvm_header() -> str:
    """The same of kvm.h."""
    return f"## Virtual machines\n\n{guest_header(LIBRARY / 'kvm.h')}"


def dma_header() -> str:
    """The same of dma.h."""
    return f"## The IOMMU\n\n{guest_header(LIBRARY / 'dma.h')}"


def fixtures() -> str:
    """A table of pytest's fixtures."""
    rows = ["| fixture | what a test gets |", "|---|---|"]
    for name, one in vars(plugin_fixtures).items():
        if type(one).__name__ == "FixtureFunctionDefinition":
            words = re.sub(r":\w+:(`[^`]+`)", r"\1", " ".join((inspect.getdoc(one) or "").split()))
            rows.append(f"| `{name}` | {words} |")
    return "\n".join(rows)


def markers() -> str:
    """A table of pytest's markers."""
    rows = ["| marker | meaning |", "|---|---|"]
    for line in MARKERS:
        marker, _, words = line.partition(": ")
        rows.append(f"| `{marker}` | {words} |")
    return "\n".join(rows)


class _Options:
    """Stands for pytest's parser, and keeps the options that do not describe a machine."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def getgroup(self, *_: str) -> _Options:
        return self

    def addini(self, *_: object, **__: object) -> None:
        pass

    def addoption(self, name: str, *, help: str, metavar: str = "", **other: object) -> None:
        if other.get("dest") is None:
            self.rows.append(f"| `{name}{f'={metavar}' if metavar else ''}` | {help} |")


def pytest_options() -> str:
    """A table of the options that pytest has beside those of the machine."""
    options = _Options()
    pytest_addoption(options)  # type: ignore[arg-type]
    return "\n".join(["| option | meaning |", "|---|---|", *options.rows])


PIECES: Mapping[str, Callable[[], str]] = {
    "guest-header": guest_header,
    "kvm-header": kvm_header,
    "dma-header": dma_header,
    "fixtures": fixtures,
    "markers": markers,
    "pytest-options": pytest_options,
}
