"""``make compat``: run hugepfn with several QEMUs and Pythons, and with its cache on several file systems.

    python tests/compat/compat.py [--kernel debian:6.12] [--qemu SPEC]... [--python VERSION]... [--filesystem NAME]...

Each file system is an image or a mount for this run only, in a mount namespace of its own (root). QEMUs and Pythons
come from the mirror, unpacked with their libraries; nothing is installed but btrfs-progs. Prints a table in Markdown
and writes it to docs/compatibility.md with --write.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import click

from harness.archive.suites import SuiteProgram, unpacked_program
from harness.errors import UsageError
from harness.events import Event
from harness.host import cache
from harness.host.process import run
from harness.kernel import Kernel
from harness.qemu.binary import QEMU_VARIABLE, find_qemu

ROOT = Path(__file__).resolve().parents[2]
CELL = Path(__file__).with_name("cell.py")
TABLE = ROOT / "docs" / "compatibility.md"
FILESYSTEMS = ("ext4", "btrfs", "overlayfs", "tmpfs")
QEMUS = ("debian:7.2", "debian:10.0", "debian:11.1")
PYTHONS = ("3.11", "3.14")
OURS = ".".join(map(str, sys.version_info[:2]))
IMAGE_MIB = 4096
CELL_TIMEOUT_S = 900
STEPS = ("clone", "boot", "reset", "d3hot", "keep")
NAMESPACE = "HUGEPFN_COMPAT_NAMESPACE"


@dataclass(frozen=True)
class Cell:
    """One combination, and the outcome of each step."""

    qemu: str
    python: str
    filesystem: str
    steps: dict[str, str]
    took_s: float

    @property
    def fine(self) -> bool:
        """Whether every step went well."""
        return all(self.steps.get(step) == "ok" for step in STEPS)


def say(event: Event | str) -> None:
    """Progress, on standard error."""
    click.echo(f"compat: {event}", err=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in the cache for this run, which `hugepfn cache clean` does not remove while the block runs."""
    name = str(os.getpid())
    with cache.locked(f"compat.{name}", "runs make compat"):
        folder = cache.root() / "compat" / name
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


@contextmanager
def mounted(filesystem: str, folder: Path) -> Iterator[Path]:
    """A new file system of this type in a folder, unmounted after the block."""
    place = folder / filesystem
    place.mkdir(parents=True)
    if filesystem == "tmpfs":
        run(["mount", "-t", "tmpfs", "-o", f"size={IMAGE_MIB}m", "tmpfs", place], timeout_s=30)
    elif filesystem == "overlayfs":
        below = folder / "below"
        below.mkdir()
        run(["mount", "-t", "tmpfs", "-o", f"size={IMAGE_MIB}m", "tmpfs", below], timeout_s=30)
        lower = folder / "lower"  # on another file system, because only then overlayfs has its own inode numbers
        lower.mkdir()
        run(["mount", "-t", "tmpfs", "tmpfs", lower], timeout_s=30)
        for name in ("upper", "work"):
            (below / name).mkdir()
        options = f"lowerdir={lower},upperdir={below}/upper,workdir={below}/work"
        run(["mount", "-t", "overlay", "-o", options, "overlay", place], timeout_s=30)
    else:
        image = folder / f"{filesystem}.img"
        with image.open("wb") as file:
            file.truncate(IMAGE_MIB << 20)
        run([f"mkfs.{filesystem}", "-q", image], timeout_s=120)
        run(["mount", "-o", "loop", image, place], timeout_s=30)
    try:
        yield place
    finally:
        for each in (place, folder / "lower", folder / "below"):  # check=False: some of them do not exist
            run(["umount", "-R", each], timeout_s=60, check=False)


def python_of(version: str) -> tuple[Path, Path | None]:
    """A Python from the mirror, and the folder with hugepfn's dependencies for it; None for our own Python."""
    if version == OURS:
        return Path(sys.executable), None
    program = SuiteProgram(
        f"python{version}",
        f"python{version}",
        more="export PYTHONHOME=$root/usr",
    )
    path = unpacked_program(program, f"debian:{version}", "--python", say)
    folder = cache.obtain("site-packages", version, lambda folder: _install(version, folder), say)
    return path, folder


def _install(version: str, folder: Path) -> None:
    """Install hugepfn's dependencies for another Python from wheels."""
    import tomllib

    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(folder)]
    argv += ["--python-version", version, "--only-binary=:all:", *wanted]
    say(f"fetching the dependencies for Python {version}")
    run(argv, timeout_s=1200)


