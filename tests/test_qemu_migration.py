"""Tests for saving a machine: it continues only when QEMU allows it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

import pytest
from qemu.qmp.message import Message
from qemu.qmp.models import ErrorResponse
from qemu.qmp.qmp_client import ExecuteError

from harness.errors import QemuRefused
from harness.qemu import migration
from harness.qemu.process import Qemu


class Saving:
    """A QEMU whose migration thread has reported "completed" but still holds the run state."""

    def __init__(self) -> None:
        self.states = ["finish-migrate", "finish-migrate", "postmigrate"]

    async def run_state(self) -> str:
        return self.states.pop(0)

    async def of_qemu(self, awaitable: Awaitable[Any], _what: str, _timeout_s: float) -> Any:
        return await awaitable


def test_a_saved_machine_is_returned_when_it_can_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def migrate(*_args: object, **_options: object) -> None:
        pass

    monkeypatch.setattr(migration, "_migrate", migrate)
    qemu = Saving()
    asyncio.run(migration.save_state(cast(Qemu, qemu), tmp_path / "state", with_ram=True))
    assert qemu.states == []


class Refusing:
    """QMP of a QEMU before 8.2, which does not support file: URIs."""

    async def execute(self, command: str, _arguments: object) -> object:
        error = {"error": {"class": "GenericError", "desc": "unknown migration protocol"}}
        raise ExecuteError(ErrorResponse(error), Message({"execute": command}), Message(error))


class Old(Qemu):
    def __init__(self) -> None:
        self.qmp = cast(Any, Refusing())

    async def of_qemu(self, awaitable: Awaitable[Any], _what: str, _timeout_s: object = None) -> Any:
        return await awaitable


def test_a_refused_command_is_not_logged_as_failed(caplog: pytest.LogCaptureFixture) -> None:
    """migration.py expects the refusal, and "failed" in the log would look like an error."""
    caplog.set_level(logging.DEBUG, "hugepfn")
    with pytest.raises(QemuRefused, match="QEMU refuses migrate: unknown migration protocol"):
        asyncio.run(Old().execute("migrate", {"uri": "file:/dev/fdset/0"}))
    (record,) = caplog.records
    assert re.search(r"QMP migrate .*: took \d+\.\d ms$", record.getMessage())
