"""Runs one cell of ``make compat``: QEMU 11 and a cache on btrfs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from .conftest import ROOT


@pytest.mark.long
def test_qemu_11_with_the_cache_on_btrfs() -> None:
    if os.geteuid() != 0 or shutil.which("mkfs.btrfs") is None:
        pytest.skip("needs root and mkfs.btrfs (Debian: btrfs-progs) to mount a btrfs of its own")
    python = ".".join(map(str, sys.version_info[:2]))
    argv = [sys.executable, str(ROOT / "tests/compat/compat.py"), "--qemu", "debian:11.1", "--filesystem", "btrfs"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*argv, "--python", python], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| btrfs | {python} | ok | ok | ok | ok | ok |" in done.stdout
