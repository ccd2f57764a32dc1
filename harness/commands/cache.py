"""``hugepfn cache``: show where the cache is and what is in it, or clean it."""

from __future__ import annotations

import re
import time
from typing import Any

import click

from harness.errors import UsageError
from harness.outputs import print_table

_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}


@click.group(invoke_without_command=True)
@click.pass_context
def cache(context: click.Context) -> None:
    """Show where the cache is and what is in it, or clean it.

    It holds kernels, builds and booted machines, so that the next command need not fetch, build or boot them again.
    HUGEPFN_CACHE_DIR puts it elsewhere.
    """
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    from harness.host.cache import root
    from harness.host.cache_parts import parts

    found = parts()
    table = Table(box=None, pad_edge=False)
    table.add_column("part", no_wrap=True)
    table.add_column("size", no_wrap=True, justify="right")
    table.add_column("entries", no_wrap=True, justify="right")
    table.add_column("used last", no_wrap=True)
    table.add_column("what it is")
    for part in found:
        used = max((entry.used_at for entry in part.entries), default=None)
        day = time.strftime("%Y-%m-%d", time.localtime(used)) if used is not None else ""
        table.add_row(part.name, decimal(part.size_bytes), str(len(part.entries)), day, part.contents)
    console = Console(highlight=False, markup=False, emoji=False, width=100)
    console.print(f"{root()}: {decimal(sum(part.size_bytes for part in found))}", soft_wrap=True)
    print_table(console, table)


class _Age(click.ParamType[float]):
    """A number of hours, days or weeks, as seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """For example 14d."""
        match = re.fullmatch(r"(\d+)([hdw])", str(value))
        if match is None:
            self.fail(f"{value!r}; expected a number of hours, days or weeks: 12h, 14d, 2w", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


@cache.command()
@click.argument("names", nargs=-1, metavar="[PART...]")
@click.option("--all", "everything", is_flag=True, help="every part except kept machines")
@click.option(
    "--older-than", "age_s", type=_Age(), metavar="AGE", help="only what was not used for this time: 12h, 14d, 2w"
)
def clean(names: tuple[str, ...], everything: bool, age_s: float | None) -> None:
    """Remove parts of the cache: by name, all, or what was not used for some time.

    What a running hugepfn uses or builds stays. Kept machines are removed only if the part "kept" is named; `hugepfn
    kept --rm NAME` removes one of them.
    """
    from rich.filesize import decimal

    from harness.host.cache_parts import ON_PURPOSE, parts, remove

    if not (names or everything or age_s is not None) or (names and everything):
        raise click.UsageError("nothing to remove was given; name parts, or use --all or --older-than AGE")
    found = {part.name: part for part in parts()}
    for unknown in (name for name in names if name not in found):
        raise UsageError(f"the cache has no part {unknown!r}; expected one of: {', '.join(sorted(found)) or 'none'}")
    freed = 0
    for part in found.values():
        if part.name not in names and (names or part.name in ON_PURPOSE):
            continue
        old = [one for one in part.entries if age_s is None or one.used_at < time.time() - age_s]
        gone = [one for one in old if remove(one)]
        size = sum(one.size_bytes for one in gone)
        freed += size
        if old:
            left = f"; {len(old) - len(gone)} in use" if len(gone) < len(old) else ""
            click.echo(f"{part.name}: removed {len(gone)} of {len(part.entries)}, {decimal(size)}{left}")
    click.echo(f"freed {decimal(freed)}")
