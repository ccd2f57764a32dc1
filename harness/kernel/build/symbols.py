"""A small reader of Kconfig files: finds the symbols, and the dependency that keeps one off. Pure except for ``read``.

It knows only what an explanation needs (Documentation/kbuild/kconfig-language.rst): dependencies, prompts, selects. The
kernel's own conf makes the configuration, but does not explain it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from harness.kernel.build.expressions import conjunction, value_of, why_false
from harness.kernel.kconfig import Kconfig

Read = Callable[[str], str | None]

_TYPES = r"(?:bool|tristate|int|hex|string)"
_PROMPT = re.compile(rf"(?:{_TYPES}|prompt)\s+(?:\"(?:[^\"\\]|\\.)*\"|'[^']*')(?:\s+if\s+(.+))?")
_KEYWORD = re.compile(r"(\w+)(?:\s+(.*))?")
_DEPTH = 3  # maximum depth of "needs X, which needs Y"


@dataclass
class Definition:
    """One ``config NAME`` block; a symbol may have several."""

    place: str  # mm/Kconfig.debug:122
    depends: list[str]  # all must hold: its own, and those of the surrounding menus and ifs
    prompts: list[str] = field(default_factory=list)  # the condition of each prompt, "y" if it has none


@dataclass
class Symbols:
    """Every symbol of a source."""

    definitions: dict[str, list[Definition]] = field(default_factory=dict)
    selected_by: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # symbol: (selector, condition)


def read_symbols(read: Read, variables: Mapping[str, str], top: str = "Kconfig") -> Symbols:
    """Every symbol that the Kconfig files reachable from ``top`` define.

    :param read: returns the text of a file; None if there is no such file.
    :param variables: the variables in ``source`` lines: SRCARCH.
    """
    symbols = Symbols()
    _read_file(top, read, variables, symbols, [])
    return symbols


def _read_file(path: str, read: Read, variables: Mapping[str, str], symbols: Symbols, around: list[list[str]]) -> None:
    text = read(path)
    if text is None:
        return
    depth = len(around)  # an "if" never extends over several files
    block = _ConfigBlock(path, symbols, around)
    for number, words in _without_help(_logical_lines(text)):
        match = _KEYWORD.match(words)
        if match is None:
            continue
        keyword, rest = match[1], (match[2] or "").strip()
        if keyword == "source":
            block.end()
            target = re.sub(r"\$\((\w+)\)", lambda m: variables.get(m[1], m[0]), rest.strip("\"'"))
            _read_file(target, read, variables, symbols, around)
        elif keyword in ("endmenu", "endchoice", "endif"):
            block.end()
            if len(around) > depth:
                around.pop()
        else:
            block.take(number, words, keyword, rest)
    del around[depth:]


class _ConfigBlock:
    """The block of a Kconfig file that is being read: a symbol, a menu, a comment.

    :param around: the dependencies of each menu, choice and "if" that it is in.
    """

    def __init__(self, path: str, symbols: Symbols, around: list[list[str]]) -> None:
        self._path, self._symbols, self._around = path, symbols, around
        self._name = ""
        self._here: Definition | None = None
        self._depends: list[str] = []  # the list to which a "depends on" line is added

    def end(self) -> None:
        """End the block: the next lines belong to no symbol."""
        self._name, self._here = "", None

    def take(self, number: int, words: str, keyword: str, rest: str) -> None:
        """Read a line that begins a block or belongs to it."""
        if keyword in ("config", "menuconfig"):
            self._name, self._depends = rest, [each for group in self._around for each in group]
            self._here = Definition(f"{self._path}:{number}", self._depends)
            self._symbols.definitions.setdefault(rest, []).append(self._here)
        elif keyword in ("menu", "choice", "if", "comment"):
            self.end()
            self._depends = [rest] if keyword == "if" else []
            if keyword != "comment":
                self._around.append(self._depends)
        elif keyword == "depends" and rest.startswith("on"):
            self._depends.append(_without_comment(rest[2:]))
        elif keyword == "select" and self._name:
            target, _, condition = _without_comment(rest).partition(" if ")
            self._symbols.selected_by.setdefault(target.strip(), []).append((self._name, condition.strip() or "y"))
        elif self._here is not None and (prompt := _PROMPT.match(words)):
            self._here.prompts.append(_without_comment(prompt[1]) if prompt[1] else "y")


def _without_help(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The lines that are not help text, stripped. Help continues as long as lines are indented like its first."""
    help_indent: int | None = None  # None outside help text, -1 before its first line
    for number, line in lines:
        words = line.strip()
        if help_indent is not None:
            indent = len(line.expandtabs()) - len(line.expandtabs().lstrip())
            help_indent = indent if help_indent < 0 and words else help_indent
            if not words or help_indent < 0 or indent >= help_indent > 0:
                continue
            help_indent = None
        keyword = _KEYWORD.match(words)
        if keyword is not None and keyword[1] == "help":
            help_indent = -1
        else:
            yield number, words


