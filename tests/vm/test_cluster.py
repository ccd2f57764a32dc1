"""Campaigns on two Dask workers with caches of their own, as two machines would have."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from .conftest import Command, own_qemus, wait_for
from .test_own_tests import CONFTEST, PROGRAM, TEST

DASK = Path(sys.executable).with_name("dask")
KERNELS = ("-k", "debian:6.1", "-k", "debian:6.12")


class Cluster:
    """A scheduler and two workers, as their users start them."""

    def __init__(self, hugepfn: Command, folder: Path) -> None:
        self.folder, self._hugepfn = folder, hugepfn
        self._logs = (folder / "dask.log").open("w")
        self.scheduler = self._start("scheduler", "--host=127.0.0.1", "--port=0", f"--scheduler-file={self.file}")
        self.workers = [self.start_worker(name) for name in ("one", "two")]

    @property
    def file(self) -> Path:
        """Where Dask writes the scheduler's address."""
        return self.folder / "scheduler.json"

    def start_worker(self, name: str, cache_dir: Path | None = None, *more: str) -> subprocess.Popen[bytes]:
        """Start a worker for one unit at a time."""
        own = {"HUGEPFN_CACHE_DIR": str(cache_dir or self.folder / name)}
        local = self.folder / f"{name}.local"
        words = (f"--scheduler-file={self.file}", "--host=127.0.0.1", "--nthreads=1", "--no-nanny", f"--name={name}")
        return self._start("worker", *words, f"--local-directory={local}", *more, **own)

    def _start(self, *words: str, **extra: str) -> subprocess.Popen[bytes]:
        argv = [str(DASK), *words, "--no-dashboard"]
        return subprocess.Popen(argv, env=self._hugepfn.environment(**extra), stdout=self._logs, stderr=self._logs)

    def ready(self, count: int) -> str:
        """Wait for workers, and return the scheduler's address."""
        wait_for(lambda: self.file.is_file() and self.file.stat().st_size > 0, "the scheduler")
        with Client(scheduler_file=str(self.file), set_as_default=False) as client:
            client.wait_for_workers(count, timeout=120)
            return str(client.scheduler_info(n_workers=0)["address"])

    def close(self) -> None:
        """End everything, the scheduler last: workers sign off there."""
        for processes in (self.workers, [self.scheduler]):
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(60)
        self._logs.close()


