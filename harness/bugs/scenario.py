"""Writes a scenario of the suite as one C file of plain system calls, for people who do not have hugepfn.

The file is the scenario's own program with what it uses of the guest library (flatten.py), started with the arguments
that the test gives it. What the test claims is in its first comment. Where a claim is about a value that the program
reports, the file checks it (claimed.py). What is claimed about page-table entries, user space cannot tell.
"""

from __future__ import annotations

import functools
import io
import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.bugs.claimed import Claimed, claimed_by
from harness.bugs.flatten import Library, flatten, library_of
from harness.campaign.pytest_session import run_pytest
from harness.campaign.reporter import SessionReporter
from harness.campaign.scenarios import ScenarioLine, scenario_lines
from harness.campaign.wanted import choose
from harness.config import DEFAULT
from harness.errors import UsageError
from harness.guest.compiler import find_source, guest_tests_dir
from harness.levels import PAGE_SIZES
from harness.selection.selected import Selected
from harness.selection.tests import selected_by

ALONE = Path(__file__).with_name("alone.c")
_WIDTH = 117


class _Collected(SessionReporter):
    """Keeps the tests that pytest finds."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.items: list[Any] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """All tests are known now."""
        self.items = list(session.items)


def collect(words: Sequence[Selected]) -> list[Any]:
    """Return the tests that words select, as pytest collects them.

    :raises UsageError: a word selects nothing.
    """
    collected = _Collected()
    run_pytest(pytest, collected, [*choose(words).pytest_args(), "--collect-only"], [])
    return collected.items


def reproducer_of(word: Selected) -> str:
    """Return the C file of a scenario.

    :raises UsageError: the word selects no scenario of hugepfn, or one with several levels without naming one.
    """
    if word.file is not None:
        raise UsageError(f"{word}: expected a scenario of hugepfn with its level, as in fork:pud")
    items = collect([word])
    if len(items) != 1:
        levels = ", ".join(str(selected_by(one).level) for one in items)
        raise UsageError(f"{word} has several levels; expected {word}:LEVEL with one of: {levels}")
    return written(items[0])


def written(item: Any) -> str:
    """Return the C file of one test."""
    test = selected_by(item)
    line = next(one for one in scenario_lines() if one.name == test.scenario)
    said = claimed_by(item.function, item.callspec.params if hasattr(item, "callspec") else {})
    marker = item.get_closest_marker("machine")
    wishes = DEFAULT.with_wishes(marker.kwargs).argv() if marker is not None else []
    text = flatten(find_source(said.program, (item.path.parent,)).read_text(), _library(), _main(said))
    values = [f"{{ {json.dumps(name)}, {json.dumps(value)}, 0, 0 }},\n\t" for name, value in said.values.items()]
    comment = _comment(Selected(None, test.scenario, test.level), line, said, wishes)
    return f"{comment}#define _GNU_SOURCE\n{text.replace('EXPECTATIONS', ''.join(values))}"


@functools.cache
def _library() -> Library:
    folder = guest_tests_dir() / "lib"
    return library_of({file.name: file.read_text() for file in sorted(folder.glob("*.[ch]"))}, ALONE.read_text())


def _main(said: Claimed) -> str:
    words = ", ".join(json.dumps(word) for word in (said.program, *said.arguments))
    return f"""\
/* The PCI address of the device is the argument. A program that executes itself again gives its own arguments. */
int main(int argc, char **argv)
{{
	static char *arguments[] = {{ {words}, NULL }};

	setbuf(stdout, NULL);
	if (getenv("HUGEPFN_PROCESS_NAME"))
		return scenario(argc, argv);
	find_device(argc > 1 ? argv[1] : getenv("VFIO_BDF"));
	return scenario({len(said.arguments) + 1}, arguments);
}}"""


def _comment(test: Selected, line: ScenarioLine, said: Claimed, wishes: Sequence[str]) -> str:
    name = str(test).replace(":", "-")
    size = f" (leaves of {PAGE_SIZES[test.level]})" if test.level else ""
    command = " ".join(["hugepfn exec --kernel debian:6.12", *wishes, f"./{name} {{bdf}}"])
    lines = [
        *_wrapped(f"{test}{size}: {line.claim}"),
        "",
        "Expected, by the claims of the scenario:",
        *(part for one in dict.fromkeys(said.claims) for part in _wrapped(f"- {one}", "  ")),
        *_wrapped(f"Broken: {_who_tells(test, said)}"),
        *_wrapped(f"Function: {', '.join(line.decided_by)}", "  "),
        "",
        *_wrapped(
            f"Build: gcc -static -pthread -o {name} {name}.c. Run it as root. It takes the PCI address of a device "
            "that is bound to vfio-pci, if it needs one."
        ),
        *_wrapped(f"With hugepfn: {command}"),
        "Exit status: 0 the kernel is fine as far as user space can tell, 1 it is broken, 2 user space cannot tell.",
    ]
    body = "\n".join(f" * {one}".rstrip() for one in lines).replace("*/ ", "* / ")
    return f"// SPDX-License-Identifier: GPL-2.0-only\n/*\n{body}\n */\n"


def _who_tells(test: Selected, said: Claimed) -> str:
    shown = f"`hugepfn run {test}` shows the page-table entries."
    if not said.values:
        return f"a check of the program does not hold. All else that is claimed is about page-table entries: {shown}"
    values = ", ".join(said.values)
    return f"a check of the program does not hold, or one of these values is another: {values}. {shown}"


def _wrapped(text: str, indent: str = "") -> Iterator[str]:
    yield from textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)
