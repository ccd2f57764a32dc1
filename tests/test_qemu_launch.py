"""QEMU's ends of the channels are closed here, whether QEMU starts or not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import MachineryError
from harness.qemu import launch
from harness.qemu.binary import QemuBinary
from harness.qemu.launch import connect
from harness.qemu.process import Qemu
from harness.qemu.spec import MachineSpec


@pytest.mark.parametrize("fails", ["sandbox_args", "root_args"])
def test_a_qemu_that_cannot_be_started_leaves_no_end_open(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def fail(*_: object) -> None:
        raise MachineryError(fails)

    monkeypatch.setattr(launch, "root_args", lambda *_: ())
    monkeypatch.setattr(launch, fails, fail)
    ours, theirs = connect()
    spec, ram = SimpleNamespace(root=None), SimpleNamespace(fd=0, share=False)
    with pytest.raises(MachineryError, match=fails):
        asyncio.run(launch.launch(cast(Any, spec), cast(Any, None), cast(Any, ram), theirs, None, incoming=False))
    assert [end.fileno() for end in theirs.values()] == [-1] * len(theirs)
    for end in ours.values():
        end.close()


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("kill -KILL $$", "while QEMU started: QEMU was killed by SIGKILL: it printed nothing"),
        ("echo no such CPU >&2; exit 1", r"QEMU does not start \(status 1\): no such CPU"),
    ],
)
def test_a_qemu_that_ends_before_its_greeting_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, words: str
) -> None:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    binary = QemuBinary(str(program), "7.2.0", "QEMU 7.2.0")

    async def start() -> None:
        with (tmp_path / "ram").open("wb") as file:
            ram = SimpleNamespace(fd=file.fileno(), share=False, close=lambda: None)
            qemu = Qemu(MachineSpec(tmp_path, tmp_path), binary, cast(Any, ram))
            try:
                await qemu.start()
            finally:
                await qemu.quit()

    with pytest.raises(MachineryError, match=f"^{words}"):
        asyncio.run(start())