def children_of(pid: int) -> list[str]:
    """The processes that the threads of a process have started."""
    return [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


@pytest.fixture
def cluster(hugepfn: Command, tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    running = Cluster(hugepfn, folder)
    try:
        yield running
    finally:
        running.close()


def table_of(stdout: str) -> list[str]:
    return [line for line in stdout.splitlines() if "its worker was lost" not in line]


def test_a_worker_is_killed_and_the_table_is_the_same(hugepfn: Command, cluster: Cluster) -> None:
    words = ("matrix", *KERNELS, "fork:pmd")
    expected = hugepfn(*words)
    assert expected.returncode == 0, expected.stdout + expected.stderr
    argv = hugepfn.argv(*words, "--scheduler", cluster.ready(2))
    with subprocess.Popen(
        argv, env=hugepfn.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert any(line.startswith("hugepfn: booting ") for line in process.stderr)  # in a worker's own cache
        victim = next(worker for worker in cluster.workers if children_of(worker.pid))
        victim.kill()
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert table_of(out) == expected.stdout.splitlines()
    assert len(out.splitlines()) == len(expected.stdout.splitlines()) + 1, "the report says that a worker was lost"
    assert "ran again, because its worker was lost: tcp://127.0.0.1:" in out
    cluster.workers.append(cluster.start_worker("three", cluster.folder / "one"))
    again = hugepfn(*words, "--scheduler", cluster.ready(2))
    assert again.stdout == expected.stdout, again.stderr


def test_ctrl_c_ends_the_machines_on_the_workers(hugepfn: Command, cluster: Cluster) -> None:
    argv = hugepfn.argv("matrix", *KERNELS, "fork:pte", "--scheduler", cluster.ready(2))
    with subprocess.Popen(
        argv, env=hugepfn.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert any(line.startswith("hugepfn: booting ") for line in process.stderr)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "hugepfn: interrupted"
    wait_for(lambda: not any(children_of(worker.pid) for worker in cluster.workers), "the end of the units", 60)
    assert own_qemus(hugepfn.marker) == []
    assert [worker.poll() for worker in cluster.workers] == [None, None], "the workers go on"


def test_the_caller_is_killed_and_goes_on_where_it_was(hugepfn: Command, cluster: Cluster) -> None:
    words: tuple[str, ...] = ("matrix", *KERNELS, "fork:pmd", "--repeat=2")
    expected = hugepfn(*words)
    assert expected.returncode == 0, expected.stdout + expected.stderr
    done = hugepfn(*words, "--resume")
    assert done.stdout == expected.stdout, done.stderr
    (said,) = re.findall(r"4 units are done already; journal: (\S+)", done.stderr)
    words, journal = (*words, "--scheduler", cluster.ready(2)), Path(said)
    with subprocess.Popen(
        hugepfn.argv(*words), env=hugepfn.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert any(" of 2): 1 passed" in line for line in process.stderr)
        process.kill()
    wait_for(lambda: not any(children_of(worker.pid) for worker in cluster.workers), "the end of the units", 60)
    assert own_qemus(hugepfn.marker) == []
    before = journal.read_text().splitlines()
    assert 1 <= len(before) - 1 < 4
    resumed = hugepfn(*words, "--resume")
    assert resumed.stdout == expected.stdout, resumed.stderr
    assert f"{len(before) - 1} units are done already; journal: {journal}" in resumed.stderr
    after = journal.read_text().splitlines()
    assert after[: len(before)] == before
    assert sorted(json.loads(line)["unit"] for line in after[1:]) == [0, 1, 2, 3], "none ran twice"


def test_a_test_of_ones_own_has_what_lies_beside_it(hugepfn: Command, cluster: Cluster, tmp_path: Path) -> None:
    mine, results = tmp_path / "mine", tmp_path / "results.json"
    mine.mkdir()
    (mine / "test_mine.py").write_text(TEST.format(helper="helper_mine", dirty=False))
    (mine / "helper_mine.py").write_text('PROGRAM = "mine"\n')
    (mine / "conftest.py").write_text(CONFTEST)
    (mine / "mine.c").write_text(PROGRAM)
    (mine / "beside.h").write_text("#define VALUE 1\n")
    words = ("matrix", "-k", "debian:6.12", f"{mine / 'test_mine.py'}::test_mine:pud", "--json", str(results))
    expected = hugepfn(*words)
    assert expected.returncode == 1, expected.stdout + expected.stderr
    done = hugepfn(*words, "--scheduler", cluster.ready(2))
    assert (done.returncode, done.stdout) == (1, expected.stdout), done.stderr
    (result,) = json.loads(results.read_text())["kernels"][0]["runs"][0]["results"]
    assert result["file"] == str(mine / "test_mine.py")
    assert result["evidence"].startswith(f"{socket.gethostname()}:{cluster.folder}"), "the evidence is on the worker"


@pytest.mark.long
def test_a_kernel_that_one_worker_built_runs_on_the_other(hugepfn: Command, cluster: Cluster) -> None:
    """All caches are empty, and only the builder may build."""
    cluster.workers.append(cluster.start_worker("builder", None, "--resources=build=1"))
    address = cluster.ready(3)
    with Client(address, set_as_default=False) as client:
        client.retire_workers(names=["two"])
        done = hugepfn("matrix", "-k", "debsrc:6.12", "fork:pmd", "--repeat=4", "--scheduler", address, timeout_s=3600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == "1 kernels, 1 cases, each 4 times: 1 pass"
    assert list((cluster.folder / "builder" / "built").glob("*/build.json")), "the builder has built it"
    assert not (cluster.folder / "one" / "built").exists()
    assert list((cluster.folder / "one" / "shipped").iterdir()), "the other one was sent what it ran"
