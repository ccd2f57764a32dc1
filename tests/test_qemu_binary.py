"""Tests for which QEMU is used, and for the errors about one that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import MachineryError, UsageError
from harness.qemu.binary import QemuBinary, check_cpu, find_qemu

DEBIAN_12 = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HUGEPFN_QEMU", raising=False)
    find_qemu.cache_clear()
    yield
    find_qemu.cache_clear()


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def says(path: Path, words: str) -> Path:
    return script(path, f"#!/bin/sh\ncat <<'END'\n{words}\nEND\n")


def test_qemu_from_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = says(tmp_path / "qemu-system-x86_64", f"{DEBIAN_12}\nCopyright (c) 2003-2022 Fabrice Bellard")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert find_qemu() == QemuBinary(str(path), "7.2.22", DEBIAN_12)


def test_a_named_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = says(tmp_path / "own", "QEMU emulator version 10.1.0-rc2")
    monkeypatch.setenv("HUGEPFN_QEMU", str(path))
    found = find_qemu()
    assert (found.path, found.version) == (str(path), "10.1.0")


@pytest.mark.parametrize("version", ["7.2.0", "7.10.0", "8.0.0", "10.0", "11.0.50"])
def test_a_qemu_that_is_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setenv("HUGEPFN_QEMU", str(says(tmp_path / "qemu", f"QEMU emulator version {version}")))
    assert find_qemu().version == version


def refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HUGEPFN_QEMU", str(path))
    with pytest.raises(UsageError) as caught:
        find_qemu()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("version", ["7.1.99", "5.2.0", "2.12.1"])
def test_a_qemu_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    path = says(tmp_path / "qemu", f"QEMU emulator version {version} (Debian 1:{version}+dfsg-11)")
    assert refused(path, monkeypatch) == f"{path} is QEMU {version}; expected 7.2 or newer"


def test_a_missing_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MachineryError, match=r"there is no qemu-system-x86_64; install qemu-system-x86 \(`hugepfn doctor`"
    ):
        find_qemu()
    assert "there is no no-such-qemu; install" in refused(Path("no-such-qemu"), monkeypatch)


def test_a_file_that_may_not_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "qemu"
    path.write_text("#!/bin/sh\n")
    assert f"there is no {path}; install" in refused(path, monkeypatch)


@pytest.mark.parametrize("words", ["", "frob 9.9", "GNU bash, version 9.2.15(1)-release (x86_64-pc-linux-gnu)"])
def test_a_program_that_is_not_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    path = says(tmp_path / "qemu", words)
    message = refused(path, monkeypatch)
    assert message.startswith(f"{path} is not QEMU: --version prints")
    assert words in message


def test_a_program_that_prints_binary_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not QEMU" in refused(script(tmp_path / "qemu", "#!/bin/sh\nprintf '\\377\\376'\n"), monkeypatch)


def test_a_program_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script(tmp_path / "qemu", "#!/no/such/interpreter\n")
    assert f"{path} --version: " in refused(path, monkeypatch)


def test_the_version_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = says(tmp_path / "qemu", DEBIAN_12)
    monkeypatch.setenv("HUGEPFN_QEMU", str(path))
    found = find_qemu()
    path.unlink()
    assert find_qemu() == found


def test_a_cpu_model_that_qemu_does_not_have(tmp_path: Path) -> None:
    words = "qemu: unable to find CPU model 'NOSUCH'"
    fake = script(tmp_path / "qemu", f'#!/bin/sh\necho one >&2\necho "{words}" >&2\nexit 1\n')
    with pytest.raises(UsageError, match=f"--cpu NOSUCH: {words}"):
        check_cpu(QemuBinary(str(fake), "7.2.22", DEBIAN_12), "NOSUCH")


def test_a_cpu_model_that_qemu_has(tmp_path: Path) -> None:
    fake = script(tmp_path / "qemu", f'#!/bin/sh\necho "$@" > {tmp_path}/argv\nread line; test "$line" = quit\n')
    check_cpu(QemuBinary(str(fake), "7.2.22", DEBIAN_12), "qemu64")
    assert "-accel tcg -cpu qemu64" in (tmp_path / "argv").read_text()
