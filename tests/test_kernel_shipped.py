"""Kernels and folders on their way to another machine."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
import zstandard

from harness.errors import MachineryError, UsageError
from harness.host import parcel
from harness.kernel import Kernel, open_image, shipped
from tests.test_kernel_image import RELEASE, bzimage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A kernel with a module and its configuration."""
    found = tmp_path / "kernel"
    modules = found / "lib/modules" / RELEASE
    (modules / "kernel").mkdir(parents=True)
    (found / "vmlinuz").write_bytes(bzimage())
    (found / "config").write_text("CONFIG_VFIO_PCI=m\n")
    (modules / "kernel/vfio-pci.ko").write_bytes(b"\x7fELF")
    os.utime(modules / "kernel/vfio-pci.ko", (1_700_000_000, 1_700_000_000))
    (modules / "modules.dep").write_text("kernel/vfio-pci.ko:\n")
    (modules / "build").symlink_to("/usr/src")
    return found


def test_a_kernel_is_the_same_where_it_was_sent(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "here"))
    image = Kernel.image(folder).resolve()
    digest, packed = shipped.digest_of(image), shipped.pack(image)
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "there"))
    spec = f"shipped:{digest}:debian:6.12"
    with pytest.raises(MachineryError, match=r"debian:6\.12 was not sent to this machine"):
        Kernel.parse(spec).resolve()
    assert not shipped.has(digest)
    shipped.keep(digest, packed)
    assert shipped.has(digest)
    there = Kernel.parse(spec).resolve()
    assert there.image.is_relative_to(tmp_path / "there")
    assert (there.spec, there.release, there.key) == ("debian:6.12", RELEASE, image.key)
    assert there.config == image.config
    assert there.modules_dir is not None
    assert sorted(path.name for path in there.modules_dir.iterdir()) == ["kernel", "modules.dep"]
    assert shipped.digest_of(there) == digest


def test_another_module_is_another_kernel(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "here"))
    before = shipped.digest_of(open_image(folder / "vmlinuz", modules=folder))
    (folder / "lib/modules" / RELEASE / "kernel/vfio-pci.ko").write_bytes(b"other")
    assert shipped.digest_of(open_image(folder / "vmlinuz", modules=folder)) != before


@pytest.mark.parametrize("spec", ["shipped", "shipped:", "shipped:abc", "shipped:abc:"])
def test_a_spec_without_both_parts(spec: str) -> None:
    with pytest.raises(UsageError, match="expected shipped:DIGEST:SPEC"):
        Kernel.parse(spec)


def test_a_folder_is_sent_with_what_is_executable_and_without_what_is_hidden(tmp_path: Path) -> None:
    mine, there = tmp_path / "mine", tmp_path / "there"
    for name in ("data/.secret", "data/numbers", "__pycache__/x.pyc", ".git/config", "run"):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text(name)
    (mine / "run").chmod(0o700)
    files = parcel.files_below(mine)
    parcel.unpack(parcel.pack(files), there)
    assert sorted(str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()) == [
        "data/numbers",
        "run",
    ]
    assert os.access(there / "run", os.X_OK)
    assert not os.access(there / "data/numbers", os.X_OK)
    assert parcel.digest(parcel.files_below(there)) == parcel.digest(files)
    (there / "data/numbers").write_text("other")
    assert parcel.digest(parcel.files_below(there)) != parcel.digest(files)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "a/../../outside"])
def test_a_file_outside_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(MachineryError, match="expected plain files below a folder"):
        parcel.unpack(zstandard.compress(packed.getvalue()), tmp_path / "here")


@pytest.mark.parametrize("keep", [0, 10, -10])
def test_a_damaged_parcel_is_refused(tmp_path: Path, keep: int) -> None:
    packed = parcel.pack({"file": os.urandom(100_000)})
    with pytest.raises(MachineryError, match="damaged"):
        parcel.unpack(packed[:keep], tmp_path)
