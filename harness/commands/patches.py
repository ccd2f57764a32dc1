"""``hugepfn series`` and ``hugepfn check``: a patch series, and one step of a bisection."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.options import (
    FILE,
    TEST,
    campaign_options,
    mail_option,
    page_request,
    report_options,
    resume_option,
    run_options,
    tests_argument,
)
from harness.config import MachineConfig

if TYPE_CHECKING:
    from harness.selection.selected import Selected


@click.command()
@click.argument("tree")
@click.argument("revisions", metavar="[BASE..TIP]", required=False)
@tests_argument
@click.option("--mbox", type=FILE, help="the patches, instead of BASE..TIP")
@click.option(
    "--b4", "message_id", metavar="MSGID", help="a mail of the series, which b4 fetches, instead of BASE..TIP"
)
@campaign_options
@mail_option
@resume_option
@report_options("the table, every run and the changes")
def series(
    tree: str,
    revisions: str | None,
    words: tuple[Selected, ...],
    mbox: Path | None,
    message_id: str | None,
    config: MachineConfig,
    **options: Any,
) -> None:
    """Run scenarios after each patch of a series.

    The patches are applied one at a time. Each kernel is built and run, and the table shows at which patch a scenario
    changes.

    TREE is a git tree with BASE..TIP, or any source (debsrc:6.12, a folder) with --mbox or --b4. A patch that does not
    build or boot is reported, and the next one is tried.

    The exit status is 0 if nothing changes, 1 if something does, and otherwise that of `hugepfn run`: 3 if a patch
    does not build, because what changes there is not known.
    """
    import tempfile

    from harness.campaign.b4 import fetch
    from harness.campaign.series import run_series

    if mbox is not None and message_id is not None:
        raise click.UsageError("give either --mbox FILE or --b4 MSGID, not both")
    if mbox is None and message_id is None:
        if revisions is None or ".." not in revisions:
            raise click.UsageError("give BASE..TIP, --mbox FILE or --b4 MSGID")
    elif revisions is not None:
        words = (TEST.convert(revisions, None, None), *words)  # with patches from elsewhere, this argument is a test
    page = page_request(options)
    if message_id is not None:
        page = replace(page, patches=("--b4", message_id))
    with tempfile.TemporaryDirectory(prefix="hugepfn-b4-") as folder:
        patches = mbox if message_id is None else fetch(message_id, Path(folder))
        files = options["json_file"], page
        sys.exit(
            run_series(tree, patches or str(revisions), words, run_options(config, options), *files, options["resume"])
        )


@click.command()
@click.argument("tree")
@click.argument("word", metavar="TEST", type=TEST)
@click.option("--symptom", metavar="KIND: NAME", help="skip what fails otherwise; `hugepfn bisect` prints it")
@campaign_options
def check(tree: str, word: Selected, symptom: str | None, config: MachineConfig, **options: Any) -> None:
    """Run one step of a bisection.

    \b
        git bisect run hugepfn check . fork:pud

    Builds the tree checked out in TREE, boots it and runs the test, which is named as for `hugepfn run`. The exit
    status is the one that git expects:
    0 good, 1 bad, 125 cannot tell (it does not build or boot, or a precondition is not met), 128 the machinery failed,
    and git stops.
    """
    from harness.bisection.symptom import Trait
    from harness.campaign.check import check as step

    sought = Trait.parse(symptom) if symptom is not None else None
    verdict, reason = step(tree, word, run_options(config, options), sought)
    click.echo(f"{verdict.name.lower().replace('_', ' ')}: {reason}")
    sys.exit(verdict)
