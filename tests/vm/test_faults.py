"""Injects a sample of the faults of ``make faults``. Each must have the right end and cause, and leave nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.faults.campaign import KERNEL, SAMPLE
from tests.faults.kind import Fault
from tests.faults.measure import Measured, prepare
from tests.faults.plan import sample
from tests.faults.run import inject
from tests.faults.world import ROOT, World, make_world

SEED = "ci"

Place = tuple[World, Measured]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A separate world for this module. It is not below /tmp, because its commands have another /tmp."""
    folder = ROOT / "build" / "faults" / f"tests-{os.getpid()}"
    try:
        world = make_world(folder, KERNEL)
        yield world, prepare(world)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("fault", sample(SAMPLE, SEED), ids=lambda fault: fault.seed.removeprefix(f"{SEED}-"))
def test_a_fault(place: Place, fault: Fault) -> None:
    outcome = inject(fault, *place)
    assert outcome.held, "\n".join([*outcome.wrong, f"drawn: {outcome.drawn}", outcome.tail])
