"""A machine that was saved goes on only once QEMU allows it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

import pytest

from harness.qemu import migration
from harness.qemu.process import Qemu


class Saving:
    """A QEMU whose migration thread has said "completed" and still holds the run state."""

    def __init__(self) -> None:
        self.states = ["finish-migrate", "finish-migrate", "postmigrate"]

    async def run_state(self) -> str:
        return self.states.pop(0)

    async def of_qemu(self, awaitable: Awaitable[Any], _what: str, _timeout_s: float) -> Any:
        return await awaitable


def test_a_saved_machine_is_handed_back_when_it_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def migrate(*_args: object, **_options: object) -> None:
        pass

    monkeypatch.setattr(migration, "_migrate", migrate)
    qemu = Saving()
    asyncio.run(migration.save_state(cast(Qemu, qemu), tmp_path / "state", with_ram=True))
    assert qemu.states == []
