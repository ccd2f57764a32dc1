"""Writes the parts that reproducers share anew: ``python -m harness.bugs FILE...``."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.bugs.compose import compose, parts
from harness.errors import UsageError

PARTS = Path(__file__).with_name("parts.c")


def main(names: list[str]) -> int:
    """Compose files in place. Returns 2 if one of them is no reproducer, after a line that says why."""
    available = parts(PARTS.read_text())
    for name in names:
        try:
            Path(name).write_text(compose(Path(name).read_text(), available))
        except (UsageError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