def _logical_lines(text: str) -> list[tuple[int, str]]:
    lines, start, pending = [], 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        start = start if pending else number
        if line.endswith("\\"):
            pending += line[:-1]
            continue
        lines.append((start, pending + line))
        pending = ""
    return lines


def _without_comment(text: str) -> str:
    return re.sub(r"\s+#.*", "", text).strip()


def explain(symbol: str, value: str, symbols: Symbols, config: Kconfig) -> str:
    """Why a configuration does not have ``symbol`` as ``value``: the missing dependency, in words.

    :param config: the finished configuration.
    """
    if value == "n":
        selectors = [
            by
            for by, condition in symbols.selected_by.get(symbol, [])
            if config.get(by) and value_of(condition, config)
        ]
        if selectors:
            return f"{', '.join(selectors)} selects it"
        prompts = [prompt for each in symbols.definitions.get(symbol, []) for prompt in each.prompts]
        hidden = f"it can only be set with {_any_of(prompts, config)}" if prompts else "it cannot be set by a user"
        return f"it is on by default, and {hidden}"
    found = symbols.definitions.get(symbol)
    if not found:
        return "there is no such symbol in any Kconfig file of this source"
    reasons = [_why_off(symbol, each, symbols, config, _DEPTH) for each in found]
    got = config.get(symbol)
    return reasons[0] if got is None else f"it is {got} instead; {reasons[0]}"


def _why_off(symbol: str, definition: Definition, symbols: Symbols, config: Kconfig, depth: int) -> str:
    missing = why_false(conjunction(definition.depends), config)
    if missing:
        return "needs " + " and ".join(_with_reason(each, symbols, config, depth - 1) for each in missing)
    if not definition.prompts:
        by = [selector for selector, _ in symbols.selected_by.get(symbol, [])]
        return "it cannot be set by a user" + (f", only selected by {' or '.join(by[:6])}" if by else "")
    if not any(value_of(prompt, config) for prompt in definition.prompts):
        return f"it can only be set with {_any_of(definition.prompts, config)}"
    return f"nothing in {definition.place} prevents it: another choice was made, or the value is out of range"


def _any_of(conditions: list[str], config: Kconfig) -> str:
    return " or ".join(" and ".join(why_false(condition, config)) for condition in conditions)


def _with_reason(missing: str, symbols: Symbols, config: Kconfig, depth: int) -> str:
    """A missing symbol, and what it needs in turn."""
    found = symbols.definitions.get(missing, [])
    if depth <= 0 or not found:
        return missing if found or not re.fullmatch(r"\w+", missing) else f"{missing}, which no Kconfig file defines"
    deeper = why_false(conjunction(found[0].depends), config)
    if not deeper:
        return missing
    return f"{missing} (which needs {' and '.join(_with_reason(each, symbols, config, depth - 1) for each in deeper)})"
