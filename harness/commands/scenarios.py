"""``hugepfn list``: name the scenarios."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import click

from harness.commands.options import level_option
from harness.errors import UsageError


@click.command("list")
@click.argument("patterns", nargs=-1, metavar="[PATTERN...]")
@level_option
@click.option(
    "--function",
    "functions",
    multiple=True,
    metavar="PATTERN",
    help="only scenarios that this kernel function decides; may be repeated",
)
def list_scenarios(patterns: Sequence[str], levels: Sequence[str], functions: Sequence[str]) -> None:
    """Name the scenarios, with their claims and kernel functions.

    PATTERN is a part of a name (fork), or a glob for a whole name ("fork_*"). The pattern of a function is the same
    (--function copy_huge_pmd), or a part of the path of its file (--function mm/huge_memory.c).
    """
    from rich.console import Console
    from rich.markup import escape

    from harness.campaign.scenarios import scenario_lines

    lines = [
        line
        for line in scenario_lines()
        if _fits(patterns, [line.name])
        and (not levels or not line.levels or not set(levels).isdisjoint(line.levels.split()))
        and _fits(functions, [word for function in line.decided_by for word in (*function.split(), function)])
    ]
    if not lines:
        raise UsageError("no scenario matches; `hugepfn list` shows all, with their levels and kernel functions")
    console = Console(highlight=False)
    for line in lines:
        console.print(f"[bold]{line.name}[/bold]  [cyan]{line.levels}[/cyan]", soft_wrap=True)
        console.print(f"    {escape(line.claim)}", soft_wrap=True)
        console.print(f"    [dim]{escape(', '.join(line.decided_by))}[/dim]", soft_wrap=True)
    cases = sum(len([one for one in line.levels.split() if one in (levels or (one,))]) or 1 for line in lines)
    console.print(f"{_counted(len(lines), 'scenario')}, {_counted(cases, 'case')}")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _fits(patterns: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether one of the patterns is a part of one of the words, or a glob for it, or there is no pattern."""
    return not patterns or any(
        pattern in word or fnmatch.fnmatchcase(word, pattern) or fnmatch.fnmatchcase(word, f"{pattern}()")
        for pattern in patterns
        for word in words
    )
