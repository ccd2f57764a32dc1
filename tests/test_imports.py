"""Checks that imports go one way without a cycle, and that the pure rooms do no I/O."""

from __future__ import annotations

import ast
import functools
import graphlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

HARNESS = Path(__file__).resolve().parents[1] / "harness"
# A room imports from its own row and from those above it; a new room needs a place here.
ROWS = """
errors printable logs levels events
outputs host
pagetable
verdict bisection kernel_function kernel_functions
model
archive
kernel
guest
qemu
config
observe
introspect
machine
assertion
ending claims
selection
plugin source_links
results
pytest_plugin
campaign selfcheck doctor
bugs explorer coverage
benchmark
kselftest session
commands
cli
entry
"""
RANK = {room: rank for rank, row in enumerate(ROWS.strip().splitlines()) for room in row.split()}
ROOM_FILES_MAX = 18
PURE = ("pagetable", "verdict", "bisection", "model")
IMPURE = {"asyncio", "io", "logging", "mmap", "multiprocessing", "os", "pathlib", "select", "shutil", "signal"} | {
    *("socket", "subprocess", "sys", "tempfile", "threading", "time", "urllib")
}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path) -> Iterator[str]:
    """Return the full name of everything that a file imports, at any place in it: harness.errors.UsageError."""
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
    found = {(path.name, name) for path in (HARNESS / room).rglob("*.py") for name in imported(path)}
    allowed = {("memory.py", "mmap")}  # only for the type of a buffer
    assert sorted(pair for pair in found - allowed if pair[1].split(".")[0] in IMPURE) == []


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_neither_print_nor_open(room: str) -> None:
    for path in (HARNESS / room).rglob("*.py"):
        used = {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)}
        assert used & {"print", "open", "input"} == set(), path.name


def module_of(path: Path) -> str:
    return ".".join(("harness", *path.relative_to(HARNESS).with_suffix("").parts)).removesuffix(".__init__")


def graph(paths: Sequence[Path]) -> dict[str, set[str]]:
    """Return the modules that each module imports. Imports under TYPE_CHECKING count as well."""
    modules = {module_of(path): path for path in paths}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {*imported(path)}
        # `from harness.room import name` imports the module harness.room.name, or the room itself.
        found[module] = {name if name in modules else name.rpartition(".")[0] for name in names} & modules.keys()
        found[module].discard(module)
    return found


def cycle_in(edges: Mapping[str, set[str]]) -> tuple[str, ...]:
    """Return modules that import each other in a cycle, or an empty tuple."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return tuple(error.args[1])
    return ()


def test_no_file_imports_itself_through_others() -> None:
    assert cycle_in(graph(FILES)) == ()


def test_a_cycle_between_two_files_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "HARNESS", tmp_path)
    (tmp_path / "observe").mkdir()
    one, two = tmp_path / "observe/run.py", tmp_path / "observe/witness.py"
    one.write_text("from harness.observe import witness\n")
    two.write_text("if TYPE_CHECKING:\n    from harness.observe.run import GuestRun\n")
    assert set(cycle_in(graph([one, two]))) == {"harness.observe.run", "harness.observe.witness"}


@pytest.mark.parametrize("room", sorted({path.parent for path in FILES}), ids=lambda room: room.name)
def test_a_room_is_small(room: Path) -> None:
    assert len([path for path in room.iterdir() if path.suffix in (".py", ".tsv")]) <= ROOM_FILES_MAX


def test_every_spelling_of_an_import_is_read() -> None:
    assert {"harness.errors.UsageError", "harness.kernel.kconfig.Kconfig"} <= {*imported(HARNESS / "kernel/image.py")}
    assert {"harness.host.cache", "subprocess"} <= {*imported(HARNESS / "qemu/accel.py")}
    assert "harness.guest.sshd.SshServer" in imported(HARNESS / "machine/live.py"), "an import inside an if is found"
    assert {room_of(path) for path in FILES} == set(RANK)