def try_cell(qemu: str, python: str, filesystem: str, place: Path, kernel: str) -> Cell:
    """Run one cell, with its own cache on the file system."""
    program, packages = python_of(python)
    (place / "ram").mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "HUGEPFN_CACHE_DIR": str(place / "cache"),
        "HUGEPFN_RAM_DIR": str(place / "ram"),
        QEMU_VARIABLE: qemu,
        "PYTHONPATH": os.pathsep.join(str(path) for path in (ROOT, packages) if path is not None),
        "PYTHONWARNINGS": "error::ResourceWarning",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    started = time.monotonic()
    argv = [str(program), str(CELL), kernel]
    done = subprocess.run(
        argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=CELL_TIMEOUT_S, check=False
    )
    took_s = time.monotonic() - started
    lines = done.stdout.splitlines()
    try:
        steps = json.loads(lines[-1]) if lines else {}
    except ValueError:
        steps = {}
    if set(steps) != set(STEPS):
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        steps = dict.fromkeys(STEPS, last)
    shutil.rmtree(place / "cache" / "templates", ignore_errors=True)  # the next cell makes its own cache
    return Cell(qemu, python, filesystem, steps, took_s)


def table(cells: list[Cell], kernel: str) -> str:
    """Return the page: a row per cell, and the errors below."""
    lines = [
        "# Compatibility",
        "",
        f"Made by `make compat` on {date.today():%Y-%m-%d}, under TCG, with {kernel}. Each row is one combination: "
        "fork at 4K, 2M and 1G in clones (clone) and in booted machines (boot), a reset and D3hot of an nvme "
        "(reset, d3hot), a machine kept and brought back (keep). Cache and RAM were on the file system named.",
        "",
        "| QEMU | file system | Python | " + " | ".join(STEPS) + " |",
        "|---|---|---|" + "---|" * len(STEPS),
    ]
    wrong: list[str] = []
    for cell in cells:
        marks = []
        for step in STEPS:
            outcome = cell.steps[step]
            if outcome != "ok" and outcome not in wrong:
                wrong.append(outcome)
            marks.append("ok" if outcome == "ok" else f"**{wrong.index(outcome) + 1}**")
        lines.append(f"| {cell.qemu} | {cell.filesystem} | {cell.python} | " + " | ".join(marks) + " |")
    lines += ["", *(f"{number}. {words}" for number, words in enumerate(wrong, start=1))]
    return "\n".join(lines).rstrip() + "\n"


def prepare(kernel: str, place: Path) -> str:
    """Copy the kernel into the file system's cache. Returns its spec."""
    image = Kernel.parse(kernel).resolve(say)
    source = cache.root()
    for kind in ("kernels", "resolved", "hashes"):
        if (source / kind).is_dir() and kind != "kernels":
            shutil.copytree(source / kind, place / "cache" / kind)
    folder = next(parent for parent in image.image.parents if parent.parent == source / "kernels")
    shutil.copytree(folder, place / "cache" / "kernels" / folder.name, symlinks=True)
    if (source / "apt" / "index.json").is_file():
        (place / "cache" / "apt").mkdir()
        shutil.copy(source / "apt" / "index.json", place / "cache" / "apt")
    return image.spec


@click.command()
@click.option("--kernel", default="debian:6.12", show_default=True)
@click.option("--qemu", "qemus", multiple=True, default=QEMUS, show_default=True)
@click.option("--python", "pythons", multiple=True, default=PYTHONS, show_default=True)
@click.option("--filesystem", "filesystems", multiple=True, default=FILESYSTEMS, type=click.Choice(FILESYSTEMS))
@click.option("--write", is_flag=True, help="write docs/compatibility.md")
def main(
    kernel: str, qemus: tuple[str, ...], pythons: tuple[str, ...], filesystems: tuple[str, ...], write: bool
) -> None:
    """Make the compatibility table."""
    if os.geteuid() != 0:
        raise UsageError("make compat mounts file systems, which needs root: run it as root")
    if os.environ.get(NAMESPACE) is None:
        os.environ[NAMESPACE] = "1"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, __file__, *sys.argv[1:]])
    programs = {}
    for spec in qemus:
        os.environ[QEMU_VARIABLE] = spec
        find_qemu.cache_clear()
        programs[find_qemu().version] = find_qemu().path
    del os.environ[QEMU_VARIABLE]
    cells: list[Cell] = []
    for filesystem in filesystems:
        with scratch() as folder, mounted(filesystem, folder) as place:
            spec = prepare(kernel, place)
            for version, path in programs.items():
                for python in pythons:
                    cell = try_cell(path, python, filesystem, place, spec)
                    cells.append(Cell(version, python, filesystem, cell.steps, cell.took_s))
                    words = "ok" if cell.fine else str(cell.steps)
                    say(f"QEMU {version}, Python {python}, {filesystem}: {words} ({cell.took_s:.0f} s)")
    text = table(cells, spec)
    click.echo(text)
    if write:
        TABLE.write_text(text)
    sys.exit(0 if all(cell.fine for cell in cells) else 1)


if __name__ == "__main__":
    main()
