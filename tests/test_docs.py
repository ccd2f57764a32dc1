"""Checks that the site of docs/ builds without a warning, and that README, pages and CI files name only what exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from harness.cli import cli

ROOT = Path(__file__).resolve().parents[1]
HOW_TO = sorted((ROOT / "docs" / "how-to").glob("*.md"))
PAGES = (ROOT / "README.md", ROOT / "docs" / "tutorial.md", *HOW_TO)
CI = sorted((ROOT / "examples" / "ci").glob("*.yml"))
README_LINES_MAX = 160


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """The dummy builder reads every page and resolves every reference, but writes nothing. It takes three seconds."""
    words = ["-b", "dummy", "-W", "--keep-going", "-q", "-d", str(tmp_path / "doctrees"), str(ROOT / "docs")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words, str(tmp_path / "out")], capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stderr) == (0, "")


def commands(text: str) -> Iterator[list[str]]:
    """Return the hugepfn commands in a page's blocks, also those inside $(...), without the program's name."""
    for kind, block in re.findall(r"^```(\S*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for line in block.splitlines() if kind in ("", "sh") else ():
            inner = re.findall(r"\$\((?:\S*/)?(hugepfn [^)]*)\)", line)
            line = re.sub(r"\$\([^)]*\)", "X", line.removeprefix("$ "))
            for one in (*inner, *re.split(r" && | run (?=hugepfn)", line)):
                if re.match(r"(?:\S*/)?hugepfn ", one):
                    yield shlex.split(one, comments=True)[1:]


def refused(words: list[str]) -> str:
    """Return why the command line would refuse these words, or "" if it accepts them. Values are not checked."""
    if words[0] not in cli.commands:
        return f"no command {words[0]}"
    command: click.Command = cli.commands[words[0]]
    rest = words[1:]
    if isinstance(command, click.Group) and rest and rest[0] in command.commands:
        command, rest = command.commands[rest[0]], rest[1:]
    settings: dict[str, Any] = {**command.context_settings, "help_option_names": ["-h", "--help"]}
    try:
        command.make_parser(click.Context(command, **settings)).parse_args(rest)
    except click.UsageError as error:
        return f"hugepfn {' '.join(words)}: {error.format_message()}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    found = list(commands(page.read_text()))
    assert [why for words in found if (why := refused(words))] == []
    assert found or page.name in ("ci.md", "your-test.md"), "the page has no hugepfn command"


@pytest.mark.parametrize("page", CI, ids=lambda page: page.name)
def test_the_commands_of_a_ci_file_exist(page: Path) -> None:
    def texts(value: object) -> Iterator[str]:
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from (one,) if isinstance(one, str) else texts(one)

    lines = [line for line in texts(yaml.safe_load(page.read_text())) if "/bin/hugepfn" in line]
    assert lines
    assert [why for line in lines if (why := refused(shlex.split(line)[1:]))] == []


def test_wrong_commands_are_refused() -> None:
    text = "```\n$ hugepfn rum fork\n$ cd x && .venv/bin/hugepfn run --nosuch $(hugepfn build --none x)\n```\n"
    whys = [refused(words) for words in commands(text)]
    assert [bool(why) for why in whys] == [True, True, True]
    assert refused(["cache", "clean", "--older-than", "14d"]) == ""


def test_the_links_of_readme_exist() -> None:
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert len(text.splitlines()) <= README_LINES_MAX


@pytest.mark.parametrize("page", ["security.md", "before-and-after.md"])
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    sources = [*(ROOT / "tests").glob("test_*.py"), *(ROOT / "tests" / "vm").glob("test_*.py")]
    known = {name for source in sources for name in re.findall(r"def (test_\w+)", source.read_text())}
    named = re.findall(r"`(test_\w+)(?:\[[^`]*\])?`", (ROOT / "docs" / page).read_text())
    assert named
    assert [name for name in named if name not in known] == []


@pytest.mark.parametrize("page", [ROOT / "docs" / "tutorial.md", *HOW_TO], ids=lambda page: page.name)
def test_a_page_to_follow_says_how_long_it_takes(page: Path) -> None:
    assert re.search(r"^This page takes about .* on .*\.$", page.read_text().splitlines()[-1])


def test_ci_runs_the_command_of_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test\n" in script
    assert re.search(r"^make test ", (ROOT / "README.md").read_text(), re.MULTILINE)
