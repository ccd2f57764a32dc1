"""Tests for the guest's initramfs: a busybox that is not static brings its libraries along."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from harness.guest.initramfs import _archive
from harness.guest.libraries import libraries


def names(archive: bytes) -> set[str]:
    """The paths in a newc archive: each header of 110 hexadecimal bytes is followed by its name."""
    return {match[1].decode() for match in re.finditer(rb"070701[0-9A-Fa-f]{104}([^\0]+)\0", archive)}


def test_a_dynamic_busybox_brings_its_libraries(tmp_path: Path) -> None:
    """Debian's package busybox is dynamic; a guest without libraries could not start its shell."""
    program = shutil.which("true")
    assert program is not None
    if not libraries(Path(program)):
        pytest.skip("this host's programs are static")
    busybox = tmp_path / "busybox"
    shutil.copy(program, busybox)
    found = names(_archive(b"\x7fELF", [], busybox))
    assert {"init", "bin/busybox", "bin/sh"} <= found
    for library in libraries(busybox):
        assert str(library).lstrip("/") in found
        assert str(library.parent).lstrip("/") in found
