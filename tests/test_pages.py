"""Tests for tests/pages.py: it reads the forms that pages use, and finds lines that a command does not print."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.pages import Command, File, Reader, missing, steps

ROOT = Path(__file__).parents[1]
PAGE = """
<!-- follow: file note -->
```c
one
two
```

<!-- follow: status 1 -->
```
$ cat note
one
...
$ false
```

<!-- follow: not: it needs a network -->
```
$ curl
```

<!-- follow: file note from two -->
```
three
```
"""


def test_steps() -> None:
    assert list(steps(PAGE)) == [
        File("note", "one\ntwo\n"),
        Command("$ ", "cat note", ("one", "..."), frozenset({0, 1})),
        Command("$ ", "false", (), frozenset({0, 1})),
        File("note", "three\n", "two"),
    ]


def test_numbers_may_differ_and_are_replaced_later() -> None:
    numbers: dict[str, str] = {}
    assert missing(("process 136 ... at 0x7f00", "..."), "x\n  process 22  (a) at 0x1\n", numbers) == ""
    assert numbers == {"136": "22", "0x7f00": "0x1"}


@pytest.mark.parametrize("shown", [("two", "one"), ("three",), ("one 5",)])
def test_a_missing_line(shown: tuple[str, ...]) -> None:
    assert missing(shown, "one\ntwo\n", {}) == shown[-1]


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path, os.environ)


def test_a_page_is_followed(reader: Reader) -> None:
    try:
        reader.follow(
            PAGE + "\n```\n$ cat note\none\nthree\n$ export A=5; cd /\n```\n\n```\n$ pwd; echo $A\n/\n5\n```\n"
        )
    finally:
        reader.close()
    assert [words for words, _ in reader.spent][-1] == "pwd; echo $A"


@pytest.mark.parametrize(
    ("block", "why"),
    [("$ false\n", "exit status 1"), ("$ echo 1\nno\n", "does not have it:\nno")],
    ids=["status", "line"],
)
def test_a_page_that_is_wrong(reader: Reader, block: str, why: str) -> None:
    try:
        with pytest.raises(AssertionError, match=why):
            reader.follow(f"```\n{block}```\n")
    finally:
        reader.close()


def test_every_how_to_page_is_followed() -> None:
    text = (ROOT / "tests" / "vm" / "test_pages.py").read_text()
    pages = {page.stem for page in (ROOT / "docs" / "how-to").glob("*.md")}
    assert not {page for page in pages if f'how-to/{page}.md"' not in text and f'"{page}"' not in text}
