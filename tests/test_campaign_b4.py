"""Tests for ``hugepfn series --b4``, with a script in place of b4 that records its arguments."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness import cli
from harness.campaign import series
from harness.campaign.b4 import fetch
from harness.campaign.report import PageRequest
from harness.campaign.series import steps_of_mbox
from harness.errors import ExitCode, MachineryError, UsageError
from harness.selection.selected import Selected

MAIL = "20261126.1234-1-name@example.com"
SERIES = Path(__file__).parent / "data" / "build" / "series.mbox"


@pytest.fixture
def b4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path at which a test writes its b4, in the first folder of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    return folder / "b4"


def said(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_fetched_patches_are_read_as_an_mbox(b4: Path, tmp_path: Path) -> None:
    said(b4, f"echo $@ >{tmp_path}/argv; echo 'Looking up' >&2; cat {SERIES}")
    mbox = fetch(MAIL, tmp_path)
    assert (tmp_path / "argv").read_text() == f"am -T -o - {MAIL}\n"
    assert mbox.read_bytes() == SERIES.read_bytes()
    folder = tmp_path / "patches"
    folder.mkdir()
    assert [step.name for step in steps_of_mbox("debsrc:6.12", mbox, folder)] == ["base", "1/3", "2/3", "3/3"]


def test_the_command(b4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(b4, f"cat {SERIES}")
    seen: list[object] = []

    def run_series(
        tree: str,
        patches: Path,
        tests: tuple[Selected, ...],
        _options: object,
        _json: object,
        page: PageRequest,
        _resume: bool,
    ) -> ExitCode:
        seen.extend((tree, patches.read_bytes(), tests, page.patches))
        return ExitCode.OK

    monkeypatch.setattr(series, "run_series", run_series)
    with pytest.raises(SystemExit) as ended:
        cli.main(["series", "debsrc:6.12", "fork", "--b4", MAIL])
    tests = (Selected(None, "fork"),)
    assert (ended.value.code, seen) == (0, ["debsrc:6.12", SERIES.read_bytes(), tests, ("--b4", MAIL)])
    assert list(tmp_path.parent.glob("hugepfn-b4-*")) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--b4", MAIL, "--mbox", "m"], "give either --mbox FILE or --b4 MSGID, not both"),
        (["--b4", "fork"], "--b4 'fork'; expected a message id, such as 20261126.1234-1-name@example.com"),
        ([], "give BASE..TIP, --mbox FILE or --b4 MSGID"),
    ],
)
def test_invalid_arguments_are_refused(
    b4: Path, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    said(b4, "exit 9")
    with pytest.raises(SystemExit) as ended:
        cli.main(["series", "debsrc:6.12", *words])
    assert (ended.value.code, message in capfd.readouterr().err) == (2, True)


def test_an_option_is_not_taken_as_a_message_id(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        fetch("--outdir=/@", tmp_path)


@pytest.mark.usefixtures("b4")
def test_missing_b4_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MachineryError, match=r"^--b4 needs b4; install it with: pip install 'hugepfn\[b4\]'"):
        fetch(MAIL, tmp_path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo Looking up >&2; echo 'Could not retrieve thread: no such host' >&2; exit 1",
            "thread: no such host; chec",
        ),
        ("echo 'Server returned an error: 404' >&2; exit 0", "Server returned an error: 404; check the message id"),
        ("exit 1", "no message; check the message id, and that this host reaches the archive"),
    ],
)
def test_b4_without_network_or_patches(b4: Path, tmp_path: Path, script: str, message: str) -> None:
    said(b4, script)
    with pytest.raises(MachineryError) as error:
        fetch(MAIL, tmp_path)
    assert str(error.value).startswith(f"b4 has no patches for {MAIL}: ")
    assert message in str(error.value)
    assert list(tmp_path.glob("*.mbox")) == []
