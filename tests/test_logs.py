"""Tests for the log of hugepfn: silent by default, one safe line per record with -v, and the same from a child."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from harness import logs
from harness.cli import cli
from harness.host import cache
from harness.host.cache_key import key_of

LOG = logging.getLogger("hugepfn.test")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _hidden() -> Iterator[None]:
    yield
    logs.hide()


def shown(verbosity: int, folder: Path) -> list[str]:
    """Return what is shown of three records, without the time."""
    with (folder / "log").open("w") as file:
        logs.show(verbosity, file.fileno())
        LOG.debug("a step")
        LOG.info("argv %s", "\x1b[31m and\na newline")
        logs.hide()
        LOG.info("nobody sees it")
    return [re.sub(r"^\[ *\d+\.\d{3} ", "[", line) for line in (folder / "log").read_text().splitlines()]


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [
        (0, []),
        (1, [r"[test] argv \x1b[31m and\na newline"]),
        (2, ["[test] a step", r"[test] argv \x1b[31m and\na newline"]),
        (5, ["[test] a step", r"[test] argv \x1b[31m and\na newline"]),
    ],
)
def test_how_much_is_shown(tmp_path: Path, verbosity: int, expected: list[str]) -> None:
    assert shown(verbosity, tmp_path) == expected


def test_nothing_is_shown_by_default() -> None:
    script = "import logging\nfrom harness import logs\nwith logs.timed(logging.getLogger('hugepfn.x'), 'step'): pass\n"
    script += "logging.getLogger('hugepfn.x').info('nothing')\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_can_show_it(name: str) -> None:
    options = [one for one in cli.commands[name].params if isinstance(one, click.Option)]
    assert [one.opts for one in options if "-v" in one.opts] == [["--verbose", "-v"]]


def test_a_child_shows_it_where_we_do(tmp_path: Path) -> None:
    script = "import logging\nfrom harness import logs\nlogs.show_as_parent()\n"
    script += "logging.getLogger('hugepfn.x').debug('of the child')\nimport os\nprint('HUGEPFN_LOG' in os.environ)"
    with (tmp_path / "log").open("w") as file:
        logs.show(2, file.fileno())
    environment, descriptors = logs.for_child()
    argv = [sys.executable, "-c", script]
    done = subprocess.run(
        argv, env=environment, pass_fds=descriptors, capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
    assert (tmp_path / "log").read_text().endswith(" x] of the child\n")


def test_a_child_without_a_log_keeps_no_descriptor_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may wait for the end of a command's standard error while its session continues to run."""
    theirs, ours = os.pipe()
    monkeypatch.setenv("HUGEPFN_LOG", f"1:{ours}")
    logs.show_as_parent()
    LOG.info("until here")
    logs.hide()
    os.set_blocking(theirs, False)
    assert os.read(theirs, 1000).endswith(b" test] until here\n")
    assert os.read(theirs, 1) == b"", "the child still holds the other end of the pipe"
    os.close(theirs)


def test_without_a_log_a_child_gets_no_variable() -> None:
    assert logs.for_child() == (dict(os.environ), ())


@pytest.mark.parametrize("said", ["", "2", "x:2", "2:9999"])
def test_a_variable_that_is_not_ours_is_ignored(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("HUGEPFN_LOG", said)
    logs.show_as_parent()
    assert logs.verbosity() == 0


def test_a_failed_step_has_its_time_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "hugepfn")
    with logs.timed(LOG, "request %d %s", 3, "put"):
        pass
    with pytest.raises(ValueError, match="no"), logs.timed(LOG, "start", level=logging.INFO):
        raise ValueError("no")
    first, second = ((record.levelno, record.getMessage()) for record in caplog.records)
    assert first[0] == logging.DEBUG
    assert re.fullmatch(r"request 3 put: took \d+\.\d ms", first[1])
    assert second[0] == logging.INFO
    assert re.fullmatch(r"start: failed after \d+\.\d ms", second[1])


def test_the_cache_logs_hits_and_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, "hugepfn")
    for _ in range(2):
        cache.obtain("programs", "fork-1", lambda folder: (folder / "fork").touch())
    made, had = (record.getMessage() for record in caplog.records)
    assert made.startswith("programs fork-1: not in the cache; building it: took ")
    assert had == "programs fork-1: in the cache"


def test_a_key_is_logged_in_a_readable_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    caplog.set_level(logging.DEBUG, "hugepfn")
    parts: dict[str, str | bytes] = {"format": "3", "machine": "MachineSpec(...)" * 20, "init": b"ELF" * 1000}
    key = key_of("template", parts)
    assert key_of("template", {**parts, "init": b"another"}) != key
    cache.obtain("templates", key, lambda folder: (folder / "state").touch())
    first, second, made = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(r"key of template [0-9a-f]{12}: format 3, machine [0-9a-f]{12}, init [0-9a-f]{12}", first)
    assert second.partition(", init ")[0].partition(": ")[2] == first.partition(", init ")[0].partition(": ")[2]
    assert made.startswith(f"templates {key[:12]}: not in the cache; ")
