"""QEMU's ends of the channels are closed here, whether QEMU starts or not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import MachineryError
from harness.qemu import launch
from harness.qemu.launch import connect


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
