"""``hugepfn bisect``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from harness.commands.options import FILE, config_options, scheduler_option
from harness.config import MachineConfig
from harness.selection.selected import Selected


@click.command()
@click.argument("test", metavar="TEST|log")
@click.argument("paths", metavar="[-- PATH...]", nargs=-1)
@click.option("--tree", default=".", show_default=True, help="the git tree; it is only read")
@click.option("--good", metavar="REV", default="", help="a revision that does not show the symptom")
@click.option("--bad", metavar="REV", default="", help="a revision that shows it")
@click.option("--series", "revisions", metavar="A..B", help="the commits of a series, instead of --good A --bad B")
@click.option("--mbox", type=FILE, help="the patches of a series on TREE, which may also be debsrc:VERSION")
@click.option("--debian", nargs=2, metavar="GOOD BAD", help="two versions of Debian's stock kernels; nothing is built")
@click.option("--fixed", is_flag=True, help="look for what mended it; the bad end is the older one")
@click.option("--any", "any_failure", is_flag=True, help="look for any failure instead of the first one of the bad end")
@click.option(
    "--runs", type=click.IntRange(1), help="how many runs make a commit good, instead of as many as are needed"
)
@click.option(
    "-j", "--at-once", type=click.IntRange(1), default=1, show_default=True, help="how many kernels to run at once"
)
@click.option("--resume", is_flag=True, help="go on with this bisection, which was interrupted")
@scheduler_option
@config_options(without=["kernel"])
def bisect(test: str, paths: tuple[str, ...], config: MachineConfig, **given: Any) -> None:
    """Find the commit that broke something, or with --fixed the one that mended it.

    \b
        hugepfn bisect --tree ~/linux --good v6.12 --bad v6.13 fork:pud -- mm
        hugepfn bisect --debian 6.12.117 6.12.90 --fixed munmap_page:pud
        hugepfn bisect log | (cd ~/linux && git bisect replay /dev/stdin)

    The first thing that fails at the bad end is looked for, such as one claim. A commit that does not build or boot,
    lacks a precondition or fails otherwise is skipped. A symptom that shows only now and then is found as well.

    The exit status is 0 if one culprit is left, 3 if more are or if there is no answer, and 2 if an end is not what it
    was said to be.
    """
    from harness.campaign.bisection.bisect import Looked
    from harness.campaign.bisection.command import Asked, print_log, run_bisect
    from harness.campaign.kernels import RunOptions

    if test == "log":
        print_log()
        return
    asked = Asked(given["tree"], paths=paths, fixed=given["fixed"], **_ends(given))
    options = RunOptions(config, scheduler=given["scheduler"])
    looked = Looked(Selected.parse(test), given["any_failure"], given["runs"], options, given["at_once"])
    sys.exit(run_bisect(asked, looked, given["resume"]))


def _ends(given: dict[str, Any]) -> dict[str, Any]:
    ways = (given["good"] or given["bad"], given["revisions"], given["mbox"], given["debian"])
    if sum(map(bool, ways)) != 1:
        raise click.UsageError("give --good REV and --bad REV, --series A..B, --mbox FILE or --debian GOOD BAD")
    if given["debian"]:
        return {"good": given["debian"][0], "bad": given["debian"][1], "debian": True}
    if given["mbox"]:
        return {"mbox": str(Path(given["mbox"]).resolve())}
    good, bad = given["good"], given["bad"]
    if given["revisions"]:
        older, dots, newer = given["revisions"].partition("..")
        good, bad = (newer or "HEAD", older) if given["fixed"] else (older, newer or "HEAD")
        if not dots:
            raise click.UsageError(f"{given['revisions']!r}: a range of commits is written A..B")
    if not good or not bad:
        raise click.UsageError("give both --good REV and --bad REV")
    return {"good": good, "bad": bad}
