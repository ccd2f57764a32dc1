"""Find where a C file of the kernel defines its functions. Pure; no C parser."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

_COMMENT_OR_STRING = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:[^"\\\n]|\\.)*"', re.DOTALL)

#: A name before a parenthesis in a line that begins in column 0, or the first argument of a macro there.
_CALLED = re.compile(r"^\w[\w \t*]*?[(\s*](\w+)(?=[ \t]*[(,)])", re.MULTILINE)


def definition_line(text: str, name: str) -> int | None:
    """The line, from 1, in which a C file begins the definition of a function; None if it defines none.

    This relies on the kernel's coding style, in which a definition begins in column 0::

        static int name(int a,
                        int b)
                __must_hold(&lock)
        {

    Between the column and the name are only words and ``*``; the return type may be on a line of its own. After the
    closing parenthesis come attributes, which are words with or without parentheses, and the opening brace. With a
    semicolon there, it is a prototype. ``SYSCALL_DEFINE3(name, ...)`` and other macros whose name contains DEFINE also
    define their first argument. Conditional compilation is ignored: every branch counts, and the first one is found.
    Comments and strings are removed first.
    """
    code = _code_of(text)
    at = min((at for at in _heads(code, name) if _has_body(code, at)), default=None)
    return None if at is None else code.count("\n", 0, at) + 1


def functions_of(text: str) -> list[str]:
    """The names of the functions that a C file defines, in its order, each once; see :func:`definition_line`."""
    code = _code_of(text)
    found = {name: definition_line(text, name) for name in dict.fromkeys(_CALLED.findall(code))}
    return sorted((name for name, line in found.items() if line is not None), key=lambda name: found[name] or 0)


@functools.cache
def _code_of(text: str) -> str:
    return _COMMENT_OR_STRING.sub(lambda found: " " + "\n" * found[0].count("\n"), text)


def _heads(code: str, name: str) -> Iterator[int]:
    """Where the parentheses open that may begin the parameters of a definition."""
    plain = rf"^(?:[A-Za-z_][\w \t*]*[\s*])?(?P<plain>{name}[ \t]*)\("
    macro = rf"^(?:static )?[A-Z_]*DEFINE[A-Z_]*\d*(?=\(\s*{name}\s*[,)])"
    for pattern in (plain, macro):
        yield from (found.end() - (pattern is plain) for found in re.finditer(pattern, code, re.MULTILINE))


def _has_body(code: str, at: int) -> bool:
    """Whether a brace follows the parentheses that open at ``at``, with only attributes between."""
    at = _closed(code, at)
    attribute = re.compile(r"\s*(?:\w+\s*(?P<open>\()?|(?P<brace>\{))")
    while found := attribute.match(code, at):
        if found["brace"]:
            return True
        at = _closed(code, found.end() - 1) if found["open"] else found.end()
    return False


def _closed(code: str, at: int) -> int:
    """The position after the parenthesis that closes the one at ``at``; the end if none does."""
    depth = 0
    for found in re.compile(r"[()]").finditer(code, at):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    return len(code)
