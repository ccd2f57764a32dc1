"""Tests for the load order from modules.dep, compressed modules, and the symbols that a module defines."""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from harness.errors import HugepfnError, MachineryError, PremiseNotMet, UsageError
from harness.kernel import ImageKind, KernelImage, Module, defined_symbols, has_symbol, load_order, read, why_missing
from harness.kernel.kconfig import Kconfig

# Cut from depmod's output for a stock kernel.
MODULES_DEP = """\
kernel/virt/lib/irqbypass.ko.xz:
kernel/drivers/vfio/vfio.ko.xz:
kernel/drivers/vfio/vfio_iommu_type1.ko.xz: kernel/drivers/vfio/vfio.ko.xz
kernel/drivers/vfio/pci/vfio-pci-core.ko.xz: kernel/drivers/vfio/vfio.ko.xz kernel/virt/lib/irqbypass.ko.xz
kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/pci/vfio-pci-core.ko.xz kernel/drivers/vfio/vfio.ko.xz \
kernel/virt/lib/irqbypass.ko.xz
"""


def kernel(modules_dir: Path | None) -> KernelImage:
    return KernelImage("./k", Path("/k"), ImageKind.BZIMAGE, "6.12.0", modules_dir, None)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "lib/modules/6.12.0"
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text(MODULES_DEP)
    (folder / "modules.builtin").write_text("kernel/drivers/virtio/virtio_pci.ko\n")
    return folder


def test_dependencies_come_first_and_once(tree: Path) -> None:
    order = load_order(kernel(tree), ["vfio-pci", "vfio_iommu_type1", "vfio_pci"])
    names = [module.name for module in order]
    assert names == ["irqbypass", "vfio", "vfio_pci_core", "vfio_pci", "vfio_iommu_type1"]
    assert order[3].path == tree / "kernel/drivers/vfio/pci/vfio-pci.ko.xz"
    assert len(order) == 5


def test_builtin_and_missing_modules_are_distinguished(tree: Path) -> None:
    order = load_order(kernel(tree), ["virtio-pci", "vfio_virqfd", "vfio"])
    assert (order.builtin, order.missing) == (("virtio-pci",), ("vfio_virqfd",))
    assert [module.name for module in order] == ["vfio"]


def _configured(modules_dir: Path | None, text: str | None) -> KernelImage:
    return replace(kernel(modules_dir), config=None if text is None else Kconfig(text))


@pytest.mark.parametrize(
    ("config", "given", "kind", "words"),
    [
        (None, False, UsageError, r"vfio-pci is not built in and there are no modules: pass --modules DIR"),
        (
            "CONFIG_VFIO_PCI=m\n",
            False,
            UsageError,
            r"of this kernel \(CONFIG_VFIO_PCI=m\) and there are no modules",
        ),
        (
            "CONFIG_VFIO_PCI=m\n",
            True,
            UsageError,
            r"and is not in .*/6\.12\.0: pass --modules DIR",
        ),
        (None, True, UsageError, r"vfio-pci is not built in and is not in"),
        ("CONFIG_VFIO=y\n", False, PremiseNotMet, r"was built without vfio-pci: CONFIG_VFIO_PCI is not set"),
        ("CONFIG_VFIO_PCI=y\n", False, None, ""),
    ],
)
def test_missing_modules_are_distinguished_from_disabled_ones(
    tree: Path, config: str | None, given: bool, kind: type[HugepfnError] | None, words: str
) -> None:
    (tree / "modules.dep").write_text("kernel/drivers/vfio/vfio.ko.xz:\n")
    reason = why_missing(_configured(tree if given else None, config), "vfio_pci")
    assert type(reason) is (kind or type(None))
    assert re.search(words, str(reason))


def test_a_module_that_was_given_is_not_missing(tree: Path) -> None:
    assert why_missing(kernel(tree), "vfio_pci") is None


def test_a_kernel_without_modules_has_none() -> None:
    assert load_order(kernel(None), ["vfio"]).missing == ("vfio",)
    assert has_symbol(kernel(None), "vfio", "x") is None


