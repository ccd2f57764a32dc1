"""Checks that a complaint of a real kernel fails a test unless it expects it, and that an expected one must occur."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import Command

#: Linux 6.1 warns when vfio-pci's mapping is moved (known bug HP-011). These tests have no list of known bugs.
TESTS = """
import pytest
from vm import KernelError


def warn(vm):
    with vm.run("mremap", "--level=pte", "--case=leaf"):
        pass


def test_unexpected(vm):
    warn(vm)


@pytest.mark.expect_complaint("WARNING in untrack_pfn")
def test_expected(vm):
    warn(vm)
    warn(vm)


@pytest.mark.expect_complaint("WARNING in untrack_pfn", "WARNING in another")
def test_missing(vm):
    warn(vm)


def test_command(vm):
    vm.exec(["sh", "-c", "echo f > /proc/sysrq-trigger"])


@pytest.mark.expect_complaint("out of memory")
def test_command_expected(vm):
    vm.exec(["sh", "-c", "echo f > /proc/sysrq-trigger"])


@pytest.mark.expect_complaint("kernel panic: sysrq triggered crash")
def test_dies(vm):
    with pytest.raises(KernelError):
        vm.exec(["sh", "-c", "echo c > /proc/sysrq-trigger"])
"""
KERNEL = "debian:6.1"


def test_a_complaint_fails_the_test_that_does_not_expect_it(hugepfn: Command, tmp_path: Path) -> None:
    (tmp_path / "test_warns.py").write_text(TESTS)
    done = hugepfn("run", str(tmp_path / "test_warns.py"), "--kernel", KERNEL, "--json", str(tmp_path / "run.json"))
    assert done.returncode == 1, done.stdout + done.stderr
    results = {one["scenario"]: one for one in json.loads((tmp_path / "run.json").read_text())["results"]}
    assert {name: one["outcome"] for name, one in results.items()} == {
        "unexpected": "failed",
        "expected": "passed",
        "missing": "failed",
        "command": "failed",
        "command_expected": "passed",
        "dies": "passed",
    }
    assert [one["title"] for seen in results["unexpected"]["kernel"] for one in seen["complaints"]] == [
        "WARNING in untrack_pfn"
    ]
    assert results["unexpected"]["kernel"][0]["taint"] == 512
    assert [(seen["complaints"], seen["taint"]) for seen in results["expected"]["kernel"]] == [([], 0), ([], 0)]
    assert [(claim["name"], claim["outcome"]) for claim in results["missing"]["claims"]] == [
        ("the kernel complains: WARNING in untrack_pfn", "passed"),
        ("the kernel complains: WARNING in another", "failed"),
        ("", "passed"),
    ]
