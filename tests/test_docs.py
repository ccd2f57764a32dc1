"""The site of docs/: it builds without a warning, and its pages name only what exists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """The dummy builder reads every page and resolves every reference, and writes nothing: three seconds."""
    words = ["-b", "dummy", "-W", "--keep-going", "-q", "-d", str(tmp_path / "doctrees"), str(ROOT / "docs")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words, str(tmp_path / "out")], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