def test_a_folder_is_read_again_only_when_it_changes(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings: list[Path] = []
    read_text = Path.read_text

    def noted(path: Path) -> str:
        readings.append(path)
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", noted)
    for _ in range(3):
        assert load_order(kernel(tree), ["virtio_pci"]).builtin == ("virtio_pci",)
    assert readings == [tree / "modules.dep", tree / "modules.builtin"]
    (tree / "modules.builtin").write_text("")
    assert load_order(kernel(tree), ["virtio_pci"]).missing == ("virtio_pci",)
    (tree / "modules.dep").write_text("kernel/drivers/virtio/virtio_pci.ko:\n")
    assert len(load_order(kernel(tree), ["virtio_pci"])) == 1


def test_a_cycle_in_modules_dep_ends(tree: Path) -> None:
    (tree / "modules.dep").write_text("a.ko: b.ko\nb.ko: a.ko\n")
    assert [module.name for module in load_order(kernel(tree), ["a"])] == ["b", "a"]


def test_without_modules_dep_the_command_that_makes_it_is_named(tree: Path, tmp_path: Path) -> None:
    (tree / "modules.dep").unlink()
    with pytest.raises(UsageError, match=rf"depmod -b {tmp_path} 6\.12\.0"):
        load_order(kernel(tree), ["vfio"])


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [
        (".ko", b"\x7fELF..."),
        (".ko.xz", lzma.compress(b"\x7fELF...", check=lzma.CHECK_CRC32)),
        (".ko.zst", zstandard.ZstdCompressor(write_content_size=False).compress(b"\x7fELF...")),
        (".ko.gz", gzip.compress(b"\x7fELF...", mtime=0)),
    ],
)
def test_every_compression_is_read_and_a_truncated_file_is_refused(tmp_path: Path, suffix: str, packed: bytes) -> None:
    module = Module("m", tmp_path / f"m{suffix}")
    module.path.write_bytes(packed)
    assert read(module) == b"\x7fELF..."
    if suffix != ".ko":
        module.path.write_bytes(packed[:-6])
        with pytest.raises(MachineryError, match="cannot read the module"):
            read(module)


def test_a_module_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MachineryError, match="No such file"):
        read(Module("m", tmp_path / "m.ko"))


def elf_with_symbols(symbols: list[tuple[str, int]]) -> bytes:
    """A relocatable ELF file that has only a symbol table: ``(name, section index)``, 0 = undefined."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name, _ in symbols)
    table = bytes(24)
    at = 1
    for name, section in symbols:
        table += struct.pack("<IBBHQQ", at, 0x12, 0, section, 0, 0)
        at += len(name) + 1
    strings_at, table_at = 64, 64 + len(strings)
    sections_at = table_at + len(table)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, sections_at, 0, 64, 0, 0, 64, 3, 0)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, table_at, len(table), 2, 1, 8, 24)
    sections += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, strings_at, len(strings), 0, 0, 1, 0)
    return header + strings + table + sections


def test_only_defined_symbols_count(tree: Path) -> None:
    elf = elf_with_symbols([("vfio_pci_mmap_huge_fault", 1), ("vmf_insert_pfn_pmd", 0), ("version", 0xFFF1)])
    assert defined_symbols(elf) == {"vfio_pci_mmap_huge_fault", "version"}
    file = tree / "kernel/drivers/vfio/pci/vfio-pci-core.ko.xz"
    file.parent.mkdir(parents=True)
    file.write_bytes(lzma.compress(elf))
    assert has_symbol(kernel(tree), "vfio-pci-core", "vfio_pci_mmap_huge_fault") is True
    assert has_symbol(kernel(tree), "vfio-pci-core", "vmf_insert_pfn_pmd") is False
    assert has_symbol(kernel(tree), "virtio_pci", "vfio_pci_mmap_huge_fault") is None


@pytest.mark.parametrize("cut", [3, 40, 100, 200])
def test_a_broken_object_is_an_error_not_an_answer(cut: int) -> None:
    with pytest.raises(MachineryError, match="ELF"):
        defined_symbols(elf_with_symbols([("a_symbol", 1), ("another", 0)])[:cut])


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_compilers_object_is_read_as_nm_would(tmp_path: Path) -> None:
    source = "static int hidden(void) { return 1; } extern int elsewhere(void);\n"
    source += "int seen(void) { return hidden() + elsewhere(); }\n"
    (tmp_path / "a.c").write_text(source)
    subprocess.run(["gcc", "-O0", "-c", "a.c", "-o", "a.o"], cwd=tmp_path, check=True, timeout=60)
    symbols = defined_symbols((tmp_path / "a.o").read_bytes())
    assert {"hidden", "seen"} <= symbols
    assert "elsewhere" not in symbols
