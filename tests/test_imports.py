"""Imports go one way, and what is pure stays pure."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

HARNESS = Path(__file__).resolve().parents[1] / "harness"
# A room imports from its own row and from those above it; a new room needs a place here.
ROWS = """
errors printable signals
outputs
packages pagetable
verdict kernel_functions
cache kernel guest
ending machine
claims settings selection
accounts
results
pytest_plugin
campaign doctor
session
commands
cli
entry
"""
RANK = {room: rank for rank, row in enumerate(ROWS.strip().splitlines()) for room in row.split()}
PURE = ("pagetable", "verdict")
IMPURE = {"asyncio", "io", "logging", "mmap", "multiprocessing", "os", "pathlib", "select", "shutil", "signal"} | {
    *("socket", "subprocess", "sys", "tempfile", "threading", "time", "urllib")
}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path) -> Iterator[str]:
    """Every name that a file imports, in full, wherever it stands: harness.errors.UsageError."""
    package = ("harness", *path.relative_to(HARNESS).parts[:-1])
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = (node.module,) if node.module else ()
            yield from (".".join((*above, *module, alias.name)) for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(HARNESS).parts[0].removesuffix(".py")


FILES = sorted(HARNESS.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(HARNESS)) for path in FILES])
def test_imports_go_one_way(path: Path) -> None:
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("harness.")}
    assert [room for room in sorted(rooms) if RANK[room] > RANK[room_of(path)]] == []


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_import_nothing_that_does_input_or_output(room: str) -> None:
    found = {(path.name, name) for path in (HARNESS / room).glob("*.py") for name in imported(path)}
    allowed = {("memory.py", "mmap")}  # the type of a buffer that somebody else made
    assert sorted(pair for pair in found - allowed if pair[1].split(".")[0] in IMPURE) == []


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_neither_print_nor_open(room: str) -> None:
    for path in (HARNESS / room).glob("*.py"):
        used = {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)}
        assert used & {"print", "open", "input"} == set(), path.name


def test_every_spelling_of_an_import_is_read() -> None:
    assert {"harness.errors.UsageError", "harness.kernel.kconfig.Kconfig"} <= {*imported(HARNESS / "kernel/image.py")}
    assert {"harness.cache", "subprocess"} <= {*imported(HARNESS / "machine/accel.py")}
    assert "harness.machine.vm.VM" in imported(HARNESS / "machine/probe.py"), "inside an if"
    assert {room_of(path) for path in FILES} == set(RANK)
