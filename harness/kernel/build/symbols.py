"""A small reader of Kconfig files: finds the symbols, and the dependency that keeps one off. Pure except for ``read``.

It knows only what an explanation needs (Documentation/kbuild/kconfig-language.rst): dependencies, prompts, selects. The
kernel's own conf makes the configuration, but does not explain it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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
    depth = len(around)  # an "if" never spans files
    name, here, help_indent = "", None, None  # type: str, Definition | None, int | None
    entry_depends: list[str] = []  # the list to which a "depends on" line is added
    for number, line in _logical_lines(text):
        words = line.strip()
        if help_indent is not None:
            indent = len(line.expandtabs()) - len(line.expandtabs().lstrip())
            help_indent = indent if help_indent < 0 and words else help_indent
            if not words or help_indent < 0 or indent >= help_indent > 0:
                continue
            help_indent = None
        match = _KEYWORD.match(words)
        if match is None:
            continue
        keyword, rest = match[1], (match[2] or "").strip()
        if keyword in ("config", "menuconfig"):
            name, entry_depends = rest, []
            here = Definition(f"{path}:{number}", entry_depends)
            entry_depends += [each for group in around for each in group]
            symbols.definitions.setdefault(name, []).append(here)
        elif keyword in ("menu", "choice", "if"):
            name, here, entry_depends = "", None, [rest] if keyword == "if" else []
            around.append(entry_depends)
        elif keyword in ("endmenu", "endchoice", "endif"):
            name, here = "", None
            if len(around) > depth:
                around.pop()
        elif keyword == "comment":
            name, here, entry_depends = "", None, []
        elif keyword == "source":
            name, here = "", None
            target = re.sub(r"\$\((\w+)\)", lambda m: variables.get(m[1], m[0]), rest.strip("\"'"))
            _read_file(target, read, variables, symbols, around)
        elif keyword == "depends" and rest.startswith("on"):
            entry_depends.append(_without_comment(rest[2:]))
        elif keyword == "help":
            help_indent = -1
        elif keyword == "select" and name:
            target, _, condition = _without_comment(rest).partition(" if ")
            symbols.selected_by.setdefault(target.strip(), []).append((name, condition.strip() or "y"))
        elif here is not None and (prompt := _PROMPT.match(words)):
            here.prompts.append(_without_comment(prompt[1]) if prompt[1] else "y")
    del around[depth:]


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
        hidden = f"it can only be asked for with {_any_of(prompts, config)}" if prompts else "it cannot be asked for"
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
        return "it cannot be asked for" + (f", only selected, by {' or '.join(by[:6])}" if by else "")
    if not any(value_of(prompt, config) for prompt in definition.prompts):
        return f"can only be asked for with {_any_of(definition.prompts, config)}"
    return f"nothing in {definition.place} forbids it: another choice was taken, or the value is out of range"


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
