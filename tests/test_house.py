"""Checks that no two classes of the package share a name, and that no module is too long."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

HARNESS = Path(__file__).resolve().parents[1] / "harness"
FILES = sorted(HARNESS.rglob("*.py"))


def test_no_two_classes_share_a_name() -> None:
    found = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(f"{path.relative_to(HARNESS)}:{node.lineno}")
    shared = {name: places for name, places in found.items() if len(places) > 1}
    assert shared == {}


#: The largest number of lines of a module.
LINES_MAX = 350


def test_a_module_is_short() -> None:
    sources = (*FILES, *(HARNESS.parent / "guest_tests/lib").rglob("*.[ch]"))
    assert [path.name for path in sources if len(path.read_text().splitlines()) > LINES_MAX] == []
