"""Writes docs/reference/faults.md from the results of a campaign."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date

from tests.faults.kind import Ending, Kind
from tests.faults.run import Outcome
from tests.faults.world import ROOT

PAGE = ROOT / "docs" / "reference" / "faults.md"
_HEAD = """# Faults

What hugepfn does when a kernel, QEMU or this host goes wrong. You can rely on four things:

- The exit status tells you who is to blame. Status 1 is a verdict about the kernel. If QEMU is killed, a disk is full
  or a cache entry is damaged, the status is 3, or hugepfn repairs what it can and goes on ([results](../results.md)).
- One line, or the result of the case, says what happened.
- The command ends: every wait has a deadline ([waits](../waits.md)).
- Nothing is left: no process, no session, no file in /tmp, /dev/shm, the runtime directory or the cache, and a terminal
  is as it was.

`make faults` puts this to the test. It runs `hugepfn` in directories of its own, and each time does to it one of the
things below, at a moment that is drawn at random. The words in the tables are regular expressions, which the output
must match; the state of a case is as in [results](../results.md). `make faults FAULTS="--seed 7"` draws other moments,
and `FAULTS="--kind NAME"` injects only one kind. A sample of {sample} faults is part of `make test`.
"""


def write(
    kinds: Sequence[Kind], outcomes: Sequence[Outcome], *, sample: int, how: Sequence[str], took_s: float, seed: str
) -> None:
    """Write the page.

    :param sample: how many faults are part of `make test`.
    :param how: what the faults were injected into: versions, in words.
    """
    held = sum(outcome.held for outcome in outcomes)
    lines = [
        _HEAD.format(sample=sample),
        f"Made by `make faults` on {date.today()}, with {', '.join(how)}, seed {seed}: {len(outcomes)} faults of "
        f"{len(kinds)} kinds in {took_s / 60:.0f} minutes; {held} of them ended as they should.",
    ]
    for group in dict.fromkeys(kind.group for kind in kinds):
        lines += ["", f"## {group}", "", *_table([kind for kind in kinds if kind.group == group], outcomes)]
    PAGE.write_text("\n".join(lines) + "\n")


def _table(kinds: Sequence[Kind], outcomes: Sequence[Outcome]) -> Iterator[str]:
    runs = Counter(outcome.kind for outcome in outcomes)
    held = Counter(outcome.kind for outcome in outcomes if outcome.held)
    yield "| kind | what is done | how hugepfn ends | runs | as expected |"
    yield "|---|---|---|---|---|"
    for kind in kinds:
        endings = "; or ".join(map(_ending, kind.endings))
        yield f"| {kind.name} | {kind.done} | {endings} | {runs[kind.name]} | {held[kind.name]} |"


def _ending(ending: Ending) -> str:
    status = f"killed by signal {-ending.status}" if ending.status < 0 else f"status {ending.status}"
    case = f", the case is {ending.outcome}" if ending.outcome else ""
    end = f" ({ending.end}{f', {ending.signal}' if ending.signal else ''})" if ending.end else ""
    words = "".join(f", `{words}`".replace("|", "\\|") for words in ending.words)
    return f"{status}{case}{end}{words}"
