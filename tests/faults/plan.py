"""The list of faults of a campaign, and of a sample of it; both come from a seed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random

from tests.faults import kinds_channels, kinds_files, kinds_guest, kinds_host, kinds_qemu, kinds_sessions, kinds_signals
from tests.faults.kind import Fault, Kind

_MODULES = (kinds_guest, kinds_channels, kinds_qemu, kinds_files, kinds_host, kinds_signals, kinds_sessions)
KINDS: tuple[Kind, ...] = tuple(kind for module in _MODULES for kind in module.KINDS)


def plan(kinds: Sequence[Kind], seed: str) -> list[Fault]:
    """All faults of these kinds, the kinds in turn, so that waits for a deadline lie beside short ones."""
    each = [[Fault(kind, f"{seed}-{kind.name}-{number}") for number in range(kind.runs)] for kind in kinds]
    return [fault for turn in itertools.zip_longest(*each) for fault in turn if fault is not None]


def sample(count: int, seed: str) -> list[Fault]:
    """Some faults that wait for no deadline of hugepfn, no two of a kind as long as there are kinds."""
    kinds = [kind for kind in KINDS if kind.quick]
    return plan(Random(seed).sample(kinds, len(kinds)), seed)[:count]
