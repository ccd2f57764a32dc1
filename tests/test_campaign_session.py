"""Tests for ending a pytest session at any time, and for the machine that a rerun asks for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from harness.campaign import session as module
from harness.campaign.reporter import RunReporter
from harness.campaign.session import Stopping, distributed, rerun_session
from harness.errors import ExitCode
from harness.qemu.spec import Device, MachineSpec, Root
from harness.selection.selected import Selected


def test_a_session_ends_after_the_current_test() -> None:
    session, stopping = SimpleNamespace(shouldstop=False), Stopping()
    stopping.begin(session)
    assert not session.shouldstop
    stopping.stop()
    assert session.shouldstop == "its caller has gone"


def test_a_session_ended_before_its_start_runs_no_test() -> None:
    session, stopping = SimpleNamespace(shouldstop=False), Stopping()
    stopping.stop()
    stopping.begin(session)
    assert session.shouldstop == "its caller has gone"


@pytest.mark.parametrize(
    ("device", "root", "guest"),
    [
        (Device.TESTDEV, Root.INITRAMFS, "initramfs"),
        (Device.SHMEM, Root.HOST_9P, "host"),
        (Device.NVME, Root.HOST_VIRTIOFS, "host"),
    ],
)
def test_a_rerun_asks_for_the_machine_that_it_has(
    monkeypatch: pytest.MonkeyPatch, device: Device, root: Root, guest: str
) -> None:
    """Otherwise every scenario would be skipped, because a test requests the configured machine."""
    said: list[str] = []

    def run(_pytest: object, _reporter: object, args: list[str], *_rest: object, **_words: object) -> ExitCode:
        said.extend(args)
        return ExitCode.OK

    monkeypatch.setattr(module, "_main", run)
    spec = MachineSpec(Path("bzImage"), Path("initramfs"), device=device, root=root)
    machine = cast(Any, SimpleNamespace(spec=spec, kernel=SimpleNamespace(spec="debian:6.12")))
    assert (
        rerun_session(pytest, RunReporter(Console()), [Selected(None, "fork")], [], machine, Stopping()) is ExitCode.OK
    )
    assert {f"--hugepfn-device={device.value}", f"--hugepfn-guest={guest}", "--hugepfn-kernel=debian:6.12"} <= set(said)


@pytest.mark.parametrize(
    ("workers", "files", "units"),
    [(1, 38, None), (2, 38, "loadfile"), (4, 38, "loadfile"), (5, 38, "load"), (2, 2, "loadfile"), (2, 1, "load")],
)
def test_a_worker_gets_whole_files_unless_there_are_many_workers_or_few_files(
    workers: int, files: int, units: str | None
) -> None:
    arguments = distributed(workers, files)
    assert dict(zip(arguments[::2], arguments[1::2], strict=True)).get("--dist") == units
