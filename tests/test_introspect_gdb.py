"""Tests for the command line that connects gdb to QEMU's stub, for folders with any name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import UsageError
from harness.host.private_folder import PrivateFolder
from harness.introspect.gdb import GdbStub, start_stub
from harness.introspect.processes import Processes


def test_gdb_gets_a_path_and_no_port() -> None:
    stub = GdbStub(Path("/run/a b/one/gdb"), Path('/c/a "b"/vmlinux'), 0x1000, 0x20, "")
    assert stub.argv[-1] == "target remote /run/a b/one/gdb"
    assert r'symbol-file -o 0x20 "/c/a \"b\"/vmlinux"' in stub.argv


def test_a_path_that_gdb_takes_for_a_host_is_refused(tmp_path: Path) -> None:
    sockets = PrivateFolder()
    sockets.use(tmp_path / "a:1")
    vm: Any = SimpleNamespace(sockets=sockets)
    with pytest.raises(UsageError, match=r"gdb would take .*a:1/gdb for a host and a port"):
        start_stub(vm, Processes(vm))


def test_a_temporary_folder_is_private_and_goes_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sockets = PrivateFolder()
    folder = sockets.socket("gdb").parent
    assert folder == sockets.socket("ssh").parent
    assert folder.stat().st_mode & 0o777 == 0o700
    sockets.close()
    assert not folder.exists()
    (tmp_path / ("x" * 100)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 100)))
    with pytest.raises(UsageError, match="too long for the path of a socket; set TMPDIR"):
        sockets.socket("gdb")
    sockets.close()
