"""Checks that clones show what a booted machine shows, are isolated, and leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from harness.events import Sparing
from harness.host import cache
from harness.kernel import Kernel, KernelImage
from harness.machine import template as templates
from harness.machine.machine import Origin
from harness.machine.vm import VM
from harness.pagetable import comparable
from harness.selfcheck.checks import seen

from .conftest import ROOT, Command


@pytest.fixture(scope="module")
def image() -> KernelImage:
    return Kernel.debian("6.12").resolve()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A separate cache, so that no other test uses its templates. It is removed after the test."""
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path))
    yield tmp_path
    shutil.rmtree(tmp_path / templates.KIND, ignore_errors=True)


@pytest.mark.parametrize("smp", [1, 4])
def test_a_clone_shows_what_a_boot_shows(image: KernelImage, smp: int) -> None:
    for program, args in (("fork", "--level=pud"), ("fork", "--level=pte"), ("calibrate", "--memory=anon")):
        with VM(image, smp=smp) as vm:
            assert vm.origin is Origin.CLONE
            cloned = seen(vm, program, args)
            assert vm.taint == 0
        with VM(image, smp=smp, clone=False) as vm:
            assert vm.origin is Origin.BOOT
            assert comparable(seen(vm, program, args)) == comparable(cloned)


def test_nothing_is_left_from_the_previous_test(image: KernelImage) -> None:
    for _ in range(2):
        with VM(image) as vm:
            with pytest.raises(Exception, match=r"No such file"):
                vm.get("/tmp/trace")
            vm.on_loop(vm.agent.put("/tmp/trace", b"x"))
            assert vm.get("/tmp/trace") == b"x"


def test_concurrent_clones_are_isolated(image: KernelImage) -> None:
    with VM(image) as one, VM(image) as two:
        one.on_loop(one.agent.put("/tmp/mine", b"one"))
        two.on_loop(two.agent.put("/tmp/mine", b"two"))
        assert seen(one, "fork", "--level=pud") == seen(two, "fork", "--level=pud")
        assert (one.get("/tmp/mine"), two.get("/tmp/mine")) == (b"one", b"two")


def test_a_changed_template_is_made_again(own_cache: Path) -> None:
    said: list[str] = []
    image = Kernel.debian("6.1").resolve()
    with VM(image, say=Sparing(said.append)):
        pass
    (folder,) = cache.entries(templates.KIND)
    with (folder / "state").open("r+b") as state:
        state.seek(1000)
        byte = state.read(1)
        state.seek(1000)
        state.write(bytes([byte[0] ^ 1]))
    templates._verified.clear()
    with VM(image, say=Sparing(said.append)) as vm:
        assert vm.get("/proc/sys/kernel/tainted") == b"0\n"
    assert any("has changed since it was saved; building it again" in line for line in said)
    assert own_cache.exists()


def test_twenty_clones_leave_nothing(image: KernelImage) -> None:
    def held() -> tuple[int, int, int]:
        # asyncio of Python 3.11 waits for each child in a thread, which ends when the child is reaped.
        for thread in threading.enumerate():
            if thread.name.startswith("asyncio-waitpid"):
                thread.join(10)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return sum(1 for _ in Path("/proc/self/fd").iterdir()), len(children), threading.active_count()

    with VM(image) as vm:
        vm.get("/proc/uptime")
    before = held()
    for _ in range(20):
        with VM(image) as vm:
            vm.get("/proc/uptime")
    assert held() == before


def test_eight_workers_share_a_template(hugepfn: Command, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    scenarios = (
        "fork",
        "fork_many",
        "calibrate_anon",
        "calibrate_thp",
        "calibrate_shmem",
        "first_read",
        "munmap_middle",
    )
    done = hugepfn("run", *scenarios, "--kernel", "debian:6.12", "--workers", "8", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(file.read_text())
    assert data["origin"] == "clone"
    assert len(data["results"]) == 15
    assert {result["outcome"] for result in data["results"]} == {"passed"}


#: An assertion ends the test. A broken claim does not, so later claims are checked as well.
BROKEN = "assert 0"
BROKEN_CLAIM = """with claim('first'):
            assert 0
        guest.until('child-written')
        with claim('second'):
            assert 0"""


@pytest.mark.parametrize(("broken", "told"), [(BROKEN, 1), (BROKEN_CLAIM, 2)])
def test_a_kept_machine_still_has_its_processes(hugepfn: Command, tmp_path: Path, broken: str, told: int) -> None:
    (tmp_path / "test_kept.py").write_text(
        "def test_kept(vm, claim):\n    with vm.run('fork', '--level=pmd') as guest:\n"
        f"        guest.until('forked')\n        {broken}\n"
    )
    pytest_argv = [sys.executable, "-m", "pytest", "-q", str(tmp_path / "test_kept.py"), "--rootdir", str(tmp_path)]
    plugin = ["-p", "harness.pytest_plugin", "--hugepfn-kernel=debian:6.12", "--hugepfn-keep-vm"]
    done = subprocess.run(
        [*pytest_argv, *plugin], env=hugepfn.environment(), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "hugepfn shell --kept kept" in done.stderr
    assert done.stdout.count("assert 0\n") >= told
    assert hugepfn.left_behind() == []
    shell = pexpect.spawn(
        sys.executable, [str(ROOT / "vm.py"), "shell", "--kept", "kept"], encoding="utf-8", timeout=60
    )
    argv = [sys.executable, str(ROOT / "vm.py"), "exec", "-s", "kept"]
    shell.expect("guest# ")
    shell.sendline("ps | grep -c '[f]ork --level=pmd'")
    shell.expect(r"\r\n2\r\n")
    shell.sendline("dmesg | grep -c child-written")
    shell.expect(r"\r\n0\r\n")  # kept at the first failure
    # New jobs are not confused with the jobs from before the save.
    done = subprocess.run([*argv, "cat"], input="now", capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "now"
    shell.sendline("ps | grep -c '[f]ork --level=pmd'")
    shell.expect(r"\r\n2\r\n")
    shell.send("\x1d")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 0
