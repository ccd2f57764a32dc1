"""The sandbox is the strictest that the QEMU accepts, whatever its version says; without one it runs as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.qemu import sandbox
from harness.qemu.binary import QemuBinary
from harness.qemu.sandbox import _WANTED, sandbox_args

#: QEMUs as shell scripts: what they do with the argument of -sandbox.
ALL = "exit 0"
ON_ALONE = 'case "$*" in *-sandbox\\ on,*) echo "invalid option" >&2; exit 1;; esac'
NONE = 'case "$*" in *-sandbox*) echo "seccomp is not compiled into this build" >&2; exit 1;; esac'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    sandbox_args.cache_clear()
    yield tmp_path / "cache"
    sandbox_args.cache_clear()


@pytest.fixture
def qemu(tmp_path: Path) -> Callable[[str], QemuBinary]:
    def write(body: str) -> QemuBinary:
        path = tmp_path / "qemu"
        path.write_text(f"#!/bin/sh\necho tried >> {tmp_path}/tried\n{body}\n")
        path.chmod(0o755)
        return QemuBinary(str(path), "7.2.0", "QEMU 7.2.0")

    return write


@pytest.mark.parametrize(
    ("body", "expected"),
    [(ALL, ("-sandbox", _WANTED[0])), (ON_ALONE, ("-sandbox", "on")), (NONE, ()), ("exit 1", ())],
)
def test_the_strictest_that_it_accepts(qemu: Callable[[str], QemuBinary], body: str, expected: tuple[str, ...]) -> None:
    assert sandbox_args(qemu(body)) == expected


def test_the_answer_is_kept_for_the_next_process_until_qemu_changes(
    qemu: Callable[[str], QemuBinary], tmp_path: Path
) -> None:
    def tried() -> int:
        return len((tmp_path / "tried").read_text().splitlines())

    sandbox_args(qemu(ALL))
    assert tried() == 1
    binary = QemuBinary(str(tmp_path / "qemu"), "7.2.0", "QEMU 7.2.0")
    sandbox_args.cache_clear()
    assert sandbox_args(binary)
    assert tried() == 1
    sandbox_args.cache_clear()
    assert sandbox_args(qemu(f"{NONE} # of another size")) == ()
    assert tried() == 3


def test_a_qemu_that_did_not_answer_in_time_is_asked_again(
    qemu: Callable[[str], QemuBinary], monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = qemu(ALL)
    with monkeypatch.context() as busy:
        busy.setattr(sandbox, "_DEADLINE_S", 0.0)
        assert sandbox_args(binary) == ()
    sandbox_args.cache_clear()  # the next process
    assert sandbox_args(binary) == ("-sandbox", _WANTED[0])


def test_a_cache_that_cannot_be_written_is_no_reason_for_less(
    qemu: Callable[[str], QemuBinary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "file/cache"))
    assert sandbox_args(qemu(ALL)) == ("-sandbox", _WANTED[0])
