"""Campaigns on a Dask cluster: real scheduler and workers in this process, and units that are only simulated."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from distributed.comm.core import CommClosedError
from rich.console import Console

from harness.campaign.cluster import dispatch, kernels, remote
from harness.campaign.cluster.executor import ClusterExecutor, connected
from harness.campaign.cluster.identity import Identity
from harness.campaign.event_stream import RunEvent, TestStarted
from harness.campaign.kernels import RunOptions, Started
from harness.campaign.matrix import columns_of, print_table, repeated
from harness.campaign.units.unit import Unit, UnitAnswer, UnitEvent, UnitStarted, Work
from harness.config import MachineConfig
from harness.errors import MachineryError, UsageError
from harness.events import Note
from harness.kernel import Kernel
from harness.selection.selected import Selected
from harness.verdict import Outcome, Run, ScenarioResult
from harness.verdict.table import LOST, TROUBLE, Table
from tests.test_kernel_image import bzimage

FORK = Selected(None, "fork", "pud")
SAME = Identity("0.1.0 (1a2b3c4d)", "7.2.0", "3.11")
Child = Callable[[Unit, Callable[[RunEvent], None], Started], UnitAnswer]


def passed(unit: Unit, file: str = "") -> UnitAnswer:
    """What the child of a unit answers."""
    result = ScenarioResult("fork", "pud", Outcome.PASSED, file=file)
    return UnitAnswer("key", run=Run((result,), {"kernel": {"spec": unit.spec}, "smp": 1}))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    """Two workers, each for one unit at a time."""
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "identity_of", lambda _qemu: SAME)
    monkeypatch.setattr(dispatch, "identity_of", lambda _qemu: SAME)
    monkeypatch.setattr(remote, "run_in_child", lambda unit, _say, _started: passed(unit))
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(bzimage())
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0", protocol="tcp://", host="127.0.0.1"
    ) as running:
        yield running


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster, set_as_default=False) as connection:
        yield connection


class Shown:
    """Keeps what is shown."""

    def __init__(self) -> None:
        self.events: list[tuple[str, UnitEvent]] = []
        self.began = threading.Event()

    def __call__(self, unit: Unit, event: UnitEvent) -> None:
        self.events.append((unit.name, event))

    @property
    def notes(self) -> list[str]:
        """The notes, in words."""
        return [event.text for _, event in self.events if isinstance(event, Note)]


def units(*specs: str, repeat: int = 1, options: RunOptions | None = None) -> list[Unit]:
    return repeated(specs or ("one", "two"), [FORK], options or RunOptions(), repeat)


def answers(client: Client, wanted: list[Unit], shown: Shown | None = None) -> dict[int, Run]:
    executor = ClusterExecutor(client, shown or Shown())
    return {number: answer.as_run(wanted[number].spec) for number, answer in executor.run(wanted)}


def test_every_unit_is_answered_under_the_names_of_the_caller(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Unit] = []

    def child(unit: Unit, say: Callable[[RunEvent], None], _started: Started) -> UnitAnswer:
        ran.append(unit)
        say(TestStarted("test_fork[pud]"))
        return passed(unit)

    monkeypatch.setattr(remote, "run_in_child", child)
    shown, wanted = Shown(), units(repeat=2)
    found = answers(client, wanted, shown)
    assert {number: run.context["kernel"]["spec"] for number, run in found.items()} == dict(
        enumerate(["one", "two", "one", "two"])
    )
    assert [Kernel.parse(unit.spec).resolve().spec for unit in ran] == [unit.spec.rpartition(":")[2] for unit in ran], (
        "messages of a worker name the kernel as the caller does"
    )
    assert {column.spec: len(column.runs) for column in columns_of(wanted, found)} == {"one": 2, "two": 2}
    assert {name for name, event in shown.events if isinstance(event, UnitStarted) and event.worker} == {
        f"{spec} (run {turn} of 2)" for spec in ("one", "two") for turn in (1, 2)
    }
    assert len([event for _, event in shown.events if event == TestStarted("test_fork[pud]")]) == 4


def test_a_kernel_that_cannot_be_had_is_the_trouble_of_its_units_only(client: Client) -> None:
    found = answers(client, units("one", "three"))
    assert TROUBLE not in found[0].context
    assert "three: no such file" in found[1].context[TROUBLE]


def test_what_lies_beside_a_test_of_the_users_own_is_sent_with_it(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    (mine / "data").mkdir(parents=True)
    (mine / "test_mine.py").write_text("# the test")
    (mine / "data" / "numbers").write_text("1 2 3")
    seen: list[str] = []

    def child(unit: Unit, _say: object, _started: Started) -> UnitAnswer:
        (test,) = unit.tests
        assert test.file is not None
        assert mine not in test.file.parents
        seen.extend(path.read_text() for path in (test.file, test.file.parent / "data" / "numbers"))
        return passed(unit, str(test.file))

    monkeypatch.setattr(remote, "run_in_child", child)
    test = Selected(mine / "test_mine.py", "fork")
    (run,) = answers(client, [Unit("one", (test,), RunOptions())]).values()
    assert seen == ["# the test", "1 2 3"]
    assert run.results[0].file == str(mine / "test_mine.py")


def lose(cluster: LocalCluster, worker: str) -> None:
    """Let the scheduler lose a worker, as if its machine had died."""
    scheduler: Any = cluster.scheduler
    cluster.sync(scheduler.remove_worker, address=worker, stimulus_id="test", expected=False)


@pytest.mark.parametrize(("losses", "again"), [(1, True), (2, True), (3, False)])
def test_the_units_of_a_lost_worker_run_again_at_most_twice(
    cluster: LocalCluster, client: Client, monkeypatch: pytest.MonkeyPatch, losses: int, again: bool
) -> None:
    cluster.scale(losses + 1)
    client.wait_for_workers(losses + 1, timeout=60)
    lost: list[str] = []
    let_go = threading.Event()

    def child(unit: Unit, _say: object, _started: Started) -> UnitAnswer:
        if len(lost) < losses:
            let_go.wait(60)
        return passed(unit)

    class Losing(Shown):
        def __call__(self, unit: Unit, event: UnitEvent) -> None:
            super().__call__(unit, event)
            if isinstance(event, UnitStarted) and len(lost) < losses:
                lost.append(event.worker)
                lose(cluster, event.worker)

    monkeypatch.setattr(remote, "run_in_child", child)
    shown, wanted = Losing(), units("one")
    found = answers(client, wanted, shown)
    let_go.set()
    assert found[0].context[LOST] == lost
    if again:
        assert TROUBLE not in found[0].context
    else:
        assert found[0].context[TROUBLE] == f"it was lost with its worker 3 times: {', '.join(lost)}"
    assert shown.notes[: len(lost)] == [
        f"one: its worker {worker} is lost; it runs again elsewhere" for worker in lost[:2]
    ]
    console = Console(record=True, width=200, force_terminal=False)
    with console.capture() as captured:
        print_table(console, Table.of(columns_of(wanted, found)), {})
    assert f"one ran again, because its worker was lost: {', '.join(lost)}\n" in captured.get()


def test_a_worker_that_differs_is_refused_with_one_line(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(SAME, hugepfn="0.1.0 (ffffffff)", qemu="9.1.0")
    identities = [SAME, other]
    monkeypatch.setattr(remote, "identity_of", lambda _qemu: identities.pop())
    shown = Shown()
    found = answers(client, units(repeat=3), shown)
    assert len(found) == 6
    (note,) = shown.notes
    assert note.endswith(
        " is not used: it has hugepfn 0.1.0 (ffffffff) instead of 0.1.0 (1a2b3c4d), QEMU 9.1.0 instead of 7.2.0"
    )
    assert len({event.worker for _, event in shown.events if isinstance(event, UnitStarted)}) == 1
    monkeypatch.setattr(remote, "identity_of", lambda _qemu: other)
    fresh = replace(SAME, python="3.99")
    monkeypatch.setattr(dispatch, "identity_of", lambda _qemu: fresh)
    with pytest.raises(MachineryError, match="none of the 2 workers of the scheduler fits"):
        answers(client, units())


def test_kvm_is_a_resource_that_a_worker_has_to_offer(client: Client) -> None:
    with pytest.raises(MachineryError, match=r'no worker offers KVM; .* --resources "kvm=1"'):
        answers(client, units(options=RunOptions(MachineConfig(accel="kvm"))))


@pytest.mark.parametrize("work", [Work.RUN, Work.TRY])
def test_a_source_that_every_machine_has_is_built_once_by_a_worker(
    client: Client, monkeypatch: pytest.MonkeyPatch, work: Work
) -> None:
    built: list[str] = []

    def child(unit: Unit, _say: object, _started: Started) -> UnitAnswer:
        if unit.work is not Work.BUILD:
            return passed(unit)
        built.append(unit.spec)
        return UnitAnswer(unusable="f.c:1: error")

    monkeypatch.setattr(remote, "run_in_child", child)
    wanted = [replace(unit, work=work) for unit in units("debsrc:6.12", repeat=2)]
    found = [answer for _, answer in ClusterExecutor(client, Shown()).run(wanted)]
    assert built == ["debsrc:6.12"]
    if work is Work.TRY:
        assert [answer.unusable for answer in found] == ["it does not build: f.c:1: error"] * 2
    else:
        assert [answer.as_run("").context[TROUBLE] for answer in found] == ["f.c:1: error"] * 2


@pytest.mark.parametrize("together", [True, False])
def test_a_source_is_not_built_in_two_places(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, together: bool
) -> None:
    """A kernel with a patch is built here, so the one without it is as well, and both from one build folder."""
    patch, here = tmp_path / "a.patch", list[str]()
    patch.write_text("")

    def child(unit: Unit, _say: object, _started: Started) -> UnitAnswer:
        here.append(unit.spec)
        return UnitAnswer(unusable="f.c:1: error")

    def elsewhere(unit: Unit, _say: object, _started: Started) -> UnitAnswer:
        raise AssertionError(unit.spec)

    monkeypatch.setattr(kernels, "run_in_child", child)
    monkeypatch.setattr(remote, "run_in_child", elsewhere)
    patched, plain = units(f"debsrc:6.12+{patch}", "debsrc:6.12")
    executor = ClusterExecutor(client, Shown())
    for wanted in [[plain, patched]] if together else [[patched], [plain]]:
        for _, answer in executor.run(wanted):
            assert answer.as_run("").context[TROUBLE] == "f.c:1: error"
    assert sorted(here) == ["debsrc:6.12", f"debsrc:6.12+{patch}"]


@pytest.mark.parametrize("killed", [False, True])
def test_whoever_leaves_ends_what_runs_and_cancels_what_is_queued(
    client: Client, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """A caller that was killed cancels nothing itself: the scheduler notices that it is gone."""
    children: list[subprocess.Popen[bytes]] = []
    ended = threading.Semaphore(0)

    def child(unit: Unit, _say: object, started: Started) -> UnitAnswer:
        process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
        children.append(process)
        started(process)
        process.wait(60)
        ended.release()
        return passed(unit)

    class Leaving(Shown):
        def __call__(self, unit: Unit, event: UnitEvent) -> None:
            super().__call__(unit, event)
            if len([one for _, one in self.events if isinstance(one, UnitStarted)]) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(remote, "run_in_child", child)
    if killed:
        monkeypatch.setattr(dispatch.Dispatch, "close", lambda _self: None)
    with pytest.raises(KeyboardInterrupt):
        answers(client, units(repeat=5), Leaving())
    client.close()
    assert ended.acquire(timeout=60)
    assert ended.acquire(timeout=60)
    assert [process.returncode for process in children] == [-15, -15], "both ended, and no other unit began"


def test_the_end_of_the_scheduler_is_no_verdict(
    cluster: LocalCluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()

    def child(unit: Unit, _say: object, _started: Started) -> UnitAnswer:
        let_go.wait(60)
        return passed(unit)

    class Closing(Shown):
        def __call__(self, unit: Unit, event: UnitEvent) -> None:
            super().__call__(unit, event)
            if len(self.events) == 1:
                scheduler: Any = cluster.scheduler
                cluster.sync(scheduler.close)

    monkeypatch.setattr(remote, "run_in_child", child)
    with pytest.raises(MachineryError, match="the connection to the Dask scheduler is lost; run again with --resume"):
        answers(client, units(), Closing())
    let_go.set()


def test_a_kernel_that_cannot_be_sent_because_the_scheduler_is_gone(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(*_args: object) -> None:
        raise CommClosedError("in <TCP (closed)>: Stream is closed")

    monkeypatch.setattr(kernels.ClusterKernels, "get", get)
    with pytest.raises(MachineryError, match="the connection to the Dask scheduler is lost; run again with --resume"):
        answers(client, units(), Shown())


def test_an_address_without_a_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.campaign.cluster.executor.CONNECT_S", 1)
    with pytest.raises(MachineryError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 "):
        connected("tcp://127.0.0.1:1", Shown()).__enter__()
    with pytest.raises(UsageError, match="expected an address like tcp://HOST:8786"):
        connected("what://x", Shown()).__enter__()


def test_the_differences_of_machines() -> None:
    assert SAME.differences(SAME) == ""
    assert SAME.differences(replace(SAME, python="3.12")) == "Python 3.12 instead of 3.11"
    assert SAME.resource != replace(SAME, python="3.12").resource
