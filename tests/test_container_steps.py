"""Checks that the container's steps cannot write to this machine's files."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import container_steps


def test_packages_inside_cannot_write_to_this_machines_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ca-certificates inside once rewrote this machine's own bundle, without this machine's authorities."""
    ran: list[list[str]] = []
    certificates = tmp_path / "authorities"
    certificates.mkdir()
    (certificates / "own.crt").write_text("ours")
    monkeypatch.setattr(container_steps, "_NETWORK", (str(certificates),))

    def run(argv: list[object], **_: Any) -> None:
        ran.append([str(word) for word in argv])

    monkeypatch.setattr(subprocess, "run", run)
    root = tmp_path / "root"
    (root / "dev").mkdir(parents=True)
    container_steps.prepare(root)
    inside = root / str(certificates).lstrip("/") / "own.crt"
    inside.write_text("another")
    assert (certificates / "own.crt").read_text() == "ours"
    bound = {words[3] for words in ran if "--bind" in words}
    readonly = {words[-1] for words in ran if "remount,bind,ro" in words}
    assert {place for place in bound if not place.startswith(str(root / "dev"))} == readonly
