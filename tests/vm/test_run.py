"""Tests for ``hugepfn run`` on stock kernels: the JSON file and the exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.kernel import Kernel
from tests import schemas

from .conftest import Command


def _run(hugepfn: Command, tmp_path: Path, *args: str) -> dict[str, Any]:
    path = tmp_path / "out.json"
    done = hugepfn("run", *args, "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(path.read_text())
    assert schemas.check(data) == "hugepfn-run"
    assert isinstance(data, dict)
    return data


def _shown(data: dict[str, Any]) -> list[object]:
    """Return what each case showed, without page frames of ordinary memory, which differ from run to run."""
    of_an_entry = ("checkpoint", "process", "mapping", "offset", "level", "bits")
    return [
        (
            one["scenario"],
            one["level"],
            [(claim["name"], claim["outcome"]) for claim in one["claims"]],
            sorted([str(entry[key]) for key in of_an_entry] for entry in one["observations"]),
        )
        for one in data["results"]
    ]


def test_cases_that_share_a_clone_show_what_each_shows_alone(hugepfn: Command, tmp_path: Path) -> None:
    chosen = ("munmap_start", "munmap_end", "munmap_child_keeps", "--kernel", "debian:6.12")
    alone, together = tmp_path / "alone.json", tmp_path / "together.json"
    machines = []
    for path, how in ((alone, "--pristine"), (together, "--no-pristine")):
        done = hugepfn("run", "-v", *chosen, how, "--json", str(path))
        assert done.returncode == 0, done.stdout + done.stderr
        machines.append(done.stderr.count("starting the machine"))
    assert machines == [9, 1]
    assert _shown(json.loads(together.read_text())) == _shown(json.loads(alone.read_text()))


def _at(result: dict[str, Any], checkpoint: str, process: str) -> dict[str, Any]:
    found = [
        o for o in result["observations"] if (o["checkpoint"], o["process"], o["offset"]) == (checkpoint, process, 0)
    ]
    assert len(found) == 1
    observation = found[0]
    assert isinstance(observation, dict)
    return observation


def test_6_12_keeps_write_and_dirty_over_fork(hugepfn: Command, tmp_path: Path) -> None:
    data = _run(hugepfn, tmp_path, "fork", "--kernel", "debian:6.12")
    assert data["schema"] == "hugepfn-run"
    assert data["kernel"]["spec"].startswith("debian:6.12")
    assert data["kernel"]["release"].startswith("6.12.")
    assert len(data["kernel"]["config_hash"]) == 64
    assert data["qemu"]
    assert data["accel"] in ("tcg", "kvm")
    results = {result["level"]: result for result in data["results"]}
    assert list(results) == ["pte", "pmd", "pud"]
    for level, result in results.items():
        assert (result["scenario"], result["outcome"]) == ("fork", "passed")
        assert all(claim["outcome"] == "passed" for claim in result["claims"])
        assert len(result["claims"]) >= 15
        parent, child = (_at(result, "forked", process) for process in ("parent", "child"))
        assert {parent["level"], child["level"]} == {level}
        assert {"W", "D", "SPECIAL"} <= set(parent["bits"])
        assert parent["pfn"] == child["pfn"] == "bar+0x0"
        assert "A" not in child["bits"]
        assert "W" in child["bits"]
        assert ("D" in child["bits"]) == (level != "pte")
        assert not {"SAVED_DIRTY"} & {*parent["bits"], *child["bits"]}
        assert int(parent["raw"], 16) & 0x42 == 0x42
        checkpoints = {o["checkpoint"] for o in result["observations"]}
        assert {"read", "written", "forked", "child-written"} <= checkpoints
        assert {o["process"] for o in result["observations"]} == {"parent", "child", "grandchild"}


def test_a_folder_with_image_configuration_and_modules_is_a_kernel(hugepfn: Command, tmp_path: Path) -> None:
    folder = Kernel.parse("debian:6.12").resolve().image.parent
    data = _run(hugepfn, tmp_path, "fork", "--level", "pmd", "--kernel", str(folder))
    assert data["kernel"]["spec"] == str(folder)
    assert data["kernel"]["release"].startswith("6.12.")
    assert [result["outcome"] for result in data["results"]] == ["passed"]


def test_6_1_has_no_huge_pfnmap_and_says_so(hugepfn: Command, tmp_path: Path) -> None:
    data = _run(hugepfn, tmp_path, "fork", "--kernel", "debian:6.1")
    outcomes = {result["level"]: (result["outcome"], result["reason"]) for result in data["results"]}
    assert outcomes["pte"] == ("passed", "")
    for level in ("pmd", "pud"):
        outcome, reason = outcomes[level]
        assert outcome == "skipped"
        assert reason.startswith("no huge pfnmap in this kernel: ")
    pte = next(result for result in data["results"] if result["level"] == "pte")
    assert len([o for o in pte["observations"] if o["checkpoint"] == "read"]) == 4, (
        "6.1 must fill the whole VMA at one fault"
    )


def test_strict_fails_on_an_unmet_precondition(hugepfn: Command) -> None:
    done = hugepfn("run", "fork", "--kernel", "debian:6.1", "--level", "pud", "--strict")
    assert done.returncode == 1
    assert "precondition not met: no huge pfnmap in this kernel" in done.stdout


@pytest.mark.parametrize("extra", [("--junit",)])
def test_junit(hugepfn: Command, tmp_path: Path, extra: tuple[str]) -> None:
    path = tmp_path / "junit.xml"
    done = hugepfn("run", "fork", "--level", "pte", "--kernel", "debian:6.1", extra[0], str(path))
    assert done.returncode == 0
    assert 'tests="1"' in path.read_text()
    assert 'failures="0"' in path.read_text()
