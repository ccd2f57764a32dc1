"""``make faults``: injects hundreds of faults, each drawn from a seed, and says how hugepfn ended.

    python tests/faults/campaign.py [--seed N] [--workers 2] [--kind NAME]... [--runs N] [--write]

Each fault runs ``hugepfn`` in folders of its own, made anew. It has to end within its deadline, with the right exit
status and the right cause, and to leave nothing behind: no process, no file, no session. The results are written to
build/faults/results.jsonl, and with --write as a table to docs/reference/faults.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue

from harness.qemu.binary import find_qemu
from tests.faults import page
from tests.faults.kind import Fault
from tests.faults.measure import Measured, prepare
from tests.faults.plan import KINDS, plan
from tests.faults.run import Outcome, inject
from tests.faults.world import ROOT, World, make_world

BUILD = ROOT / "build" / "faults"
KERNEL = "debian:6.12"
#: How many faults tests/vm/test_faults.py injects.
SAMPLE = 40


def worlds(count: int, folder: Path, kernel: str) -> tuple[list[World], Measured]:
    """Make worlds, and measure a run without a fault in the first one."""
    made = [make_world(folder / str(number), kernel) for number in range(count)]
    measured = [prepare(world) for world in made]
    return made, measured[0]


def campaign(faults: Sequence[Fault], made: Sequence[World], measured: Measured) -> Iterator[Outcome]:
    """Inject the faults, as many at a time as there are worlds."""
    free: SimpleQueue[World] = SimpleQueue()
    for world in made:
        free.put(world)

    def one(fault: Fault) -> Outcome:
        world = free.get()
        try:
            return inject(fault, world, measured)
        finally:
            free.put(world)

    with ThreadPoolExecutor(len(made)) as pool:
        yield from pool.map(one, faults)


def told(outcome: Outcome) -> str:
    """One line about an outcome, and what is wrong with it."""
    drawn = f" ({outcome.drawn})" if outcome.drawn else ""
    held = "held" if outcome.held else "WRONG"
    line = f"{held:5}  {outcome.took_s:6.1f} s  {outcome.status!s:>4}  {outcome.kind}{drawn}"
    return "\n".join([line, *(f"         {one}" for one in outcome.wrong)])


def main() -> int:
    """Run a campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", default="1", help="of everything that is random")
    parser.add_argument("--workers", type=int, default=2, help="how many faults at a time")
    parser.add_argument("--kind", action="append", default=[], help="only this kind, or those that begin so")
    parser.add_argument("--runs", type=int, help="how many faults of each kind, instead of its own number")
    parser.add_argument("--kernel", default=KERNEL)
    parser.add_argument("--write", action="store_true", help="write docs/reference/faults.md")
    parser.add_argument("--output", action="store_true", help="show the end of the output of each wrong one")
    words = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGHUP):  # nohup and a shell's & ignore them, and so would every hugepfn
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    kinds = [kind for kind in KINDS if not words.kind or kind.name.startswith(tuple(words.kind))]
    faults = plan([replace(kind, runs=words.runs or kind.runs) for kind in kinds], words.seed)
    begin = time.monotonic()
    made, measured = worlds(min(words.workers, len(faults)), BUILD / "worlds", words.kernel)
    print(f"without a fault: {measured}", flush=True)
    outcomes = []
    with (BUILD / "results.jsonl").open("w") as file:
        for outcome in campaign(faults, made, measured):
            outcomes.append(outcome)
            file.write(json.dumps(asdict(outcome)) + "\n")
            file.flush()
            print(told(outcome), flush=True)
            if words.output and not outcome.held:
                print(outcome.tail, flush=True)
    held = sum(outcome.held for outcome in outcomes)
    took_s = time.monotonic() - begin
    print(f"{len(outcomes)} faults of {len(kinds)} kinds: {held} held; {took_s:.0f} s, seed {words.seed}")
    if words.write:
        how = [
            f"Linux {made[0].kernel.removeprefix('debian:')}",
            f"QEMU {find_qemu(None).version}",
            f"{words.workers} at a time",
        ]
        page.write(kinds, outcomes, sample=SAMPLE, how=how, took_s=took_s, seed=words.seed)
    return 0 if held == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
