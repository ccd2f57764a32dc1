"""How much time Dask and hugepfn take for each unit of a campaign, beside the unit itself.

    python tests/cluster_overhead.py [--units 500] [--workers 2]

Scheduler and workers are processes of this host. The units are simulated: each answers at once, with the results of a
real run.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import click
from distributed import Client, LocalCluster

from harness.campaign.cluster.executor import ClusterExecutor
from harness.campaign.kernels import RunOptions
from harness.campaign.matrix import repeated
from harness.selection.selected import Selected
from tests.test_kernel_image import bzimage

RESULTS = Path(__file__).resolve().parent / "data/failures/fork-pmd-not-copied.json"


def simulate(results: str) -> None:
    """Let this process answer every unit with these results. Runs on a worker."""
    import json

    from harness.campaign.cluster import remote
    from harness.campaign.units.unit import UnitAnswer
    from harness.verdict import Run

    run = Run.from_json(json.loads(results))
    setattr(remote, "run_in_child", lambda _unit, _say, _started: UnitAnswer("key", run=run))  # noqa: B010


@click.command()
@click.option("--units", type=click.IntRange(1), default=500, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
def main(units: int, workers: int) -> None:
    """Measure it, and print one line."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HUGEPFN_CACHE_DIR"] = folder
        os.chdir(folder)
        Path("kernel").write_bytes(bzimage())
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1") as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            client.run(simulate, RESULTS.read_text())
            executor = ClusterExecutor(client, lambda _unit, _event: None)
            for count in (1, units):  # the first one finds out who is there
                begin = time.monotonic()
                wanted = repeated(["kernel"], [Selected(None, "fork")], RunOptions(), count)
                answers = dict(executor.run(wanted))
                took_s = time.monotonic() - begin
                assert len(answers) == count
                assert all(answer.checked().results for answer in answers.values())
                print(f"{count} units on {workers} workers: {took_s:.2f} s, {took_s * 1000 / count:.1f} ms per unit")


if __name__ == "__main__":
    main()
