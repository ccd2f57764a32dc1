"""Tests with a kernel without its modules or its configuration: what is missing is reported, and nothing passes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.kernel import Kernel, KernelImage

from .conftest import Command


def _bare(version: str, folder: Path) -> tuple[KernelImage, Path]:
    """Return a stock kernel, and a copy of only its bzImage."""
    image = Kernel.debian(version).resolve()
    return image, Path(shutil.copy(image.image, folder / "bzImage"))


@pytest.mark.parametrize("level", ["pte", "pud"])
def test_a_bzimage_without_modules(hugepfn: Command, tmp_path: Path, level: str) -> None:
    image, alone = _bare("6.12", tmp_path)
    done = hugepfn("run", "fork", "--level", level, "--kernel", str(alone))
    assert done.returncode == 2, done.stdout
    assert f"fork {level}: error: {alone}: vfio-pci is not built in and there are no modules" in done.stdout
    assert image.modules_dir is not None
    done = hugepfn("run", "fork", "--level", level, "--kernel", str(alone), "--modules", str(image.modules_dir))
    assert done.returncode == 0, done.stdout


def test_a_bzimage_without_its_virtio_modules(hugepfn: Command, tmp_path: Path) -> None:
    """The machine has only UARTs, and scenarios without a device run."""
    _, alone = _bare("6.1", tmp_path)
    done = hugepfn("run", "calibrate_shmem", "--kernel", str(alone))
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_modules_without_vfio_pci(hugepfn: Command, tmp_path: Path) -> None:
    image, alone = _bare("6.12", tmp_path)
    assert image.modules_dir is not None
    modules = tmp_path / "lib/modules" / image.release
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("")
    shutil.copy(image.modules_dir / "modules.builtin", modules)
    done = hugepfn("run", "fork", "--level", "pud", "--kernel", str(alone), "--modules", str(tmp_path))
    assert done.returncode == 2, done.stdout
    assert f"vfio-pci is not built in and is not in {modules}" in done.stdout
