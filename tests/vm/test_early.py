"""Checks that no claim breaks if the CPU sets A and D as KVM may, simulated under TCG (eager_cpu.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.verdict import Outcome, Run

from .conftest import ROOT, Command

#: Every scenario with an old entry at some stop, and some scenarios without one.
FILES = ("fork", "forks", "fork_parts", "dirty", "mremap", "teardown", "share_mm")


def _run(hugepfn: Command, folder: Path, mode: str, *names: str) -> tuple[Run, str]:
    file = folder / "out.json"
    argv = [sys.executable, "-m", "pytest", "-q", *(str(ROOT / f"guest_tests/test_{name}.py") for name in names)]
    argv += ["-p", "harness.pytest_plugin", "-p", "tests.vm.eager_cpu", "--hugepfn-kernel=debian:6.12"]
    argv += ["--hugepfn-accel=tcg", "--hugepfn-level=pte", "--hugepfn-level=pud", f"--hugepfn-json={file}"]
    environment = hugepfn.environment(HUGEPFN_EAGER_CPU=mode)
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    return Run.from_json(json.loads(file.read_text())), done.stderr


@pytest.mark.parametrize("mode", ["all", "some"])
def test_a_cpu_that_sets_a_early_breaks_no_claim(hugepfn: Command, tmp_path: Path, mode: str) -> None:
    run, _ = _run(hugepfn, tmp_path, mode, *FILES)
    assert run.context["capabilities"]["early"] == ["A"]
    unknown = {claim.name for result in run.results for claim in result.claims if claim.outcome is Outcome.SKIPPED}
    assert "the child's entry is old" in unknown


def test_a_bar_without_dirty_bits_is_replaced(hugepfn: Command, tmp_path: Path) -> None:
    run, said = _run(hugepfn, tmp_path, "lazy", "fork")
    assert "using ivshmem-plain instead of pci-testdev: " in said
    claims = [claim for result in run.results for claim in result.claims]
    assert {claim.outcome for claim in claims} == {Outcome.PASSED}
    assert "a first write sets the dirty bit and nothing else" in {claim.name for claim in claims}
