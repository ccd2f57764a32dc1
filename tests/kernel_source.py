"""Where kernel sources define the functions of harness/kernel_functions.py: ``make kernel-functions``.

    python tests/kernel_source.py [SOURCE]...    # debsrc:6.12, tree:PATH[@REVISION], or the path of a tree

Writes tests/data/kernel_functions.json: the date, the versions of the sources, and the versions that define each
function in its file. Without a SOURCE, it looks at Debian's newest source of each series that the table has. Sources
that are not in the cache are fetched.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from harness import kernel_functions
from harness.errors import HugepfnError
from harness.kernel.build import parse_origin
from harness.kernel_functions import KernelFunction
from harness.verdict.seen import series_of, version_key

TABLE = Path(__file__).parent / "data" / "kernel_functions.json"
_COMMENT_OR_STRING = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:[^"\\\n]|\\.)*"', re.DOTALL)


def defines(text: str, name: str) -> bool:
    """Whether a C file defines a function.

    This is no C parser. It relies on the kernel's coding style, in which a definition begins in column 0::

        static int name(int a,
                        int b)
                __must_hold(&lock)
        {

    Between the column and the name are only words and ``*``; the return type may be on a line of its own. After the
    closing parenthesis come attributes, which are words with or without parentheses, and the opening brace. With a
    semicolon there, it is a prototype. ``SYSCALL_DEFINE3(name, ...)`` and other macros whose name contains DEFINE also
    define their first argument. Conditional compilation is ignored: every branch counts. Comments and strings are
    removed first.
    """
    code = _code_of(text)
    return any(_has_body(code, at) for at in _heads(code, name))


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


@dataclass(frozen=True)
class Source:
    """A kernel source: its version, and those of our functions that it defines in their files."""

    version: str
    defined: frozenset[KernelFunction]

    @classmethod
    def read(cls, spec: str, *, offline: bool = False) -> Source:
        """Look at a source.

        :raises UsageError: there is no such source.
        :raises MachineryError: it is not in the cache and cannot be fetched.
        """
        origin = parse_origin(spec)
        tree = origin.tree(lambda line: click.echo(line, err=True), offline)
        files = origin.slot.identities(tree, ["Makefile", *{function.file for function in every_function()}])
        with tempfile.TemporaryDirectory() as folder:
            origin.slot.export(tree, [*files], Path(folder))
            texts = {file: (Path(folder) / file).read_text(errors="replace") for file in files}
        numbers = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)$", texts["Makefile"], re.MULTILINE))
        version = ".".join(numbers[part] for part in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))
        return cls(version, frozenset(f for f in every_function() if defines(texts.get(f.file, ""), f.name)))


@dataclass(frozen=True)
class Table:
    """What tests/data/kernel_functions.json says."""

    versions: tuple[str, ...]  # oldest first
    defined_in: Mapping[str, tuple[str, ...]]  # by "mm/memory.c copy_pte_range()"

    @classmethod
    def of(cls, sources: Iterable[Source]) -> Table:
        """The table of these sources."""
        by_age = sorted(sources, key=lambda source: version_key(source.version))
        names = sorted(every_function(), key=str)
        found = {str(one): tuple(source.version for source in by_age if one in source.defined) for one in names}
        return cls(tuple(source.version for source in by_age), found)

    @classmethod
    def load(cls) -> Table:
        """The table as it was generated."""
        data = json.loads(TABLE.read_text())
        return cls(tuple(data["versions"]), {name: tuple(found) for name, found in data["functions"].items()})

    def dump(self, day: str) -> str:
        """Its file, with a line for each function."""
        lines = (f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in self.defined_in.items())
        head = f'{{\n "date": {json.dumps(day)},\n "versions": {json.dumps(self.versions)},\n "functions": {{\n'
        return head + ",\n".join(lines) + "\n }\n}\n"


def every_function() -> set[KernelFunction]:
    """The functions of the module, and what they are called elsewhere."""
    named = {value for value in vars(kernel_functions).values() if isinstance(value, KernelFunction)}
    return named | {function.elsewhere for function in named if function.elsewhere is not None}


@click.command()
@click.argument("sources", nargs=-1)
def main(sources: tuple[str, ...]) -> None:
    """Look the functions up in SOURCES and write the table."""
    specs = sources or tuple(f"debsrc:{series_of(version)}" for version in Table.load().versions)
    table = Table.of([Source.read(spec) for spec in specs])
    TABLE.write_text(table.dump(f"{datetime.now(UTC):%Y-%m-%d}"))
    click.echo(f"{len(table.defined_in)} functions, looked up in {', '.join(table.versions)}: {TABLE}")


if __name__ == "__main__":
    try:
        main()
    except HugepfnError as error:
        sys.exit(f"hugepfn: {error}")
