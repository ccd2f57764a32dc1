"""Tests for the folder of evidence: a failed test writes and names it, and a test that passes leaves nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import xml.etree.ElementTree as ET
from multiprocessing.pool import Pool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import BootError, MachineryError
from harness.host import cache
from harness.host.cache_limits import Limits, add
from harness.plugin import evidence
from tests.test_pytest_plugin import FakeVM, _host, machines, pytest_run, written

__all__ = ["_host", "machines"]  # fixtures
pytest_plugins = ["pytester"]

WIDE = Limits(age_s=1e9, size_bytes=1 << 30)
FAILS = "def test_fork(vm, claim):\n    vm.run()\n    with claim('holds', by='f()'): assert False\n"


def folders() -> list[Path]:
    return sorted(cache.entries(evidence.KIND))


@pytest.fixture
def emulated(machines: list[FakeVM], monkeypatch: pytest.MonkeyPatch) -> list[FakeVM]:
    """Simulated machines, with a QEMU that has printed something."""
    log = SimpleNamespace(console="on the console\n", text="[ 1.0] everything\n")
    spec = SimpleNamespace(accel=SimpleNamespace(value="tcg"))
    binary = SimpleNamespace(package="QEMU 8.2.1 (fake)")
    told: dict[str, Any] = {"argv": ("qemu", "-m", "1G"), "boot_s": 4.5, "exit_status": -9, "stderr": "oh no"}
    monkeypatch.setattr(FakeVM, "emulator", SimpleNamespace(log=log, spec=spec, binary=binary, **told))
    return machines


@pytest.mark.usefixtures("emulated")
def test_a_failure_names_the_folder_everywhere(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILS)
    result = pytest_run(pytester, "--junitxml=junit.xml", "--hugepfn-smp=2")
    (folder,) = folders()
    result.stdout.fnmatch_lines([f"evidence: {folder}"])
    assert written(pytester)["results"][0]["evidence"] == str(folder)
    case = ET.parse(pytester.path / "junit.xml").getroot().find(".//testcase")
    assert case is not None
    assert case.find("properties/property").attrib == {"name": "evidence", "value": str(folder)}  # type: ignore[union-attr]
    assert f"evidence: {folder}" in str(case.find("failure").text)  # type: ignore[union-attr]


def test_the_folder_has_what_explains_the_failure(pytester: pytest.Pytester, emulated: list[FakeVM]) -> None:
    pytester.makepyfile(FAILS)
    pytest_run(pytester, "--hugepfn-smp=2")
    (folder,) = folders()
    about = json.loads((folder / "about.json").read_text())
    assert about["test"].endswith("::test_fork")
    assert about["cause"]["outcome"] == "failed"
    assert about["qemu"] == {
        "argv": ["qemu", "-m", "1G"],
        "version": "QEMU 8.2.1 (fake)",
        "accel": "tcg",
        "boot_s": 4.5,
        "exit_status": -9,
        "stderr": "oh no",
    }
    assert "--smp=2" in about["hugepfn"]["machine"]
    assert about["host"]["at_start"]["load"]
    assert about["host"]["at_start"]["date"] <= about["host"]["at_end"]["date"]
    results = json.loads((folder / "results.json").read_text())
    assert [one["name"] for one in results["results"][0]["claims"]] == ["holds", ""]
    assert results["results"][0]["observations"]
    assert (folder / "console.log").read_text() == "on the console\n"
    assert (folder / "kernel.log").read_text() == "[ 1.0] everything\n"
    assert (folder / "program-1.stdout").read_text() == "1..1\n"
    assert folder.parent.stat().st_mode & 0o077 == 0
    assert len(emulated) == 1


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize(
    "source", ["def test_a(vm): pass", "def test_a(vm): pytest.skip('no')", "def test_a(): assert 0"]
)
def test_a_test_without_a_machine_or_failure_leaves_nothing(pytester: pytest.Pytester, source: str) -> None:
    pytester.makepyfile(f"import pytest\n{source}\n")
    pytest_run(pytester)
    assert folders() == []


@pytest.mark.usefixtures("machines")
def test_the_evidence_can_be_disabled(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILS)
    result = pytest_run(pytester, "--hugepfn-no-evidence")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("evidence: *")
    assert folders() == []


def test_a_kernel_that_does_not_boot_leaves_its_log(
    pytester: pytest.Pytester, emulated: list[FakeVM], monkeypatch: pytest.MonkeyPatch
) -> None:
    def enter(_vm: FakeVM) -> FakeVM:
        raise BootError("it does not boot", exit_status=0, console_tail="")

    monkeypatch.setattr(FakeVM, "start", enter)
    pytester.makepyfile("def test_fork(vm): pass")
    result = pytest_run(pytester)
    (folder,) = folders()
    assert emulated == []
    assert (folder / "console.log").read_text() == "on the console\n"
    result.stdout.fnmatch_lines(["it does not boot", f"evidence: {folder}"])


@pytest.mark.usefixtures("machines")
def test_a_full_disk_changes_no_verdict(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Path:
        raise MachineryError("no space left")

    monkeypatch.setattr(evidence, "add", full)
    pytester.makepyfile(FAILS)
    result = pytest_run(pytester)
    result.assert_outcomes(failed=1)
    result.stderr.fnmatch_lines(["hugepfn: no evidence of fork is kept: no space left"])
    assert written(pytester)["results"][0]["evidence"] == ""


# --- entries with limits --------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(name: str, limits: Limits, *, days: float = 0, size_kib: int = 64) -> Path:
    entry = add("failures", name, lambda folder: _fill(folder, size_kib), limits)
    os.utime(entry, (time.time() - days * 86400,) * 2)
    return entry


def _fill(folder: Path, size_kib: int) -> None:
    (folder / "data").write_bytes(os.urandom(size_kib << 10))


@pytest.mark.usefixtures("root")
def test_old_entries_are_removed_but_not_the_new_one() -> None:
    limits = Limits(age_s=86400, size_bytes=1 << 30)
    old, young = put("a", limits, days=2), put("b", limits, days=0.5)
    new = put("c", limits)
    assert folders() == [young, new]
    assert not old.exists()
    assert put("d", Limits(-1, 0)).is_dir()
    assert [one.name for one in folders()] == ["d"]


@pytest.mark.usefixtures("root")
def test_the_oldest_entries_are_removed_first() -> None:
    limits = Limits(age_s=1e9, size_bytes=300 << 10)
    put("a", limits, days=3, size_kib=100)
    put("b", limits, days=2, size_kib=100)
    put("c", limits, days=1, size_kib=100)
    put("d", limits, size_kib=100)
    assert [one.name for one in folders()] == ["c", "d"]


def test_an_entry_that_cannot_be_written_leaves_nothing(root: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        add("failures", "a", lambda _folder: print(1 / 0), WIDE)
    assert list((root / "failures").iterdir()) == []


def _put_same(_number: int) -> str:
    return put("same", WIDE).name


def test_concurrent_entries_do_not_collide(root: Path) -> None:
    with _pool() as pool:
        names = pool.map(_put_same, range(20))
    assert len(set(names)) == 20
    assert len(folders()) == 20
    assert [one.name for one in (root / "failures").glob(".*")] == []


def _pool() -> Pool:
    return multiprocessing.get_context("fork").Pool(4)
