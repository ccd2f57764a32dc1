"""Tests for ``hugepfn matrix`` and ``hugepfn compare`` on stock kernels."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

from harness.verdict import Run
from tests import schemas

from .conftest import Command


def test_two_kernels_side_by_side(hugepfn: Command, tmp_path: Path) -> None:
    files = [tmp_path / "matrix.json", tmp_path / "matrix.html"]
    done = hugepfn(
        *("matrix", "-k", "debian:6.1", "-k", "debian:6.12", "fork"), "--json", str(files[0]), "--html", str(files[1])
    )
    assert done.returncode == 0, done.stdout + done.stderr
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == ["6.1", "6.12"]
    assert [row.split() for row in rows[:3]] == [
        ["fork", "pte", "pass", "pass"],
        ["fork", "pmd", "skip", "1", "pass"],
        ["fork", "pud", "skip", "2", "pass"],
    ]
    assert "  1  no huge pfnmap in this kernel: CONFIG_ARCH_SUPPORTS_PMD_PFNMAP is not set" in done.stdout
    assert done.stdout.splitlines()[-1] == "2 kernels, 3 cases: 4 pass, 2 skip"
    data = json.loads(files[0].read_text())
    assert schemas.check(data) == "hugepfn-matrix"
    runs = {kernel["spec"]: Run.from_json(kernel["runs"][0]) for kernel in data["kernels"]}
    assert str(runs["debian:6.12"].context["kernel"]["release"]).startswith("6.12.")
    results = {result.level: result for result in runs["debian:6.12"].results}
    assert any("hugepfn: checkpoint forked" in line for line in results["pud"].log)
    assert "hugepfn: checkpoint" in files[1].read_text()


def test_a_kernel_that_does_not_boot_is_a_column_of_errors(hugepfn: Command, tmp_path: Path) -> None:
    """Both kernels are given an init that does not exist."""
    path = tmp_path / "matrix.json"
    done = hugepfn(
        *("matrix", "-k", "debian:6.1", "-k", "debian:6.12", "fork", "calibrate_anon", "calibrate_shmem"),
        *("--level", "pte", "--append", "rdinit=/nothing panic=-1", "--json", str(path)),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert [line.split()[2::2] for line in done.stdout.splitlines()[1:4]] == [["FAIL", "FAIL"]] * 3
    for kernel in json.loads(path.read_text())["kernels"]:
        results = kernel["runs"][0]["results"]
        assert len(results) == 3
        for result in results:
            assert kernel["spec"] in result["reason"]
            assert "Kernel panic" in "\n".join(result["log"])


def test_one_kernel_against_itself_is_the_same(hugepfn: Command) -> None:
    done = hugepfn("compare", "debian:6.12", "debian:6.12", "--smp", "2", "--confirm", "0", "fork", "calibrate_anon")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "the same in 4 cases"


def test_the_differences_between_6_1_and_6_12(hugepfn: Command, tmp_path: Path) -> None:
    files = [tmp_path / "compare.json", tmp_path / "compare.html"]
    done = hugepfn(
        *("compare", "debian:6.1", "debian:6.12", "calibrate_anon", "fork", "--confirm", "1"),
        *("--json", str(files[0]), "--html", str(files[1])),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    data = json.loads(files[0].read_text())
    assert schemas.check(data) == "hugepfn-compare"
    cases = {(case["scenario"], case["level"]): case["differences"] for case in data["cases"]}
    for level in ("pmd", "pud"):
        (only,) = cases["fork", level]
        assert (only["what"], only["after"]) == ("outcome", "passed")
        assert only["before"].startswith("skipped: no huge pfnmap in this kernel")
    assert ("calibrate_anon", "pte") in cases, done.stdout
    seen = [one["entry"] for one in cases["calibrate_anon", "pte"] if one["what"] == "entry"]
    assert {(tuple(one["appeared"]), tuple(one["vanished"])) for one in seen} == {(("SAVED_DIRTY",), ("D",))}
    assert "filled" not in {one["checkpoint"] for one in seen}, "before clear_refs both have W=1 D=1"
    assert "  parent at cleaned, memory+0x0 x15: pte " in done.stdout
    assert "calibrate_anon pte" in files[1].read_text()


def test_ctrl_c_ends_the_child_and_leaves_nothing(hugepfn: Command) -> None:
    argv = hugepfn.argv("matrix", "-k", "debian:6.1", "-k", "debian:6.12", "fork", "--level", "pte")
    with subprocess.Popen(
        argv, env=hugepfn.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:  # the first kernel is done, and the child of the second one runs
            if line.startswith("hugepfn: debian:6.1:"):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "hugepfn: interrupted"
    assert out.splitlines()[1].split() == ["fork", "pte", "pass", "?", "1"], "the results before Ctrl-C must be shown"
