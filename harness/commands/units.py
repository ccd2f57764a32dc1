"""``hugepfn run-unit``: the child process of a campaign on many machines. Not for people."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("run-unit", hidden=True)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--events", type=click.Path(path_type=Path), required=True)
def run_unit(folder: Path, events: Path) -> None:
    """Run the unit of a campaign that is in FOLDER, and write its answer there."""
    from harness.campaign import event_stream
    from harness.campaign.units import child

    with event_stream.writing(events) as say:
        assert say is not None, "there is a file"
        child.run_unit(folder, say)
