"""Tests for the measurement beside another checkout, which is a script here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.benchmark.beside import Checkout, Cost, compared, scenarios_of
from harness.errors import MachineryError, UsageError

SCRIPT = """#!/bin/sh
echo "$HUGEPFN_CACHE_DIR $*" >> {log}
case "$*" in
*--json*) for last; do :; done; echo '{results}' > "$last";;
*broken*) echo first >&2; echo "hugepfn: no kernel" >&2; exit 3;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    command = tmp_path / ".venv/bin/hugepfn"
    command.parent.mkdir(parents=True)
    results = json.dumps({"results": [{"scenario": name} for name in ("fork", "fork", "exit")]})
    command.write_text(SCRIPT.format(log=tmp_path / "log", results=results))
    command.chmod(0o755)
    return tmp_path


def test_a_folder_without_an_installation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no .venv/bin/hugepfn; expected a checkout of hugepfn after"):
        Checkout.of(tmp_path)


def test_the_scenarios_of_the_other_are_those_that_it_runs(folder: Path) -> None:
    assert scenarios_of(Checkout.of(folder), ["run", "--quiet"]) == ("fork", "exit")
    assert (folder / "log").read_text().startswith(f"{folder}/build/cache run --quiet -n 2 --json ")


def test_a_command_that_fails_is_told_with_its_last_line(folder: Path) -> None:
    with pytest.raises(MachineryError, match=r"hugepfn run broken ended with 3: hugepfn: no kernel"):
        Checkout.of(folder).cost(["run", "broken"])


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    ours = iter([Cost(1, 1), Cost(3, 2), Cost(8, 4)])
    row = compared("it", lambda: next(ours), lambda: Cost(2, 4), 3)
    assert (row.ours, row.theirs, row.ratio) == (Cost(3, 2), Cost(2, 4), Cost(1.5, 0.5))
