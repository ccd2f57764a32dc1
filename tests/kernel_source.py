"""Where kernel sources define the functions of harness/kernel_functions.py: ``make kernel-functions``.

    python tests/kernel_source.py [SOURCE]...    # debsrc:6.12, tree:PATH[@REVISION], or the path of a tree

Writes tests/data/kernel_functions.json: the date, the versions of the sources, and the versions that define each
function in its file. Without a SOURCE, it looks at Debian's newest source of each series that the table has. Sources
that are not in the cache are fetched.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from harness.errors import HugepfnError
from harness.kernel.build import parse_origin
from harness.kernel.definitions import definition_line
from harness.kernel_functions import KernelFunction, every_function
from harness.verdict.seen import series_of, version_key

TABLE = Path(__file__).parent / "data" / "kernel_functions.json"


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
        return cls(version, frozenset(f for f in every_function() if definition_line(texts.get(f.file, ""), f.name)))


@dataclass(frozen=True)
class Table:
    """The contents of tests/data/kernel_functions.json."""

    versions: tuple[str, ...]  # oldest first
    defined_in: Mapping[str, tuple[str, ...]]  # by "mm/memory.c copy_pte_range()"

    @classmethod
    def of(cls, sources: Iterable[Source]) -> Table:
        """Return the table of these sources."""
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
        """The text of the file, with one line per function."""
        lines = (f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in self.defined_in.items())
        head = f'{{\n "date": {json.dumps(day)},\n "versions": {json.dumps(self.versions)},\n "functions": {{\n'
        return head + ",\n".join(lines) + "\n }\n}\n"


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
