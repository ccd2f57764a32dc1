"""Runs the fuzzer's targets with hypothesis: arbitrary bytes, words of each grammar, and damaged golden files."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import run
from tests.fuzz.targets import FINDINGS, TARGETS, Target

ROOT = Path(__file__).resolve().parents[1]


def damage(draw: st.DrawFn, target: Target, seeds: Sequence[bytes]) -> bytes:
    """A seed with a few changes: bytes, words and pieces of other seeds are inserted, left out, repeated or swapped."""

    def seed() -> bytes:
        return seeds[draw(st.integers(0, len(seeds) - 1))]

    data = seed()
    for _ in range(draw(st.integers(1, 5))):
        start, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        match draw(st.integers(0, 4)):
            case 0:
                new = draw(st.binary(max_size=8))
            case 1:
                new = draw(st.sampled_from(target.words or (b"\n",)))
            case 2:
                new = data[start:end][:200] * draw(st.integers(2, 40))
            case 3:
                other = seed()
                begin = draw(st.integers(0, len(other)))
                new = other[begin : begin + 300]
            case _:
                new = b""
        data = data[:start] + new + data[draw(st.sampled_from([start, end])) :]
    return data[:20_000]


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Arbitrary bytes, words of the target's grammar in any order, and damaged seeds."""
    seeds = target.seeds()
    words = st.lists(st.sampled_from(target.words or (b"\n",)) | st.binary(max_size=12), max_size=40).map(b"".join)

    @st.composite
    def damaged(draw: st.DrawFn) -> bytes:
        return damage(draw, target, seeds)

    return st.binary(max_size=400) | words | damaged()


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_read_or_refused(name: str) -> None:
    @settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
    @given(inputs(TARGETS[name]))
    def read(data: bytes) -> None:
        TARGETS[name].read(data)

    read()


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_read(name: str) -> None:
    for seed in TARGETS[name].seeds():
        TARGETS[name].read(seed)


def test_a_finding_belongs_to_a_target() -> None:
    assert {path.name.partition("-")[0] for path in FINDINGS.iterdir()} <= {*TARGETS}


def test_two_errors_at_one_place_are_one_finding() -> None:
    def places(*values: str) -> set[tuple[str, int]]:
        found = set()
        for value in values:
            try:
                int(value)
            except ValueError as error:
                found.add(run.place(error))
        return found

    assert len(places("a", "b")) == 1


def test_a_dictionary_for_libfuzzer_has_no_raw_quotes_or_newlines() -> None:
    assert run.quoted(b'a"\\\n\xff') == '"a\\x22\\x5c\\x0a\\xff"\n'


def test_a_finding_can_be_reproduced(tmp_path: Path) -> None:
    """A reader that raises is distinguished from one that refuses its input."""
    input_file = tmp_path / "frames-0123"
    input_file.write_bytes(b"not a header\n")
    assert run.main(["--reproduce", str(input_file)]) == 0


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="make fuzz installs atheris")
def test_the_fuzzer_runs_a_target_for_a_second() -> None:
    argv = [sys.executable, "tests/fuzz/run.py", "--minutes", "0.02", "--target", "pagemap"]
    done = subprocess.run(argv, cwd=ROOT, env={"PYTHONPATH": "."}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pagemap: ")
