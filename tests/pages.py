"""Follows a page of docs/ as a reader would: writes its files, types its commands, and compares what it shows.

A comment before a block says what cannot be guessed from it:

    <!-- follow: file NAME -->            the block is this file
    <!-- follow: file NAME from TEXT -->  it replaces this file from the line with TEXT on
    <!-- follow: status N -->             a command of this block may end with this status as well
    <!-- follow: second terminal -->      its commands are typed while the first terminal stays in the guest
    <!-- follow: not: REASON -->          the block is not followed

In a block, ``$`` and ``guest#`` stand before what is typed, at a shell and in the guest. The other lines are shown.
They must come in this order, as lines or parts of lines, perhaps with others between them. ``...`` stands for any text.
Numbers may differ; a number that differed is replaced in later commands, so that a page can speak of process 136.
"""

from __future__ import annotations

import itertools
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pexpect

_BLOCK = re.compile(
    r"(?:<!-- follow: (?P<how>[^\n]*?) -->\n+)?(?:<!-- facts:begin[^\n]*-->\n)?"
    r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]*[0-9][0-9a-f]*\b")
_PROMPTS = {"$ ": r"follow (\d+)> ", "guest# ": r"guest# "}
_LONGEST_S = 3600


@dataclass(frozen=True)
class Command:
    """What is typed at a prompt, and the lines that the page shows after it."""

    prompt: str
    words: str
    shown: tuple[str, ...]
    statuses: frozenset[int] = frozenset({0})
    terminal: int = 0


@dataclass(frozen=True)
class File:
    """A file that the page tells its reader to write, or the new end of one."""

    name: str
    text: str
    begins: str = ""  # in the first line that it replaces; "" for the whole file


def steps(page: str) -> Iterator[Command | File]:
    """The commands and files of a page, in its order."""
    for block in _BLOCK.finditer(page):
        how, text = block["how"] or "", block["text"]
        word, _, rest = how.partition(" ")
        if word == "file":
            name, _, begins = rest.partition(" from ")
            yield File(name, text, begins)
        elif word != "not:" and block["kind"] in ("", "sh"):
            statuses = frozenset({0, int(rest)} if word == "status" else {0})
            yield from _commands(text.splitlines(), statuses, int(word == "second"))


def _commands(lines: list[str], statuses: frozenset[int], terminal: int) -> Iterator[Command]:
    typed = [(at, prompt) for at, line in enumerate(lines) for prompt in _PROMPTS if line.startswith(prompt)]
    for (at, prompt), (end, _) in itertools.pairwise([*typed, (len(lines), "")]):
        yield Command(prompt, lines[at].removeprefix(prompt), tuple(lines[at + 1 : end]), statuses, terminal)


def missing(shown: tuple[str, ...], output: str, numbers: dict[str, str]) -> str:
    """Return the first shown line that the output lacks, or "" if it has all in order. Learns numbers that differ."""
    lines = iter([line.strip() for line in output.splitlines()])
    for line in shown:
        wanted = line.strip()
        if wanted == "..." or not wanted:
            continue
        pattern = re.compile(_pattern(wanted))
        found = next((found for one in lines if (found := pattern.search(one))), None)
        if not found:
            return line
        theirs = _NUMBER.findall(wanted)
        numbers.update(
            (old, new) for old, new in zip(theirs, found.groups(), strict=True) if len(old) > 2 and old != new
        )
    return ""


def _pattern(line: str) -> str:
    parts = []
    for gap in line.split("..."):
        words = []
        for piece in re.split(r"\s+", gap):
            at = 0
            word = ""
            for number in _NUMBER.finditer(piece):
                word += re.escape(piece[at : number.start()]) + r"((?:0x)?[0-9a-f]+)"
                at = number.end()
            words.append(word + re.escape(piece[at:]))
        parts.append(r"\s+".join(words))
    return ".*".join(parts).replace(r"\(tcg\)", r"\((?:tcg|kvm)\)")


@dataclass
class Reader:
    """Someone who follows pages in one directory.

    :ivar spent: The command lines and the seconds that each took.
    """

    folder: Path
    environment: Mapping[str, str]
    spent: list[tuple[str, float]] = field(default_factory=list)
    _terminals: list[pexpect.spawn[str]] = field(default_factory=list)
    _exports: list[str] = field(default_factory=list)
    _numbers: dict[str, str] = field(default_factory=dict)
    _in_guest: bool = False

    def follow(self, page: str) -> None:
        """Follow the page to its end.

        :raises AssertionError: a command does not show what the page says; names the command.
        """
        for step in steps(page):
            if isinstance(step, File):
                self._write(step)
            else:
                self._type(step)

    def close(self) -> None:
        for terminal in self._terminals:
            terminal.close(force=True)

    def _write(self, file: File) -> None:
        path = Path(f"/proc/{self._shell(0).pid}/cwd").resolve() / file.name
        kept = []
        if file.begins:
            lines = path.read_text().splitlines(keepends=True)
            at = next(at for at, line in enumerate(lines) if file.begins in line)
            kept = lines[:at]
        path.write_text("".join(kept) + file.text)

    def _type(self, command: Command) -> None:
        terminal = self._shell(command.terminal) if command.prompt == "$ " else self._terminals[0]
        typed = re.sub(r"\b[0-9a-f]+\b", lambda one: self._numbers.get(one[0], one[0]), command.words)
        if typed.startswith("export "):
            self._exports.append(typed)
        begin = time.monotonic()
        terminal.sendline(typed)
        which = terminal.expect([_PROMPTS["$ "], _PROMPTS["guest# "]], timeout=_LONGEST_S)
        self.spent.append((typed, time.monotonic() - begin))
        output = str(terminal.before).replace("\r", "")
        if which == 1:
            self._in_guest = True
        else:
            status = int(terminal.match.group(1))
            assert status in command.statuses, f"$ {typed}\n{output}\nexit status {status}"
        line = missing(command.shown, output, self._numbers)
        assert not line, f"$ {typed}\n{output}\nthe page shows this line, but the output does not have it:\n{line}"

    def _shell(self, index: int) -> pexpect.spawn[str]:
        """Return a terminal with a shell of the host. A terminal that is in the guest leaves it first."""
        if index == 0 and self._in_guest:
            self._terminals[0].sendcontrol("]")
            self._terminals[0].expect(_PROMPTS["$ "], timeout=60)
            self._in_guest = False
        if len(self._terminals) == index:
            environment = {**self.environment, "PS1": "follow $?> ", "TERM": "dumb", "NO_COLOR": "1"}
            terminal = pexpect.spawn(
                "bash --norc --noprofile --noediting", cwd=str(self.folder), env=environment, encoding="utf-8",
                codec_errors="replace", dimensions=(50, 240), echo=False,
            )  # fmt: skip
            terminal.expect(_PROMPTS["$ "], timeout=60)
            self._terminals.append(terminal)
            for line in (f"cd {shlex.quote(str(self.folder))}", *self._exports):
                terminal.sendline(line)
                terminal.expect(_PROMPTS["$ "], timeout=60)
        return self._terminals[index]
